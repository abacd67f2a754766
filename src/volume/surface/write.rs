//! Surfaces as STL, OBJ and GLB.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Surface, occurring, surface, surfaces};
use crate::volume::file::class_path;
use crate::volume::{Legend, Volume, VolumeError, VolumeErrorKind, write_whole};

/// A format of surfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SurfaceFormat {
    /// A folder of binary STL files, `NAME.stl` of each label: mm to the left, the back and the head
    /// (LPS), as 3D Slicer and ITK-SNAP have it; the header says `SPACE=LPS`.
    Stl,
    /// `.obj`: an object of each label, with colours of vertices, in mm, LPS.
    Obj,
    /// `.glb`: a mesh of each label with its name and colour, in metres, y to the head, z to the
    /// front, x to the left, as glTF has it.
    Glb,
}

impl SurfaceFormat {
    /// The format of a name: a folder gets STL files.
    ///
    /// # Errors
    /// [`VolumeErrorKind::Unsupported`] for other endings, with those that there are.
    pub fn of(path: &Path) -> Result<Self, VolumeError> {
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        match ending.as_deref() {
            _ if path.is_dir() => Ok(Self::Stl),
            Some("glb") => Ok(Self::Glb),
            Some("obj") => Ok(Self::Obj),
            None => Ok(Self::Stl),
            Some(_) => {
                let (path, text) = (path.display(), "a folder for a .stl of each label, or a name that ends in .obj or .glb");
                Err(VolumeError::new(VolumeErrorKind::Unsupported, format!("cannot write surfaces to {path}: give {text}")))
            }
        }
    }
}

/// Writes the surfaces of the labels that occur: to `.glb` or `.obj` all of them, into a folder, which
/// is made, `NAME.stl` of each. Files appear whole or not at all. Returns them.
///
/// # Errors
/// Those of [`surfaces`] and [`SurfaceFormat::of`]; [`VolumeErrorKind::NotFound`] (no such folder) or
/// [`VolumeErrorKind::Io`].
pub fn write_surfaces(path: impl AsRef<Path>, labels: &Volume<u16>, legend: &Legend) -> Result<Vec<PathBuf>, VolumeError> {
    let path = path.as_ref();
    let format = SurfaceFormat::of(path)?;
    if format == SurfaceFormat::Stl {
        std::fs::create_dir_all(path).map_err(|e| {
            let text = format!("cannot create {}: {e}", path.display());
            VolumeError::new(VolumeErrorKind::NotFound, text).caused(e)
        })?;
        let mut written = Vec::new();
        for one in occurring(labels, legend)? {
            let file = class_path(path, ".stl", one.label, &one.name, &written);
            let surface = surface(labels, &one)?;
            write_whole(&file, "surface", |file| buffered(file, |out| stl(&surface, out)))?;
            written.push(file);
        }
        return Ok(written);
    }
    let all = surfaces(labels, legend)?;
    write_whole(path, "surfaces", |file| buffered(file, |out| if format == SurfaceFormat::Glb { glb(&all, out) } else { obj(&all, out) }))?;
    Ok(vec![path.to_path_buf()])
}

fn buffered(file: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(file)?);
    write(&mut out)?;
    out.flush()
}

/// To the left, the back and the head.
fn lps([right, front, head]: [f64; 3]) -> [f64; 3] {
    [-right, -front, head]
}

#[expect(clippy::cast_possible_truncation, reason = "the formats have 32 bits")]
fn narrow(p: [f64; 3]) -> [f32; 3] {
    p.map(|x| x as f32)
}

/// The normal of a triangle, as long as twice its area.
fn normal([a, b, c]: [[f64; 3]; 3]) -> [f64; 3] {
    let [u, v] = [b, c].map(|p| [0, 1, 2].map(|axis| p[axis] - a[axis]));
    [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]]
}

fn unit(v: [f64; 3]) -> [f64; 3] {
    let length = v.iter().map(|x| x * x).sum::<f64>().sqrt();
    if length > 0.0 { v.map(|x| x / length) } else { [0.0, 0.0, 1.0] }
}

fn stl(surface: &Surface, out: &mut dyn Write) -> io::Result<()> {
    let mut header = [b' '; 80];
    let text: Vec<u8> = format!("organum SPACE=LPS {}", surface.name).into_bytes();
    header.iter_mut().zip(&text).for_each(|(to, from)| *to = *from);
    out.write_all(&header)?;
    let count = u32::try_from(surface.triangles.len()).map_err(|_| io::Error::other("more than 2^32 triangles"))?;
    out.write_all(&count.to_le_bytes())?;
    for triangle in &surface.triangles {
        let corners = triangle.map(|i| lps(surface.vertices[i as usize]));
        for point in [unit(normal(corners)), corners[0], corners[1], corners[2]] {
            narrow(point).iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))?;
        }
        out.write_all(&[0; 2])?;
    }
    Ok(())
}

fn obj(surfaces: &[Surface], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "# organum, mm\n# SPACE=LPS")?;
    let mut before = 1;
    for surface in surfaces {
        writeln!(out, "o {}", surface.name)?;
        let [r, g, b] = surface.colour.map(|c| f64::from(c) / 255.0);
        for vertex in &surface.vertices {
            let [x, y, z] = lps(*vertex);
            writeln!(out, "v {x:.4} {y:.4} {z:.4} {r:.4} {g:.4} {b:.4}")?;
        }
        for triangle in &surface.triangles {
            let [a, b, c] = triangle.map(|i| u64::from(i) + before);
            writeln!(out, "f {a} {b} {c}")?;
        }
        before += surface.vertices.len() as u64;
    }
    Ok(())
}

/// The part of a colour of a screen that is light.
fn linear(c: u8) -> f64 {
    let c = f64::from(c) / 255.0;
    if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
}

fn glb(surfaces: &[Surface], out: &mut dyn Write) -> io::Result<()> {
    // glTF: metres, x to the left, y up, z to the front
    let turn = |[right, front, head]: [f64; 3]| narrow([-right / 1000.0, head / 1000.0, front / 1000.0]);
    let too_large = || io::Error::other("the surfaces take more than 4 GiB, which GLB does not hold; write STL into a folder");
    let (mut binary, mut views, mut accessors): (Vec<u8>, Vec<Value>, Vec<Value>) = Default::default();
    let (mut meshes, mut materials, mut nodes): (Vec<Value>, Vec<Value>, Vec<Value>) = Default::default();
    for (n, surface) in surfaces.iter().enumerate() {
        let points: Vec<[f32; 3]> = surface.vertices.iter().copied().map(turn).collect();
        let mut normals = vec![[0.0; 3]; points.len()];
        for triangle in &surface.triangles {
            let one = normal(triangle.map(|i| points[i as usize].map(f64::from)));
            for i in triangle {
                normals[*i as usize].iter_mut().zip(one).for_each(|(sum, x)| *sum += x);
            }
        }
        let bound =
            |pick: fn(f32, f32) -> f32, start: f32| points.iter().fold([start; 3], |m, p| [0, 1, 2].map(|axis| pick(m[axis], p[axis])));
        let (least, most) = (bound(f32::min, f32::INFINITY), bound(f32::max, f32::NEG_INFINITY));
        let mut view = |bytes: Vec<u8>, target: u32| {
            views.push(json!({"buffer": 0, "byteOffset": binary.len(), "byteLength": bytes.len(), "target": target}));
            binary.extend(bytes);
            views.len() - 1
        };
        let floats = |list: &[[f32; 3]]| list.iter().flatten().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let (count, indices) = (points.len(), surface.triangles.len() * 3);
        let lengths: Vec<[f32; 3]> = normals.into_iter().map(|v| narrow(unit(v))).collect();
        let position = view(floats(&points), 34962);
        let normal = view(floats(&lengths), 34962);
        let index = view(surface.triangles.iter().flatten().flat_map(|i| i.to_le_bytes()).collect(), 34963);
        let first = accessors.len();
        accessors.push(json!({"bufferView": position, "componentType": 5126, "count": count, "type": "VEC3", "min": least, "max": most}));
        accessors.push(json!({"bufferView": normal, "componentType": 5126, "count": count, "type": "VEC3"}));
        accessors.push(json!({"bufferView": index, "componentType": 5125, "count": indices, "type": "SCALAR"}));
        let [r, g, b] = surface.colour.map(linear);
        let pbr = json!({"baseColorFactor": [r, g, b, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.7});
        materials.push(json!({"name": surface.name, "pbrMetallicRoughness": pbr}));
        let attributes = json!({"POSITION": first, "NORMAL": first + 1});
        let primitive = json!({"attributes": attributes, "indices": first + 2, "material": n});
        meshes.push(json!({"name": surface.name, "primitives": [primitive]}));
        nodes.push(json!({"name": surface.name, "mesh": n, "extras": {"label": surface.label}}));
    }
    let all: Vec<usize> = (0..nodes.len()).collect();
    let mut gltf = json!({
        "asset": {"version": "2.0", "generator": concat!("organum ", env!("CARGO_PKG_VERSION"))},
        "scene": 0,
        "scenes": [if all.is_empty() { json!({}) } else { json!({"nodes": all}) }],
    });
    if !surfaces.is_empty() {
        for (key, list) in [
            ("nodes", nodes),
            ("meshes", meshes),
            ("materials", materials),
            ("accessors", accessors),
            ("bufferViews", views),
            ("buffers", vec![json!({"byteLength": binary.len()})]),
        ] {
            gltf[key] = list.into();
        }
    }
    let mut text = gltf.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(4), b' ');
    let chunks: &[(&[u8], &[u8; 4])] = &[(&text, b"JSON"), (&binary, b"BIN\0")];
    let chunks = if binary.is_empty() { &chunks[..1] } else { chunks };
    let total = 12 + chunks.iter().map(|(bytes, _)| 8 + bytes.len()).sum::<usize>();
    out.write_all(b"glTF")?;
    out.write_all(&2u32.to_le_bytes())?;
    out.write_all(&u32::try_from(total).map_err(|_| too_large())?.to_le_bytes())?;
    for (bytes, kind) in chunks {
        out.write_all(&u32::try_from(bytes.len()).map_err(|_| too_large())?.to_le_bytes())?;
        out.write_all(*kind)?;
        out.write_all(bytes)?;
    }
    Ok(())
}

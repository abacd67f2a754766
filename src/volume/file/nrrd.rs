//! NRRD files: `.nrrd`, and `.nhdr` whose voxels lie in other files.

use std::collections::HashMap;
use std::path::Path;

use super::Grid;
use super::raw::{Scalar, Stored, Voxels};
use super::text::{Encoding, Files, Lines, beside, cut};
use crate::volume::VolumeError;
use crate::warning::{Warning, WarningKind};

/// The first bytes of a header.
pub(super) const MAGIC: &[u8] = b"NRRD";
/// Kinds of axes along which space or time runs.
const DOMAIN: [&str; 5] = ["domain", "space", "time", "???", "none"];
const COLOURS: [&str; 8] = ["rgb-color", "rgba-color", "hsv-color", "xyz-color", "3-color", "4-color", "complex", "quaternion"];

/// The fields of a header, and what it lists after them.
struct Header<'a> {
    lines: Lines<'a>,
    fields: HashMap<String, String>,
    /// Pairs of keys and values, which are whoever's that wrote the file.
    pairs: HashMap<String, String>,
    /// The names under `data file: LIST`.
    list: Vec<String>,
}

impl<'a> Header<'a> {
    fn read(path: &'a Path) -> Result<Self, VolumeError> {
        let mut lines = Lines::open(path)?;
        let magic = lines.next()?.unwrap_or_default();
        if !magic.as_bytes().starts_with(MAGIC) {
            return Err(lines.bad("it is no NRRD file"));
        }
        let (mut fields, mut pairs, mut list) = (HashMap::new(), HashMap::new(), Vec::new());
        while let Some(line) = lines.next()? {
            if line.is_empty() {
                break;
            }
            if line.starts_with('#') {
                continue;
            }
            let field = line.split_once(": ");
            if let Some((key, value)) = line.split_once(":=").filter(|(key, _)| field.is_none_or(|(name, _)| key.len() < name.len())) {
                pairs.insert(key.to_owned(), value.to_owned());
                continue;
            }
            let Some((name, text)) = field else {
                return Err(lines.bad(format!("the line {:?} of its header is no field", cut(&line))));
            };
            let name: String = name.to_lowercase().chars().filter(|c| *c != ' ').collect();
            let text = text.trim().to_owned();
            let listed = name == "datafile" && text.to_lowercase().starts_with("list");
            fields.insert(name, text);
            if listed {
                while let Some(name) = lines.next()?.filter(|name| !name.is_empty()) {
                    list.push(name);
                }
                break;
            }
        }
        Ok(Self { lines, fields, pairs, list })
    }

    /// The names of the segments of 3D Slicer.
    fn names(&self) -> Vec<(u16, String)> {
        let named = |(key, value): (&String, &String)| {
            let label = self.pairs.get(&format!("{}LabelValue", key.strip_suffix("Name")?))?;
            Some((label.parse().ok()?, value.replace("\\\\", "\\")))
        };
        self.pairs.iter().filter(|(key, _)| key.starts_with("Segment")).filter_map(named).collect()
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    fn needed(&self, name: &str) -> Result<&str, VolumeError> {
        self.field(name).ok_or_else(|| self.lines.bad(format!("its header has no field {name:?}")))
    }

    fn scalar(&self) -> Result<Scalar, VolumeError> {
        let text = self.needed("type")?.to_lowercase();
        Ok(match text.as_str() {
            "uchar" | "unsigned char" | "uint8" | "uint8_t" => Scalar::U8,
            "signed char" | "int8" | "int8_t" => Scalar::I8,
            "ushort" | "unsigned short" | "unsigned short int" | "uint16" | "uint16_t" => Scalar::U16,
            "short" | "short int" | "signed short" | "signed short int" | "int16" | "int16_t" => Scalar::I16,
            "uint" | "unsigned int" | "uint32" | "uint32_t" => Scalar::U32,
            "int" | "signed int" | "int32" | "int32_t" => Scalar::I32,
            "ulonglong" | "unsigned long long" | "unsigned long long int" | "uint64" | "uint64_t" => Scalar::U64,
            "longlong" | "long long" | "long long int" | "signed long long" | "signed long long int" | "int64" | "int64_t" => Scalar::I64,
            "float" => Scalar::F32,
            "double" => Scalar::F64,
            other => return Err(self.lines.unsupported(format!("voxels of type {:?} are not read", cut(other)))),
        })
    }

    fn files(&self) -> Result<Files, VolumeError> {
        let encoding = match self.needed("encoding")?.to_lowercase().as_str() {
            "raw" => Encoding::Raw,
            "gzip" | "gz" => Encoding::Gzip,
            "ascii" | "text" | "txt" => Encoding::Text,
            other => {
                let text = format!("the encoding {:?} is not read; raw, gzip and ascii are", cut(other));
                return Err(self.lines.unsupported(text));
            }
        };
        let number = |names: [&str; 2]| -> Result<i64, VolumeError> {
            let Some(text) = names.iter().find_map(|name| self.field(name)) else { return Ok(0) };
            text.parse().map_err(|_| self.lines.bad(format!("its {} {:?} is no number", names[0], cut(text))))
        };
        let lines = u64::try_from(number(["lineskip", "line skip"])?);
        let lines = lines.map_err(|_| self.lines.bad("its line skip is negative"))?;
        let skip = match number(["byteskip", "byte skip"])? {
            -1 if encoding == Encoding::Raw => None,
            n => Some(u64::try_from(n).map_err(|_| self.lines.bad("its byte skip is negative"))?),
        };
        let header = self.lines.path;
        let names = match self.field("datafile") {
            None => Vec::new(),
            Some(text) => self.lines.named(text, &self.list)?,
        };
        Ok(Files { paths: names.iter().map(|name| beside(header, name)).collect(), encoding, lines, skip })
    }
}

/// The axes of a file, of which at most one is no axis of space: that of the channels.
struct Axes {
    sizes: Vec<u32>,
    /// Steps of the axes of space in mm, to the right, the front and the head.
    steps: Vec<[f64; 3]>,
    origin: [f64; 3],
    /// The axis of the channels.
    channels: Option<usize>,
    warnings: Vec<Warning>,
}

impl Axes {
    fn read(header: &Header<'_>) -> Result<Self, VolumeError> {
        let lines = &header.lines;
        let sizes: Vec<u32> = lines.numbers("sizes", header.needed("sizes")?)?;
        let rank: usize = header.needed("dimension")?.parse().unwrap_or(0);
        if sizes.len() != rank || sizes.contains(&0) {
            return Err(lines.bad(format!("{} sizes {:?} do not tell its dimension {rank}", sizes.len(), cut(header.needed("sizes")?))));
        }
        let directions = header.field("spacedirections").map(|text| vectors(text, false)).unwrap_or_default();
        let kinds: Vec<String> = match header.field("kinds") {
            Some(text) => text.to_lowercase().split_whitespace().map(str::to_owned).collect(),
            None => vec!["domain".into(); rank],
        };
        let told = !directions.is_empty();
        if kinds.len() != rank || told && directions.len() != rank {
            return Err(lines.bad("its kinds or space directions are not one for each axis"));
        }
        if let Some(kind) = kinds.iter().find(|kind| COLOURS.contains(&kind.as_str())) {
            return Err(lines.unsupported(format!("voxels of kind {kind} are not read; save one channel of them")));
        }
        let in_space = |axis: usize| if told { directions[axis].is_some() } else { DOMAIN.contains(&kinds[axis].as_str()) };
        let mut space: Vec<usize> = (0..rank).filter(|axis| in_space(*axis)).collect();
        let mut others: Vec<usize> = (0..rank).filter(|axis| !in_space(*axis)).collect();
        if space.len() == 4 && others.is_empty() {
            others.extend(space.pop());
        }
        let channels = match others[..] {
            [] => None,
            [axis] if axis == 0 || axis + 1 == rank => Some(axis),
            _ => return Err(lines.unsupported("more than one axis, or one between others, is no axis of space")),
        };
        if !(2..=3).contains(&space.len()) {
            return Err(lines.unsupported(format!("{} axes of space are not those of an image", space.len())));
        }
        let mut warnings = Vec::new();
        let mut warn = |text: String| {
            warnings.push(Warning::new(WarningKind::Geometry, format!("{} {text}", lines.path.display())));
        };
        let (mut steps, mut origin) = (Vec::new(), [0.0; 3]);
        if told {
            for &axis in &space {
                steps.push(directions[axis].ok_or_else(|| lines.bad("its space directions are no vectors of 3 numbers"))?);
            }
            if let Some(text) = header.field("spaceorigin") {
                let vector = vectors(text, true).first().copied().flatten();
                origin = vector.ok_or_else(|| lines.bad(format!("its space origin {:?} is no vector", cut(text))))?;
            }
        } else {
            let spacings: Vec<f64> = match header.field("spacings") {
                Some(text) => lines.numbers("spacings", text)?,
                None => vec![1.0; rank],
            };
            let starts: Vec<f64> = match header.field("axismins") {
                Some(text) => lines.numbers("axis mins", text)?,
                None => vec![0.0; rank],
            };
            for (row, &axis) in space.iter().enumerate() {
                let mut step = [0.0; 3];
                step[row] = spacings.get(axis).copied().filter(|s| s.is_finite()).unwrap_or(1.0);
                steps.push(step);
                origin[row] = starts.get(axis).copied().filter(|x| x.is_finite()).unwrap_or(0.0);
            }
        }
        let name = header.field("space").unwrap_or("").to_lowercase();
        let signs = match name.trim_end_matches("-time").trim_end_matches('t') {
            "right-anterior-superior" | "ras" => [1.0, 1.0, 1.0],
            "left-anterior-superior" | "las" => [-1.0, 1.0, 1.0],
            "left-posterior-superior" | "lps" => [-1.0, -1.0, 1.0],
            _ => {
                let what = if name.is_empty() { "nothing".into() } else { format!("only {:?}", cut(&name)) };
                warn(format!("says {what} of its orientation; its axes are taken for left-posterior-superior, as ITK does"));
                [-1.0, -1.0, 1.0]
            }
        };
        if let Some(units) = header.field("spaceunits").filter(|units| units.split_whitespace().any(|unit| unit.trim_matches('"') != "mm"))
        {
            warn(format!("has the units {:?}, which are taken for mm, as ITK does", cut(units)));
        }
        if !told && space.len() == 3 && header.field("spacings").is_none() {
            warn("says nothing of its spacing; it is taken for 1 mm".into());
        }
        let turn = |v: [f64; 3]| [0, 1, 2].map(|row| if signs[row] < 0.0 { 0.0 - v[row] } else { v[row] });
        Ok(Self { sizes, steps: steps.into_iter().map(turn).collect(), origin: turn(origin), channels, warnings })
    }

    fn grid(&self, lines: &Lines<'_>) -> Result<(Grid, bool), VolumeError> {
        let space: Vec<u32> = (0..self.sizes.len()).filter(|axis| Some(*axis) != self.channels).map(|axis| self.sizes[axis]).collect();
        let size = [space[0], space[1], space.get(2).copied().unwrap_or(1)];
        let steps = [self.steps[0], self.steps[1], self.steps.get(2).copied().unwrap_or([0.0; 3])];
        let channels = self.channels.map_or(1, |axis| self.sizes[axis]);
        let grid = Grid::new(channels, size, steps, self.origin);
        Ok((grid.ok_or_else(|| lines.bad("its axes do not span space"))?, space.len() == 2))
    }
}

/// Vectors such as `(1,0,0)`, of 2 to 4 numbers; `None` for `none`, for a step along time alone,
/// and for what is no vector.
fn vectors(text: &str, origin: bool) -> Vec<Option<[f64; 3]>> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = if rest.starts_with('(') { rest.find(')').map(|at| at + 1) } else { rest.find(char::is_whitespace) };
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after.trim_start();
        let numbers = word.strip_prefix('(').and_then(|word| word.strip_suffix(')'));
        let numbers = numbers.map(|list| list.split(',').map(|n| n.trim().parse::<f64>()).collect::<Result<Vec<_>, _>>());
        found.push(match numbers {
            // with time as the fourth axis of space
            Some(Ok(n)) if n.len() == 4 && (origin || n[..3].iter().any(|x| *x != 0.0)) => Some([n[0], n[1], n[2]]),
            Some(Ok(n)) if n.len() == 3 && n.iter().any(|x| !x.is_nan()) => Some([n[0], n[1], n[2]]),
            Some(Ok(n)) if n.len() == 2 && n.iter().any(|x| !x.is_nan()) => Some([n[0], n[1], 0.0]),
            _ => None,
        });
    }
    found
}

pub(super) fn open(path: &Path) -> Result<Stored, VolumeError> {
    let header = Header::read(path)?;
    let mut axes = Axes::read(&header)?;
    let (grid, planar) = axes.grid(&header.lines)?;
    axes.warnings.extend(grid.shear(path));
    let (scalar, files) = (header.scalar()?, header.files()?);
    let big_endian = match header.field("endian").map(str::to_lowercase).as_deref() {
        Some("big") => true,
        Some("little") => false,
        None if scalar.size() == 1 || files.encoding == Encoding::Text => false,
        _ => return Err(header.lines.bad("it does not say its endianness, little or big")),
    };
    let (text, names) = (files.encoding == Encoding::Text, header.names());
    let detached = header.field("datafile").is_some();
    let bytes = if detached { files.read(&grid, scalar)? } else { files.read_here(header.lines, &grid, scalar)? };
    Ok(Stored {
        path: path.to_path_buf(),
        header: grid.header(planar),
        grid,
        own: Some(grid.geometry(planar)),
        warnings: axes.warnings,
        names,
        voxels: Voxels {
            scalar: if text { Scalar::F64 } else { scalar },
            big_endian: big_endian && !text,
            scale: None,
            interleaved: axes.channels == Some(0),
            bytes,
        },
    })
}

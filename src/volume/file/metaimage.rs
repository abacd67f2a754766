//! MetaImage files: `.mha`, and `.mhd` whose voxels lie in other files.

use std::collections::HashMap;
use std::path::Path;

use super::Grid;
use super::grid::from_lps;
use super::raw::{Scalar, Stored, Voxels};
use super::text::{Encoding, Files, Lines, beside, cut};
use crate::volume::VolumeError;
use crate::warning::{Warning, WarningKind};

/// The fields of a header; `ElementDataFile` is the last.
struct Header<'a> {
    lines: Lines<'a>,
    fields: HashMap<String, String>,
    /// The files named in lines after `ElementDataFile = LIST`.
    list: Vec<String>,
}

impl<'a> Header<'a> {
    fn read(path: &'a Path) -> Result<Self, VolumeError> {
        let mut lines = Lines::open(path)?;
        let mut fields = HashMap::new();
        while let Some(line) = lines.next()? {
            let Some((name, text)) = line.split_once('=') else {
                if line.trim().is_empty() {
                    continue;
                }
                return Err(lines.bad(format!("the line {:?} of its header is no field", cut(&line))));
            };
            let (name, text) = (name.trim().to_owned(), text.trim().to_owned());
            let last = name == "ElementDataFile";
            let listed = last && text.to_uppercase().starts_with("LIST");
            fields.insert(name, text);
            if last {
                let mut list = Vec::new();
                while let Some(line) = if listed { lines.next()? } else { None } {
                    list.extend(Some(line.trim().to_owned()).filter(|name| !name.is_empty()));
                }
                return Ok(Self { lines, fields, list });
            }
        }
        Err(lines.bad("its header has no ElementDataFile"))
    }

    /// A field by one of its names.
    fn field(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.fields.get(*name)).map(String::as_str)
    }

    fn flag(&self, names: &[&str]) -> bool {
        self.field(names).is_some_and(|text| text.starts_with(['T', 't', '1', 'Y', 'y']))
    }

    fn scalar(&self) -> Result<Scalar, VolumeError> {
        Ok(match self.field(&["ElementType"]).unwrap_or("") {
            "MET_UCHAR" => Scalar::U8,
            "MET_CHAR" => Scalar::I8,
            "MET_USHORT" => Scalar::U16,
            "MET_SHORT" => Scalar::I16,
            "MET_UINT" | "MET_ULONG" => Scalar::U32,
            "MET_INT" | "MET_LONG" => Scalar::I32,
            "MET_ULONG_LONG" => Scalar::U64,
            "MET_LONG_LONG" => Scalar::I64,
            "MET_FLOAT" => Scalar::F32,
            "MET_DOUBLE" => Scalar::F64,
            other => return Err(self.lines.unsupported(format!("voxels of type {:?} are not read", cut(other)))),
        })
    }

    /// The grid, whether it is 2D, and whether channels lie side by side.
    fn grid(&self) -> Result<(Grid, bool, bool), VolumeError> {
        let lines = &self.lines;
        let rank: usize = self.field(&["NDims"]).and_then(|text| text.parse().ok()).unwrap_or(0);
        let sizes: Vec<u32> = lines.numbers("DimSize", self.field(&["DimSize"]).unwrap_or(""))?;
        if sizes.len() != rank || sizes.contains(&0) {
            return Err(lines.bad(format!("its DimSize {sizes:?} does not tell its NDims {rank}")));
        }
        if !(2..=4).contains(&rank) {
            return Err(lines.unsupported(format!("{rank} dimensions are not those of an image")));
        }
        let side = self.field(&["ElementNumberOfChannels"]).unwrap_or("1");
        let side: u32 = side.parse().ok().filter(|n| *n > 0).ok_or_else(|| lines.bad("its ElementNumberOfChannels is no number"))?;
        if rank == 4 && side > 1 {
            return Err(lines.unsupported("4 dimensions of several channels each are not read"));
        }
        let channels = if rank == 4 { sizes[3] } else { side };
        let numbers = |names: &[&str], most: usize| -> Result<Option<Vec<f64>>, VolumeError> {
            let Some(text) = self.field(names) else { return Ok(None) };
            let list: Vec<f64> = lines.numbers(names[0], text)?;
            if list.len() == most {
                Ok(Some(list))
            } else {
                Err(lines.bad(format!("its {} holds {} numbers, not {most}", names[0], list.len())))
            }
        };
        let spacing = numbers(&["ElementSpacing", "ElementSize"], rank)?.unwrap_or_else(|| vec![1.0; rank]);
        let origin = numbers(&["Offset", "Position", "Origin"], rank)?.unwrap_or_else(|| vec![0.0; rank]);
        let matrix = numbers(&["TransformMatrix", "Rotation", "Orientation"], rank * rank)?;
        let matrix = matrix.unwrap_or_else(|| (0..rank * rank).map(|i| if i % (rank + 1) == 0 { 1.0 } else { 0.0 }).collect());
        let used = rank.min(3);
        let entry = |axis: usize, row: usize| if axis < used && row < used { matrix[axis * rank + row] * spacing[axis].abs() } else { 0.0 };
        let steps = [0, 1, 2].map(|axis| [0, 1, 2].map(|row| entry(axis, row)));
        let (steps, origin) = from_lps(steps, [0, 1, 2].map(|row| origin.get(row).copied().filter(|_| row < used).unwrap_or(0.0)));
        let size = [sizes[0], sizes[1], if rank > 2 { sizes[2] } else { 1 }];
        let grid = Grid::new(channels, size, steps, origin).ok_or_else(|| lines.bad("its axes do not span space"))?;
        Ok((grid, rank == 2, rank < 4))
    }

    fn files(&self) -> Result<Files, VolumeError> {
        let compressed = self.flag(&["CompressedData"]);
        let binary = self.field(&["BinaryData"]).is_none() || self.flag(&["BinaryData"]);
        let encoding = match (binary, compressed) {
            (true, true) => Encoding::Zlib,
            (true, false) => Encoding::Raw,
            (false, _) => Encoding::Text,
        };
        let skip = match self.field(&["HeaderSize"]).map_or(Ok(0), str::parse::<i64>) {
            Ok(-1) if encoding == Encoding::Raw => None,
            Ok(n @ 0..) => Some(n.cast_unsigned()),
            _ => return Err(self.lines.bad("its HeaderSize is no number of bytes")),
        };
        let text = self.field(&["ElementDataFile"]).unwrap_or("");
        let names = self.lines.named(text, &self.list)?;
        let paths = names.iter().map(|name| beside(self.lines.path, name)).collect();
        Ok(Files { paths, encoding, lines: 0, skip })
    }
}

pub(super) fn open(path: &Path) -> Result<Stored, VolumeError> {
    let header = Header::read(path)?;
    let (grid, planar, interleaved) = header.grid()?;
    let (scalar, mut files) = (header.scalar()?, header.files()?);
    let mut warnings: Vec<Warning> = grid.shear(path).into_iter().collect();
    let scaled = header.field(&["ElementToIntensityFunctionSlope"]).is_some_and(|text| text.parse::<f64>() != Ok(1.0));
    let moved = header.field(&["ElementToIntensityFunctionOffset"]).is_some_and(|text| text.parse::<f64>() != Ok(0.0));
    if scaled || moved {
        let text = "has an ElementToIntensityFunction, which is passed over, as ITK does";
        warnings.push(Warning::new(WarningKind::Scan, format!("{} {text}", path.display())));
    }
    let text = files.encoding == Encoding::Text;
    let big_endian = header.flag(&["BinaryDataByteOrderMSB", "ElementByteOrderMSB"]) && !text;
    let local = header.field(&["ElementDataFile"]).is_some_and(|name| name.eq_ignore_ascii_case("local"));
    let from_start = local && files.skip.is_some_and(|skip| skip > 0);
    if from_start {
        files.paths = vec![path.to_path_buf()];
    }
    let bytes = if local && !from_start { files.read_here(header.lines, &grid, scalar)? } else { files.read(&grid, scalar)? };
    Ok(Stored {
        path: path.to_path_buf(),
        header: grid.header(planar),
        grid,
        own: Some(grid.geometry(planar)),
        warnings,
        names: Vec::new(),
        voxels: Voxels { scalar: if text { Scalar::F64 } else { scalar }, big_endian, scale: None, interleaved, bytes },
    })
}

//! FreeSurfer's volumes: `.mgh`, and `.mgz`, which is the same compressed.

use std::io::Read;
use std::path::Path;

use super::Grid;
use super::raw::{Scalar, Source, Stored, Voxels, trouble};
use crate::volume::{VolumeError, VolumeErrorKind};
use crate::warning::{Warning, WarningKind};

/// The byte at which the voxels begin.
const VOXELS_AT: u64 = 284;
/// The bytes of the header that say something.
const HEADER_BYTES: usize = 90;

pub(super) fn open(path: &Path) -> Result<Stored, VolumeError> {
    let mut source = Source::open(path)?;
    let mut bytes = [0; HEADER_BYTES];
    source.read_exact(&mut bytes).map_err(|e| trouble(path, "read", e))?;
    let bad = |kind, text: &str| VolumeError::new(kind, format!("{}: {text}", path.display()));
    let int = |at: usize| i32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let float = |at: usize| f64::from(f32::from_bits(int(at).cast_unsigned()));
    if int(0) != 1 {
        return Err(bad(VolumeErrorKind::Format, "it is no MGH file of version 1"));
    }
    let dims = [4, 8, 12, 16].map(|at| u32::try_from(int(at)).unwrap_or(0));
    if dims.contains(&0) {
        return Err(bad(VolumeErrorKind::Format, "its dimensions are not all at least 1"));
    }
    let scalar = match int(20) {
        0 => Scalar::U8,
        1 => Scalar::I32,
        3 => Scalar::F32,
        4 => Scalar::I16,
        10 => Scalar::U16,
        other => {
            let text = format!("voxels of type {other} are not read; those of mri_convert's -odt are");
            return Err(bad(VolumeErrorKind::Unsupported, &text));
        }
    };
    let told = i16::from_be_bytes([bytes[28], bytes[29]]) != 0;
    let spacing = if told { [30, 34, 38].map(float) } else { [1.0; 3] };
    let columns = [42, 54, 66].map(|at| [at, at + 4, at + 8].map(float));
    let columns = if told { columns } else { [[-1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]] };
    let centre = if told { [78, 82, 86].map(float) } else { [0.0; 3] };
    let steps = [0, 1, 2].map(|axis| columns[axis].map(|x| x * spacing[axis]));
    let origin = [0, 1, 2].map(|row| centre[row] - (0..3).map(|axis| steps[axis][row] * f64::from(dims[axis])).sum::<f64>() / 2.0);
    let grid = Grid::new(dims[3], [dims[0], dims[1], dims[2]], steps, origin)
        .ok_or_else(|| bad(VolumeErrorKind::Format, "its axes do not span space"))?;
    let mut warnings: Vec<Warning> = grid.shear(path).into_iter().collect();
    if !told {
        let text = "says nothing of its orientation; it is taken for a coronal one of 1 mm, as FreeSurfer does";
        warnings.push(Warning::new(WarningKind::Geometry, format!("{} {text}", path.display())));
    }
    let bytes = source.voxels(path, VOXELS_AT - HEADER_BYTES as u64, &grid, scalar.size())?;
    Ok(Stored {
        path: path.to_path_buf(),
        header: grid.header(false),
        grid,
        own: Some(grid.geometry(false)),
        warnings,
        names: Vec::new(),
        voxels: Voxels { scalar, big_endian: true, scale: None, interleaved: false, bytes },
    })
}

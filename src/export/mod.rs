//! Class scores on their way to labels: planes in, labels out, never all classes on the scan's grid.
//!
//! [`crate::Windows::planes`] hands over each plane of the network's grid as soon as no window reaches
//! it any more. Where scores are interpolated by order 0 or 1, planes of labels are made of two planes
//! of scores at a time and the scores are forgotten. Elsewhere, and for probabilities, the scores stay
//! as they are stored and go the way back a few classes at a time.

mod bounds;
mod half;
mod labels;
mod layout;
mod passes;
mod resize;
mod store;

use ::half::f16;

pub use self::labels::Reduction;
pub use self::passes::Probabilities;

pub(crate) use self::half::{narrowed, widened};
pub(crate) use self::labels::LabelStream;
pub(crate) use self::layout::Layout;
pub(crate) use self::passes::{Activation, ClassMaps, labels};
pub(crate) use self::resize::{Resize, Score, whole};
pub(crate) use self::store::Scores;

use crate::error::{RunError, RunErrorKind};
use crate::shape::Extent;
use crate::volume::{Volume, VolumeError, VolumeErrorKind, sizes};

/// The class scores of one plane along D of the network's grid, `[C][H][W]`: logits or probabilities.
#[derive(Clone, Debug, PartialEq)]
pub enum ScorePlane {
    /// As nnU-Net v2 stores them.
    Half(Vec<f16>),
    /// As nnU-Net v1 and MONAI do.
    Single(Vec<f32>),
}

impl ScorePlane {
    /// The scores as f32.
    pub(crate) fn into_single(self) -> Vec<f32> {
        match self {
            Self::Half(scores) => scores.into_iter().map(widened).collect(),
            Self::Single(scores) => scores,
        }
    }
}

/// What takes the planes of class scores of a volume, from the first to the last.
pub trait PlaneSink: Send {
    /// Takes plane `z`. A run that is tried again, because its device ran out of memory, begins again
    /// with plane 0, and the same values.
    ///
    /// # Errors
    /// [`crate::RunErrorKind::Io`] where it is kept in a file that cannot be written or read.
    fn plane(&mut self, z: usize, plane: ScorePlane) -> Result<(), RunError>;
}

/// The host bytes of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportBytes {
    /// The label map, and planes of scores on their way to it.
    pub running: u64,
    /// Scores that wait until all planes are there.
    pub waiting: u64,
    /// The most beside them while labels and probabilities are made of them.
    pub finishing: u64,
}

impl ExportBytes {
    /// Those of labels alone on the grid of the network's input, which is read as it comes.
    #[must_use]
    pub fn of_labels(extent: Extent) -> Self {
        Self { running: 2 * extent.voxels(), ..Self::default() }
    }
}

/// A segmented scan.
#[derive(Debug)]
#[non_exhaustive]
pub struct Exported {
    /// Labels on the scan's grid.
    pub labels: Volume<u16>,
    /// Probabilities, where they were asked for.
    pub probabilities: Option<Probabilities>,
}

/// An interpolated score as it is stored: rounded to 16 bits, or to f32.
pub(crate) fn rounded(x: f64, half: bool) -> f32 {
    if half { resize::stored::<true>(x) } else { resize::stored::<false>(x) }
}

/// Why a volume that is there as a whole is not exported.
pub(crate) fn mismatch(e: &RunError) -> VolumeError {
    VolumeError::new(VolumeErrorKind::GridMismatch, e.to_string())
}

/// Scores that wait in a file and do not come back.
pub(crate) fn unreadable(e: &std::io::Error) -> VolumeError {
    VolumeError::new(VolumeErrorKind::Io, format!("class scores that wait cannot be read: {e}"))
}

/// Hands over scores `[C][D][H][W]` of a whole volume, plane by plane.
///
/// # Errors
/// [`RunErrorKind::InputMismatch`] when there are not as many scores as that, and those of the sink.
pub fn hand_over(scores: &[f32], classes: u32, extent: Extent, sink: &mut dyn PlaneSink) -> Result<(), RunError> {
    let (classes, [depth, height, width]) = (classes as usize, sizes(extent));
    let plane = height * width;
    if scores.len() != classes * depth * plane {
        let text = format!("{} scores are not those of {classes} classes over {extent}", scores.len());
        return Err(RunError::new(RunErrorKind::InputMismatch, text));
    }
    for z in 0..depth {
        let class = |class: usize| scores[(class * depth + z) * plane..][..plane].iter().copied();
        sink.plane(z, ScorePlane::Single((0..classes).flat_map(class).collect()))?;
    }
    Ok(())
}

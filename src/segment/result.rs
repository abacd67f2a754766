//! A segmented scan.

use crate::export::Probabilities;
use crate::host_budget::HostPlan;
use crate::model::Card;
use crate::segment::RunReport;
use crate::shape::Extent;
use crate::volume::{Legend, Volume};
use crate::volume_tokens::Seen;
use crate::warning::Warning;

/// A segmented scan.
#[derive(Debug)]
#[non_exhaustive]
pub struct Segmentation {
    /// The class of each voxel, on the scan's grid unless [`crate::Segmenter::keeps_grid`] says
    /// otherwise. Of labels that may overlap ([`Card::labels_overlap`]) a mask each,
    /// `[C][D][H][W]`.
    pub labels: Volume<u16>,
    /// Voxels and millilitres of every class but the background, in the order of the classes.
    pub volumes: Vec<LabelVolume>,
    /// Probabilities of all classes on the labels' grid, where they were asked for: they are computed
    /// class by class as they are read.
    pub probabilities: Option<Probabilities>,
    /// Where the network looked, where that was asked for.
    pub attention: Option<Attention>,
    /// All warnings: those of [`crate::Segmenter::check`], then those of the labels.
    pub warnings: Vec<Warning>,
    /// How the scan was segmented.
    pub report: SegmentReport,
}

impl Segmentation {
    /// Names and colours of the classes, to write label maps with.
    #[must_use]
    pub fn legend(&self) -> Legend {
        let named = |v: &LabelVolume| Some((u16::try_from(v.class).ok()?, v.name.clone()));
        Legend::new(self.volumes.iter().filter_map(named))
    }
}

/// The size of a class.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LabelVolume {
    /// The class: its number in the labels.
    pub class: u32,
    /// The class's name in the model's card.
    pub name: String,
    /// Voxels.
    pub voxels: u64,
    /// Volume in millilitres.
    pub ml: f64,
}

/// Where a network looked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Attention {
    /// The network's input.
    pub image: Volume<f32>,
    /// Names of modules, and what they look at over the field of `image`.
    pub maps: Vec<(String, Volume<f32>)>,
    /// The voxel of `image` at the centre of the labels; its middle where there are none.
    pub at: [u32; 3],
    /// The volume tokens that a window saw, of networks that have some.
    pub tokens: Option<TokensReport>,
}

/// The volume tokens that a window saw.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TokensReport {
    /// The first voxel of the window along D, H, W.
    pub window: [i32; 3],
    /// The centre of the window less that of the volume, in voxels.
    pub position: [i64; 3],
    /// The tokens, and the share of attention that each of them gets, stage by stage.
    pub stages: Vec<Seen>,
}

/// How a scan was segmented.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SegmentReport {
    /// Plan, memory and time; of several folds the sums of their times.
    pub run: RunReport,
    /// The host's memory.
    pub host_memory: HostPlan,
    /// The windows, if it was segmented in some.
    pub windows: Option<WindowsReport>,
    /// Number and extent of the slices, if they were zoomed.
    pub slices: Option<(u32, [u32; 2])>,
    /// The folds of an nnU-Net model that were averaged.
    pub folds: Option<Vec<String>>,
}

/// The windows that a scan was segmented in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WindowsReport {
    /// Windows.
    pub count: usize,
    /// Runs of the network: windows times mirror images.
    pub passes: usize,
    /// Extent of a window.
    pub extent: Extent,
}

impl From<&crate::Windows> for WindowsReport {
    fn from(windows: &crate::Windows) -> Self {
        Self { count: windows.count(), passes: windows.passes(), extent: windows.tile() }
    }
}

/// Voxels and millilitres of every class of a card but the background.
pub(super) fn volumes(card: &Card, labels: &Volume<u16>) -> Vec<LabelVolume> {
    if card.labels_overlap() {
        return overlapping(card, labels);
    }
    let values = card.label_values();
    let mut counts = vec![0u64; values.last().map_or(0, |&last| last as usize + 1)];
    for &label in &labels.data {
        if let Some(count) = counts.get_mut(label as usize) {
            *count += 1;
        }
    }
    let ml = labels.voxel_ml();
    let volume = |class: u32| {
        let voxels = counts[class as usize];
        #[expect(clippy::cast_precision_loss, reason = "a volume for people")]
        LabelVolume { class, name: card.label_name(class), voxels, ml: voxels as f64 * ml }
    };
    values.into_iter().map(volume).collect()
}

/// Those of masks, of the first class too.
fn overlapping(card: &Card, masks: &Volume<u16>) -> Vec<LabelVolume> {
    let (ml, voxels) = (masks.voxel_ml(), masks.extent.voxels());
    let masks = masks.data.chunks_exact(usize::try_from(voxels).unwrap_or(usize::MAX).max(1));
    let volume = |(class, mask): (u32, &[u16])| {
        let voxels = mask.iter().map(|&on| u64::from(on)).sum::<u64>();
        #[expect(clippy::cast_precision_loss, reason = "a volume for people")]
        LabelVolume { class, name: card.label_name(class), voxels, ml: voxels as f64 * ml }
    };
    (0u32..).zip(masks).map(volume).collect()
}

/// The voxel at the centre of mass of labels over `extent`, else its middle.
pub(super) fn centroid(labels: &[u16], extent: Extent) -> [u32; 3] {
    let [d, h, w] = extent.axes();
    let mut sum = [0u64; 3];
    let mut n = 0u64;
    for (at, _) in (0u64..).zip(labels).filter(|&(_, &l)| l > 0) {
        let (h, w) = (u64::from(h), u64::from(w));
        for (s, i) in sum.iter_mut().zip([at / (h * w), at / w % h, at % w]) {
            *s += i;
        }
        n += 1;
    }
    if n == 0 {
        return [d / 2, h / 2, w / 2];
    }
    sum.map(|s| u32::try_from(s / n).unwrap_or(0))
}

//! Labels that may overlap: a mask of each, `[C][D][H][W]`, 1 where its score is at least a
//! threshold.

use std::io;

use super::InverseCase;
use super::export::{AT_ONCE, BackMaps, layout, placed};
use crate::export::{Activation, ClassMaps, Exported, Probabilities, Scores};
use crate::scan::{Invert, Overlapping};
use crate::volume::{Axes, Volume, VolumeError, reorient, sizes};

/// The function of a score before it is compared.
fn activation(case: &InverseCase, how: Overlapping) -> Activation {
    // where scores are kept as logits, they are sigmoids only after the way back
    if how.sigmoid && case.invert == Invert::Logits { Activation::Sigmoid } else { Activation::None }
}

/// Applies a sigmoid to scores that are kept as probabilities.
pub(super) fn sigmoid(scores: &mut [f32]) {
    Activation::Sigmoid.apply(scores);
}

/// Masks of scores that waited, where labels of the case lie, and probabilities if they are wanted.
///
/// # Errors
/// When scores that were spilled cannot be read.
pub(super) fn masks(
    case: InverseCase,
    classes: u32,
    scores: Scores,
    how: Overlapping,
    probabilities: bool,
) -> Result<Exported, VolumeError> {
    let activation = activation(&case, how);
    let above = |scores: Vec<f32>| -> Vec<u16> { scores.into_iter().map(|score| u16::from(score >= how.at)).collect() };
    let kept = case.invert == Invert::Nothing;
    // MONAI's axes are the fastest first
    let [d, h, w] = case.prepared.axes.directions();
    let turned = Axes::new([w, h, d])?;
    let place = if kept {
        let voxels = case.prepared.volume(1, vec![0u16; sizes(case.prepared.extent).iter().product()])?;
        let voxels = reorient(&voxels, turned);
        layout(&case.prepared, voxels.axes, *voxels.affine())
    } else {
        layout(&case.scan, case.axes, case.affine)
    };
    let maps = BackMaps { case, classes, scores };
    let mut all: Option<Volume<u16>> = None;
    for class in 0..classes as usize {
        let mask = if maps.case.inverts_scores() || kept {
            let mut scores = maps.maps(class..class + 1)?;
            activation.apply(&mut scores);
            above(scores)
        } else {
            let scores = maps.scores.class(class).map_err(|e: io::Error| crate::export::unreadable(&e))?;
            let mask = maps.case.prepared.volume(1, above(scores).into_iter().map(f32::from).collect())?;
            above_half(&maps.case.labels_back(mask)?.data)
        };
        let mask = placed(&place, mask)?;
        match &mut all {
            None => all = Some(mask),
            Some(all) => all.data.extend(mask.data),
        }
    }
    // a network has a class at least
    let all = match all {
        Some(all) => all,
        None => placed(&place, vec![0; sizes(maps.case.scan.extent).iter().product()])?,
    };
    let affine = *all.affine();
    let labels = Volume::new(classes.max(1), all.extent, all.spacing, all.axes, all.data)?.with_affine(affine);
    let probabilities = probabilities.then(|| Probabilities::new(Box::new(maps), activation, place, 0.0));
    Ok(Exported { labels, probabilities })
}

/// Masks that went as numbers.
fn above_half(mask: &[f32]) -> Vec<u16> {
    mask.iter().map(|&v| u16::from(v >= 0.5)).collect()
}

/// The most host bytes of masks beside the scores: all of them, and three copies of a class on its
/// way.
pub(super) fn bytes(classes: u32, largest: u64, scan: u64) -> u64 {
    2 * u64::from(classes) * scan + 3 * (AT_ONCE as u64).max(4 * largest)
}

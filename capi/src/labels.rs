//! The labels of a volume.

use std::ffi::{CString, c_char};
use std::ptr::null;

use crate_organum::Segmentation;

use crate::error::c_text;

/// The labels of a volume, with names and sizes of the classes.
pub struct organum_labels {
    voxels: Vec<u16>,
    shape: [u32; 4],
    classes: Vec<(u32, CString, u64, f64)>,
    warnings: Vec<CString>,
}

/// A class of a segmented volume.
#[repr(C)]
pub struct organum_label {
    /// Its number in the voxels; of masks that may overlap, that of its channel.
    pub number: u32,
    /// Its name in UTF-8, which lives as long as the labels.
    pub name: *const c_char,
    /// Its voxels.
    pub voxels: u64,
    /// Its volume in millilitres.
    pub ml: f64,
}

impl From<Segmentation> for organum_labels {
    fn from(found: Segmentation) -> Self {
        let [d, h, w] = found.labels.extent.axes();
        let classes =
            found.volumes.iter().map(|v| (v.class, c_text(&v.name), v.voxels, v.ml)).collect();
        let warnings = found.warnings.iter().map(|w| c_text(&w.to_string())).collect();
        Self {
            shape: [found.labels.channels, d, h, w],
            voxels: found.labels.data,
            classes,
            warnings,
        }
    }
}

/// The label of each voxel, C order; it lives as long as the labels.
///
/// # Safety
/// `labels` are those that a function gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn organum_labels_voxels(labels: *const organum_labels) -> *const u16 {
    // SAFETY: the caller vouches for it
    unsafe { &*labels }.voxels.as_ptr()
}

/// Channels C, D, H, W of the voxels. C is 1; where labels may overlap there is a mask of each
/// class.
///
/// # Safety
/// `labels` are those that a function gave; `shape` has room for four numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn organum_labels_shape(labels: *const organum_labels, shape: *mut u32) {
    // SAFETY: the caller vouches for both
    unsafe { shape.cast::<[u32; 4]>().write_unaligned((*labels).shape) };
}

/// The number of classes but the background.
///
/// # Safety
/// `labels` are those that a function gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn organum_labels_classes(labels: *const organum_labels) -> usize {
    // SAFETY: the caller vouches for it
    unsafe { &*labels }.classes.len()
}

/// The class at an index below [`organum_labels_classes`]; false, and nothing is written, where
/// there is none.
///
/// # Safety
/// `labels` are those that a function gave; `label` has room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn organum_labels_class(
    labels: *const organum_labels,
    index: usize,
    label: *mut organum_label,
) -> bool {
    // SAFETY: the caller vouches for it
    let Some((number, name, voxels, ml)) = unsafe { &*labels }.classes.get(index) else {
        return false;
    };
    let class = organum_label { number: *number, name: name.as_ptr(), voxels: *voxels, ml: *ml };
    // SAFETY: the caller vouches for the room
    unsafe { label.write(class) };
    true
}

/// The number of warnings of model, volume and labels.
///
/// # Safety
/// `labels` are those that a function gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn organum_labels_warnings(labels: *const organum_labels) -> usize {
    // SAFETY: the caller vouches for it
    unsafe { &*labels }.warnings.len()
}

/// The text of the warning at an index, or null where there is none; it lives as long as the
/// labels.
///
/// # Safety
/// `labels` are those that a function gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn organum_labels_warning(
    labels: *const organum_labels,
    index: usize,
) -> *const c_char {
    // SAFETY: the caller vouches for it
    unsafe { &*labels }.warnings.get(index).map_or(null(), |text| text.as_ptr())
}

/// Frees labels; null is left alone.
///
/// # Safety
/// `labels` are null or those that a function gave, and are not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn organum_labels_free(labels: *mut organum_labels) {
    if !labels.is_null() {
        // SAFETY: they were a box, and the caller gives it back
        drop(unsafe { Box::from_raw(labels) });
    }
}

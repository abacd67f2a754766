//! The state of a run through the passes of windows, and what each of them changes.

use std::collections::VecDeque;

use super::slots::HostSlots;
use super::{Cancel, RunOptions};
use crate::kernels::Call;
use crate::record::Recording;

/// The tag of the read of a finished plane of windows.
pub(crate) fn plane_tag(recording: &Recording, z: u32) -> u32 {
    u32::try_from(recording.commands.len()).unwrap_or(u32::MAX).saturating_add(z)
}

/// A pass of the network over a window that is cropped on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass {
    /// The window's first voxel along D, H, W.
    pub(crate) origin: [i32; 3],
    /// It is mirrored along these axes.
    pub(crate) flip: [bool; 3],
    /// It is the first of the window's mirror images.
    pub(crate) fresh: bool,
}

impl Pass {
    /// The parameters of a dispatch that depend on the window.
    pub(super) fn params(&self, call: &Call) -> Option<Vec<u8>> {
        match call {
            Call::TileCrop(crop) => {
                let mut crop = crop.clone();
                (crop.place.origin, crop.place.flip) = (self.origin, self.flip);
                Some(Call::TileCrop(crop).params())
            }
            Call::TileAccumulate(add) => {
                let mut add = add.clone();
                if add.weights.is_some() {
                    add.place.origin = self.origin;
                } else {
                    add.fresh = self.fresh;
                }
                add.place.flip = self.flip;
                Some(Call::TileAccumulate(add).params())
            }
            _ => None,
        }
    }
}

/// The state of one run, or of all passes of windows.
#[derive(Debug)]
pub(crate) struct Flight<'o> {
    pub(super) options: RunOptions<'o>,
    pub(super) slots: HostSlots,
    /// Finished planes of windows that have arrived, as the device stores them.
    pub(crate) planes: VecDeque<(u32, Vec<u8>)>,
    pub(super) passes: u64,
    /// Operations of the passes before this one.
    pub(super) before: u64,
    /// True to look through what each dispatch writes: the run ends with [`RunErrorKind::NonFinite`]
    /// at the first node whose values are not finite.
    pub(super) traced: bool,
}

impl<'o> Flight<'o> {
    pub(crate) fn new(options: RunOptions<'o>) -> Self {
        Self { options, slots: HostSlots::default(), planes: VecDeque::new(), passes: 1, before: 0, traced: false }
    }

    /// Tells the progress as that of so many passes.
    pub(crate) fn with_passes(mut self, passes: u64) -> Self {
        self.passes = passes;
        self
    }

    /// Looks for the first node whose values are not finite.
    pub(crate) fn tracing(mut self) -> Self {
        self.traced = true;
        self
    }

    /// The handle that stops it.
    pub(crate) fn cancel(&self) -> Option<Cancel> {
        self.options.cancel.clone()
    }

    /// Operations of all passes that were submitted.
    pub(crate) fn done(&self) -> u64 {
        self.before
    }

    /// A buffer for a plane of `size` bytes.
    pub(crate) fn room(&mut self, size: u64) -> Vec<u8> {
        self.slots.room(size)
    }

    /// Takes the buffer of a plane back.
    pub(crate) fn give_back(&mut self, buffer: Vec<u8>) {
        self.slots.give_back(buffer);
    }
}

//! The passes of windows that a device crops, sums and finishes.

use super::{Memory, Session};
use crate::engine::GpuMemory;
use crate::error::{RunError, internal};
use crate::record::{OutputKind, Region};
use crate::run::{Cancel, Flight, Pass, Run, plane_tag};

impl Session {
    /// The device's memory.
    pub(crate) fn device_memory(&mut self) -> Result<&mut GpuMemory, RunError> {
        match &mut self.memory {
            Memory::Gpu(memory) => Ok(memory),
            Memory::Host(..) => Err(internal("windows are summed on a device, and this is the host")),
        }
    }

    /// True if labels of windows leave the device.
    pub(crate) fn sums_labels(&self) -> bool {
        self.plan.recording().windows.as_ref().is_some_and(|windows| windows.plane.kind == OutputKind::Labels)
    }

    /// Begins the passes of a volume's windows; `cancel` ends them.
    pub(crate) fn begin_windows(&mut self, cancel: Cancel) {
        if let Memory::Gpu(memory) = &mut self.memory {
            memory.begin(Some(cancel));
        }
    }

    /// Ends them; what failed is forgotten.
    pub(crate) fn end_windows(&mut self, failed: bool) {
        if let Memory::Gpu(memory) = &mut self.memory {
            memory.end(failed);
        }
    }

    /// Submits a pass over a window, and waits only where the device has enough to do.
    pub(crate) async fn pass(&mut self, flight: &mut Flight<'_>, pass: Pass) -> Result<(), RunError> {
        let Memory::Gpu(memory) = &mut self.memory else { return Err(internal("a window is to be cropped on the host")) };
        Run::of_window(&self.plan, &self.kept, pass, flight).pass(memory).await
    }

    /// Asks for a finished plane, which arrives in [`Flight::planes`].
    pub(crate) async fn fetch_plane(&mut self, flight: &mut Flight<'_>, region: Region, z: u32) -> Result<(), RunError> {
        let tag = plane_tag(self.plan.recording(), z);
        self.device_memory()?.fetch(region, tag, flight.room(region.size)).await
    }

    /// Waits for all passes and planes.
    pub(crate) async fn finish_windows(&mut self, flight: &mut Flight<'_>) -> Result<(), RunError> {
        let Memory::Gpu(memory) = &mut self.memory else { return Err(internal("windows are to be finished on the host")) };
        let pass = Pass { origin: [0; 3], flip: [false; 3], fresh: true };
        memory.end_batch(flight.done()).await?;
        Run::of_window(&self.plan, &self.kept, pass, flight).wait(memory).await
    }
}

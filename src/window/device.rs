//! Windows on the device: the scan's planes go there once, finished planes of labels or scores come back.

use super::Windows;
use super::totals::{Totals, halves};
use crate::error::{RunError, RunErrorKind, internal};
use crate::export::{PlaneSink, ScorePlane};
use crate::kernels::Call;
use crate::model::Model;
use crate::record::{Command, OutputKind, WindowSums};
use crate::run::{Cancel, Flight, Pass, RunOptions};
use crate::session::{Session, check_finite};
use crate::transfer::{Input, OutputData, OutputVolume};

/// A taker of finished planes.
pub(super) enum Planes<'a> {
    /// Labels, `[D][H][W]`.
    Labels(&'a mut Vec<u16>),
    Scores(&'a mut dyn PlaneSink),
}

impl Windows {
    /// Runs a session that was planned by [`Windows::plan`] with windows on the device.
    pub(super) async fn on_device(
        &self,
        session: &mut Session,
        model: &Model,
        input: Input<'_>,
        planes: Planes<'_>,
        options: RunOptions<'_>,
    ) -> Result<(), RunError> {
        let Some(sums) = session.plan().recording().windows.clone() else { return Err(internal("the device sums no windows")) };
        self.check(&sums, &input, &planes)?;
        let allowed = options.allows_non_finite();
        let passes = self.passes() as u64;
        let cancel = options.cancel();
        session.begin_windows(cancel.clone());
        let flight = Flight::new(options).with_passes(passes);
        let mut run = DeviceRun {
            windows: self,
            sums,
            input,
            planes,
            allowed,
            discard: false,
            flight,
            totals: Totals::new(self.rounds()),
            uploaded: 0,
        };
        let mut result = run.all(session, model).await;
        session.end_windows(result.is_err());
        if let Err(e) = &result
            && e.kind() == RunErrorKind::NonFinite
        {
            // once more, to name the first node of such values
            let (first, text) = (run.first_broken(session, model, cancel).await, e.to_string());
            result = result.map_err(|e| first.map_or(e, |node| RunError::new(RunErrorKind::NonFinite, text).at(node)));
        }
        result
    }

    fn check(&self, sums: &WindowSums, input: &Input<'_>, planes: &Planes<'_>) -> Result<(), RunError> {
        self.check_extent(input)?;
        check_finite(input.data)?;
        let labels = sums.plane.kind == OutputKind::Labels;
        if sums.image != self.image || sums.channels != input.channels || sums.mirrors as usize != self.mirrors.len() {
            let text = format!(
                "the session was planned for windows over {} channels of {} in {} mirror images, these are over {} of {} in {}",
                sums.channels,
                sums.image,
                sums.mirrors,
                input.channels,
                self.image,
                self.mirrors.len()
            );
            return Err(RunError::new(RunErrorKind::InputMismatch, text));
        }
        if labels != matches!(planes, Planes::Labels(_)) {
            let [has, wanted] = if labels { ["labels", "scores"] } else { ["scores", "labels"] };
            let text = format!("the session was planned for {has} of windows, not for {wanted}");
            return Err(RunError::new(RunErrorKind::InputMismatch, text));
        }
        Ok(())
    }
}

/// A run under way.
struct DeviceRun<'a, 's, 'o> {
    windows: &'a Windows,
    sums: WindowSums,
    input: Input<'a>,
    planes: Planes<'s>,
    allowed: bool,
    /// Planes are not handed on.
    discard: bool,
    flight: Flight<'o>,
    totals: Totals,
    /// Planes of the scan that went to the device.
    uploaded: usize,
}

impl DeviceRun<'_, '_, '_> {
    async fn all(&mut self, session: &mut Session, model: &Model) -> Result<(), RunError> {
        let windows = self.windows;
        let mut visited: Vec<u32> = model.visited();
        for place in windows.places() {
            self.settle(session, place[0]).await?;
            self.reach(session, place).await?;
            let position = windows.position(place);
            if let Some(current) = model.current_tokens(position) {
                session.place(model, position, &visited).await?;
                visited.extend(if windows.remembers { current.as_slice() } else { &[] });
                visited.sort_unstable();
                visited.dedup();
            }
            for (turn, &flip) in windows.mirrors.iter().enumerate() {
                let pass = Pass { origin: place, flip, fresh: turn == 0 };
                session.pass(&mut self.flight, pass).await?;
                self.take()?;
            }
            if windows.mirrors.len() > 1 {
                self.blend(session, place).await?;
            }
        }
        self.settle(session, windows.image.d as i32).await?;
        session.finish_windows(&mut self.flight).await?;
        self.take()
    }

    /// The first node whose values are not finite; `None` where it was cancelled, or no node makes them again.
    async fn first_broken(&mut self, session: &mut Session, model: &Model, cancel: Cancel) -> Option<String> {
        session.begin_windows(cancel.clone());
        self.flight = Flight::new(RunOptions::default().with_cancel(cancel)).tracing();
        (self.totals, self.uploaded, self.discard) = (Totals::new(self.windows.rounds()), 0, true);
        let result = self.all(session, model).await;
        session.end_windows(result.is_err());
        result.err().and_then(|e| e.node().map(str::to_owned))
    }

    /// Brings the planes of the scan that a window at `place` reads, and lets those of the sums begin with zero.
    async fn reach(&mut self, session: &mut Session, place: [i32; 3]) -> Result<(), RunError> {
        let (image, sums) = (self.windows.image, &self.sums);
        let (plane, ring) = (image.plane(), u64::from(sums.ring));
        let known = self.totals.end();
        self.totals.add(self.windows, place);
        let end = self.totals.end();
        let of_sums = sums.sums.size / ring;
        let memory = session.device_memory()?;
        for z in known..end {
            memory.clear(sums.sums, z as u64 % ring * of_sums, of_sums);
        }
        for z in self.uploaded..end {
            let volume = image.voxels() as usize;
            for channel in 0..sums.channels as usize {
                let values = &self.input.data[channel * volume + z * plane as usize..][..plane as usize];
                let at = (channel as u64 * ring + z as u64 % ring) * plane * 4;
                memory.write(sums.scan, at, bytemuck::cast_slice(values)).await?;
            }
        }
        self.uploaded = end;
        Ok(())
    }

    /// Runs one of the dispatches after the passes, with these parameters if they change.
    async fn dispatch(&mut self, session: &mut Session, index: usize, changed: Option<Call>) -> Result<(), RunError> {
        let number = session.plan().recording().dispatches().count() - self.sums.after.len() + index;
        let number = u32::try_from(number).map_err(|_| internal("too many dispatches"))?;
        let memory = session.device_memory()?;
        if let Some(call) = changed {
            memory.write_params(number, &call.params()).await?;
        }
        memory.dispatch(number).await.map(drop)
    }

    /// A dispatch after the passes.
    fn after(&self, index: usize) -> Result<Call, RunError> {
        match self.sums.after.get(index) {
            Some(Command::Dispatch { call, .. }) => Ok((**call).clone()),
            _ => Err(internal("windows end with a dispatch that is not there")),
        }
    }

    /// Adds the mean of the mirror images of the window at `origin` to the sums.
    async fn blend(&mut self, session: &mut Session, origin: [i32; 3]) -> Result<(), RunError> {
        let Call::TileAccumulate(mut add) = self.after(0)? else { return Err(internal("mirror images are not added")) };
        add.place.origin = origin;
        self.dispatch(session, 0, Some(Call::TileAccumulate(add))).await
    }

    /// Finishes the planes that no window from plane `begin` on reaches.
    async fn settle(&mut self, session: &mut Session, begin: i32) -> Result<(), RunError> {
        let begin = usize::try_from(begin).unwrap_or(0);
        let first = usize::from(self.windows.mirrors.len() > 1);
        while let Some((z, totals)) = self.totals.pop(begin) {
            let z = u32::try_from(z).map_err(|_| internal("too many planes"))?;
            let slot = z % self.sums.ring;
            let Call::TileNormalise(mut mean) = self.after(first)? else { return Err(internal("planes are not normalised")) };
            mean.windows[1].first = slot;
            (mean.target.first, mean.target.begin) = (slot, slot);
            session.device_memory()?.write(self.sums.totals, 0, bytemuck::cast_slice(&totals)).await?;
            self.dispatch(session, first, Some(Call::TileNormalise(mean))).await?;
            for index in first + 1..self.sums.after.len() {
                self.dispatch(session, index, None).await?;
            }
            session.fetch_plane(&mut self.flight, self.sums.finished, z).await?;
            self.take()?;
        }
        Ok(())
    }

    /// Hands on the planes that have arrived.
    fn take(&mut self) -> Result<(), RunError> {
        while let Some((z, bytes)) = self.flight.planes.pop_front() {
            if self.discard {
                self.flight.give_back(bytes);
                continue;
            }
            let mut plane = OutputVolume::empty(&self.sums.plane);
            plane.unpack(&bytes, 0..1, self.sums.elem);
            self.flight.give_back(bytes);
            let broken = plane.count_non_finite();
            if broken > 0 && !self.allowed {
                let text = format!(
                    "the network, or the sum of its results over windows, makes NaN or infinite values of a finite \
                     scan, in {broken} values of plane {z}; 16-bit floats, which nnU-Net sums in, hold no more than \
                     65504; --allow-non-finite takes them"
                );
                return Err(RunError::new(RunErrorKind::NonFinite, text).at("windows"));
            }
            match (plane.data, &mut self.planes) {
                (OutputData::Labels(new), Planes::Labels(labels)) => labels.extend(new),
                (OutputData::Map(scores), Planes::Scores(sink)) => {
                    let scores = if self.windows.rounds() { ScorePlane::Half(halves(scores)) } else { ScorePlane::Single(scores) };
                    sink.plane(z as usize, scores)?;
                }
                _ => return Err(internal("a plane of another kind came back")),
            }
        }
        Ok(())
    }
}

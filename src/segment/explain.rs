//! Maps of attention: the gates of a network's skips, and the volume tokens that a window looks at.

use super::SegmentError;
use super::result::{Attention, TokensReport};
use super::runner::{Done, Runner, Work};
use crate::error::internal;
use crate::graph::Op;
use crate::model::Model;
use crate::plan::{OutputMode, PlanOptions};
use crate::run::RunOptions;
use crate::transfer::{Input, OutputData, OutputVolume};
use crate::volume::{Volume, VolumeError};
use crate::volume_tokens::{self, Seen};
use crate::window::Windows;

/// Names of the nodes that gate the skips of a model, coarsest first; empty where it has none.
#[must_use]
pub fn gates(model: &Model) -> Vec<String> {
    let graph = model.graph();
    let is_gate = |name: &str| name.ends_with(".mhca.gate");
    graph.nodes().iter().filter(|n| matches!(n.op, Op::Conv(_)) && is_gate(&n.name)).map(|n| n.name.clone()).collect()
}

/// The values of gates as maps over the field of `input`.
pub(super) fn gate_maps(input: &Volume<f32>, taps: Vec<OutputVolume>) -> Result<Vec<(String, Volume<f32>)>, SegmentError> {
    let map = |tap: OutputVolume| match tap.data {
        OutputData::Map(values) => Ok((tap.name, field(input, tap.map.extent.axes(), tap.map.channels, values)?)),
        OutputData::Labels(_) => Err(internal("a gate came back as labels").into()),
    };
    taps.into_iter().map(map).collect()
}

/// A map over the field of `input` at a lower resolution, as a volume.
fn field(input: &Volume<f32>, extent: [u32; 3], channels: u32, values: Vec<f32>) -> Result<Volume<f32>, VolumeError> {
    let fine = input.extent.axes();
    let spacing = [0, 1, 2].map(|a| input.spacing[a] * (f64::from(fine[a]) / f64::from(extent[a].max(1))));
    Volume::new(channels, extent.into(), spacing, input.axes, values)
}

/// Runs the network once more on the window around a voxel, and draws what it sees of the volume's
/// tokens over the field of `volume`.
pub(super) async fn volume_attention(
    runner: &mut Runner,
    model: &Model,
    volume: &Volume<f32>,
    windows: &Windows,
    centre: [u32; 3],
    how: &mut RunOptions<'_>,
) -> Result<Attention, SegmentError> {
    let tile = windows.tile();
    let away = |place: &[i32; 3]| -> i64 {
        (0..3).map(|a| (i64::from(place[a]) + i64::from(tile.axes()[a] / 2) - i64::from(centre[a])).abs()).sum()
    };
    let place = windows.places().min_by_key(away).ok_or_else(|| internal("there is no window"))?;
    let position = windows.position(place);
    let mut options = PlanOptions::default().with_output(OutputMode::Logits);
    options.taps = volume_tokens::taps(model);
    let whole = Input { channels: volume.channels, extent: volume.extent, data: &volume.data };
    let data = windows.crop(&whole, place, [false; 3]);
    let input = Input { channels: volume.channels, extent: tile, data: &data };
    let Done::Outputs(outputs) = runner.work(None, model, Work::Placed(input, position), &options, how).await?.0 else {
        return Err(internal("a window brought nothing back").into());
    };
    let seen = volume_tokens::seen(model, position, &outputs[1..]);
    let map = |s: &Seen| {
        let values = volume_tokens::field(model, volume.extent, s);
        Ok((s.module.clone(), Volume::new(1, volume.extent, volume.spacing, volume.axes, values)?))
    };
    let maps = seen.iter().map(map).collect::<Result<Vec<_>, SegmentError>>()?;
    let tokens = TokensReport { window: place, position, stages: seen };
    Ok(Attention { image: volume.clone(), maps, at: centre, tokens: Some(tokens) })
}

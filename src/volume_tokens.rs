//! Which volume tokens a crop looks at, and how strongly: FINE's cross-window attention, computed again on the host from the
//! few queries and keys that it reads.

use crate::model::{FineConfig, Model};
use crate::shape::Extent;
use crate::transfer::{OutputData, OutputVolume};

/// What the window tokens of a stage look at.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Path of the attention's module.
    pub module: String,
    /// The volume tokens that the crop sees, by their rows in the table.
    pub tokens: [u32; 4],
    /// The share of attention that each of them gets, a mean over window tokens and heads; the rest goes to window tokens.
    pub weights: [f32; 4],
}

fn config(model: &Model) -> Option<FineConfig> {
    model.current_tokens([0; 3])?;
    serde_json::from_value(model.card().config.clone()).ok()
}

/// Modules of the last cross-window attention of each stage that reaches the output, and their heads.
fn modules(config: &FineConfig) -> Vec<(String, u32)> {
    let stages = config.depths.len();
    let decoder = |i: usize| config.decoder_depths.get(stages.wrapping_sub(2 + i)).copied().unwrap_or(2);
    let encoder = (0..stages).map(|i| (format!("model_down.layers.{i}"), config.depths[i], config.heads[i]));
    let decoder = (0..stages.saturating_sub(1)).rev().map(|i| (format!("encoder.layers.{i}"), decoder(i), config.heads[i]));
    // tokens do not leave their stage: what the last block's see is lost
    let live = encoder.chain(decoder).filter(|(_, depth, _)| *depth > 1);
    live.map(|(stage, depth, heads)| (format!("{stage}.blocks.{}.gt_attn", depth - 2), heads)).collect()
}

/// The taps that [`seen`] reads, in pairs; none where the network has no volume tokens.
#[must_use]
pub fn taps(model: &Model) -> Vec<String> {
    let list = config(model).map(|c| modules(&c)).unwrap_or_default();
    list.into_iter().flat_map(|(module, _)| [format!("{module}.qkv"), format!("{module}.qkv.volume")]).collect()
}

/// What a crop at a position looked at, from the values of [`taps`].
#[must_use]
pub fn seen(model: &Model, position: [i64; 3], values: &[OutputVolume]) -> Vec<Seen> {
    let (Some(config), Some(tokens)) = (config(model), model.current_tokens(position)) else { return Vec::new() };
    let of = |(module, heads): (String, u32), pair: &[OutputVolume]| match pair {
        [OutputVolume { data: OutputData::Map(windows), map, .. }, OutputVolume { data: OutputData::Map(volume), .. }] => {
            Some(Seen { module, tokens, weights: weights(windows, volume, map.channels as usize / 3, heads as usize) })
        }
        _ => None,
    };
    modules(&config).into_iter().zip(values.chunks(2)).filter_map(|(module, pair)| of(module, pair)).collect()
}

/// Mean over queries and heads of the softmax over the volume's keys and the windows', of which the first are kept. Both are
/// `[3 channels][tokens]`, queries before keys.
fn weights(windows: &[f32], volume: &[f32], channels: usize, heads: usize) -> [f32; 4] {
    let (n, v) = (windows.len() / (3 * channels).max(1), volume.len() / (3 * channels).max(1));
    let width = channels / heads.max(1);
    let scale = (width as f64).powf(-0.5);
    let mut sums = [0.0f64; 4];
    for head in 0..heads {
        for query in 0..n {
            let score = |keys: &[f32], count: usize, key: usize| {
                let channel = |c: usize| head * width + c;
                let product =
                    |c: usize| f64::from(windows[channel(c) * n + query]) * f64::from(keys[(channels + channel(c)) * count + key]);
                (0..width).map(product).sum::<f64>() * scale
            };
            let scores: Vec<f64> = (0..v).map(|key| score(volume, v, key)).chain((0..n).map(|key| score(windows, n, key))).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            sums.iter_mut().zip(&scores).for_each(|(sum, s)| *sum += (s - most).exp() / total);
        }
    }
    sums.map(|sum| (sum / (n * heads).max(1) as f64) as f32)
}

/// The weights over the cells of the volume tokens, `[D][H][W]` of a volume; zero where the crop sees none. The grid has no
/// depth: its cells reach through all planes.
#[must_use]
pub fn field(model: &Model, image: Extent, seen: &Seen) -> Vec<f32> {
    let Some(config) = config(model) else { return Vec::new() };
    let [_, h, w] = image.axes();
    // the way back from a place to its cell, as the network goes it with crops
    let cell = |axis: usize, at: u32| {
        let [n, cells, most] = [config.crop, config.volume_grid, config.max_extent].map(|a| i64::from(a[axis]));
        let margin = (most - n * cells + 1).div_euclid(2);
        let cell = (i64::from(at) - i64::from(image.axes()[axis]) / 2 + most / 2 - margin).div_euclid(n);
        u32::try_from(cell).ok().filter(|&cell| i64::from(cell) < cells)
    };
    let value = |y: u32, x: u32| {
        let token = cell(1, y)? * config.volume_grid[2] + cell(2, x)?;
        seen.tokens.iter().position(|&t| t == token).map(|i| seen.weights[i])
    };
    let plane: Vec<f32> = (0..h).flat_map(|y| (0..w).map(move |x| (y, x))).map(|(y, x)| value(y, x).unwrap_or(0.0)).collect();
    plane.repeat(image.d as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeviceCaps, Input, OutputMode, Plan, PlanOptions, RunOptions, Session};

    const CARD: &str = r#"{"architecture":"fine","config":{"crop":[32,64,64],"classes":2,"embed_dim":8,"heads":[1,2,2,4],
        "window":[4,4,4,2],"depths":[2,2,2,2],"volume_grid":[3,5,5],"max_extent":[100,330,330]}}"#;

    #[test]
    fn shares_are_those_of_the_softmax() {
        // one head of one channel, two window tokens and two volume tokens: q = 1, -1 and keys 0, 0 and 1, 2
        let (windows, volume) = ([1.0, -1.0, 0.0, 0.0, 9.0, 9.0], [5.0, 5.0, 1.0, 2.0, 9.0, 9.0]);
        let e = std::f64::consts::E;
        let expected = |k: f64| 0.5 * (e.powf(k) / (2.0 + e + e * e) + e.powf(-k) / (2.0 + 1.0 / e + 1.0 / (e * e)));
        let got = weights(&windows, &volume, 1, 1);
        assert!((f64::from(got[0]) - expected(1.0)).abs() < 1e-6 && (f64::from(got[1]) - expected(2.0)).abs() < 1e-6, "{got:?}");
    }

    #[test]
    fn sessions_are_moved_to_what_the_network_has_alone() {
        let extent = Extent::new(32, 64, 64);
        let open = |card: &str| {
            let model = Model::random(card, 5).expect("it is one");
            let plan = Plan::new(&model, extent, &DeviceCaps::host(), &PlanOptions::default()).expect("it can be planned");
            (Session::on_host(&model, plan).expect("it is opened"), model)
        };
        let (mut session, model) = open(CARD);
        pollster::block_on(session.place(&model, [0, 20, -80], &[3, 24])).expect("the tokens are there");
        let e = pollster::block_on(session.place(&model, [0; 3], &[25])).expect_err("there are 25");
        assert!(e.kind() == crate::RunErrorKind::InputMismatch && e.to_string().contains("volume token 25"), "{e}");
        let other = CARD.replace("\"fine\"", "\"glam_nnformer\"").replace(r#","volume_grid":[3,5,5],"max_extent":[100,330,330]"#, "");
        let (mut session, model) = open(&other);
        let e = pollster::block_on(session.place(&model, [0; 3], &[])).expect_err("it has none");
        assert!(e.to_string().contains("glam_nnformer has no volume tokens"), "{e}");
    }

    #[test]
    fn every_stage_of_a_crop_tells_what_it_saw_and_where_that_lies() {
        let model = Model::random(CARD, 5).expect("it is one");
        let extent = Extent::new(32, 64, 64);
        let mut options = PlanOptions::default().with_output(OutputMode::Logits);
        options.taps = taps(&model);
        let plan = Plan::new(&model, extent, &DeviceCaps::host(), &options).expect("it can be planned");
        let mut session = Session::on_host(&model, plan).expect("it is opened");
        let data: Vec<f32> = (0..extent.voxels()).map(|i| ((i * 31 % 17) as f32 - 8.0) / 8.0).collect();
        let outputs = session.run_blocking(Input { channels: 1, extent, data: &data }, RunOptions::default()).expect("it runs");
        let seen = seen(&model, [0, 20, -80], &outputs[1..]);
        assert_eq!(seen.len(), 7);
        for stage in &seen {
            let share: f32 = stage.weights.iter().sum();
            assert!(stage.weights.iter().all(|&w| w > 0.0) && share < 1.0, "{}: {:?}", stage.module, stage.weights);
        }
        assert_eq!(seen[0].module, "model_down.layers.0.blocks.0.gt_attn");
        // the cells that a crop sees are the one that it begins in and those beside it
        let image = Extent::new(2, 300, 300);
        let map = field(&model, image, &seen[0]);
        let corner = [150 + 20 - 32, 150 - 80 - 32].map(|at: usize| at);
        assert_eq!(map[corner[0] * 300 + corner[1]], seen[0].weights[0]);
        assert_eq!(map[300 * 300 + (corner[0] + 64) * 300 + corner[1]], seen[0].weights[1]);
        assert_eq!(map[corner[0] * 300 + corner[1] + 64], seen[0].weights[2]);
        assert_eq!(map[5 * 300 + 290], 0.0);
        assert!(
            taps(
                &Model::random(
                    &CARD.replace("\"fine\"", "\"glam_nnformer\"").replace(r#","volume_grid":[3,5,5],"max_extent":[100,330,330]"#, ""),
                    1
                )
                .expect("it is one")
            )
            .is_empty()
        );
    }
}

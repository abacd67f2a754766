//! The family's published configurations, what they refuse, and which tensors they do without.

use super::*;
use crate::model::Card;
use crate::model::architecture::Architecture;
use crate::{DeviceCaps, Elem, Extent, Input, LoadError, Model, OutputData, OutputMode, Plan, PlanOptions, RunOptions, Session};

const NAMES: [&str; 3] = [NnFormerConfig::NAME, GlamNnFormerConfig::NAME, FineConfig::NAME];

fn windows(n: u32) -> WindowShape {
    Stage {
        module: String::new(),
        level: 0,
        per_plane: false,
        grid: [n; 3],
        depth: 1,
        channels: 1,
        heads: 1,
        window: [n; 3],
        shift: [0; 3],
    }
    .windows("", "", [0; 3], false)
    .shape
}

/// A small network of each architecture.
fn small(architecture: &str, more: &str) -> String {
    format!(
        r#"{{"architecture":"{architecture}","config":{{"crop":[32,64,64],"classes":2,"embed_dim":8,"heads":[1,2,2,4],"window":[4,4,4,2]{more}}}}}"#
    )
}

#[test]
fn offsets_collide_as_published() {
    let index = relative_index(&windows(4));
    assert_eq!((index.len(), index[0], index[63], index[63 * 64]), (4096, 57.0, 0.0, 114.0));
    assert_eq!(relative_index(&windows(1)), [0.0]);
}

#[test]
fn published_configurations_are_the_defaults_and_can_be_planned() {
    // elements of all parameters but indices and dead ones: with those 150.05 and 191.2 are published
    for (name, millions) in [(NnFormerConfig::NAME, 149.54), (GlamNnFormerConfig::NAME, 136.78), (FineConfig::NAME, 136.62)] {
        let (card, graph) =
            crate::model::architecture(&format!(r#"{{"architecture":"{name}","config":{{}}}}"#)).expect("the defaults are one");
        let extent = Extent::new(64, 128, 128);
        assert_eq!((card.classes(), card.in_channels(), card.crop()), (14, 1, Some(extent)));
        let kept = |name: &str| !name.ends_with("_index");
        let elements: usize = graph.parameters().iter().filter(|(n, _)| kept(n)).map(|(_, shape)| shape.iter().product::<usize>()).sum();
        #[expect(clippy::cast_precision_loss, reason = "a count of millions")]
        let counted = elements as f64 / 1e6;
        assert!((counted - millions).abs() < 0.05, "{name}: {counted} million parameters");
        for (elem, most) in [(Elem::F32, 850_000_000), (Elem::F16, 450_000_000)] {
            let plan =
                Plan::of_graph(&graph, extent, &DeviceCaps::desktop(), &PlanOptions::default().with_precision(elem).with_budget(most));
            let report = plan.expect("it can be planned").report().clone();
            assert!(report.peak_bytes < most, "{name} {}: {} bytes", elem.name(), report.peak_bytes);
            // 423.7, and about 415 of which tokens that lead nowhere are a part, are published
            let giga = report.flops / 1_000_000_000;
            assert!((405..430).contains(&giga), "{name} {}: {giga} GFLOP", elem.name());
        }
    }
}

#[test]
fn networks_run_on_their_crop_alone() {
    for name in NAMES {
        let model = Model::random(&small(name, ""), 1).expect("it is one");
        assert_eq!(model.stride(), [32, 64, 64]);
        let plan = |extent| Plan::new(&model, extent, &DeviceCaps::host(), &PlanOptions::default());
        assert!(plan(Extent::new(32, 64, 64)).is_ok());
        let e = plan(Extent::new(64, 64, 64)).expect_err("another extent");
        assert!(e.to_string().contains("crop of 32x64x64"), "{e}");
    }
}

#[test]
fn what_is_no_network_is_refused() {
    for (change, word) in [
        (r#","depths":[2]"#, "depths"),
        (r#","depths":[2,0,2,2]"#, "depths"),
        (r#","window":[4,4]"#, "window"),
        (r#","patch":[2,2,2]"#, "patch"),
        (r#","in_channels":0"#, "in_channels"),
        (r#","mlp_ratio":4"#, "mlp_ratio"),
    ] {
        for name in NAMES {
            let e = Model::random(&small(name, change), 1).expect_err("it is none");
            let text = format!("{e} {:?}", std::error::Error::source(&e).map(ToString::to_string));
            assert!(text.contains(word), "{name}: {text}");
        }
    }
    for (from, to, word) in [("[32,64,64]", "[32,64,48]", "crop"), ("[1,2,2,4]", "[1,2,3,4]", "heads"), (":8", ":7", "embed_dim")] {
        let e = Model::random(&small(NnFormerConfig::NAME, "").replace(from, to), 1).expect_err("it is none");
        assert!(e.to_string().contains(word), "{e}");
    }
}

/// The tensors of a small network as a file, after some were taken out and others put in.
fn load(name: &str, without: &str, with: &str) -> Result<Model, LoadError> {
    let card = small(name, "");
    let built = Card::parse(&card)?.build()?;
    let mut tensors = built.graph.parameters();
    tensors.retain(|(n, _)| without.is_empty() || !n.ends_with(without));
    if !with.is_empty() {
        tensors.push((with.to_owned(), vec![3]));
    }
    Model::from_bytes(crate::model::weights::random(&card, &tensors, 1)?)
}

#[test]
fn what_leads_nowhere_or_repeats_may_be_there_or_not() {
    for name in NAMES {
        assert!(load(name, "", "").is_ok());
        for (without, with) in
            [("relative_position_index", ""), ("", "final.1.up.weight"), ("", "model_down.layers.3.downsample.norm.bias")]
        {
            load(name, without, with).unwrap_or_else(|e| panic!("{name} without {without:?} with {with:?}: {e}"));
        }
        for (without, with) in
            [("final.0.up.bias", ""), ("bias_table", ""), ("", "final.9.up.weight"), ("", "model_down.layers.4.norm.bias")]
        {
            let e = load(name, without, with).expect_err("it does not fit").to_string();
            assert!(e.contains(if with.is_empty() { without } else { with }), "{e}");
        }
    }
}

#[test]
fn volume_tokens_are_those_of_the_position() {
    let deep = small(FineConfig::NAME, r#","depths":[3,2,2,2]"#);
    let model = |card: &str| Model::random(card, 1).expect("it is one");
    let tokens = |model: &Model| {
        let gather = model.graph().nodes().iter().find(|n| n.name == "model_down.layers.0.blocks.0.current").map(|n| n.op.clone());
        let mask = model.graph().nodes().iter().find_map(|n| if let Op::Attention(a) = &n.op { a.mask.clone() } else { None });
        (gather, mask.map(|m| m.visited.to_vec()))
    };
    // a crop of 32x64x64 in a grid of 64 voxels a cell around the middle of 660
    let (gather, visited) = tokens(&model(&deep));
    assert!(matches!(&gather, Some(Op::Gather(t)) if t[..] == [12, 17, 13, 18]), "{gather:?}");
    assert_eq!(visited, Some(vec![12, 17, 13, 18]));
    let moved = model(&deep).with_position([0, -100, 70]).and_then(|m| m.with_visited(&[3, 24])).expect("it has volume tokens");
    let (gather, visited) = tokens(&moved);
    assert!(matches!(&gather, Some(Op::Gather(t)) if t[..] == [3, 8, 4, 9]), "{gather:?}");
    assert_eq!(visited, Some(vec![3, 8, 4, 9, 3, 24]));
    assert!(model(&deep).with_visited(&[25]).expect_err("there are 25").to_string().contains("25"));
    assert_eq!(tokens(&model(&small(FineConfig::NAME, ""))).1, None, "two blocks never look at the volume");
    let e = model(&small(NnFormerConfig::NAME, "")).with_position([0; 3]).expect_err("it has none");
    assert!(e.to_string().contains("no volume tokens"), "{e}");
}

/// Blocks of two never let a stage's last tokens, nor the volume's, reach the output; asked for, they are computed.
#[test]
fn pruned_networks_give_the_bits_of_whole_ones() {
    let values: Vec<f32> = (0..32 * 64 * 64).map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0).collect();
    for (name, dead) in [
        (FineConfig::NAME, ["blocks.0.vt_attn.proj", "blocks.1.gt_attn.proj", "blocks.1.vt_attn.proj"].as_slice()),
        (GlamNnFormerConfig::NAME, &["blocks.1.gt_attn.proj"]),
    ] {
        let model = Model::random(&small(name, ""), 3).expect("it is one");
        let dead: Vec<String> =
            ["model_down.layers.0", "encoder.layers.1"].iter().flat_map(|m| dead.iter().map(move |d| format!("{m}.{d}"))).collect();
        assert!(dead.iter().all(|node| model.graph().find(node).is_none()), "{name} computes what leads nowhere");
        let logits = |taps: &[String]| {
            let mut options = PlanOptions::default().with_output(OutputMode::Logits);
            options.taps = taps.to_vec();
            let extent = Extent::new(32, 64, 64);
            let plan = Plan::new(&model, extent, &DeviceCaps::host(), &options).expect("it can be planned");
            let mut session = Session::on_host(&model, plan).expect("it is opened");
            let input = Input { channels: 1, extent, data: &values };
            let mut outputs = session.run_blocking(input, RunOptions::default()).expect("it runs").into_iter().map(|o| match o.data {
                OutputData::Map(values) => values,
                OutputData::Labels(_) => panic!("asked for logits"),
            });
            (outputs.next().expect("there are logits"), outputs.collect::<Vec<_>>())
        };
        let (pruned, _) = logits(&[]);
        let (whole, taps) = logits(&dead);
        assert_eq!(taps.len(), dead.len());
        assert!(taps.iter().all(|tap| tap.iter().any(|&v| v != 0.0)), "{name}: nothing was computed");
        assert!(pruned == whole, "{name}: pruning changed the bits");
    }
}

/// Windows, shifts and paddings are index arithmetic: nothing is copied for them, and no score or mask is stored.
#[test]
fn traffic_is_that_of_reading_and_writing_every_value_once() {
    for name in NAMES {
        let (_, graph) =
            crate::model::architecture(&format!(r#"{{"architecture":"{name}","config":{{}}}}"#)).expect("the defaults are one");
        let extent = Extent::new(64, 128, 128);
        let plan = Plan::of_graph(&graph, extent, &DeviceCaps::desktop(), &PlanOptions::default()).expect("it can be planned");
        // every operation reads its inputs and its weights once and writes its output once, f32
        let maps = plan.graph().infer(extent).expect("it was planned");
        let elements = |map: &crate::Map| map.extent.voxels() * u64::from(map.blocks()) * 4;
        let values: u64 = plan
            .graph()
            .ids()
            .map(|id| plan.graph().node(id).inputs.iter().map(|i| elements(&maps[i.index()])).sum::<u64>() + elements(&maps[id.index()]))
            .sum();
        let weights: u64 = plan.graph().parameters().iter().map(|(_, shape)| shape.iter().map(|&n| n as u64).product::<u64>()).sum();
        let once = 4 * (values + weights);
        let traffic = plan.report().traffic_bytes;
        assert!(traffic <= once / 10 * 13, "{name}: {traffic} bytes of traffic, {once} once");
    }
}

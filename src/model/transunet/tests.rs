//! The published configuration, what is refused, and which tensors are needed.

use super::*;
use crate::{DeviceCaps, Elem, Model, Plan, PlanOptions};

#[test]
fn the_published_configuration_is_the_default_and_can_be_planned() {
    let (card, graph) = crate::model::architecture(r#"{"architecture":"transunet","config":{}}"#).expect("the defaults are one");
    let extent = Extent::new(1, 224, 224);
    assert_eq!((card.dims(), card.classes(), card.in_channels(), card.crop()), (2, 9, 3, Some(extent)));
    assert!(card.takes(1) && card.takes(3) && !card.takes(2));
    let kept = graph.parameters().into_iter().filter(|(name, _)| !name.contains("running_"));
    #[expect(clippy::cast_precision_loss, reason = "a count of millions")]
    let millions = kept.map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>() as f64 / 1e6;
    assert!((millions - 105.28).abs() < 0.01, "{millions} million parameters");
    // 55 x 55 in the network, 56 x 56 as a skip
    let maps = graph.infer(extent).expect("shapes agree");
    let of = |name: &str| graph.find(name).map(|id| (maps[id.index()].extent, maps[id.index()].channels));
    assert_eq!(of("transformer.embeddings.hybrid_model.pool"), Some((Extent::new(1, 55, 55), 64)));
    assert_eq!(of("transformer.embeddings.hybrid_model.padded"), Some((Extent::new(1, 56, 56), 256)));
    assert_eq!(of("transformer.embeddings"), Some((Extent::new(1, 14, 14), 768)));
    for (elem, most) in [(Elem::F32, 460_000_000), (Elem::F16, 235_000_000)] {
        let plan = Plan::of_graph(&graph, extent, &DeviceCaps::desktop(), &PlanOptions::default().with_precision(elem).with_budget(most));
        let report = plan.expect("it can be planned").report().clone();
        assert!(report.peak_bytes < most, "{}: {} bytes", elem.name(), report.peak_bytes);
        assert!((58_000_000_000..59_500_000_000).contains(&report.flops), "{} FLOP, 58.5 GFLOP are published", report.flops);
    }
}

fn small(more: &str) -> String {
    let config = r#""image":32,"hidden":24,"mlp":40,"heads":3,"layers":1,"resnet_layers":[1,2,1],"width_factor":0.5,"decoder_channels":[12,8,8,4],"skip_channels":[256,128,32,16],"classes":3"#;
    format!(r#"{{"architecture":"transunet","config":{{{config}{more}}}}}"#)
}

#[test]
fn what_is_no_network_is_refused() {
    for (from, to, word) in [
        (r#""image":32"#, r#""image":40"#, "image"),
        (r#""image":32"#, r#""image":0"#, "image"),
        (r#""image":32"#, r#""image":4294967280"#, "image"),
        (r#""hidden":24"#, r#""hidden":0"#, "hidden"),
        (r#""heads":3"#, r#""heads":5"#, "heads"),
        (r#""heads":3"#, r#""heads":0"#, "heads"),
        (r#""layers":1"#, r#""layers":1000"#, "layers"),
        ("[1,2,1]", "[1,2]", "resnet_layers"),
        ("[1,2,1]", "[1,0,1]", "resnet_layers"),
        (r#"_factor":0.5"#, r#"_factor":0.3"#, "width_factor"),
        (r#"_factor":0.5"#, r#"_factor":0"#, "width_factor"),
        (r#"_factor":0.5"#, r#"_factor":-1e300"#, "width_factor"),
        (r#"_factor":0.5"#, r#"_factor":1e300"#, "width_factor"),
        ("[12,8,8,4]", "[12,8,8]", "decoder_channels"),
        ("[256,128,32,16]", "[256,128,64,16]", "skip_channels"),
        ("[256,128,32,16]", "[256,128,32]", "skip_channels"),
        (r#""classes":3"#, r#""classes":3,"skips":4"#, "skips"),
        (r#""classes":3"#, r#""classes":0"#, "classes"),
        (r#""classes":3"#, r#""classes":3,"patch":16"#, "patch"),
    ] {
        let e = Model::random(&small("").replace(from, to), 1).expect_err("it is none");
        let text = format!("{e} {:?}", std::error::Error::source(&e).map(ToString::to_string));
        assert!(text.contains(word), "{to}: {text}");
    }
}

#[test]
fn the_network_runs_on_planes_of_its_image() {
    let model = Model::random(&small(""), 1).expect("it is one");
    assert_eq!(model.stride(), [1, 32, 32]);
    let plan = |extent| Plan::new(&model, extent, &DeviceCaps::host(), &PlanOptions::default());
    assert!(plan(Extent::new(1, 32, 32)).is_ok() && plan(Extent::new(4, 32, 32)).is_ok());
    let e = plan(Extent::new(1, 64, 32)).expect_err("another extent").to_string();
    assert!(e.contains("32x32"), "{e}");
}

/// Channels that the first convolution of each block of the decoder reads.
#[test]
fn skips_are_taken_from_the_deepest_on() {
    for (skips, widths) in [(3, [768, 140, 40, 8]), (1, [768, 12, 8, 8]), (0, [512, 12, 8, 8])] {
        let model = Model::random(&small(&format!(r#","skips":{skips}"#)), 1).expect("it is one");
        let graph = model.graph().clone();
        let read = |i: usize| {
            let conv = graph.nodes().iter().find(|n| n.name == format!("decoder.blocks.{i}.conv1"));
            if let Some(Op::Conv(c)) = conv.map(|n| &n.op) { c.in_channels } else { 0 }
        };
        assert_eq!([0, 1, 2, 3].map(read), widths);
    }
}

/// A small network's tensors as a file, after some were taken out and one was put in.
fn load(without: &str, with: &str) -> Result<Model, crate::LoadError> {
    let mut tensors = crate::model::Card::parse(&small(""))?.build()?.graph.parameters();
    tensors.retain(|(n, _)| without.is_empty() || !n.ends_with(without));
    if !with.is_empty() {
        tensors.push((with.to_owned(), vec![3]));
    }
    Model::from_bytes(crate::model::weights::random(&small(""), &tensors, 1)?)
}

#[test]
fn tensors_are_those_of_the_checkpoint() {
    assert!(load("", "").is_ok() && load("", "decoder.conv_more.1.num_batches_tracked").is_ok());
    for (without, with) in [
        ("position_embeddings", ""),
        ("body.block2.unit1.gn_proj.weight", ""),
        ("", "transformer.embeddings.hybrid_model.body.block2.unit2.downsample.weight"),
        ("", "transformer.embeddings.hybrid_model.root.conv.bias"),
    ] {
        let e = load(without, with).expect_err("it does not fit").to_string();
        assert!(e.contains(if with.is_empty() { without } else { with }), "{e}");
    }
    let positions = load("", "").expect("it is one").weights().list();
    let shape = positions.iter().find(|(name, _)| name.ends_with("position_embeddings")).map(|(_, shape)| shape.clone());
    assert_eq!(shape, Some(vec![1, 4, 24]));
}

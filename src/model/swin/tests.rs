//! The family's published configurations, what they refuse, and which tensors they do without.

use super::*;
use crate::model::architecture::Architecture;
use crate::{Card, DeviceCaps, Elem, Extent, Model, Plan, PlanOptions};

const NAMES: [&str; 2] = [SwinUnetConfig::NAME, GlamSwinUnetConfig::NAME];

fn windows(n: u32) -> WindowShape {
    Stage {
        module: String::new(),
        level: 0,
        per_plane: true,
        grid: [1, n, n],
        depth: 1,
        channels: 1,
        heads: 1,
        window: [1, n, n],
        shift: [0; 3],
    }
    .windows("", "", [0; 3], false)
    .shape
}

#[test]
fn offsets_are_told_apart() {
    let index = relative_index(&windows(7));
    // (y_q - y_k + 6) * 13 + (x_q - x_k + 6)
    assert_eq!((index.len(), index[0], index[48], index[48 * 49], index[49]), (2401, 84.0, 0.0, 168.0, 85.0));
    assert_eq!(windows(7).bias_rows, 169);
}

/// Sums and corners of the buffer of the reference.
#[test]
fn keys_of_non_local_upsampling_are_every_fourth_voxel() {
    let shape = WindowShape { q_window: [1, 14, 14], ..windows(7) };
    let rows = index(&shape);
    assert_eq!((rows.len(), rows.iter().sum::<f64>()), (196 * 49, 806_736.0));
    assert_eq!(rows[..8], [84.0, 82.0, 80.0, 78.0, 83.0, 81.0, 79.0, 71.0]);
    assert_eq!([rows[48], rows[195 * 49], rows[195 * 49 + 48]], [1.0, 168.0, 85.0]);
    assert_eq!(index(&windows(7)), relative_index(&windows(7)));
}

/// Elements of all parameters of a graph but indices, in millions.
fn millions(graph: &Graph) -> f64 {
    let kept = graph.parameters().into_iter().filter(|(name, _)| !name.ends_with("_index"));
    #[expect(clippy::cast_precision_loss, reason = "a count of millions")]
    let counted = kept.map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>() as f64 / 1e6;
    counted
}

#[test]
fn the_published_swin_unet_is_the_default_and_can_be_planned() {
    let (card, graph) = crate::model::architecture(r#"{"architecture":"swin_unet","config":{}}"#).expect("the defaults are one");
    let extent = Extent::new(1, 224, 224);
    assert_eq!((card.dims(), card.classes(), card.in_channels(), card.crop()), (2, 9, 3, Some(extent)));
    assert!(card.takes(1) && card.takes(3) && !card.takes(2));
    let counted = millions(&graph);
    assert!((counted - 27.17).abs() < 0.01, "{counted} million parameters");
    for (elem, most) in [(Elem::F32, 170_000_000), (Elem::F16, 90_000_000)] {
        let plan = Plan::of_graph(&graph, extent, &DeviceCaps::desktop(), &PlanOptions::default().with_precision(elem).with_budget(most));
        let report = plan.expect("it can be planned").report().clone();
        assert!(report.peak_bytes < most, "{}: {} bytes", elem.name(), report.peak_bytes);
        assert!((12_100_000_000..12_500_000_000).contains(&report.flops), "{} FLOP, 12.2 GFLOP are published", report.flops);
    }
}

#[test]
fn the_published_glam_swin_unets_can_be_planned() {
    // 54.65 (60.48 with non-local upsampling) million are published for one token, of which those that lead nowhere are a part:
    // the last block's gt_attn of each stage; with non-local upsampling its unused shortcuts and the expansions it replaces
    let gt: u32 = [96, 96, 192, 192, 384, 384, 768].iter().map(|c| 4 * c * c + 4 * c).sum();
    let (shortcuts, expansions): (u32, u32) =
        [768u32, 384, 192].iter().map(|c| (c * c / 2 + c / 2, 2 * c * c + c)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    for (upsampling, dead, published, flops, most) in [
        (false, gt, 54.65, 100..108, [420_000_000, 212_000_000]),
        (true, gt + shortcuts + expansions, 60.48, 114..124, [436_000_000, 220_000_000]),
    ] {
        let card = format!(r#"{{"architecture":"glam_swin_unet","config":{{"non_local_upsampling":{upsampling}}}}}"#);
        let (card, graph) = crate::model::architecture(&card).expect("the defaults are one");
        let extent = Extent::new(1, 512, 512);
        assert_eq!((card.dims(), card.classes(), card.in_channels(), card.crop()), (2, 150, 3, Some(extent)));
        assert!(!card.takes(1), "the reference repeats nothing");
        let counted = millions(&graph) + f64::from(dead) / 1e6;
        for (elem, most) in [Elem::F32, Elem::F16].into_iter().zip(most) {
            let plan =
                Plan::of_graph(&graph, extent, &DeviceCaps::desktop(), &PlanOptions::default().with_precision(elem).with_budget(most));
            let report = plan.expect("it can be planned").report().clone();
            // 108.6 and 124.7 are published, of which those that lead nowhere, and padding, are a part
            let giga = report.flops / 1_000_000_000;
            assert!(flops.contains(&giga), "{upsampling}: {giga} GFLOP");
            assert!(report.peak_bytes < most, "{upsampling} {}: {} bytes", elem.name(), report.peak_bytes);
        }
        assert!((counted - published).abs() < 0.01, "{counted} million parameters");
    }
}

/// A small network of an architecture.
fn small(architecture: &str, more: &str) -> String {
    format!(
        r#"{{"architecture":"{architecture}","config":{{"image":64,"embed_dim":8,"depths":[2,2,1],"heads":[1,2,4],"window":4,"classes":2{more}}}}}"#
    )
}

fn refusal(card: &str) -> String {
    let e = Model::random(card, 1).expect_err("it is none");
    format!("{e} {:?}", std::error::Error::source(&e).map(ToString::to_string))
}

#[test]
fn what_is_no_network_is_refused() {
    for name in NAMES {
        for (from, to, word) in [
            (r#""depths":[2,2,1]"#, r#""depths":[2]"#, "depths"),
            (r#""depths":[2,2,1]"#, r#""depths":[2,0,1]"#, "depths"),
            (r#""heads":[1,2,4]"#, r#""heads":[1,2,5]"#, "heads"),
            (r#""heads":[1,2,4]"#, r#""heads":[1,2]"#, "heads"),
            (r#""heads":[1,2,4]"#, r#""heads":[0,2,4]"#, "heads"),
            (r#""window":4"#, r#""window":1"#, "window"),
            (r#""window":4"#, r#""window":1000000"#, "window"),
            (r#""image":64"#, r#""image":0"#, "image"),
            (r#""image":64"#, r#""image":4294967292"#, "image"),
            (r#""classes":2"#, r#""classes":0"#, "classes"),
            (r#""classes":2"#, r#""classes":2,"in_channels":0"#, "in_channels"),
            (r#""embed_dim":8"#, r#""embed_dim":0"#, "embed_dim"),
            (r#""classes":2"#, r#""classes":2,"patch":2"#, "patch"),
            (r#""classes":2"#, r#""classes":2,"mlp_ratio":4"#, "mlp_ratio"),
        ] {
            let text = refusal(&small(name, "").replace(from, to));
            assert!(text.contains(word), "{name}, {to}: {text}");
        }
    }
    for (from, to, word) in [
        (r#""classes":2"#, r#""classes":2,"window_tokens":0"#, "window_tokens"),
        (r#""classes":2"#, r#""classes":2,"window_tokens":33"#, "window_tokens"),
        // 48 times 48 windows have a token each, 45 times 45 have positions
        (r#""image":64"#, r#""image":768"#, "stage 0 has 2304 window tokens"),
        (r#""classes":2"#, r#""classes":2,"non_local_upsampling":1"#, "bool"),
        (r#""classes":2"#, r#""classes":2,"cross_attention_weight":"x""#, "f64"),
        (r#""image":64"#, r#""image":[64,15]"#, "64x15"),
        (r#""image":64"#, r#""image":[64,8196]"#, "64x8196"),
        (r#""image":64"#, r#""image":[64]"#, "Image"),
        // 4 tokens of 5 would be a window, but along one axis alone
        (r#""image":64"#, r#""image":[84,64]"#, "stage 2 has 5x4 tokens"),
        (r#""image":64"#, r#""image":68,"non_local_upsampling":true,"residual_patch_expand":false"#, "stage 0 has 17x17 tokens"),
    ] {
        let text = refusal(&small("glam_swin_unet", "").replace(from, to));
        assert!(text.contains(word), "{to}: {text}");
    }
    // the reference pads nothing: 66 voxels are no whole patches, 18 tokens no windows of 4, 5 have no halves
    for (image, window, word) in [(66, 4, "multiple of 4"), (72, 4, "window"), (20, 5, "even")] {
        let card = small("swin_unet", "").replace(r#""image":64"#, &format!(r#""image":{image}"#));
        let text = refusal(&card.replace(r#""window":4"#, &format!(r#""window":{window}"#)));
        assert!(text.contains("image") && text.contains(word), "{image}: {text}");
    }
}

#[test]
fn networks_run_on_planes_of_their_image() {
    for name in NAMES {
        let model = Model::random(&small(name, ""), 1).expect("it is one");
        assert_eq!(model.stride(), [1, 64, 64]);
        let plan = |extent| Plan::new(&model, extent, &DeviceCaps::host(), &PlanOptions::default());
        assert!(plan(Extent::new(1, 64, 64)).is_ok() && plan(Extent::new(5, 64, 64)).is_ok());
        let e = plan(Extent::new(1, 64, 128)).expect_err("another extent").to_string();
        assert!(e.contains("64x64"), "{e}");
    }
}

/// A small network's tensors as a file, after some were taken out and one was put in.
fn load(name: &str, more: &str, without: &str, with: &str) -> Result<Model, LoadError> {
    let card = small(name, more);
    let mut tensors = Card::parse(&card)?.build()?.graph.parameters();
    tensors.retain(|(n, _)| without.is_empty() || !n.ends_with(without));
    if !with.is_empty() {
        tensors.push((with.to_owned(), vec![3]));
    }
    Model::from_bytes(crate::model::weights::random(&card, &tensors, 1)?)
}

#[test]
fn masks_and_indices_may_be_there_or_not() {
    let swin = |without: &str, with: &str| load("swin_unet", "", without, with);
    for (without, with) in [("", ""), ("relative_position_index", "")] {
        swin(without, with).unwrap_or_else(|e| panic!("without {without:?} with {with:?}: {e}"));
    }
    for (without, with) in [
        ("bias_table", ""),
        ("output.weight", ""),
        // masks of another shape, and of blocks that are not shifted
        ("", "swin_unet.layers.0.blocks.1.attn_mask"),
        ("", "swin_unet.layers_up.2.blocks.1.attn_mask"),
        ("", "swin_unet.layers.0.blocks.0.attn_mask"),
        ("", "swin_unet.layers.2.blocks.0.attn_mask"),
        ("", "swin_unet.layers.0.downsample.reduction.bias"),
    ] {
        let e = swin(without, with).expect_err("it does not fit").to_string();
        assert!(e.contains(if with.is_empty() { without } else { with }), "{e}");
    }
}

/// Regions of a 4x4 map in windows of 2, shifted by one, by hand: the last row and column are apart.
#[test]
fn masks_are_those_of_regions() {
    let mut shape = WindowShape { k_window: [1, 2, 2], q_window: [1, 2, 2], shift: [0, 1, 1], ..windows(2) };
    let values = mask(&shape, Extent::new(1, 4, 4));
    let rows = |window: usize| -> Vec<String> {
        let row = |row: &[f64]| row.iter().map(|&v| if v == 0.0 { '.' } else { 'x' }).collect();
        values[window * 16..][..16].chunks_exact(4).map(row).collect()
    };
    assert!(values.len() == 64 && values.iter().all(|&v| v == 0.0 || v == -100.0));
    assert_eq!(rows(0), ["....", "....", "....", "...."]);
    assert_eq!(rows(1), [".x.x", "x.x.", ".x.x", "x.x."]);
    assert_eq!(rows(2), ["..xx", "..xx", "xx..", "xx.."]);
    assert_eq!(rows(3), [".xxx", "x.xx", "xx.x", "xxx."]);
    shape.shift = [0; 3];
    assert!(mask(&shape, Extent::new(1, 2, 2)).iter().all(|&v| v == 0.0));
}

#[test]
fn masks_of_a_file_are_those_that_are_computed_or_refused() {
    let card = small("swin_unet", "");
    let built = Card::parse(&card).and_then(|mut card| card.build()).expect("it is one");
    let maps = built.graph.infer(built.crop.expect("it has one").into()).expect("shapes agree");
    let mut masks: Vec<(String, Vec<usize>, Vec<f64>)> = Vec::new();
    for node in built.graph.nodes() {
        if let (Op::WindowAttention(attention), Some(name)) = (&node.op, masked(&node.op, &node.name)) {
            let values = mask(&attention.shape, maps[node.inputs[0].index()].extent);
            let n = attention.shape.k_window.iter().product::<u32>() as usize;
            masks.push((name, vec![values.len() / n / n, n, n], values));
        }
    }
    assert!(masks.len() > 1);
    let load = |masks: &[(String, Vec<usize>, Vec<f64>)]| {
        let bytes = crate::model::weights::random(&card, &built.graph.parameters(), 1).expect("a file");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("it is one");
        #[expect(clippy::cast_possible_truncation, reason = "masks hold 0 and -100")]
        let bytes_of = |v: &[f64]| v.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect::<Vec<u8>>();
        let data: Vec<Vec<u8>> = masks.iter().map(|(.., v)| bytes_of(v)).collect();
        let mut views = file.tensors();
        for ((name, shape, _), data) in masks.iter().zip(&data) {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).expect("it fits");
            views.push((name.clone(), view));
        }
        let said = std::collections::HashMap::from([("organum".to_owned(), card.clone())]);
        Model::from_bytes(safetensors::serialize(views, Some(said)).expect("a file")).map(|_| ())
    };
    load(&masks).expect("they are what is computed");
    for value in [-50.0, 0.0, f64::NAN, f64::NEG_INFINITY] {
        let mut other = masks.clone();
        let at = other[1].2.iter().position(|&v| v == -100.0).expect("something is hidden");
        other[1].2[at] = value;
        let e = load(&other).expect_err("it differs").to_string();
        assert!(e.contains(&other[1].0) && e.contains("differs in 1 of"), "{e}");
    }
    let mut other = masks.clone();
    other[0].2.iter_mut().for_each(|v| *v *= 1.0 + 1e-6);
    load(&other).expect("that is rounding");
}

#[test]
fn what_leads_nowhere_may_be_there_or_not() {
    let upsampling = r#","non_local_upsampling":true"#;
    let linear = r#","non_local_upsampling":true,"residual_patch_expand":false"#;
    for (more, without, with) in [
        ("", "relative_position_index", ""),
        (upsampling, "relative_position_index", ""),
        ("", "layers.0.blocks.1.gt_attn.qkv.weight", ""),
        ("", "layers.2.pe", ""),
        ("", "layers_up.1.blocks.1.gt_attn.proj.bias", ""),
        (upsampling, "layers_up.0.blocks.1.gt_attn.proj.bias", ""),
        (upsampling, "", "layers_patch_expand.1.norm.weight"),
        (upsampling, "", "layers_cross_attention_up.1.blocks.0.proj_shortcut.bias"),
        (linear, "", "layers_cross_attention_up.1.blocks.0.expand.norm.bias"),
    ] {
        load("glam_swin_unet", more, without, with).unwrap_or_else(|e| panic!("without {without:?} with {with:?}: {e}"));
    }
    for (more, without, with) in [
        ("", "layers.0.pe", ""),
        ("", "layers_up.1.global_token", ""),
        ("", "", "layers.2.blocks.1.gt_attn.qkv.weight"),
        ("", "", "layers_patch_expand.1.norm.weight"),
        (upsampling, "blocks.0.attn.proj_kv.bias", ""),
        (upsampling, "", "layers_patch_expand.2.norm.weight"),
        (linear, "blocks.0.proj_shortcut.bias", ""),
        (upsampling, "", "layers_cross_attention_up.2.blocks.0.proj_shortcut.bias"),
    ] {
        let e = load("glam_swin_unet", more, without, with).expect_err("it does not fit").to_string();
        assert!(e.contains(if with.is_empty() { without } else { with }), "{e}");
    }
}

/// Images that are no squares of whole patches, and the options of non-local upsampling; see `tests/vectors/make_glam.py`.
#[test]
fn glam_swin_unets_of_any_image_and_option_equal_torch() {
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/glam.safetensors")).expect("the vectors are there");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("they are safetensors");
    let cases = header.metadata().as_ref().and_then(|m| m.get("cases")).expect("they have configs");
    let cases: serde_json::Value = serde_json::from_str(cases).expect("the configs are JSON");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("they are safetensors");
    let floats = Weights::from_bytes(bytes.clone().into()).expect("they are safetensors");
    let engine = pollster::block_on(crate::Engine::request(None)).ok();
    for (name, config) in cases.as_object().expect("configs by name") {
        let card = serde_json::json!({"architecture": "glam_swin_unet", "config": config}).to_string();
        let own = file.tensors().into_iter().filter_map(|(n, t)| Some((n.strip_prefix(&format!("{name}."))?.to_owned(), t)));
        let parameters: Vec<_> = own.filter(|(n, _)| n != "input" && n != "output").collect();
        let metadata = std::collections::HashMap::from([("organum".to_owned(), card)]);
        let model = Model::from_bytes(safetensors::serialize(parameters, Some(metadata)).expect("a file")).expect("it is one");
        let crop = model.card().crop().expect("one extent alone");
        let extent = Extent { d: 2, ..crop };
        #[expect(clippy::cast_possible_truncation, reason = "they are of 16 bits")]
        let data: Vec<f32> = floats.floats(&format!("{name}.input")).expect("it is there").iter().map(|&v| v as f32).collect();
        let expected = floats.floats(&format!("{name}.output")).expect("it is there");
        for (device, elem, bound) in [(None, Elem::F32, 1e-5), (engine.as_ref(), Elem::F32, 1e-5), (engine.as_ref(), Elem::F16, 5e-3)] {
            let caps = device.map_or_else(DeviceCaps::host, |engine| engine.caps().clone());
            let options = PlanOptions::default().with_output(crate::OutputMode::Logits).with_precision(elem);
            let plan = Plan::new(&model, extent, &caps, &options).expect("there is a plan");
            let mut session = match device {
                Some(engine) => pollster::block_on(crate::Session::new(engine, &model, plan)),
                None => crate::Session::on_host(&model, plan),
            }
            .expect("it is opened");
            let input = crate::Input { channels: 1, extent, data: &data };
            let output = session.run_blocking(input, crate::RunOptions::default()).expect("it runs").swap_remove(0).data;
            let crate::OutputData::Map(values) = output else { panic!("asked for logits") };
            let [h, w] = [extent.h, extent.w].map(|n| n as usize);
            let third = |n: usize| (0..n).step_by(3);
            let got = values.chunks_exact(h * w).flat_map(|plane| third(h).flat_map(move |y| third(w).map(move |x| plane[y * w + x])));
            let got: Vec<f64> = got.map(f64::from).collect();
            assert_eq!(got.len(), expected.len());
            let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
            let error = norm(&mut got.iter().zip(&expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied());
            assert!(error <= bound, "{name}, {}, on the {}: {error:e}", elem.name(), if device.is_some() { "device" } else { "host" });
        }
    }
}

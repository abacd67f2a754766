//! 2D networks take a volume as a batch of slices: each plane of the result has the bits that the plane alone has.
#![allow(clippy::cast_possible_truncation, clippy::print_stdout, reason = "tests")]

mod support;

use organum::{Engine, Extent, Input, Model, OutputData, OutputMode, Plan, PlanOptions, RunOptions, Session};
use support::{Random, engine, relative_error};

/// Networks, and voxels along H and W of the planes that they take.
fn networks() -> Vec<(String, u32)> {
    let swin = r#""image":64,"embed_dim":8,"depths":[2,2,2],"heads":[1,2,4],"window":4,"classes":2"#;
    let glam = |more: &str| (format!(r#"{{"architecture":"glam_swin_unet","config":{{{swin},"window_tokens":2{more}}}}}"#), 64);
    let trans = r#""image":32,"hidden":24,"mlp":40,"heads":3,"layers":2,"resnet_layers":[1,2,1],"width_factor":0.5,
        "decoder_channels":[12,8,8,4],"skip_channels":[256,128,32,0],"classes":3"#;
    vec![
        (format!(r#"{{"architecture":"transunet","config":{{{trans}}}}}"#), 32),
        (format!(r#"{{"architecture":"swin_unet","config":{{{swin}}}}}"#), 64),
        glam(""),
        glam(r#","non_local_upsampling":true"#),
        // padded to whole windows, and odd grids to whole patches
        (glam(r#","non_local_upsampling":true"#).0.replace(r#""image":64"#, r#""image":44"#), 44),
        // no whole patches: what is computed is resized
        (glam("").0.replace(r#""image":64"#, r#""image":42"#), 42),
        glam(r#","non_local_upsampling":true,"residual_patch_expand":false,"cross_attention_weight":0.2"#),
    ]
}

/// Logits on the device, or on the host; within the smallest budget if asked for.
fn logits(engine: Option<&Engine>, model: &Model, input: Input<'_>, tight: bool) -> Vec<f32> {
    let caps = engine.map_or_else(organum::DeviceCaps::host, |engine| engine.caps().clone());
    let mut options = PlanOptions::default().with_output(OutputMode::Logits);
    let mut plan = Plan::new(model, input.extent, &caps, &options).expect("there is a plan");
    if tight {
        options = options.with_budget(plan.report().smallest_budget);
        plan = Plan::new(model, input.extent, &caps, &options).expect("the smallest budget is one");
    }
    let mut session = match engine {
        Some(engine) => pollster::block_on(Session::new(engine, model, plan)).expect("the session is made"),
        None => Session::on_host(model, plan).expect("the session is made"),
    };
    let mut outputs = session.run_blocking(input, RunOptions::default()).expect("the network runs");
    match outputs.swap_remove(0).data {
        OutputData::Map(values) => values,
        OutputData::Labels(_) => panic!("asked for logits"),
    }
}

/// Plane z of all channels.
fn plane(values: &[f32], channels: usize, planes: usize, z: usize) -> Vec<f32> {
    let voxels = values.len() / channels / planes;
    (0..channels).flat_map(|c| values[(c * planes + z) * voxels..][..voxels].to_vec()).collect()
}

#[test]
fn slices_of_a_volume_are_images_of_their_own() {
    for engine in [engine(), None] {
        for (card, n) in networks() {
            let model = Model::random(&card, 7).expect("it is one");
            let channels = model.card().in_channels();
            let (planes, extent) = (3, Extent::new(3, n, n));
            let data = Random::new(3).values(extent.voxels() as usize * channels as usize);
            let together = logits(engine, &model, Input { channels, extent, data: &data }, false);
            if engine.is_some() {
                let tight = logits(engine, &model, Input { channels, extent, data: &data }, true);
                assert!(tight == together, "{card}: other bits in the smallest budget");
            }
            let classes = model.card().classes() as usize;
            for z in 0..planes {
                let slice = plane(&data, channels as usize, planes, z);
                let alone = logits(engine, &model, Input { channels, extent: Extent::new(1, n, n), data: &slice }, false);
                assert!(alone == plane(&together, classes, planes, z), "{card}: plane {z} is another one by itself");
            }
        }
    }
}

#[test]
fn one_channel_is_repeated_where_the_reference_repeats_it() {
    for (card, n) in networks() {
        let model = Model::random(&card, 5).expect("it is one");
        let extent = Extent::new(2, n, n);
        let grey = Random::new(4).values(extent.voxels() as usize);
        let of = |channels: u32| logits(engine(), &model, Input { channels, extent, data: &grey.repeat(channels as usize) }, false);
        if model.card().takes(1) {
            let repeated = of(3);
            assert!(of(1) == repeated, "{card}");
            // or its weights are summed instead
            let model = Model::random(&card, 5).and_then(Model::for_grey_input).expect("it takes one");
            for engine in [engine(), None] {
                let summed = logits(engine, &model, Input { channels: 1, extent, data: &grey }, engine.is_some());
                let e = relative_error(&summed, &repeated.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
                assert!(e < 2e-6, "{card}: {e:e}");
            }
            continue;
        }
        let e = Model::random(&card, 5).and_then(Model::for_grey_input).expect_err("it takes none");
        assert!(e.to_string().contains("in place of"), "{e}");
        let plan = Plan::new(&model, extent, &organum::DeviceCaps::host(), &PlanOptions::default()).expect("there is a plan");
        let mut session = Session::on_host(&model, plan).expect("the session is made");
        let e = session.run_blocking(Input { channels: 1, extent, data: &grey }, RunOptions::default()).expect_err("it wants three");
        assert_eq!(e.kind(), organum::RunErrorKind::InputMismatch);
    }
}

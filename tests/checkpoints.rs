//! Every reference case as a PyTorch checkpoint without a card: the network is told by names and shapes, or the message says what is not.
#![allow(clippy::print_stdout, reason = "skips belong to a test's output")]

mod support;
#[path = "support/torch.rs"]
mod torch;

use organum::LoadErrorKind;
use organum::model::Checkpoint;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

/// The cases, and what of their configs neither names nor shapes tell.
const CASES: [(&str, &[&str]); 25] = [
    ("u_transformer_2d", &["heads"]),
    ("u_transformer_3d", &["heads"]),
    ("u_transformer_themyr2021", &["heads"]),
    ("u_net_3d", &[]),
    ("mhsa_only_3d", &["heads"]),
    ("mhca_only_2d", &["heads"]),
    ("nnunet_3d_fullres", &[]),
    ("nnunet_resenc", &[]),
    ("nnformer", &["crop"]),
    ("glam_nnformer_a", &["crop"]),
    ("glam_nnformer_d", &["crop"]),
    ("fine", &["crop", "volume_grid", "max_extent"]),
    ("fine_depth3", &["crop", "volume_grid", "max_extent"]),
    ("unetr", &["image", "heads", "norm"]),
    ("cotr", &["heads", "points"]),
    ("swin_unet", &[]),
    ("glam_swin_unet", &["image"]),
    ("glam_swin_unet_nlu", &["image", "cross_attention_weight", "residual_patch_expand"]),
    ("transunet", &["heads"]),
    ("unet2d", &[]),
    ("unet2d_bilinear", &[]),
    ("attention_unet2d", &[]),
    ("attention_unet_3d", &["strides"]),
    ("vnet_monai", &["activation"]),
    ("vnet_mattmacy", &[]),
];

fn class(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "HalfStorage",
        Dtype::F32 => "FloatStorage",
        Dtype::I64 => "LongStorage",
        other => panic!("no case holds {other:?}"),
    }
}

/// A case as torch.save would leave it, the names included that its file leaves out.
fn checkpoint(model: &[u8], case: &Value, wrapper: &[&str], prefix: &str) -> Vec<u8> {
    let file = SafeTensors::deserialize(model).expect("it is one");
    let tensors: Vec<torch::Tensor<'_>> =
        file.iter().map(|(name, t)| (name.to_owned(), class(t.dtype()), t.shape().to_vec(), t.data())).collect();
    let aliases = case["aliases"].as_object().expect("names by names");
    let repeated: Vec<_> = aliases.iter().map(|(name, of)| (name.clone(), of.as_str().expect("a name").to_owned())).collect();
    torch::save(&tensors, &repeated, wrapper, prefix)
}

#[test]
fn reference_cases_are_told_by_their_tensors_or_ask_for_what_is_not() {
    for (name, untold) in CASES {
        let Some(folder) = support::shared(&format!("golden/{name}")) else { continue };
        let model = std::fs::read(folder.join("model.safetensors")).expect("the model is there");
        let case: Value = serde_json::from_slice(&std::fs::read(folder.join("case.json")).expect("it is there")).expect("it is JSON");
        let reference = Checkpoint::from_bytes(model.clone()).and_then(|c| c.into_model(None)).expect("it loads");
        let config = &case["card"]["config"];
        let bytes = checkpoint(&model, &case, &["state_dict"], "module.");
        let open = || Checkpoint::from_bytes(bytes.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));

        let told = open().infer();
        if untold.is_empty() {
            let card: Value = serde_json::from_str(&told.unwrap_or_else(|e| panic!("{name}: {e}"))).expect("it is JSON");
            assert_eq!(card["architecture"], case["card"]["architecture"], "{name}");
        } else {
            let e = told.expect_err("it is not told");
            assert_eq!(e.kind(), LoadErrorKind::Undetermined, "{name}: {e}");
            let keys: Vec<String> = untold.iter().map(|key| format!("\"{key}\": ..")).collect();
            assert!(e.to_string().ends_with(&format!("{{{}}}", keys.join(", "))), "{name}: {e}");
        }
        let value = |key: &str| match key {
            // what the reference's class is built with unless it is told otherwise
            "cross_attention_weight" => json!(1.0),
            "residual_patch_expand" => json!(true),
            _ => config[key].clone(),
        };
        let given: Map<String, Value> = untold.iter().map(|&key| (key.to_owned(), value(key))).collect();
        let given = json!({"config": given}).to_string();
        let model = open().into_model((!untold.is_empty()).then_some(given.as_str())).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(model.graph().to_string(), reference.graph().to_string(), "{name}");
        assert_eq!(model.card().crop(), reference.card().crop(), "{name}");
        for (tensor, _) in reference.graph().parameters() {
            if reference.weights().floats(&tensor).is_ok() {
                let same = model.weights().floats(&tensor).ok() == reference.weights().floats(&tensor).ok();
                assert!(same, "{name}: {tensor}");
            }
        }
        println!("{name}: {}", if untold.is_empty() { "told".to_owned() } else { format!("asks for {}", untold.join(", ")) });
    }
}

#[test]
fn names_under_a_common_prefix_are_found() {
    let Some(folder) = support::shared("golden/swin_unet") else { return };
    let model = std::fs::read(folder.join("model.safetensors")).expect("the model is there");
    let case: Value = serde_json::from_slice(&std::fs::read(folder.join("case.json")).expect("it is there")).expect("it is JSON");
    let bytes = checkpoint(&model, &case, &[], "backbone.net.");
    let model = Checkpoint::from_bytes(bytes).and_then(|c| c.into_model(None)).expect("the prefix is taken away");
    assert!(model.weights().floats("swin_unet.norm.weight").is_ok());
}

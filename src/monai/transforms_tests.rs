use super::*;

fn compose(transforms: Value) -> Value {
    json!({"_target_": "Compose", "transforms": transforms})
}

#[test]
fn transforms_are_read() -> Result<(), LoadError> {
    let before = compose(json!([
        {"_target_": "LoadImaged", "keys": ["img", "label"]},
        {"_target_": "monai.transforms.EnsureChannelFirstd", "keys": "img"},
        {"_target_": "EnsureTyped", "keys": "img", "dtype": "$torch.float32"},
        {"_target_": "Orientationd", "keys": "img", "axcodes": "RAS"},
        {"_target_": "Orientationd", "keys": "label", "axcodes": "LPS"},
        {"_target_": "Spacingd", "keys": ["img", "label"], "pixdim": [1.5, 1.5, -1], "mode": ["bilinear", "nearest"]},
        {"_target_": "RandFlipd", "keys": "img", "_disabled_": true},
        {"_target_": "Compose", "transforms": [{"_target_": "CropForegroundd", "keys": ["img"], "source_key": "img", "margin": 2},
            {"_target_": "CropForegroundd", "keys": ["img"], "mode": ["minimum"]}]},
        {"_target_": "ScaleIntensityRanged", "keys": "img", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1, "clip": true},
        {"_target_": "NormalizeIntensityd", "keys": "img", "nonzero": true, "subtrahend": 4}
    ]));
    let after = compose(json!([
        {"_target_": "Activationsd", "keys": "pred", "softmax": true},
        {"_target_": "Invertd", "keys": ["pred", "img"], "transform": "@preprocessing", "orig_keys": "img", "nearest_interp": [false, true]},
        {"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [true, false], "to_onehot": null},
        {"_target_": "KeepLargestConnectedComponentd", "keys": "label"},
        {"_target_": "KeepLargestConnectedComponentd", "keys": "$@pred_key", "applied_labels": [1, 2]},
        {"_target_": "SaveImaged", "keys": "pred"}
    ]));
    let read = pipeline(Some(&before), Some(&after))?;
    let largest = json!({"labels": [1, 2], "union": false, "connectivity": 3, "first": false});
    let expected = json!({"invert": "probabilities", "nearest": false, "largest": largest, "transforms": [
        {"transform": "orientation", "axes": "RAS"}, {"transform": "spacing", "mm": [1.5, 1.5, 0.0]},
        {"transform": "crop_foreground", "margin": [2, 2, 2]}, {"transform": "crop_foreground"},
        {"transform": "scale_range", "from": [-57.0, 164.0], "to": [0.0, 1.0], "clip": true},
        {"transform": "normalize", "nonzero": true, "subtrahend": [4.0]}]});
    assert_eq!(serde_json::to_value(read).ok(), Some(expected));
    let empty = pipeline(None, None)?;
    assert_eq!((empty.transforms.len(), empty.invert), (0, Invert::Nothing));
    let invert = json!({"_target_": "Invertd", "keys": "pred", "orig_keys": "image"});
    let labels = json!([{"_target_": "AsDiscreted", "keys": "pred", "argmax": true}, invert]);
    assert_eq!(pipeline(None, Some(&labels))?.invert, Invert::Labels);
    let logits = pipeline(None, Some(&json!([invert])))?;
    assert_eq!((logits.invert, logits.nearest), (Invert::Logits, true));
    let argmax = json!({"_target_": "AsDiscreted", "keys": "pred", "argmax": true});
    let small = json!({"_target_": "RemoveSmallObjectsd", "keys": "pred", "min_size": 8});
    let holes = json!({"_target_": "FillHolesd", "keys": "pred", "applied_labels": 1});
    let part = json!({"_target_": "KeepLargestConnectedComponentd", "keys": "pred"});
    let read = pipeline(None, Some(&json!([argmax, small, part, invert, part, holes])))?;
    let results = serde_json::to_value(read.recipe().results).unwrap_or_default();
    let largest = json!({"result": "keep_largest", "labels": [], "union": false, "connectivity": 3});
    let expected = [
        json!({"result": "arg_max"}),
        json!({"result": "filter", "filter": "remove_small", "min_size": 8, "connectivity": 1}),
        json!({"result": "filter", "filter": "keep_largest", "labels": [], "union": false, "connectivity": 3, "first": true}),
        json!({"result": "restore", "method": "inverse", "nearest": false}),
        largest,
        json!({"result": "filter", "filter": "fill_holes", "labels": [1], "connectivity": 3}),
    ];
    assert_eq!(results, json!(expected));
    for (wrong, named) in [
        (json!({"_target_": "RemoveSmallObjectsd", "keys": "pred", "by_measure": true}), "by_measure"),
        (json!({"_target_": "RemoveSmallObjectsd", "keys": "pred", "min_size": 0.5}), "min_size"),
        (json!({"_target_": "FillHolesd", "keys": "pred", "connectivity": 4}), "connectivity"),
        (json!({"_target_": "FillHolesd", "keys": "pred", "applied_labels": "$x"}), "applied_labels"),
    ] {
        let e = pipeline(None, Some(&json!([argmax, wrong]))).map(|_| ()).expect_err("it is not done").to_string();
        assert!(e.contains(named), "{e} does not name {named}");
    }
    let sigmoid = json!({"_target_": "Activationsd", "keys": "pred", "sigmoid": true});
    let at = json!({"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5});
    let old = json!({"_target_": "AsDiscreted", "keys": "pred", "threshold_values": true});
    for (list, invert, sigmoid) in [
        (json!([sigmoid, invert, at]), Invert::Probabilities, true),
        (json!([invert, sigmoid, at]), Invert::Logits, true),
        (json!([sigmoid, old, invert]), Invert::Labels, true),
        (json!([at]), Invert::Nothing, false),
    ] {
        let read = pipeline(None, Some(&list))?;
        assert_eq!((read.invert, read.sigmoid, read.threshold), (invert, sigmoid, Some(0.5)));
    }
    let before = compose(json!([
        {"_target_": "SpatialPadd", "keys": "image", "spatial_size": [96, 64, -1], "mode": "edge"},
        {"_target_": "DivisiblePadd", "keys": "image", "k": 32, "method": "end"},
        {"_target_": "ClipIntensityPercentilesd", "keys": "image", "lower": 1, "upper": null, "channel_wise": true}
    ]));
    let expected = json!([{"transform": "pad", "least": [96, 64, 0], "replicate": true},
        {"transform": "pad", "multiple": [32, 32, 32], "end": true}, {"transform": "clip_percentiles", "low": 1.0, "channel_wise": true}]);
    assert_eq!(serde_json::to_value(pipeline(Some(&before), None)?.transforms).ok(), Some(expected));
    // MONAI inverts nothing of a key that no transform worked on
    let other = json!([{"_target_": "Invertd", "keys": "pred"}, {"_target_": "SaveImaged", "keys": "pred"}]);
    assert_eq!(pipeline(None, Some(&other))?.invert, Invert::Nothing);
    let save = json!({"_target_": "SaveImaged", "keys": "pred", "resample": true, "output_dtype": "$np.uint8"});
    assert_eq!(pipeline(None, Some(&json!([save])))?.invert, Invert::Saving);
    assert_eq!(pipeline(None, Some(&json!([invert, save])))?.invert, Invert::Logits);
    Ok(())
}

#[test]
fn what_is_not_done_is_named() {
    let before = |t: Value| pipeline(Some(&compose(json!([t]))), None).map(|_| ()).expect_err("it is not done").to_string();
    for (transform, named) in [
        (json!({"_target_": "Resized", "keys": "image", "spatial_size": [96, 96, 96]}), "Resized"),
        (json!({"_target_": "Spacingd", "keys": "image", "pixdim": [1, 1, 1], "mode": 3}), "mode = 3"),
        (json!({"_target_": "Spacingd", "keys": "image", "pixdim": [1, 1, 1], "padding_mode": "zeros"}), "padding_mode"),
        (json!({"_target_": "Spacingd", "keys": "image", "pixdim": [1, 1, 1], "diagonal": true}), "diagonal"),
        (json!({"_target_": "Spacingd", "keys": "image", "pixdim": [1, 1]}), "pixdim"),
        (json!({"_target_": "Spacingd", "keys": "image", "pixdim": 1, "dtype": "$np.float32"}), "dtype"),
        (json!({"_target_": "Spacingd", "keys": "image", "pixdim": 1, "align_corners": 1}), "align_corners"),
        (json!({"_target_": "Spacingd", "keys": "image", "pixdim": 1, "lazy": true}), "lazy"),
        (json!({"_target_": "Compose", "transforms": [], "lazy": true}), "lazy"),
        (json!({"_target_": "Orientationd", "keys": "image", "axcodes": "XYZ"}), "axcodes"),
        (json!({"_target_": "CropForegroundd", "keys": "image", "source_key": "label"}), "source_key"),
        (json!({"_target_": "CropForegroundd", "keys": "image", "margin": 1, "mode": "edge"}), "mode"),
        (json!({"_target_": "CropForegroundd", "keys": "image", "select_fn": "$lambda x: x > 1"}), "select_fn"),
        (json!({"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0}), "a_max"),
        (json!({"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 1, "b_min": 0}), "b_max"),
        (json!({"_target_": "ScaleIntensityd", "keys": "image", "factor": 0.5}), "factor"),
        (json!({"_target_": "NormalizeIntensityd", "keys": "image", "divisor": ["x"]}), "divisor"),
        (json!({"_target_": "CastToTyped", "keys": "image", "dtype": "$np.uint8"}), "dtype"),
        (json!({"_target_": "SpatialPadd", "keys": "image", "spatial_size": "$x"}), "spatial_size"),
        (json!({"_target_": "SpatialPadd", "keys": "image", "spatial_size": 8, "mode": "reflect"}), "mode"),
        (json!({"_target_": "DivisiblePadd", "keys": "image", "k": 8, "method": "begin"}), "method"),
        (json!({"_target_": "DivisiblePadd", "keys": "image", "k": 8, "value": 1}), "value"),
        (json!({"_target_": "ClipIntensityPercentilesd", "keys": "image", "lower": 1, "upper": 99, "sharpness_factor": 10}), "sharpness"),
        (json!("$transforms()"), "Python"),
    ] {
        let e = before(transform);
        assert!(e.contains(named), "{e} does not name {named}");
    }
    for (transform, named) in [
        (json!({"_target_": "Activationsd", "keys": "pred", "sigmoid": true}), "no AsDiscreted with a threshold"),
        (json!({"_target_": "Activationsd", "keys": "pred", "sigmoid": true, "softmax": true}), "sigmoid"),
        (json!({"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5, "argmax": true}), "threshold"),
        (json!({"_target_": "AsDiscreted", "keys": "pred", "threshold": "$x"}), "threshold"),
        (json!({"_target_": "KeepLargestConnectedComponentd", "keys": "pred"}), "KeepLargestConnectedComponentd"),
        (json!({"_target_": "RemoveSmallObjectsd", "keys": "pred"}), "RemoveSmallObjectsd"),
        (json!({"_target_": "Invertd", "keys": "pred", "_disabled_": "$not @invert"}), "_disabled_"),
        (json!({"_target_": "Invertd", "keys": "pred", "post_func": "$lambda x: x > 0"}), "post_func"),
        (json!({"_target_": "Invertd", "keys": "pred", "transform": {"_target_": "Compose", "transforms": []}}), "transform"),
        (json!({"_target_": "SaveImaged", "keys": "pred", "scale": 255}), "scale"),
        (json!({"_target_": "SaveImaged", "keys": "pred", "resample": "$@resample"}), "resample"),
        (json!({"_target_": "SaveImaged", "keys": "pred", "resample": true, "mode": "bilinear"}), "mode"),
    ] {
        let e = pipeline(None, Some(&json!([transform]))).map(|_| ()).expect_err("it is not done").to_string();
        assert!(e.contains(named), "{e} does not name {named}");
    }
}

#[test]
fn inferers_are_read() -> Result<(), LoadError> {
    let read = |v: Value| inference(Some(&v));
    let sliding = |more: Value| {
        let mut call = json!({"_target_": "SlidingWindowInferer", "roi_size": 96, "sw_batch_size": 4});
        if let (Some(call), Value::Object(more)) = (call.as_object_mut(), more) {
            call.extend(more);
        }
        call
    };
    assert_eq!(read(sliding(json!({})))?, json!({"mode": "window", "patch": [96, 96, 96], "overlap": 0.25, "scheme": "monai"}));
    let told = sliding(json!({"roi_size": [96, 64, 32], "overlap": [0.5, 0.5, 0.5], "mode": "GAUSSIAN"}));
    assert_eq!(read(told)?, json!({"mode": "window", "patch": [96, 64, 32], "overlap": 0.5, "scheme": "monai_gaussian"}));
    assert_eq!(read(sliding(json!({"roi_size": [-1, -1, -1]})))?, json!({"mode": "whole"}));
    assert_eq!(read(json!({"_target_": "monai.inferers.SimpleInferer"}))?, json!({"mode": "whole"}));
    let sliced = json!({"_target_": "SliceInferer", "roi_size": [16, 24], "spatial_dim": 2, "overlap": 0.5});
    assert_eq!(slices(Some(&sliced))?, Some(2));
    assert_eq!(read(sliced)?, json!({"mode": "window", "patch": [16, 24], "overlap": 0.5, "scheme": "monai"}));
    for (axis, order) in [(0, [0, 1, 2]), (1, [1, 0, 2]), (2, [2, 0, 1])] {
        let pipeline = Pipeline { transforms: vec![Transform::Slices { axis }], ..pipeline(None, None)? };
        assert_eq!(pipeline.recipe().steps.last(), Some(&crate::scan::Step::Transpose { order }));
    }
    let padding = |mode: &str| window_padding(Some(&sliding(json!({"padding_mode": mode}))));
    assert_eq!(padding("constant")?, None);
    assert_eq!(padding("replicate")?, Some(Transform::Pad { least: [96; 3], multiple: [0; 3], end: false, replicate: true }));
    assert!(padding("reflect").is_err_and(|e| e.to_string().contains("padding_mode")));
    for (wrong, named) in [
        (sliding(json!({"roi_size": [96, 96, -1]})), "roi_size"),
        (sliding(json!({"overlap": [0.5, 0.5, 0.25]})), "overlap"),
        (sliding(json!({"mode": "other"})), "mode"),
        (sliding(json!({"sigma_scale": 0.25})), "sigma_scale"),
        (json!({"_target_": "SliceInferer", "roi_size": 16}), "roi_size"),
        (json!({"_target_": "SliceInferer", "roi_size": [16, 16], "spatial_dim": 3}), "spatial_dim"),
        (json!({"_target_": "PatchInferer"}), "PatchInferer"),
        (json!("$inferer()"), "inferer"),
    ] {
        let e = read(wrong).expect_err("it is not done").to_string();
        assert!(e.contains(named), "{e} does not name {named}");
    }
    Ok(())
}

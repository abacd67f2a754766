"""MONAI bundles with small networks of random weights, scans, and what MONAI itself makes of them: its own config parser, transforms and
inferer run each bundle.

pip install torch==2.12.1 monai==1.6.1 nibabel pyyaml einops scikit-image
python3 make_monai.py FOLDER [NAME ..]

Without names: those in tests/vectors/monai, and vnet and swin_unetr, whose weights are too large for the repository.
Each becomes FOLDER/NAME with bundle/, scan_0000.nii.gz and so on, expected.nii.gz and probabilities.nii.gz.
"""
import json
import os
import sys

import nibabel
import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser
from monai.transforms import Activations, AsDiscrete

LOAD = [{"_target_": "LoadImaged", "keys": "image"}, {"_target_": "EnsureChannelFirstd", "keys": "image"}]
RAS = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}
SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
SAVE = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$@bundle_root + '/eval'"}


def invert(nearest):
    return {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image", "nearest_interp": nearest, "to_tensor": True}


CASES = {
    # the way of the UNETR recipe and of most bundles of the zoo, on a scan of other directions and spacing
    "unetr": dict(
        shape=(64, 44, 17), channels=1, spacing=(1.2, 1.3, 2.6), directions="LPS", names=["background", "liver", "spleen"],
        network={"_target_": "UNETR", "in_channels": 1, "out_channels": "$len(@names)", "img_size": "@patch", "feature_size": 4, "hidden_size": 24,
                 "mlp_dim": 48, "num_heads": 3, "proj_type": "perceptron", "norm_name": "instance", "res_block": True, "dropout_rate": 0.0},
        extra={"patch": [32, 32, 32], "names": ["background", "liver", "spleen"]},
        before=LOAD + [RAS, {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
                       {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -175, "a_max": 250, "b_min": 0.0, "b_max": 1.0, "clip": True},
                       {"_target_": "CropForegroundd", "keys": "image", "source_key": "image"}, {"_target_": "EnsureTyped", "keys": "image"}],
        inferer={"_target_": "SlidingWindowInferer", "roi_size": "@patch", "sw_batch_size": 4, "overlap": 0.5},
        after=[SOFTMAX, invert(False), ARGMAX, SAVE]),
    # no orientation, two channels, margins, labels go back
    "dynunet": dict(
        shape=(21, 26, 30), channels=2, spacing=(1.0, 1.5, 0.9), directions="PSR", names=["background", "tumour"], yaml=True,
        network={"_target_": "monai.networks.nets.DynUNet", "spatial_dims": 3, "in_channels": 2, "out_channels": 2,
                 "kernel_size": [3, 3, [3, 3, 1]], "strides": [1, 2, [2, 2, 1]], "upsample_kernel_size": [2, [2, 2, 1]],
                 "filters": [4, 6, 8], "norm_name": "instance", "res_block": True, "deep_supervision": False},
        extra={},
        before=LOAD + [{"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True},
                       {"_target_": "Spacingd", "keys": ["image"], "pixdim": [1.2, 1.2, -1], "mode": ["bilinear"]},
                       {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "margin": [1, 40, 0], "k_divisible": [4, 1, 2]}],
        inferer={"_target_": "SlidingWindowInferer", "roi_size": [16, 24, 20], "overlap": 0.25, "mode": "gaussian"},
        after=[ARGMAX, {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "independent": False, "connectivity": 1}, invert(True), SAVE]),
    # at once, logits go back
    "attention_unet": dict(
        shape=(24, 32, 16), channels=1, spacing=(2.0, 2.0, 2.0), directions="RAS", names=["background", "a", "b"],
        network={"_target_": "AttentionUnet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 6, 8], "strides": [2, 2]},
        extra={},
        before=LOAD + [RAS, {"_target_": "ScaleIntensityRangePercentilesd", "keys": "image", "lower": 2, "upper": 97.5, "b_min": -1, "b_max": 1,
                             "clip": True, "channel_wise": True},
                       {"_target_": "ScaleIntensityd", "keys": "image", "minv": 0.0, "maxv": 2.0}],
        inferer={"_target_": "SimpleInferer"},
        after=[invert(False), SOFTMAX, ARGMAX]),
    # the zoo's spleen bundle, smaller
    "unet": dict(
        shape=(30, 34, 21), channels=1, spacing=(1.4, 1.6, 2.2), directions="LAS", names=["background", "spleen"],
        network={"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 6, 8], "strides": [2, 2],
                 "num_res_units": 2, "norm": "batch"},
        extra={},
        before=LOAD + [RAS, {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
                       {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1, "clip": True},
                       {"_target_": "EnsureTyped", "keys": "image"}],
        inferer={"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 4, "overlap": 0.5},
        after=[SOFTMAX, invert(False), ARGMAX, {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1], "connectivity": 1}, SAVE]),
    "vnet": dict(
        shape=(32, 40, 24), channels=1, spacing=(1.0, 1.0, 1.0), directions="SAR", names=["background", "a"],
        network={"_target_": "VNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "act": ["elu", {"inplace": True}]},
        extra={},
        before=LOAD + [RAS, {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.0, 1.0], "mode": "bilinear"},
                       {"_target_": "NormalizeIntensityd", "keys": "image"}],
        inferer={"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "overlap": 0.5, "mode": "gaussian"},
        after=[SOFTMAX, invert(False), ARGMAX]),
    "unet_bare": dict(
        shape=(16, 20, 12), channels=1, spacing=(1.0, 1.0, 2.0), directions="RAS", names=["background", "a", "b"],
        network={"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 6], "strides": [2],
                 "num_res_units": 2, "norm": None},
        extra={},
        before=LOAD + [RAS, {"_target_": "NormalizeIntensityd", "keys": "image"}],
        inferer={"_target_": "SimpleInferer"},
        after=[SOFTMAX, invert(False), ARGMAX]),
    # the zoo's brain tumours, smaller: labels that overlap, and windows larger than the scan
    "segresnet": dict(
        shape=(26, 22, 11), channels=4, spacing=(1.1, 1.0, 2.0), directions="LPS", names=["Tumor core", "Whole tumor", "Enhancing tumor"],
        network={"_target_": "SegResNet", "blocks_down": [1, 1, 1], "blocks_up": [1, 1], "init_filters": 4, "in_channels": 4, "out_channels": 3,
                 "norm": ["group", {"num_groups": 2}], "dropout_prob": 0.2},
        extra={},
        before=LOAD + [RAS, {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 1.5], "mode": "bilinear"},
                       {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True}],
        inferer={"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 20], "sw_batch_size": 1, "overlap": 0.5, "mode": "gaussian",
                 "padding_mode": "replicate"},
        after=[{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}, invert(False),
               {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}, SAVE]),
    # the zoo's whole body, smaller
    "segresnet_body": dict(
        shape=(25, 30, 21), channels=1, spacing=(2.5, 2.5, 3.5), directions="RAS", names=["background", "a", "b", "c"],
        network={"_target_": "SegResNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 4, "init_filters": 8, "blocks_down": [1, 1],
                 "blocks_up": [1], "dropout_prob": 0.2},
        extra={},
        before=LOAD + [{"_target_": "EnsureTyped", "keys": "image"}, RAS, {"_target_": "Spacingd", "keys": "image", "pixdim": [3.0, 3.0, 3.0], "mode": "bilinear"},
                       {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True},
                       {"_target_": "ClipIntensityPercentilesd", "keys": "image", "lower": 2, "upper": 97},
                       {"_target_": "ScaleIntensityd", "keys": "image", "minv": -1.0, "maxv": 1.0}],
        inferer={"_target_": "SlidingWindowInferer", "roi_size": [32, 16, 16], "sw_batch_size": 1, "overlap": 0.25, "padding_mode": "replicate",
                 "mode": "gaussian", "device": "cpu"},
        after=[SOFTMAX, invert(False), ARGMAX, SAVE]),
    # one label by a threshold, which goes back as a mask; a scan that is padded twice
    "basic_unet": dict(
        shape=(21, 18, 17), channels=1, spacing=(1.0, 1.5, 1.0), directions="RAS", names=["lesion"],
        network={"_target_": "BasicUNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 1, "features": [4, 4, 6, 8, 8, 4]},
        extra={},
        before=LOAD + [RAS, {"_target_": "ScaleIntensityd", "keys": "image"},
                       {"_target_": "SpatialPadd", "keys": "image", "spatial_size": [24, 20, -1], "mode": "edge"},
                       {"_target_": "DivisiblePadd", "keys": "image", "k": 16, "method": "end"}],
        inferer={"_target_": "SimpleInferer"},
        after=[{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}, {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}, invert(True)]),
    "segresnet_ds": dict(
        shape=(18, 20, 12), channels=1, spacing=(1.0, 1.0, 3.0), directions="LAS", names=["background", "a"],
        network={"_target_": "SegResNetDS", "in_channels": 1, "out_channels": 2, "init_filters": 4, "blocks_down": [1, 1, 1], "dsdepth": 2,
                 "norm": "instance", "resolution": [1.0, 1.0, 3.0]},
        extra={},
        before=LOAD + [RAS, {"_target_": "NormalizeIntensityd", "keys": "image"}],
        inferer={"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 8], "overlap": 0.5},
        after=[SOFTMAX, invert(False), ARGMAX]),
    # a network of planes over the slices of a volume
    "unet_slices": dict(
        shape=(22, 19, 9), channels=1, spacing=(1.0, 1.5, 3.0), directions="LAS", names=["background", "a", "b"],
        network={"_target_": "UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 3, "channels": [4, 6], "strides": [2], "num_res_units": 1},
        extra={},
        before=LOAD + [RAS, {"_target_": "Spacingd", "keys": "image", "pixdim": [1.2, 1.2, -1], "mode": "bilinear"},
                       {"_target_": "NormalizeIntensityd", "keys": "image"}],
        inferer={"_target_": "SliceInferer", "roi_size": [16, 12], "sw_batch_size": 4, "overlap": 0.25, "spatial_dim": 2},
        after=[SOFTMAX, invert(False), ARGMAX, {"_target_": "RemoveSmallObjectsd", "keys": "pred", "min_size": 1000},
               {"_target_": "FillHolesd", "keys": "pred"}]),
    # the zoo's abdomen, smaller
    "swin_unetr": dict(
        shape=(38, 40, 35), channels=1, spacing=(1.4, 1.6, 2.2), directions="LAS", names=["background", "a", "b"],
        network={"_target_": "SwinUNETR", "in_channels": 1, "out_channels": 3, "feature_size": 12, "use_checkpoint": True},
        extra={},
        before=LOAD + [RAS, {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
                       {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -175, "a_max": 250, "b_min": 0, "b_max": 1, "clip": True},
                       {"_target_": "EnsureTyped", "keys": "image"}],
        inferer={"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 64], "sw_batch_size": 4, "overlap": 0.5},
        after=[SOFTMAX, invert(False), ARGMAX, SAVE]),
}
COLUMNS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}


def scan(case, rng):
    """Smooth blobs in a box of air, the values of a CT."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in case["shape"]], indexing="ij"))
    values = np.full(case["shape"], -1000.0)
    body = (np.abs(grid) < np.array([0.8, 0.85, 0.9])[:, None, None, None]).all(0)
    values[body] = 0.0
    for _ in range(12):
        centre, width = rng.uniform(-0.7, 0.7, 3), rng.uniform(0.1, 0.5)
        blob = np.exp(-((grid - centre[:, None, None, None]) ** 2).sum(0) / width**2)
        values += np.where(body, rng.uniform(-200, 250) * blob, 0)
    values += np.where(body, rng.normal(0, 8, case["shape"]), 0)
    return np.round(values).astype(np.int16)


def make(folder, name):
    case = CASES[name]
    seed = list(CASES).index(name)
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    bundle = os.path.join(folder, name, "bundle")
    os.makedirs(os.path.join(bundle, "configs"), exist_ok=True)
    os.makedirs(os.path.join(bundle, "models"), exist_ok=True)
    network = dict(case["network"])
    config = {"imports": ["$import glob"], "bundle_root": ".", "device": "$torch.device('cpu')", **case["extra"], "network_def": network,
              "network": "$@network_def.to(@device)", "preprocessing": {"_target_": "Compose", "transforms": case["before"]},
              "inferer": case["inferer"], "postprocessing": {"_target_": "Compose", "transforms": case["after"]},
              "checkpointloader": {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'", "load_dict": {"model": "@network"}}}
    metadata = {"version": "0.1.0", "monai_version": "1.6.1", "name": f"{name} of random weights", "network_data_format": {
        "inputs": {"image": {"num_channels": case["channels"], "channel_def": {str(i): f"channel {i}" for i in range(case["channels"])}}},
        "outputs": {"pred": {"channel_def": {str(i): n for i, n in enumerate(case["names"])}}}}}
    with open(os.path.join(bundle, "configs", "inference.yaml" if case.get("yaml") else "inference.json"), "w") as f:
        yaml.safe_dump(config, f, sort_keys=False) if case.get("yaml") else json.dump(config, f, indent=1)
    with open(os.path.join(bundle, "configs", "metadata.json"), "w") as f:
        json.dump(metadata, f, indent=1)

    files = []
    for channel in range(case["channels"]):
        affine = np.eye(4)
        affine[:3, :3] = np.array([COLUMNS[d] for d in case["directions"]]).T * np.array(case["spacing"])
        affine[:3, 3] = (-20.5, 13.0, 7.25)
        files.append(os.path.join(folder, name, f"scan_{channel:04d}.nii.gz"))
        nibabel.save(nibabel.Nifti1Image(scan(case, rng), affine), files[-1])

    parser = ConfigParser()
    parser.read_config(os.path.join(bundle, "configs", "inference.yaml" if case.get("yaml") else "inference.json"))
    net = parser.get_parsed_content("network").eval()
    # 16 bits a weight: the file is half as large and holds them exactly
    state = {}
    for key, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            if key.endswith(("running_mean",)):
                tensor = torch.randn_like(tensor) * 0.2
            elif key.endswith("running_var"):
                tensor = torch.rand_like(tensor) + 0.5
            tensor = tensor.half()
        state[key] = tensor
    torch.save(state, os.path.join(bundle, "models", "model.pt"))
    net.load_state_dict(state)
    before, after, inferer = [parser.get_parsed_content(key) for key in ("preprocessing", "postprocessing", "inferer")]
    data = before({"image": files if len(files) > 1 else files[0]})
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], net)[0]
    # classes in equal parts, or few voxels would have another than the first
    head = {"unetr": "out.conv.conv.bias", "dynunet": "output_block.conv.conv.bias", "attention_unet": "model.2.conv.bias", "vnet": "out_tr.conv2.bias",
            "unet": "model.2.1.conv.unit0.conv.bias", "unet_bare": "model.2.1.conv.unit0.conv.bias", "unet_slices": "model.2.1.conv.unit0.conv.bias", "segresnet": "conv_final.2.conv.bias", "segresnet_body": "conv_final.2.conv.bias",
            "basic_unet": "final_conv.bias", "segresnet_ds": "up_layers.1.head.bias", "swin_unetr": "out.conv.conv.bias"}[name]
    spread = data["pred"].flatten(1)
    state[head] = (net.state_dict()[head] - torch.as_tensor(spread.as_tensor()).median(1).values).half()
    torch.save(state, os.path.join(bundle, "models", "model.pt"))
    net.load_state_dict(state)
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], net)[0]
    keep = [t for t in after.transforms if type(t).__name__ != "SaveImaged"]
    probabilities = labels = dict(data)
    for transform in keep:
        labels = transform(labels)
        if type(transform).__name__ not in ("AsDiscreted", "KeepLargestConnectedComponentd", "RemoveSmallObjectsd", "FillHolesd"):
            probabilities = transform(probabilities)
    probabilities = probabilities["pred"]
    if name in ("dynunet", "basic_unet"):
        # their labels go back; their probabilities are those of the same way, read linearly
        from monai.transforms import Invertd
        soft = dict(data)
        soft["pred"] = Activations(softmax=name == "dynunet", sigmoid=name == "basic_unet")(soft["pred"])
        probabilities = Invertd(keys="pred", transform=before, orig_keys="image", nearest_interp=False)(soft)["pred"]
    labels = np.moveaxis(labels["pred"].numpy(), 0, -1).astype(np.uint8)
    labels = labels[..., 0] if labels.shape[-1] == 1 else labels
    nibabel.save(nibabel.Nifti1Image(labels, affine), os.path.join(folder, name, "expected.nii.gz"))
    maps = np.moveaxis(probabilities.numpy().astype(np.float32), 0, -1)
    nibabel.save(nibabel.Nifti1Image(maps, affine), os.path.join(folder, name, "probabilities.nii.gz"))
    print(name, "network input", tuple(data["image"].shape), "voxels of each label", np.bincount(labels.ravel()).tolist(),
          "weights", os.path.getsize(os.path.join(bundle, "models", "model.pt")))


for chosen in sys.argv[2:] or CASES:
    make(sys.argv[1], chosen)

"""What MONAI makes of scans on every sort of grid: oblique, sheared, permuted and flipped, by sform, by qform, by both and by neither,
whose spacings make ties, whose headers contradict themselves; with `Spacingd` between and around other transforms, and the way back.

pip install torch monai==1.6.1 nibabel
python3 make_grids.py FOLDER [COUNT]

FOLDER becomes as tests/vectors/monai_grids is (COUNT 40): bundle/, whose preprocessing and postprocessing cases.json says for each case, the voxels and
headers of the scans, and MONAI's labels, probabilities of the last class (times 65535) and affine of what it writes. All of it on a CPU with
AVX-512: on oblique grids the last bits of an affine are other without.
"""
import json
import os
import shutil
import sys
import tempfile

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Invertd
from safetensors.numpy import save_file

LOAD = [{"_target_": "LoadImaged", "keys": "image"}, {"_target_": "EnsureChannelFirstd", "keys": "image"}]
SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
CROP = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "margin": [2, 0, 1]}
SCALE = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 900, "b_min": 0, "b_max": 1, "clip": True}


def turn(axcodes):
    return {"_target_": "Orientationd", "keys": "image", "axcodes": axcodes}


def space(pixdim, **more):
    return {"_target_": "Spacingd", "keys": "image", "pixdim": pixdim, "mode": "bilinear", **more}


def invert(nearest):
    return {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image", "nearest_interp": nearest, "to_tensor": True}


def save(resample):
    return {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output", "resample": resample, "separate_folder": False}


SOFT = [SOFTMAX, invert(False), ARGMAX]
VARIANTS = [
    ([turn("RAS"), space([1.5, 1.5, 2.0]), SCALE], SOFT),
    ([space([2.0, 2.0, 2.0]), SCALE], [ARGMAX, invert(True)]),
    ([space([1.1, 1.7, -1.0]), turn("RAS"), SCALE, CROP], SOFT),
    ([CROP, turn("LPI"), space([1.0, 1.0, 1.0], mode="nearest"), SCALE], [SOFTMAX, invert(True), ARGMAX]),
    ([turn("PSR"), space([0.75, 1.0, 1.25], align_corners=True), SCALE], [invert(False), SOFTMAX, ARGMAX]),
    ([turn("RAS"), space([1.5, 1.5, 2.0]), turn("SPL"), space([2.0, 1.0, 1.0]), SCALE], SOFT),
    ([turn("RAS"), space([1.5, 1.5, 1.5]), SCALE, CROP], [SOFTMAX, ARGMAX, save(True)]),
    ([turn("AIL"), space([1.5, 1.5, 1.5]), SCALE, CROP], [SOFTMAX, ARGMAX, save(False)]),
]
SHAPES = [(14, 12, 11), (9, 16, 13), (17, 8, 12)]


def rotation(rng, degrees):
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    a = np.radians(degrees)
    return np.eye(3) + np.sin(a) * k + (1 - np.cos(a)) * k @ k


def header(rng, number, shape):
    """A header; the kind of its grid goes with the number."""
    kind = ["sform", "qform", "both", "shear", "straight", "tiny", "quarter", "neither", "contradiction"][number % 9]
    nice = rng.choice([0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 0.9, 1.3, 2.2], 3)
    spacing = nice if number % 2 else rng.uniform(0.6, 2.6, 3)
    permuted = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    turned = {"straight": 0, "neither": 0, "tiny": 10.0 ** rng.uniform(-8, -4), "quarter": 0}.get(kind, rng.choice([1, 3, 10, 25, 40]))
    linear = rotation(rng, turned) @ permuted
    if kind == "shear":
        linear = linear @ (np.eye(3) + np.triu(rng.uniform(-0.3, 0.3, (3, 3)), 1))
    affine = np.eye(4)
    affine[:3, :3] = linear * spacing
    affine[:3, 3] = rng.uniform(-90, 90, 3)
    h = nibabel.Nifti1Header()
    h.set_data_shape(shape)
    h.set_data_dtype(np.int16)
    h.set_zooms(spacing)
    if kind == "quarter":
        # turns about the axes by quarters, whose quaternions hold the roots of a half in 32 bits
        rotated = np.linalg.matrix_power(np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), rng.integers(1, 4))
        affine[:3, :3] = (permuted if rng.random() < 0.5 else rotated) * spacing
    if kind in ("qform", "both", "quarter", "contradiction"):
        h.set_qform(affine, 1)
    if kind in ("sform", "both", "shear", "straight", "tiny", "contradiction"):
        h.set_sform(affine, 1)
    if kind == "contradiction":
        other = [np.eye(4), affine @ np.diag([1.00004, 1, 1, 1]), affine @ np.diag([1, 2, 1, 1])][number // 9 % 3]
        h.set_sform(other, 2)
    h["xyzt_units"] = 0
    h["vox_offset"] = 352
    h["magic"] = b"n+1"
    return h


def body(rng, shape):
    """Noise and a gradient in a box of zeros."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    values = 400 + 250 * np.sin(grid * np.array([3, 4, 5])[:, None, None, None]).sum(0) + rng.normal(0, 120, shape)
    values[(np.abs(grid) > np.array([0.7, 0.8, 0.75])[:, None, None, None]).any(0)] = 0
    return np.maximum(np.round(values), 0).astype(np.int16)


def make(folder, count):
    rng = np.random.default_rng(7)
    torch.manual_seed(7)
    os.makedirs(os.path.join(folder, "bundle", "configs"), exist_ok=True)
    os.makedirs(os.path.join(folder, "bundle", "models"), exist_ok=True)
    network = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 6], "strides": [2], "num_res_units": 1}
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 4, "overlap": 0.25}
    config = {"network_def": network, "inferer": inferer, "output": "eval"}
    with open(os.path.join(folder, "bundle", "configs", "inference.json"), "w") as f:
        json.dump(config, f, indent=1)
    voxels = [body(rng, shape) for shape in SHAPES]
    arrays = {f"voxels{i}": v.transpose(2, 1, 0).copy() for i, v in enumerate(voxels)}
    net, cases = None, []
    for number in range(count):
        which = int(rng.integers(3))
        before, after = VARIANTS[number % len(VARIANTS)]
        h = header(rng, number, SHAPES[which])
        work = tempfile.mkdtemp()
        file = os.path.join(work, "scan.nii")
        with open(file, "wb") as f:
            f.write(h.binaryblock + bytes(4) + voxels[which].tobytes(order="F"))
        parser = ConfigParser({**config, "output": work, "preprocessing": {"_target_": "Compose", "transforms": LOAD + before},
                               "postprocessing": {"_target_": "Compose", "transforms": after}})
        prepare, finish, infer = [parser.get_parsed_content(key) for key in ("preprocessing", "postprocessing", "inferer")]
        if net is None:
            net = parser.get_parsed_content("network_def").eval()
            state = {k: (v.half() if v.is_floating_point() else v) for k, v in net.state_dict().items()}
        data = prepare({"image": file})
        if number == 0:
            # classes in equal parts, or few voxels would have another than the first
            net.load_state_dict(state)
            with torch.no_grad():
                spread = infer(data["image"][None], net)[0].flatten(1).as_tensor()
            bias = [k for k in state if k.endswith("bias")][-1]
            state[bias] = (state[bias] - spread.median(1).values).half()
            torch.save(state, os.path.join(folder, "bundle", "models", "model.pt"))
            net.load_state_dict(state)
        with torch.no_grad():
            data["pred"] = infer(data["image"][None], net)[0]
        labels, soft = dict(data), dict(data)
        steps = finish.transforms
        names = [type(t).__name__ for t in steps]
        for t in steps:
            labels = t(labels)
        if "Invertd" in names:
            # the labels of hard inversions come with probabilities on the same way, read linearly
            if names[0] == "AsDiscreted":
                steps = [Invertd(keys="pred", transform=prepare, orig_keys="image", nearest_interp=False)]
                soft["pred"] = torch.softmax(soft["pred"], 0)
            for t in steps:
                soft = t(soft) if type(t).__name__ != "AsDiscreted" else soft
            labels, affine = labels["pred"].numpy()[0], None
            soft = soft["pred"].numpy()[-1]
        else:
            saved = nibabel.load(os.path.join(work, "scan_trans.nii.gz"))
            labels, affine = np.asarray(saved.dataobj), None if after[-1]["resample"] else saved.affine
            soft = None
        name = f"case{number:03d}"
        arrays[f"{name}.header"] = np.frombuffer(h.binaryblock, np.uint8)
        arrays[f"{name}.labels"] = np.ascontiguousarray(labels.T.astype(np.uint8))
        if affine is not None:
            arrays[f"{name}.affine"] = affine
        if soft is not None:
            arrays[f"{name}.probability"] = np.ascontiguousarray(np.round(soft.T * 65535).astype(np.uint16))
        cases.append({"name": name, "voxels": which, "preprocessing": before, "postprocessing": after})
        print(name, "input", tuple(data["image"].shape), "voxels of each label", np.bincount(arrays[f"{name}.labels"].ravel()).tolist())
        shutil.rmtree(work)
    save_file(arrays, os.path.join(folder, "grids.safetensors"))
    with open(os.path.join(folder, "cases.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


make(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 40)

"""nnU-Net's predictor: file names, arguments, and the labels of nnunetv2 2.8.1."""

import json
import pickle
import shutil
from itertools import pairwise

import nibabel
import numpy as np
import pytest
import SimpleITK

import organum
from organum.nnunet import nnUNetPredictor, predict_from_files

KINDS = "tests/vectors/nnunet_kinds"


@pytest.fixture(scope="module")
def case(root):
    return root / "tests/vectors/nnunet"


@pytest.fixture(scope="module")
def predictor(case):
    made = nnUNetPredictor(
        device="cpu", allow_tqdm=False, verbose=False, perform_everything_on_device=True
    )
    made.initialize_from_trained_model_folder(
        str(case / "model"), use_folds=(0,), checkpoint_name="checkpoint_final.pth"
    )
    return made


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


@pytest.fixture
def source(case, tmp_path):
    folder = tmp_path / "imagesTs"
    folder.mkdir()
    for name in ("a", "b_c"):
        shutil.copy(case / "case_0000.nii.gz", folder / f"{name}_0000.nii.gz")
    (folder / "readme_0000.txt").write_text("no scan")
    return folder


def test_folders_as_nnunet_names_them(predictor, case, source, tmp_path):
    out = tmp_path / "new" / "predictions"
    assert predictor.predict_from_files(str(source), str(out)) == [None, None]
    names = [
        "a.nii.gz",
        "b_c.nii.gz",
        "dataset.json",
        "plans.json",
        "predict_from_raw_data_args.json",
    ]
    assert sorted(p.name for p in out.iterdir()) == names
    for name in names[:2]:
        assert np.array_equal(voxels(out / name), voxels(case / "expected.nii.gz"))
        assert nibabel.load(out / name).get_data_dtype() == np.uint8
    for name in ("dataset.json", "plans.json"):
        assert json.loads((out / name).read_text()) == json.loads(
            (case / "model" / name).read_text()
        )
    told = json.loads((out / "predict_from_raw_data_args.json").read_text())
    assert told["list_of_lists_or_source_folder"] == str(source) and told["num_parts"] == 1


def test_parts_and_overwriting(predictor, source, tmp_path):
    assert predictor.predict_from_files(source, tmp_path / "out", num_parts=2, part_id=1) == [None]
    there = tmp_path / "out" / "b_c.nii.gz"
    assert there.exists() and not (tmp_path / "out" / "a.nii.gz").exists()
    there.write_bytes(b"kept")
    assert predictor.predict_from_files(source, tmp_path / "out", overwrite=False) == [None]
    assert there.read_bytes() == b"kept"
    assert predictor.predict_from_files(source, tmp_path / "out", overwrite=False) is None
    with pytest.raises(organum.OptionError, match="part_id"):
        predictor.predict_from_files(source, tmp_path / "out", num_parts=2, part_id=2)


def test_lists_and_probabilities(predictor, case, tmp_path):
    files = [[str(case / "case_0000.nii.gz")]]
    assert predictor.predict_from_files_sequential(
        files, [str(tmp_path / "x")], save_probabilities=True
    ) == [None]
    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(case / "expected.nii.gz")))
    maps = np.load(tmp_path / "x.npz")["probabilities"]
    assert maps.shape == (3, *expected.shape) and np.array_equal(maps.argmax(axis=0), expected)
    properties = pickle.loads((tmp_path / "x.pkl").read_bytes())
    image = SimpleITK.ReadImage(files[0][0])
    assert np.allclose(properties["sitk_stuff"]["spacing"], image.GetSpacing())
    assert np.allclose(properties["sitk_stuff"]["origin"], image.GetOrigin())
    assert np.allclose(properties["sitk_stuff"]["direction"], image.GetDirection())
    assert tuple(properties["shape_before_cropping"]) == expected.shape
    [labels] = predictor.predict_from_files(files, None)
    assert np.array_equal(labels, expected)
    [(labels, again)] = predictor.predict_from_files(files, None, save_probabilities=True)
    assert np.array_equal(labels, expected) and np.array_equal(again, maps)
    with pytest.raises(organum.OptionError, match="1 cases"):
        predictor.predict_from_files(files, ["x", "y"])


def test_arrays(predictor, case, tmp_path):
    image = SimpleITK.ReadImage(str(case / "case_0000.nii.gz"))
    array = SimpleITK.GetArrayFromImage(image)[None].astype(np.float32)
    properties = {"spacing": list(image.GetSpacing()[::-1])}
    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(case / "expected.nii.gz")))
    assert np.array_equal(predictor.predict_single_npy_array(array, properties), expected)
    labels, maps = predictor.predict_single_npy_array(array, properties, None, None, True)
    assert np.array_equal(labels, expected) and maps.shape == (3, *expected.shape)
    found = predictor.predict_from_list_of_npy_arrays([array, array], None, [properties] * 2, None)
    assert len(found) == 2 and np.array_equal(found[1], expected)
    assert (
        predictor.predict_single_npy_array(
            array, properties, output_file_truncated=str(tmp_path / "x")
        )
        is None
    )
    assert np.array_equal(voxels(tmp_path / "x.nii.gz").T, expected)
    with pytest.raises(ValueError, match="with spacing"):
        predictor.predict_single_npy_array(array[0], properties)


def test_a_bad_case_is_named_and_leaves_nothing_half_written(predictor, source, tmp_path):
    (source / "b_c_0000.nii.gz").write_bytes(b"no scan")
    with pytest.raises(organum.ScanError, match="b_c_0000"):
        predictor.predict_from_files(source, tmp_path / "out")
    assert (tmp_path / "out" / "a.nii.gz").exists()
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith((".", "b_c"))]


def test_what_is_not_done_is_refused(predictor, source, tmp_path, case):
    with pytest.raises(organum.OptionError, match="use_gaussian"):
        nnUNetPredictor(use_gaussian=False)
    with pytest.raises(organum.OptionError, match="cascades"):
        predictor.predict_from_files(source, tmp_path / "out", folder_with_segs_from_prev_stage="x")
    with pytest.raises(organum.OptionError, match="cascades"):
        predictor.predict_single_npy_array(
            np.zeros((1, 4, 4, 4)), {"spacing": [1, 1, 1]}, np.zeros((4, 4, 4))
        )
    with pytest.raises(RuntimeError, match="initialize"):
        nnUNetPredictor().predict_from_files(source, tmp_path / "out")
    with pytest.raises(organum.LoadError) as e:
        nnUNetPredictor().initialize_from_trained_model_folder(
            case / "model", None, "checkpoint_best.pth"
        )
    assert e.value.kind == "load.not_found"
    assert not (tmp_path / "out").exists()


def test_every_kind_of_model_in_one_call(root, case, tmp_path):
    options = {
        "--step-size": "tile_step_size",
        "--fold": "use_folds",
        "--checkpoint": "checkpoint_name",
    }
    kinds = sorted((root / KINDS).iterdir())
    assert len(kinds) > 15
    for kind in kinds:
        args = json.loads((kind / "case.json").read_text())["args"]
        more = {}
        for name, value in pairwise([*args, None]):
            if name == "--no-mirror":
                more["use_mirroring"] = False
            elif name == "--overlap":
                more["tile_step_size"] = 1 - float(value)
            elif name in options:
                more[options[name]] = float(value) if name == "--step-size" else value
        if "checkpoint_name" in more:
            more["checkpoint_name"] = f"checkpoint_{more['checkpoint_name']}.pth"
        if "use_folds" in more:
            more["use_folds"] = more["use_folds"].split(",")
        files, out = [[case / "case_0000.nii.gz"]], [tmp_path / kind.name]
        predict_from_files(files, out, kind, device="cpu", allow_tqdm=False, **more)
        differing = (
            voxels(tmp_path / f"{kind.name}.nii.gz") != voxels(kind / "expected.nii.gz")
        ).sum()
        # of `all`, a voxel's two highest 16-bit logits are neighbours
        assert differing <= (1 if kind.name == "all" else 0), (
            f"{kind.name}: {differing} voxels differ"
        )

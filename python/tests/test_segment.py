"""Scans of every kind through a model: labels are those of PyTorch, on the grid of the image."""

import os
import signal
import threading
import time
import warnings

import nibabel
import numpy as np
import pytest
import SimpleITK
from tqdm import tqdm

import organum


@pytest.fixture(scope="module")
def expected(labels_file):
    return np.asarray(nibabel.load(labels_file).dataobj)


def test_a_nibabel_image_gives_one_on_its_grid(model, scan_file, expected):
    image = nibabel.load(scan_file)
    labels = model.segment(image)
    assert isinstance(labels, nibabel.Nifti1Image)
    assert labels.get_data_dtype() == np.uint8
    assert np.array_equal(labels.affine, image.affine)
    assert np.array_equal(np.asarray(labels.dataobj), expected)


def test_images_in_other_formats_and_axes(model, scan_file, expected):
    image = nibabel.load(scan_file)
    turned = nibabel.as_closest_canonical(image).slicer[::-1, :, ::-1]
    labels = model.segment(turned)
    back = np.asarray(nibabel.as_closest_canonical(labels).dataobj)
    assert np.array_equal(
        back,
        np.asarray(
            nibabel.as_closest_canonical(nibabel.Nifti1Image(expected, image.affine)).dataobj
        ),
    )
    voxels = image.get_fdata(dtype=np.float32)
    for other in (
        nibabel.MGHImage(voxels, image.affine),
        nibabel.Nifti2Image(voxels, image.affine),
    ):
        labels = model.segment(other)
        assert np.array_equal(np.asarray(labels.dataobj), expected)
        assert np.allclose(labels.affine, image.affine)


def test_an_affine_that_was_changed_counts(model, scan_file):
    image = nibabel.load(scan_file)
    image.affine[:3, :3] *= 2
    with pytest.warns(organum.ScanWarning, match="field of view"):
        found = model.segmentation(image)
    assert np.allclose(found.affine, image.affine)
    before = model.segmentation(nibabel.load(scan_file))
    # at half the resolution of the model, twice as many voxels along each axis
    doubled = [2 * n for n in (45, 50, 36)]
    assert all(a >= n for a, n in zip(found.report["plan"]["extent"], doubled, strict=True))
    assert before.report["plan"]["extent"] == [48, 56, 40]


def test_a_simpleitk_image_gives_one_on_its_grid(model, scan_file, labels_file):
    image = SimpleITK.ReadImage(str(scan_file))
    labels = model.segment(image)
    reference = SimpleITK.ReadImage(str(labels_file))
    assert np.array_equal(
        SimpleITK.GetArrayFromImage(labels), SimpleITK.GetArrayFromImage(reference)
    )
    for side in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
        assert getattr(labels, side)() == getattr(image, side)()


def test_arrays_by_affine_and_by_axes(model, scan_file, expected):
    image = nibabel.load(scan_file)
    voxels = np.asarray(image.dataobj)
    assert np.array_equal(model.segment(voxels, affine=image.affine), expected)
    scan = organum.read(scan_file)
    assert np.array_equal(scan.affine, image.affine)
    array = scan.array()
    assert array.shape == scan.shape and np.array_equal(array[0].T, voxels)
    for given in (array, array[0], array[0].astype(np.float64), np.asfortranarray(array[0])):
        labels = model.segment(given, spacing=scan.spacing, axes=scan.axes)
        assert labels.dtype == np.uint8 and np.array_equal(labels.T, expected)


def test_an_array_must_say_where_it_lies(model):
    array = np.zeros((16, 16, 16), np.float32)
    for told in ({}, {"spacing": (1, 1, 1)}, {"axes": "SAR"}):
        with pytest.raises(TypeError, match="spacing="):
            model.segment(array, **told)
    with pytest.raises(TypeError, match="either"):
        model.segment(array, affine=np.eye(4), axes="SAR")
    with pytest.raises(TypeError, match="for arrays"):
        model.segment(nibabel.Nifti1Image(array, np.eye(4)), axes="SAR")
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        model.segment(array, affine=np.eye(3))
    with pytest.raises(ValueError, match="neither"):
        model.segment(array[0], spacing=(1, 1, 1), axes="SAR")
    with pytest.raises(organum.ScanError) as e:
        model.segment(array, spacing=(1, 1, 1), axes="XYZ")
    assert e.value.kind == "volume.format" and e.value.exit_code == 3
    with pytest.raises(organum.ScanError, match="degenerate"):
        model.segment(array, affine=np.diag([1, 1, 0, 1]))
    array[3, 4, 5] = np.nan
    with pytest.raises(organum.ScanError, match="plane 3, row 4, column 5") as e:
        model.segment(array, spacing=(1, 1, 1), axes="SAR")
    assert e.value.kind == "volume.non_finite"


def test_files_and_results(model, scan_file, expected, tmp_path):
    found = model.segmentation(scan_file, probabilities=True)
    assert np.array_equal(found.array.T, expected) and found.labels is found.array
    assert found.probabilities.shape == (3, *found.array.shape)
    assert np.allclose(found.probabilities.sum(axis=0), 1, atol=1e-5)
    assert np.array_equal(found.probabilities.argmax(axis=0), found.array)
    assert list(found.volumes) == ["anterior hippocampus", "posterior hippocampus"]
    assert found.volumes["anterior hippocampus"]["voxels"] == (expected == 1).sum()
    assert found.report["device"] == "cpu" and found.report["plan"]["peak_bytes"] > 0
    assert found.keeps_grid and np.array_equal(found.affine, nibabel.load(scan_file).affine)
    for name in ("a.nii.gz", "a.nrrd", "a.mha", "a.seg.nrrd"):
        found.save(tmp_path / name)
        assert np.array_equal(
            SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / name))), found.array
        )
    for name, kind in (
        ("a.txt", "volume.unsupported"),
        ("no/a.nii", "volume.not_found"),
        ("a.dcm", "volume.unsupported"),
    ):
        with pytest.raises(organum.ScanError) as e:
            found.save(tmp_path / name)
        assert e.value.kind == kind
    assert len(list(tmp_path.iterdir())) == 4


def test_the_budget_changes_no_bit_and_names_the_smallest(model, scan_file, expected):
    with pytest.raises(organum.PlanError) as e:
        model.segment(scan_file, memory="1KiB")
    assert e.value.kind == "plan.budget" and e.value.exit_code == 5
    found = model.segmentation(scan_file, memory=e.value.smallest_budget)
    assert np.array_equal(found.array.T, expected)
    assert found.report["allocated_bytes"] <= e.value.smallest_budget
    with pytest.raises(ValueError, match="parsecs"):
        model.segment(scan_file, memory="12 parsecs")


def test_plans_need_no_device(model, scan_file):
    planned = model.plan((48, 56, 40), memory="64MiB", caps="host")
    assert planned["extent"] == [48, 56, 40] and planned["peak_bytes"] <= 64 << 20
    assert model.plan(scan_file)["extent"] == [48, 56, 40]
    with pytest.raises(organum.PlanError) as e:
        model.plan((48, 56, 40), memory=1000)
    assert e.value.smallest_budget > 1000
    with pytest.raises(organum.PlanError) as e:
        model.plan((41, 56, 40))
    assert e.value.kind == "plan.extent"
    with pytest.raises(ValueError, match="caps"):
        model.plan((48, 56, 40), caps="toaster")


def test_the_network_alone(model):
    random = np.random.default_rng(7)
    array = random.normal(size=(1, 16, 24, 16)).astype(np.float32)
    logits = model.infer(array)
    assert logits.shape == (3, 16, 24, 16) and logits.dtype == np.float32
    batch = model.infer(array[None])
    assert batch.shape == (1, 3, 16, 24, 16) and np.array_equal(batch[0], logits)
    assert np.array_equal(model.infer(array.astype(np.float64)), logits)

    class OfDlpack:
        """As a tensor of another library: it gives its memory away and is no array."""

        def __dlpack__(self, **how):
            return array.__dlpack__(**how)

        def __dlpack_device__(self):
            return array.__dlpack_device__()

    assert np.array_equal(model.infer(OfDlpack()), logits)
    half = model.infer(array, precision="float16")
    assert 0 < np.linalg.norm(half - logits) / np.linalg.norm(logits) < 5e-3
    with pytest.raises(ValueError, match="channels"):
        model.infer(np.zeros((2, 16, 16, 16), np.float32))
    with pytest.raises(ValueError, match=r"\(C, D, H, W\)"):
        model.infer(array[0])
    with pytest.raises(organum.PlanError):
        model.infer(array[:, :15])
    array[0, 0, 0, 0] = np.inf
    with pytest.raises(organum.RunError) as e:
        model.infer(array)
    assert e.value.kind == "run.non_finite"


def test_progress_is_told_and_stops_the_run(model, scan_file, expected):
    told = []
    model.segment(scan_file, progress=lambda done, total: told.append((done, total)))
    assert told and told[-1][0] == told[-1][1] and told == sorted(told)
    bar = tqdm(disable=False, file=open(os.devnull, "w"))
    model.segment(scan_file, progress=bar)
    assert bar.n == bar.total == told[-1][1]
    model.segment(scan_file, progress=tqdm)

    def stop(done, total):
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        model.segment(scan_file, progress=stop)
    assert np.array_equal(model.segment(scan_file).T, expected)
    with pytest.raises(TypeError, match="progress"):
        model.segment(scan_file, progress=3)


def test_ctrl_c_stops_the_run(model):
    array = np.random.default_rng(1).normal(size=(1, 128, 128, 128)).astype(np.float32)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        model.infer(array)
    assert time.monotonic() - started < 30
    assert model.infer(array[:, :16, :16, :16]).shape == (3, 16, 16, 16)


def test_other_threads_go_on(model):
    array = np.random.default_rng(1).normal(size=(1, 64, 64, 64)).astype(np.float32)
    results, beats = [], 0
    threads = [
        threading.Thread(target=lambda: results.append(model.infer(array))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        beats += 1
        time.sleep(0.001)
    assert len(results) == 2 and np.array_equal(results[0], results[1])
    assert beats > 10


def test_warnings_come_before_the_run_and_may_refuse_it(model, scan_file):
    image = nibabel.load(scan_file)
    far = nibabel.Nifti1Image(image.get_fdata() - 1e4, image.affine)
    with pytest.warns(organum.ScanWarning):
        model.segment(far)
    with warnings.catch_warnings():
        warnings.simplefilter("error", organum.ScanWarning)
        with pytest.raises(organum.ScanWarning):
            model.segment(far, progress=lambda *_: pytest.fail("it ran"))


def test_models_tell_what_they_are(model, root):
    assert model.labels == {1: "anterior hippocampus", 2: "posterior hippocampus"}
    assert (model.dims, model.channels, model.classes) == (3, 1, 3)
    assert model.card["architecture"] == "u_transformer"
    with pytest.raises(organum.LoadError) as e:
        organum.open(root / "no such model")
    assert e.value.kind == "load.not_found" and e.value.exit_code == 4
    with pytest.raises(organum.OptionError):
        model.segment(root / "weights/demo/mni152_hippocampus_left.nii.gz", mode="slices")
    with pytest.raises(ValueError, match="mode"):
        model.segment(root / "weights/demo/mni152_hippocampus_left.nii.gz", mode="squares")
    with pytest.raises(organum.DeviceError) as e:
        model.infer(np.zeros((1, 16, 16, 16), np.float32), device="no such adapter")
    assert e.value.kind == "engine.no_adapter"
    assert organum.devices()[-1]["name"] == "cpu"
    with organum.open(root / "weights/hippocampus_unet.safetensors", device="cpu") as other:
        assert other.infer(np.ones((1, 16, 16, 16), np.float32)).shape == (3, 16, 16, 16)


def test_files_that_are_none(tmp_path):
    with pytest.raises(organum.ScanError) as e:
        organum.read(tmp_path / "none.nii")
    assert e.value.kind == "volume.not_found"
    (tmp_path / "bad.nii").write_bytes(b"not a header")
    with pytest.raises(organum.ScanError) as e:
        organum.read(tmp_path / "bad.nii")
    assert e.value.kind == "volume.format"

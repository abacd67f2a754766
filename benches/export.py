"""Times the export of class scores beside nnunetv2's, in turn, and compares every voxel.

    /path/to/python benches/export.py 117 150x256x256 [--random] [--rounds 3] [--ours-only]

Needs nnunetv2 2.8.1 in that Python. The scores are at 1.5 mm, the scan at 1 mm. `--random` draws each
score by itself, so that hardly a tile has a class that is ahead everywhere; without it the classes
are Voronoi cells with soft borders, as a trained network's are. nnunetv2's time is that of
`convert_predicted_logits_to_segmentation_with_correct_shape`, which its
`export_prediction_from_logits` calls before it writes the file.
"""

import argparse
import functools
import os
import statistics
import subprocess
import tempfile
import time
from types import SimpleNamespace

import numpy as np


def scores(classes, shape, random):
    generator = np.random.default_rng(1)
    if random:
        return generator.standard_normal((classes, *shape), np.float32).astype(np.float16)
    centres = generator.uniform(0, 1, (classes, 3)) * shape
    grid = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij")
    out = np.empty((classes, *shape), np.float16)
    for c in range(classes):
        distance = np.sqrt(sum((g - m) ** 2 for g, m in zip(grid, centres[c])))
        noise = generator.standard_normal(shape, np.float32)
        out[c] = 12 - 0.8 * distance + 0.3 * noise
    return out


def theirs(logits, shape):
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    names = {"background": 0, **{f"class {c}": c for c in range(1, logits.shape[0])}}
    resample = functools.partial(resample_data_or_seg_to_shape, is_seg=False, order=1, order_z=0, force_separate_z=None)
    plans = SimpleNamespace(transpose_forward=[0, 1, 2], transpose_backward=[0, 1, 2])
    configuration = SimpleNamespace(spacing=[1.5] * 3, resampling_fn_probabilities=resample)
    properties = {
        "spacing": [1.0] * 3,
        "shape_after_cropping_and_before_resampling": shape,
        "shape_before_cropping": shape,
        "bbox_used_for_cropping": [[0, n] for n in shape],
    }
    started = time.perf_counter()
    labels = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans, configuration, LabelManager(names, None), properties, num_threads_torch=os.cpu_count()
    )
    return time.perf_counter() - started, labels


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("classes", type=int)
    parser.add_argument("extent")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours-only", action="store_true")
    a = parser.parse_args()
    shape = [int(n) for n in a.extent.split("x")]
    inner = [int(np.round(n / 1.5)) for n in shape]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    build = ["cargo", "bench", "--locked", "--bench", "export"]
    subprocess.run([*build, "--no-run"], cwd=root, check=True)
    with tempfile.TemporaryDirectory() as folder:
        given, got = os.path.join(folder, "scores"), os.path.join(folder, "labels")
        logits = scores(a.classes, inner, a.random)
        logits.tofile(given)
        if a.ours_only:
            del logits
        ours = []
        others = []
        for _ in range(a.rounds):
            run = subprocess.run(
                [*build, "-q", "--", given, str(a.classes), a.extent, got], cwd=root, check=True, capture_output=True, text=True
            )
            ours.append(float(run.stdout.split()[-1]))
            line = f"organum {ours[-1]:.3f} s"
            if not a.ours_only:
                seconds, labels = theirs(logits, shape)
                others.append(seconds)
                differing = int((np.fromfile(got, np.uint8).reshape(shape) != np.asarray(labels)).sum())
                line += f", nnunetv2 {seconds:.2f} s, {seconds / ours[-1]:.1f} times, {differing} voxels differ"
            print(line, flush=True)
        print(f"median: organum {statistics.median(ours):.3f} s", end="")
        print(f", nnunetv2 {statistics.median(others):.2f} s" if others else "")


if __name__ == "__main__":
    main()

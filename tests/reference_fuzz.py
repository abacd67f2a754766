"""Random configurations of the U-Transformer family: PyTorch in float64 against `organum infer`.

Usage: python tests/reference_fuzz.py --organum target/release/organum --shared ../shared [--cases N] [--seed S]
Needs weights/requirements.txt. Prints the relative L2 error of each case; fails when other bits come back under the smallest
budget, above 1e-5 in f32, and above 5e-3 with f16 storage. Some random networks are badly conditioned (their f32 error shows
it, as f16's is some thousand times that): for those f16 may reach 3000 times the f32 error.
"""
import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file


def configuration(r):
    dims = r.choice([2, 3])
    levels = r.randint(1, 5 if dims == 2 else 4)
    heads = r.choice([1, 2, 3, 4, 8])
    step = heads * (4 if dims == 2 and heads % 4 else 1)  # the 2D encoding needs channels divisible by four
    step = {8: 8, 4: 4}.get(heads, step)
    channels = [step * r.randint(1, max(1, 24 // step)) for _ in range(levels)]
    return dict(
        dims=dims, in_channels=r.randint(1, 3), classes=r.randint(1, 9), channels=channels, heads=heads,
        mhsa=r.random() < 0.6, mhca_levels=r.randint(0, 4), profile=r.choice(["paper2021", "themyr2021"]))


def randomise(net, generator):
    for name, t in net.state_dict().items():
        if not t.is_floating_point():
            continue
        noise = torch.randn(t.shape, generator=generator)
        if "running_var" in name or (t.dim() == 1 and name.endswith("weight")):
            t.copy_(1 + 0.3 * noise.clamp(-2, 2))
        elif t.dim() == 1:
            t.copy_(0.2 * noise)
        else:
            t.copy_(noise * (2 / t[0].numel()) ** 0.5)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--organum", type=Path, required=True)
    a.add_argument("--shared", type=Path, default=Path("../shared"))
    a.add_argument("--cases", type=int, default=20)
    a.add_argument("--seed", type=int, default=0)
    a = a.parse_args()
    sys.path.insert(0, str(a.shared / "reference"))
    from u_transformer import UTransformer

    r = random.Random(a.seed)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for case in range(a.cases):
            config = configuration(r)
            stride = 2 ** (len(config["channels"]) - 1)
            extent = [stride * r.randint(1, max(1, 32 // stride)) for _ in range(config["dims"])]
            g = torch.Generator().manual_seed(case)
            net = UTransformer(**config).eval()
            randomise(net, g)
            save_file({k: v for k, v in net.state_dict().items()}, folder / "m.safetensors",
                      metadata={"organum": json.dumps(dict(architecture="u_transformer", config=config))})
            x = torch.randn(1, config["in_channels"], *extent, generator=g)
            np.save(folder / "x.npy", x.numpy())
            with torch.no_grad():
                y = net.double()(x.double()).numpy()
            bounds = {"f32": 1e-5, "f16": 5e-3}
            for precision in bounds:
                run = [a.organum, "infer", "--model", folder / "m.safetensors", "--input", folder / "x.npy", "--output", folder / "y.npy"]
                plan = json.loads(subprocess.run([*run, "--precision", precision, "--json"], check=True, capture_output=True).stdout)["plan"]
                whole = np.load(folder / "y.npy")
                budget = str(plan["smallest_budget"])
                subprocess.run([*run, "--precision", precision, "--memory", budget], check=True, capture_output=True)
                same = np.array_equal(whole, np.load(folder / "y.npy"))
                error = np.linalg.norm(whole - y) / np.linalg.norm(y)
                bounds["f16"] = max(bounds["f16"], 3000 * error) if precision == "f32" else bounds["f16"]
                bad = error > bounds[precision] or not same
                failed += bad
                print(f"{'FAIL' if bad else 'ok'} {precision} {error:.2e} same bits in {budget} bytes: {same} {extent} {config}", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

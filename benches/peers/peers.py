"""organum beside burn, PyTorch and onnxruntime: the driver that `run` starts; see there."""

import argparse
import contextlib
import datetime
import gc
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

HERE = pathlib.Path(__file__).resolve().parent
LISTS = ("layers", "nets", "host")
OURS, PEERS = ("host", "device"), ("burn", "torch", "onnx")
# of the norm of the result
TOLERANCE = 1e-4


def arguments():
    parser = argparse.ArgumentParser(prog="run", description=__doc__)
    parser.add_argument("lists", nargs="*", help="layers, nets (the default: both), host")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases with this in their name")
    parser.add_argument(
        "--sides", default="", help="of host,device,burn,torch,onnx; default: those of each case"
    )
    parser.add_argument("--pairs", type=int, default=5, help="runs of each side, in turn")
    parser.add_argument(
        "--small", action="store_true", help="small extents and widths, to see that all runs"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", default="peers.json", help="the file to write")
    parser.add_argument("--names", action="store_true", help="print the cases and stop")
    parser.add_argument("--program", default="", help=argparse.SUPPRESS)
    a = parser.parse_args()
    a.lists = a.lists or ["layers", "nets"]
    if not set(a.lists) <= set(LISTS):
        parser.error(f"the lists are {', '.join(LISTS)}")
    return a


a = arguments()
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "LP_NUM_THREADS"):
    os.environ[name] = str(a.threads)
warnings.filterwarnings("ignore")

import numpy as np
import torch
from safetensors.torch import save_file

import networks


class Refused(Exception):
    pass


class Program:
    """The process of organum and burn for one case."""

    def __init__(self, program, case):
        self.process = subprocess.Popen(
            [program, case],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, command):
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Refused(
                (self.process.stderr.read().strip().splitlines() or ["the process ended"])[-1]
            )
        said = json.loads(line)
        if "error" in said:
            raise Refused(said["error"])
        return said

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


class Ours:
    """A side of the process: organum on the host or on an adapter, or burn."""

    def __init__(self, program, name, folder):
        self.program, self.name, self.folder = program, name, folder

    def output(self):
        self.about = self.program.ask(f"prepare {self.name}")["about"]
        return np.fromfile(self.folder / f"{self.name}.f32", np.float32)

    def seconds(self):
        return self.program.ask(f"run {self.name}")["seconds"]


class Torch:
    """The better of the memory layouts."""

    def __init__(self, module, x):
        self.module, self.x = module, x
        self.layouts = {"contiguous": torch.contiguous_format}
        if x.dim() == 4:
            self.layouts["channels_last"] = torch.channels_last
        elif not getattr(module, "tokens", False):
            self.layouts["channels_last_3d"] = torch.channels_last_3d

    def set(self, layout):
        self.module.to(memory_format=self.layouts[layout])
        self.there = self.x.to(memory_format=self.layouts[layout])

    def run(self):
        begin = time.perf_counter()
        y = self.module(self.there)
        return time.perf_counter() - begin, y

    def output(self):
        trial = {}
        for layout in self.layouts:
            self.set(layout)
            _, y = self.run()
            trial[layout] = min(self.run()[0] for _ in range(2))
        best = min(trial, key=trial.get)
        self.set(best)
        self.about = {"layout": best, "trial_seconds": trial}
        return y.numpy()

    def seconds(self):
        return self.run()[0]


class Onnx:
    def __init__(self, module, x, folder, threads):
        import onnxruntime

        path = str(folder / "m.onnx")
        module.to(memory_format=torch.contiguous_format)
        with contextlib.redirect_stdout(sys.stderr):
            torch.onnx.export(module, (x,), path, dynamo=True, verbose=False, external_data=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.feed = {self.session.get_inputs()[0].name: x.numpy()}
        self.about = {}

    def output(self):
        return self.session.run(None, self.feed)[0]

    def seconds(self):
        begin = time.perf_counter()
        self.session.run(None, self.feed)
        return time.perf_counter() - begin


def write(case, module, x, folder):
    """The case as the process reads it: input, tensors, what burn finds ready."""
    channels_first = x.permute(0, 4, 1, 2, 3) if case.tokens else x
    channels_first.numpy().tofile(folder / "x.f32")
    tensors = {
        k.removeprefix("attn."): v.detach().clone().contiguous()
        for k, v in module.state_dict().items()
    }
    metadata = {"organum": json.dumps(case.card)} if case.card else None
    save_file(tensors, folder / "m.safetensors", metadata)
    layer = case.layer or {
        "kind": "network",
        "model": str(folder / "m.safetensors"),
        "burn": case.burn,
    }
    said = {
        "layer": layer,
        "channels": case.channels,
        "extent": case.extent,
        "input": str(folder / "x.f32"),
        "weights": str(folder / "m.safetensors"),
    }
    if layer["kind"] == "windows":
        attn = module.attn
        n = attn.relative_position_index.shape[0]
        bias = (
            attn.relative_position_bias_table[attn.relative_position_index.view(-1)]
            .view(n, n, -1)
            .permute(2, 0, 1)[None]
        )
        extras = {"gathered_bias": bias.detach().contiguous()}
        if module.mask is not None:
            extras["mask"] = module.mask[:, None].contiguous()
        save_file(extras, folder / "extras.safetensors")
        said["extras"] = str(folder / "extras.safetensors")
    (folder / "case.json").write_text(json.dumps(said))
    return folder / "case.json"


def compare(case, a):
    torch.manual_seed(1)
    module = case.make().eval()
    networks.random_norms(module)
    module.tokens = case.tokens
    generator = torch.Generator().manual_seed(2)
    shape = (
        (*case.extent, case.channels) if case.tokens else (case.channels, *case.extent[case.flat :])
    )
    x = torch.randn(1, *shape, generator=generator)
    sides = [s for s in case.sides if not a.sides or s in a.sides.split(",")]
    found = {"name": case.name, "load": os.getloadavg(), "sides": {}}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        folder = pathlib.Path(folder)
        program = Program(a.program, write(case, module, x, folder))
        right = module(x)
        right = (right.permute(0, 4, 1, 2, 3) if case.tokens else right).numpy().astype(np.float64)
        ready = {}
        for name in sides:
            about = found["sides"][name] = {}
            begin = time.perf_counter()
            try:
                if name == "torch":
                    side = Torch(module, x)
                elif name == "onnx":
                    side = Onnx(module, x, folder, a.threads)
                else:
                    side = Ours(program, name, folder)
                y = side.output().astype(np.float64)
                if case.tokens and name in ("torch", "onnx"):
                    y = y.transpose(0, 4, 1, 2, 3)
                y = y.reshape(right.shape)
                about |= side.about
                about["greatest_difference"] = float(np.abs(y - right).max())
                about["relative_difference"] = float(
                    np.linalg.norm(y - right) / np.linalg.norm(right)
                )
                if not about["relative_difference"] <= TOLERANCE:
                    raise Refused(f"the result differs by {about['relative_difference']:.1e}")
                ready[name] = side
            except Exception as e:
                about["error"] = f"{type(e).__name__}: {e}".splitlines()[0]
            about["prepare_seconds"] = time.perf_counter() - begin
            ready_after = f"ready after {about['prepare_seconds']:.1f} s"
            note(f"{case.name}: {name} {about.get('error') or ready_after}")
        del right
        gc.collect()
        rounds = []
        for _ in range(a.pairs):
            round = {}
            for name, side in list(ready.items()):
                try:
                    round[name] = side.seconds()
                except Exception as e:
                    found["sides"][name]["error"] = str(e).splitlines()[0]
                    del ready[name]
                # threads that wait for more work let go of their cores
                time.sleep(0.05)
            rounds.append(round)
        program.close()
    for name in ready:
        seconds = [r[name] for r in rounds]
        found["sides"][name] |= {"seconds": seconds, "median": statistics.median(seconds)}
    found["ratios"] = {
        f"{p}/{o}": [r[p] / r[o] for r in rounds]
        for p in PEERS
        for o in OURS
        if p in ready and o in ready
    }
    return found


def note(text):
    print(text, file=sys.stderr, flush=True)


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(a):
    lock = (HERE / "Cargo.lock").read_text()
    burn = re.search(r'name = "burn"\nversion = "(.*)"', lock)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    cpu = next(
        (x.split(":")[1].strip() for x in open("/proc/cpuinfo") if x.startswith("model name")),
        platform.processor(),
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "cpu": cpu,
        "threads": a.threads,
        "pairs": a.pairs,
        "small": a.small,
        "burn": burn and burn.group(1),
        "torch": torch.__version__,
        "onednn": torch.backends.mkldnn.is_available(),
        "onnxruntime": version("onnxruntime"),
        "monai": version("monai"),
        "python": platform.python_version(),
    }


def row(found):
    sides = found["sides"]
    flops = next((s["flops"] for s in sides.values() if "flops" in s), None)
    cells = [found["name"], f"{flops / 1e9:.2f}" if flops else "-"]
    for name in (*OURS, *PEERS):
        side = sides.get(name, {})
        text = "-" if not side else "failed" if "error" in side else f"{side['median'] * 1e3:.1f}"
        layout = side.get("layout")
        cells.append(text + (" cl" if layout and layout != "contiguous" else ""))
    for pair in ("burn/device", "torch/device", "torch/host", "onnx/host"):
        r = sorted(found["ratios"].get(pair, []))
        cells.append(f"{statistics.median(r):.2f} ({r[0]:.2f} to {r[-1]:.2f})" if r else "-")
    worst = [s["greatest_difference"] for s in sides.values() if "greatest_difference" in s]
    return "| " + " | ".join([*cells, f"{max(worst):.1e}" if worst else "-"]) + " |"


def main():
    cases = [
        c for which in a.lists for c in networks.cases(which, a.small) if re.search(a.only, c.name)
    ]
    if a.names:
        return print("\n".join(c.name for c in cases))
    torch.set_num_threads(a.threads)
    about = environment(a)
    results = []
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    print(
        "| case | GFLOP | host ms | device ms | burn ms | torch ms | onnx ms "
        "| burn/device | torch/device | torch/host | onnx/host | greatest difference |"
    )
    print("|---" * 12 + "|", flush=True)
    for case in cases:
        begin = time.perf_counter()
        results.append(compare(case, a))
        results[-1]["took_seconds"] = time.perf_counter() - begin
        print(row(results[-1]), flush=True)
        pathlib.Path(a.json).write_text(
            json.dumps({"environment": about, "cases": results}, indent=1)
        )
        gc.collect()
    errors = [
        f"{r['name']}: {n}: {s['error']}"
        for r in results
        for n, s in r["sides"].items()
        if "error" in s
    ]
    for error in errors:
        note(error)
    return 1 if errors else 0


sys.exit(main())

#!/usr/bin/env python
"""organum beside PyTorch on the CPU: the same weights and input, outputs compared first, then timed in turn.

    python benches/peers/torch_cpu.py [PART OF A NAME] [--pairs N] [--threads N] [--organum PATH] [--reference DIR]

Needs PyTorch, MONAI and dynamic_network_architectures (nnunetv2); `--reference` is the folder of u_transformer.py. PyTorch's time is
that of a forward in inference mode, the better of contiguous and channels_last_3d memory; organum's is `seconds.run` of
`organum infer --device cpu --json`: from the input in host memory to the logits there. Both use `--threads` threads.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch


def plain(features, strides, kernels=None):
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    kernels = kernels or [[3, 3, 3]] * len(features)
    net = PlainConvUNet(
        1, len(features), features, torch.nn.Conv3d, kernels, strides, 2, 14, 2, conv_bias=True, norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )
    config = {"dims": 3, "in_channels": 1, "classes": 14, "features": features, "kernels": kernels, "strides": strides,
              "convs_per_stage": 2}
    return net, "plain_conv_unet", config


def residual():
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    features, blocks = [32, 64, 128, 256, 320, 320], [1, 3, 4, 6, 6, 6]
    strides, kernels = [[1] * 3] + [[2] * 3] * 5, [[3] * 3] * 6
    net = ResidualEncoderUNet(
        1, 6, features, torch.nn.Conv3d, kernels, strides, blocks, 14, 1, conv_bias=True, norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )
    config = {"dims": 3, "in_channels": 1, "classes": 14, "features": features, "kernels": kernels, "strides": strides,
              "blocks_per_stage": blocks, "decoder_convs_per_stage": 1}
    return net, "residual_encoder_unet", config


def vnet():
    from monai.networks.nets import VNet

    return VNet(spatial_dims=3, in_channels=1, out_channels=2), "vnet", {}


def unetr():
    from monai.networks.nets import UNETR

    net = UNETR(in_channels=1, out_channels=14, img_size=(96, 96, 96), feature_size=16, hidden_size=768, mlp_dim=3072, num_heads=12,
                proj_type="perceptron", norm_name="instance", res_block=True)
    return net, "unetr", {"image": [96, 96, 96], "heads": 12}


def u_transformer(reference):
    sys.path.insert(0, reference)
    from u_transformer import UTransformer

    config = {"dims": 3, "in_channels": 1, "classes": 14, "channels": [32, 64, 128, 256, 320]}
    return UTransformer(**config), "u_transformer", config


HALVES = [[1] * 3] + [[2] * 3] * 5
NETWORKS = {
    "nnU-Net 32..320, 64x128x128": (lambda _: plain([32, 64, 128, 256, 320, 320], HALVES), (64, 128, 128)),
    "residual encoder M, 128^3": (lambda _: residual(), (128, 128, 128)),
    "VNet, 96^3": (lambda _: vnet(), (96, 96, 96)),
    "UNETR, 96^3": (lambda _: unetr(), (96, 96, 96)),
    "U-Transformer 32..320, 64^3": (u_transformer, (64, 64, 64)),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="?", default="")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--organum", default="target/release/organum")
    parser.add_argument("--reference", default="../shared/reference")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    print(f"PyTorch {torch.__version__}, {a.threads} threads")
    print("| network | PyTorch s | its layout | organum s | ratio | its spread | CPU s, PyTorch / organum | relative error |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (make, extent) in NETWORKS.items():
        if a.part.lower() in name.lower():
            compare(name, *make(a.reference), extent, a)


def compare(name, net, architecture, config, extent, a):
    torch.manual_seed(1)
    net = net.eval()
    if hasattr(net, "decoder") and hasattr(net.decoder, "deep_supervision"):
        net.decoder.deep_supervision = False
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        folder = pathlib.Path(folder)
        torch.save(net.state_dict(), folder / "m.pth")
        (folder / "c.json").write_text(json.dumps(config))
        run([a.organum, "convert", folder / "m.pth", "--output", folder / "m.safetensors", "--architecture", architecture,
             "--config", folder / "c.json"])
        x = torch.randn(1, 1, *extent, generator=torch.Generator().manual_seed(2))
        np.save(folder / "x.npy", x.numpy())

        def children():
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            return usage.ru_utime + usage.ru_stime

        def ours():
            begin = children()
            out = run([a.organum, "infer", "--model", folder / "m.safetensors", "--input", folder / "x.npy", "--output",
                       folder / "y.npy", "--device", "cpu", "--json"], RAYON_NUM_THREADS=str(a.threads))
            return json.loads(out)["seconds"]["run"], children() - begin

        def theirs(layout):
            net.to(memory_format=layout)
            there = x.to(memory_format=layout)
            begin, cpu = time.perf_counter(), time.process_time()
            y = net(there)
            return (time.perf_counter() - begin, time.process_time() - cpu), y

        layouts = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}
        trial = {}
        for label, layout in layouts.items():
            theirs(layout)
            trial[label], y = theirs(layout)
        best = min(trial, key=trial.get)
        ours()
        y = y[0] if isinstance(y, (list, tuple)) else y
        mine, y = np.load(folder / "y.npy").astype(np.float64), y.numpy().astype(np.float64)
        error = np.linalg.norm(mine.reshape(y.shape) - y) / np.linalg.norm(y)
        assert error < 1e-4, f"{name}: the outputs differ by {error}"
        theirs(layouts[best])
        pairs = [(theirs(layouts[best])[0], ours()) for _ in range(a.pairs)]
    (t, t_cpu), (o, o_cpu) = (map(statistics.median, zip(*side)) for side in zip(*pairs))
    ratios = sorted(theirs[0] / ours[0] for theirs, ours in pairs)
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    print(f"| {name} | {t:.2f} | {best} | {o:.2f} | {statistics.median(ratios):.2f} | {spread} | {t_cpu:.2f} / {o_cpu:.2f} | {error:.1e} |",
          flush=True)


def run(command, **environment):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(f"{command[1]} failed: {done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()

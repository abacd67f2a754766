"""What SwinUNETR of MONAI 1.6.1 computes, in swin_unetr.safetensors. Its weights are those of a formula that tests/dialects.rs
knows as well: a file of them would be large.

pip install torch==2.12.1 monai==1.6.1 safetensors
python3 make_swin_unetr.py
"""
import numpy as np
import torch
from monai.networks.nets import SwinUNETR, swin_unetr
from safetensors.torch import save_file

# every so many values of a result are kept
STRIDE = 7


class Narrow(int):
    """A feature size that MONAI's check of multiples of 12 lets pass."""

    def __mod__(self, other):
        return 0


def values(name, n):
    """Numbers of -1 to 1, from a hash of the name and the place."""
    h = np.uint32(2166136261)
    for byte in name.encode():
        h = (h ^ np.uint32(byte)) * np.uint32(16777619)
    x = h + np.arange(n, dtype=np.uint32) * np.uint32(0x9E3779B9)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x.astype(np.float64) / 2.0**31 - 1.0


def before_1_5(self, x):
    """What `merging` was before MONAI 1.5."""
    order = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)]
    return self.reduction(self.norm(torch.cat([x[:, i::2, j::2, k::2, :] for i, j, k in order], -1)))


SMALL = dict(feature_size=Narrow(4), num_heads=(1, 2, 2, 4))
CASES = {
    "first": ([1, 1, 32, 64, 32], dict(in_channels=1, out_channels=2, depths=(2, 1, 1, 2), **SMALL)),
    "second": ([1, 2, 32, 32, 64], dict(
        in_channels=2, out_channels=3, depths=(1, 2, 1, 1), window_size=(5, 3, 4), use_v2=True, downsample="mergingv2", qkv_bias=False,
        normalize=False, norm_name=("instance", {"affine": True}), mlp_ratio=2.5, **SMALL)),
    "planes": ([1, 1, 64, 96], dict(
        in_channels=1, out_channels=2, spatial_dims=2, depths=(2, 2, 1, 1), window_size=4, patch_norm=True, **SMALL)),
    "before_1_5": ([1, 1, 32, 32, 64], dict(in_channels=1, out_channels=2, depths=(1, 1, 1, 1), window_size=3, **SMALL)),
}
tensors = {}
merging = swin_unetr.PatchMerging.forward
with np.errstate(over="ignore"):
    for name, (shape, arguments) in CASES.items():
        swin_unetr.PatchMerging.forward = before_1_5 if name == "before_1_5" else merging
        network = SwinUNETR(**arguments).eval()
        state = network.state_dict()
        for key, tensor in state.items():
            if key.endswith("relative_position_index"):
                continue
            u, dims = values(key, tensor.numel()), tensor.dim()
            if dims == 1:
                u = 1.0 + 0.3 * u if key.endswith("weight") else 0.2 * u
            elif not key.endswith("bias_table"):
                u = u * np.sqrt(6.0 / np.prod(tensor.shape[1:]))
            tensor.copy_(torch.from_numpy(u.astype(np.float32)).reshape(tensor.shape))
        x = torch.from_numpy(values("input", int(np.prod(shape))).astype(np.float32)).reshape(shape)
        with torch.no_grad():
            y = network.double()(x.double()).float().flatten()
        tensors[name] = y[::STRIDE].clone()
        print(name, sum(p.numel() for p in network.parameters()), y.std().item())
save_file(tensors, "swin_unetr.safetensors")

"""Small checkpoints in checkpoints/, as PyTorch 2.12.1 writes them, and what they hold as safetensors.

python3 make_checkpoints.py
"""
import collections
import os

import torch
from safetensors.torch import save_file

torch.manual_seed(1)
os.makedirs("checkpoints", exist_ok=True)


def block(cin, cout):
    """A convolution, batch norm and ReLU under the names of the u_transformer's modules."""
    return torch.nn.ModuleDict({"conv": torch.nn.Conv3d(cin, cout, 3, padding=1), "norm": torch.nn.BatchNorm3d(cout)})


def double(cin, cout):
    return torch.nn.ModuleDict({"a": block(cin, cout), "b": block(cout, cout)})


def network():
    """A u_transformer of two levels without attention: channels 2 and 3, one input channel, two classes."""
    up = torch.nn.ModuleDict({
        "conv": torch.nn.Conv3d(3, 3, 3, padding=1),
        "reduce": torch.nn.ModuleDict({"conv": torch.nn.Conv3d(3, 2, 1), "norm": torch.nn.BatchNorm3d(2)}),
        "block": double(4, 2),
    })
    return torch.nn.ModuleDict({
        "enc": torch.nn.ModuleList([double(1, 2), double(2, 3)]),
        "dec": torch.nn.ModuleList([up]),
        "head": torch.nn.Conv3d(2, 2, 1),
    })


net = network()
state = net.state_dict()
save_file(state, "checkpoints/network.safetensors")
wrapped = {
    "epoch": 12,
    "loss": 0.25,
    "best": None,
    "history": [1, 2.5, (True, False), {"a": b"bytes"}, 2**70, -(2**40), {3, 4}],
    "step": torch.tensor(7),
    "optimizer_state": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
    "when": collections.Counter("checkpoint"),
    "network_weights": collections.OrderedDict((f"module._orig_mod.{name}", t) for name, t in state.items()),
}
torch.save(wrapped, "checkpoints/wrapped.pth")
torch.save(state, "checkpoints/legacy.pth", _use_new_zipfile_serialization=False)
torch.save({"model": net}, "checkpoints/module.pth", pickle_protocol=5)
torch.save({"state_dict": {"net": {f"backbone.unet.{name}": t for name, t in state.items()}}}, "checkpoints/nested.pth", pickle_protocol=4)

halved = {name: t / 2 if t.is_floating_point() else t for name, t in state.items()}
torch.save({"model": state, "ema": halved, "epoch": 3}, "checkpoints/averaged.pth")
lightning = {"loss.class_weight": torch.ones(2), "metric.confusion": torch.zeros(2, 2)}
torch.save({"state_dict": {**{f"net.{name}": t for name, t in state.items()}, **lightning}}, "checkpoints/lightning.pth")


class Script(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3)
        self.norm = torch.nn.BatchNorm2d(2)

    def forward(self, x):
        return self.norm(self.conv(x))


script = Script().eval()
torch.jit.script(script).save("checkpoints/script.pt")
save_file({f"{k}": v for k, v in script.state_dict().items()}, "checkpoints/script.safetensors")

base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 7
types = {
    "f16": base.half(),
    "bf16": base.bfloat16(),
    "f32": base,
    "f64": base.double(),
    "i8": (base * 7).to(torch.int8),
    "i16": (base * 7).to(torch.int16),
    "i32": (base * 7).int(),
    "i64": -(base * 7).long(),
    "u8": (base * 7).byte(),
    "bool": base > 1,
    "transposed": base.transpose(0, 2),
    "sliced": base[:, 1:, 1:3],
    "row": base[1, 2],
    "expanded": base[0, 0, :1].expand(3, 2),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 3),
    "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "parameter": torch.nn.Parameter(base[0]),
}
torch.save(types, "checkpoints/types.pth")
save_file({k: v.detach().clone().contiguous() for k, v in types.items()}, "checkpoints/types.safetensors")

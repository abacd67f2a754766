"""The attention family as PyTorch computes it in float64, with what `src/model/attention_tests.rs` needs to repeat it.

    python tests/vectors/make_attention.py

writes attention.safetensors beside this file: per case its input [C][D][H][W], its output, the parameters under the names that the
graphs of the test use, and in the metadata the attributes as JSON. Maps of tokens are made from the input by max pooling.
Windows are cut by padding, rolling and reshaping, sampling is `grid_sample`: none of it shares a line of thought with the kernels.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(7)
tensors, attributes = {}, {}


def draw(case, name, *shape):
    """A random parameter, as stored."""
    tensors[f"{case}.{name}"] = torch.randn(shape) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.5)
    return tensors[f"{case}.{name}"].double()


def linear(case, name, x, outputs):
    """Channels-last linear layer with a bias."""
    return F.linear(x, draw(case, f"{name}.weight", outputs, x.shape[-1]), draw(case, f"{name}.bias", outputs))


def begin(case, channels, extent):
    tensors[f"{case}.input"] = torch.randn(channels, *extent)
    return tensors[f"{case}.input"].double().permute(1, 2, 3, 0)


def finish(case, y, **given):
    tensors[f"{case}.output"] = y.permute(3, 0, 1, 2).float().contiguous()
    attributes[case] = given


def pool(x, kernel):
    return F.max_pool3d(x.permute(3, 0, 1, 2)[None], kernel, kernel)[0].permute(1, 2, 3, 0)


def heads_of(x, heads):
    """[..., N, C] to [..., heads, N, C / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def attend(q, k, v, heads, bias=0):
    q, k, v = heads_of(q, heads), heads_of(k, heads), heads_of(v, heads)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
    return (scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2)


def pad_to(x, window):
    d, h, w, _ = x.shape
    return F.pad(x, (0, 0, 0, -w % window[2], 0, -h % window[1], 0, -d % window[0]))


def partition(x, window):
    """[D, H, W, C] to [windows, voxels of a window, C], both row-major."""
    d, h, w, c = x.shape
    x = x.reshape(d // window[0], window[0], h // window[1], window[1], w // window[2], window[2], c)
    return x.permute(0, 2, 4, 1, 3, 5, 6).reshape(-1, math.prod(window), c)


def unpartition(x, window, extent):
    d, h, w = extent
    x = x.reshape(d // window[0], h // window[1], w // window[2], *window, -1)
    return x.permute(0, 3, 1, 4, 2, 5, 6).reshape(d, h, w, -1)


def shift_mask(extent, window, shift):
    """-100 between the voxels of a window that the roll brought together, as Swin Transformer labels them."""
    label = torch.zeros(*extent, 1, dtype=torch.double)
    count = 0
    slices = [[slice(0, -w), slice(-w, -s), slice(-s, None)] if s else [slice(None)] for w, s in zip(window, shift)]
    for d in slices[0]:
        for h in slices[1]:
            for w in slices[2]:
                label[d, h, w] = count
                count += 1
    label = partition(label, window)[..., 0]
    return torch.where(label[:, None, :] == label[:, :, None], 0.0, -100.0)


def relative_bias(case, heads, rows, queries, keys):
    table = draw(case, "table", rows, heads)
    index = torch.randint(0, rows, (queries, keys), dtype=torch.int32)
    tensors[f"{case}.table_index"] = index
    return table[index.long()].permute(2, 0, 1)


def windows(case, channels, extent, heads, window, shift=(0, 0, 0), tokens=None, token_queries=False):
    """Swin Transformer's attention; with `tokens`, the pooling that makes window tokens, FINE's: tokens come first."""
    x = begin(case, channels, extent)
    rolled = torch.roll(pad_to(x, window), [-s for s in shift], (0, 1, 2))
    n = math.prod(window)
    bias = relative_bias(case, heads, 11, n, n)
    mask = shift_mask(rolled.shape[:3], window, shift)
    own = bias + mask[:, None]
    seq, count = partition(rolled, window), 0
    if tokens:
        gt = pool(x, tokens)
        count = gt.shape[2] * window[2] // rolled.shape[2]
        gt = gt.reshape(seq.shape[0], count, channels)
        seq = torch.cat([gt, seq], 1)
        own = F.pad(own, (count, 0, count, 0))
    q, k, v = linear(case, "qkv", seq, 3 * channels).chunk(3, -1)
    y = attend(q, k, v, heads, own)
    if token_queries:
        grid = [n // w for n, w in zip(rolled.shape, window)]
        y = y[:, :count].reshape(grid[0], grid[1], grid[2] * count, channels)
    else:
        y = torch.roll(unpartition(y[:, count:], window, rolled.shape[:3]), shift, (0, 1, 2))[: extent[0], : extent[1], : extent[2]]
    finish(case, y, kind="windows", heads=heads, window=window, shift=shift, pool=tokens, tokens=count, token_queries=token_queries)


def unprojected_queries(case, channels, extent, heads, window):
    """nnFormer's decoder: queries are the map itself."""
    x = begin(case, channels, extent)
    padded = partition(pad_to(x, window), window)
    k, v = linear(case, "kv", padded, 2 * channels).chunk(2, -1)
    n = math.prod(window)
    y = attend(padded, k, v, heads, relative_bias(case, heads, 9, n, n))
    whole = [-(-n // w) * w for n, w in zip(extent, window)]
    y = unpartition(y, window, whole)[: extent[0], : extent[1], : extent[2]]
    finish(case, y, kind="unprojected", heads=heads, window=window)


def upsampling(case, channels, extent, heads, q_window, k_window, kernel):
    """GLAM's non-local upsampling: queries of a map, keys of its pooling, in the same windows."""
    x = begin(case, channels, extent)
    low = pool(x, kernel)
    q = linear(case, "q", partition(pad_to(x, q_window), q_window), channels)
    k, v = linear(case, "kv", partition(pad_to(low, k_window), k_window), 2 * channels).chunk(2, -1)
    y = attend(q, k, v, heads, relative_bias(case, heads, 13, math.prod(q_window), math.prod(k_window)))
    whole = [-(-n // w) * w for n, w in zip(extent, q_window)]
    y = unpartition(y, q_window, whole)[: extent[0], : extent[1], : extent[2]]
    finish(case, y, kind="upsampling", heads=heads, q_window=q_window, k_window=k_window, pool=kernel)


def tokens(case, channels, extent, heads, pools, mask=None):
    """Attention of the first pooling's tokens to those of all poolings, in reverse order: volume tokens, then window tokens."""
    x = begin(case, channels, extent)
    maps = [pool(x, p) for p in pools]
    weight, bias = draw(case, "qkv.weight", 3 * channels, channels), draw(case, "qkv.bias", 3 * channels)
    parts = [F.linear(m.reshape(-1, channels), weight, bias).chunk(3, -1) for m in maps]
    k, v = (torch.cat([part[i] for part in reversed(parts)]) for i in (1, 2))
    scores = 0
    if mask:
        counts = torch.zeros(len(k), 1)
        counts[mask["counted"], 0] = 2
        tensors[f"{case}.counts"] = counts
        seen = counts[:, 0].double()
        seen[mask["visited"]] += 1
        scores = torch.where(seen >= 1, 0.0, -1000.0)
    y = attend(parts[0][0], k, v, heads, scores).reshape(*maps[0].shape[:3], channels)
    finish(case, y, kind="tokens", heads=heads, pools=pools, visited=mask and mask["visited"])


def deformable(case, channels, extent, heads, points, kernel, level):
    """CoTr's sampling, queries of one of two levels. Its places (d, x, y) go to grid_sample, which takes them as (W, H, D)."""
    x = begin(case, channels, extent)
    maps = [x, pool(x, kernel)]
    values = [linear(case, f"value{i}", m, channels) for i, m in enumerate(maps)]
    places = heads * 2 * points
    own = maps[level]
    d, h, w, _ = own.shape
    offsets = 2 * linear(case, "offsets", own, 3 * places)
    tensors[f"{case}.offsets.weight"] *= 2
    tensors[f"{case}.offsets.bias"] *= 2
    offsets = offsets.reshape(-1, heads, 2, points, 3)
    weights = linear(case, "weights", own, places).reshape(-1, heads, 2 * points).softmax(-1).reshape(-1, heads, 2, points)
    axis = lambda n: (torch.arange(n, dtype=torch.double) + 0.5) / n
    gd, gh, gw = torch.meshgrid(axis(d), axis(h), axis(w), indexing="ij")
    place = torch.stack([gd, gw, gh], -1).reshape(-1, 1, 1, 3)
    y = torch.zeros(d * h * w, heads, channels // heads, dtype=torch.double)
    for i, value in enumerate(values):
        sd, sh, sw, _ = value.shape
        at = 2 * (place + offsets[:, :, i] / torch.tensor([sd, sw, sh], dtype=torch.double)) - 1
        for head in range(heads):
            v = value.unflatten(-1, (heads, -1))[..., head, :].permute(3, 0, 1, 2)[None]
            sampled = F.grid_sample(v, at[:, head].reshape(1, -1, points, 1, 3), "bilinear", "zeros", align_corners=False)
            y[:, head] += (sampled[0, ..., 0] * weights[:, head, i]).sum(-1).T
    finish(case, y.reshape(d, h, w, channels), kind="deformable", heads=heads, points=points, pool=kernel, level=level)


windows("windows_2d", 12, (2, 7, 10), 3, (1, 4, 4), (0, 2, 2))
windows("windows_3d", 6, (5, 5, 6), 2, (3, 2, 4), (1, 1, 2))
windows("one_axis", 8, (5, 4, 6), 2, (2, 4, 3), (0, 0, 1))
windows("window_tokens", 9, (4, 4, 6), 3, (2, 2, 3), (1, 1, 1), (2, 2, 3))
windows("token_queries", 9, (4, 4, 6), 3, (2, 2, 3), (1, 1, 1), (2, 2, 3), True)
windows("three_tokens", 8, (3, 4, 6), 2, (3, 2, 3), (0, 0, 0), (3, 2, 1))
windows("three_token_queries", 8, (3, 4, 6), 2, (3, 2, 3), (0, 1, 0), (3, 2, 1), True)
unprojected_queries("unprojected", 10, (3, 4, 5), 5, (2, 2, 3))
upsampling("upsampling", 12, (2, 8, 11), 2, (1, 4, 6), (1, 2, 3), (1, 2, 2))
tokens("self", 12, (2, 3, 4), 2, [(1, 1, 1)])
tokens("cross_window", 12, (2, 4, 8), 2, [(1, 2, 2), (2, 4, 2)])
tokens("masked", 12, (2, 3, 14), 3, [(2, 3, 2)], {"counted": [1, 4], "visited": [5, 0]})
deformable("fine_queries", 12, (4, 6, 4), 3, 4, (2, 2, 2), 0)
deformable("coarse_queries", 12, (4, 6, 4), 3, 2, (2, 2, 2), 1)

if __name__ == "__main__":
    stored = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(stored, Path(__file__).with_name("attention.safetensors"), {"cases": json.dumps(attributes)})

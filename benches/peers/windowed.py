"""Attention in windows, nnFormer and FINE in PyTorch, with the tensor names of their references.

Written from the papers (Zhou et al., "nnFormer", IEEE TIP 2023; Themyr et al., "Memory
transformers", MLMI 2022) and from the names and sizes in organum's own architectures. FINE has two
blocks a stage, so that nothing reads what the volume tokens become, and it is not computed.
"""

import torch
import torch.nn.functional as F
from torch import nn


def relative_index(window, strides):
    """A row of the table of biases for each query and key of a window."""
    axes = torch.meshgrid(*(torch.arange(n) for n in window), indexing="ij")
    at = torch.stack([a.flatten() for a in axes])
    apart = at[:, :, None] - at[:, None, :]
    return sum((apart[i] + n - 1) * s for i, (n, s) in enumerate(zip(window, strides)))


def nnformer_strides(window):
    """The first is 3w - 1, not (2w - 1)^2, in the reference, so that offsets collide."""
    return 3 * window[1] - 1, 2 * window[2] - 1, 1


def swin_strides(window):
    return (2 * window[1] - 1) * (2 * window[2] - 1), 2 * window[2] - 1, 1


def cut(x, window):
    """(1, D, H, W, C) to (windows, voxels of a window, C)."""
    _, d, h, w, c = x.shape
    a, b, e = window
    x = x.view(d // a, a, h // b, b, w // e, e, c).permute(0, 2, 4, 1, 3, 5, 6)
    return x.reshape(-1, a * b * e, c)


def paste(x, window, extent):
    d, h, w = extent
    a, b, e = window
    x = x.view(d // a, h // b, w // e, a, b, e, -1).permute(0, 3, 1, 4, 2, 5, 6)
    return x.reshape(1, d, h, w, -1)


def shift_mask(extent, window, shift):
    """-100 between voxels that did not touch before the roll: (windows, tokens, tokens)."""
    regions = torch.zeros(1, *extent, 1)
    count = 0
    spans = [
        (slice(0, -n), slice(-n, -s), slice(-s, None)) if s else (slice(None),)
        for n, s in zip(window, shift)
    ]
    for d in spans[0]:
        for h in spans[1]:
            for w in spans[2]:
                regions[:, d, h, w] = count
                count += 1
    regions = cut(regions, window).squeeze(-1)
    return torch.where(regions[:, None] == regions[:, :, None], 0.0, -100.0)


class WindowAttention(nn.Module):
    """A projection, attention within windows with biases by relative position, and a projection.

    Tokens that come with the windows stand before the voxels and have neither bias nor mask.
    """

    def __init__(self, channels, heads, window, strides, kv=False):
        super().__init__()
        self.heads, self.window = heads, window
        rows = 1
        for n in window:
            rows *= 2 * n - 1
        self.relative_position_bias_table = nn.Parameter(torch.randn(rows, heads) * 0.5)
        self.register_buffer("relative_position_index", relative_index(window, strides))
        if kv:
            self.kv = nn.Linear(channels, 2 * channels)
        else:
            self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def heads_of(self, x, parts):
        b, n, _ = x.shape
        return x.view(b, n, parts, self.heads, -1).permute(2, 0, 3, 1, 4)

    def forward(self, x, mask=None, queries=None, tokens=0):
        if queries is None:
            q, k, v = self.heads_of(self.qkv(x), 3)
        else:
            (q,), (k, v) = self.heads_of(queries, 1), self.heads_of(self.kv(x), 2)
        n = self.relative_position_index.shape[0]
        bias = (
            self.relative_position_bias_table[self.relative_position_index.view(-1)]
            .view(n, n, -1)
            .permute(2, 0, 1)[None]
        )
        if mask is not None:
            bias = bias + mask[:, None]
        if tokens:
            bias = F.pad(bias, (tokens, 0, tokens, 0))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(q.shape[0], -1, -1, -1))
        return self.proj(y.transpose(1, 2).reshape(x.shape))


class WindowLayer(nn.Module):
    """The attention of a Swin block alone, on tokens (1, D, H, W, C)."""

    def __init__(self, channels, heads, window, shift, extent):
        super().__init__()
        self.attn = WindowAttention(channels, heads, window, swin_strides(window))
        self.window, self.shift, self.extent = window, shift, extent
        self.mask = shift_mask(extent, window, shift) if any(shift) else None

    def forward(self, x):
        if any(self.shift):
            x = x.roll([-s for s in self.shift], (1, 2, 3))
        x = paste(self.attn(cut(x, self.window), self.mask), self.window, self.extent)
        return x.roll(self.shift, (1, 2, 3)) if any(self.shift) else x


class Mlp(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class SelfAttention(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, channels, heads, window, extent, shifted, kv=False, memory=False):
        super().__init__()
        least = min(extent)
        shift = window // 2 if shifted and least > window else 0
        self.window = (min(window, least),) * 3
        self.shift = (shift,) * 3
        self.extent = extent
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, self.window, nnformer_strides(self.window), kv)
        self.mlp = Mlp(channels)
        if memory:
            self.gt_attn, self.vt_attn = (
                SelfAttention(channels, heads),
                SelfAttention(channels, heads),
            )
        self.register_buffer(
            "mask", shift_mask(extent, self.window, self.shift) if shift else None, persistent=False
        )

    def finish(self, x, y):
        x = x + y
        return x + self.mlp(self.norm2(x))

    def roll(self, x, sign):
        return x.roll([sign * s for s in self.shift], (1, 2, 3)) if self.shift[0] else x

    def forward(self, x):
        y = cut(self.roll(self.norm1(x), -1), self.window)
        return self.finish(
            x, self.roll(paste(self.attn(y, self.mask), self.window, self.extent), 1)
        )

    def crossed(self, up, skip):
        """Queries are what was expanded, unprojected; keys and values the skip's."""
        queries, y = cut(self.norm1(up), self.window), cut(self.norm1(skip), self.window)
        return self.finish(up + skip, paste(self.attn(y, None, queries), self.window, self.extent))

    def remembering(self, x, tokens, current, positions):
        """With window tokens (windows, 1, C), and the volume tokens that the crop sees, if any."""
        y = torch.cat([tokens, cut(self.roll(self.norm1(x), -1), self.window)], 1)
        y = self.attn(y, self.mask, tokens=tokens.shape[1])
        seen, y = y[:, : tokens.shape[1]], y[:, tokens.shape[1] :]
        x = self.finish(x, self.roll(paste(y.contiguous(), self.window, self.extent), 1))
        if current is None:
            return x, None
        seen = tokens + seen
        seen = seen + self.mlp(self.norm2(seen))
        flat = seen.reshape(1, -1, seen.shape[-1])
        crossed = self.gt_attn(torch.cat([current[None], flat + positions[None]], 1))
        return x, crossed[0, current.shape[0] :].view_as(seen)


class Project(nn.Module):
    def __init__(self, inputs, channels, stride, last):
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, channels, 3, stride, 1)
        self.conv2 = nn.Conv3d(channels, channels, 3, 1, 1)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = None if last else nn.LayerNorm(channels)

    def forward(self, x):
        for conv, norm in (self.conv1, self.norm1), (self.conv2, self.norm2):
            x = conv(x)
            if norm is not None:
                x = norm(F.gelu(x).permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
        return x


class Embed(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.proj1 = Project(1, channels // 2, (2, 2, 2), False)
        self.proj2 = Project(channels // 2, channels, (1, 2, 2), True)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x):
        return self.norm(self.proj2(self.proj1(x)).permute(0, 2, 3, 4, 1))


class Merge(nn.Module):
    def __init__(self, channels, kernel):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.reduction = nn.Conv3d(
            channels, 2 * channels, kernel, 2, kernel // 2 if kernel == 3 else 0
        )

    def forward(self, x):
        x = self.norm(F.gelu(x)).permute(0, 4, 1, 2, 3)
        return self.reduction(x).permute(0, 2, 3, 4, 1)


class Expand(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(2 * channels)
        self.up = nn.ConvTranspose3d(2 * channels, channels, 2, 2)

    def forward(self, x):
        return self.up(self.norm(x).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)


class Head(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.up = nn.ConvTranspose3d(channels, classes, (2, 4, 4), (2, 4, 4))

    def forward(self, x):
        return self.up(x.permute(0, 4, 1, 2, 3))


class Stage(nn.Module):
    """Blocks, and between them the tokens of FINE, which begin anew in every stage."""

    def __init__(self, level, embed, heads, window, grid, decoder, memory):
        super().__init__()
        channels = embed << level
        extent = tuple(n >> level for n in grid)
        one = lambda i: Block(
            channels, heads, window, extent, i % 2 == 1, decoder and not memory and i == 0, memory
        )
        self.blocks = nn.ModuleList(one(i) for i in range(2))
        if decoder:
            self.Upsample = Expand(channels)
        if memory:
            windows = 1
            for n in extent:
                windows *= -(-n // window)
            self.windows = windows
            self.global_token = nn.Parameter(torch.randn(1, channels) * 0.1)
            self.volume_token = nn.Parameter(torch.randn(25, channels) * 0.1)
            rows = ((32 // window) >> level) ** 3 if decoder else windows
            self.pe = nn.Parameter(torch.randn(rows, channels) * 0.1)

    def remember(self, x, ids):
        tokens = self.global_token.expand(self.windows, 1, -1)
        first = self.pe.shape[0] // 2 - self.windows // 2
        positions = self.pe[first : first + self.windows]
        x, tokens = self.blocks[0].remembering(x, tokens, self.volume_token[ids], positions)
        return self.blocks[1].remembering(x, tokens, None, None)[0]


class Encoder(nn.Module):
    def __init__(self, embed, heads, windows, grid, memory):
        super().__init__()
        self.patch_embed = Embed(embed)
        self.layers = nn.ModuleList(
            Stage(i, embed, heads[i], windows[i], grid, False, memory) for i in range(4)
        )
        for i, layer in enumerate(self.layers[:3]):
            layer.downsample = Merge(embed << i, 2 if memory else 3)
        for i in range(4):
            setattr(self, f"norm{i}", nn.LayerNorm(embed << i))


class Decoder(nn.Module):
    def __init__(self, embed, heads, windows, grid, memory):
        super().__init__()
        self.layers = nn.ModuleList(
            Stage(i, embed, heads[i], windows[i], grid, True, memory) for i in range(3)
        )


class Former(nn.Module):
    """nnFormer of the Synapse crop, or, with `memory`, FINE of a crop in its volume's middle."""

    # the cells of the grid of 5x5 volume tokens that a crop in the middle sees
    CURRENT = [12, 17, 13, 18]

    def __init__(self, memory, embed=192, classes=14, crop=(64, 128, 128)):
        super().__init__()
        heads = [embed // 32 << i for i in range(4)]
        windows = [4, 4, 4, 4] if memory else [4, 4, 8, 4]
        grid = (crop[0] // 2, crop[1] // 4, crop[2] // 4)
        self.memory = memory
        self.model_down = Encoder(embed, heads, windows, grid, memory)
        decoder = Decoder(embed, heads, windows, grid, memory)
        setattr(self, "encoder" if memory else "decoder", decoder)
        self.up = [decoder.layers[i] for i in (2, 1, 0)]
        self.final = nn.ModuleList([Head(embed, classes)])
        if memory:
            self.vt_check = nn.Parameter(torch.zeros(25, 1), requires_grad=False)

    def forward(self, x):
        x = self.model_down.patch_embed(x)
        skips = []
        for i, layer in enumerate(self.model_down.layers):
            x = (
                layer.remember(x, self.CURRENT)
                if self.memory
                else layer.blocks[1](layer.blocks[0](x))
            )
            skips.append(getattr(self.model_down, f"norm{i}")(x))
            if i < 3:
                x = layer.downsample(x)
        x = skips.pop()
        for layer in self.up:
            x, skip = layer.Upsample(x), skips.pop()
            if self.memory:
                x = layer.remember(x + skip, self.CURRENT)
            else:
                x = layer.blocks[1](layer.blocks[0].crossed(x, skip))
        return self.final[0](x)

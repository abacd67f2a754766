"""Swin-Unet and TransUNet (R50-ViT-B/16) in PyTorch, with the tensor names of their references.

Written from the papers (Cao et al., "Swin-Unet", 2021; Chen et al., "TransUNet", 2021) and from the
names and sizes in organum's own architectures. Slices of 224x224, one channel that is repeated to
three, 9 classes.
"""

import torch
import torch.nn.functional as F
from torch import nn

from windowed import Mlp, WindowAttention, cut, paste, shift_mask, swin_strides


class SwinBlock(nn.Module):
    def __init__(self, channels, heads, side, shifted):
        super().__init__()
        self.window, self.extent = (1, 7, 7), (1, side, side)
        self.shift = (0, 3, 3) if shifted and side > 7 else (0, 0, 0)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, self.window, swin_strides(self.window))
        self.mlp = Mlp(channels)
        mask = shift_mask(self.extent, self.window, self.shift) if self.shift[1] else None
        self.register_buffer("attn_mask", mask, persistent=False)

    def forward(self, x):
        y = self.norm1(x)
        if self.shift[1]:
            y = y.roll((-3, -3), (2, 3))
        y = paste(self.attn(cut(y, self.window), self.attn_mask), self.window, self.extent)
        if self.shift[1]:
            y = y.roll((3, 3), (2, 3))
        x = x + y
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm, self.reduction = (
            nn.LayerNorm(4 * channels),
            nn.Linear(4 * channels, 2 * channels, bias=False),
        )

    def forward(self, x):
        parts = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class PatchExpand(nn.Module):
    """Linear to `factor`^2 voxels of C / `shrink` channels, then a norm."""

    def __init__(self, channels, factor, shrink):
        super().__init__()
        self.factor, self.out = factor, channels // shrink
        self.expand = nn.Linear(channels, factor * factor * self.out, bias=False)
        self.norm = nn.LayerNorm(self.out)

    def forward(self, x):
        _, d, h, w, _ = x.shape
        f = self.factor
        x = self.expand(x).view(d, h, w, f, f, self.out).permute(0, 1, 3, 2, 4, 5)
        return self.norm(x.reshape(1, d, h * f, w * f, self.out))


class SwinStage(nn.Module):
    def __init__(self, channels, heads, side):
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(channels, heads, side, i == 1) for i in range(2))
        self.downsample = self.upsample = None

    def forward(self, x):
        for part in (*self.blocks, self.downsample, self.upsample):
            x = x if part is None else part(x)
        return x


class SwinNet(nn.Module):
    def __init__(self, embed=96, classes=9):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj, self.patch_embed.norm = (
            nn.Conv2d(3, embed, 4, 4),
            nn.LayerNorm(embed),
        )
        stage = lambda i: SwinStage(embed << i, 3 << i, 56 >> i)
        self.layers = nn.ModuleList(stage(i) for i in range(4))
        for i, layer in enumerate(self.layers[:3]):
            layer.downsample = PatchMerging(embed << i)
        self.norm, self.norm_up = nn.LayerNorm(embed * 8), nn.LayerNorm(embed)
        self.layers_up = nn.ModuleList(
            [PatchExpand(embed * 8, 2, 2), *(stage(i) for i in (2, 1, 0))]
        )
        self.concat_back_dim = nn.ModuleList(
            [nn.Identity(), *(nn.Linear(embed << i + 1, embed << i) for i in (2, 1, 0))]
        )
        for i in (1, 2):
            self.layers_up[i].upsample = PatchExpand(embed << 3 - i, 2, 2)
        self.up = PatchExpand(embed, 4, 1)
        self.output = nn.Conv2d(embed, classes, 1, bias=False)

    def forward(self, x):
        x = self.patch_embed.proj(x.repeat(1, 3, 1, 1)).permute(0, 2, 3, 1)
        x = self.patch_embed.norm(x)[:, None]
        skips = []
        for layer in self.layers:
            skips.append(x)
            x = layer(x)
        x = self.layers_up[0](self.norm(x))
        for i in (1, 2, 3):
            x = self.layers_up[i](self.concat_back_dim[i](torch.cat([x, skips[3 - i]], -1)))
        x = self.up(self.norm_up(x))[:, 0]
        return self.output(x.permute(0, 3, 1, 2))


class SwinUnet(nn.Module):
    def __init__(self):
        super().__init__()
        self.swin_unet = SwinNet()

    def forward(self, x):
        return self.swin_unet(x)


class StdConv2d(nn.Conv2d):
    """A convolution of standardised weights (arXiv 1903.10520)."""

    def forward(self, x):
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Unit(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        mid = outputs // 4
        self.conv1, self.gn1 = (
            StdConv2d(inputs, mid, 1, bias=False),
            nn.GroupNorm(32, mid, eps=1e-6),
        )
        self.conv2, self.gn2 = (
            StdConv2d(mid, mid, 3, stride, 1, bias=False),
            nn.GroupNorm(32, mid, eps=1e-6),
        )
        self.conv3, self.gn3 = (
            StdConv2d(mid, outputs, 1, bias=False),
            nn.GroupNorm(32, outputs, eps=1e-6),
        )
        self.projected = inputs != outputs or stride != 1
        if self.projected:
            self.downsample = StdConv2d(inputs, outputs, 1, stride, bias=False)
            self.gn_proj = nn.GroupNorm(outputs, outputs)

    def forward(self, x):
        y = F.relu(self.gn1(self.conv1(x)))
        y = F.relu(self.gn2(self.conv2(y)))
        y = self.gn3(self.conv3(y))
        return F.relu((self.gn_proj(self.downsample(x)) if self.projected else x) + y)


def named(**parts):
    module = nn.Module()
    for name, part in parts.items():
        module.add_module(name, part)
    return module


class Layer(nn.Module):
    def __init__(self, hidden=768, mlp=3072, heads=12):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.ffn_norm = (
            nn.LayerNorm(hidden, eps=1e-6),
            nn.LayerNorm(hidden, eps=1e-6),
        )
        linear = lambda: nn.Linear(hidden, hidden)
        self.attn = named(query=linear(), key=linear(), value=linear(), out=linear())
        self.ffn = named(fc1=nn.Linear(hidden, mlp), fc2=nn.Linear(mlp, hidden))

    def forward(self, x):
        y, a = self.attention_norm(x), self.attn
        q, k, v = (
            m(y).view(1, -1, self.heads, 64).transpose(1, 2) for m in (a.query, a.key, a.value)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + a.out(y)
        return x + self.ffn.fc2(F.gelu(self.ffn.fc1(self.ffn_norm(x))))


def conv_bn(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class TransUnet(nn.Module):
    def __init__(self, classes=9):
        super().__init__()
        root = named(conv=StdConv2d(3, 64, 7, 2, 3, bias=False), gn=nn.GroupNorm(32, 64, eps=1e-6))
        body = nn.Module()
        for block, (inputs, outputs, units, stride) in enumerate(
            [(64, 256, 3, 1), (256, 512, 4, 2), (512, 1024, 9, 2)], 1
        ):
            unit = lambda i: Unit(inputs if i == 1 else outputs, outputs, stride if i == 1 else 1)
            body.add_module(
                f"block{block}", named(**{f"unit{i}": unit(i) for i in range(1, units + 1)})
            )
        embeddings = named(
            hybrid_model=named(root=root, body=body), patch_embeddings=nn.Conv2d(1024, 768, 1)
        )
        embeddings.position_embeddings = nn.Parameter(torch.randn(1, 196, 768) * 0.1)
        encoder = named(
            layer=nn.ModuleList(Layer() for _ in range(12)),
            encoder_norm=nn.LayerNorm(768, eps=1e-6),
        )
        self.transformer = named(embeddings=embeddings, encoder=encoder)
        shapes = [(512 + 512, 256), (256 + 256, 128), (128 + 64, 64), (64, 16)]
        blocks = nn.ModuleList(named(conv1=conv_bn(i, o), conv2=conv_bn(o, o)) for i, o in shapes)
        self.decoder = named(conv_more=conv_bn(768, 512), blocks=blocks)
        self.segmentation_head = nn.Sequential(nn.Conv2d(16, classes, 3, padding=1))

    def forward(self, x):
        e = self.transformer.embeddings
        x = x.repeat(1, 3, 1, 1)
        x = F.relu(e.hybrid_model.root.gn(e.hybrid_model.root.conv(x)))
        skips = [x]
        x = F.max_pool2d(x, 3, 2)
        for i, block in enumerate(e.hybrid_model.body.children()):
            for unit in block.children():
                x = unit(x)
            # the skip alone is padded from 55 to 56
            skips.append(F.pad(x, (0, 1, 0, 1)) if i == 0 else x)
        skips.pop()
        x = e.patch_embeddings(x).flatten(2).transpose(1, 2) + e.position_embeddings
        for layer in self.transformer.encoder.layer:
            x = layer(x)
        x = self.transformer.encoder.encoder_norm(x).transpose(1, 2).reshape(1, 768, 14, 14)
        x = self.decoder.conv_more(x)
        for i, block in enumerate(self.decoder.blocks):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = torch.cat([x, skips[2 - i]], 1) if i < 3 else x
            x = block.conv2(block.conv1(x))
        return self.segmentation_head(x)

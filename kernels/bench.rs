//! Every kernel at the shapes of real networks: what `organum bench` and criterion measure.

use super::ceiling::Blocks;
use super::ceiling_copy::CeilingCopy;
use super::ceiling_fma::CeilingFma;
use super::{
    Activation, Call, ConvShape, ConvTransposeShape, Grouping, Interpolation, Load, Scope, Shift, Spread, Target, Through, TokenChannels,
    Window, WindowShape, argmax, attention, channel_stats, combine, concat, conv_transpose3d, conv_transpose3d_general, conv3d_direct,
    conv3d_general, conv3d_pointwise, conv3d_tiled, deformable_sampling, gather_tokens, head_argmax, layer_norm, norm_scale, normalise,
    patch_expand, patch_merge, plane_stats, pool3d, position_add, resize, shift, softmax, tile_accumulate, tile_crop, tile_normalise,
    token_rows, window_attention,
};
use crate::shape::{Elem, Extent, Map};

/// The copy that measures a device's traffic, and the loop that measures its arithmetic.
#[must_use]
pub fn ceilings(small: bool) -> [Call; 2] {
    let planes = if small { 8 } else { 64 };
    let (copy, loops) = (Blocks::whole([planes, 64, 4096]), Blocks::whole([8, 64, 256]));
    [Call::CeilingCopy(CeilingCopy(copy)), Call::CeilingFma(CeilingFma { blocks: loops, loops: if small { 64 } else { 512 } })]
}

fn whole(extent: Extent) -> Target {
    Target { first: 0, begin: 0, count: extent.d }
}

fn conv(input: Extent, in_channels: [u32; 2], out_channels: u32, k: u32, elem: Elem) -> ConvShape {
    ConvShape {
        input,
        in_channels,
        residual: false,
        out_channels,
        kernel: [k; 3],
        stride: [1; 3],
        padding: [k / 2; 3],
        loads: [Load::default(); 2],
        upsampled: [None; 2],
        activation: Activation::Relu,
        elem,
        windows: [Window::whole(0); 4],
        target: whole(input),
    }
}

/// Convolutions of small kernels: the levels of U-Nets, what they fuse, strides, and a map that does not fill a GPU.
fn convolutions(elem: Elem, cube: impl Fn(u32) -> Extent) -> Vec<(String, ConvShape)> {
    let norm = Load { norm: Some(Scope::Volume), activation: Activation::LeakyRelu { slope: 0.01 } };
    let k3 = |n: u32, in_channels: [u32; 2], out: u32| conv(cube(n), in_channels, out, 3, elem);
    // the last source through upsampling that is not stored
    let through = |in_channels: [u32; 2], out: u32| {
        let mut shape = k3(64, in_channels, out);
        shape.upsampled[usize::from(in_channels[1] > 0)] = Some(Through { stored: cube(32), mode: Interpolation::Aligned });
        shape
    };
    let mut stride = ConvShape { stride: [2; 3], ..k3(64, [32, 0], 64) };
    stride.target = whole(stride.output());
    let list = [
        ("k3_16-16", k3(64, [16, 0], 16)),
        ("k3_32-32", k3(64, [32, 0], 32)),
        ("k3_64-64", k3(32, [64, 0], 64)),
        ("k3_256-256", k3(16, [256, 0], 256)),
        ("k3_norm_32-32", ConvShape { loads: [norm, Load::default()], ..k3(64, [32, 0], 32) }),
        ("k3_16+16-16", k3(64, [16, 16], 16)),
        ("k3_through_32+0-32", through([32, 0], 32)),
        ("k3_through_16+16-16", through([16, 16], 16)),
        ("k3_stride2_32-64", stride),
        ("k1x3x3_32-32", ConvShape { kernel: [1, 3, 3], padding: [0, 1, 1], ..k3(64, [32, 0], 32) }),
    ];
    list.into_iter().map(|(label, shape)| (format!("{label}_{}", shape.input), shape)).collect()
}

/// What goes with the large steps: tokens, statistics, tiles.
fn around(elem: Elem, fine: Extent) -> Vec<(String, Call)> {
    let (map, windows) = (|channels| Map::new(fine, channels), [Window::whole(0)]);
    let (tokens, tile) = (Map::new(Extent::new(1, 1, 25), 192), Extent::new(fine.d / 2, fine.h / 2, fine.w / 2));
    let flip = [false, false, true];
    let place = tile_crop::TilePlace { tile, whole: fine, ring: fine.d, origin: [1; 3], flip };
    let accumulate = tile_accumulate::TileAccumulate {
        place,
        channels: 14,
        weights: Some(tile_accumulate::TileRounding { half: false, least: 0.0 }),
        share: 1.0,
        rounded: false,
        fresh: false,
        elem,
        planes: 0..tile.d,
        windows,
        target: whole(fine),
    };
    let crop = tile_crop::TileCrop { place, channels: 1, map: Map::new(tile, 1), elem, windows, target: whole(tile) };
    let mean = tile_normalise::TileNormalise {
        map: map(14),
        rounded: elem == Elem::F16,
        out: elem,
        windows: [Window::whole(0); 2],
        target: whole(fine),
    };
    let rows = token_rows::TokenRows { map: Map::new(Extent::new(8, 8, 8), 192), rows: 1, elem, target: Target::whole(8) };
    let scale = norm_scale::NormScale {
        planes: fine.d,
        channels: 32,
        group: 1,
        eps: 1e-5,
        scope: Scope::Volume,
        windows,
        target: Target::whole(1),
    };
    vec![
        (
            "25_of_192".to_owned(),
            Call::GatherTokens(gather_tokens::GatherTokens { input: tokens, count: 25, elem, windows, target: Target::whole(1) }),
        ),
        ("512_of_192".to_owned(), Call::TokenRows(rows)),
        (format!("32_{fine}"), Call::PlaneStats(plane_stats::PlaneStats { map: map(32), windows, target: whole(fine) })),
        (format!("32_{fine}"), Call::NormScale(scale)),
        (format!("14_{tile}"), Call::TileAccumulate(accumulate)),
        (format!("1_{tile}"), Call::TileCrop(crop)),
        (format!("14_{fine}"), Call::TileNormalise(mean)),
    ]
}

/// Labelled cases; `small` halves the extents for software adapters.
#[must_use]
pub fn cases(elem: Elem, small: bool) -> Vec<(String, Call)> {
    let cube = |n: u32| {
        let n = if small { n / 2 } else { n };
        Extent::new(n, n, n)
    };
    let in_rows = |(label, shape): (String, ConvShape)| (label, Call::Conv3dDirect(conv3d_direct::Conv3dDirect(shape)));
    let in_tiles = |(label, shape): (String, ConvShape)| (label, Call::Conv3dTiled(conv3d_tiled::Conv3dTiled(shape)));
    let pointwise = |n: u32, in_channels: [u32; 2], out: u32| {
        let shape = conv(cube(n), in_channels, out, 1, elem);
        (
            format!("{}+{}-{out}_{}", in_channels[0], in_channels[1], shape.input),
            Call::Conv3dPointwise(conv3d_pointwise::Conv3dPointwise(shape)),
        )
    };
    let transposed = |k: u32, general: bool| {
        let input = cube(32);
        let mut shape = ConvTransposeShape {
            input,
            in_channels: 64,
            out_channels: 32,
            kernel: [k; 3],
            stride: [2; 3],
            padding: [u32::from(general); 3],
            output_padding: [u32::from(general); 3],
            load: Load::default(),
            activation: Activation::None,
            elem,
            windows: [Window::whole(0); 2],
            target: Target::whole(0),
        };
        shape.target = Target::whole(shape.output().d);
        let label = format!("k{k}_stride2_64-32_{input}");
        if general {
            (label, Call::ConvTranspose3dGeneral(conv_transpose3d_general::ConvTranspose3dGeneral(shape)))
        } else {
            (label, Call::ConvTranspose3d(conv_transpose3d::ConvTranspose3d(shape)))
        }
    };
    let attention = |extent: Extent, channels: u32, heads: u32| {
        let call = attention::Attention {
            queries: extent,
            keys: extent,
            more_keys: None,
            channels: TokenChannels { qk: channels, v: channels, first: [0; 3] },
            stored: [channels; 3],
            heads,
            scale: 1.0 / ((channels / heads) as f32).sqrt(),
            per_plane: false,
            masked: false,
            elem,
            windows: [Window::whole(0); 5],
            target: whole(extent),
        };
        (format!("{}_tokens_{heads}x{}", extent.voxels(), channels / heads), Call::Attention(call))
    };
    let windows = |extent: Extent, channels: u32, heads: u32, window: [u32; 3], shift: [u32; 3]| {
        let shape = WindowShape {
            heads,
            qk_channels: channels,
            v_channels: channels,
            first: [0, channels, 2 * channels],
            scale: 1.0 / ((channels / heads) as f32).sqrt(),
            q_window: window,
            k_window: window,
            shift,
            tokens: 0,
            token_queries: false,
            bias_rows: 343,
        };
        let call = window_attention::WindowAttention {
            shape,
            queries: extent,
            q_channels: 3 * channels,
            keys: extent,
            kv_channels: 3 * channels,
            elem,
            windows: [Window::whole(0); 3],
            target: whole(extent),
        };
        (format!("{}_tokens_{heads}x{}", extent.voxels(), channels / heads), Call::WindowAttention(call))
    };
    let (fine, coarse) = (cube(64), cube(32));
    let map = |channels: u32| Map::new(fine, channels);
    let pooled = Extent::new(fine.d / 2, fine.h / 2, fine.w / 2);
    let one = [Window::whole(0)];
    let resize = |label: &str, mode: Interpolation| {
        let k = resize::Resize { input: coarse, output: fine, channels: 32, mode, elem, windows: one, target: whole(fine) };
        (format!("{label}_x2_32_{fine}"), Call::Resize(k))
    };
    let combine = |label: &str, multiply: bool| {
        let call = combine::Combine {
            map: map(32),
            spread: Spread::Nothing,
            multiply,
            loads: [Load::default(); 2],
            activation: Activation::None,
            elem,
            windows: [Window::whole(0); 4],
            target: whole(fine),
        };
        (format!("{label}_32_{fine}"), Call::Combine(call))
    };
    let general = |groups: u32, dilation: u32| {
        let call = conv3d_general::Conv3dGeneral {
            input: fine,
            grouping: Grouping { inputs: 32, outputs: 32, groups },
            kernel: [3; 3],
            stride: [1; 3],
            padding: [dilation; 3],
            dilation: [dilation; 3],
            load: Load::default(),
            activation: Activation::Relu,
            elem,
            windows: [Window::whole(0); 2],
            target: whole(fine),
        };
        (format!("k3_groups{groups}_dilation{dilation}_32-32_{fine}"), Call::Conv3dGeneral(call))
    };
    let layer_norm = |extent: Extent, channels: u32| {
        let call = layer_norm::LayerNorm {
            map: Map::new(extent, channels),
            eps: 1e-5,
            before: Activation::None,
            after: Activation::None,
            elem,
            windows: one,
            target: whole(extent),
        };
        (format!("{channels}_{extent}"), Call::LayerNorm(call))
    };
    let deformable = deformable_sampling::DeformableSampling {
        queries: Extent::new(12, 24, 24),
        levels: vec![Extent::new(12, 24, 24), Extent::new(6, 12, 12)],
        channels: 384,
        heads: 6,
        points: 4,
        elem,
        windows: [Window::whole(0); 6],
        target: Target::whole(12),
    };
    let norm = Load { norm: Some(Scope::Volume), activation: Activation::LeakyRelu { slope: 0.01 } };
    let list = vec![
        general(1, 2),
        general(4, 1),
        general(32, 1),
        pointwise(64, [64, 0], 64),
        pointwise(8, [768, 0], 768),
        pointwise(64, [16, 16], 16),
        transposed(2, false),
        transposed(3, true),
        (
            format!("k2_32_{fine}"),
            Call::Pool3d(pool3d::Pool3d {
                input: fine,
                channels: 32,
                average: false,
                kernel: [2; 3],
                stride: [2; 3],
                padding: [0; 3],
                elem,
                windows: one,
                target: whole(pooled),
            }),
        ),
        resize("aligned", Interpolation::Aligned),
        resize("half_pixel", Interpolation::HalfPixel),
        resize("nearest", Interpolation::Nearest),
        (
            format!("roll_32_{fine}"),
            Call::Shift(shift::ShiftMap { input: fine, channels: 32, shift: [Shift::Roll(2); 3], elem, windows: one, target: whole(fine) }),
        ),
        (
            format!("222_32_{fine}"),
            Call::PatchMerge(patch_merge::PatchMerge {
                input: fine,
                channels: 32,
                patch: [2; 3],
                order: (0..8).map(|i| [i >> 2, i >> 1 & 1, i & 1]).collect(),
                elem,
                windows: one,
                target: whole(coarse),
            }),
        ),
        (
            format!("222_32_{fine}"),
            Call::PatchExpand(patch_expand::PatchExpand {
                input: coarse,
                output: fine,
                channels: 32,
                patch: [2; 3],
                elem,
                windows: one,
                target: whole(fine),
            }),
        ),
        (format!("32_{fine}"), Call::PositionAdd(position_add::PositionAdd { map: map(32), elem, windows: one, target: whole(fine) })),
        combine("add", false),
        combine("multiply", true),
        (
            format!("16+16_{fine}"),
            Call::Concat(concat::Concat { extent: fine, channels: [16; 2], elem, windows: [Window::whole(0); 2], target: whole(fine) }),
        ),
        (format!("32_{fine}"), Call::ChannelStats(channel_stats::ChannelStats { map: map(32), elem, windows: one, target: whole(fine) })),
        (
            format!("32_{fine}"),
            Call::Normalise(normalise::Normalise {
                map: map(32),
                load: norm,
                prelu: false,
                elem,
                windows: [Window::whole(0); 2],
                target: whole(fine),
            }),
        ),
        (format!("32-14_{fine}"), Call::HeadArgmax(head_argmax::HeadArgmax(conv(fine, [32, 0], 14, 1, elem)))),
        (format!("14_{fine}"), Call::Argmax(argmax::Argmax { map: map(14), elem, windows: one, target: whole(fine) })),
        layer_norm(cube(64), 96),
        layer_norm(cube(32), 192),
        layer_norm(cube(16), 768),
        (format!("14_{fine}"), Call::Softmax(softmax::Softmax { map: map(14), elem, windows: one, target: whole(fine) })),
        // a stage of a windowed transformer, its deepest one, and an image
        windows(cube(32), 192, 6, [4; 3], [2; 3]),
        windows(cube(8), 768, 24, [8; 3], [0; 3]),
        windows(Extent::new(1, 56, 56), 96, 3, [1, 7, 7], [0, 3, 3]),
        // the bottleneck of the hippocampus network, and of an abdominal one
        attention(Extent::new(10, 14, 10), 48, 4),
        attention(cube(16), 256, 8),
        ("two_levels_6x64".to_owned(), Call::DeformableSampling(deformable)),
    ];
    let convolutions = convolutions(elem, cube);
    let linear = [("k1_64-64", cube(64), [64, 0], 64), ("k1_16+16-16", cube(64), [16; 2], 16), ("k1_768-768", cube(8), [768, 0], 768)];
    let linear = linear.map(|(label, n, from, to)| (format!("{label}_{n}"), conv(n, from, to, 1, elem).flattened()));
    let tiled = convolutions.clone().into_iter().chain(linear).map(in_tiles);
    let list = convolutions.into_iter().map(in_rows).chain(tiled).chain(list).chain(around(elem, fine));
    list.into_iter().map(|(label, call)| (format!("{}/{label}", call.name()), call)).collect()
}

//! The operations of the twelve networks (the union of their primitive operations), each with the cases that cover it in both
//! storage types.
#![allow(clippy::print_stdout, reason = "the table belongs to a test's output")]

use organum::DeviceCaps;
use organum::kernels::{self, Storage};

/// Operation, kernel, and a word that the labels of its cases begin with or hold.
const OPERATIONS: &[(&str, &str, &str)] = &[
    ("convolution 1x1x1, linear layer", "conv3d_pointwise", "plain"),
    ("convolution 3x3x3 in tiles", "conv3d_tiled", "k3"),
    ("convolution 2x2x2 stride 2 in tiles", "conv3d_tiled", "k2_stride2"),
    ("two sources for a concatenation, in tiles", "conv3d_tiled", "concat"),
    ("norm and activation as a tile is staged", "conv3d_tiled", "k3_norm"),
    ("residual added to the sums of tiles", "conv3d_tiled", "residual"),
    ("tiles read through upsampling", "conv3d_tiled", "upsampled"),
    ("convolution 1x3x3", "conv3d_direct", "k1x3x3"),
    ("convolution 3x3x3", "conv3d_direct", "k3"),
    ("convolution 5x5x5, stride 1x2x2", "conv3d_direct", "k5"),
    ("convolution 7x7x7, stride 1x2x2", "conv3d_direct", "k7_stride122"),
    ("convolution 2x2x2 stride 2", "conv3d_direct", "k2_stride2"),
    ("patch embedding 4x4x4", "conv3d_direct", "k4_stride4"),
    ("patch embedding 16x16x16", "conv3d_direct", "k16_stride16"),
    ("convolution 1x1x1 stride 2", "conv3d_direct", "k1_stride2"),
    ("two sources for a concatenation", "conv3d_direct", "concat"),
    ("norm and activation as it loads", "conv3d_direct", "k3_norm"),
    ("residual added to the sums", "conv3d_direct", "residual"),
    ("residual of a linear layer", "conv3d_pointwise", "residual"),
    ("read through linear upsampling", "conv3d_direct", "upsampled"),
    ("read through half-pixel upsampling", "conv3d_direct", "half_pixel"),
    ("read through nearest upsampling", "conv3d_direct", "nearest"),
    ("dilation", "conv3d_general", "dilated"),
    ("groups", "conv3d_general", "groups"),
    ("depthwise", "conv3d_general", "depthwise"),
    ("transposed convolution, kernel = stride", "conv_transpose3d", "k2"),
    ("transposed convolution 1x2x2", "conv_transpose3d", "k1x2x2"),
    ("transposed convolution 4x4x4", "conv_transpose3d", "k4"),
    ("transposed convolution 3x3x3 stride 2", "conv_transpose3d_general", "k3_stride2"),
    ("statistics of instance and group norm", "channel_stats", "odd"),
    ("norm applied", "normalise", "volume"),
    ("norm of each plane applied", "normalise", "planes"),
    ("layer norm", "layer_norm", "narrow"),
    ("layer norm after GELU", "layer_norm", "gelu_before"),
    ("attention over a whole map", "attention", "many_tokens"),
    ("attention of a fused projection", "attention", "fused"),
    ("attention to two sources, masked", "attention", "two_sources_masked"),
    ("attention in each slice", "attention", "per_plane"),
    ("2D windows", "window_attention", "windows_2d"),
    ("3D windows", "window_attention", "windows_3d"),
    ("shifted windows", "window_attention", "shifted_3d"),
    ("shifted windows over padding", "window_attention", "padded"),
    ("windows with tokens", "window_attention", "tokens"),
    ("window tokens ask", "window_attention", "token_queries"),
    ("non-local upsampling", "window_attention", "finer_queries"),
    ("deformable sampling", "deformable_sampling", "two_levels"),
    ("positional encoding", "position_add", "plain"),
    ("learned tokens", "token_rows", "over_and_over"),
    ("roll", "shift", "roll"),
    ("zero padding", "shift", "pad"),
    ("crop", "shift", "crop"),
    ("flip", "shift", "flip"),
    ("concatenation that is stored", "concat", "odd"),
    ("gather of rows", "gather_tokens", "some"),
    ("patch merging", "patch_merge", "swin"),
    ("patch expanding", "patch_expand", "swin"),
    ("max pooling", "pool3d", "odd"),
    ("average pooling", "pool3d", "average"),
    ("max pooling 3x3x3 stride 2", "pool3d", "k3_stride2"),
    ("nearest resampling", "resize", "nearest"),
    ("linear resampling, corners aligned", "resize", "aligned"),
    ("linear resampling, half-pixel", "resize", "half_pixel"),
    ("ReLU", "normalise", "relu"),
    ("leaky ReLU", "normalise", "leaky"),
    ("ELU", "normalise", "elu"),
    ("GELU", "normalise", "gelu"),
    ("sigmoid", "normalise", "sigmoid"),
    ("PReLU", "normalise", "prelu"),
    ("sum", "combine", "add"),
    ("sum of normalised maps", "combine", "add_norm"),
    ("product", "combine", "multiply"),
    ("product broadcast over channels", "combine", "over_channels"),
    ("product broadcast over voxels", "combine", "over_voxels"),
    ("softmax over channels", "softmax", "14_classes"),
    ("arg-max to 8 bits", "argmax", "odd_plane"),
    ("arg-max to 16 bits", "argmax", "many_classes"),
    ("last layer and arg-max, class by class block", "head_argmax", "concat_14_classes"),
    ("weighted tiles added up", "tile_accumulate", "inside"),
    ("mirrored tiles", "tile_accumulate", "flipped"),
    ("tiles cropped", "tile_crop", "inside"),
    ("mirrored tiles cropped", "tile_crop", "flipped"),
];

#[test]
fn the_catalogue_covers_every_operation_in_both_storage_types() {
    let (caps, packed) = (DeviceCaps::default(), DeviceCaps::default().without_f16());
    let cases = kernels::cases();
    println!("{:<46} {:<26} {:>5} {:>5} {:>7}", "operation", "kernel", "f32", "f16", "packed");
    for (operation, kernel, word) in OPERATIONS {
        let of = |label: &String| label.strip_prefix(kernel).and_then(|l| l.strip_prefix('/')).is_some_and(|l| l.contains(word));
        let found: Vec<_> = cases.iter().filter(|(label, _)| of(label)).map(|(_, call)| call).collect();
        let stored = |storage| found.iter().filter(|call| call.variant(&caps).storage == storage).count();
        let packs = found.iter().filter(|c| c.packs() && c.variant(&packed).storage == Storage::PackedF16).count();
        let [f32s, f16s] = [Storage::F32, Storage::F16].map(stored);
        println!("{operation:<46} {kernel:<26} {f32s:>5} {f16s:>5} {packs:>7}");
        assert!(f32s > 0 && f16s > 0 && packs > 0, "{operation}: no case of {kernel} in every storage type");
    }
    let named = |name: &&str| OPERATIONS.iter().any(|(_, kernel, _)| kernel == name);
    // parts of a norm and of windows that are always f32, and the ceilings
    let apart = ["plane_stats", "norm_scale", "tile_normalise", "ceiling_copy", "ceiling_fma"];
    let missing: Vec<_> = kernels::NAMES.iter().filter(|name| !named(name) && !apart.contains(name)).collect();
    assert!(missing.is_empty(), "kernels without an operation: {missing:?}");
    let measured = kernels::bench::cases(organum::Elem::F32, true);
    let shaped = |name: &&&str| measured.iter().any(|(label, _)| label.strip_prefix(**name).is_some_and(|rest| rest.starts_with('/')));
    let missing: Vec<_> = kernels::NAMES.iter().filter(|name| !name.starts_with("ceiling_") && !shaped(name)).collect();
    assert!(missing.is_empty(), "kernels that organum bench does not measure: {missing:?}");
}

// Packed weights of convolutions, which are always f32: `weight`, an array<Tap8>; see
// kernels/conv.rs. A struct, not eight elements of an array, as compilers merge the loads of its
// members.

// Weights between four input channels and eight output channels: of input channel i those of
// outputs 0 to 3 and 4 to 7.
struct Tap8 {
    low0: vec4<f32>,
    high0: vec4<f32>,
    low1: vec4<f32>,
    high1: vec4<f32>,
    low2: vec4<f32>,
    high2: vec4<f32>,
    low3: vec4<f32>,
    high3: vec4<f32>,
}

// Sums of outputs 0 to 3 with the products of four input channels added.
fn add_low(sum: vec4<f32>, x: vec4<f32>, tap: Tap8) -> vec4<f32> {
    let two = fma(vec4<f32>(x.y), tap.low1, fma(vec4<f32>(x.x), tap.low0, sum));
    return fma(vec4<f32>(x.w), tap.low3, fma(vec4<f32>(x.z), tap.low2, two));
}

// The same of outputs 4 to 7.
fn add_high(sum: vec4<f32>, x: vec4<f32>, tap: Tap8) -> vec4<f32> {
    let two = fma(vec4<f32>(x.y), tap.high1, fma(vec4<f32>(x.x), tap.high0, sum));
    return fma(vec4<f32>(x.w), tap.high3, fma(vec4<f32>(x.z), tap.high2, two));
}

// Biases of a block of eight output channels, given where the biases begin.
fn bias_of(begin: u32, eight: u32) -> mat2x4<f32> {
    let at = begin + eight / 4u;
    switch eight % 4u {
        case 0u: {
            return mat2x4<f32>(weight[at].low0, weight[at].high0);
        }
        case 1u: {
            return mat2x4<f32>(weight[at].low1, weight[at].high1);
        }
        case 2u: {
            return mat2x4<f32>(weight[at].low2, weight[at].high2);
        }
        default: {
            return mat2x4<f32>(weight[at].low3, weight[at].high3);
        }
    }
}

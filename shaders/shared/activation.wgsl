// Activation fused into a store or a load: 0 none, 1 ReLU, 2 sigmoid, 3 leaky ReLU, 4 ELU, 5 GELU.
override ACTIVATION: u32 = 0u;
override SLOPE: f32 = 0.01;   // of a leaky ReLU; alpha of an ELU

// x (1 + erf(x / sqrt 2)) / 2. With q = erfc(|x| / sqrt 2) it is max(x, 0) - |x| q / 2, which does not cancel.
// q: Abramowitz & Stegun, Handbook of Mathematical Functions, 7.1.26; |error| <= 1.5e-7.
fn gelu(x: vec4<f32>) -> vec4<f32> {
    let z = abs(x) * 0.70710678;
    let t = 1.0 / fma(vec4<f32>(0.3275911), z, vec4<f32>(1.0));
    var p = fma(vec4<f32>(1.061405429), t, vec4<f32>(-1.453152027));
    p = fma(p, t, vec4<f32>(1.421413741));
    p = fma(p, t, vec4<f32>(-0.284496736));
    p = fma(p, t, vec4<f32>(0.254829592));
    return max(x, vec4<f32>(0.0)) - 0.5 * abs(x) * (p * t * exp(-z * z));
}

fn activate_as(x: vec4<f32>, kind: u32, slope: f32) -> vec4<f32> {
    if kind == 1u {
        return select(x, vec4<f32>(0.0), x < vec4<f32>(0.0));   // max may make 0 of NaN
    }
    if kind == 2u {
        return 1.0 / (1.0 + exp(-x));
    }
    if kind == 3u {
        if slope > 0.0 && slope <= 1.0 {
            return max(x, slope * x);     // the same in fewer instructions
        }
        return select(slope * x, x, x >= vec4<f32>(0.0));
    }
    if kind == 4u {
        return select(slope * (exp(select(x, vec4<f32>(0.0), x > vec4<f32>(0.0))) - 1.0), x, x >= vec4<f32>(0.0));
    }
    if kind == 5u {
        return gelu(x);
    }
    return x;
}

fn activate(x: vec4<f32>) -> vec4<f32> {
    return activate_as(x, ACTIVATION, SLOPE);
}

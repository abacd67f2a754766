// Linear interpolation with aligned corners along one axis. Whoever interpolates takes it from here: then the bits are the same.

struct LinearTap {
    low: u32,
    high: u32,
    weight: f32,              // of `high`
}

// What output index `o` mixes; coordinates are exact fractions of integers.
fn linear_tap(o: u32, n_in: u32, n_out: u32) -> LinearTap {
    let den = max(n_out - 1u, 1u);
    let num = o * (n_in - 1u);
    let low = num / den;
    return LinearTap(low, min(low + 1u, n_in - 1u), f32(num % den) / f32(den));
}

// `mix` written out, as a compiler may lower that one way here and another way there.
fn linear_mix(low: vec4<f32>, high: vec4<f32>, weight: f32) -> vec4<f32> {
    return fma(vec4<f32>(weight), high - low, low);
}

// What resampling mixes along one axis. Whoever resamples takes it from here: then the bits are the same.
override RESIZE: u32 = 0u;    // 0 linear with aligned corners, 1 linear between centres of voxels, 2 nearest

struct Tap {
    low: u32,
    high: u32,
    weight: f32,              // of `high`
}

// What output index `o` mixes; coordinates are exact fractions of integers.
fn resize_tap(o: u32, n_in: u32, n_out: u32) -> Tap {
    if RESIZE == 2u {
        let nearest = o * n_in / n_out;
        return Tap(nearest, nearest, 0.0);
    }
    var num = o * (n_in - 1u);
    var den = max(n_out - 1u, 1u);
    if RESIZE == 1u {
        num = max((2u * o + 1u) * n_in, n_out) - n_out;    // before the first centre is at it
        den = 2u * n_out;
    }
    let low = num / den;
    return Tap(low, min(low + 1u, n_in - 1u), f32(num % den) / f32(den));
}

// `mix` written out, as a compiler may lower that one way here and another way there.
fn linear_mix(low: vec4<f32>, high: vec4<f32>, weight: f32) -> vec4<f32> {
    return fma(vec4<f32>(weight), high - low, low);
}

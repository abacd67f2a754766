// The 16-bit floats nearest to four numbers, of two the even one, as f32; infinite beyond 65504. In integers, as compilers take a
// conversion to f16 and back for nothing.
fn half_of(x: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(x);
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    let nearest = (magnitude + vec4<u32>(0xfffu) + ((magnitude >> vec4<u32>(13u)) & vec4<u32>(1u))) & vec4<u32>(0xffffe000u);
    let infinite = vec4<u32>(0x7f800000u);
    let bounded = select(nearest, infinite, nearest >= vec4<u32>(0x47800000u));
    let normal = select(bounded, magnitude, magnitude > infinite);   // rounding may carry NaN to 0
    // what f16 holds as a subnormal has steps of 2^-24
    let tiny = round(x * 16777216.0) / 16777216.0;
    let whole = bitcast<vec4<f32>>(normal | (bits & vec4<u32>(0x80000000u)));
    return select(whole, tiny, magnitude < vec4<u32>(0x38800000u));
}

// The bits of numbers that are 16-bit floats already, two to a word.
fn half_bits(x: vec4<f32>) -> vec2<u32> {
    let bits = bitcast<vec4<u32>>(x);
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    let tiny = vec4<u32>(abs(x) * 16777216.0);
    let finite = select((magnitude - vec4<u32>(0x38000000u)) >> vec4<u32>(13u), tiny, magnitude < vec4<u32>(0x38800000u));
    let special = select(vec4<u32>(0x7c00u), vec4<u32>(0x7e00u), magnitude > vec4<u32>(0x7f800000u));
    let half = select(finite, special, magnitude >= vec4<u32>(0x47800000u)) | ((bits >> vec4<u32>(16u)) & vec4<u32>(0x8000u));
    return vec2<u32>(half.x | (half.y << 16u), half.z | (half.w << 16u));
}

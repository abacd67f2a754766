// Element prelude: activations and weights stored as f16; arithmetic stays f32.
enable f16;
alias Elem = f16;
alias Elem4 = vec4<f16>;

// A value as it is once stored and loaded. In integers, as compilers take a conversion to f16 and back for nothing; what f16
// holds as a subnormal becomes zero, as devices may do either.
fn rounded(x: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(x);
    let tie_to_even = (bits >> vec4<u32>(13u)) & vec4<u32>(1u);
    let nearest = (bits + vec4<u32>(0xfffu) + tie_to_even) & vec4<u32>(0xffffe000u);
    return select(bitcast<vec4<f32>>(nearest), vec4<f32>(0.0), abs(x) < vec4<f32>(0.00006103515625));
}

// Element prelude: activations and weights stored as f16; arithmetic stays f32.
enable f16;
alias Elem = f16;
alias Elem4 = vec4<f16>;

fn wide(x: Elem4) -> vec4<f32> {
    return vec4<f32>(x);
}

fn narrow(x: vec4<f32>) -> Elem4 {
    return Elem4(x);
}

// Element i of an array<Elem> `a` is pick(a[slot(i)], i).
fn slot(i: u32) -> u32 {
    return i;
}

fn pick(x: Elem, i: u32) -> f32 {
    return f32(x);
}

// A value as it is once stored and loaded. In integers, as compilers take a conversion to f16 and back for nothing; what f16
// holds as a subnormal becomes zero, as devices may do either.
fn rounded(x: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(x);
    let tie_to_even = (bits >> vec4<u32>(13u)) & vec4<u32>(1u);
    let nearest = (bits + vec4<u32>(0xfffu) + tie_to_even) & vec4<u32>(0xffffe000u);
    let kept = select(nearest, bits, (bits & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u));   // rounding may carry NaN to 0
    return select(bitcast<vec4<f32>>(kept), vec4<f32>(0.0), abs(x) < vec4<f32>(0.00006103515625));
}

// What is written one component of an Elem4 at a time: PACKED elements, of which `y` is the second.
const PACKED: u32 = 1u;

fn packed(x: f32, y: f32) -> Elem {
    return f16(x);
}

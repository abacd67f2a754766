// Element prelude: activations and weights stored as f16 on devices without shader-f16, two to a word; arithmetic is f32.
alias Elem = u32;
alias Elem4 = vec2<u32>;

fn wide(x: Elem4) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(x.x), unpack2x16float(x.y));
}

// WGSL leaves the rounding of pack2x16float open; what is rounded already is packed as it is.
fn narrow(x: vec4<f32>) -> Elem4 {
    let tiny = abs(x) < vec4<f32>(0.00006103515625);
    let y = select(rounded(x), x, tiny);
    return vec2<u32>(pack2x16float(y.xy), pack2x16float(y.zw));
}

// Element i of an array<Elem> `a` is pick(a[slot(i)], i).
fn slot(i: u32) -> u32 {
    return i / 2u;
}

fn pick(x: Elem, i: u32) -> f32 {
    return unpack2x16float(x)[i % 2u];
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
const PACKED: u32 = 2u;

fn packed(x: f32, y: f32) -> Elem {
    return narrow(vec4<f32>(x, y, 0.0, 0.0)).x;
}

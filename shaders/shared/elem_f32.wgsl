// Element prelude: activations and weights stored as f32.
alias Elem = f32;
alias Elem4 = vec4<f32>;

fn wide(x: Elem4) -> vec4<f32> {
    return x;
}

fn narrow(x: vec4<f32>) -> Elem4 {
    return x;
}

// Element i of an array<Elem> `a` is pick(a[slot(i)], i).
fn slot(i: u32) -> u32 {
    return i;
}

fn pick(x: Elem, i: u32) -> f32 {
    return x;
}

// A value as it is once stored and loaded.
fn rounded(x: vec4<f32>) -> vec4<f32> {
    return x;
}

// What is written one component of an Elem4 at a time: PACKED elements, of which `y` is the second.
const PACKED: u32 = 1u;

fn packed(x: f32, y: f32) -> Elem {
    return x;
}

// Element prelude: activations and weights stored as f32.
alias Elem = f32;
alias Elem4 = vec4<f32>;

// A value as it is once stored and loaded.
fn rounded(x: vec4<f32>) -> vec4<f32> {
    return x;
}

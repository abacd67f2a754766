// Activation fused into a store: 0 none, 1 ReLU, 2 sigmoid.
override ACTIVATION: u32 = 0u;

fn activate(x: vec4<f32>) -> vec4<f32> {
    if ACTIVATION == 1u {
        return max(x, vec4<f32>(0.0));
    }
    if ACTIVATION == 2u {
        return 1.0 / (1.0 + exp(-x));
    }
    return x;
}

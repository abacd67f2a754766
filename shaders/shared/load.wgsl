// A source's voxels as they are loaded: activation(scale x + shift), or the activation alone; see kernels/load.rs.
override A_NORM: u32 = 0u;          // scale and shift: 0 none, 1 of the volume, 2 of each plane
override A_ACTIVATION: u32 = 0u;
override A_SLOPE: f32 = 0.01;
override B_NORM: u32 = 0u;
override B_ACTIVATION: u32 = 0u;
override B_SLOPE: f32 = 0.01;

fn load_a(x: vec4<f32>, norm: mat2x4<f32>) -> vec4<f32> {
    if A_NORM > 0u {
        return activate_as(fma(x, norm[0], norm[1]), A_ACTIVATION, A_SLOPE);
    }
    return activate_as(x, A_ACTIVATION, A_SLOPE);
}

fn load_b(x: vec4<f32>, norm: mat2x4<f32>) -> vec4<f32> {
    if B_NORM > 0u {
        return activate_as(fma(x, norm[0], norm[1]), B_ACTIVATION, B_SLOPE);
    }
    return activate_as(x, B_ACTIVATION, B_SLOPE);
}

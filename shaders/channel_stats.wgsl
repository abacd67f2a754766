// Mean and sum of squared deviations of each channel over the parts of a plane, ROWS rows each; the last may have fewer.
// One workgroup computes one part: its invocations share out the voxels, each takes one block of 4 channels; y walks the
// parts, z the planes. The order of operations depends on the part alone, never on how planes are cut into slabs.
// Limits: the source's planes lie in one slab.

override WORKGROUP: u32 = 64u;
override ROWS: u32 = 8u;

struct Params {
    rows: u32,                // of a plane
    width: u32,               // voxels of a row
    blocks: u32,              // of 4 channels
    parts: u32,               // of a plane
    first: u32,
    out_first: u32,
    out_begin: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<Elem4>;              // [D, H, W, C/4]
@group(0) @binding(2) var<storage, read_write> dst: array<vec4<f32>>;    // [D, parts, 2, C/4]: means, sums of squares

var<workgroup> counts: array<f32, WORKGROUP>;
var<workgroup> means: array<vec4<f32>, WORKGROUP>;
var<workgroup> squares: array<vec4<f32>, WORKGROUP>;

@compute @workgroup_size(WORKGROUP, 1, 1)
fn channel_stats(@builtin(local_invocation_id) local: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>) {
    let lane = local.x;
    let z = params.out_begin + group.z;
    let row = group.y * ROWS;
    let voxels = min(ROWS, params.rows - row) * params.width;
    let source = ((z - params.first) * params.rows + row) * params.width * params.blocks;
    let out = ((z - params.out_first) * params.parts + group.y) * 2u * params.blocks;
    let tile = max(min(params.blocks, WORKGROUP), 1u);
    let walkers = WORKGROUP / tile;       // invocations that share a block
    let walker = lane / tile;

    for (var base = 0u; base < params.blocks; base += tile) {
        let block = base + lane % tile;
        let busy = walker < walkers && block < params.blocks;
        var count = 0.0;
        var mean = vec4<f32>(0.0);
        var square = vec4<f32>(0.0);
        var pivot = vec4<f32>(0.0);
        if busy {
            // deviations from the first voxel: next to a large mean, rounding would drown the differences
            pivot = wide(src[source + block]);
            for (var v = walker; v < voxels; v += walkers) {
                let x = wide(src[source + v * params.blocks + block]) - pivot;
                count += 1.0;
                let delta = x - mean;
                mean = fma(delta, vec4<f32>(1.0 / count), mean);
                square = fma(delta, x - mean, square);
            }
        }
        counts[lane] = count;
        means[lane] = mean;
        squares[lane] = square;
        for (var step = 1u; step < walkers; step *= 2u) {
            workgroupBarrier();
            if busy && walker % (2u * step) == 0u && walker + step < walkers {
                let other = lane + step * tile;
                let n = counts[other];
                if n > 0.0 {
                    let share = n / (count + n);
                    let delta = means[other] - mean;
                    square += squares[other] + delta * delta * (count * share);
                    mean = fma(delta, vec4<f32>(share), mean);
                    count += n;
                    counts[lane] = count;
                    means[lane] = mean;
                    squares[lane] = square;
                }
            }
        }
        if busy && walker == 0u {
            dst[out + block] = pivot + mean;
            dst[out + params.blocks + block] = square;
        }
        workgroupBarrier();
    }
}

//! A network that is built node by node, planned within a budget and run:
//! `cargo run --release --example own_network`.
#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "an example says what it did")]

use std::error::Error;

use organum::graph::{BatchNorm, Conv, Graph, Op};
use organum::kernels::Activation;
use organum::{DeviceCaps, Extent, Input, Model, OutputData, OutputMode, Plan, PlanOptions, RunOptions, Session};

fn main() -> Result<(), Box<dyn Error>> {
    let (plan, logits) = run(Extent::new(24, 32, 32))?;
    println!("{plan}");
    println!("{} logits, the first of them {:.4}", logits.len(), logits[0]);
    Ok(())
}

/// A convolution with a kernel of 3x3x3, or of 1x1x1.
fn convolution(module: &str, [from, to]: [u32; 2], kernel: u32) -> Op {
    let n = kernel as usize;
    Op::Conv(Conv {
        module: module.into(),
        in_channels: from,
        out_channels: to,
        kernel: [kernel; 3],
        padding: [kernel / 2; 3],
        // the shape of `MODULE.weight` in the file
        weight_shape: vec![to as usize, from as usize, n, n, n],
        ..Conv::default()
    })
}

/// Two convolutions with a batch norm and a ReLU between them, and a head of three classes.
fn network() -> Graph {
    let mut graph = Graph::default();
    let input = graph.add("input", Op::Input { channels: 1 }, &[]);
    let first = graph.add("first", convolution("first", [1, 8], 3), &[input]);
    let norm = BatchNorm { module: "norm".into(), channels: 8, eps: 1e-5 };
    let norm = graph.add("norm", Op::BatchNorm(norm), &[first]);
    let relu = graph.add("relu", Op::Activation(Activation::Relu), &[norm]);
    let second = graph.add("second", convolution("second", [8, 8], 3), &[relu]);
    // the last node is the output
    graph.add("head", convolution("head", [8, 3], 1), &[second]);
    graph
}

/// Plans the network for an extent and runs it on the host: the plan's figures, and the logits.
pub(crate) fn run(extent: Extent) -> Result<(String, Vec<f32>), Box<dyn Error>> {
    // with weights of one's own: Model::from_graph(graph, bytes of a safetensors file)
    let model = Model::random_graph(network(), 7)?;
    let options = PlanOptions::default().with_output(OutputMode::Logits).with_budget(4 << 20);
    let plan = Plan::new(&model, extent, &DeviceCaps::host(), &options)?;
    let told = plan.to_string();
    let mut session = Session::on_host(&model, plan)?;
    let data: Vec<f32> = (0..extent.voxels()).map(|i| (i as f32 * 0.1).sin()).collect();
    let input = Input { channels: 1, extent, data: &data };
    let outputs = session.run_blocking(input, RunOptions::default())?;
    match outputs.into_iter().next().map(|output| output.data) {
        Some(OutputData::Map(logits)) => Ok((told, logits)),
        _ => Err("the run brought no logits back".into()),
    }
}

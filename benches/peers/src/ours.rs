//! organum's sides: a network runs from the input to the logits in host memory; a layer is planned
//! and run as a network of one layer for its result, and then the very kernel calls of that plan
//! are timed alone, without the transfers that a layer within a network has not.

use std::time::Instant;

use organum::graph::{
    Attention, Combine, Conv, ConvTranspose, Graph, NodeId, Norm, Op, RelativeBias, WindowAttention,
};
use organum::harness::{KernelRun, source_sizes, values};
use organum::kernels::host::{Scratch, Slab, SlabMut, instructions};
use organum::kernels::{Activation, Call, HostSlice, TokenChannels, WindowShape};
use organum::{
    DeviceCaps, Engine, Input, Model, OutputData, OutputMode, Plan, PlanOptions, RunOptions,
    Session,
};
use serde_json::{Value, json};

use crate::case::{Case, Layer};
use crate::{Failure, Side};

/// A case on the host, or on an adapter.
///
/// # Errors
/// When the tensors are not those of the case, or the device fails.
pub fn open(case: &Case, engine: Option<&Engine>) -> Result<Box<dyn Side>, Failure> {
    let caps = engine.map_or_else(DeviceCaps::host, |engine| engine.caps().clone());
    let model = match &case.layer {
        Layer::Network { model, .. } => Model::load(model)?,
        layer => Model::from_graph(graph(layer, case.channels)?, case.weights.clone())?,
    };
    let options = PlanOptions::default().with_output(OutputMode::Logits);
    let plan = Plan::new(&model, case.extent, &caps, &options)?;
    let calls: Vec<Call> = plan.recording().dispatches().map(|(call, _)| call.clone()).collect();
    let mut about = match engine {
        Some(e) => json!({ "device": e.summary().name, "driver": e.summary().driver }),
        None => json!({ "device": "host", "driver": instructions(), "threads": caps.threads }),
    };
    about["flops"] = plan.report().flops.into();
    about["planned_bytes"] = plan.report().peak_bytes.into();
    let session = match engine {
        Some(engine) => pollster::block_on(Session::new(engine, &model, plan))?,
        None => Session::on_host(&model, plan)?,
    };
    let whole = Whole {
        session,
        channels: case.channels,
        extent: case.extent,
        input: case.input.clone(),
        about: about.clone(),
    };
    if matches!(case.layer, Layer::Network { .. }) {
        return Ok(Box::new(whole));
    }
    about["kernels"] = calls.iter().map(|call| call.name()).collect::<Vec<_>>().into();
    let runs = calls.iter().map(|call| Alone::new(call, engine, &caps));
    let runs = runs.collect::<Result<_, _>>()?;
    Ok(Box::new(Calls { whole, runs, about }))
}

/// A network in a session.
struct Whole {
    session: Session,
    channels: u32,
    extent: organum::Extent,
    input: Vec<f32>,
    about: Value,
}

impl Whole {
    fn run(&mut self) -> Result<Vec<f32>, Failure> {
        let input = Input { channels: self.channels, extent: self.extent, data: &self.input };
        let mut outputs = self.session.run_blocking(input, RunOptions::default())?;
        match outputs.swap_remove(0).data {
            OutputData::Map(values) => Ok(values),
            OutputData::Labels(_) => Err("labels came back, not logits".into()),
        }
    }
}

impl Side for Whole {
    fn output(&mut self) -> Result<Vec<f32>, Failure> {
        self.run()
    }

    fn seconds(&mut self) -> Result<f64, Failure> {
        let begin = Instant::now();
        let output = self.run()?;
        let seconds = begin.elapsed().as_secs_f64();
        drop(output);
        Ok(seconds)
    }

    fn about(&self) -> Value {
        self.about.clone()
    }
}

/// A layer: the session that gives its result, and its calls.
struct Calls {
    whole: Whole,
    runs: Vec<Alone>,
    about: Value,
}

impl Side for Calls {
    fn output(&mut self) -> Result<Vec<f32>, Failure> {
        let output = self.whole.run()?;
        // compiles, and touches the memory
        self.seconds()?;
        Ok(output)
    }

    fn seconds(&mut self) -> Result<f64, Failure> {
        let begin = Instant::now();
        self.runs.iter_mut().try_for_each(Alone::run)?;
        Ok(begin.elapsed().as_secs_f64())
    }

    fn about(&self) -> Value {
        self.about.clone()
    }
}

/// One kernel call with memory of its own.
pub enum Alone {
    Device(Box<KernelRun>),
    Host { call: Box<Call>, inputs: Vec<Vec<f32>>, output: Vec<f32>, scratch: Scratch },
}

impl Alone {
    /// The call and made-up inputs.
    ///
    /// # Errors
    /// When the device refuses the kernel or a buffer.
    pub fn new(call: &Call, engine: Option<&Engine>, caps: &DeviceCaps) -> Result<Self, Failure> {
        let inputs: Vec<Vec<f32>> = source_sizes(call).into_iter().map(values).collect();
        if let Some(engine) = engine {
            return Ok(Self::Device(Box::new(pollster::block_on(KernelRun::new(
                engine, call, &inputs,
            ))?)));
        }
        let written = usize::try_from(call.sizes().last().copied().unwrap_or(0))?;
        let scratch = Scratch::new(call.host().map_or(0, |half| half.scratch()), caps.threads);
        let call = Box::new(call.clone());
        Ok(Self::Host { call, inputs, output: vec![0.0; written], scratch })
    }

    /// Runs it once and waits.
    ///
    /// # Errors
    /// When the device fails.
    pub fn run(&mut self) -> Result<(), Failure> {
        match self {
            Self::Device(run) => pollster::block_on(run.run(1))?,
            Self::Host { call, inputs, output, scratch } => match call.host() {
                Some(half) => {
                    let slabs: Vec<Slab<'_>> = inputs.iter().map(|v| Slab::F32(v)).collect();
                    half.run(&slabs, SlabMut::F32(output), scratch);
                }
                None => {
                    let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
                    call.reference(&inputs, HostSlice::Floats(output));
                }
            },
        }
        Ok(())
    }
}

/// The layer as a network of its own.
///
/// # Errors
/// When it is a network.
pub fn graph(layer: &Layer, channels: u32) -> Result<Graph, Failure> {
    let mut graph = Graph::default();
    let x = graph.add("x", Op::Input { channels }, &[]);
    let linear = |module: &str, inputs: u32, outputs: u32| {
        Op::Conv(Conv {
            module: module.to_owned(),
            in_channels: inputs,
            out_channels: outputs,
            weight_shape: vec![outputs as usize, inputs as usize],
            ..Conv::default()
        })
    };
    let c = channels;
    let scale = |heads: u32| 1.0 / ((c / heads) as f32).sqrt();
    match *layer {
        Layer::Conv { outputs, kernel } => {
            let conv = Conv {
                module: "m".to_owned(),
                in_channels: c,
                out_channels: outputs,
                kernel: [kernel; 3],
                padding: [kernel / 2; 3],
                weight_shape: [outputs, c, kernel, kernel, kernel].map(|n| n as usize).to_vec(),
                ..Conv::default()
            };
            graph.add("m", Op::Conv(conv), &[x]);
        }
        Layer::Transposed { outputs } => {
            let conv = ConvTranspose {
                module: "m".to_owned(),
                in_channels: c,
                out_channels: outputs,
                weight_shape: [c, outputs, 2, 2, 2].map(|n| n as usize).to_vec(),
                ..ConvTranspose::default()
            };
            graph.add("m", Op::ConvTranspose(conv), &[x]);
        }
        Layer::Linear { outputs } => {
            graph.add("m", linear("m", c, outputs), &[x]);
        }
        Layer::Attention { heads } => {
            let qkv = graph.add("qkv", linear("qkv", c, 3 * c), &[x]);
            let channels = Some(TokenChannels { qk: c, v: c, first: [0, c, 2 * c] });
            let attention =
                Attention { heads, scale: scale(heads), channels, ..Attention::default() };
            let y = graph.add("attention", Op::Attention(attention), &[qkv, qkv, qkv]);
            graph.add("proj", linear("proj", c, c), &[y]);
        }
        Layer::Windows { heads, window, shift } => {
            let qkv = graph.add("qkv", linear("qkv", c, 3 * c), &[x]);
            let shape = WindowShape {
                heads,
                qk_channels: c,
                v_channels: c,
                first: [0, c, 2 * c],
                scale: scale(heads),
                q_window: window,
                k_window: window,
                shift,
                tokens: 0,
                token_queries: false,
                bias_rows: window.map(|n| 2 * n - 1).iter().product(),
            };
            let bias = Some(RelativeBias {
                table: "relative_position_bias_table".to_owned(),
                index: "relative_position_index".to_owned(),
            });
            let attention = WindowAttention { shape, bias, padding: Some("qkv.bias".to_owned()) };
            let y = graph.add("attention", Op::WindowAttention(attention), &[qkv, qkv]);
            graph.add("proj", linear("proj", c, c), &[y]);
        }
        Layer::ResBlocks { blocks, groups } => {
            let mut x = x;
            for i in 0..blocks {
                let block = x;
                for part in 1..=2 {
                    x = norm_relu_conv(&mut graph, &format!("{i}"), part, x, [c, groups]);
                }
                let name = format!("{i}.sum");
                x = graph.add(name, Op::Add(Combine::default()), &[x, block]);
            }
        }
        Layer::Network { .. } => return Err("a network has a model file".into()),
    }
    Ok(graph)
}

/// Half of a residual block: `BLOCK.normPART`, ReLU, `BLOCK.convPART`.
fn norm_relu_conv(
    graph: &mut Graph,
    block: &str,
    part: u32,
    x: NodeId,
    [channels, groups]: [u32; 2],
) -> NodeId {
    let norm = Norm {
        module: Some(format!("{block}.norm{part}")),
        channels,
        groups,
        eps: 1e-5,
        per_plane: false,
    };
    let x = graph.add(format!("{block}.norm{part}"), Op::Norm(norm), &[x]);
    let x = graph.add(format!("{block}.relu{part}"), Op::Activation(Activation::Relu), &[x]);
    let conv = Conv {
        module: format!("{block}.conv{part}.conv"),
        in_channels: channels,
        out_channels: channels,
        kernel: [3; 3],
        padding: [1; 3],
        bias: false,
        weight_shape: [channels, channels, 3, 3, 3].map(|n| n as usize).to_vec(),
        ..Conv::default()
    };
    graph.add(format!("{block}.conv{part}"), Op::Conv(conv), &[x])
}

//! Graphs and operations as text.

use std::fmt;

use super::{Combine, Graph, Op};
use crate::kernels::{Activation, Spread};

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for node in &self.nodes {
            let inputs: Vec<&str> = node.inputs.iter().map(|&i| self.node(i).name.as_str()).collect();
            writeln!(f, "{:<28} {:<40} {}", node.name, node.op.to_string(), inputs.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let x = |k: &[u32; 3]| format!("{}x{}x{}", k[0], k[1], k[2]);
        match self {
            Self::Input { channels } => write!(f, "input {channels}"),
            Self::InputAgain { channels } => write!(f, "input {channels} again"),
            Self::Parameter(p) => write!(f, "{} rows of a parameter{}", p.count(), if p.per_plane { " per plane" } else { "" }),
            Self::Conv(c) => {
                write!(f, "conv {} {}->{}", x(&c.kernel), c.in_channels, c.out_channels)?;
                if c.stride != [1; 3] {
                    write!(f, " stride {}", x(&c.stride))?;
                }
                if c.dilation != [1; 3] {
                    write!(f, " dilation {}", x(&c.dilation))?;
                }
                if c.groups > 1 {
                    write!(f, " in {} groups", c.groups)?;
                }
                if let Some(resize) = c.through.iter().flatten().next() {
                    write!(f, " through {resize}")?;
                }
                if c.standardised.is_some() {
                    f.write_str(" of standardised weights")?;
                }
                if c.copies > 1 {
                    write!(f, " summed over {} copies", c.copies)?;
                }
                if c.norm.is_some() {
                    f.write_str(" norm")?;
                }
                if c.loads.iter().any(|load| load.norm.is_some()) {
                    f.write_str(" of normalised")?;
                }
                if c.residual {
                    f.write_str(" plus residual")?;
                }
                match c.activation {
                    Activation::None => Ok(()),
                    a => write!(f, " {a}"),
                }
            }
            Self::ConvTranspose(c) => {
                write!(f, "conv transpose {} {}->{}", x(&c.kernel), c.in_channels, c.out_channels)?;
                if c.stride != c.kernel {
                    write!(f, " stride {}", x(&c.stride))?;
                }
                if c.norm.is_some() {
                    f.write_str(" norm")?;
                }
                match c.activation {
                    Activation::None => Ok(()),
                    a => write!(f, " {a}"),
                }
            }
            Self::BatchNorm(n) => write!(f, "batch norm {}", n.channels),
            Self::Norm(n) => write!(f, "norm {} in {} groups{}", n.channels, n.groups, if n.per_plane { " per plane" } else { "" }),
            Self::ChannelStats => f.write_str("channel statistics"),
            Self::PlaneStats => f.write_str("plane statistics"),
            Self::NormScale(n) => write!(f, "norm scale {} in {} groups", n.channels, n.groups),
            Self::Normalise(load) => write!(f, "normalise {}", load.activation),
            Self::Activation(a) => write!(f, "{a}"),
            Self::PRelu { channels, .. } => write!(f, "prelu of {channels} slopes"),
            Self::LayerNorm { channels, before, after, .. } => {
                write!(f, "layer norm {channels}")?;
                if *before != Activation::None {
                    write!(f, " of {before}")?;
                }
                match after {
                    Activation::None => Ok(()),
                    a => write!(f, " {a}"),
                }
            }
            Self::Softmax => f.write_str("softmax"),
            Self::Concat => f.write_str("concat"),
            Self::MaxPool { kernel, stride, .. } => {
                write!(f, "max pool {}", x(kernel))?;
                if stride == kernel { Ok(()) } else { write!(f, " stride {}", x(stride)) }
            }
            Self::AvgPool { kernel } => write!(f, "average pool {}", x(kernel)),
            Self::Resize(resize) => write!(f, "{resize}"),
            Self::Shift([d, h, w]) => write!(f, "shift {d}, {h}, {w}"),
            Self::Fit(fit) => write!(f, "fit to the input over {}", x(&fit.over)),
            Self::PatchMerge(merge) => write!(f, "merge patches {}", x(&merge.patch)),
            Self::PatchExpand(expand) => write!(f, "expand patches {}", x(&expand.patch)),
            Self::Gather(tokens) => write!(f, "gather {} tokens", tokens.len()),
            Self::PositionalEncoding(p) => write!(f, "positional encoding {:?}", p.angles),
            Self::Attention(a) => write!(f, "attention {} heads{}", a.heads, if a.per_plane { " per plane" } else { "" }),
            Self::WindowAttention(a) => {
                write!(f, "attention {} heads in windows {}", a.shape.heads, x(&a.shape.k_window))?;
                match a.shape.shift {
                    [0, 0, 0] => Ok(()),
                    shift => write!(f, " shifted {}", x(&shift)),
                }
            }
            Self::Deformable(d) => write!(f, "deformable sampling {} heads {} points", d.heads, d.points),
            Self::Add(c) => combined(f, "add", c),
            Self::Multiply(c) => combined(f, "multiply", c),
            Self::Argmax => f.write_str("argmax"),
            Self::HeadArgmax(c) => write!(f, "argmax of conv {}->{}", c.in_channels, c.out_channels),
        }
    }
}

fn combined(f: &mut fmt::Formatter<'_>, what: &str, c: &Combine) -> fmt::Result {
    f.write_str(what)?;
    match c.spread {
        Spread::Nothing => {}
        Spread::Channels => f.write_str(" over channels")?,
        Spread::Voxels => f.write_str(" over voxels")?,
    }
    if c.norms() > 0 {
        f.write_str(" of normalised")?;
    }
    match c.activation {
        Activation::None => Ok(()),
        a => write!(f, " {a}"),
    }
}

//! Shaders to compile: the bench cases of every kernel, or WGSL files that somebody tries.

use std::collections::HashSet;

use organum::kernels::{self, Binding, Call, shader_source};
use organum::{DeviceCaps, Elem};

/// Trip counts of the loops within the loop of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trips {
    /// Runs of the loops of multiply-adds, the outer ones first.
    pub sums: Vec<u32>,
    /// Runs of a loop that fills workgroup memory.
    pub fill: u32,
}

/// One pipeline.
#[derive(Clone, Debug)]
pub struct Job {
    /// Kernel, case and element type.
    pub label: String,
    /// Entry point.
    pub entry: String,
    /// WGSL.
    pub source: String,
    /// `override` constants.
    pub constants: Vec<(String, f64)>,
    /// Of each binding whether it is the uniform block.
    pub uniform: Vec<bool>,
    /// With them the outermost loop is judged, without them the one with most multiply-adds.
    pub trips: Option<Trips>,
    /// 128-byte lines that the loads of a wave touch for one of its multiply-adds.
    pub lines: Option<f64>,
}

/// A case's label without its extent, on which machine code does not depend.
fn short(label: &str) -> &str {
    match label.rsplit_once('_') {
        Some((rest, last)) if last.split('x').filter(|n| n.parse::<u32>().is_ok()).count() == 3 => {
            rest
        }
        _ => label,
    }
}

/// Trip counts of the loops within the loop of a call, where they are needed to judge it.
fn trips(call: &Call) -> Option<Trips> {
    match call {
        Call::Conv3dTiled(k) => {
            let (tile, [depth, height, _]) = (k.tile(), k.0.kernel);
            let taps = vec![depth, height];
            let sums = if tile.staged > 1 { [vec![tile.staged], taps].concat() } else { taps };
            Some(Trips { sums, fill: tile.slots() })
        }
        // sources, then tiles of keys, of which the scores are rescaled in parts
        Call::Attention(k) => {
            let held = k.held(&DeviceCaps::default());
            let fill = (held.keys * held.lanes()[0]).div_ceil(64);
            Some(Trips { sums: vec![1, held.keys / held.scores], fill })
        }
        _ => None,
    }
}

/// Every bench case in both element types, one of each variant.
pub fn cases(f16: bool) -> Vec<Job> {
    let mut caps = DeviceCaps::default();
    caps.f16 = f16;
    let mut seen = HashSet::new();
    let mut jobs = Vec::new();
    let mut add = |label: &str, call: &Call, elem: Elem| {
        let variant = call.variant(&caps);
        if !seen.insert(format!("{} {}", call.name(), variant.key())) {
            return;
        }
        jobs.push(Job {
            label: format!("{} {}", short(label), elem.name()),
            entry: call.name().to_owned(),
            source: shader_source(call.shader(), variant.storage),
            constants: variant.constants.iter().map(|&(k, v)| (k.to_owned(), v)).collect(),
            uniform: call.bindings().iter().map(|b| *b == Binding::Params).collect(),
            trips: trips(call),
            lines: crate::lines::per_multiply_add(call),
        });
    };
    for elem in [Elem::F32, Elem::F16] {
        for (label, call) in kernels::bench::cases(elem, false) {
            add(&label, &call, elem);
        }
    }
    for call in kernels::bench::ceilings(false) {
        add(call.name(), &call, Elem::F32);
    }
    jobs
}

/// Jobs of a file, one a line: `label | entry | WGSL files | u or s of each binding | NAME=VALUE..
/// | runs of fill, of sums..`.
pub fn of_file(path: &str) -> Result<Vec<Job>, String> {
    let read = |path: &str| std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
    let mut jobs = Vec::new();
    for line in read(path)?.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')) {
        let parts: Vec<&str> = line.split('|').map(str::trim).collect();
        let [label, entry, files, bindings, constants, rest @ ..] = parts.as_slice() else {
            return Err(format!("{path}: five parts are needed in {line:?}"));
        };
        let number = |text: &str| text.parse::<f64>().map_err(|e| format!("{path}: {text:?}: {e}"));
        let sources: Result<Vec<String>, String> = files.split_whitespace().map(read).collect();
        let mut values = Vec::new();
        for pair in constants.split_whitespace() {
            let (name, value) =
                pair.split_once('=').ok_or(format!("{path}: {pair:?} is no pair"))?;
            values.push((name.to_owned(), number(value)?));
        }
        let trips: Vec<u32> =
            rest.first().unwrap_or(&"").split_whitespace().filter_map(|t| t.parse().ok()).collect();
        jobs.push(Job {
            label: (*label).to_owned(),
            entry: (*entry).to_owned(),
            source: sources?.join("\n"),
            constants: values,
            uniform: bindings.split_whitespace().map(|b| b == "u").collect(),
            trips: trips.split_first().map(|(&fill, sums)| Trips { sums: sums.to_vec(), fill }),
            lines: None,
        });
    }
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_lose_their_extents_alone() {
        assert_eq!(short("conv3d_direct/k3_16+16-16_64x64x64"), "conv3d_direct/k3_16+16-16");
        assert_eq!(short("attention/1400_tokens_4x12"), "attention/1400_tokens_4x12");
        assert_eq!(short("ceiling_fma"), "ceiling_fma");
    }
}

//! Weights in the order of the shaders: read where the file lies, one output at a time, folded in f64.

use super::Model;
use super::weights::standardise;
use crate::error::LoadError;
use crate::graph::{BatchNorm, Conv, ConvTranspose};
use crate::kernels::{pack_grouped, pack_weights};

impl Model {
    /// Folded and packed weights of a convolution whose sources have these channels; see [`pack_weights`] and [`pack_grouped`].
    pub(crate) fn pack(&self, conv: &Conv, in_channels: [u32; 2]) -> Result<Vec<f32>, LoadError> {
        let weight = self.weights.tensor(&format!("{}.weight", conv.module))?;
        let taps = conv.kernel.iter().map(|&k| k as usize).product();
        let summed = conv.in_channels as usize / conv.groups.max(1) as usize * taps;
        let each = summed * conv.copies as usize;
        let mut finish = self.finish(conv.bias.then_some(&conv.module), conv.norm.as_ref(), conv.out_channels)?;
        finish.bias.iter_mut().for_each(|bias| *bias *= conv.gain);
        let rows = (0..conv.out_channels as usize).map(|output| {
            let mut row = weight.read(output * each..(output + 1) * each);
            if conv.over_patches {
                row = channels_first(&row, taps);
            }
            if let Some(eps) = conv.standardised {
                standardise(&mut row, eps);
            }
            let (first, others) = row.split_at_mut(summed);
            others.chunks_exact(summed.max(1)).for_each(|copy| first.iter_mut().zip(copy).for_each(|(sum, w)| *sum += w));
            row.truncate(summed);
            row.iter_mut().for_each(|w| *w *= conv.gain);
            finish.row(output, row)
        });
        if !conv.is_plain() {
            return Ok(pack_grouped(rows, conv.grouping(), conv.kernel));
        }
        Ok(pack_weights(rows, in_channels, conv.out_channels, conv.kernel))
    }

    /// The same of a transposed convolution, whose tensor has the inputs first.
    pub(crate) fn pack_transposed(&self, conv: &ConvTranspose) -> Result<Vec<f32>, LoadError> {
        let weight = self.weights.tensor(&format!("{}.weight", conv.module))?;
        let taps = conv.kernel.iter().map(|&k| k as usize).product::<usize>();
        let (inputs, outputs) = (conv.in_channels as usize, conv.out_channels as usize);
        let finish = self.finish(conv.bias.then_some(&conv.module), conv.norm.as_ref(), conv.out_channels)?;
        let of_input = |input: usize, output: usize| weight.read((input * outputs + output) * taps..(input * outputs + output + 1) * taps);
        let rows = (0..outputs).map(|output| finish.row(output, (0..inputs).flat_map(|input| of_input(input, output)).collect()));
        Ok(pack_weights(rows, [conv.in_channels, 0], conv.out_channels, conv.kernel))
    }

    fn finish(&self, bias: Option<&String>, norm: Option<&BatchNorm>, outputs: u32) -> Result<Finish, LoadError> {
        let zeros = || Ok(vec![0.0; outputs as usize]);
        let bias = bias.map_or_else(zeros, |module| self.weights.floats(&format!("{module}.bias")))?;
        Ok(Finish { bias, folded: norm.map(|norm| self.folded(norm)).transpose()? })
    }
}

/// Biases, and scale and shift of a batch norm that is folded in.
struct Finish {
    bias: Vec<f64>,
    folded: Option<Vec<(f64, f64)>>,
}

impl Finish {
    /// A row of weights and its bias, of the weights of an output.
    fn row(&self, output: usize, mut row: Vec<f64>) -> (Vec<f64>, f64) {
        let Some(folded) = &self.folded else { return (row, self.bias[output]) };
        let (scale, shift) = folded[output];
        row.iter_mut().for_each(|w| *w *= scale);
        (row, self.bias[output] * scale + shift)
    }
}

/// Weights `[taps][channels]` as `[channels][taps]`.
fn channels_first(row: &[f64], taps: usize) -> Vec<f64> {
    let channels = row.len() / taps.max(1);
    (0..row.len()).map(|i| row[i % taps * channels + i / taps]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_over_patches_are_those_of_a_convolution() {
        // three taps of two channels: [tap][channel]
        assert_eq!(channels_first(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 3), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
    }
}

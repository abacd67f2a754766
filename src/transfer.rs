//! Between the host's channel planes `[C][D][H][W]` and the device's channels-last planes `[D][H][W][C padded]`.

use std::borrow::Cow;
use std::ops::Range;

use half::f16;

use crate::export::{narrowed, widened};
use crate::kernels::argmax;
use crate::record::{Output, OutputKind};
use crate::shape::{Elem, Extent, Map};

/// What the network reads: `channels` volumes of `extent`, f32, `[C][D][H][W]`.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Channels.
    pub channels: u32,
    /// Extent of each channel.
    pub extent: Extent,
    /// Values.
    pub data: &'a [f32],
}

/// What a run brings back for one output.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputData {
    /// Labels `[D][H][W]`.
    Labels(Vec<u16>),
    /// Values `[C][D][H][W]`.
    Map(Vec<f32>),
}

/// An output of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputVolume {
    /// The node it is the value of.
    pub name: String,
    /// Shape; for labels the channels are the classes.
    pub map: Map,
    /// The values.
    pub data: OutputData,
}

/// Bytes of float elements in a storage type.
pub(crate) fn encode(values: &[f32], elem: Elem) -> Cow<'_, [u8]> {
    match elem {
        Elem::F32 => bytemuck::cast_slice(values).into(),
        Elem::F16 => {
            let mut bytes: Vec<u8> = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes.into()
        }
    }
}

/// Float elements of bytes in a storage type.
pub(crate) fn decode(bytes: &[u8], elem: Elem) -> Vec<f32> {
    match elem {
        Elem::F32 => bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Elem::F16 => bytes.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
    }
}

/// Voxels whose channels are turned together: they stay in the first cache, and each channel is
/// read or written in whole lines, enough of them to be worth a look at the page table.
const BLOCK: usize = 64;

/// Voxels of a task, where a plane has more.
const TASK: usize = 1 << 14;

/// Writes planes of the input as the device stores them for a network of so many channels to
/// `words`, which holds just these; one channel is repeated to all of them.
pub(crate) fn pack_planes(input: &Input<'_>, channels: u32, planes: Range<u32>, elem: Elem, words: &mut [u32]) {
    match elem {
        Elem::F32 => gather(input, channels, planes, bytemuck::cast_slice_mut(words), |v| v),
        Elem::F16 => gather(input, channels, planes, bytemuck::cast_slice_mut(words), narrowed),
    }
}

fn gather<T: Send>(input: &Input<'_>, channels: u32, planes: Range<u32>, to: &mut [T], value: impl Fn(f32) -> T + Sync) {
    use rayon::prelude::*;
    let plane = input.extent.plane() as usize;
    let volume = plane * input.extent.d as usize;
    let channels = channels as usize;
    let padded = channels.next_multiple_of(4);
    let first = planes.start as usize * plane;
    // voxels follow each other from plane to plane
    to.par_chunks_mut(TASK * padded).enumerate().for_each(|(task, to)| {
        for (block, to) in to.chunks_mut(BLOCK * padded).enumerate() {
            let at = first + task * TASK + block * BLOCK;
            let voxels = to.len() / padded;
            for c in 0..padded {
                let to = to[c..].iter_mut().step_by(padded);
                if c < channels {
                    let from = if input.channels == 1 { 0 } else { c };
                    let source = &input.data[from * volume + at..][..voxels];
                    to.zip(source).for_each(|(t, &v)| *t = value(v));
                } else {
                    to.for_each(|t| *t = value(0.0));
                }
            }
        }
    });
}

impl OutputVolume {
    /// An output to be filled.
    pub(crate) fn empty(output: &Output) -> Self {
        let voxels = output.map.extent.voxels() as usize;
        let data = match output.kind {
            OutputKind::Labels => OutputData::Labels(vec![0; voxels]),
            OutputKind::Map | OutputKind::MapF32 => OutputData::Map(vec![0.0; voxels * output.map.channels as usize]),
        };
        Self { name: output.name.clone(), map: output.map, data }
    }

    /// Bytes of one plane on the device.
    pub(crate) fn plane_bytes(&self, elem: Elem) -> usize {
        match self.data {
            OutputData::Labels(_) => argmax::plane_words(self.map.extent, self.map.channels) as usize * 4,
            OutputData::Map(_) => (self.map.plane_elements() * elem.bytes()) as usize,
        }
    }

    /// How many of its values are NaN or infinite, or of its labels come of such logits; these become 0.
    pub(crate) fn count_non_finite(&mut self) -> usize {
        use rayon::prelude::*;
        const FEWEST: usize = 1 << 16;
        let classes = self.map.channels;
        match &mut self.data {
            OutputData::Labels(labels) => {
                let broken = labels.par_iter_mut().with_min_len(FEWEST).filter(|label| u32::from(**label) >= classes);
                broken.map(|label| *label = 0).count()
            }
            OutputData::Map(values) => {
                let broken = |part: &[f32]| part.iter().filter(|value| !value.is_finite()).count();
                values.par_chunks(FEWEST).map(broken).sum()
            }
        }
    }

    /// Takes `planes` as the device stores them.
    pub(crate) fn unpack(&mut self, bytes: &[u8], planes: Range<u32>, elem: Elem) {
        let plane = self.map.extent.plane() as usize;
        let step = self.plane_bytes(elem);
        let classes = self.map.channels;
        let volume = self.map.extent.voxels() as usize;
        let padded = self.map.blocks() as usize * 4;
        let labels = match &mut self.data {
            OutputData::Labels(labels) => labels,
            OutputData::Map(values) => {
                let at = planes.start as usize * plane;
                let count = planes.len().min(bytes.len() / step.max(1));
                let planes = bytes.chunks_exact(step).take(count);
                return match elem {
                    Elem::F32 => {
                        let planes = planes.map(|bytes| bytes.as_chunks::<4>().0);
                        spread(values, volume, at, planes, (plane, padded), |&b| f32::from_le_bytes(b));
                    }
                    Elem::F16 => {
                        let planes = planes.map(|bytes| bytes.as_chunks::<2>().0);
                        spread(values, volume, at, planes, (plane, padded), |&b| widened(f16::from_le_bytes(b)));
                    }
                };
            }
        };
        for (z, bytes) in planes.zip(bytes.chunks_exact(step)) {
            let labels = &mut labels[z as usize * plane..][..plane];
            if argmax::labels_per_word(classes) == 4 {
                labels.iter_mut().zip(bytes).for_each(|(l, &b)| *l = u16::from(b));
            } else {
                labels.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(l, &b)| *l = u16::from_le_bytes(b));
            }
        }
    }
}

/// Takes planes that follow each other from voxel `at` on, channels last and `padded` of them, to the
/// channels of `volume` values each.
fn spread<'a, T: Sync + 'a>(
    values: &mut [f32],
    volume: usize,
    at: usize,
    planes: impl Iterator<Item = &'a [T]>,
    (plane, padded): (usize, usize),
    value: impl Fn(&T) -> f32 + Sync,
) {
    use rayon::prelude::*;
    /// Channels of a task.
    const CHANNELS: usize = 16;
    let mut rest: Vec<&mut [f32]> = values.chunks_exact_mut(volume.max(1)).map(|channel| &mut channel[at..]).collect();
    let mut tasks = Vec::new();
    for source in planes {
        let parts = source.chunks(TASK * padded).zip((0..plane).step_by(TASK));
        for (source, first) in parts {
            let count = TASK.min(plane - first);
            let mut part = rest.iter_mut().map(|rest| {
                let (own, other) = std::mem::take(rest).split_at_mut(count);
                *rest = other;
                own
            });
            for first in (0..padded).step_by(CHANNELS) {
                let channels: Vec<&mut [f32]> = part.by_ref().take(CHANNELS).collect();
                tasks.push((source, first, channels));
            }
        }
    }
    tasks.into_par_iter().for_each(|(source, first, mut channels)| {
        for (block, voxels) in source.chunks(BLOCK * padded).enumerate() {
            for (c, channel) in channels.iter_mut().enumerate() {
                let to = channel[block * BLOCK..].iter_mut().take(BLOCK);
                let from = voxels[first + c..].iter().step_by(padded);
                to.zip(from).for_each(|(v, x)| *v = value(x));
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_round_trip() {
        let extent = Extent::new(2, 3, 5);
        let data: Vec<f32> = (0..90u16).map(f32::from).collect();
        let input = Input { channels: 3, extent, data: &data };
        for elem in [Elem::F32, Elem::F16] {
            let output = Output { name: "x".into(), map: Map::new(extent, 3), kind: OutputKind::Map };
            let mut back = OutputVolume::empty(&output);
            let words = back.plane_bytes(elem) / 4;
            let packed = |input: &Input<'_>, planes: Range<u32>| {
                let mut words = vec![7; planes.len() * words];
                pack_planes(input, 3, planes, elem, &mut words);
                words
            };
            assert_eq!(packed(&input, 1..2), packed(&input, 0..2)[words..]);
            back.unpack(bytemuck::cast_slice(&packed(&input, 0..1)), 0..1, elem);
            back.unpack(bytemuck::cast_slice(&packed(&input, 1..2)), 1..2, elem);
            assert_eq!(back.data, OutputData::Map(data.clone()));
            let grey = Input { channels: 1, extent, data: &data[..30] };
            back.unpack(bytemuck::cast_slice(&packed(&grey, 0..2)), 0..2, elem);
            assert_eq!(back.data, OutputData::Map(data[..30].repeat(3)), "one channel is repeated");
        }
    }

    #[test]
    fn wide_labels_unpack() {
        let output = Output { name: "l".into(), map: Map::new(Extent::new(1, 1, 3), 300), kind: OutputKind::Labels };
        let mut back = OutputVolume::empty(&output);
        back.unpack(bytemuck::cast_slice(&[1u32 | (299 << 16), 7]), 0..1, Elem::F32);
        assert_eq!(back.data, OutputData::Labels(vec![1, 299, 7]));
    }
}

//! Between the host's channel planes `[C][D][H][W]` and the device's channels-last planes `[D][H][W][C padded]`.

use std::borrow::Cow;
use std::ops::Range;

use half::f16;

use crate::export::widened;
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

/// One plane of the input as the device stores it for a network of so many channels; one channel is repeated to all of them.
pub(crate) fn pack_plane(input: &Input<'_>, channels: u32, z: u32, elem: Elem) -> Vec<u8> {
    let plane = input.extent.plane() as usize;
    let volume = plane * input.extent.d as usize;
    let padded = channels.div_ceil(4) as usize * 4;
    let mut values = vec![0.0f32; plane * padded];
    for c in 0..channels as usize {
        let from = if input.channels == 1 { 0 } else { c };
        let source = &input.data[from * volume + z as usize * plane..][..plane];
        for (at, &v) in source.iter().enumerate() {
            values[at * padded + c] = v;
        }
    }
    encode(&values, elem).into_owned()
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
            OutputData::Map(values) => values.par_iter().with_min_len(FEWEST).filter(|value| !value.is_finite()).count(),
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
    planes: impl Iterator<Item = &'a [T]> + Clone + Send + Sync,
    (plane, padded): (usize, usize),
    value: impl Fn(&T) -> f32 + Sync,
) {
    use rayon::prelude::*;
    /// Voxels whose channels stay in the first cache, and channels of a task.
    const BLOCK: usize = 16;
    values.par_chunks_mut((volume * BLOCK).max(1)).enumerate().for_each(|(group, channels)| {
        for (z, source) in planes.clone().enumerate() {
            for (first, voxels) in (0..plane).step_by(BLOCK).zip(source.chunks(BLOCK * padded)) {
                let begin = at + z * plane + first;
                let count = BLOCK.min(plane - first);
                for (c, channel) in channels.chunks_exact_mut(volume).enumerate() {
                    let from = voxels[group * BLOCK + c..].iter().step_by(padded);
                    channel[begin..begin + count].iter_mut().zip(from).for_each(|(v, x)| *v = value(x));
                }
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
            for z in 0..2 {
                back.unpack(&pack_plane(&input, 3, z, elem), z..z + 1, elem);
            }
            assert_eq!(back.data, OutputData::Map(data.clone()));
            let grey = Input { channels: 1, extent, data: &data[..30] };
            for z in 0..2 {
                back.unpack(&pack_plane(&grey, 3, z, elem), z..z + 1, elem);
            }
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

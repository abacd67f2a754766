//! Runs a recording on the host with the kernels' scalar twins, in parallel by rayon: the oracle of the GPU path, and a
//! way to segment without any driver.

use crate::kernels::{Binding, Call, HostSlice};
use crate::record::{Recording, Region};
use crate::shape::Elem;
use crate::transfer::{decode, encode};

/// Chunks in host memory.
#[derive(Debug)]
pub(crate) struct HostMemory {
    elem: Elem,
    chunks: Vec<Vec<u32>>,
}

impl HostMemory {
    pub(crate) fn new(recording: &Recording) -> Self {
        let chunks = recording.chunks.iter().map(|&bytes| vec![0u32; (bytes / 4) as usize]).collect();
        Self { elem: recording.elem, chunks }
    }

    /// Bytes of the chunks.
    pub(crate) fn allocated(&self) -> u64 {
        self.chunks.iter().map(|c| c.len() as u64 * 4).sum()
    }

    pub(crate) fn bytes(&self, region: Region) -> &[u8] {
        &bytemuck::cast_slice::<u32, u8>(&self.chunks[region.chunk as usize])[region.offset as usize..][..region.size as usize]
    }

    pub(crate) fn write(&mut self, region: Region, at: u64, bytes: &[u8]) {
        let begin = (region.offset + at) as usize;
        bytemuck::cast_slice_mut::<u32, u8>(&mut self.chunks[region.chunk as usize])[begin..begin + bytes.len()].copy_from_slice(bytes);
    }

    /// Runs one kernel; the destination lies in no chunk that is read, as the planner guarantees.
    pub(crate) fn dispatch(&mut self, call: &Call, bindings: &[Region]) {
        let Some((&dst, sources)) = bindings.split_last() else { return };
        let mut chunk = std::mem::take(&mut self.chunks[dst.chunk as usize]);
        let out = &mut chunk[(dst.offset / 4) as usize..((dst.offset + dst.size) / 4) as usize];
        let elem_of = |b: &Binding| if *b == Binding::Read || *b == Binding::Write { self.elem } else { Elem::F32 };
        let kinds = &call.bindings()[1..];
        // f32 is read where it lies, f16 is widened
        let widened: Vec<Option<Vec<f32>>> =
            sources.iter().zip(kinds).map(|(&r, b)| (elem_of(b) == Elem::F16).then(|| decode(self.bytes(r), Elem::F16))).collect();
        let inputs: Vec<&[f32]> =
            sources.iter().zip(&widened).map(|(&r, w)| w.as_deref().unwrap_or_else(|| bytemuck::cast_slice(self.bytes(r)))).collect();
        match kinds.last() {
            Some(Binding::WriteWords) => call.reference(&inputs, HostSlice::Words(out)),
            Some(b) if elem_of(b) == Elem::F16 => {
                let mut values = decode(bytemuck::cast_slice(out), Elem::F16);
                call.reference(&inputs, HostSlice::Floats(&mut values));
                bytemuck::cast_slice_mut::<u32, u8>(out).copy_from_slice(&encode(&values, Elem::F16));
            }
            _ => call.reference(&inputs, HostSlice::Floats(bytemuck::cast_slice_mut(out))),
        }
        self.chunks[dst.chunk as usize] = chunk;
    }
}

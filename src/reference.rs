//! Runs a recording on the host, in parallel by rayon: the kernels' host halves where there are any, or all of it with their scalar
//! twins, the oracle of both paths.

use std::collections::HashSet;

use half::f16;
use memmap2::MmapMut;

use crate::kernels::host::{Scratch, Slab, SlabMut};
use crate::kernels::{Binding, Call, HostSlice};
use crate::record::{Recording, Region};
use crate::shape::Elem;
use crate::transfer::{decode, encode};

/// Bytes of a chunk, in pages of 2 MiB where the system has them.
///
/// Weights stream through the processor's caches at every run: with pages of 4 KiB, each begins with a walk
/// of the page tables and ends what the hardware reads ahead.
#[derive(Debug)]
enum Chunk {
    Mapped(MmapMut),
    Heap(Vec<u32>),
}

impl Default for Chunk {
    fn default() -> Self {
        Self::Heap(Vec::new())
    }
}

impl Chunk {
    /// A chunk of zeros.
    fn new(bytes: u64) -> Self {
        let mapped = MmapMut::map_anon(bytes as usize).ok().filter(|_| bytes > 0);
        mapped.map_or_else(
            || Self::Heap(vec![0; (bytes / 4) as usize]),
            |map| {
                // advice that is not taken costs time alone
                #[cfg(target_os = "linux")]
                let _ = map.advise(memmap2::Advice::HugePage);
                Self::Mapped(map)
            },
        )
    }

    fn words(&self) -> &[u32] {
        match self {
            Self::Mapped(map) => bytemuck::cast_slice(map),
            Self::Heap(words) => words,
        }
    }

    fn words_mut(&mut self) -> &mut [u32] {
        match self {
            Self::Mapped(map) => bytemuck::cast_slice_mut(map),
            Self::Heap(words) => words,
        }
    }
}

/// Chunks in host memory, and what threads need besides.
#[derive(Debug)]
pub(crate) struct HostMemory {
    elem: Elem,
    chunks: Vec<Chunk>,
    /// Regions of elements that are f32 whatever the storage type.
    wide: HashSet<Region>,
    /// For the kernels' host halves; without it their twins run.
    scratch: Option<Scratch>,
}

impl HostMemory {
    pub(crate) fn new(recording: &Recording) -> Self {
        let chunks = recording.chunks.iter().map(|&bytes| Chunk::new(bytes)).collect();
        let wide = recording.constants.iter().filter(|c| c.source.elem(recording.elem) == Elem::F32).map(|c| c.dst).collect();
        let scratch = (recording.threads > 0).then(|| Scratch::new(recording.scratch, recording.threads));
        Self { elem: recording.elem, chunks, wide, scratch }
    }

    /// Bytes of the chunks and of what threads need.
    pub(crate) fn allocated(&self) -> u64 {
        self.chunks.iter().map(|c| c.words().len() as u64 * 4).sum::<u64>() + self.scratch.as_ref().map_or(0, Scratch::bytes)
    }

    pub(crate) fn bytes(&self, region: Region) -> &[u8] {
        bytemuck::cast_slice(self.words(region))
    }

    fn words(&self, region: Region) -> &[u32] {
        let words = self.chunks[region.chunk as usize].words();
        &words[(region.offset / 4) as usize..][..(region.size / 4) as usize]
    }

    pub(crate) fn words_mut(&mut self, region: Region) -> &mut [u32] {
        let words = self.chunks[region.chunk as usize].words_mut();
        &mut words[(region.offset / 4) as usize..][..(region.size / 4) as usize]
    }

    pub(crate) fn write(&mut self, region: Region, at: u64, bytes: &[u8]) {
        let begin = (region.offset + at) as usize;
        let chunk = bytemuck::cast_slice_mut::<u32, u8>(self.chunks[region.chunk as usize].words_mut());
        chunk[begin..begin + bytes.len()].copy_from_slice(bytes);
    }

    /// Type of the elements of a source.
    fn elem_of(&self, binding: Binding, region: &Region) -> Elem {
        if binding == Binding::Read && !self.wide.contains(region) { self.elem } else { Elem::F32 }
    }

    /// Runs one kernel; the destination lies in no chunk that is read, as the planner guarantees.
    pub(crate) fn dispatch(&mut self, call: &Call, bindings: &[Region]) {
        let Some((&dst, sources)) = bindings.split_last() else { return };
        let mut chunk = std::mem::take(&mut self.chunks[dst.chunk as usize]);
        let out = &mut chunk.words_mut()[(dst.offset / 4) as usize..((dst.offset + dst.size) / 4) as usize];
        if let (Some(scratch), Some(half)) = (&self.scratch, call.host()) {
            let slabs: Vec<Slab<'_>> = sources.iter().zip(&call.bindings()[1..]).map(|(region, &b)| self.slab(b, region)).collect();
            let out = match call.bindings().last() {
                Some(Binding::WriteWords) => SlabMut::Words(out),
                Some(Binding::Write) if self.elem == Elem::F16 => SlabMut::F16(bytemuck::cast_slice_mut(out)),
                _ => SlabMut::F32(bytemuck::cast_slice_mut(out)),
            };
            half.run(&slabs, out, scratch);
        } else {
            self.twin(call, sources, out);
        }
        self.chunks[dst.chunk as usize] = chunk;
    }

    fn slab(&self, binding: Binding, region: &Region) -> Slab<'_> {
        match self.elem_of(binding, region) {
            Elem::F32 => Slab::F32(bytemuck::cast_slice(self.words(*region))),
            Elem::F16 => Slab::F16(bytemuck::cast_slice::<u32, f16>(self.words(*region))),
        }
    }

    fn twin(&self, call: &Call, sources: &[Region], out: &mut [u32]) {
        let kinds = &call.bindings()[1..];
        // f32 is read where it lies, f16 is widened
        let widened: Vec<Option<Vec<f32>>> =
            sources.iter().zip(kinds).map(|(r, &b)| (self.elem_of(b, r) == Elem::F16).then(|| decode(self.bytes(*r), Elem::F16))).collect();
        let inputs: Vec<&[f32]> =
            sources.iter().zip(&widened).map(|(&r, w)| w.as_deref().unwrap_or_else(|| bytemuck::cast_slice(self.bytes(r)))).collect();
        match kinds.last() {
            Some(Binding::WriteWords) => call.reference(&inputs, HostSlice::Words(out)),
            Some(Binding::Write) if self.elem == Elem::F16 => {
                let mut values = decode(bytemuck::cast_slice(out), Elem::F16);
                call.reference(&inputs, HostSlice::Floats(&mut values));
                bytemuck::cast_slice_mut::<u32, u8>(out).copy_from_slice(&encode(&values, Elem::F16));
            }
            _ => call.reference(&inputs, HostSlice::Floats(bytemuck::cast_slice_mut(out))),
        }
    }
}

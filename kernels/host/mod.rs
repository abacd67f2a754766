//! The host halves of the kernels that take time: f32 vectors, f32 sums, all cores.
//!
//! A half computes what its twin computes, with the bits of any other plan: work is cut into tasks by voxels, and a voxel's sums
//! are added in one order. Threads borrow what they need besides the bindings from a [`Scratch`] that the plan counts.

use std::sync::{Mutex, PoisonError};

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::Target;

#[forbid(unsafe_code)]
mod attend;
#[forbid(unsafe_code)]
mod attention;
#[forbid(unsafe_code)]
mod by_rows;
#[forbid(unsafe_code)]
mod conv;
mod isa;
#[forbid(unsafe_code)]
mod math;
#[forbid(unsafe_code)]
mod norms;
#[forbid(unsafe_code)]
mod points;
#[forbid(unsafe_code)]
mod product;
#[forbid(unsafe_code)]
mod rows;
#[forbid(unsafe_code)]
mod transpose;
#[forbid(unsafe_code)]
mod windows;

pub use isa::name as instructions;
pub(crate) use isa::{Isa, Work, run};

/// The host half of a kernel.
pub trait HostHalf {
    /// f32 numbers that a thread needs besides the bindings, whatever planes are computed.
    fn scratch(&self) -> u64 {
        0
    }

    /// The weights, the last of the bindings that are read, in the order in which this half reads them, given in that of the
    /// shader: as many, always f32. Kernels without weights have none.
    fn arrange(&self, _weights: &[f32]) -> Option<Vec<f32>> {
        None
    }

    /// Computes the target's planes; `inputs` are the bindings that are read, in order.
    fn run(&self, inputs: &[Slab<'_>], output: SlabMut<'_>, scratch: &Scratch);
}

/// Elements of a binding that is read, as they are stored.
#[derive(Clone, Copy, Debug)]
pub enum Slab<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 16-bit floats.
    F16(&'a [f16]),
}

impl<'a> Slab<'a> {
    /// The elements where they are f32, else none: of what is always f32.
    fn floats(self) -> &'a [f32] {
        match self {
            Self::F32(x) => x,
            Self::F16(_) => &[],
        }
    }

    /// `len` elements from `begin` on: where they lie, or widened to `room`.
    #[inline(always)]
    fn view<'b>(&self, begin: usize, len: usize, room: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::F32(x) => &x[begin..begin + len],
            Self::F16(x) => {
                x[begin..begin + len].convert_to_f32_slice(&mut room[..len]);
                &room[..len]
            }
        }
    }
}

/// Elements of the binding that is written, as they are stored.
#[derive(Debug)]
pub enum SlabMut<'a> {
    /// 32-bit floats.
    F32(&'a mut [f32]),
    /// 16-bit floats.
    F16(&'a mut [f16]),
    /// Words.
    Words(&'a mut [u32]),
}

impl<'a> SlabMut<'a> {
    fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F16(x) => x.len(),
            Self::Words(x) => x.len(),
        }
    }

    /// The words, where they are words.
    fn words(self) -> &'a mut [u32] {
        match self {
            Self::Words(x) => x,
            _ => &mut [],
        }
    }

    fn split_at(self, at: usize) -> (Self, Self) {
        match self {
            Self::F32(x) => {
                let (a, b) = x.split_at_mut(at);
                (Self::F32(a), Self::F32(b))
            }
            Self::F16(x) => {
                let (a, b) = x.split_at_mut(at);
                (Self::F16(a), Self::F16(b))
            }
            Self::Words(x) => {
                let (a, b) = x.split_at_mut(at);
                (Self::Words(a), Self::Words(b))
            }
        }
    }

    /// The elements of a target's planes, each of `plane` elements.
    fn planes_of(self, target: &Target, plane: usize) -> Self {
        let (_, rest) = self.split_at((target.begin - target.first) as usize * plane);
        rest.split_at(target.count as usize * plane).0
    }

    /// Consecutive parts of `len` elements; the last may have fewer.
    fn parts(self, len: usize) -> Vec<Self> {
        let (mut parts, mut rest) = (Vec::with_capacity(self.len().div_ceil(len.max(1))), self);
        while rest.len() > len {
            let (part, other) = rest.split_at(len);
            parts.push(part);
            rest = other;
        }
        if rest.len() > 0 {
            parts.push(rest);
        }
        parts
    }

    /// Stores values from element `at` on.
    #[inline(always)]
    fn store(&mut self, at: usize, values: &[f32]) {
        match self {
            Self::F32(x) => x[at..at + values.len()].copy_from_slice(values),
            Self::F16(x) => x[at..at + values.len()].convert_from_f32_slice(values),
            Self::Words(_) => {}
        }
    }
}

/// Scratch memory of the threads: buffers of one length, one a thread.
#[derive(Debug)]
pub struct Scratch {
    len: usize,
    free: Mutex<Vec<Vec<f32>>>,
}

impl Scratch {
    /// Buffers of `len` numbers for so many threads.
    #[must_use]
    pub fn new(len: u64, threads: u32) -> Self {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        Self { len, free: Mutex::new((0..threads).map(|_| vec![0.0; len]).collect()) }
    }

    /// Bytes of the buffers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.buffers().iter().map(|buffer| buffer.len() as u64 * 4).sum()
    }

    fn buffers(&self) -> std::sync::MutexGuard<'_, Vec<Vec<f32>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends a buffer; one more than planned where the session runs on more threads than it was planned for.
    fn with<R>(&self, work: impl FnOnce(&mut [f32]) -> R) -> R {
        let lent = self.buffers().pop();
        let mut buffer = lent.unwrap_or_else(|| vec![0.0; self.len]);
        let result = work(&mut buffer);
        self.buffers().push(buffer);
        result
    }
}

/// Floating-point operations below which waking other threads costs more than it saves.
const FEW_FLOPS: u64 = 300_000;

/// Does every task, on all cores where there is enough to do.
fn each<T: Send>(tasks: Vec<T>, flops: u64, scratch: &Scratch, work: impl Fn(T, &mut [f32]) + Sync) {
    if flops < FEW_FLOPS || tasks.len() < 2 {
        scratch.with(|buffer| tasks.into_iter().for_each(|task| work(task, buffer)));
    } else {
        tasks.into_par_iter().with_max_len(1).for_each(|task| scratch.with(|buffer| work(task, buffer)));
    }
}

/// Tasks into which the work of so many rows of voxels is cut: several a thread, as long as each has enough voxels to use a
/// weight that it loads often.
fn tasks_wanted(voxels: usize) -> usize {
    let threads = rayon::current_num_threads().max(1);
    if threads == 1 { 1 } else { (voxels / 96).clamp(threads, 4 * threads) }
}

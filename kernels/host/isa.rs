//! The vector instructions of the machine, found at run time: work is compiled once for each set that matters and run with the
//! best one there is.

/// A set of vector instructions.
pub(crate) trait Isa: Copy {
    /// True if a multiply-add is one instruction; otherwise `f32::mul_add` calls the C library.
    const FUSED: bool;
    /// Voxels, and output channels, whose sums the vector registers hold beside what they are computed from.
    const TILE: Tile;
}

/// The tile of a matrix product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tile {
    /// 12 x 32: 24 vectors of 16, of 32 registers.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "AVX-512 alone has them"))]
    Wide,
    /// 6 x 16: 12 vectors of 8, of 16 registers; or 24 vectors of 4, of 32.
    Middle,
    /// 4 x 8: 8 vectors of 4, of 16 registers.
    Narrow,
}

/// x86-64 with AVX-512.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx512;
/// x86-64 with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx2;
/// The instructions that every machine of the target has: SSE2 on x86-64, NEON on aarch64.
#[derive(Clone, Copy)]
pub(super) struct Plain;

#[cfg(target_arch = "x86_64")]
impl Isa for Avx512 {
    const FUSED: bool = true;
    const TILE: Tile = Tile::Wide;
}

#[cfg(target_arch = "x86_64")]
impl Isa for Avx2 {
    const FUSED: bool = true;
    const TILE: Tile = Tile::Middle;
}

impl Isa for Plain {
    const FUSED: bool = cfg!(target_arch = "aarch64");
    const TILE: Tile = if cfg!(target_arch = "aarch64") { Tile::Middle } else { Tile::Narrow };
}

/// `a b + c`, rounded once where the instructions are there.
#[inline(always)]
pub(super) fn fma<I: Isa>(a: f32, b: f32, c: f32) -> f32 {
    if I::FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Work to be compiled for every set of instructions: `run`, and what it calls, must be `inline(always)` to be.
pub(crate) trait Work {
    /// Does it.
    fn run<I: Isa>(self);
}

#[cfg(target_arch = "x86_64")]
mod sets {
    use super::{Avx2, Avx512, Plain, Work};

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    fn avx512(work: impl Work) {
        work.run::<Avx512>();
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn avx2(work: impl Work) {
        work.run::<Avx2>();
    }

    /// The sets that this machine has, best first.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in super::super) enum Set {
        Avx512,
        Avx2,
        Plain,
    }

    impl Set {
        pub(in super::super) const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Plain];

        pub(in super::super) fn is_here(self) -> bool {
            let avx2 = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            match self {
                Self::Avx512 => {
                    let more = is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512dq");
                    avx2() && more && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl")
                }
                Self::Avx2 => avx2(),
                Self::Plain => true,
            }
        }
    }

    /// Runs the work with a set.
    ///
    /// # Panics
    /// When the machine does not have it.
    #[expect(unsafe_code, reason = "the instructions that are called for were found to be there")]
    pub(in super::super) fn run_with(set: Set, work: impl Work) {
        assert!(set.is_here(), "{set:?} is not here");
        match set {
            // SAFETY: `is_here` found every feature that the function enables
            Set::Avx512 => unsafe { avx512(work) },
            // SAFETY: as above
            Set::Avx2 => unsafe { avx2(work) },
            Set::Plain => work.run::<Plain>(),
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod sets {
    use super::{Plain, Work};

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in super::super) enum Set {
        Plain,
    }

    impl Set {
        pub(in super::super) const ALL: [Self; 1] = [Self::Plain];

        pub(in super::super) fn is_here(self) -> bool {
            self == Self::Plain
        }
    }

    pub(in super::super) fn run_with(_: Set, work: impl Work) {
        work.run::<Plain>();
    }
}

pub(super) use sets::{Set, run_with};

/// The set in use: the best there is, or what `ORGANUM_ISA` names (`avx512`, `avx2`, `plain`), which tests and benches set.
fn chosen() -> Set {
    static CHOSEN: std::sync::OnceLock<Set> = std::sync::OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let asked = std::env::var("ORGANUM_ISA").ok();
        let named = |set: &Set| asked.as_deref().is_none_or(|name| format!("{set:?}").eq_ignore_ascii_case(name));
        let best = |named: &dyn Fn(&Set) -> bool| Set::ALL.into_iter().find(|set| named(set) && set.is_here());
        best(&named).or_else(|| best(&|_| true)).unwrap_or(Set::Plain)
    })
}

/// Runs the work with the best instructions there are.
pub(crate) fn run(work: impl Work) {
    run_with(chosen(), work);
}

/// Name of the instructions in use, for people.
#[must_use]
pub fn name() -> &'static str {
    match chosen() {
        #[cfg(target_arch = "x86_64")]
        Set::Avx512 => "AVX-512",
        #[cfg(target_arch = "x86_64")]
        Set::Avx2 => "AVX2",
        Set::Plain if cfg!(target_arch = "aarch64") => "NEON",
        Set::Plain => "plain",
    }
}

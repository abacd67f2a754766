//! What a kernel does to a source's voxels as it loads them: a norm, whose scale and shift other kernels computed, and an
//! activation. The normalised map is then never stored.

use super::{Activation, Reach, Source, Variant, Window};

/// What the statistics of a norm are taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The volume: scale and shift are one plane.
    Volume,
    /// Each plane by itself, as 2D networks over the slices of a volume do.
    Plane,
}

impl Scope {
    /// Planes of scale and shift of a map of `planes` planes.
    #[must_use]
    pub const fn planes(self, planes: u32) -> u32 {
        match self {
            Self::Volume => 1,
            Self::Plane => planes,
        }
    }

    /// How statistics of `planes` planes, or what was made of them, are read.
    pub(super) fn source(self, planes: u32) -> Source {
        let reach = if self == Self::Plane { Reach::Same } else { Reach::Whole };
        Source { planes, reach }
    }
}

/// A source's voxels become `activation(scale x + shift)`, or `activation(x)` without a norm. Padding stays zero.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Load {
    /// Whether there are a scale and a shift, `[planes][2][C padded]`, always f32.
    pub norm: Option<Scope>,
    /// Applied last.
    pub activation: Activation,
}

impl Load {
    /// The value of the shader constants `A_NORM` and `B_NORM`.
    pub(super) const fn code(self) -> u32 {
        match self.norm {
            None => 0,
            Some(Scope::Volume) => 1,
            Some(Scope::Plane) => 2,
        }
    }

    /// Elements of the binding of scale and shift; something is bound even where there is none.
    pub(super) fn table_len(self, planes: u32, blocks: u32) -> u64 {
        self.norm.map_or(4, |scope| u64::from(scope.planes(planes)) * u64::from(blocks) * 8)
    }

    /// Scale and shift of the channels of plane `z`; empty without a norm.
    pub(super) fn table(self, norm: &[f32], window: Window, z: usize, channels: usize) -> &[f32] {
        match self.norm {
            None => &[],
            Some(Scope::Volume) => &norm[..2 * channels],
            Some(Scope::Plane) => &norm[(z - window.first as usize) * 2 * channels..][..2 * channels],
        }
    }

    /// A loaded voxel in f64, given the scale and shift of its plane.
    pub(super) fn apply(self, voxel: &[f32], table: &[f32], out: &mut Vec<f64>) {
        if table.is_empty() {
            out.extend(voxel.iter().map(|&v| self.activation.apply(v.into())));
        } else {
            let (scale, shift) = table.split_at(voxel.len());
            let normalised = voxel.iter().zip(scale).zip(shift).map(|((&v, &a), &b)| f64::from(v) * f64::from(a) + f64::from(b));
            out.extend(normalised.map(|v| self.activation.apply(v)));
        }
    }
}

impl Variant {
    /// Sets what is done to a source as it is loaded: the constants `[X_NORM, X_ACTIVATION, X_SLOPE]`.
    pub(super) fn load(mut self, [norm, activation, slope]: [&'static str; 3], load: Load) -> Self {
        if load.norm.is_some() {
            self = self.set(norm, load.code());
        }
        if load.activation != Activation::None {
            self = self.set(activation, load.activation.code());
        }
        match load.activation.slope() {
            Some(value) => self.set(slope, value),
            None => self,
        }
    }
}

/// The constants of the first source.
pub(super) const LOAD_A: [&str; 3] = ["A_NORM", "A_ACTIVATION", "A_SLOPE"];
/// The constants of the second source.
pub(super) const LOAD_B: [&str; 3] = ["B_NORM", "B_ACTIVATION", "B_SLOPE"];

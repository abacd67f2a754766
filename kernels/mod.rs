//! The Rust half of every kernel: what it binds, how it is dispatched, what it costs, and its scalar twin.
//!
//! One kernel is `shaders/NAME.wgsl` and `kernels/NAME.rs`. Nothing here holds a wgpu handle: a kernel value is one
//! dispatch as data. The `catalogue!` below is the one list from which pipelines, tests and benches are driven.

use bytemuck::Pod;

use crate::caps::DeviceCaps;
use crate::shape::{Elem, Extent};

pub mod argmax;
pub mod attention;
pub mod bench;
pub mod ceiling;
pub mod ceiling_copy;
pub mod ceiling_fma;
pub mod channel_stats;
pub mod combine;
pub mod concat;
pub mod conv3d_direct;
pub mod conv3d_general;
pub mod conv3d_pointwise;
pub mod conv3d_tiled;
pub mod conv_transpose3d;
pub mod conv_transpose3d_general;
pub mod deformable_sampling;
pub mod gather_tokens;
pub mod head_argmax;
pub mod host;
pub mod layer_norm;
pub mod norm_scale;
pub mod normalise;
pub mod patch_expand;
pub mod patch_merge;
pub mod plane_stats;
pub mod pool3d;
pub mod position_add;
pub mod resize;
pub mod shift;
pub mod softmax;
pub mod tile;
pub mod tile_accumulate;
pub mod tile_crop;
pub mod tile_normalise;
pub mod token_rows;
pub mod window_attention;

mod activation;
mod conv;
mod conv_transpose;
mod load;
mod rows;
mod slab;

pub use activation::Activation;
pub use attention::TokenChannels;
pub use combine::Spread;
pub use conv::{ConvShape, Through, pack_weights, packed_len};
pub use conv_transpose::ConvTransposeShape;
pub use conv3d_general::{Grouping, pack_grouped};
pub use host::HostHalf;
pub use load::{Load, Scope};
pub use patch_merge::MOST_PATCH_PARTS;
pub use position_add::Angles;
pub use resize::Interpolation;
pub use shift::Shift;
pub use slab::{Reach, Source, Taps, Target, Window};
pub use window_attention::{WindowShape, pack_window_constant};

/// How a shader uses one of its bindings, in binding order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// The uniform block of parameters; always binding 0.
    Params,
    /// A storage buffer of elements of the storage type that is read.
    Read,
    /// As `Read`, but always of f32: norm statistics and what is made of them.
    ReadF32,
    /// The storage buffer of elements of the storage type that is written; always the last.
    Write,
    /// As `Write`, but always of f32.
    WriteF32,
    /// As `Write`, but of u32 words.
    WriteWords,
    /// As `WriteF32`, but also read: what is there is added to.
    Update,
}

impl Binding {
    /// Bytes of an element of the binding.
    #[must_use]
    pub const fn bytes(self, elem: Elem) -> u64 {
        match self {
            Self::Params | Self::ReadF32 | Self::WriteF32 | Self::WriteWords | Self::Update => 4,
            Self::Read | Self::Write => elem.bytes(),
        }
    }
}

/// How elements lie in a device's buffers: which prelude a shader begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// 16-bit floats of a device that has them (`shader-f16`).
    F16,
    /// 16-bit floats, two to a word, of a device that has none.
    PackedF16,
}

impl Storage {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::PackedF16];

    /// Name in tables and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::PackedF16 => "f16 packed",
        }
    }
}

/// A pipeline of a kernel: element type, workgroup size and the values of the shader's `override` constants.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// How elements are stored.
    pub storage: Storage,
    /// `override` constants by name.
    pub constants: Vec<(&'static str, f64)>,
}

impl Variant {
    fn new(elem: Elem, workgroup: u32) -> Self {
        let storage = if elem == Elem::F32 { Storage::F32 } else { Storage::F16 };
        Self { storage, constants: vec![("WORKGROUP", f64::from(workgroup))] }
    }

    /// The variant for a device that has 16-bit floats or not.
    fn suited(mut self, caps: &DeviceCaps) -> Self {
        if self.storage == Storage::F16 && !caps.f16 {
            self.storage = Storage::PackedF16;
        }
        self
    }

    fn set(mut self, name: &'static str, value: impl Into<f64>) -> Self {
        self.constants.push((name, value.into()));
        self
    }

    /// Sets a window: extents, strides and padding along D, H, W. Shaders include `shared/window.wgsl`.
    fn window(mut self, kernel: [u32; 3], stride: [u32; 3], padding: [u32; 3]) -> Self {
        for (names, values) in [(["KD", "KH", "KW"], kernel), (["SD", "SH", "SW"], stride), (["PD", "PH", "PW"], padding)] {
            for (name, value) in names.into_iter().zip(values) {
                self = self.set(name, value);
            }
        }
        self
    }

    /// Sets what the kernel applies as it stores.
    fn activation(self, activation: Activation) -> Self {
        let variant = self.set("ACTIVATION", activation.code());
        match activation.slope() {
            Some(slope) => variant.set("SLOPE", slope),
            None => variant,
        }
    }

    /// Storage type of the elements.
    #[must_use]
    pub const fn elem(&self) -> Elem {
        match self.storage {
            Storage::F32 => Elem::F32,
            Storage::F16 | Storage::PackedF16 => Elem::F16,
        }
    }

    /// Invocations of a workgroup, the constant `WORKGROUP` of every kernel.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "set from a u32 in `new`")]
    pub fn workgroup(&self) -> u32 {
        self.constants[0].1 as u32
    }

    /// A text that is equal exactly for equal variants.
    #[must_use]
    pub fn key(&self) -> String {
        let mut key = self.storage.name().to_owned();
        for (name, value) in &self.constants {
            key.push_str(&format!(" {name}={value}"));
        }
        key
    }
}

/// Arithmetic and traffic of one dispatch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations, a multiply-add counted as two.
    pub flops: u64,
    /// Bytes read and written, each operand once.
    pub bytes: u64,
}

/// A dispatch that does not fit the device's grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeometryError(pub String);

/// Destination of a twin: float elements or u32 words.
#[derive(Debug)]
pub enum HostSlice<'a> {
    /// Float elements, whatever their storage type.
    Floats(&'a mut [f32]),
    /// Words.
    Words(&'a mut [u32]),
}

impl HostSlice<'_> {
    fn floats(&mut self) -> &mut [f32] {
        match self {
            Self::Floats(x) => x,
            Self::Words(_) => &mut [],
        }
    }

    fn words(&mut self) -> &mut [u32] {
        match self {
            Self::Floats(_) => &mut [],
            Self::Words(x) => x,
        }
    }
}

/// Sizes of the storage bindings of a dispatch in elements, reads first, the destination last: what tests allocate.
pub type BindingSizes = Vec<u64>;

/// One kernel: a value of the type is one dispatch.
pub trait Kernel: Clone {
    /// File, entry point, pipeline label, bench id and error text.
    const NAME: &'static str;
    /// The WGSL half without prelude.
    const SHADER: &'static str;
    /// Bindings in order; checked against the shader by `tests/shaders.rs`.
    const BINDINGS: &'static [Binding];
    /// The uniform block.
    type Params: Pod;

    /// Element type and `override` constants.
    fn variant(&self, caps: &DeviceCaps) -> Variant;
    /// Whether the shader can store 16-bit floats two to a word: what an invocation writes are whole words.
    fn packs(&self) -> bool {
        true
    }
    /// The uniform block of this dispatch.
    fn params(&self) -> Self::Params;
    /// Invocations needed along x, y, z; x is divided by the workgroup size.
    fn grid(&self) -> [u64; 3];
    /// FLOPs and bytes.
    fn cost(&self) -> Cost;
    /// Elements of each storage binding when the dispatch is run on whole maps.
    fn sizes(&self) -> BindingSizes;
    /// The sources, in the order of the node's inputs.
    fn sources(&self) -> Vec<Source>;
    /// Where the sources' planes lie, in the order of [`Kernel::sources`], and what is written.
    fn operands(&mut self) -> (&mut [Window], &mut Target);
    /// Storage bindings without the destination, given the lower and upper slab of each source, and the constants.
    fn bind<T: Copy>(&self, sources: &[[T; 2]], constants: &[T]) -> Vec<T> {
        let slabs = self.sources().into_iter().zip(sources).flat_map(|(source, pair)| pair[..source.reach.bindings()].to_vec());
        slabs.chain(constants.iter().copied()).collect()
    }
    /// The same arithmetic on the host, accumulated in f64; `inputs` are the `Read` bindings in order. A destination that is
    /// an [`Binding::Update`] holds what is added to.
    fn reference(&self, inputs: &[&[f32]], output: HostSlice<'_>);
    /// The host half, where there is one.
    fn host(&self) -> Option<&dyn HostHalf> {
        None
    }
    /// The same dispatch on elements of another storage type; what is always f32 stays as it is.
    #[must_use]
    fn stored_as(self, _elem: Elem) -> Self {
        self
    }
    /// Shapes that exercise the kernel: odd extents, one-voxel axes, unpadded channels, windows, element types.
    fn cases() -> Vec<(String, Self)>;
}

/// Workgroups for a grid of invocations.
///
/// # Errors
/// When an axis needs more groups than the device dispatches.
pub fn workgroups(name: &str, grid: [u64; 3], workgroup: u32, caps: &DeviceCaps) -> Result<[u32; 3], GeometryError> {
    let mut groups = [0; 3];
    for (axis, (out, n)) in groups.iter_mut().zip([grid[0].div_ceil(u64::from(workgroup)), grid[1], grid[2]]).enumerate() {
        match u32::try_from(n) {
            Ok(n) if n <= caps.max_workgroups && n > 0 => *out = n,
            _ => {
                return Err(GeometryError(format!(
                    "{name} needs {n} workgroups along {}, the device dispatches 1 to {}",
                    ["x", "y", "z"][axis],
                    caps.max_workgroups
                )));
            }
        }
    }
    Ok(groups)
}

/// Workgroup size: 64 fills a subgroup of every GPU; on a CPU small groups keep accumulators in registers.
fn workgroup_size(caps: &DeviceCaps) -> u32 {
    if caps.cpu { 16 } else { caps.max_invocations.clamp(1, 64) }
}

/// Cases with those of f32 once more in f16, but where there is one of that label already.
fn in_both_types<K: Kernel>(mut cases: Vec<(String, K)>) -> Vec<(String, K)> {
    let caps = DeviceCaps::default();
    for at in 0..cases.len() {
        let (label, k) = &cases[at];
        let (label, half) = (format!("{label}_f16"), k.clone().stored_as(Elem::F16));
        let new = half.variant(&caps).storage == Storage::F16 && k.variant(&caps).storage == Storage::F32;
        if new && cases.iter().all(|(other, _)| *other != label) {
            cases.push((label, half));
        }
    }
    cases
}

macro_rules! catalogue {
    ($($variant:ident($path:path)),+ $(,)?) => {
        /// One dispatch of any kernel.
        #[derive(Clone, Debug)]
        pub enum Call {
            $(#[allow(missing_docs, reason = "named after the kernel")] $variant($path)),+
        }

        /// Names of all kernels.
        pub const NAMES: &[&str] = &[$(<$path as Kernel>::NAME),+];

        /// Every case of every kernel, with a label that names both, and again in 16-bit floats.
        #[must_use]
        pub fn cases() -> Vec<(String, Call)> {
            let mut all = Vec::new();
            $(all.extend(in_both_types(<$path>::cases()).into_iter().map(|(label, k)| (format!("{}/{label}", <$path as Kernel>::NAME), Call::$variant(k))));)+
            all
        }

        impl Call {
            /// The kernel's name.
            #[must_use]
            pub fn name(&self) -> &'static str { match self { $(Self::$variant(_) => <$path as Kernel>::NAME),+ } }
            /// The kernel's WGSL without prelude.
            #[must_use]
            pub fn shader(&self) -> &'static str { match self { $(Self::$variant(_) => <$path as Kernel>::SHADER),+ } }
            /// The kernel's bindings in order.
            #[must_use]
            pub fn bindings(&self) -> &'static [Binding] { match self { $(Self::$variant(_) => <$path as Kernel>::BINDINGS),+ } }
            /// The pipeline variant.
            #[must_use]
            pub fn variant(&self, caps: &DeviceCaps) -> Variant { match self { $(Self::$variant(k) => k.variant(caps).suited(caps)),+ } }
            /// Whether the shader can store 16-bit floats two to a word.
            #[must_use]
            pub fn packs(&self) -> bool { match self { $(Self::$variant(k) => k.packs()),+ } }
            /// The uniform block as bytes.
            #[must_use]
            pub fn params(&self) -> Vec<u8> { match self { $(Self::$variant(k) => bytemuck::bytes_of(&k.params()).to_vec()),+ } }
            /// Workgroups to dispatch.
            ///
            /// # Errors
            /// When the device's grid is too small.
            pub fn workgroups(&self, caps: &DeviceCaps) -> Result<[u32; 3], GeometryError> {
                match self { $(Self::$variant(k) => workgroups(self.name(), k.grid(), k.variant(caps).workgroup(), caps)),+ }
            }
            /// FLOPs and bytes.
            #[must_use]
            pub fn cost(&self) -> Cost { match self { $(Self::$variant(k) => k.cost()),+ } }
            /// Elements of the storage bindings.
            #[must_use]
            pub fn sizes(&self) -> BindingSizes { match self { $(Self::$variant(k) => k.sizes()),+ } }
            /// The sources, in the order of the node's inputs.
            #[must_use]
            pub fn sources(&self) -> Vec<Source> { match self { $(Self::$variant(k) => k.sources()),+ } }
            /// Where the sources' planes lie, and what is written.
            pub fn operands(&mut self) -> (&mut [Window], &mut Target) { match self { $(Self::$variant(k) => k.operands()),+ } }
            /// Storage bindings without the destination.
            #[must_use]
            pub fn bind<T: Copy>(&self, sources: &[[T; 2]], constants: &[T]) -> Vec<T> {
                match self { $(Self::$variant(k) => k.bind(sources, constants)),+ }
            }
            /// The host half, where there is one.
            #[must_use]
            pub fn host(&self) -> Option<&dyn HostHalf> { match self { $(Self::$variant(k) => k.host()),+ } }
            /// Runs the scalar twin.
            pub fn reference(&self, inputs: &[&[f32]], output: HostSlice<'_>) { match self { $(Self::$variant(k) => k.reference(inputs, output)),+ } }
        }
    };
}

catalogue! {
    Conv3dDirect(conv3d_direct::Conv3dDirect),
    Conv3dTiled(conv3d_tiled::Conv3dTiled),
    Conv3dGeneral(conv3d_general::Conv3dGeneral),
    Conv3dPointwise(conv3d_pointwise::Conv3dPointwise),
    ConvTranspose3d(conv_transpose3d::ConvTranspose3d),
    ConvTranspose3dGeneral(conv_transpose3d_general::ConvTranspose3dGeneral),
    Pool3d(pool3d::Pool3d),
    Resize(resize::Resize),
    Shift(shift::ShiftMap),
    PatchMerge(patch_merge::PatchMerge),
    PatchExpand(patch_expand::PatchExpand),
    GatherTokens(gather_tokens::GatherTokens),
    TokenRows(token_rows::TokenRows),
    PositionAdd(position_add::PositionAdd),
    Attention(attention::Attention),
    WindowAttention(window_attention::WindowAttention),
    DeformableSampling(deformable_sampling::DeformableSampling),
    Combine(combine::Combine),
    Concat(concat::Concat),
    ChannelStats(channel_stats::ChannelStats),
    PlaneStats(plane_stats::PlaneStats),
    NormScale(norm_scale::NormScale),
    Normalise(normalise::Normalise),
    LayerNorm(layer_norm::LayerNorm),
    Softmax(softmax::Softmax),
    TileAccumulate(tile_accumulate::TileAccumulate),
    TileCrop(tile_crop::TileCrop),
    TileNormalise(tile_normalise::TileNormalise),
    Argmax(argmax::Argmax),
    HeadArgmax(head_argmax::HeadArgmax),
    CeilingCopy(ceiling_copy::CeilingCopy),
    CeilingFma(ceiling_fma::CeilingFma),
}

/// The complete WGSL text of a kernel for a way of storing elements: prelude, shared helpers, kernel.
#[must_use]
pub fn shader_source(kernel: &str, storage: Storage) -> String {
    let prelude = match storage {
        Storage::F32 => include_str!("../shaders/shared/elem_f32.wgsl"),
        Storage::F16 => include_str!("../shaders/shared/elem_f16.wgsl"),
        Storage::PackedF16 => include_str!("../shaders/shared/elem_f16_packed.wgsl"),
    };
    let shared = [include_str!("../shaders/shared/activation.wgsl"), include_str!("../shaders/shared/load.wgsl")];
    [prelude, shared[0], shared[1], kernel].join("\n")
}

/// `u64` of the elements a map has over `planes` planes.
fn elements(extent: Extent, channels: u32, planes: u32) -> u64 {
    extent.plane() * u64::from(channels.div_ceil(4)) * 4 * u64::from(planes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_stands_on_the_group_limit() {
        let caps = DeviceCaps::default();
        let edge = 65_535 * 64;
        assert_eq!(workgroups("k", [edge, 1, 1], 64, &caps), Ok([65_535, 1, 1]));
        assert!(workgroups("k", [edge + 1, 1, 1], 64, &caps).is_err());
        assert!(workgroups("k", [1, 0, 1], 64, &caps).is_err());
    }
}

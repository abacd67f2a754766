//! A run as data: what is uploaded, dispatched and downloaded, in order. No device in it.
//!
//! The same recording is run by the GPU engine and by the reference executor; the dry run, the memory report and the
//! progress total read it.

use std::ops::Range;

use crate::graph::NodeId;
use crate::kernels::Call;
use crate::shape::{Elem, Extent, Map};

/// A range of a chunk (one device buffer).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// Index into [`Recording::chunks`].
    pub chunk: u32,
    /// Offset in bytes, a multiple of the binding alignment.
    pub offset: u64,
    /// Size in bytes, a multiple of four.
    pub size: u64,
}

/// What a constant region is filled with when a session begins.
#[derive(Clone, Debug, PartialEq)]
pub enum ConstantSource {
    /// Folded and packed weights of the convolution node, transposed or not, for sources with these channels.
    Conv {
        /// The node.
        node: NodeId,
        /// Channels of its sources.
        in_channels: [u32; 2],
    },
    /// Scale and shift of the channels of a node, or gamma and beta of its norm, and the slopes of a PReLU; always f32.
    ScaleShift {
        /// The node.
        node: NodeId,
        /// Its channels.
        channels: u32,
    },
    /// Biases, index and padding of attention in windows, or the mask of so many keys; always f32.
    Attention {
        /// The node.
        node: NodeId,
        /// Its keys, where it masks them.
        keys: u32,
    },
    /// Numbers of the tokens that a node picks; always f32.
    Tokens {
        /// The node.
        node: NodeId,
    },
    /// Rows of a tensor of the file.
    Parameter {
        /// The node.
        node: NodeId,
    },
    /// Positional encoding of a map.
    PositionTable {
        /// The node.
        node: NodeId,
        /// The map.
        map: Map,
    },
}

impl ConstantSource {
    /// Whether it is the weights of a product.
    pub(crate) const fn is_weights(&self) -> bool {
        matches!(self, Self::Conv { .. })
    }

    /// The type the constant is stored in where maps are stored in `elem`: weights of convolutions are f32 always.
    #[must_use]
    pub const fn elem(&self, elem: Elem) -> Elem {
        match self {
            Self::Conv { .. } | Self::ScaleShift { .. } | Self::Attention { .. } | Self::Tokens { .. } => Elem::F32,
            Self::Parameter { .. } | Self::PositionTable { .. } => elem,
        }
    }
}

/// A region that is filled once, or at each [`Command::Fetch`].
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// Where; of weights that are fetched the size alone counts.
    pub dst: Region,
    /// With what.
    pub source: ConstantSource,
    /// It stays on the host between its uses.
    pub fetched: bool,
}

/// How an output is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// Float elements of the storage type, channels-last.
    Map,
    /// The same, but always of f32: norm statistics and what is made of them.
    MapF32,
    /// Labels packed to words by the arg-max kernel.
    Labels,
}

/// A value that leaves the device.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The node's name.
    pub name: String,
    /// Shape; for labels the channels are the classes.
    pub map: Map,
    /// How it is stored.
    pub kind: OutputKind,
}

impl Output {
    /// Type of its elements where the storage type is `elem`.
    pub(crate) fn elem(&self, elem: Elem) -> Elem {
        if self.kind == OutputKind::MapF32 { Elem::F32 } else { elem }
    }
}

/// One step of a run.
#[derive(Clone, Debug)]
pub enum Command {
    /// Planes of the input, converted to channels-last.
    Upload {
        /// Where to.
        dst: Region,
        /// Which planes.
        planes: Range<u32>,
        /// The node it is the value of: the input, or the input again.
        node: NodeId,
    },
    /// One kernel.
    Dispatch {
        /// The kernel and its parameters.
        call: Box<Call>,
        /// Storage bindings in order, the destination last.
        bindings: Vec<Region>,
        /// The node it computes for.
        node: NodeId,
    },
    /// Planes of an output.
    Download {
        /// Where from.
        src: Region,
        /// Index into [`Recording::outputs`].
        output: u32,
        /// Which planes.
        planes: Range<u32>,
    },
    /// A slab that waits on the host; its place on the device is free afterwards.
    Spill {
        /// Where from.
        src: Region,
        /// Index into [`Recording::host_slots`].
        slot: u32,
    },
    /// A slab that comes back from the host.
    Restore {
        /// Where to.
        dst: Region,
        /// Index into [`Recording::host_slots`].
        slot: u32,
        /// It comes back once more; else its slot is free afterwards.
        keep: bool,
    },
    /// Weights that stay on the host between their uses come to the device.
    Fetch {
        /// Where to.
        dst: Region,
        /// Index into [`Recording::constants`].
        constant: u32,
    },
    /// End of a batch: what came before is submitted, progress told and cancelling looked at.
    Split,
}

/// Windows of a volume on the device: buffers beside those of a pass, and what runs after passes.
///
/// Commands of a pass read the scan's planes here by `tile_crop`, and leave their results by `tile_accumulate`.
#[derive(Clone, Debug)]
pub struct WindowSums {
    /// Extent of the volume.
    pub image: Extent,
    /// Channels of the scan.
    pub channels: u32,
    /// Passes of a window.
    pub mirrors: u32,
    /// Planes of the volume that are on the device: plane z lies at z % ring.
    pub ring: u32,
    /// The scan, `[C][ring][H][W]`, f32.
    pub scan: Region,
    /// The sums, `[ring][H][W][C/4]`, f32.
    pub sums: Region,
    /// The sum of the weights of the plane that is being finished, `[H][W]`, f32.
    pub totals: Region,
    /// Weights of a window's voxels along D, H, W, f32.
    pub weights: Region,
    /// And their values.
    pub along: Vec<f32>,
    /// Dispatches after the passes of a window, where there are several: the mean is added to the sums. Then those that finish a
    /// plane: the sums become scores, and these labels.
    pub after: Vec<Command>,
    /// A finished plane.
    pub plane: Output,
    /// Type of its scores.
    pub elem: Elem,
    /// Its place.
    pub finished: Region,
}

/// A complete run.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// Storage type of maps and constants.
    pub elem: Elem,
    /// Shape of the input.
    pub input: Option<Map>,
    /// Sizes of the device buffers in bytes.
    pub chunks: Vec<u64>,
    /// Filled once, or fetched.
    pub constants: Vec<Constant>,
    /// Done at every run.
    pub commands: Vec<Command>,
    /// What leaves the device.
    pub outputs: Vec<Output>,
    /// The windows that a run is a pass of, where the device sums them.
    pub windows: Option<WindowSums>,
    /// Bytes of the slabs that wait on the host.
    pub host_slots: Vec<u64>,
    /// Bytes of the buffer through which data reach the device.
    pub upload_staging: u64,
    /// Bytes of the buffer through which results leave it.
    pub download_staging: u64,
    /// Threads where the host is the device, else 0; there are neither uniforms nor staging then.
    pub threads: u32,
    /// f32 numbers that each of the threads needs besides the chunks.
    pub scratch: u64,
}

/// Bytes from one block of uniform parameters to the next.
pub const UNIFORM_STRIDE: u64 = 256;

impl Recording {
    /// Kernel dispatches, those after the passes of windows last.
    pub fn dispatches(&self) -> impl Iterator<Item = (&Call, &[Region])> {
        let after = self.windows.iter().flat_map(|windows| &windows.after);
        self.commands.iter().chain(after).filter_map(|c| match c {
            Command::Dispatch { call, bindings, .. } => Some((call.as_ref(), bindings.as_slice())),
            _ => None,
        })
    }

    /// Bytes of the uniform buffer.
    #[must_use]
    pub fn uniform_bytes(&self) -> u64 {
        (self.dispatches().count().max(1) as u64) * UNIFORM_STRIDE
    }

    /// Every device byte of a run.
    #[must_use]
    pub fn device_bytes(&self) -> u64 {
        if self.threads > 0 {
            return self.chunks.iter().sum::<u64>() + u64::from(self.threads) * self.scratch * 4;
        }
        self.chunks.iter().sum::<u64>() + self.uniform_bytes() + self.upload_staging + self.download_staging
    }
}

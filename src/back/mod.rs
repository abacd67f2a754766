//! The ways of a network's results back to the scan: one for each kind of steps that recipes undo.
//!
//! [`DirectCase`] undoes orientation and resampling for cards with steps of their own, [`SplineCase`] is nnU-Net's export,
//! [`InverseCase`] MONAI's inverse transforms. Each holds the network's input of a scan, and what brings results back;
//! [`SplineExport`] and [`InverseExport`] take scores plane by plane.

mod direct;
mod inverse;
mod spline;

pub use direct::DirectCase;
pub use inverse::InverseCase;
pub use inverse::export::InverseExport;
pub use spline::SplineCase;
pub use spline::export::{SplineExport, SplineExportOptions};

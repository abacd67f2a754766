//! What nnU-Net's readers of images say of a scan's spacing.

use serde::{Deserialize, Serialize};

use super::Scan;
use crate::warning::{Warning, WarningKind};

/// The spacing that stands for the missing axis of a 2D image, as a multiple of the greatest of the
/// others.
const MISSING: f64 = 999.0;
/// The greatest shear, in degrees, that ITK takes for none: a ten-thousandth as the cosine of the
/// angle between two axes.
const SHEAR: f64 = 6e-3;

/// The class that nnU-Net reads images with, `image_reader_writer` of its plans.
///
/// They agree on the voxels but not on the spacing, which nnU-Net resamples by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reader {
    /// By way of ITK, as nnU-Net v1 reads too: the header's pixdim in millimetres, whatever the
    /// sform says; 999 times the greatest of them for the missing axis of a 2D image.
    #[default]
    #[serde(rename = "SimpleITKIO")]
    SimpleItk,
    /// The pixdim, whose unit is not looked at.
    #[serde(rename = "NibabelIO")]
    Nibabel,
    /// The same of scans whose axes run to the right, the front and the head; of all others, which
    /// it turns to those axes, the lengths of the affine's columns.
    #[serde(rename = "NibabelIOWithReorient")]
    NibabelReorient,
}

impl Reader {
    /// The spacing along D, H, W (k, j, i of the file) that nnU-Net takes a scan to have, in what
    /// it takes for millimetres.
    #[must_use]
    pub fn spacing(self, scan: &Scan<'_>) -> [f64; 3] {
        let (pixdim, unit) = (scan.header.pixdim, scan.header.unit_mm);
        match self {
            Self::SimpleItk => {
                let [_, y, x] = pixdim.map(|size| size * unit);
                if scan.header.planar { [MISSING * x.max(y), y, x] } else { [pixdim[0] * unit, y, x] }
            }
            Self::NibabelReorient if scan.image.axes.to_string() != "SAR" => {
                #[expect(clippy::cast_possible_truncation, reason = "they go through a header of f32")]
                let single = |size: f64| f64::from((size / unit) as f32);
                scan.image.affine().spacing().map(single)
            }
            Self::Nibabel | Self::NibabelReorient => pixdim,
        }
    }

    /// Where nnU-Net would not read a scan at all, or takes its spacing for another than it is.
    #[must_use]
    pub fn warnings(self, scan: &Scan<'_>) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let mut warn = |text: String| warnings.push(Warning::new(WarningKind::Geometry, text));
        let shear = scan.image.affine().shear_degrees();
        if self == Self::SimpleItk && shear > SHEAR && !scan.header.qform {
            warn(format!(
                "the axes of the scan are {shear:.2} degrees off right angles; nnU-Net's reader SimpleITKIO refuses such scans, \
                 here the shear is passed over"
            ));
        }
        let unit = scan.header.unit_mm;
        if self != Self::SimpleItk && (unit - 1.0).abs() > 0.0 {
            warn(format!(
                "the header's unit is {unit} mm, which nnU-Net's reader of this model does not look at: \
                 it takes the spacing for {:?} mm",
                self.spacing(scan)
            ));
        }
        warnings
    }
}

#[cfg(all(test, feature = "nifti"))]
mod tests {
    use super::*;
    use crate::shape::Extent;
    use crate::volume::nifti::{self, NiftiHeader};
    use crate::volume::{Affine, Volume};

    fn scan(axes: &str, header: NiftiHeader) -> Result<nifti::Scan, Box<dyn std::error::Error>> {
        let spacing = [5.0, 4.0, 3.0];
        let image = Volume::new(1, Extent::new(1, 1, 1), spacing, axes.parse()?, vec![0.0])?;
        let affine = Affine::orthogonal(spacing, axes.parse()?);
        Ok(nifti::Scan::new(header, image.with_affine(affine)))
    }

    #[test]
    fn readers_take_the_pixdim() -> Result<(), Box<dyn std::error::Error>> {
        let mut header = NiftiHeader { pixdim: [1.0, -2.0, 0.5, 0.0, 1.0, 1.0, 1.0, 1.0], ..NiftiHeader::default() };
        header.dim[0] = 3;
        let mut scan = scan("SAR", header)?;
        assert_eq!(Reader::SimpleItk.spacing(&(&scan).into()), [1.0, 0.5, 2.0]);
        scan.header.dim[0] = 2;
        assert_eq!(Reader::SimpleItk.spacing(&(&scan).into()), [1998.0, 0.5, 2.0]);
        assert_eq!(Reader::NibabelReorient.spacing(&(&scan).into()), [1.0, 0.5, 2.0]);
        scan.header.xyzt_units = 3;
        assert_eq!((Reader::SimpleItk.spacing(&(&scan).into())[1], Reader::Nibabel.spacing(&(&scan).into())[1]), (0.0005, 0.5));
        assert!(Reader::SimpleItk.warnings(&(&scan).into()).is_empty());
        assert!(Reader::Nibabel.warnings(&(&scan).into())[0].message.contains("unit is 0.001 mm"));
        Ok(())
    }

    #[test]
    fn turned_scans_have_the_affines_spacing() -> Result<(), Box<dyn std::error::Error>> {
        let mut scan = scan("SAL", NiftiHeader { qform_code: 0, ..NiftiHeader::default() })?;
        assert_eq!(Reader::NibabelReorient.spacing(&(&scan).into()), [5.0, 4.0, 3.0]);
        let mut steps = scan.image.affine().steps;
        steps[0][1] = 0.5;
        scan.image = scan.image.with_affine(Affine { steps, origin: [0.0; 3] });
        assert!(Reader::SimpleItk.warnings(&(&scan).into())[0].message.contains("5.71 degrees off right angles"));
        assert!(Reader::Nibabel.warnings(&(&scan).into()).is_empty());
        Ok(())
    }
}

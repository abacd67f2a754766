//! Patient directions of the axes, and moving a volume from one set of axes to another.
//!
//! [`Axes`] is written with three letters, one per tensor axis in D, H, W order: the patient direction in which that
//! axis **increases**. NIfTI voxels (i fastest) are stored here as `[k][j][i]`, so a file that nibabel calls `RAS` has
//! the axes `SAR`.

use std::fmt;
use std::str::FromStr;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Affine, Volume, VolumeError, VolumeErrorKind, sizes};
use crate::shape::Extent;

/// A direction in the patient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Towards the patient's right hand, `R`.
    Right,
    /// Towards the patient's left hand, `L`.
    Left,
    /// Towards the face, `A`.
    Anterior,
    /// Towards the back, `P`.
    Posterior,
    /// Towards the head, `S`.
    Superior,
    /// Towards the feet, `I`.
    Inferior,
}

impl Direction {
    /// The direction's letter: one of `R L A P S I`.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::Right => 'R',
            Self::Left => 'L',
            Self::Anterior => 'A',
            Self::Posterior => 'P',
            Self::Superior => 'S',
            Self::Inferior => 'I',
        }
    }

    /// The direction of the letter, one of `R L A P S I`.
    #[must_use]
    pub fn from_letter(letter: char) -> Option<Self> {
        (0..3).flat_map(|axis| [Self::along(axis, true), Self::along(axis, false)]).find(|d| d.letter() == letter)
    }

    /// The direction the other way.
    #[cfg(feature = "cli")]
    pub(crate) fn opposite(self) -> Self {
        let axis = self.world_axis();
        Self::along(axis, self != Self::along(axis, true))
    }

    /// The way along world axis 0 (left to right), 1 (posterior to anterior) or 2 (inferior to superior).
    pub(crate) fn along(world_axis: usize, increasing: bool) -> Self {
        match (world_axis, increasing) {
            (0, true) => Self::Right,
            (0, false) => Self::Left,
            (1, true) => Self::Anterior,
            (1, false) => Self::Posterior,
            (_, true) => Self::Superior,
            (_, false) => Self::Inferior,
        }
    }

    /// The world axis that the direction lies along.
    pub(crate) fn world_axis(self) -> usize {
        match self {
            Self::Right | Self::Left => 0,
            Self::Anterior | Self::Posterior => 1,
            Self::Superior | Self::Inferior => 2,
        }
    }
}

/// The patient directions in which D, H and W increase; each of right-left, anterior-posterior and superior-inferior
/// occurs once. Parsed from and shown as three letters such as `SAR`; the same in serde.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Axes([Direction; 3]);

impl Axes {
    /// The axes with these directions for D, H and W.
    ///
    /// # Errors
    /// [`VolumeErrorKind::Format`] if two of the directions lie along the same line.
    pub fn new(directions: [Direction; 3]) -> Result<Self, VolumeError> {
        let mut seen = [false; 3];
        for d in directions {
            seen[d.world_axis()] = true;
        }
        if seen == [true; 3] { Ok(Self(directions)) } else { Err(bad_axes(&directions.iter().map(|d| d.letter()).collect::<String>())) }
    }

    /// The directions in which D, H and W increase.
    #[must_use]
    pub fn directions(self) -> [Direction; 3] {
        self.0
    }
}

fn bad_axes(text: &str) -> VolumeError {
    VolumeError::new(
        VolumeErrorKind::Format,
        format!("\"{text}\" is not a set of axes; write one each of R or L, A or P, S or I, such as \"SAR\""),
    )
}

impl FromStr for Axes {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Self, VolumeError> {
        let directions: Option<Vec<Direction>> = text.chars().map(Direction::from_letter).collect();
        let three: Option<[Direction; 3]> = directions.and_then(|d| d.try_into().ok());
        Self::new(three.ok_or_else(|| bad_axes(text))?)
    }
}

impl fmt::Display for Axes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|d| write!(f, "{}", d.letter()))
    }
}

impl TryFrom<String> for Axes {
    type Error = VolumeError;

    fn try_from(text: String) -> Result<Self, VolumeError> {
        text.parse()
    }
}

impl From<Axes> for String {
    fn from(axes: Axes) -> Self {
        axes.to_string()
    }
}

/// A channel seen along other axes, without moving a voxel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    /// The size along the wanted D, H and W.
    pub(crate) sizes: [usize; 3],
    /// The spacing along the wanted D, H and W in millimetres.
    pub(crate) spacing: [f64; 3],
    /// The stored axis that each wanted axis runs along.
    source: [usize; 3],
    strides: [usize; 3],
    flipped: [bool; 3],
}

impl View {
    /// A channel of `volume` along the axes `to`.
    pub(crate) fn new<T>(volume: &Volume<T>, to: Axes) -> Self {
        Self::of(volume.extent, volume.spacing, volume.axes, to)
    }

    /// A channel of such a grid along the axes `to`.
    pub(crate) fn of(extent: Extent, spacing: [f64; 3], axes: Axes, to: Axes) -> Self {
        let stored = sizes(extent);
        let stored_strides = [stored[1] * stored[2], stored[2], 1];
        let mut source = [0; 3];
        for (want, s) in to.0.iter().zip(&mut source) {
            for (axis, have) in axes.0.iter().enumerate() {
                if have.world_axis() == want.world_axis() {
                    *s = axis;
                }
            }
        }
        Self {
            sizes: source.map(|s| stored[s]),
            spacing: source.map(|s| spacing[s]),
            source,
            strides: source.map(|s| stored_strides[s]),
            flipped: [0, 1, 2].map(|axis| axes.0[source[axis]] != to.0[axis]),
        }
    }

    /// The place of the first stored voxel among those along the wanted axes, and how far apart there
    /// neighbours along each stored axis lie.
    pub(crate) fn placed(&self) -> (isize, [isize; 3]) {
        let [_, height, width] = self.sizes.map(usize::cast_signed);
        let (mut first, mut steps) = (0, [0; 3]);
        for (axis, step) in [height * width, width, 1].into_iter().enumerate() {
            let last = self.sizes[axis].cast_signed() - 1;
            steps[self.source[axis]] = if self.flipped[axis] { -step } else { step };
            first += if self.flipped[axis] { last * step } else { 0 };
        }
        (first, steps)
    }

    /// How much index `i` along the wanted `axis` adds to the position in the channel.
    pub(crate) fn offset(&self, axis: usize, i: usize) -> usize {
        let at = if self.flipped[axis] { self.sizes[axis] - 1 - i } else { i };
        at * self.strides[axis]
    }

    /// Stored indices (D, H, W), cut to the volume, as indices along the wanted axes.
    #[cfg(feature = "cli")]
    pub(crate) fn locate(&self, at: [usize; 3]) -> [usize; 3] {
        [0, 1, 2].map(|axis| {
            let i = at[self.source[axis]].min(self.sizes[axis] - 1);
            if self.flipped[axis] { self.sizes[axis] - 1 - i } else { i }
        })
    }

    /// The affine of the voxels along the wanted axes.
    pub(crate) fn affine(&self, stored: &Affine) -> Affine {
        let last = [0, 1, 2].map(|axis| self.flipped[axis].then(|| self.sizes[axis] - 1));
        stored.reoriented(self.source, last)
    }

    fn extent(&self, stored: Extent) -> Extent {
        let s = self.source.map(|s| [stored.d, stored.h, stored.w][s]);
        Extent::new(s[0], s[1], s[2])
    }
}

/// A spacing along the axes `from` as one along the axes `to`.
pub(crate) fn turned_spacing(spacing: [f64; 3], from: Axes, to: Axes) -> [f64; 3] {
    to.0.map(|want| {
        let along = (0..3).find(|&axis| from.0[axis].world_axis() == want.world_axis());
        along.map_or(0.0, |axis| spacing[axis])
    })
}

/// The same voxels along the axes `to`: axes are exchanged and flipped, nothing is interpolated.
///
/// Channels stay where they are. Going back to the volume's own axes gives the volume itself.
#[must_use]
pub fn reorient<T: Copy + Send + Sync>(volume: &Volume<T>, to: Axes) -> Volume<T> {
    let Some(&filler) = volume.data.first() else {
        return volume.clone();
    };
    if volume.axes == to {
        return volume.clone();
    }
    let view = View::new(volume, to);
    let [depth, height, width] = view.sizes;
    let columns: Vec<usize> = (0..width).map(|w| view.offset(2, w)).collect();
    let mut data = vec![filler; volume.data.len()];
    data.par_chunks_exact_mut(height * width).enumerate().for_each(|(plane, out)| {
        let start = (plane / depth) * depth * height * width + view.offset(0, plane % depth);
        for (h, row) in out.chunks_exact_mut(width).enumerate() {
            let start = start + view.offset(1, h);
            for (value, column) in row.iter_mut().zip(&columns) {
                *value = volume.data[start + column];
            }
        }
    });
    let affine = view.affine(volume.affine());
    let extent = view.extent(volume.extent);
    Volume { channels: volume.channels, extent, spacing: view.spacing, axes: to, data, affine }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_axes() -> Vec<Axes> {
        let letters = ['R', 'L', 'A', 'P', 'S', 'I'];
        let mut all = Vec::new();
        for a in letters {
            for b in letters {
                for c in letters {
                    all.extend(String::from_iter([a, b, c]).parse::<Axes>());
                }
            }
        }
        all
    }

    #[test]
    fn letters_parse_and_show() {
        assert_eq!(every_axes().len(), 48);
        for axes in every_axes() {
            assert_eq!(axes.to_string().parse::<Axes>().ok(), Some(axes));
        }
        for bad in ["", "RA", "RAL", "RASR", "ras", "XYZ", "RRS", "R\u{e9}S"] {
            assert_eq!(bad.parse::<Axes>().err().map(|e| e.kind()), Some(VolumeErrorKind::Format), "{bad}");
        }
    }

    #[test]
    fn serde_is_the_three_letters() -> Result<(), Box<dyn std::error::Error>> {
        let axes: Axes = serde_json::from_str("\"LIA\"")?;
        assert_eq!(axes.to_string(), "LIA");
        assert_eq!(serde_json::to_string(&axes)?, "\"LIA\"");
        assert!(serde_json::from_str::<Axes>("\"LRA\"").is_err());
        Ok(())
    }

    #[test]
    fn one_voxel_lands_where_it_should() -> Result<(), VolumeError> {
        // Axes SAR, 2x3x4: index [d][h][w]. Seen as LIA: D' = W flipped, H' = D flipped, W' = H.
        let data: Vec<u16> = (0..48).collect();
        let v = Volume::new(2, Extent::new(2, 3, 4), [5.0, 6.0, 7.0], "SAR".parse()?, data)?;
        let r = reorient(&v, "LIA".parse()?);
        assert_eq!(r.extent, Extent::new(4, 2, 3));
        assert_eq!(r.spacing, [7.0, 5.0, 6.0]);
        for c in 0..2 {
            for (d, h, w) in [(0, 0, 0), (1, 2, 3), (0, 1, 2), (1, 0, 1)] {
                let from = v.data[((c * 2 + d) * 3 + h) * 4 + w];
                let to = r.data[((c * 4 + (3 - w)) * 2 + (1 - d)) * 3 + h];
                assert_eq!(from, to);
            }
        }
        Ok(())
    }

    #[test]
    fn there_and_back_is_the_identity() -> Result<(), VolumeError> {
        let data: Vec<u8> = (0..120).collect();
        let v = Volume::new(2, Extent::new(3, 4, 5), [1.0, 2.0, 3.0], "LIA".parse()?, data)?;
        for axes in every_axes() {
            assert_eq!(reorient(&reorient(&v, axes), v.axes), v, "{axes}");
        }
        Ok(())
    }
}

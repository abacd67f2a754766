//! The card's key `expects`: which scans a model understands, and which results are plausible.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Card;
use crate::volume::orient::{View, turned_spacing};
use crate::volume::{Axes, Volume};
use crate::warning::{Warning, WarningKind};

/// The scans that a model was made for, and the results that are plausible for them.
///
/// Everything is optional. What lies outside is no error: it is told as a [`Warning`], before the
/// run for the scan and after it for the labels.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Expects {
    /// A description of the scans for people: modality, region, cropping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scan: Option<String>,
    /// The least and the greatest field of view in mm along D, H, W of the card's `input.axes`, or of
    /// the file where the card names none: extent times spacing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field_of_view_mm: Option<[[f64; 2]; 3]>,
    /// The range in which all values of the scan lie, before any scaling; an end that is null is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<[Option<f64>; 2]>,
    /// The least and the greatest volume of labels in ml, by the names or numbers of the classes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes_ml: BTreeMap<String, [f64; 2]>,
}

impl Expects {
    /// Whether nothing is expected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the key against its card.
    ///
    /// # Errors
    /// The reason why it makes no sense: a range, or a label that the card does not have.
    pub(super) fn check(&self, card: &Card) -> Result<(), String> {
        let range = |[low, high]: [f64; 2]| low.is_finite() && high.is_finite() && 0.0 <= low && low <= high;
        if let Some(mm) = self.field_of_view_mm.filter(|mm| !mm.iter().all(|&r| range(r))) {
            return Err(format!("field_of_view_mm {mm:?} is not three pairs of a least and a greatest length"));
        }
        if let Some([Some(low), Some(high)]) = self.values.filter(|v| matches!(v, [Some(a), Some(b)] if a > b)) {
            return Err(format!("the values from {low} to {high} are no range"));
        }
        for (name, &volume) in &self.volumes_ml {
            if class(card, name).is_none() {
                return Err(format!("volumes_ml names {name:?}, which is no class of the labels"));
            }
            if !range(volume) {
                return Err(format!("the volumes {volume:?} of {name:?} are no range in ml"));
            }
        }
        Ok(())
    }

    /// Warnings of a scan that is not like those that the model understands. `spacing` is what the
    /// model's reader takes the scan's to be, in mm along D, H, W of the scan.
    #[must_use]
    pub fn check_scan(&self, card: &Card, scan: &Volume<f32>, spacing: [f64; 3]) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let understands = self.scan.as_ref().map_or_else(String::new, |s| format!(" ({s})"));
        if let Some(expected) = self.field_of_view_mm {
            let axes = card.input.axes.unwrap_or(scan.axes);
            let field = field_of_view(scan, spacing, axes);
            let outside = (0..3).any(|a| field[a] < expected[a][0] || field[a] > expected[a][1]);
            if outside {
                let show = |v: [String; 3]| v.join(" x ");
                warnings.push(Warning::new(
                    WarningKind::Scan,
                    format!(
                        "the scan's field of view of {} mm (along {axes}) is not what the model is for: {} mm{understands}",
                        show(field.map(|x| format!("{x:.0}"))),
                        show(expected.map(|[low, high]| format!("{low:.0} to {high:.0}")))
                    ),
                ));
            }
        }
        if let Some([low, high]) = self.values {
            let ends = (f32::INFINITY, f32::NEG_INFINITY);
            let (least, most) = scan.data.iter().fold(ends, |(a, b), &v| (a.min(v), b.max(v)));
            let (least, most) = (f64::from(least), f64::from(most));
            if low.is_some_and(|low| least < low) || high.is_some_and(|high| most > high) {
                let end = |x: Option<f64>| x.map_or_else(|| "any".to_owned(), |x| x.to_string());
                warnings.push(Warning::new(
                    WarningKind::Scan,
                    format!(
                        "the scan's values from {least} to {most} are not what the model is for: {} to {}{understands}",
                        end(low),
                        end(high)
                    ),
                ));
            }
        }
        warnings
    }

    /// Warnings of labels whose volumes are not plausible; a label that is absent has none.
    #[must_use]
    pub fn check_labels(&self, card: &Card, labels: &Volume<u16>) -> Vec<Warning> {
        let mut warnings = Vec::new();
        for (name, &[low, high]) in &self.volumes_ml {
            let Some(class) = class(card, name) else { continue };
            let voxels = if card.labels_overlap() {
                let n = usize::try_from(labels.extent.voxels()).unwrap_or(usize::MAX).max(1);
                labels.data.chunks_exact(n).nth(class as usize).unwrap_or_default().iter().filter(|&&on| on > 0).count()
            } else {
                labels.data.iter().filter(|&&l| u32::from(l) == class).count()
            };
            #[expect(clippy::cast_precision_loss, reason = "a volume for people")]
            let ml = voxels as f64 * labels.voxel_ml();
            if ml < low || ml > high {
                warnings.push(Warning::new(
                    WarningKind::Result,
                    format!(
                        "{} of {ml:.2} ml is not plausible: the model's card expects {low} to {high} ml; look at the labels before you use them",
                        card.label_name(class)
                    ),
                ));
            }
        }
        warnings
    }
}

/// The class of a name, or of a number.
fn class(card: &Card, name: &str) -> Option<u32> {
    std::iter::once(0).chain(card.label_values()).find(|&class| card.label_name(class) == name || class.to_string() == name)
}

/// Extent times spacing along these axes in mm.
fn field_of_view(scan: &Volume<f32>, spacing: [f64; 3], axes: Axes) -> [f64; 3] {
    let view = View::new(scan, axes);
    let spacing = turned_spacing(spacing, scan.axes, axes);
    #[expect(clippy::cast_precision_loss, reason = "an extent")]
    [0, 1, 2].map(|a| view.sizes[a] as f64 * spacing[a])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Extent;

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    fn card(expects: &str) -> Result<Card, Box<dyn std::error::Error>> {
        let text = format!(
            r#"{{"architecture": "x", "config": {{"classes": 3}}, "input": {{"axes": "SAR"}},
                "labels": {{"1": "liver"}}, "expects": {expects}}}"#
        );
        Ok(serde_json::from_str(&text)?)
    }

    #[test]
    fn scans_and_volumes_outside_are_named() -> Outcome {
        let card = card(
            r#"{"scan": "CT of the trunk", "field_of_view_mm": [[10, 20], [10, 30], [1, 5]],
                "values": [-1024, null], "volumes_ml": {"liver": [0.01, 0.1], "2": [0, 1]}}"#,
        )?;
        card.expects.check(&card)?;
        let scan = |extent: [u32; 3], spacing, axes: &str, value: f32| {
            let extent = Extent::from(extent);
            let data = vec![value; usize::try_from(extent.voxels())?];
            Ok::<_, Box<dyn std::error::Error>>(Volume::new(1, extent, spacing, axes.parse()?, data)?)
        };
        let fits = scan([10, 10, 4], [2.0, 3.0, 1.0], "SAR", -1000.0)?;
        assert_eq!(card.expects.check_scan(&card, &fits, fits.spacing), []);
        // the same scan stored along other axes
        let turned = scan([4, 10, 10], [1.0, 3.0, 2.0], "LPI", -1000.0)?;
        assert_eq!(card.expects.check_scan(&card, &turned, turned.spacing), []);
        let odd = scan([10, 11, 4], [2.0, 3.0, 1.0], "SAR", -3000.0)?;
        let told = card.expects.check_scan(&card, &odd, odd.spacing);
        assert_eq!(told.len(), 2);
        assert!(told[0].message.contains("20 x 33 x 4 mm (along SAR)"), "{}", told[0]);
        assert!(told[1].message.contains("-3000") && told[1].message.contains("CT of the trunk"));
        let mut labels = fits.regrid(fits.extent, fits.spacing, vec![0u16; 400]);
        let told = card.expects.check_labels(&card, &labels);
        assert!(told.len() == 1 && told[0].message.starts_with("liver of 0.00 ml"), "{told:?}");
        labels.data[..5].fill(1);
        assert_eq!(card.expects.check_labels(&card, &labels), [], "30 mm³");
        Ok(())
    }

    #[test]
    fn bad_expectations_are_refused() -> Outcome {
        for (expects, why) in [
            (r#"{"field_of_view_mm": [[1, 2], [1, 2], [3, 2]]}"#, "field_of_view_mm"),
            (r#"{"values": [2, 1]}"#, "no range"),
            (r#"{"volumes_ml": {"spleen": [1, 2]}}"#, "spleen"),
            (r#"{"volumes_ml": {"liver": [-1, 2]}}"#, "liver"),
        ] {
            let card = card(expects)?;
            let told = card.expects.check(&card).err().unwrap_or_default();
            assert!(told.contains(why), "{expects}: {told}");
        }
        assert!(card(r#"{"colour": 1}"#).is_err());
        Ok(())
    }
}

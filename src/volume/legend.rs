//! Names and colours of labels.

use std::fmt::Write;

/// A class of a label map.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Class {
    /// Its number in the voxels.
    pub label: u16,
    /// Its name, on one line.
    pub name: String,
    /// Red, green, blue.
    pub colour: [u8; 3],
}

/// The classes of a label map but the background, in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Legend {
    classes: Vec<Class>,
}

/// Distinct on grey and from each other; neighbours in the list differ most.
const COLOURS: [[u8; 3]; 12] = [
    [255, 92, 71],
    [64, 190, 255],
    [255, 212, 59],
    [118, 219, 84],
    [200, 120, 255],
    [255, 150, 40],
    [0, 214, 180],
    [255, 121, 200],
    [150, 165, 255],
    [205, 165, 80],
    [190, 245, 150],
    [240, 170, 160],
];

/// The colour of a label above 0: one of a list, beyond it hues that are a golden section of the
/// circle apart, in rings of lightness and saturation. The first 40 differ by a seventh of a
/// channel at least, and no colour comes twice among the first 255.
#[must_use]
pub fn colour(label: u16) -> [u8; 3] {
    let at = usize::from(label.saturating_sub(1));
    if let Some(colour) = COLOURS.get(at) {
        return *colour;
    }
    let n = at - COLOURS.len();
    let hue = (n as f64 * 0.618_033_988_75 + 0.29).fract() * 6.0;
    let (value, saturation) = ([1.0, 0.6, 0.8][n % 3], [0.9, 0.6, 1.0][n / 3 % 3]);
    let channel = |offset: f64| {
        let k = (offset + hue) % 6.0;
        let x: f64 = value - value * saturation * k.min(4.0 - k).clamp(0.0, 1.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 255")]
        let byte = (255.0 * x).round() as u8;
        byte
    };
    [5.0, 3.0, 1.0].map(channel)
}

impl Legend {
    /// Classes with these numbers and names, in organum's colours; numbers 0 are left out.
    pub fn new(names: impl IntoIterator<Item = (u16, String)>) -> Self {
        let class = |(label, name): (u16, String)| {
            let name = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            Class { label, name, colour: colour(label) }
        };
        let mut classes: Vec<Class> = names.into_iter().filter(|(label, _)| *label > 0).map(class).collect();
        classes.sort_by_key(|class| class.label);
        classes.dedup_by_key(|class| class.label);
        Self { classes }
    }

    /// The classes in the order of their numbers.
    #[must_use]
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// The name of a label, or `label N`.
    #[must_use]
    pub fn name(&self, label: u16) -> String {
        let class = self.classes.iter().find(|class| class.label == label);
        class.map_or_else(|| format!("label {label}"), |class| class.name.clone())
    }

    /// The label description file of ITK-SNAP.
    #[must_use]
    pub fn itk_snap(&self) -> String {
        let mut text = String::from("# IDX -R- -G- -B- -A-- VIS MSH LABEL\n    0   0   0   0    0   0   0 \"Clear Label\"\n");
        for Class { label, name, colour: [r, g, b] } in &self.classes {
            let name = name.replace('"', "'");
            let _ = writeln!(text, "{label:>5} {r:>3} {g:>3} {b:>3}    1   1   1 \"{name}\"");
        }
        text
    }

    /// A colour table of 3D Slicer (`.ctbl`).
    #[must_use]
    pub fn slicer(&self) -> String {
        let mut text = String::from("0 background 0 0 0 0\n");
        for Class { label, name, colour: [r, g, b] } in &self.classes {
            let name: String = name.chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect();
            let _ = writeln!(text, "{label} {name} {r} {g} {b} 255");
        }
        text
    }

    /// The `CaretExtension` of a NIfTI header, which TotalSegmentator reads names from.
    #[cfg(feature = "nifti")]
    #[must_use]
    pub(crate) fn caret(&self) -> String {
        let mut text =
            String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<CaretExtension>\n<VolumeInformation Index=\"0\">\n<LabelTable>\n");
        for Class { label, name, colour } in &self.classes {
            let [r, g, b] = colour.map(|c| f64::from(c) / 255.0);
            // the end of the section cannot stand in it
            let name = name.replace("]]>", "]] >");
            let _ = writeln!(
                text,
                "<Label Key=\"{label}\" Red=\"{r:.6}\" Green=\"{g:.6}\" Blue=\"{b:.6}\" Alpha=\"1\"><![CDATA[{name}]]></Label>"
            );
        }
        text.push_str("</LabelTable>\n<StudyMetaDataLinkSet>\n</StudyMetaDataLinkSet>\n<VolumeType><![CDATA[Label]]></VolumeType>\n");
        text.push_str("</VolumeInformation>\n</CaretExtension>\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_colour_comes_twice() {
        let colours: std::collections::HashSet<_> = (1..=255).map(colour).collect();
        assert_eq!(colours.len(), 255);
        let apart = |a: [u8; 3], b: [u8; 3]| (0..3).map(|i| a[i].abs_diff(b[i])).max();
        let near = (1..=40).flat_map(|a| (1..a).map(move |b| apart(colour(a), colour(b)))).min().flatten();
        assert!(near >= Some(36), "{near:?} of 255 apart");
    }

    #[test]
    fn tables_name_every_class() {
        let legend = Legend::new([(3, "a \"b\"\nc".into()), (0, "nothing".into()), (1, "x ]]> y".into()), (3, "again".into())]);
        assert_eq!(legend.classes().iter().map(|c| c.label).collect::<Vec<_>>(), [1, 3]);
        assert_eq!((legend.name(3), legend.name(9)), ("a \"b\" c".into(), "label 9".into()));
        assert!(legend.itk_snap().ends_with("    3 255 212  59    1   1   1 \"a 'b' c\"\n"), "{}", legend.itk_snap());
        assert!(legend.slicer().ends_with("3 a_\"b\"_c 255 212 59 255\n"), "{}", legend.slicer());
        #[cfg(feature = "nifti")]
        assert!(legend.caret().contains("<![CDATA[x ]] > y]]>"), "{}", legend.caret());
    }
}

//! A page of HTML on a scan with its labels, which stands alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::best_planes;
use super::scene::{PLANES, Plane, Scene, number};
use crate::volume::legend::colour;
use crate::volume::{LabelStatistics, Legend, Volume, VolumeError, VolumeErrorKind, same_grid, statistics};

/// The page, with places for `{title}`, `{warnings}`, `{table}`, `{facts}` and `{data}`.
const PAGE: &str = include_str!("report.html");
/// The longest side of a slice in pixels, at most.
const LONGEST: f64 = 320.0;
/// Slices across an axis, at most.
const SLICES: usize = 32;

/// The text of a report beside the scan and its labels.
#[derive(Clone, Debug, Default)]
pub struct ReportText {
    /// The heading.
    pub title: String,
    /// Warnings, a paragraph each.
    pub warnings: Vec<String>,
    /// Facts of how the labels were made: names and values.
    pub facts: Vec<(String, String)>,
}

/// A page of HTML that shows the scan in three planes, with up to 32 slices each, the labels over it
/// in colours that can be switched off, a table of the labels' measures, the warnings and how it
/// was made. It holds all it needs, and a policy that keeps it from the network.
///
/// `range` is as in [`super::overlay`].
///
/// # Errors
/// [`VolumeErrorKind::GridMismatch`] if the grids differ; [`VolumeErrorKind::Io`] if a slice cannot be
/// compressed.
pub fn report(
    image: &Volume<f32>,
    labels: &Volume<u16>,
    legend: &Legend,
    range: Option<[f32; 2]>,
    text: &ReportText,
) -> Result<String, VolumeError> {
    same_grid(image, "image", labels, "labels")?;
    let measured = statistics(labels, legend, Some(image))?;
    let scene = Scene::new(image, best_planes(labels), range)?;
    let longest = (0..3).map(|axis| scene.view.sizes[axis] as f64 * scene.view.spacing[axis]).fold(0.0, f64::max);
    let scene = scene.sized(scene.pixel.max(longest / LONGEST));
    let planes = PLANES.iter().map(|plane| slices(&scene, labels, *plane)).collect::<Result<Vec<_>, _>>()?;
    let colours: BTreeMap<u16, [u8; 3]> = measured.iter().map(|one| (one.label, colour(one.label))).collect();
    // no `</script>` may stand in the data
    let data = json!({"planes": planes, "colours": colours}).to_string().replace('<', "\\u003c");
    let warnings: String = text.warnings.iter().map(|text| format!("<p class=\"warning\">{}</p>\n", escape(text))).collect();
    let [low, high] = scene.range.map(number);
    let extent = format!("{} voxels of {} mm", image.extent, image.spacing.map(|mm| format!("{mm:.3}")).join(" x "));
    let own =
        [("scan", extent), ("black and white", format!("{low} and {high}")), ("made by", format!("organum {}", env!("CARGO_PKG_VERSION")))];
    let facts = text
        .facts
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .chain(own.iter().map(|(name, value)| (*name, value.as_str())));
    let facts: String = facts.map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(value))).collect();
    let parts =
        [("{title}", escape(&text.title)), ("{warnings}", warnings), ("{table}", table(&measured)), ("{facts}", facts), ("{data}", data)];
    Ok(fill(PAGE, &parts))
}

/// The page with its places filled; what is filled in is not looked at again.
fn fill(mut page: &str, parts: &[(&str, String)]) -> String {
    let mut filled = String::new();
    loop {
        let next = parts.iter().filter_map(|(place, text)| Some((page.find(*place)?, place.len(), text))).min_by_key(|found| found.0);
        let Some((at, length, text)) = next else { break filled + page };
        filled.push_str(&page[..at]);
        filled.push_str(text);
        page = &page[at + length..];
    }
}

/// Text in HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The slices of a plane: grey pictures, and labels as lengths and values of runs.
fn slices(scene: &Scene<'_>, labels: &Volume<u16>, plane: Plane) -> Result<Value, VolumeError> {
    let (width, height) = scene.panel_size(plane);
    let (planes, centre) = (scene.view.sizes[plane.cuts], scene.at[plane.cuts]);
    let count = planes.min(SLICES);
    let mut cuts: Vec<usize> = (0..count).map(|i| (2 * i + 1) * planes / (2 * count)).collect();
    // the slice through the labels' centre is one of them
    let start = (0..count).min_by_key(|i| cuts[*i].abs_diff(centre)).unwrap_or(0);
    cuts[start] = centre;
    let slice = |at: &usize| -> Result<Value, VolumeError> {
        let scene = scene.cut(plane.cuts, *at);
        let share = scene.shares(plane);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shares are from 0 to 1")]
        let grey: Vec<u8> = (0..width * height).map(|i| (255.0 * share(i % width, i / width)).round() as u8).collect();
        let image = format!("data:image/png;base64,{}", base64(&png(&grey, width, height)?));
        Ok(json!({"place": scene.place(plane), "image": image, "runs": runs(&scene.labels(labels, plane))}))
    };
    let slices = cuts.iter().map(slice).collect::<Result<Vec<Value>, VolumeError>>()?;
    let letters = Scene::letters(plane);
    Ok(json!({"name": plane.name, "width": width, "height": height, "letters": letters, "start": start, "slices": slices}))
}

/// Lengths of runs and their labels, in turn.
fn runs(labels: &[u16]) -> Vec<usize> {
    labels.chunk_by(|a, b| a == b).flat_map(|run| [run.len(), run.first().map_or(0, |label| usize::from(*label))]).collect()
}

fn png(grey: &[u8], width: usize, height: usize) -> Result<Vec<u8>, VolumeError> {
    let mut bytes = Vec::new();
    let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let mut encoder = png::Encoder::new(&mut bytes, size(width), size(height));
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(grey)?;
        writer.finish()
    });
    written.map_err(|e| VolumeError::new(VolumeErrorKind::Io, format!("a slice cannot be compressed: {e}")))?;
    Ok(bytes)
}

/// Bytes in base 64 (RFC 4648), padded.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let word = three.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for i in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= three.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

/// The measures of the labels, with a box each that shows and hides it.
fn table(measured: &[LabelStatistics]) -> String {
    let mut text = String::from(
        "<table><tr><th></th><th>label</th><th>name</th><th>ml</th><th>voxels</th><th>mean</th><th>sd</th><th>5 %</th>\
         <th>median</th><th>95 %</th><th>centroid R, A, S</th><th>border</th></tr>\n",
    );
    for one in measured {
        let [r, g, b] = colour(one.label);
        let label = one.label;
        // writing to a String does not fail
        let _ = write!(
            text,
            "<tr><td><label><input type=\"checkbox\" checked value=\"{label}\"> <i style=\"background:rgb({r},{g},{b})\"></i></label></td>\
             <td>{label}</td><td>{}</td><td>{:.3}</td><td>{}</td>",
            escape(&one.name),
            one.ml,
            one.voxels
        );
        let values = one.intensity.map(|v| [v.mean, v.sd, v.p5, v.median, v.p95].map(|x| format!("{x:.2}")));
        for value in values.unwrap_or([const { String::new() }; 5]) {
            let _ = write!(text, "<td>{value}</td>");
        }
        let centre = one.centroid_mm.map_or_else(String::new, |c| c.map(|x| format!("{x:.1}")).join(", "));
        let border = if one.touches_border { "touched" } else { "" };
        let _ = writeln!(text, "<td>{centre}</td><td>{border}</td></tr>");
    }
    text + "</table>"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Extent;

    #[test]
    fn base_64_is_that_of_the_rfc() {
        let coded = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64(text.as_bytes()));
        assert_eq!(coded, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
    }

    #[test]
    fn the_page_stands_alone_and_trusts_no_text() -> Result<(), Box<dyn std::error::Error>> {
        let mut data = vec![0u16; 40 * 6 * 5];
        data[600..610].fill(3);
        let labels = Volume::new(1, Extent::new(40, 6, 5), [1.0, 2.0, 3.0], "SAR".parse()?, data)?;
        let image = Volume::new(1, labels.extent, labels.spacing, labels.axes, (0u16..1200).map(f32::from).collect())?;
        let bad = "</script><b>{data}\u{1F480}";
        let legend = Legend::new([(3, bad.into()), (4, "absent".into())]);
        let text = ReportText { title: bad.into(), warnings: vec![bad.into()], facts: vec![("model".into(), bad.into())] };
        let page = report(&image, &labels, &legend, None, &text)?;
        for absent in ["</script><b>", "http:", "https:", "url(", "src=", "<link", "{title}", "{facts}", "{table}", "{warnings}"] {
            assert!(!page.contains(absent), "{absent}");
        }
        assert_eq!(page.matches("&lt;/script&gt;&lt;b&gt;{data}").count(), 5, "title, heading, warning, table, fact");
        assert_eq!(page.matches("<input type=\"checkbox\"").count(), 2);
        let data = page.split_once("id=\"data\">").and_then(|(_, rest)| rest.split_once("</script>"));
        let data: Value = serde_json::from_str(data.ok_or("no data")?.0)?;
        assert_eq!(data["colours"]["3"], json!(colour(3)));
        for (plane, count) in data["planes"].as_array().ok_or("planes")?.iter().zip([5, 6, 32]) {
            let slices = plane["slices"].as_array().ok_or("slices")?;
            assert_eq!(slices.len(), count);
            let size = plane["width"].as_u64().zip(plane["height"].as_u64()).map(|(w, h)| w * h);
            for slice in slices {
                let runs: Vec<u64> = slice["runs"].as_array().ok_or("runs")?.iter().filter_map(Value::as_u64).collect();
                assert_eq!(Some(runs.iter().step_by(2).sum::<u64>()), size);
            }
            let start = &slices[usize::try_from(plane["start"].as_u64().ok_or("start")?)?];
            assert!(start["runs"].as_array().is_some_and(|runs| runs.contains(&json!(3))), "labels in the slice that is shown");
        }
        let other = Volume::new(1, Extent::new(1, 1, 1), [1.0; 3], "SAR".parse()?, vec![0.0f32])?;
        assert!(report(&other, &labels, &legend, None, &text).is_err());
        Ok(())
    }
}

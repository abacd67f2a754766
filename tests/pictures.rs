//! Pictures, reports and surfaces, as the program's users meet them.
#![allow(clippy::cast_possible_truncation, reason = "sizes of small files")]
#![allow(clippy::print_stdout, reason = "what is skipped belongs to a test's output")]

#[path = "support/desk.rs"]
mod desk;

use std::path::Path;
use std::process::Command;

use organum::volume::file;

use desk::*;

/// A picture's width, height and bytes of red, green, blue.
fn png(path: &str) -> (usize, usize, Vec<u8>) {
    let file = std::io::BufReader::new(std::fs::File::open(path).expect("a picture"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
    let mut bytes = vec![0; reader.output_buffer_size().expect("a size")];
    let info = reader.next_frame(&mut bytes).expect("pixels");
    (info.width as usize, info.height as usize, bytes)
}

#[test]
fn pictures_have_a_legend_and_the_values_that_are_asked_for() {
    let desk = Desk::new();
    let (named, plain, dark) = (desk.out("named.png"), desk.out("plain.png"), desk.out("dark.png"));
    done(&["picture", SCAN, LABELS, "-m", MODEL, "-o", &named]);
    done(&["picture", SCAN, LABELS, "-o", &plain]);
    done(&["picture", SCAN, LABELS, "-o", &dark, "--grey", "-2000,100000"]);
    let [(width, height, pixels), (narrow, same, _), (_, _, dim)] = [&named, &plain, &dark].map(|path| png(path));
    assert!(width > narrow + 50 && height == same, "names take room: {width} {narrow}");
    // the swatches of both classes: 14 pixels square, no label is tinted as strongly as that
    for colour in [[255, 92, 71], [64, 190, 255]] {
        let count = pixels.chunks_exact(3).filter(|pixel| *pixel == colour).count();
        assert!(count > 14 * 14, "{count}");
    }
    let bright = |pixels: &[u8]| pixels.chunks_exact(3).filter(|p| p[0] == p[1] && p[1] == p[2] && p[0] > 60).count();
    assert!(bright(&dim) * 4 < bright(&pixels), "{} {}", bright(&dim), bright(&pixels));
    desk_fails("--grey", &["picture", SCAN, LABELS, "-o", &plain, "--grey", "5,1"], 2);
    desk_fails("different grids", &["picture", SCAN, LEFT_LABELS, "-o", &plain], 3);
    desk_fails("is not there", &["picture", SCAN, LABELS, "-o", &desk.out("no/p.png")], 2);
}

/// The run ends with `code` and says `part`.
fn desk_fails(part: &str, args: &[&str], code: i32) {
    let output = run(args);
    let err = text(&output.stderr);
    assert!(output.status.code() == Some(code) && err.contains(part), "{args:?}: {:?} {err}", output.status.code());
}

/// A browser, if one is installed.
fn browser() -> Option<&'static str> {
    let starts = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(starts)
}

/// The page's report of itself once a browser has run it: pixels of labels in each plane.
fn drawn(browser: &str, desk: &Desk, page: &str, fragment: &str) -> Vec<u64> {
    let profile = desk.at("profile");
    let url = format!("file://{page}{fragment}");
    let flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"];
    let output = Command::new(browser).args(flags).arg(format!("--user-data-dir={profile}")).arg(url).output().expect("the browser starts");
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = dom.split_once("data-drawn=\"").and_then(|(_, rest)| rest.split_once('"'));
    let (told, _) = told.unwrap_or_else(|| panic!("the page was not drawn: {dom:.300}"));
    told.split(' ').filter_map(|n| n.parse().ok()).collect()
}

#[test]
fn a_report_stands_alone_and_its_labels_can_be_hidden() {
    let desk = Desk::new();
    let (labels, page, other) = (desk.out("case 7.nii.gz"), desk.out("r.html"), desk.out("s.html"));
    done(&["segment", SCAN, "-m", MODEL, "-o", &labels, "--report", &page, "--device", "cpu"]);
    done(&["report", SCAN, &labels, "-o", &other]);
    let html = std::fs::read_to_string(&page).expect("a page");
    for part in ["<h1>case 7</h1>", "posterior hippocampus", "SHA-256 ", "u_transformer", "default-src 'none'", "</html>"] {
        assert!(html.contains(part), "{part}");
    }
    for absent in ["http:", "https:", "<link", "url("] {
        assert!(!html.contains(absent), "{absent}");
    }
    // the label map names its labels itself
    let again = std::fs::read_to_string(&other).expect("a page");
    assert!(again.contains("posterior hippocampus") && again.contains("<dt>labels</dt>"));
    match browser() {
        None => println!("SKIPPED in a browser: neither chromium nor google-chrome is installed; the page's text was checked"),
        Some(browser) => {
            let [all, some, none] = ["", "#hide=2", "#hide=1,2"].map(|fragment| drawn(browser, &desk, &page, fragment));
            assert!(all.len() == 3 && all.iter().all(|n| *n > 100), "{all:?}");
            // a plane through the middle of both labels may meet one of them alone
            let fewer = some.iter().zip(&all).filter(|(some, all)| some < all).count();
            let more = some.iter().zip(&all).any(|(some, all)| some > all);
            assert!(fewer > 1 && !more && some.iter().any(|n| *n > 100), "{some:?} of {all:?}");
            assert_eq!(none, [0; 3]);
        }
    }
    desk_fails("must end in .html or .htm", &["segment", SCAN, "-m", MODEL, "-o", &labels, "--report", &desk.out("r.txt")], 2);
    desk_fails("different grids", &["report", SCAN, LEFT_LABELS, "-o", &page], 3);
    desk_fails("would overwrite the input", &["report", SCAN, &labels, "-o", &labels], 2);
}

/// The volume in a binary STL file in ml.
fn stl_ml(path: &Path) -> f64 {
    let bytes = std::fs::read(path).expect("an STL file");
    assert!(bytes.starts_with(b"organum SPACE=LPS"));
    let number = |b: &[u8]| f64::from(f32::from_le_bytes(b.try_into().expect("4 bytes")));
    let triangle = |bytes: &[u8]| {
        let p: Vec<f64> = bytes[12..48].chunks_exact(4).map(number).collect();
        p[0] * (p[4] * p[8] - p[5] * p[7]) + p[1] * (p[5] * p[6] - p[3] * p[8]) + p[2] * (p[3] * p[7] - p[4] * p[6])
    };
    bytes[84..].chunks_exact(50).map(triangle).sum::<f64>() / 6000.0
}

#[test]
fn surfaces_hold_the_volumes_of_their_labels() {
    let desk = Desk::new();
    let (folder, labels) = (desk.out("stl"), file::read_labels(LABELS).expect("labels").labels);
    let told = done(&["surfaces", LABELS, "-m", MODEL, "-o", &folder]);
    let files: Vec<&str> = told.lines().collect();
    assert_eq!(files.len(), 2, "{told}");
    for (label, file) in (1u16..).zip(files) {
        let voxels = labels.data.iter().filter(|l| **l == label).count() as f64 * labels.voxel_ml();
        let ml = stl_ml(Path::new(file));
        assert!((ml / voxels - 1.0).abs() < 0.05, "{file}: {ml} of {voxels} ml");
    }
    let (glb, obj) = (desk.out("s.glb"), desk.out("s.obj"));
    assert_eq!(done_json(&["surfaces", LABELS, "-o", &glb])["files"][0], glb.as_str());
    assert!(std::fs::read(&glb).expect("a file").starts_with(b"glTF\x02\0\0\0"));
    done(&["segment", SCAN, "-m", MODEL, "-o", &desk.out("l.nii.gz"), "--surfaces", &obj, "--device", "cpu"]);
    assert!(std::fs::read_to_string(&obj).expect("text").contains("\no posterior hippocampus\n"));
    desk_fails("a folder for a .stl of each label", &["surfaces", LABELS, "-o", &desk.out("s.stl")], 2);
    desk_fails("is not there", &["surfaces", LABELS, "-o", &desk.out("no/s.glb")], 2);
}

//! A command line module of 3D Slicer: the program under the name `organum-segment` describes
//! itself by `--xml`, as the Slicer Execution Model asks, takes the options of `organum segment`,
//! and tells its progress on stdout.

use std::ffi::OsString;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::output::say;

/// The name that makes it a module.
const NAME: &str = "organum-segment";

static MODULE: OnceLock<bool> = OnceLock::new();

/// The arguments as `organum` takes them, or the description of the module.
pub(crate) fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut given: Vec<OsString> = given.collect();
    let stem = given.first().and_then(|name| Path::new(name).file_stem().map(OsString::from));
    let module = stem.is_some_and(|stem| stem == NAME);
    let _ = MODULE.set(module);
    if module {
        given.insert(1, "segment".into());
    }
    given
}

/// Whether the module is asked to describe itself: by `--xml` alone.
pub(crate) fn asked(arguments: &[OsString]) -> bool {
    matches!(arguments, [_, xml] | [_, _, xml] if xml == "--xml")
}

/// Tells a share of the run, in steps of a hundredth.
pub(crate) fn progress(done: u64, total: u64) {
    static LAST: AtomicU64 = AtomicU64::new(0);
    if MODULE.get() != Some(&true) {
        return;
    }
    let now = 100 * done / total.max(1);
    if LAST.swap(now, Ordering::Relaxed) != now {
        say(&format!("<filter-progress>{}.{:02}</filter-progress>", now / 100, now % 100));
    }
}

/// The description.
pub(crate) fn description() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        r#"<?xml version="1.0" encoding="utf-8"?>
<executable>
  <category>Segmentation</category>
  <title>organum</title>
  <description><![CDATA[Segments a volume with nnU-Net models, MONAI bundles and organum's own, on any GPU or on the processor.]]></description>
  <version>{version}</version>
  <license>MIT OR Apache-2.0</license>
  <contributor>the authors of organum</contributor>
  <parameters>
    <label>Input and output</label>
    <description><![CDATA[Volumes and the model]]></description>
    <image>
      <name>input</name>
      <label>Input volume</label>
      <channel>input</channel>
      <index>0</index>
      <description><![CDATA[The volume to segment]]></description>
    </image>
    <image type="label">
      <name>output</name>
      <label>Output labels</label>
      <longflag>output</longflag>
      <channel>output</channel>
      <description><![CDATA[The label map, on the grid of the volume]]></description>
    </image>
    <file>
      <name>model</name>
      <label>Model file</label>
      <longflag>model</longflag>
      <channel>input</channel>
      <description><![CDATA[A model file, a PyTorch checkpoint, or a file in the folder of a model]]></description>
    </file>
  </parameters>
  <parameters advanced="true">
    <label>Device and memory</label>
    <description><![CDATA[Where to run, and in how much memory]]></description>
    <string>
      <name>device</name>
      <label>Device</label>
      <longflag>device</longflag>
      <default>cpu</default>
      <description><![CDATA[cpu, gpu, or part of a name that organum devices lists]]></description>
    </string>
    <string-enumeration>
      <name>precision</name>
      <label>Precision</label>
      <longflag>precision</longflag>
      <default>f32</default>
      <element>f32</element>
      <element>f16</element>
      <description><![CDATA[How activations and weights are stored]]></description>
    </string-enumeration>
    <string>
      <name>memory</name>
      <label>Memory of the device</label>
      <longflag>memory</longflag>
      <default>4G</default>
      <description><![CDATA[The most memory of the device, such as 2G or 512M]]></description>
    </string>
  </parameters>
</executable>"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xml_alone_asks_for_the_description() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        for (line, is) in [("organum --xml", true), ("organum segment --xml", true), ("organum a b --xml", false), ("organum", false)] {
            assert_eq!(asked(&words(line)), is, "{line}");
        }
    }
}

//! The files of a result, and what is told of it.

use std::path::{Path, PathBuf};

use organum::segment::LabelVolume;
use organum::volume::file::{self, LabelFormat};
use organum::volume::surface::{SurfaceFormat, write_surfaces};
use organum::volume::{LabelStatistics, Legend, VolumeError, nifti, picture, statistics, statistics_csv, statistics_table, write_whole};
use organum::{Segmentation, Segmenter};
use serde_json::{Map, Value, json};

use crate::args;
use crate::fail::Failure;
use crate::output::need_folder;
use crate::report;

/// The files of a result, and the labels that it begins with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outputs {
    pub(crate) labels: Option<PathBuf>,
    pub(crate) overlay: Option<PathBuf>,
    pub(crate) probabilities: Option<PathBuf>,
    /// A picture in a folder that is made.
    pub(crate) attention: Option<PathBuf>,
    /// A folder that is made.
    pub(crate) masks: Option<PathBuf>,
    pub(crate) table: Option<PathBuf>,
    pub(crate) statistics: Option<PathBuf>,
    /// A folder that is made, or a file.
    pub(crate) surfaces: Option<PathBuf>,
    /// A page of HTML.
    pub(crate) report: Option<PathBuf>,
    /// The files of the scan and the model, for the report.
    pub(crate) inputs: Vec<PathBuf>,
    pub(crate) model: Option<PathBuf>,
    /// The values that are black and white in pictures.
    pub(crate) grey: Option<[f32; 2]>,
    /// Labels of a cascade's previous stage, which are read.
    pub(crate) previous: Option<PathBuf>,
}

impl Outputs {
    /// The files that the options name, with `{case}` replaced.
    pub(crate) fn of(a: &args::Segment, labels: &Path, case: Option<&str>) -> Self {
        let named = |path: &Path| match case {
            Some(case) => PathBuf::from(path.to_string_lossy().replace("{case}", case)),
            None => path.to_path_buf(),
        };
        let option = |path: &Option<PathBuf>| path.as_deref().map(named);
        Self {
            labels: Some(named(labels)),
            overlay: option(&a.overlay),
            probabilities: option(&a.probabilities),
            attention: option(&a.attention).map(|folder| folder.join("attention.png")),
            masks: option(&a.masks),
            table: option(&a.label_table),
            statistics: option(&a.statistics),
            surfaces: option(&a.surfaces),
            report: option(&a.report),
            inputs: Vec::new(),
            model: a.model.first().cloned(),
            grey: a.grey,
            previous: option(&a.previous),
        }
    }

    /// The options, and the files that they name.
    pub(crate) fn named(&self) -> Vec<(&'static str, &Path)> {
        let all = [
            ("--output", &self.labels),
            ("--probabilities", &self.probabilities),
            ("--overlay", &self.overlay),
            ("--label-table", &self.table),
            ("--statistics", &self.statistics),
            ("--attention", &self.attention),
            ("--masks", &self.masks),
            ("--surfaces", &self.surfaces),
            ("--report", &self.report),
        ];
        all.into_iter().filter_map(|(option, path)| Some((option, path.as_deref()?))).collect()
    }

    /// Refuses names whose endings no format has, and folders that are not there; those of
    /// `--attention`, `--masks` and `--surfaces` are made.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let usage = |e: VolumeError| Failure::usage(e.to_string());
        self.labels.as_deref().map_or(Ok(()), |path| LabelFormat::of(path).map(|_| ()).map_err(usage))?;
        let endings: [(&Option<PathBuf>, &[&str]); 4] = [
            (&self.report, &[".html", ".htm"]),
            (&self.probabilities, &[".nii", ".nii.gz"]),
            (&self.table, &[".txt", ".label", ".ctbl"]),
            (&self.statistics, &[".json", ".csv"]),
        ];
        for (path, endings) in endings {
            let Some(name) = path.as_ref().map(|path| path.to_string_lossy()) else { continue };
            if !endings.iter().any(|ending| name.to_lowercase().ends_with(ending)) {
                return Err(Failure::usage(format!("{name} must end in {}", endings.join(" or "))));
            }
        }
        let format = self.surfaces.as_deref().map(SurfaceFormat::of).transpose().map_err(usage)?;
        let made = |option: &str| match option {
            "--surfaces" => format == Some(SurfaceFormat::Stl),
            _ => matches!(option, "--attention" | "--masks"),
        };
        self.named().iter().filter(|o| !made(o.0)).try_for_each(|(_, path)| need_folder(path))
    }

    /// Returns `true` if the voxels of the scan are needed after the network ran.
    pub(crate) fn need_scan(&self) -> bool {
        self.overlay.is_some() || self.statistics.is_some() || self.report.is_some()
    }

    /// Writes a result, its labels last.
    pub(crate) fn write(&self, scan: &file::Scan, result: &Segmentation, segmenter: &Segmenter) -> Result<(), Failure> {
        let failed = |e: VolumeError| Failure::writing(&e);
        let own_grid = !segmenter.keeps_grid();
        let own = own_grid.then(|| nifti::header_on(&scan.header, &result.labels));
        let header = own.as_ref().unwrap_or(&scan.header);
        let legend = result.legend();
        if let (Some(path), Some(maps)) = (&self.probabilities, &result.probabilities) {
            nifti::write_probabilities(path, header, maps).map_err(failed)?;
        }
        let grey = self.grey.or_else(|| segmenter.model().card().grey_range());
        if let Some(path) = &self.report {
            let text = report::text(self, result, segmenter);
            write_text(path, &picture::report(&scan.image, &result.labels, &legend, grey, &text)?)?;
        }
        if let Some(path) = &self.overlay {
            picture::overlay(&scan.image, &result.labels, &legend, grey)?.save(path).map_err(failed)?;
        }
        if let (Some(path), Some(a)) = (&self.attention, &result.attention) {
            make(path.parent().unwrap_or(Path::new(".")))?;
            picture::attention(&a.image, &a.maps, a.at)?.save(path).map_err(failed)?;
        }
        if let Some(path) = &self.table {
            let slicer = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("ctbl"));
            let text = if slicer { legend.slicer() } else { legend.itk_snap() };
            write_text(path, &text)?;
        }
        if let Some(path) = &self.statistics {
            let measured = statistics(&result.labels, &legend, (!own_grid).then_some(&scan.image))?;
            write_statistics(path, &measured)?;
        }
        if let Some(path) = &self.surfaces {
            write_surfaces(path, &result.labels, &legend).map_err(failed)?;
        }
        if let Some(folder) = &self.masks {
            make(folder)?;
            file::write_masks(folder, ".nii.gz", header, &result.labels, &legend).map_err(failed)?;
        }
        match &self.labels {
            Some(path) if LabelFormat::of(path).is_ok_and(|format| format == LabelFormat::Dicom) => {
                file::write_segmentation(path, scan, &result.labels, &legend).map_err(failed)
            }
            Some(path) => file::write_labels(path, header, &result.labels, &legend).map_err(failed),
            None => Ok(()),
        }
    }
}

/// Makes a folder, if it is not there.
pub(crate) fn make(folder: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|e| Failure::usage(format!("cannot create {}: {e}", folder.display())))
}

/// Writes text, whole or not at all.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<(), Failure> {
    write_whole(path, "text", |file| std::fs::write(file, text)).map_err(|e| Failure::writing(&e))
}

/// Writes statistics as JSON or CSV, by the ending of the name.
pub(crate) fn write_statistics(path: &Path, measured: &[LabelStatistics]) -> Result<(), Failure> {
    let csv = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
    let json = || format!("{:#}\n", json!({ "labels": measured }));
    write_text(path, &if csv { statistics_csv(measured) } else { json() })
}

/// `{name: {"number", "voxels", "ml"}}` of every class but the background.
pub(crate) fn volumes(result: &Segmentation) -> Map<String, Value> {
    let volume = |v: &LabelVolume| (v.name.clone(), json!({"number": v.class, "voxels": v.voxels, "ml": v.ml}));
    result.volumes.iter().map(volume).collect()
}

/// Volumes as lines, in the order of the labels.
pub(crate) fn table(volumes: &[LabelVolume]) -> String {
    let line = |v: &LabelVolume| format!("{:>5}  {:<28} {:>9.3} ml {:>10} voxels", v.class, v.name, v.ml, v.voxels);
    volumes.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The names of a model's labels, or those that a label map tells.
pub(crate) fn legend_of(model: Option<&Path>, told: Legend) -> Result<Legend, Failure> {
    let Some(path) = model else { return Ok(told) };
    let model = crate::models::open(path, &crate::models::options(&[], None, true))?.first;
    let named = |class: u32| Some((u16::try_from(class).ok()?, model.card().label_name(class)));
    Ok(Legend::new(model.card().label_values().into_iter().filter_map(named)))
}

/// `organum stats`.
pub(crate) fn stats(a: &args::Stats) -> Result<(), Failure> {
    let mut warnings = crate::output::Warnings::new(a.strict);
    let read = file::read_labels(&a.labels)?;
    warnings.add(&read.warnings)?;
    let scan = a.scan.as_ref().map(file::read).transpose()?;
    if let Some(scan) = &scan {
        warnings.add(&scan.warnings)?;
    }
    let legend = legend_of(a.model.as_deref(), read.legend)?;
    let measured = statistics(&read.labels, &legend, scan.as_ref().map(|scan| &scan.image))?;
    if let Some(path) = &a.output {
        need_folder(path)?;
        write_statistics(path, &measured)?;
    }
    if a.json {
        crate::output::say_json(&json!({"labels": measured, "warnings": warnings.json()}));
    } else {
        crate::output::say(&statistics_table(&measured));
    }
    Ok(())
}

//! `organum segment`, and the part of it that the demo shares.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use organum::export::{ExportBytes, Probabilities};
use organum::model::Mode;
use organum::monai::Invert;
use organum::pipeline::{self, Prepared};
use organum::volume::nifti::{self, NiftiHeader};
use organum::volume::picture::Picture;
use organum::volume::{Volume, VolumeError, picture};
use organum::{HostNeeds, Input, Model, OutputData, OutputMode, OutputVolume, PlanOptions, Windows, volume_tokens};
use serde_json::{Map, Value, json};

use crate::args;
use crate::device::{self, Device, Ran};
use crate::fail::Failure;
use crate::host::Bounded;
use crate::monai;
use crate::nnunet;
use crate::output::{Warnings, need_different, need_folder, say, say_json};

/// What to write besides the label map.
#[derive(Default)]
pub(crate) struct Wanted<'a> {
    pub(crate) labels: Option<&'a Path>,
    pub(crate) overlay: Option<&'a Path>,
    pub(crate) probabilities: Option<&'a Path>,
    pub(crate) attention: Option<&'a Path>,
}

/// A segmented scan.
pub(crate) struct Segmented {
    pub(crate) labels: Volume<u16>,
    /// Probabilities of all classes, where they are wanted.
    pub(crate) maps: Option<Probabilities>,
    /// The header of their grid, where it is not the scan's.
    pub(crate) header: Option<NiftiHeader>,
    pub(crate) ran: Ran<()>,
    /// Further keys of the JSON: windows or slices, and which volume tokens one of them saw.
    pub(crate) told: Map<String, Value>,
    /// A picture of the attention, where it is wanted.
    pub(crate) attention: Option<Picture>,
}

impl Segmented {
    /// `{name: {"voxels", "ml"}}` of every class but the background.
    pub(crate) fn volumes(&self, model: &Model) -> Map<String, Value> {
        let mut counts = vec![0u64; model.card().classes() as usize];
        for &l in &self.labels.data {
            if let Some(n) = counts.get_mut(l as usize) {
                *n += 1;
            }
        }
        let ml = self.labels.voxel_ml();
        #[expect(clippy::cast_precision_loss, reason = "a volume for people")]
        let volume = |n: u64| json!({"voxels": n, "ml": n as f64 * ml});
        let classes = (1u32..).zip(&counts[1..]);
        classes.map(|(class, &n)| (model.card().label_name(class), volume(n))).collect()
    }

    /// Writes what is wanted of it.
    pub(crate) fn write(&self, scan: &nifti::Scan, wanted: &Wanted<'_>) -> Result<(), Failure> {
        let failed = |e: &VolumeError| Failure::writing(e);
        let header = self.header.as_ref().unwrap_or(&scan.header);
        if let Some(path) = wanted.labels {
            nifti::write_labels(path, header, &self.labels).map_err(|e| failed(&e))?;
        }
        if let (Some(path), Some(maps)) = (wanted.probabilities, &self.maps) {
            nifti::write_probabilities(path, header, maps).map_err(|e| failed(&e))?;
        }
        if let Some(path) = wanted.overlay {
            picture::overlay(&scan.image, &self.labels)?.save(path).map_err(|e| failed(&e))?;
        }
        if let (Some(path), Some(picture)) = (wanted.attention, &self.attention) {
            picture.save(path).map_err(|e| failed(&e))?;
        }
        Ok(())
    }
}

/// Segments a scan with a model that has a pipeline of organum's own.
pub(crate) fn segment(
    device: &Device,
    model: &Model,
    scan: &nifti::Scan,
    (host, run): (&args::Host, &args::Run),
    mode: Mode,
    wanted: &Wanted<'_>,
) -> Result<Segmented, Failure> {
    let classes = model.card().classes();
    let limits = (host, run);
    let (prepared, ran, raw, probabilities, attention) = match mode {
        Mode::Window => in_windows(device, model, scan, limits, wanted)?,
        Mode::Whole => at_once(device, model, scan, Prepared::new(model, &scan.image)?, limits, wanted)?,
        Mode::Slices => in_slices(device, model, scan, limits, wanted)?,
    };
    let centre = centroid(&raw, &prepared.volume);
    let labels = prepared.restore_labels(raw)?;
    let maps = probabilities.map(|values| prepared.probabilities(classes, values)).transpose()?;
    let draw = wanted.attention.is_some() && !attention.maps.is_empty();
    let draw = draw.then(|| picture::attention(&prepared.volume, &attention.maps, attention.at.unwrap_or(centre)));
    Ok(Segmented { labels, maps, header: None, ran, told: attention.told, attention: draw.transpose()? })
}

/// A scan for the network, what its run took, labels, probabilities, and what attention shows.
type Raw = (Prepared, Ran<()>, Vec<u16>, Option<Vec<f32>>, Attention);

/// Maps of attention over the network's input, the voxel that they are shown at, and what JSON tells of them.
#[derive(Default)]
struct Attention {
    maps: Vec<(String, Volume<f32>)>,
    at: Option<[u32; 3]>,
    told: Map<String, Value>,
}

/// Memory on the host, and how to run.
type Limits<'a> = (&'a args::Host, &'a args::Run);

/// The host bytes of a scan as it was read and prepared, and about the most meanwhile; and those of labels, and of probabilities
/// where they are wanted.
fn host_bytes(scan: &nifti::Scan, prepared: &Prepared, classes: u32, wanted: &Wanted<'_>) -> ([u64; 3], ExportBytes) {
    let read = scan.image.data.len() as u64 * 4;
    let [made, making] = prepared.host_bytes();
    let export = prepared.export_bytes(classes, wanted.probabilities.is_some());
    ([read, made, read + making], export)
}

fn at_once(
    device: &Device,
    model: &Model,
    scan: &nifti::Scan,
    prepared: Prepared,
    (host, run): Limits<'_>,
    wanted: &Wanted<'_>,
) -> Result<Raw, Failure> {
    let mut options = PlanOptions::default();
    // labels of logits that are not finite are told apart on the host alone
    if wanted.probabilities.is_some() || run.allow_non_finite {
        options = options.with_output(OutputMode::Logits);
    }
    if wanted.attention.is_some() {
        options.taps = pipeline::gates(model);
    }
    let classes = model.card().classes();
    let (bytes, export) = host_bytes(scan, &prepared, classes, wanted);
    let (extent, needs) = (prepared.volume.extent, HostNeeds::at_once(bytes, export));
    let bounded = Bounded::new(device, model, extent, needs, (host, run), &mut options, wanted.labels)?;
    let ran = device::run(device, model, prepared.input(), run, &options)?;
    let (mut outputs, ran) = ran.take();
    let taps = outputs.split_off(1);
    let mut told = Map::new();
    told.insert("host_memory".into(), bounded.told(device, &ran));
    let (raw, probabilities) = match outputs.pop().map(|o| o.data) {
        Some(OutputData::Labels(labels)) => (labels, None),
        Some(OutputData::Map(mut logits)) => {
            let labels = pipeline::argmax(&logits, classes);
            pipeline::softmax(&mut logits, classes);
            (labels, Some(logits))
        }
        None => return Err(Failure::internal("the run brought nothing back")),
    };
    let maps = taps.into_iter().map(|tap| gate_volume(&prepared, tap)).collect::<Result<Vec<_>, Failure>>()?;
    Ok((prepared, ran, raw, probabilities, Attention { maps, at: None, told }))
}

fn in_slices(device: &Device, model: &Model, scan: &nifti::Scan, limits: Limits<'_>, wanted: &Wanted<'_>) -> Result<Raw, Failure> {
    let slice = model.card().slice().map_err(|e| Failure::usage(format!("--mode slices: {e}")))?;
    let prepared = Prepared::for_slices(model, &scan.image, slice)?;
    let mut raw = at_once(device, model, scan, prepared, limits, wanted)?;
    let extent = raw.0.volume.extent;
    raw.4.told.insert("slices".into(), json!({"count": extent.d, "extent": [extent.h, extent.w]}));
    Ok(raw)
}

fn in_windows(device: &Device, model: &Model, scan: &nifti::Scan, (host, run): Limits<'_>, wanted: &Wanted<'_>) -> Result<Raw, Failure> {
    let prepared = Prepared::for_windows(model, &scan.image)?;
    let windows = Windows::new(model.card(), prepared.volume.extent).map_err(|e| Failure::usage(format!("--mode window: {e}")))?;
    let mut options = PlanOptions::default().with_output(OutputMode::Logits);
    let maps = wanted.probabilities.is_some();
    let classes = model.card().classes();
    let (bytes, export) = host_bytes(scan, &prepared, classes, wanted);
    let needs = windows.host_needs(classes, bytes, export);
    let bounded = Bounded::new(device, model, windows.tile(), needs, (host, run), &mut options, wanted.labels)?;
    let ran = device::run_with(device, model, windows.tile(), run, &options, |session, how| {
        pollster::block_on(windows.run(session, model, prepared.input(), maps, bounded.spilling(how)))
    })?;
    let (blended, ran) = ran.take();
    let mut attention = Attention::default();
    if wanted.attention.is_some() {
        let centre = centroid(&blended.labels, &prepared.volume);
        attention = volume_attention(device, model, &prepared, &windows, run, centre)?;
    }
    attention.told.insert("host_memory".into(), bounded.told(device, &ran));
    attention.told.insert("windows".into(), json!({"count": windows.count(), "passes": windows.passes(), "extent": windows.tile().axes()}));
    Ok((prepared, ran, blended.labels, blended.probabilities, attention))
}

/// What the window around a voxel sees of the volume's tokens: runs the network on it once more.
fn volume_attention(
    device: &Device,
    model: &Model,
    prepared: &Prepared,
    windows: &Windows,
    run: &args::Run,
    centre: [u32; 3],
) -> Result<Attention, Failure> {
    let tile = windows.tile();
    let away = |place: &[i32; 3]| -> i64 {
        (0..3).map(|a| (i64::from(place[a]) + i64::from(tile.axes()[a] / 2) - i64::from(centre[a])).abs()).sum()
    };
    let place = windows.places().min_by_key(away).ok_or_else(|| Failure::internal("there is no window"))?;
    let position = windows.position(place);
    let mut options = PlanOptions::default().with_output(OutputMode::Logits);
    options.taps = volume_tokens::taps(model);
    let input = prepared.input();
    let data = windows.crop(&input, place, [false; 3]);
    let ran = device::run_with(device, model, tile, run, &options, |session, how| {
        pollster::block_on(session.place(model, position, &[]))?;
        session.run_blocking(Input { channels: input.channels, extent: tile, data: &data }, how)
    })?;
    let (outputs, _) = ran.take();
    let seen = volume_tokens::seen(model, position, &outputs[1..]);
    let volume = |values| Volume::new(1, prepared.volume.extent, prepared.volume.spacing, prepared.volume.axes, values);
    let map = |s: &volume_tokens::Seen| Ok((s.module.clone(), volume(volume_tokens::field(model, prepared.volume.extent, s))?));
    let maps = seen.iter().map(map).collect::<Result<Vec<_>, Failure>>()?;
    let stages: Vec<Value> = seen.iter().map(|s| json!({"module": s.module, "weights": s.weights})).collect();
    let tokens = seen.first().map(|s| s.tokens);
    let told = json!({"volume_tokens": {"window": place, "position": position, "tokens": tokens, "stages": stages}});
    let Value::Object(told) = told else { return Err(Failure::internal("an object is one")) };
    Ok(Attention { maps, at: Some(centre), told })
}

fn gate_volume(prepared: &Prepared, tap: OutputVolume) -> Result<(String, Volume<f32>), Failure> {
    match tap.data {
        OutputData::Map(values) => Ok((tap.name, prepared.field(tap.map.extent, tap.map.channels, values)?)),
        OutputData::Labels(_) => Err(Failure::internal("a gate came back as labels")),
    }
}

/// The voxel at the centre of mass of the labels of the network's input, else its middle.
fn centroid(labels: &[u16], volume: &Volume<f32>) -> [u32; 3] {
    let [d, h, w] = volume.extent.axes();
    let mut sum = [0u64; 3];
    let mut n = 0u64;
    for (at, _) in (0u64..).zip(labels).filter(|&(_, &l)| l > 0) {
        let (h, w) = (u64::from(h), u64::from(w));
        for (s, i) in sum.iter_mut().zip([at / (h * w), at / w % h, at % w]) {
            *s += i;
        }
        n += 1;
    }
    if n == 0 {
        return [d / 2, h / 2, w / 2];
    }
    sum.map(|s| u32::try_from(s / n).unwrap_or(0))
}

/// `organum segment`.
pub(crate) fn run(a: &args::Segment) -> Result<(), Failure> {
    let started = Instant::now();
    for path in [Some(&a.output), a.probabilities.as_ref()].into_iter().flatten() {
        let name = path.to_string_lossy();
        if !(name.ends_with(".nii") || name.ends_with(".nii.gz")) {
            return Err(Failure::usage(format!("{name} must end in .nii or .nii.gz")));
        }
    }
    let attention = a.attention.as_ref().map(|folder| folder.join("attention.png"));
    let outputs: Vec<(&str, &Path)> = [
        Some(("--output", a.output.as_path())),
        a.probabilities.as_deref().map(|path| ("--probabilities", path)),
        a.overlay.as_deref().map(|path| ("--overlay", path)),
        attention.as_deref().map(|path| ("--attention", path)),
    ]
    .into_iter()
    .flatten()
    .collect();
    // the folder of --attention is made
    outputs.iter().filter(|o| o.0 != "--attention").try_for_each(|(_, path)| need_folder(path))?;
    let mut networks = nnunet::open(&a.model, a.fold.as_deref(), a.run.allow_non_finite)?;
    let model = &networks.first;
    let inputs = channel_files(&a.input, model.card().in_channels());
    let read: Vec<&Path> = inputs.iter().chain([&a.model]).map(PathBuf::as_path).collect();
    need_different(&outputs, &read)?;
    let mode = a.mode.map_or_else(|| model.card().mode(), Mode::from);
    if a.attention.is_some() && model.card().input.monai.is_some() {
        return Err(Failure::usage("--attention: pictures of attention are not drawn for models with MONAI's pipeline"));
    }
    let shown = if mode == Mode::Window { volume_tokens::taps(model) } else { pipeline::gates(model) };
    if a.attention.is_some() && shown.is_empty() {
        let what = if mode == Mode::Window { "volume tokens, which are what windows can show" } else { "attention gates" };
        return Err(Failure::usage(format!("--attention: the network has no {what}")));
    }
    let mut warnings = Warnings::new(a.strict);
    warnings.add(networks.warnings())?;
    let mut scan = nifti::read_channels(&inputs)?;
    warnings.add(&scan.warnings)?;
    if let Some(pipeline) = &model.card().input.nnunet {
        warnings.add(&pipeline.reader.warnings(&scan))?;
        scan.image.spacing = pipeline.reader.spacing(&scan);
    }
    let monai = model.card().input.monai.as_ref();
    let seen = monai.map(|_| scan.as_monai_reads()).transpose()?;
    if let (Some(pipeline), Some(seen)) = (monai, &seen) {
        if pipeline.invert == Invert::Nothing && a.overlay.is_some() {
            let text = "--overlay: the bundle inverts nothing, its labels lie on another grid than the scan";
            return Err(Failure::usage(text));
        }
        warnings.add(&monai::warnings(pipeline, &scan, seen))?;
    }
    warnings.add(&model.card().expects.check_scan(model.card(), &scan.image))?;
    if scan.image.channels == 1 && model.card().takes(1) {
        networks.first = networks.first.for_grey_input()?;
    }
    let model = &networks.first;
    // after what is wrong with the scan and the options, which is nearer to whoever calls
    if !a.raw {
        networks.check_input()?;
    }
    let load = started.elapsed();
    let device = Device::open(&a.run)?;
    if let Some(folder) = &a.attention {
        std::fs::create_dir_all(folder).map_err(|e| Failure::usage(format!("cannot create {}: {e}", folder.display())))?;
    }
    let wanted = Wanted {
        labels: Some(&a.output),
        overlay: a.overlay.as_deref(),
        probabilities: a.probabilities.as_deref(),
        attention: attention.as_deref(),
    };
    let input = &model.card().input;
    let result = match (&input.nnunet, input.monai.as_ref().zip(seen.as_deref())) {
        (Some(pipeline), _) => nnunet::segment(&device, &networks, pipeline, &mut scan, a, &wanted)?,
        (None, Some((pipeline, seen))) => monai::segment(&device, model, pipeline, (&scan, seen), a, mode, &wanted)?,
        (None, None) => segment(&device, model, &scan, (&a.host, &a.run), mode, &wanted)?,
    };
    let volumes = result.volumes(model);
    warnings.add(&model.card().expects.check_labels(model.card(), &result.labels))?;
    result.write(&scan, &wanted)?;
    if a.run.json {
        let mut report = result.ran.json(&device, load, started.elapsed());
        report["labels"] = Value::Object(volumes);
        report["warnings"] = warnings.json();
        for (key, value) in result.told {
            report[key] = value;
        }
        say_json(&report);
    } else {
        say(&table(&volumes));
        say(&summary(&result.ran, &device, started.elapsed()));
    }
    Ok(())
}

/// The files of a scan: those told; where one is told that ends in `_0000` as nnU-Net names channels and the model needs several, it
/// and those that follow.
fn channel_files(told: &[PathBuf], channels: u32) -> Vec<PathBuf> {
    let [only] = told else { return told.to_vec() };
    let name = only.file_name().unwrap_or_default().to_string_lossy();
    match ["_0000.nii.gz", "_0000.nii"].iter().find_map(|ending| Some((name.strip_suffix(ending)?, &ending[5..]))) {
        Some((case, ending)) if channels > 1 => (0..channels).map(|c| only.with_file_name(format!("{case}_{c:04}{ending}"))).collect(),
        _ => told.to_vec(),
    }
}

/// Volumes as lines.
pub(crate) fn table(volumes: &Map<String, Value>) -> String {
    let line = |(name, v): (&String, &Value)| {
        format!("{name:<28} {:>9.3} ml {:>10} voxels", v["ml"].as_f64().unwrap_or(0.0), v["voxels"].as_u64().unwrap_or(0))
    };
    volumes.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// One line on where, in how many bytes and how fast, and the profile where one was made.
pub(crate) fn summary<T>(ran: &Ran<T>, device: &Device, total: Duration) -> String {
    let line = format!(
        "{} ({}): planned {} bytes, allocated {} bytes; compile {:.2} s, run {:.2} s, total {:.2} s",
        device.name(),
        device.backend(),
        ran.plan.peak_bytes,
        ran.allocated,
        ran.seconds[1].as_secs_f64(),
        ran.seconds[2].as_secs_f64(),
        total.as_secs_f64()
    );
    match &ran.profile {
        Some(profile) => format!("{line}\n{}", profile.table()),
        None => line,
    }
}

//! What people and programs see: stdout for data, stderr for the rest, files written whole or not at all.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::fail::Failure;
use organum::Warning;
use organum::volume::write_whole;

/// The largest JSON file that is read, in bytes.
pub(crate) const LARGEST_JSON: u64 = 16 << 20;

/// A line of data.
pub(crate) fn say(text: &str) {
    // a reader that has gone away is no reason to fail
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// A line that is not data, on one line whatever a file puts into it.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", organum::one_line(text));
}

/// True if nothing but errors is printed to stderr.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Says no more notes, warnings and progress.
pub(crate) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Lines that wait until something runs, or is done: a command that is refused says why, and no more.
static WAITING: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Says the lines that wait.
pub(crate) fn say_waiting() {
    let lines = WAITING.lock().map_or_else(|_| Vec::new(), |mut lines| std::mem::take(&mut *lines));
    if !QUIET.load(Ordering::Relaxed) {
        lines.iter().for_each(|line| note(line));
    }
}

/// The warnings of a command: told on stderr before something runs and at the end, and listed in its
/// JSON.
pub(crate) struct Warnings {
    strict: bool,
    list: Vec<Warning>,
}

impl Warnings {
    /// None yet. With `strict` the first one ends the command.
    pub(crate) fn new(strict: bool) -> Self {
        Self { strict, list: Vec::new() }
    }

    /// Tells warnings.
    ///
    /// # Errors
    /// With `strict`, all of them, as one failure of the input.
    pub(crate) fn add(&mut self, warnings: &[Warning]) -> Result<(), Failure> {
        if self.strict && !warnings.is_empty() {
            let text: Vec<_> = warnings.iter().map(ToString::to_string).collect();
            return Err(Failure::input(format!("--strict: {}", text.join("; and "))));
        }
        if let Ok(mut lines) = WAITING.lock() {
            lines.extend(warnings.iter().map(|w| format!("organum: warning: {w}")));
        }
        self.list.extend_from_slice(warnings);
        Ok(())
    }

    pub(crate) fn json(&self) -> Value {
        json!(self.list)
    }
}

/// The one JSON object of a command.
pub(crate) fn say_json(value: &Value) {
    say(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Seconds with microseconds.
pub(crate) fn seconds(d: Duration) -> Value {
    json!((d.as_secs_f64() * 1e6).round() / 1e6)
}

/// A bar on a terminal, nothing elsewhere.
pub(crate) fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() || QUIET.load(Ordering::Relaxed) {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{wide_bar} {percent:>3}% {elapsed} of {duration}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(1).with_style(style)
}

/// Refuses a path whose folder is not there, before anything is computed for it.
pub(crate) fn need_folder(path: &Path) -> Result<(), Failure> {
    match path.parent().filter(|p| !p.as_os_str().is_empty() && !p.is_dir()) {
        Some(folder) => Err(Failure::usage(format!("the folder {} is not there", folder.display()))),
        None => Ok(()),
    }
}

/// Refuses outputs that are the same file, or one that is read; options name them.
pub(crate) fn need_different(outputs: &[(&str, &Path)], inputs: &[&Path]) -> Result<(), Failure> {
    for (i, (option, path)) in outputs.iter().enumerate() {
        if let Some(input) = inputs.iter().find(|input| place(input) == place(path)) {
            let (path, input) = (path.display(), input.display());
            return Err(Failure::usage(format!("{option} {path} would overwrite the input {input}")));
        }
        if let Some((other, _)) = outputs[..i].iter().find(|(_, other)| place(other) == place(path)) {
            let path = path.display();
            return Err(Failure::usage(format!("{other} and {option} are the same file {path}; name two")));
        }
    }
    Ok(())
}

/// Where a path leads: links followed, as far as it is there.
fn place(path: &Path) -> PathBuf {
    let folder = || {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(parent.canonicalize().ok()?.join(path.file_name()?))
    };
    path.canonicalize().ok().or_else(folder).unwrap_or_else(|| path.to_owned())
}

/// Writes a `.npy` of f32 in C order.
pub(crate) fn write_npy(path: &Path, shape: &[u64], values: &[f32]) -> Result<(), Failure> {
    write_whole(path, "array.npy", |temporary| {
        use npyz::WriterBuilder;
        let file = std::io::BufWriter::new(std::fs::File::create(temporary)?);
        let mut writer = npyz::WriteOptions::new().default_dtype().shape(shape).writer(file).begin_nd()?;
        writer.extend(values.iter().copied())?;
        writer.finish()
    })
    .map_err(|e| Failure::writing(&e))
}

//! organum and burn on one case: `peers CASE.json` reads commands from stdin and answers each with
//! one line of JSON on stdout.
//!
//! `prepare SIDE` makes a side ready, runs it once and writes its result to SIDE.f32 beside the
//! case; `run SIDE` runs it again and says the seconds. Sides: `host` and `device` are organum
//! without and with a GPU adapter, `burn` is burn on its wgpu backend.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::path::PathBuf;

use serde_json::{Value, json};

use organum::Engine;
use peers::case::Case;
use peers::{Failure, Side, ours};

fn open(name: &str, case: &Case) -> Result<Box<dyn Side>, Failure> {
    match name {
        "host" => ours::open(case, None),
        "device" => {
            let pattern = std::env::var("ORGANUM_ADAPTER").ok();
            let engine = pollster::block_on(Engine::request(pattern.as_deref()))?;
            ours::open(case, Some(&engine))
        }
        #[cfg(feature = "burn")]
        "burn" => peers::theirs::open(case),
        _ => Err(format!("no side is called {name}").into()),
    }
}

fn answer(
    line: &str,
    case: &Case,
    folder: &std::path::Path,
    sides: &mut HashMap<String, Box<dyn Side>>,
) -> Result<Value, Failure> {
    let (verb, name) = line.split_once(' ').ok_or("a command is `prepare SIDE` or `run SIDE`")?;
    match verb {
        "prepare" => {
            let mut side = open(name, case)?;
            let bytes: Vec<u8> = side.output()?.iter().flat_map(|v| v.to_le_bytes()).collect();
            std::fs::write(folder.join(format!("{name}.f32")), bytes)?;
            let about = side.about();
            sides.insert(name.to_owned(), side);
            Ok(json!({ "about": about }))
        }
        "run" => {
            let side = sides.get_mut(name).ok_or_else(|| format!("{name} is not prepared"))?;
            Ok(json!({ "seconds": side.seconds()? }))
        }
        _ => Err(format!("no command is called {verb}").into()),
    }
}

fn main() -> Result<(), Failure> {
    let path = PathBuf::from(std::env::args().nth(1).ok_or("peers CASE.json")?);
    let folder = path.parent().unwrap_or_else(|| std::path::Path::new("."));
    let case = Case::load(&path)?;
    let mut sides = HashMap::new();
    for line in std::io::stdin().lock().lines() {
        let said = answer(line?.trim(), &case, folder, &mut sides)
            .unwrap_or_else(|e| json!({ "error": e.to_string() }));
        let mut out = std::io::stdout().lock();
        writeln!(out, "{said}")?;
        out.flush()?;
    }
    Ok(())
}

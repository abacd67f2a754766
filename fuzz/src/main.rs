//! The fuzz targets: libFuzzer calls the one that `ORGANUM_FUZZ_TARGET` names. `.ci/fuzz` builds and runs them.
#![no_main]

#[path = "../../src/bin/organum/npy.rs"]
mod npy;

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use organum::fuzzing;
use organum::model::Checkpoint;

type Target = Box<dyn Fn(&[u8]) + Send + Sync>;

/// A file of this process for targets that read files.
fn file(ending: &str) -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("organum-fuzz-{}.{ending}", std::process::id()))
}

fn volume(ending: &str) -> Target {
    let path = file(ending);
    Box::new(move |data| {
        std::fs::write(&path, data).expect("there is room");
        fuzzing::volume(&path);
    })
}

fn target() -> Target {
    let name = std::env::var("ORGANUM_FUZZ_TARGET").expect("ORGANUM_FUZZ_TARGET names a target");
    match name.as_str() {
        "nifti" => volume("nii"),
        "nrrd" => volume("nrrd"),
        "metaimage" => volume("mha"),
        "mgh" => volume("mgh"),
        "dicom" => volume("dcm"),
        "checkpoint" => Box::new(fuzzing::checkpoint),
        "card" => Box::new(fuzzing::card),
        "recipe" => Box::new(fuzzing::recipe),
        "pickle" => Box::new(fuzzing::pickle),
        "plans_json" => Box::new(fuzzing::plans_json),
        "plans_pickle" => {
            const MODEL: &[u8] = include_bytes!("../../tests/vectors/nnunet_v1/model/fold_0/model_final_checkpoint.model");
            let checkpoint = Checkpoint::from_bytes(MODEL).expect("it is one");
            Box::new(move |data| fuzzing::plans_pickle(data, &checkpoint))
        }
        "config_json" => Box::new(|data| fuzzing::config(data, false)),
        "config_yaml" => Box::new(|data| fuzzing::config(data, true)),
        "expression" => Box::new(fuzzing::expression),
        "npy" => {
            let path = file("npy");
            Box::new(move |data| {
                std::fs::write(&path, data).expect("there is room");
                drop(npy::read(&path).map(|array| (array.shape, array.values)));
            })
        }
        other => panic!("{other} is no target"),
    }
}

fuzz_target!(|data: &[u8]| {
    static TARGET: OnceLock<Target> = OnceLock::new();
    TARGET.get_or_init(target)(data);
});

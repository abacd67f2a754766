//! `organum convert`.

use organum::Model;
use organum::nnunet::Folder;
use organum::volume::write_whole;

use crate::args;
use crate::fail::Failure;
use crate::output::{need_folder, say};

pub(crate) fn run(a: &args::Convert) -> Result<(), Failure> {
    if a.output.extension().is_none_or(|ending| ending != "safetensors") {
        return Err(Failure::usage(format!("{} must end in .safetensors", a.output.display())));
    }
    need_folder(&a.output)?;
    let folder = Folder::open(&a.source)?;
    let fold = match &a.fold {
        Some(fold) => fold.clone(),
        None => match &folder.folds()?[..] {
            [only] => only.clone(),
            several => {
                let text = format!("--fold: {} has the folds {}; a model file is of one", a.source.display(), several.join(", "));
                return Err(Failure::usage(text));
            }
        },
    };
    let file = folder.model_file(&fold)?;
    // a file that would not load is not written
    let model = Model::from_bytes(file.clone())?;
    write_whole(&a.output, "model.safetensors", |path| std::fs::write(path, &file)).map_err(|e| Failure::writing(&e))?;
    let (card, weights) = (model.card(), model.weights());
    say(&format!("{}: {}, {} parameters; {}", a.output.display(), card.architecture, weights.parameters(), card.provenance));
    Ok(())
}

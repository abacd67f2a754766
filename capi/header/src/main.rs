//! Compares `include/organum.h` with what cbindgen makes of the source; with ORGANUM_BLESS=1 it is
//! written anew. A crate of its own, so that cbindgen's dependencies are none of the library's.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let config = cbindgen::Config::from_file(folder.join("cbindgen.toml"))?;
    // its modules are found from there
    let builder = cbindgen::Builder::new().with_config(config).with_src(folder.join("src/lib.rs"));
    let mut made = Vec::new();
    builder.generate()?.write(&mut made);
    let file = folder.join("include/organum.h");
    if std::env::var_os("ORGANUM_BLESS").is_some() {
        std::fs::write(&file, &made)?;
    }
    if std::fs::read(&file).unwrap_or_default() != made {
        return Err("capi/include/organum.h is not that of capi/src; ORGANUM_BLESS=1 writes it".into());
    }
    Ok(())
}

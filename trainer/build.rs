//! Tells the linker where libtorch will be at run time, so that the trainer and its tests find it without `LD_LIBRARY_PATH`.
//! libtorch's own libraries look for each other beside themselves.

use std::ffi::OsString;
use std::path::PathBuf;

fn main() {
    // torch-sys links against the same folder: LIBTORCH_LIB where set, LIBTORCH otherwise.
    let folder = variable("LIBTORCH_LIB").or_else(|| variable("LIBTORCH"));
    if let Some(folder) = folder {
        let libraries = PathBuf::from(folder).join("lib");
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", libraries.display());
    }
}

fn variable(name: &str) -> Option<OsString> {
    println!("cargo::rerun-if-env-changed={name}");
    std::env::var_os(name).filter(|value| !value.is_empty())
}

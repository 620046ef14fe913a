//! The shipped packages are what today's exporter writes: of their own weights it makes the same files, byte for byte but for
//! its version, and libtorch the same golden. What the suite finds of them in ONNX Runtime and in ONNX's checker is so of what
//! this exporter writes.
//!
//! `cargo xtask refresh models/NAME` writes one anew.

use std::fs;
use std::path::{Path, PathBuf};

use prost::Message as _;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use windowpane_trainer::args::Refresh;
use windowpane_trainer::commands;
use windowpane_trainer::export::onnx::ModelProto;

/// How far two machines' goldens may lie apart, of the largest value: a server allows as much between libtorch and itself.
const TOLERANCE: f32 = 1e-4;

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(name)
}

fn read(folder: &Path, name: &str) -> Vec<u8> {
    let path = folder.join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names in a folder, in order.
fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

/// A manifest but for what varies: the golden is this machine's, and graphs name the exporter's version.
fn described(manifest: &[u8]) -> Value {
    let mut manifest: Value = serde_json::from_slice(manifest).unwrap();
    for (name, file) in manifest["files"].as_object_mut().unwrap() {
        if name == "golden.safetensors" || name.ends_with(".onnx") {
            file.as_object_mut().unwrap().remove("sha256").expect("files are pinned");
        }
    }
    manifest
}

/// A graph as if this version had written it.
fn graph(bytes: &[u8]) -> ModelProto {
    let version = Some(env!("CARGO_PKG_VERSION").to_owned());
    ModelProto { producer_version: version, ..ModelProto::decode(bytes).unwrap() }
}

/// The same tensors, the same integers, and the same numbers but for rounding.
fn assert_same_golden(now: &[u8], kept: &[u8]) {
    let [now, kept] = [now, kept].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
    let sorted = |file: &SafeTensors<'_>| {
        let mut names: Vec<_> = file.names().into_iter().map(ToOwned::to_owned).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(sorted(&now), sorted(&kept));
    for (name, kept) in kept.tensors() {
        let now = now.tensor(&name).unwrap();
        assert_eq!((now.dtype(), now.shape()), (kept.dtype(), kept.shape()), "{name}");
        if kept.dtype() != Dtype::F32 {
            assert!(now.data() == kept.data(), "{name}");
            continue;
        }
        let values = |data: &[u8]| -> Vec<f32> {
            data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        };
        let (now, kept) = (values(now.data()), values(kept.data()));
        let largest = kept.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        for (now, kept) in now.iter().zip(&kept) {
            // What is no number is not near anything.
            assert!((now - kept).abs() <= TOLERANCE * largest, "{name}: {now}, it was {kept}; of {largest}");
        }
    }
}

#[test]
fn shipped_packages_are_what_the_exporter_writes() {
    for name in ["tiny", "fashion-dit"] {
        let (kept, folder) = (shipped(name), tempfile::tempdir().unwrap());
        let out = folder.path().join(name);
        commands::refresh(&Refresh { package: kept.clone(), out: Some(out.clone()), insides: false })
            .unwrap();
        assert_eq!(names(&out), names(&kept), "{name}");
        for file in names(&kept) {
            let (now, before) = (read(&out, &file), read(&kept, &file));
            match file.as_str() {
                "golden.safetensors" => assert_same_golden(&now, &before),
                "manifest.json" => assert_eq!(described(&now), described(&before), "{name}"),
                _ if file.ends_with(".onnx") => {
                    assert!(
                        graph(&now) == graph(&before),
                        "{name}/{file} is not what the exporter writes today"
                    );
                }
                _ => assert!(now == before, "{name}/{file} is not what the exporter writes today"),
            }
        }
    }
}

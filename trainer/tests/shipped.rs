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
use sha2::{Digest as _, Sha256};
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

/// Refreshes a package, and asserts that what comes of it is `kept`.
fn assert_refreshes_to(package: &Path, kept: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("new");
    commands::refresh(&Refresh { package: package.to_owned(), out: Some(out.clone()), insides: false })
        .unwrap();
    assert_eq!(names(&out), names(kept), "{}", kept.display());
    for file in names(kept) {
        let (now, before) = (read(&out, &file), read(kept, &file));
        match file.as_str() {
            "golden.safetensors" => assert_same_golden(&now, &before),
            "manifest.json" => assert_eq!(described(&now), described(&before), "{}", kept.display()),
            _ => {
                let is_same = match file.ends_with(".onnx") {
                    true => graph(&now) == graph(&before),
                    false => now == before,
                };
                assert!(is_same, "{}: not what the exporter writes today", kept.join(&file).display());
            }
        }
    }
}

#[test]
fn shipped_packages_are_what_the_exporter_writes() {
    for name in ["tiny", "fashion-dit"] {
        assert_refreshes_to(&shipped(name), &shipped(name));
    }
}

/// An exporter before this one wrote the position table whole, had its weights at other places, and other goldens.
#[test]
fn a_package_of_an_older_exporter_becomes_what_this_one_writes() {
    let (kept, folder) = (shipped("tiny"), tempfile::tempdir().unwrap());
    let older = folder.path();
    for file in names(&kept) {
        fs::copy(kept.join(&file), older.join(&file)).unwrap();
    }
    let (tokens, hidden) = (1024, 48);
    let moved = 128;
    let mut weights = vec![7; moved];
    weights.extend(read(&kept, "weights.bin"));
    let table = weights.len();
    weights.resize(table + 4 * tokens * hidden, 7);
    let mut denoiser = ModelProto::decode(&read(&kept, "denoiser.f32.onnx")[..]).unwrap();
    denoiser.producer_version = Some("0.0.1".to_owned());
    for tensor in &mut denoiser.graph.as_mut().unwrap().initializer {
        let is_table = tensor.name.as_deref() == Some("pos_embed");
        if is_table {
            assert_eq!(tensor.dims, [32, hidden as i64 / 2]);
            tensor.dims = vec![1, tokens as i64, hidden as i64];
        }
        for entry in &mut tensor.external_data {
            let number = |value: &Option<String>| value.as_ref().unwrap().parse::<usize>().unwrap();
            match entry.key.as_deref() {
                Some("offset") if is_table => entry.value = Some(table.to_string()),
                Some("length") if is_table => entry.value = Some((4 * tokens * hidden).to_string()),
                Some("offset") => entry.value = Some((number(&entry.value) + moved).to_string()),
                _ => {}
            }
        }
    }
    let changed = [
        ("weights.bin", weights),
        ("denoiser.f32.onnx", denoiser.encode_to_vec()),
        ("golden.safetensors", vec![1, 2, 3]),
    ];
    let mut manifest: Value = serde_json::from_slice(&read(&kept, "manifest.json")).unwrap();
    for (name, bytes) in changed {
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        manifest["files"][name] = serde_json::json!({ "sha256": digest, "size": bytes.len() });
        fs::write(older.join(name), bytes).unwrap();
    }
    fs::write(older.join("manifest.json"), manifest.to_string()).unwrap();
    assert_refreshes_to(older, &kept);
}

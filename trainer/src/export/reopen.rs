//! Back from a package to what it was made of: so that graphs which this version of the exporter writes come to models
//! whose run is gone. The weights are those that the package stores; nothing about them is computed anew.

use std::path::Path;

use half::f16;
use prost::Message;
use sha2::{Digest, Sha256};
use tch::Tensor;
use windowpane_diffusion::manifest::{
    Dtype, GOLDEN_FILE, GraphDevice, MANIFEST_FILE, Manifest, Role, WEIGHTS_FILE,
};

use super::card::{self, CARD_FILE};
use super::onnx::{self, ModelProto, TensorProto};
use crate::checkpoint::Meta;
use crate::config::{ExportTable, StoredWeights};
use crate::error::{Error, Result};
use crate::params::Layout;

/// A package's contents, as an export takes them.
#[derive(Debug)]
pub struct Reopened {
    /// Its manifest.
    pub manifest: Manifest,
    /// The network, its noise, prediction and classes.
    pub meta: Meta,
    /// The stored parameters, `[parameters]` f32.
    pub flat: Tensor,
    /// How they are stored, and which graphs there are.
    pub table: ExportTable,
    /// What its card says that it is good for.
    pub purpose: Option<String>,
    /// Files that are neither made from the weights nor their proof.
    pub extra: Vec<(String, Vec<u8>)>,
}

/// Opens the package in `dir`. Errors: no package, a file that is not the one that its manifest pins, weights that do
/// not fit the configuration.
pub fn reopen(dir: &Path) -> Result<Reopened> {
    let path = dir.join(MANIFEST_FILE);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let manifest = Manifest::from_json(&text).map_err(|error| Error::file(&path, error))?;
    let read = |name: &str| pinned(dir, &manifest, name);
    let denoiser = manifest
        .graphs
        .iter()
        .find(|graph| {
            (graph.role, graph.device, graph.dtype) == (Role::Denoiser, GraphDevice::Any, Dtype::F32)
        })
        .expect("a valid manifest has a denoiser for any device in f32: this is a bug");
    let graph = ModelProto::decode(&read(&denoiser.file)?[..])
        .map_err(|error| Error::file(&dir.join(&denoiser.file), error))?
        .graph
        .unwrap_or_default();
    let weights = read(WEIGHTS_FILE)?;
    let (flat, stored) = parameters(&manifest, &graph.initializer, &weights)
        .map_err(|reason| Error::file(&dir.join(&denoiser.file), reason))?;
    let mut extra = Vec::new();
    for name in manifest.files.keys() {
        let made = [WEIGHTS_FILE, GOLDEN_FILE, CARD_FILE].contains(&name.as_str());
        if !made && manifest.graphs.iter().all(|graph| graph.file != *name) {
            extra.push((name.clone(), read(name)?));
        }
    }
    let purpose = match manifest.files.contains_key(CARD_FILE) {
        true => card::purpose_in(&String::from_utf8_lossy(&read(CARD_FILE)?)),
        false => None,
    };
    let meta = Meta {
        config: manifest.config.clone(),
        schedule: manifest.schedule,
        prediction: manifest.prediction,
        variance: manifest.variance,
        classes: manifest.classes.clone(),
        step: manifest.lineage.steps,
    };
    let cuda = manifest.graphs.iter().any(|graph| graph.device == GraphDevice::Cuda);
    let insides = manifest.graphs.iter().any(|graph| graph.role != Role::Denoiser);
    let table = ExportTable { weights: stored, cuda, insides };
    Ok(Reopened { manifest, meta, flat, table, purpose, extra })
}

/// A file of the package, compared with its digest.
fn pinned(dir: &Path, manifest: &Manifest, name: &str) -> Result<Vec<u8>> {
    let path = dir.join(name);
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    match manifest.files.get(name) {
        Some(file) if file.sha256 == digest => Ok(bytes),
        Some(file) => {
            Err(Error::file(&path, format!("its sha256 is {digest}, the manifest says {}", file.sha256)))
        }
        None => Err(Error::file(&path, "the manifest does not list it")),
    }
}

/// The parameters in the order of the flat buffer, and how they were stored. Errors: a sentence on what is missing.
fn parameters(
    manifest: &Manifest,
    initializers: &[TensorProto],
    weights: &[u8],
) -> std::result::Result<(Tensor, StoredWeights), String> {
    let (mut flat, mut stored) = (Vec::new(), StoredWeights::F32);
    for entry in &Layout::of(&manifest.config).entries {
        let name = &entry.name;
        let tensor = initializers.iter().find(|tensor| tensor.name.as_ref() == Some(name));
        let tensor = tensor.ok_or_else(|| format!("it has no initializer `{name}`"))?;
        if tensor.dims != entry.shape {
            return Err(format!("`{name}` is {:?}, the model needs {:?}", tensor.dims, entry.shape));
        }
        let number = |key: &str| {
            let entry = tensor.external_data.iter().find(|entry| entry.key.as_deref() == Some(key))?;
            entry.value.as_ref()?.parse::<usize>().ok()
        };
        let place = number("offset").zip(number("length"));
        let bytes = place.and_then(|(offset, length)| weights.get(offset..offset.checked_add(length)?));
        let bytes = bytes.ok_or_else(|| format!("`{name}` does not lie in {WEIGHTS_FILE}"))?;
        let values: Vec<f32> = match tensor.data_type {
            Some(onnx::FLOAT16) => {
                stored = StoredWeights::F16;
                bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
            Some(onnx::FLOAT) => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            other => return Err(format!("`{name}` is of ONNX's type {other:?}, expected f32 or f16")),
        };
        if values.len() as i64 != entry.shape.iter().product::<i64>() {
            return Err(format!("`{name}` has {} values, its shape is {:?}", values.len(), entry.shape));
        }
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(format!("`{name}` has the value {value} in {WEIGHTS_FILE}, expected numbers"));
        }
        flat.extend(values);
    }
    Ok((Tensor::from_slice(&flat), stored))
}

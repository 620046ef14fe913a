//! What is in a model package? The manifest: everything a server must know before it opens a graph, and the
//! digest of every file. Reading validates; nothing here opens a file or computes a digest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::prediction::{Prediction, Variance};
use crate::schedule::ScheduleConfig;
use crate::solver::{Sampler, TimeGrid};

mod graph;
mod validate;

pub use graph::{Dim, Dtype, Graph, GraphDevice, Role, TensorSpec, TensorType};
pub use validate::{class_words, not_blank, plain_name, sample_defaults};

/// The format that this code reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// The file that holds the manifest; the only one of a package without a digest.
pub const MANIFEST_FILE: &str = "manifest.json";

/// The external data of every graph of a package.
pub const WEIGHTS_FILE: &str = "weights.bin";

/// Inputs and outputs of every graph, from the trainer's own network.
pub const GOLDEN_FILE: &str = "golden.safetensors";

/// Images to measure the PSNR gap on, where the owner of a package lets them travel along: pixels `train.images` and
/// `test.images`, u8 `[n, channels, height, width]`, and where the model has classes `train.labels` and `test.labels`,
/// i64 `[n]`.
pub const REFERENCE_FILE: &str = "reference.safetensors";

/// A model package's `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Name under which the model is served; as [`plain_name`] accepts it.
    pub name: String,
    /// A sentence for people.
    pub description: String,
    /// The network's shape and windows.
    pub config: ModelConfig,
    /// The noise it was trained on.
    pub schedule: ScheduleConfig,
    /// What it predicts.
    pub prediction: Prediction,
    /// The variance of its reverse process; learned exactly if `config.learn_sigma`.
    pub variance: Variance,
    /// Pixel values at black and white: `[-1, 1]`.
    pub value_range: [f32; 2],
    /// Names of the classes, in the order of the labels; as many as `config.classes`.
    pub classes: Vec<Class>,
    /// How to sample where the request does not say.
    pub defaults: SampleDefaults,
    /// The ONNX files.
    pub graphs: Vec<Graph>,
    /// Every file of the package but the manifest, by name.
    pub files: BTreeMap<String, FileDigest>,
    /// Where the weights came from.
    pub lineage: Lineage,
    /// Licence of weights and data, for people.
    pub licence: String,
}

/// A class and the words that mean it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// The name that is shown.
    pub name: String,
    /// Other words for it.
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// The package's own choice of sampler.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleDefaults {
    /// The algorithm.
    pub sampler: Sampler,
    /// Where its steps lie.
    pub grid: TimeGrid,
    /// Solver steps.
    pub steps: usize,
    /// Scale of classifier-free guidance; 1 is none.
    pub guidance_scale: f64,
    /// Share of ancestral noise; DDIM only.
    pub eta: f64,
    /// Whether clean estimates are clipped; true where it is not said.
    #[serde(default = "clipped")]
    pub clip_x0: bool,
}

fn clipped() -> bool {
    true
}

/// A file's digest and size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// SHA-256, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Size in bytes.
    pub size: u64,
}

/// Where a model came from: enough to train it again, where it began with random weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lineage {
    /// The data set, for people.
    pub data: String,
    /// SHA-256 of its pixels and labels.
    pub data_sha256: String,
    /// Images trained on.
    pub images: usize,
    /// Seed of the training run.
    pub seed: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Program and version.
    pub trainer: String,
    /// Whatever was measured, by name; also [`STEPS_BEFORE`].
    pub metrics: BTreeMap<String, f64>,
}

/// The metric that tells how many optimiser steps are known to be behind the weights that the training run began with: of a run or
/// a package all of them, of a file those that it tells itself. A run that began with random weights has no such metric. What those
/// before were trained on is not told.
pub const STEPS_BEFORE: &str = "steps_before";

// === impl Manifest ===

impl Manifest {
    /// Reads and validates. Errors: text that is not a manifest, with line and column; another format version;
    /// a value that contradicts another, with its path.
    pub fn from_json(text: &str) -> Result<Self> {
        /// All that can be hoped for in a manifest of another version.
        #[derive(Deserialize)]
        struct Head {
            format_version: u32,
        }
        let malformed =
            |error: serde_json::Error| Error::Malformed { what: "manifest", reason: error.to_string() };
        // First as an object: an array would be read as a head with too many fields.
        let read: Map<String, Value> = serde_json::from_str(text).map_err(malformed)?;
        let head: Head = serde_json::from_str(text).map_err(malformed)?;
        validate::version(head.format_version)?;
        let manifest: Self = serde_json::from_str(text).map_err(malformed)?;
        let written = serde_json::to_value(&manifest).map_err(malformed)?;
        validate::objects("", &Value::Object(read), &written)?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// Writes, for people to read too; one newline at the end. What is written passed `validate` if this did:
    /// numbers that JSON does not have would be read back as missing.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a manifest has no map with keys that are not text: a bug")
            + "\n"
    }

    /// Checks everything that can be checked without another file.
    pub fn validate(&self) -> Result<()> {
        validate::check(self)
    }

    /// The label of the class that `word` names: its name or an alias, in any case, blanks around it ignored.
    /// Errors: no such class; the error lists the names.
    pub fn lookup(&self, word: &str) -> Result<usize> {
        self.classes
            .iter()
            .position(|class| class.means(word))
            .ok_or_else(|| Error::unknown_name("class", word, self.classes.iter().map(|c| c.name.as_str())))
    }
}

// === impl Class ===

impl Class {
    /// Whether `word` is its name or an alias, in any case, blanks around it ignored.
    pub fn means(&self, word: &str) -> bool {
        let wanted = fold(word);
        std::iter::once(&self.name).chain(&self.aliases).any(|known| fold(known) == wanted)
    }
}

/// Class words are equal if they are equal after this.
fn fold(word: &str) -> String {
    word.trim().to_lowercase()
}

#[cfg(test)]
mod tests;

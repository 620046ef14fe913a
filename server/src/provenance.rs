//! How did this image come about? All that decides an image and all that computed it, as the PNG, the JSON and the
//! array files carry it, and as `/v1/replay` reads it. It describes the image, never the request: no prompt, no id, no
//! key, no time and no host, so that the same image has the same bytes whoever asks for it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;
use windowpane_diffusion::{Sampler, TimeGrid};

use crate::engine::Provider;
use crate::engine::check::DeterminismClass;
use crate::error::words;
use crate::model::Model;
use crate::model::load::dtype_name;
use crate::spec::{SampleSpec, SamplerName, Seed, TimeGridName};

/// The version that is written, and the only one there is.
pub const VERSION: u64 = 1;

/// How an image came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Version of these fields: 1.
    #[schema(example = 1)]
    pub version: u64,
    /// The program that sampled it, and its version.
    #[schema(example = "windowpane 0.1.0")]
    pub program: String,
    /// The model's name.
    #[schema(example = "fashion-dit")]
    pub model: String,
    /// The model's identity: the sha256 of its manifest.
    pub digest: String,
    /// The class; null for a model without classes.
    #[schema(required)]
    pub class: Option<ClassNote>,
    /// The effective seed, a decimal string.
    #[schema(value_type = String, example = "7")]
    pub seed: Seed,
    /// Where the trajectory began.
    pub start: StartNote,
    /// Solver steps of the whole time grid.
    pub steps: usize,
    /// The sampler.
    #[schema(value_type = SamplerName)]
    pub sampler: Sampler,
    /// The time grid.
    #[schema(value_type = TimeGridName)]
    pub time_grid: TimeGrid,
    /// Scale of classifier-free guidance; 1 is none.
    pub guidance_scale: f64,
    /// Share of ancestral noise.
    pub eta: f64,
    /// Whether every clean estimate was clipped.
    pub clip_x0: bool,
    /// The model's own size, width × height in pixels.
    #[schema(example = "28x28")]
    pub size: String,
    /// Pixels of the picture for one of the model's, along each side.
    pub upscaled: usize,
    /// The picture shows every so many steps side by side; null where it is the finished image alone.
    #[schema(required)]
    pub trajectory: Option<usize>,
    /// What computed it.
    pub engine: EngineNote,
    /// What was promised about its bits.
    pub determinism: DeterminismClass,
}

/// A class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassNote {
    /// Its index.
    pub index: usize,
    /// Its name.
    #[schema(example = "Sneaker")]
    pub name: String,
}

/// Where a trajectory began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StartNote {
    /// At the noise of its seed.
    Noise,
    /// At an uploaded `x_t`.
    XT {
        /// sha256 of its values as little-endian f32.
        sha256: String,
    },
    /// At an uploaded picture, made noisy by the noise of the seed.
    InitImage {
        /// sha256 of its values in the model's range, as little-endian f32.
        sha256: String,
        /// The share of the steps that was taken.
        strength: f64,
    },
}

/// What computed an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EngineNote {
    /// The execution provider.
    pub provider: Provider,
    /// What it computed in: `f32` or `f16`.
    #[schema(example = "f32")]
    pub dtype: String,
    /// The graph's file in the package.
    #[schema(example = "denoiser.f32.onnx")]
    pub graph: String,
    /// Version of ONNX Runtime.
    #[schema(example = "1.30.0")]
    pub runtime: String,
}

/// A note is no provenance that is read here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProvenanceError {
    /// A later version.
    #[error("its provenance is of version {0}, this server reads version {VERSION}")]
    Version(u64),
    /// Not the fields of its version.
    #[error("its provenance does not read: {0}")]
    Malformed(String),
}

// === impl Provenance ===

impl Provenance {
    /// Of the image with this seed, which `model` sampled natively and as it is.
    pub fn new(model: &Model, spec: &SampleSpec, seed: u64, start: StartNote) -> Self {
        let (manifest, served) = (&model.card.manifest, &model.served);
        let class = |index: usize| ClassNote { index, name: manifest.classes[index].name.clone() };
        Self {
            version: VERSION,
            program: concat!("windowpane ", env!("CARGO_PKG_VERSION")).to_owned(),
            model: manifest.name.clone(),
            digest: model.card.digest.clone(),
            class: spec.class.map(class),
            seed: Seed(seed),
            start,
            steps: spec.solver.steps,
            sampler: spec.solver.sampler,
            time_grid: spec.solver.grid,
            guidance_scale: spec.guidance_scale,
            eta: spec.solver.eta,
            clip_x0: spec.solver.clip_x0,
            size: format!("{}x{}", manifest.config.width, manifest.config.height),
            upscaled: 1,
            trajectory: None,
            engine: EngineNote {
                provider: served.provider,
                dtype: dtype_name(served.dtype).to_owned(),
                graph: served.graph.clone(),
                runtime: served.runtime.clone(),
            },
            determinism: served.determinism.class,
        }
    }

    /// Reads what [`Provenance::to_json`] wrote. The version is looked at first: a later one has other fields.
    pub fn read(note: &str) -> Result<Self, ProvenanceError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        let malformed = |error: serde_json::Error| ProvenanceError::Malformed(words::of(&error));
        let Versioned { version } = serde_json::from_str(note).map_err(malformed)?;
        if version != VERSION {
            return Err(ProvenanceError::Version(version));
        }
        serde_json::from_str(note).map_err(malformed)
    }

    /// One line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and text always make JSON; this is a bug")
    }

    /// The same in ASCII, for a header: other characters as JSON escapes.
    pub fn to_ascii(&self) -> String {
        ascii(&self.to_json())
    }
}

/// JSON in ASCII, for a header: other characters as escapes.
pub fn ascii(json: &str) -> String {
    let mut ascii = String::new();
    for character in json.chars() {
        if character.is_ascii() && !character.is_ascii_control() {
            ascii.push(character);
        } else {
            let mut units = [0; 2];
            let escapes = character.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}"));
            ascii.extend(escapes);
        }
    }
    ascii
}

/// sha256 in hex of values as little-endian f32.
pub fn digest_of(values: &[f32]) -> String {
    let mut hasher = Sha256::new();
    values.iter().for_each(|value| hasher.update(value.to_le_bytes()));
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::engine::fake::Faults;
    use crate::metrics::Metrics;
    use crate::routes::images::ImageRequest;
    use crate::testing::manifest;

    fn provenance(start: StartNote) -> Provenance {
        let manifest = manifest("shoes", &["Snëaker 👟", "Boot"]);
        let model = Model::fake(manifest, Faults::default(), &Config::default(), &Metrics::new()).unwrap();
        let request = ImageRequest { prompt: Some("snëaker 👟".to_owned()), ..ImageRequest::default() };
        let order =
            crate::spec::Order::resolve(&request, &crate::extract::Accept::default(), &model.card).unwrap();
        Provenance::new(&model, &order.spec, i64::MAX as u64, start)
    }

    #[test]
    fn it_is_read_back_whole() {
        for start in [
            StartNote::Noise,
            StartNote::XT { sha256: digest_of(&[1.0]) },
            StartNote::InitImage { sha256: digest_of(&[]), strength: 0.1 },
        ] {
            let provenance = provenance(start);
            assert_eq!(Provenance::read(&provenance.to_json()), Ok(provenance.clone()));
            assert_eq!(Provenance::read(&provenance.to_ascii()), Ok(provenance.clone()));
            assert!(provenance.to_ascii().bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }

    #[test]
    fn later_versions_unknown_fields_and_other_texts_are_refused() {
        let good = provenance(StartNote::Noise).to_json();
        assert_eq!(
            Provenance::read(&good.replace("\"version\":1", "\"version\":2")),
            Err(ProvenanceError::Version(2))
        );
        for bad in [
            good.replace("{\"version\":1", "{\"version\":1,\"prompt\":\"x\""),
            good.replace("\"noise\"", "{\"x_t\":{\"sha256\":\"\",\"more\":1}}"),
            good.replace("\"ddim\"", "\"plms\""),
            "{}".to_owned(),
            "[".repeat(100_000),
            String::new(),
        ] {
            assert!(matches!(Provenance::read(&bad), Err(ProvenanceError::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn a_digest_is_that_of_the_bytes() {
        // sha256 of nothing (FIPS 180-4's example file) and of 00 00 80 3f.
        assert!(digest_of(&[]).starts_with("e3b0c44298fc1c149afbf4c8996fb924"));
        let bytes: String = Sha256::digest([0, 0, 0x80, 0x3f]).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(digest_of(&[1.0]), bytes);
    }
}

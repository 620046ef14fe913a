//! The faces of a package: under which names they are asked for, and what goes in and comes out.

use std::borrow::Cow;

use serde::Serialize;
use utoipa::ToSchema;
use windowpane_diffusion::manifest::Manifest;

use super::insides::InferStudy;
use super::port::{Inputs, Lead};
use super::{Datatype, Port, Tensor, VERSION, denoiser, insides, sampler};
use crate::batcher::Sample;
use crate::engine::Provider;
use crate::engine::insides::Inside;
use crate::error::ApiError;
use crate::model::Card;
use crate::sampler::Unit;

/// A face of a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// `NAME`: one call of the network.
    Denoiser,
    /// `NAME.sampler`: images from seeds.
    Sampler,
    /// `NAME.attention`, `NAME.jvp`, `NAME.vjp`: one call of a graph of its insides, where the package has it.
    Inside(Inside),
}

/// The rows of a request, as work.
#[derive(Debug)]
pub enum Work {
    /// Among the images.
    Units(Vec<Unit>),
    /// In the lane of the studies.
    Study(InferStudy),
}

/// What a model is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2ModelMetadata)]
pub struct Metadata {
    /// The name to ask for.
    #[schema(example = "fashion-dit.sampler")]
    pub name: String,
    /// `1` alone.
    pub versions: Vec<&'static str>,
    /// `windowpane_onnx`: ONNX graphs in a package of ours.
    #[schema(example = "windowpane_onnx")]
    pub platform: &'static str,
    /// What goes in.
    pub inputs: Vec<TensorMetadata>,
    /// What comes out.
    pub outputs: Vec<TensorMetadata>,
}

/// What a tensor is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2TensorMetadata)]
pub struct TensorMetadata {
    /// Its name.
    #[schema(example = "seed", value_type = String)]
    pub name: Cow<'static, str>,
    /// The type of its elements.
    #[schema(value_type = Datatype)]
    pub datatype: &'static str,
    /// Its dimensions; -1 is the number of rows.
    #[schema(example = json!([-1]))]
    pub shape: Vec<i64>,
}

/// A model's configuration, in the fields that programs read which know the Triton server.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2ModelConfig)]
pub struct ModelConfig {
    /// The name to ask for.
    #[schema(example = "fashion-dit.sampler")]
    pub name: String,
    /// `windowpane_onnx`.
    #[schema(example = "windowpane_onnx")]
    pub platform: &'static str,
    /// `windowpane`.
    #[schema(example = "windowpane")]
    pub backend: &'static str,
    /// The most rows of one request; 0 for a model whose inputs have no rows in common.
    #[schema(example = 64)]
    pub max_batch_size: usize,
    /// What goes in.
    pub input: Vec<TensorConfig>,
    /// What comes out.
    pub output: Vec<TensorConfig>,
}

/// A tensor's configuration.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2TensorConfig)]
pub struct TensorConfig {
    /// Its name.
    #[schema(example = "seed", value_type = String)]
    pub name: Cow<'static, str>,
    /// The type of its elements.
    #[schema(example = "TYPE_INT64")]
    pub data_type: &'static str,
    /// The dimensions of one row; of a model without batches all of them, -1 being free.
    pub dims: Vec<i64>,
    /// Whether it may be left out.
    pub optional: bool,
}

/// What platform and backend are called.
const PLATFORM: &str = "windowpane_onnx";

// === impl Face ===

impl Face {
    /// All that a package may have.
    pub const ALL: [Self; 5] = [
        Self::Denoiser,
        Self::Sampler,
        Self::Inside(Inside::Attention),
        Self::Inside(Inside::Jvp),
        Self::Inside(Inside::Vjp),
    ];

    /// Those that a package has.
    pub fn of(manifest: &Manifest) -> impl Iterator<Item = Self> + '_ {
        // A graph for any device is one for CUDA too.
        let has = |inside: Inside| inside.graph(manifest, Provider::Cpu).is_some();
        Self::ALL.into_iter().filter(move |face| !matches!(face, Self::Inside(inside) if !has(*inside)))
    }

    /// What a name may mean: a package and its face, the likelier first.
    pub fn meanings(name: &str) -> impl Iterator<Item = (&str, Self)> {
        let meaning = |face: Self| {
            let package = name.strip_suffix(face.suffix())?.strip_suffix('.')?;
            Some((package, face))
        };
        [(name, Self::Denoiser)].into_iter().chain(Self::ALL.into_iter().skip(1).filter_map(meaning))
    }

    /// What follows the package's name and a dot; nothing for the network itself.
    fn suffix(self) -> &'static str {
        match self {
            Self::Denoiser => "",
            Self::Sampler => "sampler",
            Self::Inside(inside) => inside.as_str(),
        }
    }

    /// Whether it looks inside, which not everybody may.
    pub fn is_inside(self) -> bool {
        matches!(self, Self::Inside(_))
    }

    /// The name of a package's face.
    pub fn name(self, package: &str) -> String {
        match self {
            Self::Denoiser => package.to_owned(),
            _ => format!("{package}.{}", self.suffix()),
        }
    }

    /// What goes in.
    pub fn inputs(self, card: &Card) -> Vec<Port> {
        match self {
            Self::Denoiser => denoiser::inputs(card),
            Self::Sampler => sampler::inputs(card),
            Self::Inside(inside) => insides::inputs(inside, card),
        }
    }

    /// What comes out.
    pub fn outputs(self, card: &Card) -> Vec<Port> {
        match self {
            Self::Denoiser => denoiser::outputs(card),
            Self::Sampler => sampler::outputs(card),
            Self::Inside(inside) => insides::outputs(inside, card),
        }
    }

    /// The rows of a request, as work, of which these outputs are wanted. A look inside may bring `limit` bytes.
    pub fn work(
        self,
        card: &Card,
        inputs: Inputs,
        wanted: &[String],
        limit: usize,
    ) -> Result<Work, ApiError> {
        match self {
            Self::Denoiser => denoiser::units(card, inputs).map(Work::Units),
            Self::Sampler => sampler::units(card, inputs).map(Work::Units),
            Self::Inside(inside) => insides::study(inside, card, inputs, wanted, limit).map(Work::Study),
        }
    }

    /// Finished units, as the outputs; a study has made its own.
    pub fn answer(self, card: &Card, samples: &[Sample]) -> Vec<Tensor> {
        match self {
            Self::Denoiser => denoiser::answer(card, samples),
            Self::Sampler => sampler::answer(card, samples),
            Self::Inside(_) => Vec::new(),
        }
    }

    /// The metadata.
    pub fn metadata(self, card: &Card) -> Metadata {
        let tensors = |ports: Vec<Port>| ports.iter().map(TensorMetadata::new).collect();
        Metadata {
            name: self.name(&card.manifest.name),
            versions: vec![VERSION],
            platform: PLATFORM,
            inputs: tensors(self.inputs(card)),
            outputs: tensors(self.outputs(card)),
        }
    }

    /// The configuration, for requests of at most so many rows.
    pub fn config(self, card: &Card, most: usize) -> ModelConfig {
        let inputs = self.inputs(card);
        let batches = inputs.iter().all(|port| port.lead == Lead::Rows);
        let tensors =
            |ports: Vec<Port>| ports.into_iter().map(|port| TensorConfig::new(port, batches)).collect();
        ModelConfig {
            name: self.name(&card.manifest.name),
            platform: PLATFORM,
            backend: "windowpane",
            max_batch_size: if batches { most } else { 0 },
            input: tensors(inputs),
            output: tensors(self.outputs(card)),
        }
    }
}

// === impl TensorMetadata ===

impl TensorMetadata {
    fn new(port: &Port) -> Self {
        Self { name: port.name.clone(), datatype: port.datatype.as_str(), shape: whole(port) }
    }
}

/// All dimensions, the number of rows being -1.
fn whole(port: &Port) -> Vec<i64> {
    let first = if port.lead == Lead::One { 1 } else { -1 };
    std::iter::once(first).chain(port.row.iter().map(|&dim| dim as i64)).collect()
}

// === impl TensorConfig ===

impl TensorConfig {
    fn new(port: Port, batches: bool) -> Self {
        // Of a model with batches the rows are not among the dimensions.
        let dims = whole(&port).split_off(usize::from(batches));
        let Port { name, datatype, optional, .. } = port;
        Self { name, data_type: datatype.config_name(), dims, optional }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{manifest, with_insides};

    fn card(classes: &[&str]) -> Card {
        Card::new(manifest("shoes", classes), "0".repeat(64), 0).unwrap()
    }

    #[test]
    fn a_name_means_a_package_or_its_sampler() {
        let meanings = |name| Face::meanings(name).collect::<Vec<_>>();
        assert_eq!(meanings("shoes"), [("shoes", Face::Denoiser)]);
        assert_eq!(meanings("shoes.sampler"), [("shoes.sampler", Face::Denoiser), ("shoes", Face::Sampler)]);
        assert_eq!(meanings("a.jvp")[1], ("a", Face::Inside(Inside::Jvp)));
        for face in Face::ALL {
            let name = face.name("a.b");
            assert!(Face::meanings(&name).any(|meaning| meaning == ("a.b", face)));
        }
    }

    #[test]
    fn metadata_has_the_rows_as_minus_one_and_config_leaves_them_out() {
        let card = card(&["Sneaker"]);
        let metadata = serde_json::to_value(Face::Denoiser.metadata(&card)).unwrap();
        assert_eq!(
            metadata["inputs"],
            serde_json::json!([
                {"name": "x", "datatype": "FP32", "shape": [-1, 1, 4, 6]},
                {"name": "t", "datatype": "FP32", "shape": [-1]},
                {"name": "y", "datatype": "INT64", "shape": [-1]},
            ])
        );
        let config = serde_json::to_value(Face::Sampler.config(&card, 64)).unwrap();
        assert_eq!(
            config["output"],
            serde_json::json!([
                {"name": "images", "data_type": "TYPE_UINT8", "dims": [4, 6, 1], "optional": false},
                {"name": "samples", "data_type": "TYPE_FP32", "dims": [1, 4, 6], "optional": false},
            ])
        );
        assert_eq!(config["max_batch_size"], 64);
    }

    #[test]
    fn a_package_has_the_faces_of_its_graphs() {
        assert_eq!(Face::of(&manifest("shoes", &[])).count(), 2);
        let manifest = with_insides(manifest("shoes", &["Sneaker"]));
        assert_eq!(Face::of(&manifest).collect::<Vec<_>>(), Face::ALL);
        let card = Card::new(manifest, "0".repeat(64), 0).unwrap();
        let attention = serde_json::to_value(Face::Inside(Inside::Attention).metadata(&card)).unwrap();
        let map = serde_json::json!({"name": "attention.0", "datatype": "FP32", "shape": [-1, 1, 1, 6, 6]});
        assert_eq!(attention["outputs"][1], map);
        let config = serde_json::to_value(Face::Inside(Inside::Vjp).config(&card, 64)).unwrap();
        assert_eq!(
            (&config["max_batch_size"], &config["input"][0]["dims"]),
            (&0.into(), &serde_json::json!([1, 1, 4, 6]))
        );
        assert_eq!(config["input"][3]["dims"], serde_json::json!([-1, 1, 4, 6]));
        assert_eq!(config["output"][0]["name"], "products");
    }

    #[test]
    fn only_a_model_with_classes_takes_them() {
        let class = |card: &Card| Face::Sampler.inputs(card).into_iter().find(|port| port.name == "class");
        assert!(!class(&card(&["Sneaker"])).unwrap().optional);
        assert_eq!(class(&card(&[])), None);
    }
}

//! The two faces of a package: under which names they are asked for, and what goes in and comes out.

use serde::Serialize;
use utoipa::ToSchema;

use super::port::Inputs;
use super::{Datatype, Port, Tensor, VERSION, denoiser, sampler};
use crate::batcher::Sample;
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
    #[schema(example = "seed")]
    pub name: &'static str,
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
    /// The most rows of one request.
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
    #[schema(example = "seed")]
    pub name: &'static str,
    /// The type of its elements.
    #[schema(example = "TYPE_INT64")]
    pub data_type: &'static str,
    /// The dimensions of one row.
    pub dims: Vec<usize>,
    /// Whether it may be left out.
    pub optional: bool,
}

/// What platform and backend are called.
const PLATFORM: &str = "windowpane_onnx";

// === impl Face ===

impl Face {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Denoiser, Self::Sampler];

    /// What a name may mean: a package and its face, the likelier first.
    pub fn meanings(name: &str) -> impl Iterator<Item = (&str, Self)> {
        let sampler = name.strip_suffix(".sampler").map(|package| (package, Self::Sampler));
        [(name, Self::Denoiser)].into_iter().chain(sampler)
    }

    /// The name of a package's face.
    pub fn name(self, package: &str) -> String {
        match self {
            Self::Denoiser => package.to_owned(),
            Self::Sampler => format!("{package}.sampler"),
        }
    }

    /// What goes in.
    pub fn inputs(self, card: &Card) -> Vec<Port> {
        match self {
            Self::Denoiser => denoiser::inputs(card),
            Self::Sampler => sampler::inputs(card),
        }
    }

    /// What comes out.
    pub fn outputs(self, card: &Card) -> Vec<Port> {
        match self {
            Self::Denoiser => denoiser::outputs(card),
            Self::Sampler => sampler::outputs(card),
        }
    }

    /// The rows of a request, as work.
    pub fn units(self, card: &Card, inputs: Inputs) -> Result<Vec<Unit>, ApiError> {
        match self {
            Self::Denoiser => denoiser::units(card, inputs),
            Self::Sampler => sampler::units(card, inputs),
        }
    }

    /// The finished work, as the outputs.
    pub fn answer(self, card: &Card, samples: &[Sample]) -> Vec<Tensor> {
        match self {
            Self::Denoiser => denoiser::answer(card, samples),
            Self::Sampler => sampler::answer(card, samples),
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
        let tensors = |ports: Vec<Port>| ports.into_iter().map(TensorConfig::new).collect();
        ModelConfig {
            name: self.name(&card.manifest.name),
            platform: PLATFORM,
            backend: "windowpane",
            max_batch_size: most,
            input: tensors(self.inputs(card)),
            output: tensors(self.outputs(card)),
        }
    }
}

// === impl TensorMetadata ===

impl TensorMetadata {
    fn new(port: &Port) -> Self {
        let row = port.row.iter().map(|&dim| dim as i64);
        Self {
            name: port.name,
            datatype: port.datatype.as_str(),
            shape: std::iter::once(-1).chain(row).collect(),
        }
    }
}

// === impl TensorConfig ===

impl TensorConfig {
    fn new(port: Port) -> Self {
        Self {
            name: port.name,
            data_type: port.datatype.config_name(),
            dims: port.row,
            optional: port.optional,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::manifest;

    fn card(classes: &[&str]) -> Card {
        Card::new(manifest("shoes", classes), "0".repeat(64), 0).unwrap()
    }

    #[test]
    fn a_name_means_a_package_or_its_sampler() {
        let meanings = |name| Face::meanings(name).collect::<Vec<_>>();
        assert_eq!(meanings("shoes"), [("shoes", Face::Denoiser)]);
        assert_eq!(meanings("shoes.sampler"), [("shoes.sampler", Face::Denoiser), ("shoes", Face::Sampler)]);
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
    fn only_a_model_with_classes_takes_them() {
        let class = |card: &Card| Face::Sampler.inputs(card).into_iter().find(|port| port.name == "class");
        assert!(!class(&card(&["Sneaker"])).unwrap().optional);
        assert_eq!(class(&card(&[])), None);
    }
}

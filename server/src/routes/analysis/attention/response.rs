//! What a client is told: the maps and the numbers, as JSON, as arrays or as a picture.

use axum::Json;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use windowpane_diffusion::Window;
use windowpane_diffusion::locality::LocalityNumbers;

use super::super::about::Looked;
use super::super::output::{File, Output};
use crate::analysis::attention::{Attention, LayerMaps};
use crate::analysis::picture::Figure;
use crate::analysis::subject::Subject;
use crate::encode::{self, ArrayFile, Encoding, Named};
use crate::error::ApiError;
use crate::extract::Form;
use crate::model::{Card, Model};

/// What was looked at.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = AttentionSubject)]
pub struct About {
    #[serde(flatten)]
    looked: Looked,
    /// The graph's file in the package.
    #[schema(example = "attention.f32.onnx")]
    pub graph: String,
}

/// What a model's layers attend to.
#[derive(Debug, Serialize, ToSchema)]
pub struct AttentionResponse {
    /// What was looked at.
    pub about: About,
    /// Rows and columns of the token grid.
    #[schema(example = json!([7, 7]))]
    pub grid: [usize; 2],
    /// The heads, in the order of the maps.
    pub heads: Vec<usize>,
    /// The query tokens, in the order of the maps.
    pub tokens: Vec<usize>,
    /// `grid` or `compact`.
    #[schema(example = "grid")]
    pub layout: &'static str,
    /// The layers, in the order that was asked for.
    pub layers: Vec<LayerObject>,
    /// `json`, or the file that is in `b64_json`.
    #[schema(example = "json")]
    pub output_format: &'static str,
    /// The file in base64, where one was asked for; else null.
    #[schema(required)]
    pub b64_json: Option<String>,
}

/// What a layer attends to.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AttentionLayer)]
pub struct LayerObject {
    /// The layer, from 0.
    pub layer: usize,
    /// The side of its window in tokens, or `global`.
    pub window: WindowSide,
    /// `[heads, tokens, height, width]`: what each head makes of each token; null where it was not asked for, or is in the file.
    #[schema(required)]
    pub attention: Option<ArrayObject>,
    /// `[tokens, height, width]`: the mean over the heads.
    #[schema(required)]
    pub mean: Option<ArrayObject>,
    /// How local it is, over all heads and tokens that were asked for.
    pub locality: LocalityObject,
    /// The same of each head.
    pub locality_by_head: Vec<LocalityObject>,
}

/// The side of a window in tokens, or `global`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = AttentionWindow)]
pub enum WindowSide {
    /// Odd.
    Side(usize),
    /// `global`.
    Global(&'static str),
}

/// An array of numbers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AttentionArray)]
pub struct ArrayObject {
    /// Its sides.
    pub shape: Vec<usize>,
    /// Its numbers, the last side fastest: f32, written so that they read back as they were.
    #[schema(value_type = Vec<f32>)]
    pub data: Box<RawValue>,
}

/// How local attention is: each number is a mean over query tokens.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AttentionLocality)]
pub struct LocalityObject {
    /// Mean Euclidean distance of what is attended to, in tokens.
    pub distance: f64,
    /// Entropy of a token's attention in nats: 0 where it is all at one place.
    pub entropy: f64,
    /// The share that lies within the square of each odd side around a token.
    pub within: Vec<ShareObject>,
    /// The least odd side of a square that holds 95 % of it.
    pub effective_window: usize,
}

/// The share of attention within a square.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AttentionShare)]
pub struct ShareObject {
    /// The square's side in tokens.
    pub side: usize,
    /// The share.
    pub share: f64,
}

/// What was found, which tokens are told, and in which colours.
pub(super) struct Drawn {
    pub(super) found: Attention,
    pub(super) tokens: Vec<usize>,
    /// The value from which on a picture is darkest.
    pub(super) full: f32,
}

// === impl About ===

impl About {
    pub(super) fn new(card: &Card, subject: &Subject, graph: &str) -> Self {
        Self { looked: Looked::new(card, subject), graph: graph.to_owned() }
    }

    fn to_json(&self) -> Result<String, ApiError> {
        serde_json::to_string(self).map_err(|error| ApiError::internal(error.to_string()))
    }
}

// === impl ArrayObject ===

impl ArrayObject {
    fn new(shape: Vec<usize>, values: &[f32]) -> Result<Self, ApiError> {
        let data = serde_json::value::to_raw_value(values);
        Ok(Self { shape, data: data.map_err(|error| ApiError::internal(error.to_string()))? })
    }
}

// === impl LocalityObject ===

impl From<LocalityNumbers> for LocalityObject {
    fn from(numbers: LocalityNumbers) -> Self {
        let LocalityNumbers { distance, entropy, within, effective_window } = numbers;
        let share = |(reach, share): (usize, f64)| ShareObject { side: 2 * reach + 1, share };
        let within = within.into_iter().enumerate().map(share).collect();
        Self { distance, entropy, within, effective_window }
    }
}

// === impl LayerObject ===

impl LayerObject {
    fn new(found: &Attention, layer: &LayerMaps, inline: bool) -> Result<Self, ApiError> {
        let (selection, [height, width]) = (&found.selection, found.sides(layer));
        let (heads, tokens) = (selection.heads.len(), selection.tokens.len());
        let attention = (inline && selection.maps.of_heads())
            .then(|| ArrayObject::new(vec![heads, tokens, height, width], &found.of_heads(layer)));
        let mean = (inline && selection.maps.of_mean())
            .then(|| ArrayObject::new(vec![tokens, height, width], &found.of_mean(layer)));
        Ok(Self {
            layer: layer.layer,
            window: match layer.window {
                Window::Local { side } => WindowSide::Side(side),
                Window::Global => WindowSide::Global("global"),
            },
            attention: attention.transpose()?,
            mean: mean.transpose()?,
            locality: found.locality(layer, None).into(),
            locality_by_head: (0..heads).map(|head| found.locality(layer, Some(head)).into()).collect(),
        })
    }
}

/// The answer.
pub(super) fn respond(
    model: &Model,
    about: About,
    drawn: &Drawn,
    output: Output,
) -> Result<Response, ApiError> {
    let found = &drawn.found;
    let file = output.file.map(|file| bytes(file, &about, drawn)).transpose()?;
    if let (Form::Json, file) = (output.form, &file) {
        let layers = found.layers.iter().map(|layer| LayerObject::new(found, layer, file.is_none()));
        let layers = layers.collect::<Result<_, _>>()?;
        let selection = &found.selection;
        return Ok(Json(AttentionResponse {
            about,
            grid: [selection.grid.height, selection.grid.width],
            heads: selection.heads.clone(),
            tokens: drawn.tokens.clone(),
            layout: selection.layout.as_str(),
            layers,
            output_format: output.as_str(),
            b64_json: file.as_ref().map(|file| STANDARD.encode(file)),
        })
        .into_response());
    }
    output.respond(model, &about.to_json()?, file.unwrap_or_default())
}

/// The bytes of a file.
fn bytes(file: File, about: &About, drawn: &Drawn) -> Result<Vec<u8>, ApiError> {
    let (found, about) = (&drawn.found, about.to_json()?);
    match file {
        File::Picture => {
            let figure = Figure::new(found.selection.grid, found.layers.len(), drawn.tokens.len());
            let picture = figure.coloured_up_to(drawn.full).draw(found, &drawn.tokens);
            picture.encode(Encoding::Png, Some(&about)).map_err(|error| ApiError::internal(error.to_string()))
        }
        File::Arrays(file) => {
            let tensors = tensors(found);
            let bytes = match file {
                ArrayFile::Safetensors => encode::safetensors(&tensors, "about", &about),
                ArrayFile::Npz | ArrayFile::Npy => encode::npz(&tensors, "about", &about),
            };
            bytes.map_err(|error| ApiError::internal(error.to_string()))
        }
    }
}

/// The arrays of a file: the maps of each layer, and what they are of.
fn tensors(found: &Attention) -> Vec<Named> {
    let selection = &found.selection;
    let (heads, tokens) = (selection.heads.len(), selection.tokens.len());
    let integers = |numbers: &[usize]| numbers.iter().map(|&number| number as i64).collect::<Vec<_>>();
    let mut all = vec![
        Named::integers("heads", integers(&selection.heads)),
        Named::integers("layers", integers(&selection.layers)),
        Named::integers("tokens", integers(&selection.tokens)),
        Named::floats("x_t", &found.shape, &found.x),
        Named::floats("prediction", &found.out_shape(), &found.prediction),
    ];
    for layer in &found.layers {
        let ([height, width], number) = (found.sides(layer), layer.layer);
        if selection.maps.of_heads() {
            let shape = [heads, tokens, height, width];
            all.push(Named::floats(format!("layer.{number}.heads"), &shape, &found.of_heads(layer)));
        }
        if selection.maps.of_mean() {
            let shape = [tokens, height, width];
            all.push(Named::floats(format!("layer.{number}.mean"), &shape, &found.of_mean(layer)));
        }
        all.extend(locality(found, layer));
    }
    all
}

/// How local a layer is, so that a file alone tells it: all heads together, and each by itself.
fn locality(found: &Attention, layer: &LayerMaps) -> [Named; 3] {
    let of_all = found.locality(layer, None);
    let of_heads: Vec<_> =
        (0..found.selection.heads.len()).map(|head| found.locality(layer, Some(head))).collect();
    let within = |of: &LocalityNumbers| of.within.iter().map(|&share| share as f32).collect::<Vec<_>>();
    let numbers = |of: &LocalityNumbers| [of.distance as f32, of.entropy as f32, of.effective_window as f32];
    let (sides, rows, number) = (of_all.within.len(), 1 + of_heads.len(), layer.layer);
    let all: Vec<f32> = std::iter::once(&of_all).chain(&of_heads).flat_map(numbers).collect();
    let by_head = of_heads.iter().flat_map(within).collect::<Vec<_>>();
    [
        Named::floats(format!("layer.{number}.locality"), &[rows, 3], &all),
        Named::floats(format!("layer.{number}.within"), &[sides], &within(&of_all)),
        Named::floats(format!("layer.{number}.heads.within"), &[rows - 1, sides], &by_head),
    ]
}

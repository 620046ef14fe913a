//! What a client is told: the spectrum, as JSON, as arrays or as a sheet of pictures.

use axum::Json;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use utoipa::ToSchema;
use windowpane_diffusion::Prediction;
use windowpane_diffusion::harmonicity::Harmonicity;

use super::super::about::Looked;
use super::super::output::{File, Output};
use crate::analysis::jacobian::{Method, Spectrum};
use crate::analysis::sheet::{Direction, Sheet};
use crate::analysis::subject::Subject;
use crate::encode::{self, ArrayFile, Encoding, Named};
use crate::error::ApiError;
use crate::extract::Form;
use crate::model::{Card, Model};

/// What was looked at.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = JacobianSubject)]
pub struct About {
    #[serde(flatten)]
    looked: Looked,
    /// What was differentiated: `x0`, `eps` or `v`.
    #[schema(example = "x0")]
    pub of: &'static str,
    /// The scale of the guidance that was differentiated with it; null without.
    #[schema(required)]
    pub guided: Option<f64>,
    /// `top-k` or `full`.
    #[schema(example = "top-k")]
    pub method: &'static str,
}

/// The spectrum of a Jacobian.
#[derive(Debug, Serialize, ToSchema)]
pub struct JacobianResponse {
    /// What was looked at.
    pub about: About,
    /// Values of an image: rows and columns of the matrix.
    #[schema(example = 784)]
    pub dimension: usize,
    /// Singular values, the largest first: all of them, or `k`, of which the first `converged` are the largest.
    pub singular_values: Vec<f64>,
    /// How harmonic the first `k` right singular vectors are.
    pub harmonicity: Vec<HarmonicityObject>,
    /// Of `top-k`: within what distance of each there is a singular value of the matrix, which beyond the first `converged` need
    /// not be the one of that rank; null of `full`.
    #[schema(required)]
    pub residuals: Option<Vec<f64>>,
    /// Of `top-k`: the first so many are as exact as was asked.
    #[schema(required)]
    pub converged: Option<usize>,
    /// Of `top-k`: steps that it took.
    #[schema(required)]
    pub iterations: Option<usize>,
    /// Of `full`: what only the whole matrix tells; null of `top-k`.
    #[schema(required)]
    pub whole: Option<WholeObject>,
    /// `json`, or the file that is in `b64_json`.
    #[schema(example = "json")]
    pub output_format: &'static str,
    /// The file in base64, where one was asked for; else null.
    #[schema(required)]
    pub b64_json: Option<String>,
}

/// What only the whole matrix tells.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JacobianWhole)]
pub struct WholeObject {
    /// The Frobenius norm.
    pub norm: f64,
    /// How far it is from being symmetric: `|J - J^T| / |J|` in the Frobenius norm, 0 to 2.
    pub asymmetry: f64,
    /// Eigenvalues of the symmetric part `(J + J^T) / 2`, the largest first.
    pub eigenvalues: Vec<f64>,
    /// How harmonic the first `k` of its eigenvectors are.
    pub harmonicity: Vec<HarmonicityObject>,
}

/// How harmonic a direction is.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[schema(as = Harmonicity)]
pub struct HarmonicityObject {
    /// The ring of frequencies with the most energy: cycles along the image's longer side.
    pub band: usize,
    /// The share of the energy in it: 1 of a wave, little of noise.
    pub share: f64,
}

/// What of it is told.
#[derive(Debug)]
pub(super) struct Told {
    /// Which directions a picture shows.
    pub(super) vectors: Vectors,
    /// And which of them.
    pub(super) show: Vec<usize>,
    /// Whether the matrix itself is in the file.
    pub(super) matrix: bool,
    /// Whether there is a whole matrix.
    pub(super) is_full: bool,
    /// Vectors.
    pub(super) count: usize,
}

/// Directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vectors {
    Right,
    Left,
    Eigen,
}

// === impl About ===

impl About {
    pub(super) fn new(
        card: &Card,
        subject: &Subject,
        of: Prediction,
        guided: Option<f64>,
        method: Method,
    ) -> Self {
        let method = if method == Method::Full { "full" } else { "top-k" };
        Self { looked: Looked::new(card, subject), of: of.as_str(), guided, method }
    }
}

// === impl HarmonicityObject ===

impl From<&Harmonicity> for HarmonicityObject {
    fn from(found: &Harmonicity) -> Self {
        Self { band: found.band, share: found.share }
    }
}

/// The answer.
pub(super) fn respond(
    model: &Model,
    about: About,
    found: &Spectrum,
    told: &Told,
    output: Output,
) -> Result<Response, ApiError> {
    let text = serde_json::to_string(&about).map_err(|error| ApiError::internal(error.to_string()))?;
    let file = output.file.map(|file| bytes(file, &text, found, told)).transpose()?;
    let harmonicity = |all: &[Harmonicity]| all.iter().map(HarmonicityObject::from).collect();
    if output.form == Form::Json {
        return Ok(Json(JacobianResponse {
            about,
            dimension: found.shape.iter().product(),
            singular_values: found.singular.values.clone(),
            harmonicity: harmonicity(&found.harmonicity),
            residuals: found.part.as_ref().map(|part| part.residuals.clone()),
            converged: found.part.as_ref().map(|part| part.converged),
            iterations: found.part.as_ref().map(|part| part.steps),
            whole: found.whole.as_ref().map(|whole| WholeObject {
                norm: whole.matrix.norm(),
                asymmetry: whole.matrix.asymmetry(),
                eigenvalues: whole.eigen.values.clone(),
                harmonicity: harmonicity(&whole.harmonicity),
            }),
            output_format: output.as_str(),
            b64_json: file.as_ref().map(|file| STANDARD.encode(file)),
        })
        .into_response());
    }
    output.respond(model, &text, file.unwrap_or_default())
}

/// The bytes of a file.
fn bytes(file: File, about: &str, found: &Spectrum, told: &Told) -> Result<Vec<u8>, ApiError> {
    let internal = |error: &dyn std::fmt::Display| ApiError::internal(error.to_string());
    match file {
        File::Picture => {
            let sheet = Sheet::new(found.shape, told.show.len());
            let picture = sheet.draw(&directions(found, told));
            picture.encode(Encoding::Png, Some(about)).map_err(|error| internal(&error))
        }
        File::Arrays(ArrayFile::Safetensors) => {
            encode::safetensors(&tensors(found, told), "about", about).map_err(|error| internal(&error))
        }
        File::Arrays(_) => {
            encode::npz(&tensors(found, told), "about", about).map_err(|error| internal(&error))
        }
    }
}

/// Those that a picture shows; fewer where the matrix has fewer.
fn directions<'a>(found: &'a Spectrum, told: &Told) -> Vec<Direction<'a>> {
    let (values, vectors) = match (told.vectors, &found.whole) {
        (Vectors::Eigen, Some(whole)) => (&whole.eigen.values, &whole.eigen.vectors),
        (Vectors::Left, _) => (&found.singular.values, &found.singular.left),
        _ => (&found.singular.values, &found.singular.right),
    };
    let direction = |&number: &usize| {
        let (value, vector) = (*values.get(number)?, vectors.get(number)?);
        Some(Direction { number, value, vector })
    };
    told.show.iter().filter_map(direction).collect()
}

/// The arrays of a file.
fn tensors(found: &Spectrum, told: &Told) -> Vec<Named> {
    let [channels, height, width] = found.shape;
    let line = |name: &str, values: &[f64]| {
        let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
        Named::floats(name, &[values.len()], &values)
    };
    let images = |name: &str, vectors: &[Vec<f64>]| {
        let values: Vec<f32> = vectors.iter().flatten().map(|&value| value as f32).collect();
        Named::floats(name, &[vectors.len(), channels, height, width], &values)
    };
    let shares = |all: &[Harmonicity]| all.iter().map(|one| one.share).collect::<Vec<_>>();
    let bands = |all: &[Harmonicity]| all.iter().map(|one| one.band as i64).collect::<Vec<_>>();
    let mut all = vec![
        Named::floats("x_t", &found.shape, &found.x),
        line("singular_values", &found.singular.values),
        images("left", &found.singular.left),
        images("right", &found.singular.right),
        line("harmonicity", &shares(&found.harmonicity)),
        Named::integers("band", bands(&found.harmonicity)),
    ];
    if let Some(part) = &found.part {
        all.push(line("residuals", &part.residuals));
    }
    if let Some(whole) = &found.whole {
        all.push(line("eigenvalues", &whole.eigen.values));
        all.push(images("eigenvectors", &whole.eigen.vectors));
        if told.matrix {
            let side = whole.matrix.side();
            let values: Vec<f32> = whole.matrix.values().iter().map(|&value| value as f32).collect();
            all.push(Named::floats("jacobian", &[side, side], &values));
        }
    }
    all
}

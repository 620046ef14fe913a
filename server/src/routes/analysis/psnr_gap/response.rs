//! What a client is told: the gap or one set's PSNR, as JSON, as a table or as a plot.

use axum::Json;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use utoipa::ToSchema;
use windowpane_diffusion::psnr_gap::{Psnr, PsnrGap};

use super::super::output::Output;
use crate::analysis::plot;
use crate::analysis::psnr_gap::Measured;
use crate::encode::Encoding;
use crate::error::ApiError;
use crate::extract::Form;
use crate::model::{Card, Model};
use crate::spec::Seed;

/// What was measured.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = PsnrGapSubject)]
pub struct About {
    /// The model.
    #[schema(example = "fashion-dit")]
    pub model: String,
    /// Its identity: the sha256 of its manifest.
    pub digest: String,
    /// `upload`, or `reference`: the package's own images.
    #[schema(example = "upload")]
    pub source: &'static str,
    /// What the network was told of the images of each side: their `class`, or `none`.
    #[schema(example = json!(["class", "class"]))]
    pub labels: Vec<&'static str>,
    /// Images of each side.
    #[schema(example = json!([300, 300]))]
    pub images: Vec<usize>,
    /// The seed of the noise and of the bootstrap, a decimal string.
    #[schema(value_type = String, example = "0")]
    pub seed: Seed,
}

/// How well a model denoises what it has seen and what it has not.
#[derive(Debug, Serialize, ToSchema)]
pub struct PsnrGapResponse {
    /// What was measured.
    pub about: About,
    /// Of two sets: the gap; null of one.
    #[schema(required)]
    pub gap: Option<GapObject>,
    /// Of one set: its PSNR; null of two.
    #[schema(required)]
    pub psnr: Option<AloneObject>,
    /// `json`, or the file that is in `b64_json`.
    #[schema(example = "json")]
    pub output_format: &'static str,
    /// The file in base64, where one was asked for; else null.
    #[schema(required)]
    pub b64_json: Option<String>,
}

/// The gap between two sets. All in dB; intervals hold 95 % of a bootstrap over the images.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PsnrGap)]
pub struct GapObject {
    /// The mean over timesteps of the gap at each, where what is below 0 counts as 0: as the paper has it.
    pub gap: f64,
    /// Its interval.
    pub interval: [f64; 2],
    /// The difference of the two means: the gap where nothing counts as 0.
    pub unclipped: f64,
    /// Its interval.
    pub unclipped_interval: [f64; 2],
    /// Timesteps, ascending: the more noise, the later.
    pub timesteps: Vec<usize>,
    /// The gap at each, 0 at least.
    pub curve: Vec<f64>,
    /// The images that were seen.
    pub train: PsnrObject,
    /// The images that were not.
    pub test: PsnrObject,
}

/// PSNR of one set by itself.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PsnrAlone)]
pub struct AloneObject {
    /// Timesteps, ascending.
    pub timesteps: Vec<usize>,
    #[serde(flatten)]
    psnr: PsnrObject,
}

/// PSNR of the one-step estimates of a set, in dB; intervals hold 95 % of a bootstrap over the images.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Psnr)]
pub struct PsnrObject {
    /// Images measured.
    pub images: usize,
    /// Mean over timesteps.
    pub mean: f64,
    /// Its interval.
    pub interval: [f64; 2],
    /// The mean over images at each timestep.
    pub curve: Vec<f64>,
    /// Their intervals.
    pub intervals: Vec<[f64; 2]>,
}

/// A file of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum File {
    /// The curves as a table.
    Table,
    /// The plot as a drawing.
    Drawing,
    /// The plot as pixels.
    Picture,
}

// === impl About ===

impl About {
    pub(super) fn new(card: &Card, source: &'static str, seed: u64) -> Self {
        let model = card.manifest.name.clone();
        let (labels, images) = (Vec::new(), Vec::new());
        Self { model, digest: card.digest.clone(), source, labels, images, seed: Seed(seed) }
    }

    fn to_json(&self) -> Result<String, ApiError> {
        serde_json::to_string(self).map_err(|error| ApiError::internal(error.to_string()))
    }
}

impl From<&Psnr> for PsnrObject {
    fn from(psnr: &Psnr) -> Self {
        let Psnr { images, mean, interval, curve, intervals } = psnr.clone();
        Self { images, mean, interval, curve, intervals }
    }
}

impl From<&PsnrGap> for GapObject {
    fn from(gap: &PsnrGap) -> Self {
        Self {
            gap: gap.gap,
            interval: gap.interval,
            unclipped: gap.unclipped,
            unclipped_interval: gap.unclipped_interval,
            timesteps: gap.timesteps.clone(),
            curve: gap.curve.clone(),
            train: (&gap.train).into(),
            test: (&gap.test).into(),
        }
    }
}

/// The answer.
pub(super) fn respond(
    model: &Model,
    about: About,
    measured: &Measured,
    output: Output<File>,
) -> Result<Response, ApiError> {
    let text = about.to_json()?;
    let file = output.file.map(|file| bytes(file, &text, measured)).transpose()?;
    if output.form != Form::Json {
        return output.respond(model, &text, file.unwrap_or_default());
    }
    let (gap, psnr) = match measured {
        Measured::Two(gap) => (Some(gap.into()), None),
        Measured::One { timesteps, psnr } => {
            (None, Some(AloneObject { timesteps: timesteps.clone(), psnr: psnr.into() }))
        }
    };
    let (output_format, b64_json) = (output.as_str(), file.map(|file| STANDARD.encode(file)));
    Ok(Json(PsnrGapResponse { about, gap, psnr, output_format, b64_json }).into_response())
}

/// The bytes of a file.
fn bytes(file: File, about: &str, measured: &Measured) -> Result<Vec<u8>, ApiError> {
    let internal = |error: &dyn std::error::Error| ApiError::internal(error.to_string());
    match file {
        File::Table => Ok(match measured {
            Measured::Two(gap) => gap.csv(),
            Measured::One { timesteps, psnr } => psnr.csv(timesteps),
        }
        .into_bytes()),
        File::Drawing => plot::svg(measured).map(String::into_bytes).map_err(|error| internal(&error)),
        File::Picture => {
            let picture = plot::picture(measured).map_err(|error| internal(&error))?;
            picture.encode(Encoding::Png, Some(about)).map_err(|error| internal(&error))
        }
    }
}

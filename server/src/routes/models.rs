//! The models that serve: OpenAI's list and object, and all that a client needs to ask for images.

mod strengths;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use windowpane_diffusion::{Sampler, TimeGrid};

use crate::app::App;
use crate::batcher::Caller;
use crate::engine::Provider;
use crate::engine::check::{Determinism, GoldenReport};
use crate::error::{ApiError, ErrorBody};
use crate::extract::{Form, ModelId};
use crate::keys::Identity;
use crate::model::Model;
use crate::model::load::dtype_name;
use crate::sampler::{Trajectory, Unit};
use crate::spec::{MAX_IMAGES, MAX_PREVIEWS, MAX_SIDE, SampleSpec};
use strengths::StrengthObject;

/// A list of models.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    #[schema(example = "list")]
    pub object: &'static str,
    /// The models, in order of name.
    pub data: Vec<ModelObject>,
}

/// A model: OpenAI's four fields, and ours.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelObject {
    /// The name to ask for.
    #[schema(example = "fashion-dit")]
    pub id: String,
    /// `model`.
    #[schema(example = "model")]
    pub object: &'static str,
    /// When the package came to this server's disk, in seconds since 1970.
    pub created: u64,
    /// `windowpane`.
    #[schema(example = "windowpane")]
    pub owned_by: &'static str,
    /// A sentence for people.
    pub description: String,
    /// Licence of weights and data.
    pub licence: String,
    /// sha256 of the package's manifest, which pins every file: the model's identity.
    pub digest: String,
    /// Native size, width × height in pixels.
    #[schema(example = "28x28")]
    pub size: String,
    /// 1: grey, 3: RGB.
    pub channels: usize,
    /// The classes; empty for a model without.
    pub classes: Vec<ClassObject>,
    /// Samplers that a request may name.
    #[schema(example = json!(["ddpm", "ddim"]))]
    pub samplers: Vec<&'static str>,
    /// Samplers that take `eta`.
    #[schema(example = json!(["ddim"]))]
    pub eta_samplers: Vec<&'static str>,
    /// Files that `output_format` may name.
    #[schema(example = json!(["png", "npy"]))]
    pub output_formats: Vec<&'static str>,
    /// Time grids that a request may name.
    #[schema(example = json!(["uniform", "karras"]))]
    pub time_grids: Vec<&'static str>,
    /// What is used where a request does not say.
    pub defaults: Defaults,
    /// The largest values a request may ask for.
    pub limits: Limits,
    /// What the model runs on here.
    pub engine: Engine,
    /// What is promised about the bits of an image, as measured at load.
    pub determinism: Determinism,
    /// The replay of the trainer's outputs at load.
    pub golden: GoldenReport,
    /// Where the weights came from.
    pub lineage: LineageObject,
    /// How busy it is now.
    pub queue: QueueObject,
    /// The noise levels at which a picture may begin: what `strength` means with the default steps and time grid. Left
    /// out in the list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strengths: Option<Vec<StrengthObject>>,
    /// The model card, Markdown: what it was trained on, how well it does, what it is good for. Left out in the list, and
    /// where the package has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub card: Option<String>,
}

/// A class.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClassObject {
    /// The number to ask for.
    pub index: usize,
    /// The name to ask for.
    #[schema(example = "Sneaker")]
    pub name: String,
    /// Other words for it.
    pub aliases: Vec<String>,
}

/// Default values of a request's fields.
#[derive(Debug, Serialize, ToSchema)]
pub struct Defaults {
    /// Solver steps.
    pub steps: usize,
    /// Sampler.
    #[schema(example = "ddim")]
    pub sampler: &'static str,
    /// Time grid.
    #[schema(example = "uniform")]
    pub time_grid: &'static str,
    /// Guidance scale; 1 is none.
    pub guidance_scale: f64,
    /// Share of ancestral noise of `ddim`.
    pub eta: f64,
    /// Whether clean estimates are clipped.
    pub clip_x0: bool,
}

/// Largest values of a request's fields.
#[derive(Debug, Serialize, ToSchema)]
pub struct Limits {
    /// Images of one request.
    pub n: u64,
    /// Solver steps on the uniform and quadratic time grids.
    pub steps: usize,
    /// Solver steps on the Karras time grid.
    pub karras_steps: usize,
    /// Guidance scale.
    pub guidance_scale: f64,
    /// Longest side of an enlarged picture in pixels.
    pub side: usize,
    /// Previews of one image in a stream.
    pub partial_images: u64,
}

/// What a model runs on.
#[derive(Debug, Serialize, ToSchema)]
pub struct Engine {
    /// The execution provider.
    pub provider: Provider,
    /// What it computes in: `f32` or `f16`.
    #[schema(example = "f32")]
    pub dtype: &'static str,
    /// The graph's file in the package.
    #[schema(example = "denoiser.f32.onnx")]
    pub graph: String,
    /// Rows of a full tick; a guided image takes two.
    pub tick_rows: usize,
    /// Rows of one call of the network, as they were fastest; a larger tick runs in pieces.
    pub piece_rows: usize,
    /// Measured ticks, in order of their rows.
    pub buckets: Vec<Bucket>,
}

/// A measured tick.
#[derive(Debug, Serialize, ToSchema)]
pub struct Bucket {
    /// Rows in it.
    pub rows: usize,
    /// Milliseconds it took at load.
    pub milliseconds: f64,
}

/// How busy a model is.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueObject {
    /// Images that wait or run.
    pub images: usize,
    /// Of them, those that have not begun: the place of an image that comes now, though a short one may overtake them.
    pub waiting: usize,
    /// Seconds until all of them are done.
    pub backlog_seconds: f64,
    /// Seconds that one image with the defaults would take from now.
    pub eta_seconds: f64,
}

/// Where a model came from.
#[derive(Debug, Serialize, ToSchema)]
pub struct LineageObject {
    /// The data set.
    pub data: String,
    /// sha256 of its pixels and labels.
    pub data_sha256: String,
    /// Images trained on.
    pub images: usize,
    /// Seed of the training.
    pub seed: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Program and version.
    pub trainer: String,
    /// What was measured, by name.
    pub metrics: BTreeMap<String, f64>,
}

// === impl ModelObject ===

impl ModelObject {
    fn new(model: &Model, caller: Caller) -> Self {
        let (card, served) = (&model.card, &model.served);
        let (manifest, defaults, lineage) =
            (&card.manifest, &card.manifest.defaults, card.manifest.lineage.clone());
        let class = |(index, class): (usize, &windowpane_diffusion::manifest::Class)| ClassObject {
            index,
            name: class.name.clone(),
            aliases: class.aliases.clone(),
        };
        Self {
            id: manifest.name.clone(),
            object: "model",
            created: card.created,
            owned_by: "windowpane",
            description: manifest.description.clone(),
            licence: manifest.licence.clone(),
            digest: card.digest.clone(),
            size: format!("{}x{}", manifest.config.width, manifest.config.height),
            channels: manifest.config.channels,
            classes: manifest.classes.iter().enumerate().map(class).collect(),
            samplers: Sampler::ALL.map(Sampler::as_str).to_vec(),
            eta_samplers: vec![Sampler::Ddim.as_str()],
            output_formats: Form::FILES.map(Form::as_str).to_vec(),
            time_grids: TimeGrid::ALL.map(TimeGrid::as_str).to_vec(),
            defaults: Defaults {
                steps: defaults.steps,
                sampler: defaults.sampler.as_str(),
                time_grid: defaults.grid.as_str(),
                guidance_scale: defaults.guidance_scale,
                eta: defaults.eta,
                clip_x0: defaults.clip_x0,
            },
            limits: Limits {
                n: MAX_IMAGES,
                steps: card.schedule.len(),
                karras_steps: windowpane_diffusion::solver::MAX_KARRAS_STEPS,
                guidance_scale: windowpane_diffusion::guidance::MAX_SCALE,
                side: MAX_SIDE,
                partial_images: MAX_PREVIEWS,
            },
            engine: Engine {
                provider: served.provider,
                dtype: dtype_name(served.dtype),
                graph: served.graph.clone(),
                tick_rows: model.batcher.room(),
                piece_rows: served.piece.min(model.batcher.room()),
                buckets: served.costs.buckets().map(Bucket::of).collect(),
            },
            determinism: served.determinism.clone(),
            golden: served.golden.clone(),
            lineage: LineageObject {
                data: lineage.data,
                data_sha256: lineage.data_sha256,
                images: lineage.images,
                seed: lineage.seed,
                steps: lineage.steps,
                trainer: lineage.trainer,
                metrics: lineage.metrics,
            },
            queue: QueueObject::new(model, caller),
            strengths: None,
            card: None,
        }
    }
}

// === impl Bucket ===

impl Bucket {
    fn of((rows, time): (usize, Duration)) -> Self {
        Self { rows, milliseconds: time.as_secs_f64() * 1e3 }
    }
}

// === impl QueueObject ===

impl QueueObject {
    fn new(model: &Model, caller: Caller) -> Self {
        let standing = model.batcher.standing();
        let defaults = SampleSpec::defaults(&model.card);
        let unit = Unit::Sample(Trajectory::new(Arc::new(defaults), 0, model.batcher.elements()));
        Self {
            images: standing.images,
            waiting: standing.waiting,
            backlog_seconds: standing.backlog.as_secs_f64(),
            eta_seconds: model.batcher.expect(caller, &[unit]).as_secs_f64(),
        }
    }
}

/// The models that serve, with their classes, defaults and limits; empty while they load.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "models",
    responses((status = 200, description = "The models.", body = ModelList))
)]
pub async fn list(State(app): State<App>, identity: Identity) -> Json<ModelList> {
    Json(ModelList {
        object: "list",
        data: app.models().iter().map(|model| ModelObject::new(model, identity.caller)).collect(),
    })
}

/// One model.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "models",
    params(("id" = String, Path, description = "The model's name.", example = "fashion-dit")),
    responses(
        (status = 200, description = "The model.", body = ModelObject),
        (status = 404, description = "No model of this name.", body = ErrorBody),
        (status = 503, description = "The models are still loading.", body = ErrorBody),
    )
)]
pub async fn get(
    State(app): State<App>,
    identity: Identity,
    ModelId(id): ModelId,
) -> Result<Json<ModelObject>, ApiError> {
    let model = app.model(Some(&id))?;
    let (card, strengths) = (model.card.text.clone(), Some(StrengthObject::all(&model.card)));
    Ok(Json(ModelObject { card, strengths, ..ModelObject::new(&model, identity.caller) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::engine::fake::Faults;
    use crate::metrics::Metrics;
    use crate::testing::manifest;

    /// Every package of this repository is square: on none of them is it seen.
    #[test]
    fn width_comes_before_height() {
        let manifest = manifest("shoes", &["Sneaker"]);
        let model = Model::fake(manifest, Faults::default(), &Config::default(), &Metrics::new()).unwrap();
        assert_eq!(ModelObject::new(&model, Caller::ANONYMOUS).size, "6x4");
    }
}

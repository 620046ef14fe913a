//! What a client is told: the images and every value that was used, as JSON or in headers beside a raw file.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use utoipa::ToSchema;
use windowpane_diffusion::error::number;

use super::outputs::Encoded;
use crate::app::workbench::Workbench;
use crate::engine::check::DeterminismClass;
use crate::error::ApiError;
use crate::extract::Form;
use crate::model::Model;
use crate::provenance::Provenance;
use crate::spec::{Order, SampleSpec, Seed};

/// The generated images, and every value that was used, given or not.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImageResponse {
    /// When, in seconds since 1970.
    pub created: u64,
    /// The images, in order of their seeds.
    pub data: Vec<ImageObject>,
    /// The model.
    #[schema(example = "fashion-dit")]
    pub model: String,
    /// Its identity: the sha256 of its manifest.
    pub digest: String,
    /// The class's name; null for a model without classes.
    #[schema(required, example = "Sneaker")]
    pub class: Option<String>,
    /// The class's index.
    #[schema(required)]
    pub class_index: Option<usize>,
    /// Width × height of the pictures in pixels.
    #[schema(example = "28x28")]
    pub size: String,
    /// Pixels of a picture for one of the model's, along each side: 1 is native, more is nearest neighbour.
    pub upscaled: usize,
    /// `png`, `webp`, `jpeg`, `npy`, `npz` or `safetensors`.
    #[schema(example = "png")]
    pub output_format: &'static str,
    /// `opaque`: no picture has an alpha channel.
    #[schema(example = "opaque")]
    pub background: &'static str,
    /// Solver steps.
    pub steps: usize,
    /// Sampler.
    #[schema(example = "ddim")]
    pub sampler: &'static str,
    /// Time grid.
    #[schema(example = "uniform")]
    pub time_grid: &'static str,
    /// Guidance scale.
    pub guidance_scale: f64,
    /// Share of ancestral noise.
    pub eta: f64,
    /// Whether clean estimates were clipped.
    pub clip_x0: bool,
    /// Whether the same request gives the same bytes whatever else the server does, as measured at load.
    pub determinism: DeterminismClass,
}

/// One image.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImageObject {
    /// The file, base64.
    pub b64_json: String,
    /// The effective seed, a decimal string: with it and n = 1 this image comes again.
    #[schema(value_type = String, example = "7")]
    pub seed: Seed,
    /// How it came about: what a PNG carries inside.
    pub provenance: Provenance,
}

// === impl ImageResponse ===

impl ImageResponse {
    pub(super) fn new(model: &Model, order: &Order, images: Vec<Encoded>) -> Self {
        let SampleSpec { class, guidance_scale, ref solver, .. } = *order.spec;
        let (manifest, scale) = (&model.card.manifest, order.output.scale);
        let object = |image: Encoded| ImageObject {
            b64_json: STANDARD.encode(&image.bytes),
            seed: image.provenance.seed,
            provenance: image.provenance,
        };
        Self {
            created: now(),
            data: images.into_iter().map(object).collect(),
            model: manifest.name.clone(),
            digest: model.card.digest.clone(),
            class: class.map(|class| manifest.classes[class].name.clone()),
            class_index: class,
            size: shown_size(order.picture_size(&model.card)),
            upscaled: scale,
            output_format: order.output.file.as_str(),
            background: "opaque",
            steps: solver.steps,
            sampler: solver.sampler.as_str(),
            time_grid: solver.grid.as_str(),
            guidance_scale,
            eta: solver.eta,
            clip_x0: solver.clip_x0,
            determinism: model.served.determinism.class,
        }
    }
}

/// All of it as JSON, written where files are: base64 of many megabytes takes a while.
pub(super) async fn json(
    bench: &Workbench,
    model: &Arc<Model>,
    order: Order,
    images: Vec<Encoded>,
) -> Result<Response, ApiError> {
    let model = Arc::clone(model);
    let write = move || serde_json::to_vec(&ImageResponse::new(&model, &order, images));
    let json = bench.compute(write).await?.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// `28x28`.
pub(super) fn shown_size([width, height]: [usize; 2]) -> String {
    format!("{width}x{height}")
}

/// Seconds since 1970. A clock before that is wrong; 0 says so.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

/// One file as it is, with what describes it in headers.
pub(super) fn raw(
    form: Form,
    model: &Model,
    order: &Order,
    images: Vec<Encoded>,
) -> Result<Response, ApiError> {
    let image = images.into_iter().next().ok_or_else(|| ApiError::internal("an order without images"))?;
    let spec = &order.spec;
    let mut headers = vec![
        ("x-provenance", image.provenance.to_ascii()),
        ("x-seed", image.provenance.seed.0.to_string()),
        ("x-model", model.name().to_owned()),
        ("x-model-digest", model.card.digest.clone()),
        ("x-steps", spec.solver.steps.to_string()),
        ("x-sampler", spec.solver.sampler.to_string()),
        ("x-time-grid", spec.solver.grid.to_string()),
        ("x-guidance-scale", number(spec.guidance_scale)),
        ("x-upscaled", order.output.scale.to_string()),
    ];
    // The index, since a name may hold letters that a header cannot.
    headers.extend(spec.class.map(|class| ("x-class-index", class.to_string())));
    let mut response = image.bytes.into_response();
    let map = response.headers_mut();
    map.insert(header::CONTENT_TYPE, HeaderValue::from_static(form.media_type()));
    for (name, value) in headers {
        let value = HeaderValue::try_from(value).map_err(|error| ApiError::internal(error.to_string()))?;
        map.insert(HeaderName::from_static(name), value);
    }
    Ok(response)
}

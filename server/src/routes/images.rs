//! Images: the shape of the OpenAI images API, and the fields of diffusion.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windowpane_diffusion::error::number;

use crate::app::App;
use crate::batcher::Sample;
use crate::call::Call;
use crate::encode::{EncodeError, Encoding, Picture, enlarge};
use crate::engine::check::DeterminismClass;
use crate::error::{ApiError, ErrorBody};
use crate::extract::{Accept, ApiJson, Form};
use crate::middleware::track::Stages;
use crate::model::{Card, Model};
use crate::spec::{ClassRef, Order, Output, PictureFile, SampleSpec, SamplerName, Seed, TimeGridName};

/// What to generate. The first group is the OpenAI images API, whose every field is known: values that ask for what
/// this server does not do are refused, not ignored, and so are unknown fields. The second group is ours.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"model": "fashion-dit", "prompt": "sneaker", "seed": 7}))]
pub struct ImageRequest {
    /// Name of the model; may be left out where only one is served.
    pub model: Option<String>,
    /// A class of the model, by name or alias in any case. A model without classes takes the empty prompt or its own
    /// name.
    pub prompt: Option<String>,
    /// Images to generate; image i is the n = 1 image of seed + i.
    #[schema(minimum = 1, maximum = 10, default = 1)]
    pub n: Option<u64>,
    /// `auto`, the model's native size, or an integer multiple of it (nearest neighbour, as `upscaled` in the response
    /// says).
    #[schema(example = "auto", default = "auto", pattern = "^(auto|[0-9]+x[0-9]+)$")]
    pub size: Option<String>,
    /// Only `b64_json`.
    #[schema(pattern = "^b64_json$")]
    pub response_format: Option<String>,
    /// `png`, `webp` (lossless) or `jpeg`.
    #[schema(default = "png", pattern = "^(png|webp|jpeg)$")]
    pub output_format: Option<String>,
    /// Quality of a JPEG, 95 unless given; 100 for the lossless formats.
    #[schema(minimum = 0, maximum = 100)]
    pub output_compression: Option<u64>,
    /// Only `auto`: `steps` decides quality here.
    #[schema(pattern = "^auto$")]
    pub quality: Option<String>,
    /// Not supported.
    pub style: Option<String>,
    /// `auto` or `opaque`.
    #[schema(pattern = "^(auto|opaque)$")]
    pub background: Option<String>,
    /// `auto` or `low`; nothing is filtered.
    #[schema(pattern = "^(auto|low)$")]
    pub moderation: Option<String>,
    /// Only false.
    pub stream: Option<bool>,
    /// Only 0.
    #[schema(minimum = 0, maximum = 0)]
    pub partial_images: Option<u64>,
    /// The caller's name for its user; neither used nor kept.
    pub user: Option<String>,

    /// Seed of the first image, 0 to 2^63 - 1, as a number or a decimal string; random unless given, and returned. The
    /// same model, fields and seed give the same image.
    #[schema(value_type = Option<Seed>)]
    pub seed: Option<Seed>,
    /// Solver steps, at most the timesteps of the model's schedule.
    #[schema(minimum = 1, maximum = 1000)]
    pub steps: Option<u64>,
    /// The sampler.
    #[schema(value_type = Option<SamplerName>, example = "ddim")]
    pub sampler: Option<String>,
    /// How the steps are spread over the noise levels.
    #[schema(value_type = Option<TimeGridName>, example = "uniform")]
    pub time_grid: Option<String>,
    /// Scale of classifier-free guidance; 1 is none.
    #[schema(minimum = 0.0, maximum = 100.0)]
    pub guidance_scale: Option<f64>,
    /// Share of ancestral noise; only `ddim` has one.
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub eta: Option<f64>,
    /// Whether every clean estimate is clipped to the pixels' range.
    pub clip_x0: Option<bool>,
    /// A class by index or name; instead of a prompt, or the same as it.
    #[schema(value_type = Option<ClassRef>)]
    pub class: Option<ClassRef>,
    /// Milliseconds that the answer is worth waiting for, as in the header `x-request-timeout-ms`; of two the shorter
    /// counts. What cannot be done in time is refused at once.
    #[schema(minimum = 1, maximum = 3_600_000)]
    pub timeout_ms: Option<u64>,
    /// Insist on the same bits in any company; needed only where `determinism` says `tolerance`.
    pub reproducible: Option<bool>,
}

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
    /// `png`, `webp` or `jpeg`.
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
    /// The picture file, base64.
    pub b64_json: String,
    /// The effective seed, a decimal string: with it and n = 1 this image comes again.
    #[schema(value_type = String, example = "7")]
    pub seed: Seed,
}

/// A picture file and its seed.
struct Encoded {
    seed: Seed,
    bytes: Vec<u8>,
}

/// Generate images.
///
/// JSON with base64 unless `accept` prefers `image/png`, `image/webp` or `image/jpeg`; then, for n = 1, the bytes of
/// the picture, with what was used in `x-…` headers. `server-timing` tells how long it was queued, denoised and
/// encoded.
#[utoipa::path(
    post,
    path = "/v1/images/generations",
    tag = "images",
    request_body = ImageRequest,
    responses(
        (status = 200, description = "The images.", content(
            (ImageResponse = "application/json"),
            (PictureFile = "image/png"),
            (PictureFile = "image/webp"),
            (PictureFile = "image/jpeg"),
        ), headers(
            ("server-timing" = String, description = "Milliseconds of `queue`, `denoise`, `encode` and `total`."),
            ("x-seed" = String, description = "The effective seed, with raw bytes."),
        )),
        (status = 400, description = "The body is not JSON.", body = ErrorBody),
        (status = 401, description = "No key that is known here.", body = ErrorBody),
        (status = 403, description = "The key may not do that.", body = ErrorBody),
        (status = 404, description = "No such model.", body = ErrorBody),
        (status = 406, description = "Nothing that `accept` allows can be produced.", body = ErrorBody),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody),
        (status = 409, description = "Somebody cancelled the request.", body = ErrorBody),
        (status = 413, description = "The body is too large.", body = ErrorBody),
        (status = 415, description = "The body's type is not JSON.", body = ErrorBody),
        (status = 422, description = "A field is unknown or holds what is not accepted; `param` names it.", body = ErrorBody),
        (status = 429, description = "Too much is waiting, or it cannot be done in time; `retry-after` says when there will be room, which is kept for whoever comes back with the same request.", body = ErrorBody,
            headers(("retry-after" = u64, description = "Seconds until there is room for this request."))),
        (status = 500, description = "The engine failed.", body = ErrorBody),
        (status = 503, description = "Loading or shutting down.", body = ErrorBody),
        (status = 504, description = "The time given for the request has passed.", body = ErrorBody),
    )
)]
pub async fn generate(
    State(app): State<App>,
    call: Call,
    Ok(accept): Result<Accept, std::convert::Infallible>,
    ApiJson(request): ApiJson<ImageRequest>,
) -> Result<Response, ApiError> {
    let model = app.model(request.model.as_deref())?;
    let order = Order::resolve(&request, &accept, &model.card)?;
    let call = call.asking(&request).within("timeout_ms", request.timeout_ms)?;
    let call = call.reproducible(request.reproducible, &model)?;
    let samples = call.submit(&app, &model, order.units(model.batcher.elements()))?.finish().await?;
    let mut stages = stages(&samples);
    let (images, encode) = encode(&model, samples, order.output).await?;
    app.metrics().encode.with_label_values(&[model.name()]).observe(encode.as_secs_f64());
    stages.encode = encode;
    let mut response = match order.output.form {
        Form::Json => Json(ImageResponse::new(&model, &order, images)).into_response(),
        form => raw(form, &model, &order, images)?,
    };
    response.extensions_mut().insert(stages);
    Ok(response)
}

/// The stages of a request: its images are admitted together, and it is done when the last one is.
pub(super) fn stages(samples: &[Sample]) -> Stages {
    let queue = samples.iter().map(|sample| sample.queue).min().unwrap_or_default();
    let end = samples.iter().map(|sample| sample.queue + sample.denoise).max().unwrap_or_default();
    Stages { queue, denoise: end - queue, encode: Duration::ZERO }
}

/// Pixels and files, off the async threads: a large PNG takes a while.
async fn encode(
    model: &Model,
    samples: Vec<Sample>,
    output: Output,
) -> Result<(Vec<Encoded>, Duration), ApiError> {
    let card = std::sync::Arc::clone(&model.card);
    let work = move || {
        let start = Instant::now();
        let encoded = samples.into_iter().map(|sample| Encoded::new(&sample, &card, output)).collect();
        (encoded, start.elapsed())
    };
    let (encoded, elapsed): (Result<Vec<_>, EncodeError>, _) = tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ApiError::internal(format!("the encoder ended early: {error}")))?;
    Ok((encoded.map_err(|error| ApiError::internal(error.to_string()))?, elapsed))
}

// === impl Encoded ===

impl Encoded {
    fn new(sample: &Sample, card: &Card, output: Output) -> Result<Self, EncodeError> {
        let config = &card.manifest.config;
        let picture = Picture::from_planar(
            &sample.values,
            card.colour,
            config.height,
            config.width,
            card.manifest.value_range,
        );
        let bytes = enlarge(&picture, output.scale).encode(output.encoding, None)?;
        Ok(Self { seed: Seed(sample.seed), bytes })
    }
}

// === impl ImageResponse ===

impl ImageResponse {
    fn new(model: &Model, order: &Order, images: Vec<Encoded>) -> Self {
        let SampleSpec { class, guidance_scale, ref solver, .. } = *order.spec;
        let (manifest, scale) = (&model.card.manifest, order.output.scale);
        let object =
            |image: Encoded| ImageObject { b64_json: STANDARD.encode(&image.bytes), seed: image.seed };
        Self {
            // A clock before 1970 is wrong; 0 says so.
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
            data: images.into_iter().map(object).collect(),
            model: manifest.name.clone(),
            digest: model.card.digest.clone(),
            class: class.map(|class| manifest.classes[class].name.clone()),
            class_index: class,
            size: format!("{}x{}", manifest.config.width * scale, manifest.config.height * scale),
            upscaled: scale,
            output_format: match order.output.encoding {
                Encoding::Png => "png",
                Encoding::Webp => "webp",
                Encoding::Jpeg { .. } => "jpeg",
            },
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

/// One picture as it is, with what describes it in headers.
fn raw(form: Form, model: &Model, order: &Order, images: Vec<Encoded>) -> Result<Response, ApiError> {
    let image = images.into_iter().next().ok_or_else(|| ApiError::internal("an order without images"))?;
    let spec = &order.spec;
    let mut headers = vec![
        ("x-seed", image.seed.0.to_string()),
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

#[cfg(test)]
mod tests;

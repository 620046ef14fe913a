//! Images: the shape of the OpenAI images API, and the fields of diffusion.

mod outputs;
mod request;
mod response;

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::batcher::Sample;
use crate::call::Call;
use crate::error::{ApiError, ErrorBody};
use crate::extract::{Accept, ApiJson, Form};
use crate::middleware::track::Stages;
use crate::provenance::{Provenance, StartNote};
use crate::spec::{FileBytes, Order};
use outputs::Made;

pub use request::ImageRequest;
pub use response::{ImageObject, ImageResponse};

/// Generate images.
///
/// JSON with base64 unless `accept` prefers the type of a file: a picture, for n = 1, or an array of the model's own
/// values. Then the bytes of that file, with what was used in `x-…` headers. A PNG, a `.npz` and a safetensors file
/// carry their provenance inside; every other answer has it beside. `server-timing` tells how long it was queued,
/// denoised and encoded.
#[utoipa::path(
    post,
    path = "/v1/images/generations",
    tag = "images",
    request_body = ImageRequest,
    responses(
        (status = 200, description = "The images.", content(
            (ImageResponse = "application/json"),
            (FileBytes = "image/png"),
            (FileBytes = "image/webp"),
            (FileBytes = "image/jpeg"),
            (FileBytes = "application/x-npy"),
            (FileBytes = "application/x-npz"),
            (FileBytes = "application/vnd.safetensors"),
        ), headers(
            ("server-timing" = String, description = "Milliseconds of `queue`, `denoise`, `encode` and `total`."),
            ("x-seed" = String, description = "The effective seed of the first image, with raw bytes."),
            ("x-provenance" = String, description = "How the first image came about, as JSON, with raw bytes."),
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
    let made = |sample: Sample| {
        let provenance = Provenance::new(&model, &order.spec, sample.seed, StartNote::Noise);
        Made { sample, frames: Vec::new(), provenance }
    };
    let images = samples.into_iter().map(made).collect();
    let (images, encode) = outputs::encode(&model.card, order.output, images).await?;
    app.metrics().encode.with_label_values(&[model.name()]).observe(encode.as_secs_f64());
    stages.encode = encode;
    let mut response = match order.output.form {
        Form::Json => Json(ImageResponse::new(&model, &order, images)).into_response(),
        form => response::raw(form, &model, &order, images)?,
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

#[cfg(test)]
mod tests;

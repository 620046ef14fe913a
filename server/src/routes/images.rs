//! Images: the shape of the OpenAI images API, and the fields of diffusion.

mod outputs;
pub mod request;
mod response;
mod stream;

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;

use crate::app::App;
use crate::batcher::{Event, Sample};
use crate::call::{Call, Running};
use crate::engine::check::DETERMINISM_HEADER;
use crate::error::{ApiError, ErrorBody};
use crate::extract::{Accept, ApiJson, Form};
use crate::middleware::track::Stages;
use crate::spec::{FileBytes, Order};
use outputs::{Made, Point};

pub use request::ImageRequest;
pub use response::{ImageObject, ImageResponse};
pub use stream::ImageEvent;

/// Generate images.
///
/// JSON with base64 unless `accept` prefers the type of a file: a picture, for n = 1, or an array of the model's own
/// values. Then the bytes of that file, with what was used in `x-…` headers. A PNG, a `.npz` and a safetensors file
/// carry their provenance inside; every other answer has it beside. `server-timing` tells how long it was queued,
/// denoised and encoded.
///
/// With `stream` the answer is server-sent events, `image_generation.partial_image` and then
/// `image_generation.completed` for each image; an `error` event, whose data is an error's body, ends a stream that
/// fails. Before the first event a comment, `: x-request-id: ID`, tells the id of the request, which every event holds
/// too. Hanging up gives the work up.
#[utoipa::path(
    post,
    path = "/v1/images/generations",
    tag = "images",
    request_body = ImageRequest,
    responses(
        (status = 200, description = "The images.", content(
            (ImageResponse = "application/json"),
            (ImageEvent = "text/event-stream"),
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
            ("x-determinism" = String, description = "`bitwise`, or `tolerance` and the largest relative difference that was measured at load."),
            ("x-eta-ms" = u64, description = "With `stream`: milliseconds until all images are done, as things stood at admission."),
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
        (status = 429, description = "Too much is waiting, or it cannot be done in time; `retry-after` says when there will be room. Where the work that waits is too much, the room is kept for whoever comes back with the same request.", body = ErrorBody,
            headers(("retry-after" = u64, description = "Seconds until there is room for this request."))),
        (status = 500, description = "The engine failed.", body = ErrorBody),
        (status = 503, description = "Loading, shutting down, or too many bodies at a time.", body = ErrorBody),
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
    let (id, bench) = (call.id.clone(), app.workbench(call.identity.caller));
    let call = call.answering(order.answer_bytes(&model.card));
    let frames = order.watch.bytes(order.seeds.len(), model.batcher.elements());
    let frames = call.room_for_frames(&app, &model, frames)?;
    let mut running = call.submit(&app, &model, order.units(model.batcher.elements()))?;
    if order.output.form == Form::Events {
        let promise = model.served.determinism.header();
        let mut response = stream::respond(bench, running, order, id, frames);
        response.headers_mut().insert(DETERMINISM_HEADER, promise);
        return Ok(response);
    }
    let images = finished(&mut running, &order).await?;
    let mut stages = stages(images.iter().map(|image| &image.sample));
    let (images, encode) = outputs::encode(&bench, &model.card, order.output, images, frames).await?;
    app.metrics().encode.with_label_values(&[model.name()]).observe(encode.as_secs_f64());
    stages.encode = encode;
    let mut response = match order.output.form {
        Form::Json => response::json(&bench, &model, order, images).await?,
        form => response::raw(form, &model, &order, images)?,
    };
    running.settle()?;
    response.headers_mut().insert(DETERMINISM_HEADER, model.served.determinism.header());
    response.extensions_mut().insert(stages);
    response.extensions_mut().insert(running.job());
    Ok(response)
}

/// Waits for all images of the order.
pub(super) async fn finished(running: &mut Running, order: &Order) -> Result<Vec<Made>, ApiError> {
    let mut frames = vec![Vec::new(); order.seeds.len()];
    let mut samples = vec![None; order.seeds.len()];
    while let Some(event) = running.next().await {
        match event? {
            Event::Frame { unit, frame } => frames[unit].push(Point { x: frame.x, x0: frame.x0 }),
            Event::Done { unit, sample } => samples[unit] = Some(sample),
        }
    }
    let images = samples.into_iter().flatten().zip(frames).enumerate();
    Ok(images
        .map(|(image, (sample, frames))| Made::new(running.model(), order, image, sample, frames))
        .collect())
}

/// The stages of a request: its images are admitted together, and it is done when the last one is.
pub(super) fn stages<'a>(samples: impl IntoIterator<Item = &'a Sample> + Clone) -> Stages {
    let queue = samples.clone().into_iter().map(|sample| sample.queue).min().unwrap_or_default();
    let end = samples.into_iter().map(|sample| sample.queue + sample.denoise).max().unwrap_or_default();
    Stages { queue, denoise: end - queue, encode: Duration::ZERO }
}

#[cfg(test)]
mod tests;

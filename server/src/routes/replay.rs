//! Is this picture what it says it is? Its provenance is read, its image is made again, and the pixels are compared.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::{App, Job};
use crate::call::Call;
use crate::decode::picture;
use crate::encode::{Picture, enlarge};
use crate::engine::check::Determinism;
use crate::error::{ApiError, Cause, ErrorBody};
use crate::extract::{Accept, PngUpload, UploadRequest};
use crate::model::Model;
use crate::provenance::{EngineNote, Provenance, StartNote};
use crate::routes::images::{ImageRequest, pixels};
use crate::spec::{ClassRef, FileBytes, MAX_SIDE, Order};

/// What came of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReplayResponse {
    /// Whether every pixel is the same.
    pub identical: bool,
    /// Pixels of the picture.
    #[schema(example = 784)]
    pub pixels: usize,
    /// Pixels that differ in any channel.
    #[schema(example = 0)]
    pub differing: usize,
    /// The largest difference of a channel, 0 to 255.
    #[schema(example = 0)]
    pub max_difference: u8,
    /// What the picture says of itself.
    pub provenance: Provenance,
    /// What computed it now; where it is not what computed it then, small differences are no surprise.
    pub engine: EngineNote,
    /// What is promised about bits here.
    pub determinism: Determinism,
}

/// Make an image again.
///
/// Takes a PNG of this server, as the body itself or as base64 in JSON, reads the provenance in it, samples the same image
/// with the same model and says whether the pixels are the same. Text that an editor removed, an image that began at an
/// upload and a trajectory cannot be made again, which is said by 422; another version of the model by 409.
#[utoipa::path(
    post,
    path = "/v1/replay",
    tag = "images",
    request_body(content((FileBytes = "image/png"), (UploadRequest = "application/json"))),
    responses(
        (status = 200, description = "It was made again, and compared.", body = ReplayResponse),
        (status = 400, description = "The body is not JSON.", body = ErrorBody),
        (status = 401, description = "No key that is known here.", body = ErrorBody),
        (status = 403, description = "The key may not do that.", body = ErrorBody),
        (status = 404, description = "No model of that name.", body = ErrorBody),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody),
        (status = 409, description = "Another version of the model is served; or somebody cancelled the request.", body = ErrorBody),
        (status = 413, description = "The body is too large.", body = ErrorBody),
        (status = 415, description = "The body's type is neither PNG nor JSON.", body = ErrorBody),
        (status = 422, description = "The picture does not say enough to be made again.", body = ErrorBody),
        (status = 429, description = "Too much is waiting, or it cannot be done in time.", body = ErrorBody,
            headers(("retry-after" = u64, description = "Seconds until there is room for this request."))),
        (status = 500, description = "The engine failed.", body = ErrorBody),
        (status = 503, description = "Loading or shutting down.", body = ErrorBody),
        (status = 504, description = "The time given for the request has passed.", body = ErrorBody),
    )
)]
pub async fn replay(
    State(app): State<App>,
    call: Call,
    PngUpload(file): PngUpload,
) -> Result<(Extension<Job>, Json<ReplayResponse>), ApiError> {
    let provenance = repeatable(&file)?;
    let model = model(&app, &provenance)?;
    let scale = provenance.upscaled;
    let (width, height) = (model.card.manifest.config.width, model.card.manifest.config.height);
    let size = [width, height]
        .map(|side| side.checked_mul(scale).filter(|&side| side <= MAX_SIDE.max(width.max(height))));
    let [Some(w), Some(h)] = size else {
        return Err(unfit(format!(
            "its provenance says that it was enlarged {scale} times, more than is done here"
        )));
    };
    let colour = model.card.colour;
    let theirs = app.compute(move || picture::png(&file, colour, [w, h])).await?;
    let theirs = theirs.map_err(|error| unfit(error.to_string()))?;
    let order = Order::resolve(&request(&provenance), &Accept::default(), &model.card)
        .map_err(|error| unfit(format!("in its provenance {}", error.message)))?;
    let promised = model.served.determinism.promises_bits();
    let call = call.asking(&provenance).reproducible(Some(promised), &model)?;
    let running = call.submit(&app, &model, order.units(model.batcher.elements()))?;
    let job = running.job();
    let mut samples = running.finish().await?;
    let sample = samples.pop().ok_or_else(|| ApiError::internal("an order without images"))?;
    let (card, seed) = (Arc::clone(&model.card), sample.seed);
    let draw = move || {
        let ours = enlarge(&pixels(&card, &sample.values), scale);
        compare(&ours, &theirs)
    };
    let (differing, max_difference) = app.compute(draw).await?;
    let response = ReplayResponse {
        identical: differing == 0,
        pixels: w * h,
        differing,
        max_difference,
        engine: Provenance::new(&model, &order.spec, seed, StartNote::Noise).engine,
        determinism: model.served.determinism.clone(),
        provenance,
    };
    Ok((Extension(job), Json(response)))
}

/// The provenance of a file, if an image can be made of it alone.
fn repeatable(file: &[u8]) -> Result<Provenance, ApiError> {
    if picture::size(file).is_none() {
        return Err(unfit("it is not a PNG"));
    }
    let note = picture::note(file).ok_or_else(|| {
        unfit("it does not say how it came about: another program wrote it, or took the text out")
    })?;
    let provenance = Provenance::read(note).map_err(|error| unfit(error.to_string()))?;
    match &provenance.start {
        StartNote::Noise => {}
        StartNote::XT { sha256 } => {
            return Err(unfit(format!(
                "it began at an uploaded `x_t` (sha256 {sha256}), which it does not hold"
            )));
        }
        StartNote::InitImage { sha256, .. } => {
            return Err(unfit(format!(
                "it began at an uploaded picture (sha256 {sha256}), which it does not hold"
            )));
        }
    }
    if provenance.trajectory.is_some() {
        return Err(unfit("it shows a trajectory, not one image"));
    }
    Ok(provenance)
}

/// The very model, by its digest.
fn model(app: &App, provenance: &Provenance) -> Result<Arc<Model>, ApiError> {
    let other = app.model(Some(&provenance.model))?;
    if other.card.digest == provenance.digest {
        return Ok(other);
    }
    Err(changed(other.name(), &provenance.digest, &other.card.digest))
}

/// What the picture of another version is told.
pub(crate) fn changed(model: &str, theirs: &str, ours: &str) -> ApiError {
    let message = format!("the image is of `{model}` with digest {theirs}; the one served here has {ours}");
    ApiError::new(Cause::ModelChanged, message).param("image")
}

/// The request that asks for the image; it is checked like any other.
fn request(provenance: &Provenance) -> ImageRequest {
    ImageRequest {
        class: provenance.class.as_ref().map(|class| ClassRef::Index(class.index as u64)),
        seed: Some(provenance.seed),
        steps: Some(provenance.steps as u64),
        sampler: Some(provenance.sampler.to_string()),
        time_grid: Some(provenance.time_grid.to_string()),
        guidance_scale: Some(provenance.guidance_scale),
        eta: Some(provenance.eta),
        clip_x0: Some(provenance.clip_x0),
        ..ImageRequest::default()
    }
}

/// Pixels that differ, and by how much at most.
fn compare(ours: &Picture, theirs: &Picture) -> (usize, u8) {
    let channels = ours.colour.channels();
    let pixels = ours.pixels.chunks_exact(channels).zip(theirs.pixels.chunks_exact(channels));
    let difference = |(a, b): (&[u8], &[u8])| a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
    pixels.map(difference).fold((0, 0), |(count, most), d| (count + usize::from(d > 0), most.max(d)))
}

/// A picture that cannot be made again.
fn unfit(what: impl std::fmt::Display) -> ApiError {
    ApiError::new(Cause::InvalidValue, format!("the picture cannot be made again: {what}")).param("image")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::Colour;

    #[test]
    fn pixels_are_compared_not_channels() {
        let picture =
            |pixels: [u8; 9]| Picture { width: 3, height: 1, colour: Colour::Rgb, pixels: pixels.to_vec() };
        let a = picture([0, 0, 0, 10, 10, 10, 255, 0, 0]);
        assert_eq!(compare(&a, &a), (0, 0));
        assert_eq!(compare(&a, &picture([0, 0, 0, 11, 9, 10, 0, 0, 0])), (2, 255));
    }
}

//! Is this picture what it says it is? Its provenance is read, its image is made again, and the pixels are compared.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::{App, Job};
use crate::call::Call;
use crate::decode::picture::{self, Exact, PictureError};
use crate::encode::Picture;
use crate::engine::check::Determinism;
use crate::error::{ApiError, Cause, ErrorBody};
use crate::extract::{Accept, PngUpload, UploadRequest};
use crate::middleware::track::Stages;
use crate::model::Model;
use crate::provenance::{EngineNote, Provenance, StartNote};
use crate::routes::images::{ImageRequest, finished, stages};
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
    /// The largest difference of a channel, 0 to 255, rounded up.
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
/// with the same model and says whether the pixels are the same: as the file has them, with all its colours and bits. A
/// strip of a trajectory is made again with all its steps. Text that an editor removed or that says what is not so of the
/// model and an image that began at an upload cannot be made again, which is said by 422; another version of the model by
/// 409.
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
        (status = 422, description = "The picture does not say enough to be made again, or what is not so of the model.", body = ErrorBody),
        (status = 429, description = "Too much is waiting, it cannot be done in time, or there is no memory for it now.", body = ErrorBody,
            headers(("retry-after" = u64, description = "Seconds until there is room for this request."))),
        (status = 500, description = "The engine failed.", body = ErrorBody),
        (status = 503, description = "Loading, shutting down, or too many bodies at a time.", body = ErrorBody),
        (status = 504, description = "The time given for the request has passed.", body = ErrorBody),
    )
)]
pub async fn replay(
    State(app): State<App>,
    call: Call,
    PngUpload(file): PngUpload,
) -> Result<(Extension<Job>, Extension<Stages>, Json<ReplayResponse>), ApiError> {
    let provenance = repeatable(&file)?;
    let model = model(&app, &provenance)?;
    let order = Order::resolve(&request(&provenance, &model)?, &Accept::default(), &model.card)
        .map_err(|error| unfit(format!("in its provenance {}", error.message)))?;
    let ours = Provenance::new(&model, &order.spec, provenance.seed.0, StartNote::Noise);
    agree(&provenance, &ours)?;
    let (size, elements) = (order.picture_size(&model.card), model.batcher.elements());
    let frames = order.watch.bytes(order.seeds.len(), elements);
    // Its own pixels wait for the others as frames do.
    let room = frames.saturating_add(pixels(&file, size)?);
    let most = app.config().frame_limit;
    if room > most {
        return Err(unfit(format!(
            "it takes {} MiB to compare, more than the {} that there are for it (`--frame-limit`)",
            room.div_ceil(1 << 20),
            most >> 20
        )));
    }
    let room = call.room_for_frames(&app, &model, room)?;
    let (bench, held) = (app.workbench(call.identity.caller), room.clone());
    // Who hangs up meanwhile does not free what is being unpacked.
    let unpack = move || {
        let theirs = picture::exact(&file, size);
        drop(held);
        theirs
    };
    let theirs = bench.compute(unpack).await?;
    let theirs = theirs.map_err(|error| unfit(error.to_string()))?;
    let promised = model.served.determinism.promises_bits();
    let call = call.asking(&provenance).reproducible(Some(promised), &model)?;
    let mut running = call.submit(&app, &model, order.units(elements))?;
    let image = finished(&mut running, &order).await?.pop();
    let image = image.ok_or_else(|| ApiError::internal("an order without images"))?;
    running.settle()?;
    let (card, drawn, scale) = (Arc::clone(&model.card), stages([&image.sample]), order.output.scale);
    let draw = move || {
        let drawn = image.picture(&card, scale);
        let compared = ([drawn.width, drawn.height] == size).then(|| compare(&drawn, &theirs));
        drop(room);
        compared
    };
    let began = Instant::now();
    let compared = bench.compute(draw).await?;
    let (differing, max_difference) =
        compared.ok_or_else(|| ApiError::internal("a picture that is not of the size of its order"))?;
    let stages = Stages { encode: began.elapsed(), ..drawn };
    let job = running.job();
    let response = ReplayResponse {
        identical: differing == 0,
        pixels: size[0] * size[1],
        differing,
        max_difference,
        engine: ours.engine,
        determinism: model.served.determinism.clone(),
        provenance,
    };
    Ok((Extension(job), Extension(stages), Json(response)))
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
    Ok(provenance)
}

/// Memory that the pixels of the file take. Errors: they are not of this size.
fn pixels(file: &[u8], expected: [usize; 2]) -> Result<usize, ApiError> {
    match picture::size(file) {
        Some(got) if got != expected => Err(unfit(PictureError::Size { got, expected }.to_string())),
        _ => picture::exact_bytes(file).ok_or_else(|| unfit("it is not a PNG")),
    }
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

/// The request that asks for the image; it is checked like any other. Errors: it was enlarged more than is done here.
fn request(provenance: &Provenance, model: &Model) -> Result<ImageRequest, ApiError> {
    let (config, scale) = (&model.card.manifest.config, provenance.upscaled);
    let native = [config.width, config.height];
    let most = MAX_SIDE.max(config.width.max(config.height));
    let [Some(width), Some(height)] = native.map(|side| side.checked_mul(scale).filter(|&side| side <= most))
    else {
        return Err(unfit(format!(
            "its provenance says that it was enlarged {scale} times, more than is done here"
        )));
    };
    Ok(ImageRequest {
        class: provenance.class.as_ref().map(|class| ClassRef::Index(class.index as u64)),
        seed: Some(provenance.seed),
        steps: Some(provenance.steps as u64),
        sampler: Some(provenance.sampler.to_string()),
        time_grid: Some(provenance.time_grid.to_string()),
        guidance_scale: Some(provenance.guidance_scale),
        eta: Some(provenance.eta),
        clip_x0: Some(provenance.clip_x0),
        size: Some(format!("{width}x{height}")),
        trajectory: provenance.trajectory.map(|every| every as u64),
        ..ImageRequest::default()
    })
}

/// Whether all is so that the provenance says of the model and of the image. How it was shown is checked as a request is; what
/// computed it then, and what was promised about its bits, may be another engine's: of that the answer tells.
fn agree(theirs: &Provenance, ours: &Provenance) -> Result<(), ApiError> {
    let ours = Provenance {
        program: theirs.program.clone(),
        upscaled: theirs.upscaled,
        trajectory: theirs.trajectory,
        engine: theirs.engine.clone(),
        determinism: theirs.determinism,
        ..ours.clone()
    };
    let fields =
        |of: &Provenance| serde_json::to_value(of).map_err(|error| ApiError::internal(error.to_string()));
    let (theirs, ours) = (fields(theirs)?, fields(&ours)?);
    let mut both = theirs.as_object().into_iter().flatten().map(|(name, said)| (name, said, &ours[name]));
    match both.find(|(_, said, so)| said != so) {
        None => Ok(()),
        Some((name, said, so)) => {
            Err(unfit(format!("its provenance says that `{name}` is {said}, and it is {so}")))
        }
    }
}

/// Pixels that differ, and by how much of 255 at most, rounded up. Grey is compared with RGB as three times the same.
fn compare(ours: &Picture, theirs: &Exact) -> (usize, u8) {
    fn rgb<T: Copy>(pixel: &[T]) -> [T; 3] {
        if let &[r, g, b] = pixel { [r, g, b] } else { [pixel[0]; 3] }
    }
    let ours =
        ours.pixels.chunks_exact(ours.colour.channels()).map(|pixel| rgb(pixel).map(|v| u16::from(v) * 257));
    let theirs = theirs.samples.chunks_exact(theirs.colour.channels()).map(rgb);
    let difference =
        |(a, b): ([u16; 3], [u16; 3])| a.iter().zip(b).map(|(a, b)| a.abs_diff(b)).max().unwrap_or(0);
    let differences = ours.zip(theirs).map(difference);
    let (count, most) =
        differences.fold((0, 0), |(count, most), d| (count + usize::from(d > 0), most.max(d)));
    // 65535 / 257 is 255.
    (count, most.div_ceil(257) as u8)
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
        let exact = |pixels: [u8; 9]| Exact {
            colour: Colour::Rgb,
            samples: pixels.map(|v| u16::from(v) * 257).to_vec(),
        };
        let pixels = [0, 0, 0, 10, 10, 10, 255, 0, 0];
        let ours = Picture { width: 3, height: 1, colour: Colour::Rgb, pixels: pixels.to_vec() };
        assert_eq!(compare(&ours, &exact(pixels)), (0, 0));
        assert_eq!(compare(&ours, &exact([0, 0, 0, 11, 9, 10, 0, 0, 0])), (2, 255));
    }

    #[test]
    fn grey_is_three_times_the_same_and_no_bit_is_left_out() {
        let ours = Picture { width: 2, height: 1, colour: Colour::Grey, pixels: vec![7, 200] };
        let grey =
            |samples: [u16; 2]| compare(&ours, &Exact { colour: Colour::Grey, samples: samples.to_vec() });
        let rgb = |samples: [u16; 6]| {
            compare(&ours, &Exact { colour: Colour::Rgb, samples: samples.map(|v| v * 257).to_vec() })
        };
        assert_eq!(rgb([7, 7, 7, 200, 200, 200]), (0, 0));
        // Of the same luma.
        assert_eq!(rgb([7, 7, 6, 200, 200, 200]), (1, 1));
        assert_eq!(grey([7 * 257, 200 * 257]), (0, 0));
        assert_eq!(grey([7 * 257 + 1, 200 * 257]), (1, 1));
        assert_eq!(grey([7 * 257, 0]), (1, 200));
    }
}

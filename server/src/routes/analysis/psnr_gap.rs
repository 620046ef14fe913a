//! The PSNR gap: does a model denoise the images it has seen better than images it has not?

mod request;
mod response;

use axum::extract::State;
use axum::response::Response;
use windowpane_diffusion::psnr_gap::{self as measure, Denoising};

use super::analyse::{Analysis, Resolved, analyse};
use super::output::Output;
use crate::analysis::Study;
use crate::analysis::image_set::{ImageSet, Wanted};
use crate::analysis::psnr_gap::{PsnrGapStudy, Side};
use crate::analysis::reference::reference;
use crate::app::App;
use crate::call::Call;
use crate::config::Config;
use crate::error::{ApiError, Cause, ErrorBody};
use crate::extract::{Accept, ApiFields, Form, Prefer};
use crate::jobs::Kind;
use crate::jobs::object::JobObject;
use crate::model::{Card, Model};
use crate::spec::{ClassRef, FileBytes, Seed, class_index};
pub use request::{PsnrGapForm, PsnrGapRequest};
pub use response::PsnrGapResponse;
use response::{About, File};

/// Images of a side at most.
const MOST_IMAGES: usize = 10_000;

/// Images times timesteps at most: for the confidence intervals all of them are drawn a thousand times.
const MOST_MEASURED: usize = 2_000_000;

/// Files of the answer.
const FILES: [(Form, File); 3] =
    [(Form::Csv, File::Table), (Form::Svg, File::Drawing), (Form::Png, File::Picture)];

/// Measure a PSNR gap.
///
/// Every image is made noisy at each of some timesteps and denoised in one step; how well that went, in dB, is PSNR(t). A model
/// that has learned what its images have in common denoises new ones as well as those it has seen; one that has learned its
/// images by heart does not. The gap is the mean over timesteps of the difference, after An et al. (arXiv 2410.21273, equation
/// 4); what is below 0 counts as 0 at each timestep, and the difference without that is told beside it.
///
/// The numbers are those of the trainer's `eval` for the same images, `images`, `timesteps` and `seed`.
#[utoipa::path(
    post,
    path = "/v1/analysis/psnr-gap",
    tag = "analysis",
    params(
        ("prefer" = Option<String>, Header, description = "`wait=N`: the seconds that the client waits, after which the answer is a job; `respond-async`: it does not wait at all. A request with a timeout waits in any case.", example = "wait=60"),
    ),
    request_body(content(
        (PsnrGapRequest = "application/json"),
        (PsnrGapForm = "multipart/form-data"),
    ), description = "The images to measure on."),
    responses(
        (status = 200, description = "The gap, or the PSNR of one set.", content(
            (PsnrGapResponse = "application/json"),
            (FileBytes = "text/csv"),
            (FileBytes = "image/svg+xml"),
            (FileBytes = "image/png"),
        ), headers(
            ("x-about" = String, description = "What was measured, as JSON, with raw bytes."),
        )),
        (status = 202, description = "It takes longer than the client waits, and is a job: its result will be this answer.", body = JobObject, headers(
            ("location" = String, description = "Where the job is."),
        )),
        (status = 400, description = "The body is neither JSON nor a form.", body = ErrorBody),
        (status = 401, description = "No key that is known here.", body = ErrorBody),
        (status = 403, description = "The key may not do that.", body = ErrorBody),
        (status = 404, description = "No such model.", body = ErrorBody),
        (status = 406, description = "Nothing that `accept` allows can be produced.", body = ErrorBody),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody),
        (status = 409, description = "Somebody cancelled the request.", body = ErrorBody),
        (status = 413, description = "The body is too large.", body = ErrorBody),
        (status = 415, description = "The body's type is neither JSON nor a form.", body = ErrorBody),
        (status = 422, description = "A field is unknown or holds what is not accepted; `param` names it.", body = ErrorBody),
        (status = 429, description = "As many looks as a caller may have are under way, or it cannot be done in time, or answers have no memory left; `retry-after` says when the first of them will be done.", body = ErrorBody,
            headers(("retry-after" = u64, description = "Seconds until there is room for this request."))),
        (status = 500, description = "The engine failed.", body = ErrorBody),
        (status = 503, description = "Loading, shutting down, or too many bodies at a time.", body = ErrorBody),
        (status = 504, description = "The time given for the request has passed.", body = ErrorBody),
    )
)]
pub async fn psnr_gap(
    State(app): State<App>,
    call: Call,
    Ok(prefer): Result<Prefer, std::convert::Infallible>,
    Ok(accept): Result<Accept, std::convert::Infallible>,
    ApiFields(request): ApiFields<PsnrGapRequest>,
) -> Result<Response, ApiError> {
    analyse::<PsnrGap>(&app, call, (prefer, accept), request).await
}

/// A request that is in order, but for its study.
#[derive(Debug)]
pub(crate) struct PsnrGap {
    output: Output<File>,
    about: About,
}

// === impl PsnrGap ===

impl Analysis for PsnrGap {
    const KIND: Kind = Kind::PsnrGap;
    type Request = PsnrGapRequest;
    type Study = PsnrGapStudy;

    fn model(request: &PsnrGapRequest) -> Option<&str> {
        request.model.as_deref()
    }

    fn timeout_ms(request: &PsnrGapRequest) -> Option<u64> {
        request.timeout_ms
    }

    fn pin(request: &mut PsnrGapRequest, _: u64) {
        // The trainer's, for whoever names none.
        request.seed.get_or_insert(Seed(0));
    }

    fn resolve(
        request: &PsnrGapRequest,
        accept: &Accept,
        model: &Model,
        config: &Config,
    ) -> Result<Resolved<Self>, ApiError> {
        let (card, limit) = (&model.card, config.study_limit);
        // A call is a tick's worth.
        let rows = model.served.costs.target(config.max_rows);
        let output = Output::among(&FILES, request.output_format.as_deref(), accept)?;
        let within = |field: &str, asked: Option<u64>, default: usize, most: usize| {
            let Some(asked) = asked else { return Ok(default.min(most)) };
            let found = usize::try_from(asked).ok().filter(|asked| (1..=most).contains(asked));
            found.ok_or_else(|| ApiError::invalid(field, asked, format!("1 to {most}")))
        };
        let images = within("images", request.images, measure::IMAGES, MOST_IMAGES)?;
        let steps = card.schedule.len();
        let timesteps = within("timesteps", request.timesteps, measure::TIMESTEPS, steps)?;
        let levels = Denoising::respaced(&card.schedule, card.manifest.prediction, timesteps)
            .map_err(|error| ApiError::internal(error.to_string()))?;
        let seed = request.seed.map_or(0, |seed| seed.0);
        let (source, sets) =
            sets(request, Wanted { card, resize: request.resize == Some(true), images, limit })?;
        let mut about = About::new(card, source, seed);
        let null = card.manifest.config.null_class() as i64;
        for set in &sets {
            about.images.push(set.len);
            about.labels.push(if set.labels.is_some() { "class" } else { "none" });
        }
        let measured = sets.iter().map(|set| set.len).sum::<usize>() * levels.len();
        if measured > MOST_MEASURED {
            let got = format!("{} for {} images", levels.len(), measured / levels.len());
            let expected = format!("at most {MOST_MEASURED} images times timesteps");
            return Err(ApiError::invalid("timesteps", got, expected));
        }
        // The images are held until they are measured, and what was measured twice; the answer is small beside them.
        let pixels: usize = sets.iter().map(|set| set.values.len() * size_of::<f32>()).sum();
        let held = pixels + 2 * measured * size_of::<f64>();
        let sides = sets.into_iter().map(|set| Side::new(set, null)).collect();
        let study = PsnrGapStudy::new(sides, card.shape(), levels, seed, rows);
        Ok(Resolved { study, told: 0, held, analysis: Self { output, about } })
    }

    fn respond(
        self,
        model: &Model,
        measured: <PsnrGapStudy as Study>::Findings,
    ) -> Result<Response, ApiError> {
        response::respond(model, self.about, &measured, self.output)
    }
}

/// The images to measure on, and where they come from.
fn sets(request: &PsnrGapRequest, wanted: Wanted<'_>) -> Result<(&'static str, Vec<ImageSet>), ApiError> {
    let sides = [
        ("train", request.train.as_deref(), "train_labels", request.train_labels.as_deref()),
        ("test", request.test.as_deref(), "test_labels", request.test_labels.as_deref()),
    ];
    for (field, file, labels_field, labels) in sides {
        if file.is_none() && labels.is_some() {
            let message = format!("`{labels_field}` are of `{field}`, which is missing");
            return Err(ApiError::new(Cause::InvalidValue, message).param(labels_field));
        }
    }
    if request.train.is_none() {
        if request.test.is_some() {
            let message = "`test` is given without `train`; a set by itself is `train`";
            return Err(ApiError::new(Cause::InvalidValue, message).param("train"));
        }
        if request.resize.is_some() {
            let message = "`resize` is for images that are sent";
            return Err(ApiError::new(Cause::InvalidValue, message).param("resize"));
        }
        return Ok(("reference", reference(wanted)?.into()));
    }
    let mut sets = Vec::new();
    for (field, file, labels_field, labels) in sides {
        let Some(file) = file else { continue };
        let mut set = ImageSet::read(field, file, wanted)?;
        if let Some(labels) = labels {
            set.labels = Some(classes(labels_field, labels, &set, wanted.card)?);
        }
        sets.push(set);
    }
    Ok(("upload", sets))
}

/// The classes that a list names, one for each image that is measured.
fn classes(field: &str, labels: &[ClassRef], set: &ImageSet, card: &Card) -> Result<Vec<usize>, ApiError> {
    let wrong = |message: String| ApiError::new(Cause::InvalidValue, message).param(field);
    if card.manifest.classes.is_empty() {
        return Err(wrong(format!(
            "`{field}`: `{}` is a model without classes; leave it out",
            card.manifest.name
        )));
    }
    if set.labels.is_some() {
        return Err(wrong(format!(
            "`{field}`: the folders of the archive name the classes already; leave one of them out"
        )));
    }
    // Labels belong to the images as they were sent, in their order; those of an archive are taken by name, so that nobody has
    // to know in which order a program writes a folder.
    if let Some([first, second]) = &set.swapped {
        return Err(wrong(format!(
            "`{field}` go with the files of the archive in order of name, where `{first}` comes before `{second}`, and in the \
             archive it comes after: number them with as many digits each, or let folders name the classes"
        )));
    }
    if labels.len() != set.sent {
        return Err(wrong(format!(
            "`{field}` has {} labels, expected one for each of {} images",
            labels.len(),
            set.sent
        )));
    }
    set.places().map(|place| class_index(field, &labels[place], &card.manifest)).collect()
}

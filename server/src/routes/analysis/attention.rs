//! Attention: what do the layers of a model attend to in this image?

mod request;
mod response;

use axum::extract::State;
use axum::response::Response;
use windowpane_diffusion::error::number;

use super::analyse::{Analysis, Resolved, analyse};
use super::output::{File, Output};
use crate::analysis::Study;
use crate::analysis::attention::AttentionStudy;
use crate::analysis::picture::{FULL, Figure};
use crate::analysis::selection::{Layout, Maps, Selection, Weight};
use crate::analysis::subject::Subject;
use crate::app::App;
use crate::call::Call;
use crate::config::Config;
use crate::engine::insides::Inside;
use crate::error::{ApiError, Cause, ErrorBody};
use crate::extract::{Accept, ApiFields, Prefer};
use crate::jobs::Kind;
use crate::jobs::object::JobObject;
use crate::model::Model;
use crate::spec::{FileBytes, Seed};
pub use request::{AttentionForm, AttentionRequest, TokenRef};
use response::{About, Drawn};
pub use response::{AttentionResponse, WindowSide};

/// Look at attention.
///
/// For every layer what each token attends to, the mean over the heads, and numbers of how local that is: how far away what
/// is attended to lies, how much of it within squares around the token, how spread it is, and how large a window would hold
/// nearly all of it. The image is an uploaded picture made as noisy as is asked, an uploaded `x_t`, or a sample on its way.
///
/// JSON with the numbers inside, unless `output_format` or `accept` ask for a file: `npz` and `safetensors` hold
/// `layer.L.heads` and `layer.L.mean`; `png` is a picture of them. How large an answer is, is known before it is begun, and
/// what is too large is refused with its size.
#[utoipa::path(
    post,
    path = "/v1/analysis/attention",
    tag = "analysis",
    params(
        ("prefer" = Option<String>, Header, description = "`wait=N`: the seconds that the client waits, after which the answer is a job; `respond-async`: it does not wait at all. A request with a timeout waits in any case.", example = "wait=60"),
    ),
    request_body(content(
        (AttentionRequest = "application/json"),
        (AttentionForm = "multipart/form-data"),
    ), description = "What is looked at, and what of it is told."),
    responses(
        (status = 200, description = "The attention.", content(
            (AttentionResponse = "application/json"),
            (FileBytes = "application/x-npz"),
            (FileBytes = "application/vnd.safetensors"),
            (FileBytes = "image/png"),
        ), headers(
            ("x-about" = String, description = "What was looked at, as JSON, with raw bytes."),
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
        (status = 422, description = "A field is unknown or holds what is not accepted; `param` names it. The model has no attention graph, or the answer would be too large.", body = ErrorBody),
        (status = 429, description = "As many looks as a caller may have are under way, or it cannot be done in time, or answers have no memory left; `retry-after` says when the first of them will be done.", body = ErrorBody,
            headers(("retry-after" = u64, description = "Seconds until there is room for this request."))),
        (status = 500, description = "The engine failed.", body = ErrorBody),
        (status = 503, description = "Loading, shutting down, or too many bodies at a time.", body = ErrorBody),
        (status = 504, description = "The time given for the request has passed.", body = ErrorBody),
    )
)]
pub async fn attention(
    State(app): State<App>,
    call: Call,
    Ok(prefer): Result<Prefer, std::convert::Infallible>,
    Ok(accept): Result<Accept, std::convert::Infallible>,
    ApiFields(request): ApiFields<AttentionRequest>,
) -> Result<Response, ApiError> {
    analyse::<Attention>(&app, call, (prefer, accept), request).await
}

/// A request that is in order, but for its study.
#[derive(Debug)]
pub(crate) struct Attention {
    /// The tokens that are told or shown.
    tokens: Vec<usize>,
    /// The value from which on a picture is darkest.
    full: f32,
    output: Output,
    about: About,
}

// === impl Attention ===

impl Analysis for Attention {
    const KIND: Kind = Kind::Attention;
    type Request = AttentionRequest;
    type Study = AttentionStudy;

    fn model(request: &AttentionRequest) -> Option<&str> {
        request.model.as_deref()
    }

    fn timeout_ms(request: &AttentionRequest) -> Option<u64> {
        request.timeout_ms
    }

    fn pin(request: &mut AttentionRequest, seed: u64) {
        // What is looked at as it is has none.
        if request.x_t.is_none() {
            request.seed.get_or_insert(Seed(seed));
        }
    }

    fn resolve(
        request: &AttentionRequest,
        accept: &Accept,
        model: &Model,
        config: &Config,
    ) -> Result<Resolved<Self>, ApiError> {
        let card = &model.card;
        let graph = Inside::Attention.graph(&card.manifest, model.served.provider).ok_or_else(|| {
            let message = format!(
                "the package of `{}` has no attention graph; export it with this version's trainer to look at it",
                card.manifest.name
            );
            ApiError::new(Cause::Unsupported, message).param("model")
        })?;
        let output = Output::resolve(request.output_format.as_deref(), accept)?;
        let mut selection = Selection::resolve(request, card)?;
        let mut tokens = selection.tokens.clone();
        let weight = match output.file {
            None => Weight::Json,
            Some(File::Arrays(_)) => Weight::File,
            Some(File::Picture) => {
                for (field, given) in [("maps", request.maps.is_some()), ("layout", request.layout.is_some())]
                {
                    if given {
                        let message =
                            format!("`{field}` is for numbers; a picture shows every layer's mean as it is");
                        return Err(ApiError::new(Cause::InvalidValue, message).param(field));
                    }
                }
                if request.tokens.is_none() {
                    tokens = vec![selection.grid.token(selection.grid.height / 2, selection.grid.width / 2)];
                }
                let shown = tokens.len();
                let figure = Figure::new(selection.grid, selection.layers.len(), shown);
                selection.tokens = (0..selection.grid.tokens()).collect();
                (selection.maps, selection.layout) = (Maps::Mean, Layout::Grid);
                Weight::Picture { bytes: figure.bytes(), tokens: shown }
            }
        };
        let subject = Subject::resolve(&request.subject(), card)?;
        let [held, told] = selection.check(card, &graph.plan, weight, config.study_limit)?;
        let full = full(request, output)?;
        let about = About::new(card, &subject, &graph.file);
        let study = AttentionStudy::new(subject, selection, card, &graph.plan);
        Ok(Resolved { study, told, held, analysis: Self { tokens, full, output, about } })
    }

    fn respond(
        self,
        model: &Model,
        found: <AttentionStudy as Study>::Findings,
    ) -> Result<Response, ApiError> {
        let Self { tokens, full, output, about } = self;
        response::respond(model, about, &Drawn { found, tokens, full }, output)
    }
}

/// The value that `full` names, where there is a picture.
fn full(request: &AttentionRequest, output: Output) -> Result<f32, ApiError> {
    let Some(full) = request.full else { return Ok(FULL) };
    if output.file != Some(File::Picture) {
        let message = "`full` is for a picture; numbers have no colours";
        return Err(ApiError::new(Cause::InvalidValue, message).param("full"));
    }
    if !(0.001..=1.0).contains(&full) {
        return Err(ApiError::invalid("full", number(full), "0.001 to 1"));
    }
    Ok(full as f32)
}

//! Ordering a job: under an id of ours, or under the client's own, which may then be asked again and again.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{kept, owner};
use crate::app::{App, shutting_down};
use crate::error::{ApiError, Cause, ErrorBody};
use crate::extract::{Accept, ApiJson, JobId};
use crate::jobs::Kind;
use crate::jobs::object::JobObject;
use crate::jobs::store::{Order, Submitted};
use crate::keys::Identity;
use crate::middleware::access::forbidden;
use crate::middleware::request_id::random_u64;
use crate::spec::shown;

/// What is ordered.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"kind": "attention", "request": {"model": "fashion-dit", "prompt": "sneaker", "seed": 7, "timestep": 300}}))]
pub struct JobRequest {
    /// `attention`, `jacobian`, `psnr-gap` or `images`: whose route's answer the result is.
    #[schema(value_type = Option<Kind>)]
    pub kind: Option<String>,
    /// The body of that route, as JSON. What it would refuse is refused here, in the same words.
    #[schema(value_type = Option<Object>)]
    pub request: Option<Box<RawValue>>,
    /// The form of a look's result, as that route's header `accept` says it.
    #[schema(example = "image/png")]
    pub accept: Option<String>,
    /// Whom to tell of the end.
    pub webhook: Option<WebhookRequest>,
}

/// Whom to tell of a job's end.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookRequest {
    /// Where to, on a host that this server may tell.
    #[schema(required, example = "https://hooks.example.com/windowpane")]
    pub url: Option<String>,
}

/// Order a job.
///
/// For what takes longer than a client waits. The order is written down before it is answered, survives a restart of the
/// server, and is worked on by whichever server that shares the store has a turn for it. `GET` the place that `location`
/// names, or its `events`, to see how far it is.
#[utoipa::path(
    post,
    path = "/v1/jobs",
    tag = "jobs",
    operation_id = "submit_job",
    request_body = JobRequest,
    responses(
        (status = 202, description = "It is ordered.", body = JobObject,
            headers(("location" = String, description = "Where the job is."))),
        (status = 400, description = "The body is not JSON.", body = ErrorBody),
        (status = 401, description = "No key that is known here.", body = ErrorBody),
        (status = 403, description = "The key may not do what the kind needs.", body = ErrorBody),
        (status = 404, description = "No such model; or this server keeps no jobs.", body = ErrorBody),
        (status = 406, description = "Nothing that `accept` allows can be produced.", body = ErrorBody),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody),
        (status = 413, description = "The body is too large.", body = ErrorBody),
        (status = 415, description = "The body's type is not JSON.", body = ErrorBody),
        (status = 422, description = "A field is unknown or holds what is not accepted; `param` names it, one of the order as `request.` and its name.", body = ErrorBody),
        (status = 429, description = "As many jobs as a caller may have wait or run, or the results of earlier ones take the room.", body = ErrorBody),
        (status = 500, description = "The server failed.", body = ErrorBody),
        (status = 503, description = "Loading or shutting down, or the store does not answer.", body = ErrorBody),
    )
)]
pub async fn submit(
    State(app): State<App>,
    identity: Identity,
    ApiJson(request): ApiJson<JobRequest>,
) -> Result<Response, ApiError> {
    order(&app, identity, fresh_id(), request).await
}

/// Orders what a route was asked, whose client does not wait for it.
pub(crate) async fn defer(
    app: &App,
    identity: Identity,
    (kind, accept): (Kind, &Accept),
    request: &impl Serialize,
) -> Result<Response, ApiError> {
    let internal = |error: serde_json::Error| ApiError::internal(error.to_string());
    let mut fields = serde_json::to_value(request).map_err(internal)?;
    if let Some(fields) = fields.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    let request = serde_json::value::to_raw_value(&fields).map_err(internal)?;
    drop(fields);
    let accept = Some(accept.to_string()).filter(|accept| !accept.is_empty());
    let request = JobRequest { kind: Some(kind.to_string()), request: Some(request), accept, webhook: None };
    let mut response = order(app, identity, fresh_id(), request).await?;
    response.headers_mut().insert("preference-applied", HeaderValue::from_static("respond-async"));
    Ok(response)
}

fn fresh_id() -> String {
    format!("job_{:016x}{:016x}", random_u64(), random_u64())
}

/// Order a job under an id.
///
/// The same order under the same id is the same job, however often it is sent: for a client that does not know whether its
/// order arrived. The id is the client's own: 1 to 128 letters, digits and `-_.:/` (with `/` as `%2F`). Another order under
/// the id of a job is refused.
#[utoipa::path(
    put,
    path = "/v1/jobs/{id}",
    tag = "jobs",
    operation_id = "put_job",
    params(("id" = String, Path, description = "The job's id.", example = "fid-2026-11-28")),
    request_body = JobRequest,
    responses(
        (status = 200, description = "It was ordered before.", body = JobObject,
            headers(("location" = String, description = "Where the job is."))),
        (status = 202, description = "It is ordered.", body = JobObject,
            headers(("location" = String, description = "Where the job is."))),
        (status = 400, description = "The body is not JSON.", body = ErrorBody),
        (status = 401, description = "No key that is known here.", body = ErrorBody),
        (status = 403, description = "The key may not do what the kind needs.", body = ErrorBody),
        (status = 404, description = "No such model; or this server keeps no jobs; or what is no id.", body = ErrorBody),
        (status = 406, description = "Nothing that `accept` allows can be produced.", body = ErrorBody),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody),
        (status = 409, description = "The id is that of a job that was ordered in other words.", body = ErrorBody),
        (status = 413, description = "The body is too large.", body = ErrorBody),
        (status = 415, description = "The body's type is not JSON.", body = ErrorBody),
        (status = 422, description = "A field is unknown or holds what is not accepted; `param` names it, one of the order as `request.` and its name.", body = ErrorBody),
        (status = 429, description = "As many jobs as a caller may have wait or run, or the results of earlier ones take the room.", body = ErrorBody),
        (status = 500, description = "The server failed.", body = ErrorBody),
        (status = 503, description = "Loading or shutting down, or the store does not answer.", body = ErrorBody),
    )
)]
pub async fn put(
    State(app): State<App>,
    identity: Identity,
    JobId(id): JobId,
    ApiJson(request): ApiJson<JobRequest>,
) -> Result<Response, ApiError> {
    order(&app, identity, id.as_str().to_owned(), request).await
}

async fn order(app: &App, identity: Identity, id: String, request: JobRequest) -> Result<Response, ApiError> {
    let jobs = kept(app)?;
    let owner = owner(app, identity)?;
    let kind = kind(request.kind.as_deref())?;
    if identity.role < kind.role() {
        return Err(forbidden(app.keys().required()));
    }
    let asked = request.request.filter(|asked| asked.get().starts_with('{'));
    let asked =
        asked.ok_or_else(|| ApiError::invalid("request", "no object", "the body of the kind's route"))?;
    let accept = accept(kind, request.accept.as_deref())?;
    let webhook = match request.webhook {
        None => String::new(),
        Some(webhook) => {
            let url =
                webhook.url.ok_or_else(|| ApiError::invalid("webhook.url", "missing", "an https URL"))?;
            jobs.settings().hooks.check(&url)?;
            url
        }
    };
    let text = asked.get().to_owned();
    let mut order = Order {
        id,
        kind,
        request: text,
        accept: accept.to_string(),
        model: String::new(),
        digest: String::new(),
        webhook,
        units: 0,
        expected: 0,
    };
    // Before anything else is looked at: what was in order then need not be now, and is ordered all the same.
    if let Some(known) = jobs.store().known(&owner, &order).await? {
        return told(known, jobs.settings().limit);
    }
    if *jobs.leaving().borrow() {
        return Err(shutting_down());
    }
    let checking = Arc::clone(&jobs);
    let checked = app
        .workbench(identity.caller)
        .look_over(move || checking.perform().check(identity.caller, kind, &asked, &accept))
        .await?;
    let checked = checked.map_err(|error| ApiError {
        param: error.param.as_ref().map(|param| format!("request.{param}")),
        ..error
    })?;
    order.model = checked.model;
    order.digest = checked.digest;
    order.units = i64::try_from(checked.units).unwrap_or(i64::MAX);
    order.expected = i64::try_from(checked.expected.as_millis()).unwrap_or(i64::MAX);
    let submitted = jobs.store().submit(&owner, &order, jobs.settings().limit).await?;
    if let Submitted::New(job) = &submitted {
        tracing::info!(job = job.id, kind = %job.kind, model = job.model, "a job is ordered");
        jobs.touch();
    }
    told(submitted, jobs.settings().limit)
}

fn kind(word: Option<&str>) -> Result<Kind, ApiError> {
    let known = || format!("one of {}", Kind::ALL.map(Kind::as_str).join(", "));
    let word = word.ok_or_else(|| ApiError::invalid("kind", "missing", known()))?;
    Kind::parse(word).ok_or_else(|| ApiError::invalid("kind", shown(word), known()))
}

/// Bytes of `accept` at most: it is kept for as long as the job is.
const MOST_ACCEPT: usize = 1024;

/// The form that a look's result is to have.
fn accept(kind: Kind, asked: Option<&str>) -> Result<Accept, ApiError> {
    let Some(asked) = asked else { return Ok(Accept::default()) };
    if kind == Kind::Images {
        let message = "`accept` is for looks; `request.output_format` says the form of images";
        return Err(ApiError::new(Cause::InvalidValue, message).param("accept"));
    }
    if asked.len() > MOST_ACCEPT {
        let got = format!("a text of {} bytes", asked.len());
        return Err(ApiError::invalid("accept", got, format!("at most {MOST_ACCEPT} bytes")));
    }
    let accept = Accept::parse(asked);
    if accept == Accept::default() {
        return Err(ApiError::invalid("accept", shown(asked), "media types, such as `image/png`"));
    }
    Ok(accept)
}

/// The answer to an order.
fn told(submitted: Submitted, limit: usize) -> Result<Response, ApiError> {
    let (status, job) = match submitted {
        Submitted::New(job) => (StatusCode::ACCEPTED, job),
        Submitted::Known(job) => (StatusCode::OK, job),
        Submitted::Taken => return Err(taken()),
        Submitted::Full => return Err(full(limit)),
        Submitted::NoRoom => return Err(no_room()),
    };
    let place = format!("/v1/jobs/{}", job.id.replace('/', "%2F"));
    let place = HeaderValue::try_from(place).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok((status, [(header::LOCATION, place)], Json(JobObject::from(&job))).into_response())
}

/// What an order is told whose id is taken.
pub(crate) fn taken() -> ApiError {
    let message = "the id is that of a job that was ordered in other words";
    ApiError::new(Cause::JobConflict, message).param("id")
}

/// What an order of somebody is told who has `limit` jobs.
pub(crate) fn full(limit: usize) -> ApiError {
    let message = format!(
        "{limit} jobs wait or run for this caller, the most there may be; wait for one to end, or cancel one"
    );
    ApiError::new(Cause::TooManyJobs, message)
}

/// What an order of somebody is told whose results take the room that there is for them.
fn no_room() -> ApiError {
    let message = "the results that are kept for this caller take as much room as there is for them (`--job-store-limit`); \
                   there will be some when the oldest are forgotten";
    ApiError::new(Cause::TooManyJobs, message)
}

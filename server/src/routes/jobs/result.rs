//! What came of a job: the answer that the synchronous route would have given, or a range of it.

use std::ops::Range;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::range::{Asked, asked};
use super::{find, kept};
use crate::app::App;
use crate::error::{ApiError, Cause, ErrorBody};
use crate::extract::JobId;
use crate::jobs::store::{Job, Meta, State as JobState, Store};
use crate::keys::Identity;
use crate::middleware::track::Fate;

/// Fetch a job's result.
///
/// The very bytes, with the media type, that the synchronous route would have answered; as often as wanted until the job is
/// forgotten, and in ranges: `range: bytes=1000-` goes on where a download broke off, and `if-range` with the `etag` sees to
/// it that it is the same result. Several ranges at once are answered with all of it.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/result",
    tag = "jobs",
    operation_id = "job_result",
    params(
        ("id" = String, Path, description = "The job's id.", example = "fid-2026-11-28"),
        ("range" = Option<String>, Header, description = "Which bytes.", example = "bytes=0-1023"),
        ("if-range" = Option<String>, Header, description = "The `etag` of the result that `range` is of."),
    ),
    responses(
        (status = 200, description = "The result.", content(("*/*")), headers(
            ("etag" = String, description = "The sha256 of the result, in quotes."),
            ("accept-ranges" = String, description = "`bytes`."),
        )),
        (status = 206, description = "The range of it that was asked for.", content(("*/*")), headers(
            ("content-range" = String, description = "Which bytes these are, of how many."),
            ("etag" = String, description = "The sha256 of the result, in quotes."),
        )),
        (status = 401, description = "No key that is known here.", body = ErrorBody),
        (status = 404, description = "The caller has no job of this id, or no longer.", body = ErrorBody),
        (status = 409, description = "There is no result: not yet (`job_unfinished`), or there will be none (`job_failed`, `cancelled`). Or an administrator asked, and several callers have a job of this id (`job_conflict`).", body = ErrorBody),
        (status = 416, description = "The result has no such bytes; `content-range` says how many it has.", body = ErrorBody),
        (status = 500, description = "The server failed.", body = ErrorBody),
        (status = 503, description = "The store does not answer.", body = ErrorBody),
    )
)]
pub async fn result(
    State(app): State<App>,
    identity: Identity,
    JobId(id): JobId,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let jobs = kept(&app)?;
    let job = find(&app, &jobs, identity, &id).await?;
    let Some(meta) = &job.result else { return Err(none_of(&job)) };
    let etag = format!("\"{}\"", meta.etag);
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let is_same = text(header::IF_RANGE).is_none_or(|known| known.trim() == etag);
    let range = text(header::RANGE).filter(|_| is_same && method == Method::GET);
    let (status, range) = match asked(range, meta.size) {
        Asked::Whole => (StatusCode::OK, 0..meta.size),
        Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Asked::Nothing => return unsatisfiable(meta),
    };
    let mut response = (status, body(jobs.store(), &job, range.clone(), &app)).into_response();
    let told = response.headers_mut();
    let mut tell = |name: HeaderName, value: &str| {
        // Of what was stored nothing is lost for a header that is none.
        if let Ok(value) = HeaderValue::from_str(value) {
            told.insert(name, value);
        }
    };
    for (name, value) in &meta.headers {
        if let Ok(name) = HeaderName::try_from(name) {
            tell(name, value);
        }
    }
    tell(header::CONTENT_TYPE, &meta.media_type);
    tell(header::CONTENT_LENGTH, &(range.end - range.start).to_string());
    tell(header::ACCEPT_RANGES, "bytes");
    tell(header::ETAG, &etag);
    tell(header::CACHE_CONTROL, "private, no-cache");
    if status == StatusCode::PARTIAL_CONTENT {
        tell(header::CONTENT_RANGE, &format!("bytes {}-{}/{}", range.start, range.end - 1, meta.size));
    }
    Ok(response)
}

/// A range of the result, read part by part as the client takes it.
fn body(store: &Store, job: &Job, range: Range<u64>, app: &App) -> Response {
    let fate = Fate::default();
    let state = (store.clone(), job.number, range, fate.clone(), app.clone());
    let parts = futures::stream::unfold(state, |(store, number, range, fate, app)| async move {
        if range.is_empty() {
            return None;
        }
        let part = match store.read(number, range.clone()).await {
            Ok(Some(part)) => Ok(part),
            Ok(None) => Err(std::io::Error::other("the job has been forgotten meanwhile")),
            Err(error) => Err(std::io::Error::other(error)),
        };
        let next = match &part {
            Ok(bytes) => range.start + bytes.len() as u64..range.end,
            Err(error) => {
                tracing::warn!(%error, "a result is cut off");
                let cause = Cause::JobsUnavailable;
                app.metrics().rejections.with_label_values(&[cause.code()]).inc();
                fate.failed(cause);
                range.end..range.end
            }
        };
        Some((part, (store, number, next, fate, app)))
    });
    let mut response = Body::from_stream(parts).into_response();
    response.extensions_mut().insert(fate);
    response
}

/// Why there is no result.
fn none_of(job: &Job) -> ApiError {
    let error = |cause, message: String| ApiError::new(cause, message).param("id");
    match (job.state, &job.error) {
        (JobState::Cancelled, _) => error(Cause::Cancelled, "the job was cancelled".to_owned()),
        (JobState::Failed, Some(why)) => {
            error(Cause::JobFailed, format!("the job came to nothing ({}): {}", why.code, why.message))
        }
        (state, _) => error(Cause::JobUnfinished, format!("the job is {state}; there is no result yet")),
    }
}

fn unsatisfiable(meta: &Meta) -> Result<Response, ApiError> {
    let message = format!("the result has {} bytes, and none in the range that was asked for", meta.size);
    let mut response = ApiError::new(Cause::RangeNotSatisfiable, message).param("range").into_response();
    let value = HeaderValue::try_from(format!("bytes */{}", meta.size));
    let value = value.map_err(|error| ApiError::internal(error.to_string()))?;
    response.headers_mut().insert(header::CONTENT_RANGE, value);
    Ok(response)
}

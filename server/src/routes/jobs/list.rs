//! The caller's jobs, page by page.

use axum::Json;
use axum::extract::{Query, State};
use axum::http::Uri;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{kept, owner};
use crate::app::App;
use crate::error::{ApiError, ErrorBody};
use crate::jobs::object::JobObject;
use crate::jobs::store::State as JobState;
use crate::keys::Identity;
use crate::middleware::request_id::RequestId;
use crate::spec::shown;

/// Jobs on a page unless asked otherwise.
const PAGE: usize = 20;

/// Jobs on a page.
const MOST: usize = 100;

/// Which jobs.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Jobs on a page, 1 to 100.
    #[param(value_type = Option<u64>, minimum = 1, maximum = 100, default = 20)]
    limit: Option<String>,
    /// The id of the last job of the page before.
    after: Option<String>,
    /// Only those in this state.
    #[param(value_type = Option<JobState>)]
    state: Option<String>,
}

/// A page of jobs.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobList {
    /// `list`.
    #[schema(example = "list")]
    pub object: &'static str,
    /// The jobs, the newest first.
    pub data: Vec<JobObject>,
    /// Whether there are more: ask with `after` and the id of the last one.
    pub has_more: bool,
}

/// List jobs.
///
/// The caller's own, the newest first.
#[utoipa::path(
    get,
    path = "/v1/jobs",
    tag = "jobs",
    operation_id = "list_jobs",
    params(ListQuery),
    responses(
        (status = 200, description = "A page of jobs.", body = JobList),
        (status = 401, description = "No key that is known here.", body = ErrorBody),
        (status = 404, description = "This server keeps no jobs.", body = ErrorBody),
        (status = 422, description = "A parameter holds what is not accepted; `param` names it.", body = ErrorBody),
        (status = 500, description = "The server failed.", body = ErrorBody),
        (status = 503, description = "The store does not answer.", body = ErrorBody),
    )
)]
pub async fn list(State(app): State<App>, identity: Identity, uri: Uri) -> Result<Json<JobList>, ApiError> {
    let jobs = kept(&app)?;
    let owner = owner(&app, identity)?;
    let Query(query) = Query::<ListQuery>::try_from_uri(&uri)
        .map_err(|error| ApiError::invalid("query", "not readable", error.body_text()))?;
    let limit = match query.limit.as_deref() {
        None => PAGE,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=MOST).contains(limit))
            .ok_or_else(|| ApiError::invalid("limit", shown(text), format!("1 to {MOST}")))?,
    };
    let state = query.state.as_deref().map(|word| {
        let expected = || format!("one of {}", JobState::ALL.map(JobState::as_str).join(", "));
        JobState::parse(word).ok_or_else(|| ApiError::invalid("state", shown(word), expected()))
    });
    let state = state.transpose()?;
    let before = match query.after.as_deref() {
        None => None,
        Some(text) => {
            let job = match RequestId::parse(text) {
                Some(id) => jobs.store().job(&owner, id.as_str()).await?,
                // Not everything can be asked of a database.
                None => None,
            };
            let expected = "the id of a job of the caller's";
            Some(job.ok_or_else(|| ApiError::invalid("after", shown(text), expected))?.number)
        }
    };
    // One more, by which it is known whether there are more.
    let mut found = jobs.store().jobs(&owner, state, before, limit + 1).await?;
    let has_more = found.len() > limit;
    found.truncate(limit);
    let data = found.iter().map(JobObject::from).collect();
    Ok(Json(JobList { object: "list", data, has_more }))
}

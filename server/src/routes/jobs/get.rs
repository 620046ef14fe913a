//! One job, as it stands.

use axum::Json;
use axum::extract::State;

use super::{find, kept};
use crate::app::App;
use crate::error::{ApiError, ErrorBody};
use crate::extract::JobId;
use crate::jobs::object::JobObject;
use crate::keys::Identity;

/// Look at a job.
///
/// Where it stands, how far it is, and how long what is left takes as it goes now.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}",
    tag = "jobs",
    operation_id = "get_job",
    params(("id" = String, Path, description = "The job's id.", example = "fid-2026-11-28")),
    responses(
        (status = 200, description = "The job.", body = JobObject),
        (status = 401, description = "No key that is known here.", body = ErrorBody),
        (status = 404, description = "The caller has no job of this id, or no longer.", body = ErrorBody),
        (status = 409, description = "An administrator asked, and several callers have a job of this id.", body = ErrorBody),
        (status = 500, description = "The server failed.", body = ErrorBody),
        (status = 503, description = "The store does not answer.", body = ErrorBody),
    )
)]
pub async fn get(
    State(app): State<App>,
    identity: Identity,
    JobId(id): JobId,
) -> Result<Json<JobObject>, ApiError> {
    let job = find(&app, &*kept(&app)?, identity, &id).await?;
    Ok(Json(JobObject::from(&job)))
}

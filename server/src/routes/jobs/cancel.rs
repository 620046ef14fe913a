//! Cancelling a job.

use axum::Json;
use axum::extract::State;

use super::{find, kept};
use crate::app::App;
use crate::error::{ApiError, ErrorBody};
use crate::extract::{JobId, no_job};
use crate::jobs::object::JobObject;
use crate::jobs::store::Cancelled;
use crate::keys::Identity;

/// Cancel a job.
///
/// Nothing more comes of it from now on, and what it did is let go; whoever works on it stops within a third of a lease. A
/// job that has ended stays as it is, with its result.
#[utoipa::path(
    delete,
    path = "/v1/jobs/{id}",
    tag = "jobs",
    operation_id = "cancel_job",
    params(("id" = String, Path, description = "The job's id.", example = "fid-2026-11-28")),
    responses(
        (status = 200, description = "The job, which is under way no longer.", body = JobObject),
        (status = 401, description = "No key that is known here.", body = ErrorBody),
        (status = 404, description = "The caller has no job of this id, or no longer.", body = ErrorBody),
        (status = 409, description = "An administrator asked, and several callers have a job of this id.", body = ErrorBody),
        (status = 500, description = "The server failed.", body = ErrorBody),
        (status = 503, description = "The store does not answer.", body = ErrorBody),
    )
)]
pub async fn cancel(
    State(app): State<App>,
    identity: Identity,
    JobId(id): JobId,
) -> Result<Json<JobObject>, ApiError> {
    let jobs = kept(&app)?;
    let job = find(&app, &jobs, identity, &id).await?;
    let job = match jobs.store().cancel(job.number).await? {
        Cancelled::Before(job) => job,
        Cancelled::Gone => return Err(no_job()),
        Cancelled::Now(job) => {
            app.metrics().jobs_total.with_label_values(&[job.kind.as_str(), "cancelled"]).inc();
            tracing::info!(job = job.id, kind = %job.kind, "a job is cancelled");
            jobs.stop_one(job.number);
            job
        }
    };
    Ok(Json(JobObject::from(&job)))
}

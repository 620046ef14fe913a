//! Requests under way: the only thing one can do to them is to cancel them.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::error::{ApiError, ErrorBody};
use crate::extract::{RequestIdPath, nobody};
use crate::keys::{Identity, Role};

/// What was cancelled.
#[derive(Debug, Serialize, ToSchema)]
pub struct Cancelled {
    /// The id.
    #[schema(example = "req_5f0c1b9a7d3e42f8")]
    pub id: String,
    /// Requests of this id that were under way; more than one where a client used an id twice.
    #[schema(example = 1)]
    pub cancelled: usize,
}

/// Cancel a request.
///
/// The id is that of the response's header `x-request-id`, which a stream repeats in its first line and in every event:
/// the client's own where it sent one, which is the way to know it before the response comes. The rows are free at the
/// next tick, and whoever waits for the request reads 409 with the code `cancelled`, or that as the last event of a
/// stream. A key cancels its own requests only, an administrator's anybody's.
#[utoipa::path(
    delete,
    path = "/v1/requests/{id}",
    tag = "images",
    params(("id" = String, Path, description = "The request's id.", example = "req_5f0c1b9a7d3e42f8")),
    responses(
        (status = 200, description = "It was under way, and is no longer.", body = Cancelled),
        (status = 401, description = "No key that is known here.", body = ErrorBody),
        (status = 404, description = "No request of this id is under way.", body = ErrorBody),
    )
)]
pub async fn cancel(
    State(app): State<App>,
    identity: Identity,
    RequestIdPath(id): RequestIdPath,
) -> Result<Json<Cancelled>, ApiError> {
    let caller = (identity.role < Role::Admin).then_some(identity.caller);
    match app.requests().cancel(&id, caller) {
        0 => Err(nobody()),
        cancelled => Ok(Json(Cancelled { id: id.as_str().to_owned(), cancelled })),
    }
}

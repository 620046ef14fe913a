//! Alive and ready, as [`crate::routes::health`] has them, in the protocol's words.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::routes::health::{failure, unready};

/// Whether the server is alive.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2Live)]
pub struct Live {
    /// Whether it is.
    pub live: bool,
}

/// Whether the server is ready.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2Ready)]
pub struct Ready {
    /// Whether it is.
    pub ready: bool,
}

/// The status of yes and no.
fn status(yes: bool) -> StatusCode {
    if yes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// Whether the process works: no worker thread has died or is stuck.
#[utoipa::path(
    get,
    path = "/v2/health/live",
    operation_id = "v2_live",
    tag = "inference",
    responses(
        (status = 200, description = "Alive.", body = Live),
        (status = 503, description = "A worker thread has died or is stuck: restart the server.", body = Live),
    )
)]
pub async fn live(State(app): State<App>) -> (StatusCode, Json<Live>) {
    let live = failure(&app).is_none();
    (status(live), Json(Live { live }))
}

/// Whether a request sent now is served.
#[utoipa::path(
    get,
    path = "/v2/health/ready",
    operation_id = "v2_ready",
    tag = "inference",
    responses(
        (status = 200, description = "Ready.", body = Ready),
        (status = 503, description = "Loading, draining, or a worker thread has died or is stuck.", body = Ready),
    )
)]
pub async fn ready(State(app): State<App>) -> (StatusCode, Json<Ready>) {
    let ready = unready(&app).is_none();
    (status(ready), Json(Ready { ready }))
}

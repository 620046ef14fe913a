//! Alive is not ready. Alive means that restarting would not help; ready means that a request sent now is served. A
//! full queue is neither's business: it is told to the client, with the time to wait.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::{App, Phase};

/// The state of the server.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `alive` or `dead`; `ready`, `loading` or `draining`.
    #[schema(example = "ready")]
    pub status: &'static str,
    /// The models that serve.
    #[schema(example = json!(["fashion-dit"]))]
    pub models: Vec<String>,
}

// === impl Health ===

impl Health {
    fn new(status: &'static str, app: &App) -> Json<Self> {
        Json(Self { status, models: app.models().iter().map(|model| model.name().to_owned()).collect() })
    }
}

/// Whether the process works: no worker thread has died.
#[utoipa::path(
    get,
    path = "/livez",
    tag = "operations",
    responses(
        (status = 200, description = "Alive.", body = Health),
        (status = 503, description = "A worker thread has died: restart the server.", body = Health),
    )
)]
pub async fn livez(State(app): State<App>) -> (StatusCode, Json<Health>) {
    if is_alive(&app) {
        (StatusCode::OK, Health::new("alive", &app))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, Health::new("dead", &app))
    }
}

/// Whether no worker thread has died. They end on purpose only when the server leaves.
pub(super) fn is_alive(app: &App) -> bool {
    app.phase() == Phase::Draining || app.models().iter().all(|model| model.batcher.is_alive())
}

/// Whether a request sent now is served: every model has loaded and passed its golden, and the server is not leaving.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "operations",
    responses(
        (status = 200, description = "Ready.", body = Health),
        (status = 503, description = "Loading or draining.", body = Health),
    )
)]
pub async fn readyz(State(app): State<App>) -> (StatusCode, Json<Health>) {
    match app.phase() {
        Phase::Ready => (StatusCode::OK, Health::new("ready", &app)),
        Phase::Loading => (StatusCode::SERVICE_UNAVAILABLE, Health::new("loading", &app)),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, Health::new("draining", &app)),
    }
}

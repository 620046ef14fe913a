//! Alive is not ready, and neither is started. Alive means that restarting would not help; started, that the models
//! have loaded once, which may take minutes; ready, that a request sent now is served. A full queue is nobody's business
//! here: it is told to the client, with the time to wait.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::{App, Phase};

/// The state of the server.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `alive`, `dead` or `stuck`; `started` or `loading`; `ready`, `loading` or `draining`.
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

/// Whether the process works: no worker thread has died, and no device is in one piece of work for longer than
/// any should take (`--watchdog`).
#[utoipa::path(
    get,
    path = "/livez",
    tag = "operations",
    responses(
        (status = 200, description = "Alive.", body = Health),
        (status = 503, description = "A worker thread has died or is stuck: restart the server.", body = Health),
    )
)]
pub async fn livez(State(app): State<App>) -> (StatusCode, Json<Health>) {
    match failure(&app) {
        None => (StatusCode::OK, Health::new("alive", &app)),
        Some(failure) => (StatusCode::SERVICE_UNAVAILABLE, Health::new(failure, &app)),
    }
}

/// What no waiting mends: a worker thread is `dead` or `stuck`. When the server leaves they end on purpose, and leaving
/// has a deadline of its own.
pub(super) fn failure(app: &App) -> Option<&'static str> {
    if app.phase() == Phase::Draining {
        return None;
    }
    app.models().iter().find_map(|model| {
        let stuck = || model.batcher.device_busy_for().is_some_and(|time| time > app.config().watchdog);
        if !model.batcher.is_alive() {
            Some("dead")
        } else if stuck() {
            Some("stuck")
        } else {
            None
        }
    })
}

/// Whether the models have loaded once: until then a supervisor waits, and does not yet ask whether the server is alive.
#[utoipa::path(
    get,
    path = "/startupz",
    tag = "operations",
    responses(
        (status = 200, description = "Started.", body = Health),
        (status = 503, description = "Loading.", body = Health),
    )
)]
pub async fn startupz(State(app): State<App>) -> (StatusCode, Json<Health>) {
    match app.phase() {
        Phase::Ready | Phase::Draining => (StatusCode::OK, Health::new("started", &app)),
        Phase::Loading => (StatusCode::SERVICE_UNAVAILABLE, Health::new("loading", &app)),
    }
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

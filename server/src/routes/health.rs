//! Alive is not ready, and neither is started. Alive means that restarting would not help; started, that the models
//! have loaded once, which may take minutes; ready, that a request sent now is served: what is not alive is not ready either. A
//! full queue is nobody's business here: it is told to the client, with the time to wait.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::{App, Phase};

/// The state of the server.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `alive`, `dead` or `stuck`; `started` or `loading`; `ready`, `loading`, `draining`, `dead` or `stuck`.
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

/// Why a request sent now would not be served, if so.
pub(super) fn unready(app: &App) -> Option<&'static str> {
    match app.phase() {
        Phase::Loading => Some("loading"),
        Phase::Draining => Some("draining"),
        Phase::Ready => failure(app),
    }
}

/// Whether a request sent now is served: every model has loaded and passed its golden, their workers work, and the server is
/// not leaving.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "operations",
    responses(
        (status = 200, description = "Ready.", body = Health),
        (status = 503, description = "Loading, draining, or a worker thread has died or is stuck.", body = Health),
    )
)]
pub async fn readyz(State(app): State<App>) -> (StatusCode, Json<Health>) {
    match unready(&app) {
        None => (StatusCode::OK, Health::new("ready", &app)),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, Health::new(why, &app)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use crate::batcher::{Caller, Request};
    use crate::config::Config;
    use crate::engine::fake::{Faults, Gate};
    use crate::sampler::{Evaluate, Unit};
    use crate::testing;

    /// What the probes and the metric say: `/livez`, `/readyz`, `/v2/health/ready`, `windowpane_ready`.
    async fn asked(app: &super::App) -> (String, String, bool, bool) {
        let word = async |path: &str| {
            let answer = testing::get(app, path).await;
            let word = answer.json()["status"].as_str().unwrap().to_owned();
            assert_eq!(answer.status == 200, ["alive", "ready"].contains(&word.as_str()), "{path}: {word}");
            word
        };
        let v2 = testing::get(app, "/v2/health/ready").await;
        assert_eq!(v2.json()["ready"], v2.status == 200);
        let metrics = String::from_utf8(testing::get(app, "/metrics").await.bytes).unwrap();
        let gauge = metrics.lines().any(|line| line == "windowpane_ready 1");
        (word("/livez").await, word("/readyz").await, v2.status == 200, gauge)
    }

    #[tokio::test]
    async fn a_server_whose_worker_has_died_is_not_ready_and_says_why() {
        let app = testing::app(Config::default(), &Faults::default());
        assert_eq!(asked(&app).await, ("alive".to_owned(), "ready".to_owned(), true, true));
        let model = app.model(Some("shoes")).unwrap();
        // A unit of the wrong size is a defect that no request can reach; it ends the thread.
        let unit = Unit::Evaluate(Evaluate::new(vec![0.0; 3], 0.0, 0));
        let (caller, fingerprint, deadline) = (Caller::ANONYMOUS, 0, None);
        let (id, reproducible, units) = (0, false, vec![unit]);
        let request = Request { caller, fingerprint, id, deadline, reproducible, units };
        model.batcher.submit(request).unwrap().finish().await.unwrap_err();
        while model.batcher.is_alive() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(asked(&app).await, ("dead".to_owned(), "dead".to_owned(), false, false));
        let answer = testing::generate(&app, "", json!({"model": "shoes", "prompt": "boot"})).await;
        let (error, status) = (answer.json()["error"].clone(), answer.status.as_u16());
        assert_eq!((status, error["code"].as_str()), (500, Some("engine_error")));
        assert!(error["message"].as_str().unwrap().contains("has died"), "{error}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_whose_device_does_not_come_back_is_not_ready() {
        let gate = Gate::default();
        let faults = Faults { gate: gate.clone(), ..Faults::default() };
        let app = testing::app(Config { watchdog: Duration::from_millis(50), ..Config::default() }, &faults);
        gate.close();
        let own = app.clone();
        let body = json!({"model": "shoes", "prompt": "boot", "steps": 1, "guidance_scale": 1});
        let running = tokio::spawn(async move { testing::generate(&own, "", body).await.status });
        let stuck = async {
            while asked(&app).await != ("stuck".to_owned(), "stuck".to_owned(), false, false) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), stuck).await.expect("it is seen");
        gate.open();
        assert_eq!(running.await.unwrap(), 200);
        assert_eq!(asked(&app).await.1, "ready");
    }
}

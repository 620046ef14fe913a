//! Jobs that fail, and hosts that fail to be told, through the whole stack without a socket, and around no network. What jobs
//! are over HTTP is in the suite, on a real one.

mod told;

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::*;
use crate::config::Config;
use crate::engine::fake::Faults;
use crate::jobs::perform::fake::Fake;
use crate::jobs::store::tests::{Opened, sqlite};
use crate::jobs::{Settings, runner};
use crate::testing::{self, Answer, app, send};

/// A server that keeps jobs.
struct Server {
    app: App,
    _tasks: JoinSet<()>,
    _place: Opened,
}

// === impl Server ===

impl Server {
    async fn with(settings: Settings) -> Self {
        let place = sqlite().await;
        let app = app(Config::default(), &Faults::default());
        let jobs = Jobs::new(place.store.clone(), Box::new(Fake::default()), settings);
        app.keep_jobs(Arc::clone(&jobs));
        let tasks = runner::start(&app, &jobs);
        Self { app, _tasks: tasks, _place: place }
    }

    async fn get(&self, path: &str) -> Answer {
        testing::get(&self.app, path).await
    }

    async fn order(&self, id: &str, order: Value) {
        let request = Request::put(format!("/v1/jobs/{id}")).header(header::CONTENT_TYPE, "application/json");
        let answer = send(&self.app, request.body(Body::from(order.to_string())).unwrap()).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_failed_says_why() {
    let server = Server::with(Settings::default()).await;
    let request = json!({"model": "shoes", "pieces": 1, "fault": ["invalid", 0]});
    server.order("bad", json!({"kind": "jacobian", "request": request})).await;
    // They end when the job does.
    assert_eq!(server.get("/v1/jobs/bad/events").await.status, StatusCode::OK);
    let answer = server.get("/v1/jobs/bad/result").await;
    let error = &answer.json()["error"];
    assert_eq!(
        (answer.status, &error["code"], &error["param"]),
        (StatusCode::CONFLICT, &json!("job_failed"), &json!("id"))
    );
    assert!(error["message"].as_str().unwrap().contains("`seed` is 0"), "{answer:?}");
}

//! What takes longer than its client waits, through the whole stack but the socket.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Request, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::app::App;
use crate::config::Config;
use crate::engine::fake::Faults;
use crate::jobs::kinds::Kinds;
use crate::jobs::store::tests::{Opened, sqlite};
use crate::jobs::{Jobs, Settings, runner};
use crate::testing::{self, Answer, send};

/// An application that keeps jobs and works on them; whoever does not say how long he waits, waits for `after`.
struct Server {
    app: App,
    _tasks: JoinSet<()>,
    _place: Opened,
}

// === impl Server ===

impl Server {
    async fn with(after: Duration) -> Self {
        Self::of(Settings { after, ..Settings::default() }).await
    }

    async fn of(settings: Settings) -> Self {
        let place = sqlite().await;
        let app = testing::app(Config::default(), &Faults::default());
        let jobs = Jobs::new(place.store.clone(), Box::new(Kinds::new(app.clone())), settings);
        app.keep_jobs(std::sync::Arc::clone(&jobs));
        let tasks = runner::start(&app, &jobs);
        Self { app, _tasks: tasks, _place: place }
    }

    async fn get(&self, path: &str) -> Answer {
        testing::get(&self.app, path).await
    }

    /// The result of the job that an answer tells the place of.
    async fn result(&self, answer: &Answer) -> Answer {
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
        assert_eq!(answer.headers["preference-applied"], "respond-async");
        let place = answer.headers[header::LOCATION].to_str().unwrap();
        assert_eq!(place, format!("/v1/jobs/{}", answer.json()["id"].as_str().unwrap()));
        // They end when the job does.
        let events = self.get(&format!("{place}/events")).await;
        assert_eq!(events.status, StatusCode::OK, "{events:?}");
        self.get(&format!("{place}/result")).await
    }
}

/// A PSNR of two images of the fake, asked for with these headers.
async fn measure(app: &App, headers: &[(&'static str, &'static str)], more: Value) -> Answer {
    let mut body = json!({
        "model": "shoes", "train": STANDARD.encode(set()), "train_labels": ["boot", 0], "seed": "7", "timesteps": 3,
    });
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    let mut request = Request::post("/v1/analysis/psnr-gap")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_string()))
        .unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_static(value));
    }
    send(app, request).await
}

/// Two images of 6×4 grey pixels.
fn set() -> Vec<u8> {
    let head = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 4, 6), }\n";
    let pixels: Vec<u8> = (0..48).map(|i| i * 5).collect();
    [b"\x93NUMPY\x01\x00", &(head.len() as u16).to_le_bytes()[..], head.as_bytes(), &pixels].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_wait_finds_the_same_answer_as_a_jobs_result() {
    let server = Server::with(Duration::from_secs(3600)).await;
    for accept in ["application/json", "text/csv", "image/svg+xml"] {
        let waited = measure(&server.app, &[("accept", accept)], json!({})).await;
        assert_eq!(waited.status, StatusCode::OK, "{waited:?}");
        let left = measure(&server.app, &[("accept", accept), ("prefer", "respond-async")], json!({})).await;
        let found = server.result(&left).await;
        assert_eq!(found.status, StatusCode::OK, "{found:?}");
        assert_eq!(found.headers[header::CONTENT_TYPE], waited.headers[header::CONTENT_TYPE]);
        assert_eq!(found.headers.get("x-about"), waited.headers.get("x-about"));
        assert_eq!(found.bytes, waited.bytes, "{accept}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_longer_than_one_waits_is_a_job() {
    let server = Server::with(Duration::ZERO).await;
    let status = async |headers: &[(&'static str, &'static str)], more: Value| {
        measure(&server.app, headers, more).await.status.as_u16()
    };
    assert_eq!(status(&[], json!({})).await, 202);
    assert_eq!(status(&[("prefer", "wait=60")], json!({})).await, 200);
    assert_eq!(status(&[("prefer", "wait=0")], json!({})).await, 202);
    assert_eq!(status(&[("prefer", "respond-async, wait=60")], json!({})).await, 200);
    // Who says how long the answer is worth waiting for waits for it.
    assert_eq!(status(&[("x-request-timeout-ms", "60000")], json!({})).await, 200);
    assert_eq!(status(&[("prefer", "respond-async")], json!({"timeout_ms": 60_000})).await, 200);
    // What is wrong is told at once.
    assert_eq!(status(&[], json!({"timesteps": 0})).await, 422);
    assert_eq!(status(&[("accept", "video/mp4")], json!({})).await, 406);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_more_jobs_are_taken_only_who_asked_for_one_is_refused() {
    let server = Server::of(Settings { after: Duration::ZERO, limit: 0, ..Settings::default() }).await;
    assert_eq!(measure(&server.app, &[], json!({})).await.status, StatusCode::OK);
    let refused = measure(&server.app, &[("prefer", "respond-async")], json!({})).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_becomes_a_job_too() {
    let server = Server::with(Duration::ZERO).await;
    let part = |name: &str, data: &[u8]| {
        let head = format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n");
        [head.as_bytes(), data, b"\r\n"].concat()
    };
    let fields =
        [part("model", b"shoes"), part("train", &set()), part("timesteps", b"3"), part("seed", b"7")];
    let form = [&fields.concat()[..], &part("train_labels", b"[\"boot\", 0]"), b"--b--\r\n"].concat();
    let request = Request::post("/v1/analysis/psnr-gap")
        .header(header::CONTENT_TYPE, "multipart/form-data; boundary=b")
        .body(Body::from(form))
        .unwrap();
    let found = server.result(&send(&server.app, request).await).await;
    let waited = measure(&server.app, &[("prefer", "wait=60")], json!({})).await;
    assert_eq!((found.status, found.bytes), (StatusCode::OK, waited.bytes));
}

#[tokio::test]
async fn where_no_jobs_are_kept_everybody_waits() {
    let app = testing::app(Config::default(), &Faults::default());
    let answer = measure(&app, &[("prefer", "respond-async")], json!({})).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}

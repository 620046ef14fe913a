//! Jobs that fail, and hosts that fail to be told, through the whole stack without a socket, and around no network. What jobs
//! are over HTTP is in the suite, on a real one.

mod told;

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use serde_json::{Value, json};

use super::*;
use crate::config::Config;
use crate::engine::fake::Faults;
use crate::jobs::Settings;
use crate::jobs::perform::fake::Fake;
use crate::jobs::runner::{self, AtWork};
use crate::jobs::store::tests::{Opened, limit_pages, sqlite};
use crate::testing::{self, Answer, app, send};

/// A server that keeps jobs.
struct Server {
    app: App,
    _at_work: AtWork,
    _place: Opened,
}

// === impl Server ===

impl Server {
    async fn with(settings: Settings) -> Self {
        let place = sqlite().await;
        let app = app(Config::default(), &Faults::default());
        let jobs = Jobs::new(place.store.clone(), Box::new(Fake::default()), settings);
        app.keep_jobs(Arc::clone(&jobs));
        let at_work = runner::start(&app, &jobs);
        Self { app, _at_work: at_work, _place: place }
    }

    async fn get(&self, path: &str) -> Answer {
        testing::get(&self.app, path).await
    }

    async fn put(&self, id: &str, order: Value) -> Answer {
        let request = Request::put(format!("/v1/jobs/{id}")).header(header::CONTENT_TYPE, "application/json");
        send(&self.app, request.body(Body::from(order.to_string())).unwrap()).await
    }

    async fn order(&self, id: &str, order: Value) {
        let answer = self.put(id, order).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_form_of_no_length_is_refused() {
    let server = Server::with(Settings::default()).await;
    let order = async |accept: String| {
        let request = json!({"model": "shoes", "pieces": 1});
        server.put("a", json!({"kind": "jacobian", "accept": accept, "request": request})).await
    };
    for accept in [format!("image/png{}", ", a/b".repeat(300)), "a/\0".to_owned(), "nonsense".to_owned()] {
        let answer = order(accept).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{answer:?}");
        assert_eq!(answer.json()["error"]["param"], "accept");
    }
    // What is no media type is not there, and not kept either.
    assert_eq!(order("image/png, a/\0".to_owned()).await.status, StatusCode::ACCEPTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_orders_are_told_to_come_back() {
    let server = Server::with(Settings::default()).await;
    let jobs = server.app.jobs().unwrap();
    let order = json!({"kind": "jacobian", "request": {"model": "m".repeat(1 << 16), "pieces": 1}});
    limit_pages(jobs.store(), Some(0)).await;
    let answer = server.put("a", order.clone()).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
    assert_eq!(answer.json()["error"]["code"], "jobs_unavailable");
    assert!(answer.headers.contains_key(header::RETRY_AFTER), "{answer:?}");
    assert_eq!(server.get("/v1/jobs/a").await.status, StatusCode::NOT_FOUND);
    limit_pages(jobs.store(), None).await;
    assert_eq!(server.put("a", order).await.status, StatusCode::ACCEPTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_without_a_turn_is_let_go_when_the_server_leaves() {
    let server = Server::with(Settings::default()).await;
    let jobs = server.app.jobs().unwrap();
    let turns = [jobs.turn().await, jobs.turn().await];
    server.order("a", json!({"kind": "jacobian", "request": {"model": "shoes", "pieces": 3}})).await;
    let app = server.app.clone();
    let watcher = tokio::spawn(async move { testing::get(&app, "/v1/jobs/a/events").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!watcher.is_finished());
    jobs.leave();
    let told = tokio::time::timeout(Duration::from_secs(5), watcher).await.expect("it is let go").unwrap();
    assert_eq!((told.status, told.bytes.len()), (StatusCode::OK, 0), "{told:?}");
    drop(turns);
}

/// However many watch: the store has connections left for leases, orders and results.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_on_while_all_turns_of_watchers_are_taken() {
    let server = Server::with(Settings::default()).await;
    let jobs = server.app.jobs().unwrap();
    let turns = [jobs.turn().await, jobs.turn().await];
    server.order("a", json!({"kind": "jacobian", "request": {"model": "shoes", "pieces": 3}})).await;
    let app = server.app.clone();
    let watcher = tokio::spawn(async move { testing::get(&app, "/v1/jobs/a/events").await });
    let ended = async {
        while server.get("/v1/jobs/a").await.json()["state"] != "succeeded" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("it ends");
    assert!(!watcher.is_finished(), "it waits for its turn");
    drop(turns);
    let told = watcher.await.unwrap();
    assert!(String::from_utf8_lossy(&told.bytes).contains("event: succeeded"), "{told:?}");
}

//! The routes of jobs through the whole stack, without a socket.

mod told;

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tower::ServiceExt;

use super::*;
use crate::config::Config;
use crate::engine::fake::Faults;
use crate::jobs::perform::fake::Fake;
use crate::jobs::store::tests::{Opened, postgres, sqlite};
use crate::jobs::{Settings, runner};
use crate::keys::{Keys, tests::file};
use crate::router::router;
use crate::testing::{self, Answer, app, send};

/// A server with keys that keeps jobs.
struct Server {
    app: App,
    jobs: Arc<Jobs>,
    _tasks: JoinSet<()>,
    _place: Opened,
}

// === impl Server ===

impl Server {
    /// One that does not work on them.
    async fn idle() -> Self {
        Self::with(Settings { workers: 0, ..Settings::default() }).await
    }

    async fn with(settings: Settings) -> Self {
        Self::on(sqlite().await, settings)
    }

    fn on(place: Opened, settings: Settings) -> Self {
        let keys = file(&[
            ("drawer", "generate", "draws"),
            ("looker", "analyse", "looks"),
            ("other", "analyse", "else"),
            ("root", "admin", "root"),
        ]);
        let keys = Keys::in_file(&keys).unwrap();
        let app = app(Config { keys, ..Config::default() }, &Faults::default());
        let jobs = Jobs::new(place.store.clone(), Box::new(Fake::default()), settings);
        app.keep_jobs(Arc::clone(&jobs));
        let tasks = runner::start(&app, &jobs);
        Self { app, jobs, _tasks: tasks, _place: place }
    }

    #[expect(clippy::too_many_arguments, reason = "a request has so many parts")]
    async fn ask(
        &self,
        key: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header("x-api-key", key);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        send(&self.app, request.body(body).unwrap()).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("looks", "GET", path, &[], None).await
    }

    /// A job that has ended, by its id.
    async fn done(&self, id: &str, request: Value) {
        let path = format!("/v1/jobs/{id}");
        let body = json!({"kind": "jacobian", "request": request});
        assert_eq!(self.ask("looks", "PUT", &path, &[], Some(body)).await.status, StatusCode::ACCEPTED);
        let events = self.get(&format!("{path}/events")).await;
        assert_eq!(events.status, StatusCode::OK, "{events:?}");
    }
}

fn look() -> Value {
    json!({"kind": "jacobian", "request": {"model": "shoes", "pieces": 2}})
}

fn code(answer: &Answer) -> (u16, String, Option<String>) {
    let error = &answer.json()["error"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    (answer.status.as_u16(), text(&error["code"]).unwrap_or_default(), text(&error["param"]))
}

fn is(code: &str, status: u16, param: Option<&str>) -> (u16, String, Option<String>) {
    (status, code.to_owned(), param.map(str::to_owned))
}

#[tokio::test]
async fn an_order_is_answered_with_its_place() {
    let server = Server::idle().await;
    let answer = server.ask("looks", "POST", "/v1/jobs", &[], Some(look())).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    let job = answer.json();
    let place = answer.headers[header::LOCATION].to_str().unwrap();
    assert_eq!(place, format!("/v1/jobs/{}", job["id"].as_str().unwrap()));
    for (field, value) in [
        ("object", json!("job")),
        ("kind", json!("jacobian")),
        ("model", json!("shoes")),
        ("state", json!("queued")),
        ("position", json!(0)),
        ("progress", json!({"done": 0, "total": 0})),
        ("attempts", json!(0)),
        ("eta", Value::Null),
        ("error", Value::Null),
        ("result", Value::Null),
    ] {
        assert_eq!(job[field], value, "{field}");
    }
    assert_eq!(server.get(place).await.json(), job);
    let second = server.ask("looks", "POST", "/v1/jobs", &[], Some(look())).await.json();
    assert_ne!(second["id"], job["id"]);
    assert_eq!(second["position"], 1);
}

#[tokio::test]
async fn the_same_order_under_the_same_id_is_the_same_job() {
    let server = Server::idle().await;
    let put =
        async |key: &str, body: Value| server.ask(key, "PUT", "/v1/jobs/mine%2F1", &[], Some(body)).await;
    let first = put("looks", look()).await;
    assert_eq!(first.status, StatusCode::ACCEPTED);
    assert_eq!(first.headers[header::LOCATION], "/v1/jobs/mine%2F1");
    let again = put("looks", look()).await;
    assert_eq!((again.status, again.json()), (StatusCode::OK, first.json()));
    let other = put("looks", json!({"kind": "jacobian", "request": {"model": "shoes", "pieces": 3}})).await;
    assert_eq!(code(&other), is("job_conflict", 409, Some("id")));
    // What is another's is not there, and takes no id away.
    assert_eq!(put("else", look()).await.status, StatusCode::ACCEPTED);
    let long = format!("/v1/jobs/{}", "x".repeat(129));
    assert_eq!(
        code(&server.ask("looks", "PUT", &long, &[], Some(look())).await),
        is("not_found", 404, Some("id"))
    );
}

#[tokio::test]
async fn a_wrong_order_is_refused_in_the_words_of_its_route() {
    let server = Server::idle().await;
    let order =
        async |key: &str, body: Value| code(&server.ask(key, "POST", "/v1/jobs", &[], Some(body)).await);
    for (body, expected) in [
        (json!({}), is("invalid_value", 422, Some("kind"))),
        (json!({"kind": "portrait"}), is("invalid_value", 422, Some("kind"))),
        (json!({"kind": "jacobian"}), is("invalid_value", 422, Some("request"))),
        (json!({"kind": "jacobian", "request": [1]}), is("invalid_value", 422, Some("request"))),
        (json!({"kind": "jacobian", "request": {}}), is("invalid_value", 422, Some("request.model"))),
        (json!({"kind": "jacobian", "request": {"x": 1}}), is("unknown_field", 422, Some("request.field"))),
        (json!({"kind": "jacobian", "order": {}}), is("unknown_field", 422, Some("order"))),
        (
            json!({"kind": "jacobian", "request": {"model": "shoes"}, "webhook": {"url": "https://a"}}),
            is("invalid_value", 422, Some("webhook.url")),
        ),
    ] {
        assert_eq!(order("looks", body.clone()).await, expected, "{body}");
    }
    assert_eq!(order("draws", look()).await, is("forbidden", 403, None));
    let images = json!({"kind": "images", "request": {"model": "shoes"}});
    let drawn = server.ask("draws", "POST", "/v1/jobs", &[], Some(images)).await;
    assert_eq!(drawn.status, StatusCode::ACCEPTED);
    assert_eq!(server.ask("nobody", "GET", "/v1/jobs", &[], None).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(server.get("/v1/jobs").await.json()["data"], json!([]));
}

#[tokio::test]
async fn a_caller_has_so_many_jobs() {
    let server = Server::with(Settings { workers: 0, limit: 1, ..Settings::default() }).await;
    assert_eq!(server.ask("looks", "POST", "/v1/jobs", &[], Some(look())).await.status, StatusCode::ACCEPTED);
    let more = server.ask("looks", "POST", "/v1/jobs", &[], Some(look())).await;
    assert_eq!(code(&more), is("too_many_jobs", 429, None));
    assert_eq!(server.ask("else", "POST", "/v1/jobs", &[], Some(look())).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_job_is_seen_by_its_owner_and_administrators() {
    let server = Server::idle().await;
    server.ask("looks", "PUT", "/v1/jobs/a", &[], Some(look())).await;
    for (method, path) in [("GET", ""), ("GET", "/events"), ("GET", "/result"), ("DELETE", "")] {
        let path = format!("/v1/jobs/a{path}");
        assert_eq!(
            code(&server.ask("else", method, &path, &[], None).await),
            is("not_found", 404, Some("id"))
        );
    }
    assert_eq!(server.ask("root", "GET", "/v1/jobs/a", &[], None).await.json()["state"], "queued");
    assert_eq!(server.ask("else", "GET", "/v1/jobs", &[], None).await.json()["data"], json!([]));
    assert_eq!(server.ask("root", "DELETE", "/v1/jobs/a", &[], None).await.json()["state"], "cancelled");
}

#[tokio::test]
async fn jobs_are_listed_page_by_page() {
    let server = Server::idle().await;
    for id in ["a", "b", "c"] {
        server.ask("looks", "PUT", &format!("/v1/jobs/{id}"), &[], Some(look())).await;
    }
    server.ask("looks", "DELETE", "/v1/jobs/b", &[], None).await;
    let page = async |query: &str| {
        let page = server.get(&format!("/v1/jobs{query}")).await.json();
        let ids: Vec<_> = page["data"].as_array().unwrap().iter().map(|job| job["id"].clone()).collect();
        (json!(ids), page["has_more"].clone())
    };
    assert_eq!(page("").await, (json!(["c", "b", "a"]), json!(false)));
    assert_eq!(page("?limit=2").await, (json!(["c", "b"]), json!(true)));
    assert_eq!(page("?limit=2&after=b").await, (json!(["a"]), json!(false)));
    assert_eq!(page("?state=cancelled").await, (json!(["b"]), json!(false)));
    for (query, param) in
        [("limit=0", "limit"), ("limit=x", "limit"), ("after=z", "after"), ("state=lost", "state")]
    {
        let answer = server.get(&format!("/v1/jobs?{query}")).await;
        assert_eq!(code(&answer), is("invalid_value", 422, Some(param)), "{query}");
    }
}

#[tokio::test]
async fn what_is_no_id_is_not_looked_for() {
    for place in [Some(sqlite().await), postgres().await].into_iter().flatten() {
        let server = Server::on(place, Settings { workers: 0, ..Settings::default() });
        for query in ["after=%00", "after=a%20b", "after="] {
            let answer = server.get(&format!("/v1/jobs?{query}")).await;
            assert_eq!(code(&answer), is("invalid_value", 422, Some("after")), "{query}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_told_to_the_last_and_again_from_any() {
    let server = Server::with(Settings::default()).await;
    server.done("a", json!({"model": "shoes", "pieces": 3, "pause": 30})).await;
    let read = async |after: Option<&str>| {
        let header = after.map(|after| ("last-event-id", after));
        let answer = server.ask("looks", "GET", "/v1/jobs/a/events", header.as_slice(), None).await;
        assert_eq!(answer.headers[header::CONTENT_TYPE], "text/event-stream");
        String::from_utf8(answer.bytes).unwrap()
    };
    let all = read(None).await;
    let fields = |name: &str| -> Vec<String> {
        all.lines().filter_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned()).collect()
    };
    let (ids, kinds) = (fields("id:"), fields("event:"));
    assert_eq!((ids[0].as_str(), kinds[0].as_str(), kinds[1].as_str()), ("1", "queued", "running"));
    assert_eq!(kinds.last().unwrap(), "succeeded");
    let numbers: Vec<u64> = ids.iter().map(|id| id.parse().unwrap()).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    for data in fields("data:") {
        let event: Value = serde_json::from_str(&data).unwrap();
        assert_eq!(event["job"], "a");
    }
    // Behind the second comes what comes behind it.
    let rest = read(Some("2")).await;
    assert!(rest.starts_with("id: ") && all.ends_with(&rest) && !rest.contains("event: running"), "{rest}");
    let last = ids.last().unwrap();
    assert_eq!(read(Some(last)).await, "");
    for wrong in ["x", "-1", "1.5"] {
        let header = [("last-event-id", wrong)];
        let answer = server.ask("looks", "GET", "/v1/jobs/a/events", &header, None).await;
        assert_eq!(code(&answer), is("invalid_value", 422, Some("last-event-id")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_the_job_is_cancelled_or_the_server_leaves() {
    let server = Server::idle().await;
    for id in ["a", "b"] {
        server.ask("looks", "PUT", &format!("/v1/jobs/{id}"), &[], Some(look())).await;
    }
    let (cancelled, _) = tokio::join!(server.get("/v1/jobs/a/events"), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.ask("looks", "DELETE", "/v1/jobs/a", &[], None).await
    });
    assert!(String::from_utf8(cancelled.bytes).unwrap().contains("event: cancelled"));
    let request = Request::get("/v1/jobs/b/events").header("x-api-key", "looks").body(Body::empty());
    let answer = router(&server.app).oneshot(request.unwrap()).await.unwrap();
    let mut body = answer.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let text = String::from_utf8(first.to_vec()).unwrap();
    assert!(text.contains("event: queued") && text.matches("event: ").count() == 1, "{text}");
    server.jobs.leave();
    assert!(body.collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_comes_whole_and_in_ranges() {
    let server = Server::with(Settings::default()).await;
    server.done("a", json!({"model": "shoes", "pieces": 3})).await;
    let whole = "piece 0;piece 1;piece 2;";
    let fetch =
        async |headers: &[(&str, &str)]| server.ask("looks", "GET", "/v1/jobs/a/result", headers, None).await;
    let answer = fetch(&[]).await;
    assert_eq!((answer.status, answer.bytes.as_slice()), (StatusCode::OK, whole.as_bytes()));
    let etag = answer.headers[header::ETAG].to_str().unwrap().to_owned();
    for (name, value) in [
        ("content-type", "text/plain"),
        ("content-length", "24"),
        ("accept-ranges", "bytes"),
        ("x-about", "a"),
    ] {
        assert_eq!(answer.headers[name], value, "{name}");
    }
    let job = server.get("/v1/jobs/a").await.json();
    assert_eq!(job["result"]["size"], 24);
    assert_eq!(etag, format!("\"{}\"", job["result"]["sha256"].as_str().unwrap()));
    for (range, part, told) in [
        ("bytes=0-4", "piece", "bytes 0-4/24"),
        ("bytes=16-", "piece 2;", "bytes 16-23/24"),
        ("bytes=-2", "2;", "bytes 22-23/24"),
    ] {
        for headers in [&[("range", range)][..], &[("range", range), ("if-range", etag.as_str())]] {
            let answer = fetch(headers).await;
            assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
            assert_eq!(
                (answer.bytes.as_slice(), answer.headers[header::CONTENT_RANGE].to_str().unwrap()),
                (part.as_bytes(), told)
            );
            assert_eq!(answer.headers[header::CONTENT_LENGTH], part.len().to_string());
        }
    }
    let other = fetch(&[("range", "bytes=0-4"), ("if-range", "\"another\"")]).await;
    assert_eq!((other.status, other.bytes.len()), (StatusCode::OK, 24));
    let beyond = fetch(&[("range", "bytes=24-")]).await;
    assert_eq!(code(&beyond), is("range_not_satisfiable", 416, Some("range")));
    assert_eq!(beyond.headers[header::CONTENT_RANGE], "bytes */24");
    let head = server.ask("looks", "HEAD", "/v1/jobs/a/result", &[("range", "bytes=0-4")], None).await;
    assert_eq!((head.status, head.bytes.len()), (StatusCode::OK, 0));
    assert_eq!(head.headers[header::CONTENT_LENGTH], "24");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_without_a_result_says_why() {
    let server = Server::with(Settings::default()).await;
    server.done("bad", json!({"model": "shoes", "pieces": 1, "fault": ["invalid", 0]})).await;
    let answer = server.get("/v1/jobs/bad/result").await;
    assert_eq!(code(&answer), is("job_failed", 409, Some("id")));
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("`seed` is 0"), "{answer:?}");
    let idle = Server::idle().await;
    idle.ask("looks", "PUT", "/v1/jobs/a", &[], Some(look())).await;
    assert_eq!(code(&idle.get("/v1/jobs/a/result").await), is("job_unfinished", 409, Some("id")));
    for _ in 0..2 {
        let cancelled = idle.ask("looks", "DELETE", "/v1/jobs/a", &[], None).await;
        assert_eq!((cancelled.status, &cancelled.json()["state"]), (StatusCode::OK, &json!("cancelled")));
    }
    assert_eq!(code(&idle.get("/v1/jobs/a/result").await), is("cancelled", 409, Some("id")));
}

#[tokio::test]
async fn without_a_store_there_are_no_jobs() {
    let app = app(Config::default(), &Faults::default());
    let answer = testing::get(&app, "/v1/jobs").await;
    assert_eq!(code(&answer), is("not_found", 404, None));
}

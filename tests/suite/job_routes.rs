//! Jobs over HTTP: what an order is answered, whose jobs are, pages of them, their events from any one on, their results
//! whole and in ranges, and who is told of their end; and looks whose clients do not wait. Where a test is about what has not
//! been done, nobody works on the jobs.
#![expect(clippy::needless_pass_by_value, reason = "an order is a `json!` on the spot")]

mod results;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use suite::{Answer, Postgres, TestServer, keys, sha256};
use tempfile::{NamedTempFile, TempDir};
use windowpane_server::Config;
use windowpane_server::jobs::Settings;
use windowpane_server::jobs::place::Place;
use windowpane_server::jobs::webhook::{Hooks, Secret};

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(3600);

/// A server with keys that keeps jobs.
struct Keeping {
    server: TestServer,
    _folder: TempDir,
}

// === impl Keeping ===

impl Keeping {
    /// One that does not work on them.
    fn idle() -> Self {
        Self::with(Settings { workers: 0, ..Settings::default() })
    }

    /// In a file, unless the settings name a place.
    fn with(settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = Place::Sqlite(folder.path().join("jobs.sqlite"));
        let place = if settings.place == Place::Off { file } else { settings.place };
        let keys =
            keys(&[("drawer", "generate"), ("looker", "analyse"), ("other", "analyse"), ("root", "admin")]);
        let jobs = Settings { place, ..settings };
        Self { server: TestServer::start(Config { keys, jobs, ..TestServer::config() }), _folder: folder }
    }

    fn request(&self, who: &str, method: &str, path: &str) -> RequestBuilder {
        self.server.request(method, path).bearer_auth(format!("{who}'s secret"))
    }

    fn ask(&self, who: &str, method: &str, path: &str) -> Answer {
        self.server.send(self.request(who, method, path))
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("looker", "GET", path)
    }

    /// POST of an order, or PUT of it under an id.
    fn order(&self, who: &str, id: Option<&str>, order: Value) -> Answer {
        let (method, path) = match id {
            Some(id) => ("PUT", format!("/v1/jobs/{id}")),
            None => ("POST", "/v1/jobs".to_owned()),
        };
        let request = self.request(who, method, &path).header("content-type", "application/json");
        self.server.send(request.body(order.to_string()))
    }

    /// The job of an order that was taken.
    fn taken(&self, who: &str, id: Option<&str>, order: Value) -> Value {
        accepted(&self.order(who, id, order))
    }

    /// Waits for the end of a job; its events.
    fn end(&self, id: &str) -> String {
        self.get(&format!("/v1/jobs/{id}/events")).ok().text().to_owned()
    }

    /// An answer whose body has only begun.
    fn begun(&self, path: &str) -> Response {
        let request = self.request("looker", "GET", path);
        // Within the runtime: the client looks for it.
        self.server.block_on(async { request.send().await.unwrap() })
    }
}

/// The job that an answer tells the place of.
fn accepted(answer: &Answer) -> Value {
    assert_eq!(answer.status, 202, "{}", answer.text());
    let job = answer.json();
    let id = job["id"].as_str().unwrap().replace('/', "%2F");
    assert_eq!(answer.header("location"), format!("/v1/jobs/{id}"));
    job
}

/// A look at one token, with these fields changed.
fn look(fields: Value) -> Value {
    let mut look = json!({
        "model": "tiny", "prompt": "ring", "seed": 7, "timestep": 30, "layers": [0], "tokens": [0],
    });
    look.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    look
}

/// The order of it.
fn order() -> Value {
    json!({"kind": "attention", "request": look(json!({}))})
}

/// The same, whose result is a file.
fn file() -> Value {
    json!({"kind": "attention", "request": look(json!({})), "accept": "application/x-npz"})
}

#[test]
fn an_order_is_answered_with_its_place_and_is_one_job_however_often_it_is_sent() {
    let kept = Keeping::idle();
    for (body, status, code, param) in [
        (json!({}), 422, "invalid_value", "kind"),
        (json!({"kind": "portrait"}), 422, "invalid_value", "kind"),
        (json!({"kind": "attention"}), 422, "invalid_value", "request"),
        (json!({"kind": "attention", "request": [1]}), 422, "invalid_value", "request"),
        (json!({"kind": "attention", "request": {}}), 422, "invalid_value", "request.timestep"),
        (json!({"kind": "attention", "request": {"timestep": 30}}), 422, "invalid_value", "request.prompt"),
        (json!({"kind": "attention", "request": {"x": 1}}), 422, "unknown_field", "request.x"),
        (json!({"kind": "attention", "order": {}}), 422, "unknown_field", "order"),
        (
            json!({"kind": "attention", "request": look(json!({"model": "x"}))}),
            404,
            "model_not_found",
            "request.model",
        ),
        (
            json!({"kind": "attention", "request": look(json!({})), "webhook": {"url": "https://a"}}),
            422,
            "invalid_value",
            "webhook.url",
        ),
    ] {
        let answer = kept.order("looker", None, body.clone());
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
        answer.refused(status, code, Some(param));
    }
    kept.order("drawer", None, order()).refused(403, "forbidden", None);
    assert_eq!(kept.server.get("/v1/jobs").status, 401);
    assert_eq!(kept.get("/v1/jobs").ok().json()["data"], json!([]));

    let job = kept.taken("looker", None, order());
    let digest = &kept.server.app().model(None).unwrap().card.digest;
    for (field, value) in [
        ("object", json!("job")),
        ("kind", json!("attention")),
        ("model", json!("tiny")),
        ("digest", json!(digest)),
        ("state", json!("queued")),
        ("position", json!(0)),
        // The calls that sample it, and the look itself.
        ("progress", json!({"done": 0, "total": 8})),
        ("attempts", json!(0)),
        ("error", Value::Null),
        ("result", Value::Null),
    ] {
        assert_eq!(job[field], value, "{field}");
    }
    assert!(job["eta"].as_f64().unwrap() > 0.0, "{job}");
    assert_eq!(kept.get(&format!("/v1/jobs/{}", job["id"].as_str().unwrap())).ok().json(), job);
    let second = kept.taken("looker", None, order());
    assert_ne!(second["id"], job["id"]);
    assert_eq!(second["position"], 1);

    let mine = Some("mine%2F1");
    let first = kept.taken("looker", mine, order());
    assert_eq!(first["id"], "mine/1");
    let again = kept.order("looker", mine, order()).ok();
    assert_eq!((again.json(), again.header("location")), (first, "/v1/jobs/mine%2F1"));
    let other = json!({"kind": "attention", "request": look(json!({"seed": 8}))});
    kept.order("looker", mine, other).refused(409, "job_conflict", Some("id"));
    // What is another's is not there, and takes no id away.
    kept.taken("other", mine, order());
    kept.order("looker", Some(&"x".repeat(129)), order()).refused(404, "not_found", Some("id"));
    // Who may only draw may order what is drawn.
    let images = json!({"model": "tiny", "prompt": "ring", "n": 1});
    kept.taken("drawer", None, json!({"kind": "images", "request": images}));
    // Where none are kept.
    TestServer::shared().get("/v1/jobs").refused(404, "not_found", None);
}

#[test]
fn jobs_are_their_owners_who_has_so_many_and_turns_their_pages() {
    let idle = Settings { workers: 0, limit: 3, ..Settings::default() };
    let database = |postgres: &Postgres| {
        let place = Place::Postgres(TestServer::shared().block_on(postgres.database()));
        Settings { place, ..idle.clone() }
    };
    for settings in [Some(idle.clone()), Postgres::shared().map(database)].into_iter().flatten() {
        let kept = Keeping::with(settings);
        kept.taken("looker", Some("a"), order());
        for (method, rest) in [("GET", ""), ("GET", "/events"), ("GET", "/result"), ("DELETE", "")] {
            let path = format!("/v1/jobs/a{rest}");
            kept.ask("other", method, &path).refused(404, "not_found", Some("id"));
        }
        assert_eq!(kept.ask("root", "GET", "/v1/jobs/a").ok().json()["state"], "queued");
        assert_eq!(kept.ask("other", "GET", "/v1/jobs").ok().json()["data"], json!([]));
        kept.get("/v1/jobs/a/result").refused(409, "job_unfinished", Some("id"));

        kept.taken("looker", Some("b"), order());
        kept.taken("looker", Some("c"), order());
        kept.order("looker", None, order()).refused(429, "too_many_jobs", None);
        kept.taken("other", None, order());

        // Ids are a caller's own: an administrator is told where that is not enough, and stops nobody else's.
        kept.taken("other", Some("a"), order());
        for (method, rest) in [("GET", ""), ("GET", "/events"), ("GET", "/result"), ("DELETE", "")] {
            let path = format!("/v1/jobs/a{rest}");
            kept.ask("root", method, &path).refused(409, "job_conflict", Some("id"));
        }
        assert_eq!(kept.ask("other", "DELETE", "/v1/jobs/a").ok().json()["state"], "cancelled");
        assert_eq!(kept.get("/v1/jobs/a").ok().json()["state"], "queued");

        for who in ["root", "looker", "looker"] {
            assert_eq!(kept.ask(who, "DELETE", "/v1/jobs/b").ok().json()["state"], "cancelled");
        }
        kept.get("/v1/jobs/b/result").refused(409, "cancelled", Some("id"));

        let page = |query: &str| {
            let page = kept.get(&format!("/v1/jobs{query}")).ok().json();
            let ids = page["data"].as_array().unwrap().iter().map(|job| job["id"].clone());
            (ids.collect::<Value>(), page["has_more"].clone())
        };
        assert_eq!(page(""), (json!(["c", "b", "a"]), json!(false)));
        assert_eq!(page("?limit=2"), (json!(["c", "b"]), json!(true)));
        assert_eq!(page("?limit=2&after=b"), (json!(["a"]), json!(false)));
        assert_eq!(page("?state=cancelled"), (json!(["b"]), json!(false)));
        for (query, param) in [
            ("limit=0", "limit"),
            ("limit=x", "limit"),
            ("after=z", "after"),
            // What is no id is not looked for: not everything can be asked of a database.
            ("after=%00", "after"),
            ("after=a%20b", "after"),
            ("after=", "after"),
            ("state=lost", "state"),
        ] {
            kept.get(&format!("/v1/jobs?{query}")).refused(422, "invalid_value", Some(param));
        }
    }
}

#[test]
fn events_are_told_to_the_last_and_again_from_any() {
    let kept = Keeping::with(Settings::default());
    let images = json!({"model": "tiny", "prompt": "ring", "seed": 7, "steps": 1, "n": 24});
    kept.taken("looker", Some("a"), json!({"kind": "images", "request": images}));
    // Without what is said while there is nothing to tell.
    let all = kept.end("a").replace(": nothing new\n\n", "");
    let fields = |name: &str| -> Vec<String> {
        all.lines().filter_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned()).collect()
    };
    let (ids, kinds) = (fields("id:"), fields("event:"));
    assert_eq!((ids[0].as_str(), kinds[0].as_str(), kinds[1].as_str()), ("1", "queued", "running"));
    assert_eq!(kinds.last().unwrap(), "succeeded");
    let numbers: Vec<u64> = ids.iter().map(|id| id.parse().unwrap()).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    for data in fields("data:") {
        assert_eq!(serde_json::from_str::<Value>(&data).unwrap()["job"], "a");
    }
    let from = |last: &str| {
        let request = kept.request("looker", "GET", "/v1/jobs/a/events").header("last-event-id", last);
        kept.server.send(request)
    };
    // Behind the second comes what comes behind it, and behind the last nothing.
    let rest = from("2").ok();
    assert_eq!(rest.header("content-type"), "text/event-stream");
    let rest = rest.text();
    assert!(rest.starts_with("id: ") && all.ends_with(rest) && !rest.contains("event: running"), "{rest}");
    assert!(rest.contains("event: succeeded"), "{rest}");
    // A browser asks again and again until it is told that there is no more.
    let none = from(ids.last().unwrap());
    assert_eq!((none.status, none.bytes.len()), (204, 0));
    for wrong in ["x", "-1", "1.5"] {
        from(wrong).refused(422, "invalid_value", Some("last-event-id"));
    }
}

#[test]
fn a_stream_ends_when_the_job_is_cancelled_or_the_server_leaves() {
    let mut kept = Keeping::idle();
    for id in ["a", "b"] {
        kept.taken("looker", Some(id), order());
    }
    let mut streams = ["a", "b"].map(|id| kept.begun(&format!("/v1/jobs/{id}/events")));
    for stream in &mut streams {
        let first = kept.server.block_on(stream.chunk()).unwrap().unwrap();
        let text = String::from_utf8(first.to_vec()).unwrap();
        assert!(text.contains("event: queued") && text.matches("event: ").count() == 1, "{text}");
    }
    let [cancelled, left] = streams;
    kept.ask("looker", "DELETE", "/v1/jobs/a").ok();
    let rest = kept.server.block_on(cancelled.text()).unwrap();
    assert!(rest.contains("event: cancelled") && rest.matches("event: ").count() == 1, "{rest}");
    kept.server.begin_to_leave();
    let rest = kept.server.block_on(left.text()).unwrap();
    assert!(!rest.contains("event: "), "{rest}");
}

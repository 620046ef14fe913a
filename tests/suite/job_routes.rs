//! Jobs over HTTP: what an order is answered, whose jobs are, pages of them, their events from any one on, their results
//! whole and in ranges, and who is told of their end; and looks whose clients do not wait. Where a test is about what has not
//! been done, nobody works on the jobs.
#![expect(clippy::needless_pass_by_value, reason = "an order is a `json!` on the spot")]

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
    assert_eq!(from(ids.last().unwrap()).ok().text(), "");
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

#[test]
fn a_result_comes_whole_and_in_ranges_and_its_end_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = format!("http://{}", listener.local_addr().unwrap());
    let secret = NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
    let hooks = Hooks::new(vec![host.parse().unwrap()], Secret::read(secret.path()).unwrap());
    let kept = Keeping::with(Settings { hooks, ..Settings::default() });
    let mut order = file();
    order["webhook"] = json!({"url": format!("{host}/hook")});
    kept.taken("looker", Some("a"), order);
    assert!(kept.end("a").contains("event: succeeded"));
    is_told(&listener, &kept.server);

    let request = kept.request("looker", "POST", "/v1/analysis/attention");
    let request = request.header("content-type", "application/json").header("accept", "application/x-npz");
    let waited = kept.server.send(request.body(look(json!({})).to_string())).ok();
    let whole = kept.get("/v1/jobs/a/result").ok();
    assert!(whole.bytes == waited.bytes, "the route answers otherwise");
    let size = whole.bytes.len();
    for name in ["content-type", "x-about"] {
        assert!(!whole.header(name).is_empty(), "{name}");
        assert_eq!(whole.header(name), waited.header(name), "{name}");
    }
    assert_eq!(whole.header("content-length"), size.to_string());
    assert_eq!(whole.header("accept-ranges"), "bytes");
    let job = kept.get("/v1/jobs/a").ok().json();
    assert_eq!(
        (&job["result"]["size"], &job["result"]["media_type"]),
        (&json!(size), &json!("application/x-npz"))
    );
    assert_eq!(job["result"]["sha256"], sha256(&whole.bytes));
    let etag = whole.header("etag");
    assert_eq!(etag, format!("\"{}\"", sha256(&whole.bytes)));

    let fetch = |method: &str, headers: &[(&str, &str)]| {
        let request = kept.request("looker", method, "/v1/jobs/a/result");
        kept.server.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
    };
    for (range, part) in [
        ("bytes=0-4".to_owned(), 0..5),
        (format!("bytes={}-", size - 8), size - 8..size),
        ("bytes=-2".to_owned(), size - 2..size),
    ] {
        for headers in [&[("range", range.as_str())][..], &[("range", range.as_str()), ("if-range", etag)]] {
            let answer = fetch("GET", headers);
            assert_eq!(answer.status, 206, "{range}");
            assert_eq!(answer.bytes, whole.bytes[part.clone()], "{range}");
            assert_eq!(
                answer.header("content-range"),
                format!("bytes {}-{}/{size}", part.start, part.end - 1)
            );
            assert_eq!(answer.header("content-length"), part.len().to_string());
            assert_eq!(answer.header("etag"), etag);
        }
    }
    let other = fetch("GET", &[("range", "bytes=0-4"), ("if-range", "\"another\"")]).ok();
    assert_eq!(other.bytes.len(), size);
    let beyond = fetch("GET", &[("range", &format!("bytes={size}-"))]);
    beyond.refused(416, "range_not_satisfiable", Some("range"));
    assert_eq!(beyond.header("content-range"), format!("bytes */{size}"));
    let head = fetch("HEAD", &[("range", "bytes=0-4")]).ok();
    assert!(head.bytes.is_empty());
    assert_eq!((head.header("content-length"), head.header("etag")), (size.to_string().as_str(), etag));

    // What no job may bring is not taken.
    let kept = Keeping::with(Settings { result_limit: 1000, ..Settings::default() });
    let why = kept.order("looker", Some("large"), file()).refused(422, "invalid_value", None);
    assert!(why.contains(" bytes, more than 1000, the most there may be (`--job-result-limit`)"), "{why}");
}

/// Takes what is told of the job `a` there.
fn is_told(listener: &TcpListener, server: &TestServer) {
    listener.set_nonblocking(true).unwrap();
    let mut came = None;
    server.until("somebody tells", || {
        came = listener.accept().ok();
        came.is_some()
    });
    let (mut stream, _) = came.unwrap();
    stream.set_nonblocking(false).unwrap();
    let (mut asked, mut buffer) = (Vec::new(), [0; 4096]);
    let (head, told) = loop {
        let read = stream.read(&mut buffer).unwrap();
        asked.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&asked);
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && let Ok(told) = serde_json::from_str::<Value>(body)
        {
            break (head.to_owned(), told);
        }
        assert!(read > 0, "{text}");
    };
    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /hook HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("webhook-signature: v1,"), "{head}");
    assert_eq!((&told["type"], &told["data"]["state"]), (&json!("job.succeeded"), &json!("succeeded")));
    assert_eq!(told["data"]["id"], "a");
    let taken = server.app().metrics().webhooks.with_label_values(&["delivered"]);
    server.until("it is known to be told", || taken.get() == 1);
}

/// Two images of a ring's size.
fn set() -> Vec<u8> {
    let head = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 32, 32), }\n";
    let pixels: Vec<u8> = (0..2 * 32 * 32).map(|i| (i / 8) as u8).collect();
    [b"\x93NUMPY\x01\x00", &(head.len() as u16).to_le_bytes()[..], head.as_bytes(), &pixels].concat()
}

/// How well they are denoised, asked for with these headers.
fn measure(kept: &Keeping, headers: &[(&str, &str)], more: Value) -> Answer {
    let mut body = json!({
        "model": "tiny", "train": STANDARD.encode(set()), "train_labels": ["ring", 0], "seed": "7", "timesteps": 3,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let request = kept.request("looker", "POST", "/v1/analysis/psnr-gap");
    let request = request.header("content-type", "application/json").body(body.to_string());
    kept.server.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
}

/// The same, asked for by a form.
fn measure_by_form(kept: &Keeping, headers: &[(&str, &str)]) -> Answer {
    let labels = b"[\"ring\", 0]".as_slice();
    let set = set();
    let parts = [
        ("model", &b"tiny"[..]),
        ("train", &set),
        ("train_labels", labels),
        ("timesteps", b"3"),
        ("seed", b"7"),
    ];
    let mut form = Vec::new();
    for (name, data) in parts {
        let head = format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n");
        form.extend([head.as_bytes(), data, b"\r\n"].concat());
    }
    form.extend(b"--b--\r\n");
    let request = kept.request("looker", "POST", "/v1/analysis/psnr-gap");
    let request = request.header("content-type", "multipart/form-data; boundary=b").body(form);
    kept.server.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
}

#[test]
fn who_does_not_wait_finds_the_same_answer_as_a_jobs_result() {
    let kept = Keeping::with(Settings { after: LONG, ..Settings::default() });
    // The result of the job that an answer tells the place of.
    let found = |answer: &Answer| {
        let id = accepted(answer)["id"].as_str().unwrap().to_owned();
        assert_eq!(answer.header("preference-applied"), "respond-async");
        assert!(kept.end(&id).contains("event: succeeded"));
        kept.get(&format!("/v1/jobs/{id}/result")).ok()
    };
    let leaves = ("prefer", "respond-async");
    for accept in ["application/json", "text/csv", "image/svg+xml"] {
        let waited = measure(&kept, &[("accept", accept)], json!({})).ok();
        let left = found(&measure(&kept, &[("accept", accept), leaves], json!({})));
        for name in ["content-type", "x-about"] {
            assert_eq!(left.header(name), waited.header(name), "{accept}: {name}");
        }
        assert!(left.bytes == waited.bytes, "{accept}");
    }
    let waited = measure(&kept, &[], json!({})).ok();
    assert!(found(&measure_by_form(&kept, &[leaves])).bytes == waited.bytes, "a form is another order");
    assert!(measure_by_form(&kept, &[]).ok().bytes == waited.bytes, "a form is another request");
}

#[test]
fn what_takes_longer_than_one_waits_is_a_job_while_any_is_taken() {
    let kept = Keeping::with(Settings { workers: 0, after: Duration::ZERO, limit: 3, ..Settings::default() });
    let ask = |headers: &[(&str, &str)], more: Value| measure(&kept, headers, more);
    accepted(&ask(&[], json!({})));
    ask(&[("prefer", "wait=3600")], json!({})).ok();
    accepted(&ask(&[("prefer", "wait=0")], json!({})));
    ask(&[("prefer", "respond-async, wait=3600")], json!({})).ok();
    // Who says how long the answer is worth waiting for waits for it.
    ask(&[("x-request-timeout-ms", "3600000")], json!({})).ok();
    ask(&[("prefer", "respond-async")], json!({"timeout_ms": 3_600_000})).ok();
    // What is wrong is told at once.
    ask(&[], json!({"timesteps": 0})).refused(422, "invalid_value", Some("timesteps"));
    ask(&[("accept", "video/mp4")], json!({})).refused(406, "not_acceptable", None);
    let form = measure_by_form(&kept, &[]);
    accepted(&form);
    assert_eq!(form.header("preference-applied"), "respond-async");
    // No more are taken: only who asked for one is refused.
    ask(&[], json!({})).ok();
    ask(&[("prefer", "respond-async")], json!({})).refused(429, "too_many_jobs", None);
    // Where none are kept everybody waits.
    let shared = TestServer::shared();
    let request = shared.request("POST", "/v1/analysis/attention").header("prefer", "respond-async");
    let request = request.header("content-type", "application/json").body(look(json!({})).to_string());
    assert_eq!(shared.send(request).ok().header("preference-applied"), "");
}

//! The examples of the document, replayed: each file of `openapi/examples/` is a request and what it is answered, and a
//! sentence or a field that differs fails. With `UPDATE_OPENAPI=1` the answers are recorded instead.
//!
//! ```text
//! about      what it shows, in a sentence
//! on         whom it is asked: `loading`, `leaving`, or `guarded`, a server with keys; `ordering`, where jobs `waiting` and
//!            `unwanted` are ordered and none is done, or `keeping`, where the job `done` is; else one that is ready
//! meanwhile  an image request that is under way then, with the id `req_under_way`
//! request    method, path, headers, and `body` (JSON) or `text`. KEY is the guarded server's; a string `{NAME#PLACE}` is
//!            what the example of that name is answered at that place, and it is asked for first
//! response   recorded: status, content-type, and the body: JSON, the events of a stream, the number of bytes of a file
//! varies     places in the response, beside the fields of `VOLATILE`, that are others each time or on each machine: they
//!            keep what was recorded first, and are compared by their kind
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::mem::discriminant;
use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::{Map, Number, Value, json};
use suite::{Answer, TestServer, keys, root};
use windowpane_server::Config;
use windowpane_server::jobs::Settings;
use windowpane_server::jobs::place::Place;

use super::{document, pretty, updating};

/// Fields that vary wherever they are: ids, times, the bytes of pictures, and what names a version of the model.
const VOLATILE: [&str; 8] =
    ["b64_json", "comment", "created", "created_at", "digest", "eta", "request_id", "runtime"];

/// The id of the request that is under way meanwhile.
const UNDER_WAY: &str = "req_under_way";

/// The key of the guarded server.
const KEY: &str = "root's secret";

fn file(name: &str) -> PathBuf {
    root().join(format!("openapi/examples/{name}.json"))
}

fn read(name: &str) -> Value {
    let text = fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The names of all examples, in order.
fn names() -> Vec<String> {
    let folder = root().join("openapi/examples");
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut names: Vec<_> =
        paths.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// Whom an example is asked.
fn server(example: &Value) -> &'static TestServer {
    static LOADING: OnceLock<TestServer> = OnceLock::new();
    static LEAVING: OnceLock<TestServer> = OnceLock::new();
    static GUARDED: OnceLock<TestServer> = OnceLock::new();
    static ORDERING: OnceLock<TestServer> = OnceLock::new();
    static KEEPING: OnceLock<TestServer> = OnceLock::new();
    match example["on"].as_str() {
        None => TestServer::shared(),
        Some("loading") => LOADING.get_or_init(|| TestServer::loading(TestServer::config())),
        Some("leaving") => LEAVING.get_or_init(|| {
            let server = TestServer::start(TestServer::config());
            server.app().drain();
            server
        }),
        Some("guarded") => GUARDED.get_or_init(|| {
            TestServer::start(Config {
                keys: keys(&[("root", "admin"), ("user", "generate")]),
                ..TestServer::config()
            })
        }),
        Some("ordering") => ORDERING.get_or_init(|| with_jobs(0, &["waiting", "unwanted"])),
        Some("keeping") => KEEPING.get_or_init(|| with_jobs(1, &["done"])),
        Some(other) => panic!("no server is `{other}`"),
    }
}

/// A server with so many workers that has jobs of these ids, all of the order that the example `job_put` is. Where it works
/// on them they are done.
fn with_jobs(workers: usize, ids: &[&str]) -> TestServer {
    let folder = tempfile::tempdir().expect("a folder for jobs").keep();
    let place = Place::Sqlite(folder.join("jobs.sqlite"));
    let jobs = Settings { place, workers, ..Settings::default() };
    let server = TestServer::start(Config { jobs, ..TestServer::config() });
    for id in ids {
        let order = read("job_put")["request"]["body"].to_string();
        let request = server.request("PUT", &format!("/v1/jobs/{id}"));
        let answer = server.send(request.header("content-type", "application/json").body(order));
        assert_eq!(answer.status, 202, "{}", answer.text());
        if workers > 0 {
            let end = server.get(&format!("/v1/jobs/{id}/events")).ok();
            assert!(end.text().contains("event: succeeded"), "{}", end.text());
        }
    }
    server
}

/// The value with what others were answered in it.
fn filled(value: &Value) -> Value {
    match value {
        Value::String(text) => {
            let place = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')?.split_once('#'));
            let Some((name, place)) = place else { return value.clone() };
            let answer = replay(&read(name));
            answer["body"].pointer(place).unwrap_or_else(|| panic!("{text}: {answer}")).clone()
        }
        Value::Array(items) => items.iter().map(filled).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), filled(value))).collect(),
        other => other.clone(),
    }
}

/// Sends the request of an example; what came back, in the form that an example stores.
fn replay(example: &Value) -> Value {
    let (server, asked) = (server(example), &example["request"]);
    let with_headers = |mut request: reqwest::RequestBuilder| {
        for (name, value) in asked["headers"].as_object().into_iter().flatten() {
            request = request.header(name, value.as_str().unwrap().replace("KEY", KEY));
        }
        request
    };
    let (method, path) = (asked["method"].as_str().unwrap(), asked["path"].as_str().unwrap());
    let mut request = with_headers(server.request(method, path));
    if let Some(body) = asked.get("body") {
        request = request.body(filled(body).to_string());
    }
    if let Some(text) = asked["text"].as_str() {
        request = request.body(text.to_owned());
    }
    let under_way = example.get("meanwhile").map(|body| {
        let request =
            with_headers(server.request("POST", suite::IMAGES)).header("content-type", "application/json");
        let request = request.header("x-request-id", UNDER_WAY).body(body.to_string());
        server.spawn(server.answer(request))
    });
    let send = || server.send(request.try_clone().expect("its body is no stream"));
    let mut answer = send();
    // The other request may still be on its way.
    server.until("it is under way", || {
        let is_there = under_way.is_none() || answer.status != 404;
        if !is_there {
            answer = send();
        }
        is_there
    });
    if let Some(running) = under_way {
        running.abort();
        server.until_images(0);
    }
    if path.ends_with("/unload") && answer.status == 200 {
        server.block_on(server.app().load_model("tiny")).expect("it served before");
    }
    stored(&answer)
}

/// An answer as an example stores it.
fn stored(answer: &Answer) -> Value {
    let kind = answer.header("content-type");
    let body = match kind.split(';').next().unwrap() {
        "" => Value::Null,
        // A part of a file is none.
        "application/json" if answer.status != 206 => answer.json(),
        "text/event-stream" => answer.text().split_terminator("\n\n").map(event).collect(),
        // The bytes themselves are nothing to read.
        _ => json!({"bytes": answer.bytes.len()}),
    };
    json!({"status": answer.status, "content-type": kind, "body": body})
}

/// A piece of a stream.
fn event(text: &str) -> Value {
    if let Some(comment) = text.strip_prefix(": ") {
        return json!({"comment": comment});
    }
    let (id, rest) = match text.strip_prefix("id: ").and_then(|rest| rest.split_once('\n')) {
        Some((id, rest)) => (Some(id), rest),
        None => (None, text),
    };
    let (name, data) = rest.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
    let mut event = json!({"event": name, "data": serde_json::from_str::<Value>(data).unwrap()});
    if let Some(id) = id {
        event["id"] = id.into();
    }
    event
}

/// Puts the recorded value in place of one that varies, if it is of the same kind.
fn settle(name: &str, now: &mut Value, recorded: &Value) {
    let same = discriminant(now) == discriminant(recorded);
    assert!(same || updating(), "{name}: {now} where {recorded} was recorded");
    if same {
        now.clone_from(recorded);
    }
}

/// Whether two numbers with a fraction are one, rounded by different processors.
fn is_rounding(a: &Number, b: &Number) -> bool {
    let [a, b] = [a, b].map(|number| number.as_f64().filter(|_| number.is_f64()));
    a.zip(b).is_some_and(|(a, b)| (a - b).abs() <= 1e-5 * b.abs())
}

/// Settles every field of `VOLATILE`, and every number that is rounded otherwise, wherever it is.
fn settle_volatile(name: &str, now: &mut Value, recorded: &Value) {
    match (now, recorded) {
        (Value::Object(now), Value::Object(recorded)) => {
            for (field, value) in now {
                match recorded.get(field) {
                    Some(old) if VOLATILE.contains(&field.as_str()) => settle(name, value, old),
                    Some(old) => settle_volatile(name, value, old),
                    None => {}
                }
            }
        }
        (Value::Array(now), Value::Array(recorded)) => {
            now.iter_mut().zip(recorded).for_each(|(now, old)| settle_volatile(name, now, old));
        }
        (Value::Number(now), Value::Number(recorded)) if is_rounding(now, recorded) => {
            now.clone_from(recorded);
        }
        _ => {}
    }
}

#[test]
fn openapi_examples_are_answered_as_they_say_and_fit_the_document() {
    let document = document();
    let names = names();
    assert!(names.len() >= 60, "the examples are in openapi/examples");
    for name in names {
        let mut example = read(&name);
        let mut now = replay(&example);
        let recorded = example["response"].clone();
        settle_volatile(&name, &mut now, &recorded);
        for place in example["varies"].as_array().into_iter().flatten() {
            let place = place.as_str().unwrap();
            let fresh =
                now.pointer_mut(place).unwrap_or_else(|| panic!("{name}: no `{place}` in the answer"));
            if let Some(old) = recorded.pointer(place) {
                settle(&name, fresh, old);
            }
        }
        if updating() {
            example["response"] = now;
            fs::write(file(&name), pretty(&example)).unwrap();
        } else {
            assert_eq!(pretty(&now), pretty(&recorded), "{name} is answered otherwise");
        }
        fits(&name, &example, &document);
    }
}

#[test]
fn openapi_examples_that_differ_are_seen() {
    let recorded = json!({"request_id": "a", "list": [{"digest": "x", "message": "no"}], "created": 1});
    let settled = |mut now: Value| {
        settle_volatile("it", &mut now, &recorded);
        now
    };
    assert_eq!(
        settled(json!({"request_id": "b", "list": [{"digest": "y", "message": "no"}], "created": 2})),
        recorded
    );
    for other in [
        json!({"request_id": "b", "list": [{"digest": "y", "message": "yes"}], "created": 2}),
        json!({"request_id": "b", "list": [], "created": 2}),
        json!({"request_id": "b", "created": 2}),
    ] {
        assert_ne!(settled(other), recorded);
    }
}

/// What no request alone brings about is made by the code of the real answers; those that can be had are the same.
#[test]
fn openapi_errors_that_are_made_are_those_that_are_said() {
    let document = document();
    let on = |name: &str| server(&json!({"on": name}));
    let image = json!({"model": "tiny", "prompt": "ring", "steps": 1}).to_string();
    let images = |server: &'static TestServer, key: &str, body: &str| {
        server.send(server.post(body.to_owned()).bearer_auth(format!("{key}'s secret")))
    };
    let guarded = on("guarded");
    let load = guarded.request("POST", "/v2/repository/models/tiny/load").bearer_auth("user's secret");
    let large = " ".repeat(guarded.app().config().body_limit + 1);
    for (name, answer) in [
        ("error_invalid_api_key", images(guarded, "nobody", &image)),
        ("error_v2_forbidden", guarded.send(load)),
        ("error_body_too_large", images(guarded, "user", &large)),
        ("error_loading", images(on("loading"), "nobody", &image)),
        ("error_shutting_down", images(on("leaving"), "nobody", &image)),
        ("error_v2_loading", on("loading").get("/v2/models/tiny/config")),
    ] {
        let mut now = answer.json();
        let made = &document["components"]["examples"][name]["value"];
        settle_volatile(name, &mut now, made);
        assert_eq!(now, *made, "{name}");
    }
}

/// Path, method, status, type of the answer and its fields are those of the document.
fn fits(name: &str, example: &Value, document: &Value) {
    let properties = |name: &str| document["components"]["schemas"][name]["properties"].as_object();
    let (asked, told) = (&example["request"], &example["response"]);
    assert!(example["about"].as_str().is_some_and(|about| about.len() > 10), "{name} says what it is about");
    let path = asked["path"].as_str().unwrap().split('?').next().unwrap();
    let documented = document["paths"].as_object().unwrap().iter().find(|(pattern, _)| {
        let mut parts = pattern.split('/').zip(path.split('/'));
        pattern.split('/').count() == path.split('/').count()
            && parts.all(|(p, s)| p == s || p.starts_with('{'))
    });
    let (_, methods) = documented.unwrap_or_else(|| panic!("{name}: {path} is not in the document"));
    let operation = &methods[asked["method"].as_str().unwrap().to_lowercase()];
    let response = &operation["responses"][told["status"].to_string()];
    assert!(response.is_object(), "{name}: status {} is not in the document", told["status"]);
    let essence = |kind: &str| kind.split(';').next().unwrap_or(kind).to_owned();
    let kind = essence(told["content-type"].as_str().unwrap());
    let mut contents = response["content"].as_object().into_iter().flatten();
    if kind.is_empty() {
        assert!(contents.next().is_none(), "{name}: the document has a body");
        return;
    }
    let content = contents.find(|(documented, _)| *documented == "*/*" || essence(documented) == kind);
    let (_, content) = content.unwrap_or_else(|| panic!("{name}: {kind} is not in the document"));
    let schema = content["schema"]["$ref"].as_str().and_then(|schema| properties(schema.rsplit('/').next()?));
    if let (Value::Object(body), Some(known), "application/json") = (&told["body"], schema, kind.as_str()) {
        let known: BTreeSet<&String> = known.keys().collect();
        assert_eq!(body.keys().collect::<BTreeSet<_>>(), known, "{name}: {}", content["schema"]);
    }
    if told["status"] == 200 {
        let taken = operation["requestBody"]["content"]["application/json"]["schema"].to_string();
        let taken = taken.split("#/components/schemas/").nth(1).and_then(|rest| rest.split('"').next());
        for field in asked["body"].as_object().into_iter().flat_map(Map::keys) {
            let known = taken.and_then(properties).is_some_and(|fields| fields.contains_key(field));
            assert!(known, "{name}: `{field}` is not in the document");
        }
    }
}

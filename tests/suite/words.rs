//! Every refusal is in words of our own: whatever is wrong with a request, and whichever route it is for, the message
//! tells no type, no library and no path of the inside.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use suite::{Answer, IMAGES, TestServer, keys, root};
use windowpane_server::Config;

/// What no client should read: Rust's names, those of the libraries, and their sentences.
const INSIDE: &[&str] = &[
    "struct ",
    "variant",
    "enum ",
    "u8",
    "u16",
    "u32",
    "u64",
    "usize",
    "i32",
    "i64",
    "f64",
    // An address in memory; a size is no word that begins so.
    " 0x",
    "IDAT",
    "line 1 column",
    "EOF",
    "hyper",
    "serde",
    "axum",
    "tokio",
    "deserialize",
    "invalid type",
    "::",
    "Err(",
];

/// Values of every kind, hardly any of which a field takes.
const KINDS: [&str; 12] = [
    "null",
    "5",
    "-1",
    "1.5",
    "1e300",
    "\"words\"",
    "true",
    "[]",
    "[[1]]",
    "{}",
    "{\"a\":1}",
    "18446744073709551616",
];

/// The message of a refusal, after it was looked through; `None` for an answer that is none.
fn message(sent: &str, answer: &Answer) -> Option<String> {
    if answer.status < 400 {
        return None;
    }
    assert_ne!(answer.status, 500, "{sent}: {answer:?}");
    let error = &answer.json()["error"];
    let message = error["message"].as_str().or(error.as_str()).unwrap_or_else(|| panic!("{sent}: {error}"));
    let home = root().display().to_string();
    let temporary = std::env::temp_dir().display().to_string();
    for inside in INSIDE.iter().copied().chain([home.as_str(), temporary.as_str()]) {
        assert!(!message.contains(inside), "`{inside}` is told of {sent}: {message}");
    }
    assert!(message.len() > 10, "{sent}: {message}");
    Some(message.to_owned())
}

/// A server, and how many of the requests to it were refused.
struct Asked<'a> {
    server: &'a TestServer,
    refused: usize,
}

impl Asked<'_> {
    fn with(&mut self, path: &str, kind: &str, body: impl Into<Vec<u8>>) -> Option<String> {
        let body = body.into();
        let sent = format!("{path} {}", String::from_utf8_lossy(&body[..body.len().min(300)]));
        let request =
            self.server.request("POST", path).header("content-type", kind).bearer_auth("root's secret");
        let message = message(&sent, &self.server.send(request.body(body)));
        self.refused += usize::from(message.is_some());
        message
    }

    fn json(&mut self, path: &str, body: impl Into<Vec<u8>>) -> Option<String> {
        self.with(path, "application/json", body)
    }

    /// Every kind of value at every one of these places of a good body.
    fn places(&mut self, path: &str, good: &Value, places: &[String]) {
        for place in places {
            for kind in KINDS {
                self.json(path, planted(good, place, kind));
            }
        }
    }
}

/// The text of `good` with this text in place of the value at `place`, whether there was one or not.
fn planted(good: &Value, place: &str, text: &str) -> String {
    let mut body = good.clone();
    let (parent, field) = place.rsplit_once('/').expect("a place begins with a slash");
    let mark = json!("here it goes");
    match body.pointer_mut(parent).unwrap_or_else(|| panic!("{place}")) {
        Value::Array(list) => list[field.parse::<usize>().expect("a place in a list")] = mark.clone(),
        parent => parent[field] = mark.clone(),
    }
    body.to_string().replacen(&mark.to_string(), text, 1)
}

/// Bodies that are no JSON.
const BROKEN: [&[u8]; 12] = [
    b"",
    b"{",
    b"{]",
    b"[",
    b"nul",
    b"{'a': 1}",
    b"{\"a\" 1}",
    b"{\"a\": 1,}",
    b"{} {}",
    b"{\"a\": \"\xff\"}",
    b"{\"a\": \"\\ud800\"}",
    b"{\"a\": 1e999}",
];

/// A PNG of one grey pixel whose `iTXt` chunk holds this note.
fn noted(note: &str) -> Vec<u8> {
    let mut bytes = STANDARD
        .decode(
            "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==",
        )
        .unwrap();
    let data = [b"windowpane\0\0\0\0\0", note.as_bytes()].concat();
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    // Nobody looks at the checksum of a text.
    let chunk = [&length[..], b"iTXt", &data, &[0; 4]].concat();
    bytes.splice(33..33, chunk);
    bytes
}

#[test]
fn a_wrong_image_request_is_told_in_our_words() {
    let mut asked = Asked { server: TestServer::shared(), refused: 0 };
    let good = json!({"prompt": "ring", "seed": 7, "steps": 1, "guidance_scale": 1});
    let document = asked.server.get("/openapi.json").ok().json();
    let fields = document["components"]["schemas"]["ImageRequest"]["properties"].as_object().unwrap();
    let places: Vec<_> =
        fields.keys().chain([&"nothing".to_owned()]).map(|field| format!("/{field}")).collect();
    asked.places(IMAGES, &good, &places);
    for broken in BROKEN {
        asked.json(IMAGES, broken);
    }
    // Files that are none, and files that are damaged.
    let shown = |bytes: &[u8]| STANDARD.encode(bytes);
    let picture = asked.server.block_on(asked.server.png(&good));
    let half = &picture[..picture.len() / 2];
    let mut flipped = picture.clone();
    let middle = flipped.len() - 40;
    flipped[middle] ^= 0x55;
    for file in [&b"nothing"[..], half, &flipped, &noted("{}"), &picture[..40]] {
        for field in ["init_image", "x_t"] {
            asked.json(IMAGES, planted(&good, &format!("/{field}"), &json!(shown(file)).to_string()));
        }
    }
    let header =
        |text: &str| [&b"\x93NUMPY\x01\x00"[..], &[text.len() as u8, 0][..], text.as_bytes()].concat();
    for text in [
        "{}",
        "{'descr': '<i8'}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "(",
        "\u{fffd}",
    ] {
        asked.json(IMAGES, planted(&good, "/x_t", &json!(shown(&header(text))).to_string()));
    }
    asked.with(IMAGES, "text/plain", "{}");
    for (name, value) in [
        ("accept", "text/html"),
        ("x-request-timeout-ms", "soon"),
        ("content-encoding", "gzip"),
        ("content-encoding", "b\u{e4}d"),
        ("content-type", "a\u{e4}/b"),
    ] {
        let value = reqwest::header::HeaderValue::from_bytes(value.as_bytes()).unwrap();
        let request = asked.server.request("POST", IMAGES);
        let request =
            if name == "content-type" { request } else { request.header("content-type", "application/json") };
        let answer = asked.server.send(request.header(name, value).body(good.to_string()));
        assert!(message(name, &answer).is_some(), "{name}: {answer:?}");
    }
    assert!(asked.refused > 250, "{}", asked.refused);
}

#[test]
fn a_wrong_picture_to_replay_is_told_in_our_words() {
    let mut asked = Asked { server: TestServer::shared(), refused: 0 };
    let path = "/v1/replay";
    asked.places(path, &json!({}), &["/image".to_owned(), "/nothing".to_owned()]);
    for broken in BROKEN {
        asked.json(path, broken);
        asked.with(path, "image/png", broken);
    }
    // A good note with one thing wrong in it, wherever that is.
    let body = json!({"prompt": "ring", "seed": 7, "steps": 1, "guidance_scale": 1});
    let good = asked.server.generate(&body).ok().json()["data"][0]["provenance"].clone();
    let fields = good.as_object().unwrap().keys().chain([&"nothing".to_owned()]).cloned().collect::<Vec<_>>();
    let inner = ["class/index", "class/name", "class/nothing", "engine/provider", "engine/runtime"]
        .map(str::to_owned);
    for place in fields.into_iter().chain(inner) {
        let kinds = [
            "\"x_t\"",
            "{\"x_t\":{}}",
            "{\"x_t\":5}",
            "{\"noise\":1}",
            "{\"init_image\":{\"sha256\":1}}",
            "[\"noise\"]",
        ];
        for kind in KINDS.into_iter().chain(kinds) {
            let note = planted(&good, &format!("/{place}"), kind);
            asked.with(path, "image/png", noted(&note));
        }
    }
    for field in ["version", "seed", "start", "engine"] {
        let mut note = good.clone();
        note.as_object_mut().unwrap().remove(field);
        let message = asked.with(path, "image/png", noted(&note.to_string())).unwrap();
        assert!(message.ends_with(&format!("`{field}` is missing")), "{message}");
    }
    for note in ["", "{", "[]", "5", "[1, 2]", "{\"version\": 1}", "{\"version\": 2}", "{\"version\": -1}"] {
        assert!(asked.with(path, "image/png", noted(note)).is_some(), "{note}");
    }
    assert!(asked.refused > 300, "{}", asked.refused);
}

#[test]
fn a_wrong_inference_request_is_told_in_our_words() {
    let mut asked = Asked { server: TestServer::shared(), refused: 0 };
    let good = json!({
        "id": "1",
        "parameters": {},
        "inputs": [
            {"name": "seed", "shape": [1], "datatype": "INT64", "parameters": {}, "data": [7]},
            {"name": "class", "shape": [1], "datatype": "BYTES", "data": ["ring"]},
            {"name": "steps", "shape": [1], "datatype": "INT32", "data": [1]},
        ],
        "outputs": [{"name": "images", "parameters": {}}],
    });
    let path = "/v2/models/tiny.sampler/infer";
    assert_eq!(asked.json(path, good.to_string()), None, "it is good");
    let mut places: Vec<String> =
        ["id", "parameters", "inputs", "outputs", "nothing"].map(|f| format!("/{f}")).into();
    let fields =
        |of: &str, names: &[&str]| names.iter().map(|name| format!("{of}/{name}")).collect::<Vec<_>>();
    places.extend(fields(
        "/parameters",
        &["binary_data_output", "timeout", "reproducible", "priority", "sequence_id", "nothing"],
    ));
    places.extend(fields("/inputs", &["0", "1"]));
    places.extend(fields(
        "/inputs/0",
        &["name", "shape", "datatype", "parameters", "data", "nothing", "shape/0", "data/0"],
    ));
    places.extend(fields("/inputs/0/parameters", &["binary_data_size", "shared_memory_region", "nothing"]));
    places.extend(fields("/inputs/1", &["data", "data/0"]));
    places.extend(fields("/inputs/2", &["data", "data/0"]));
    places.extend(fields("/outputs", &["0"]));
    places.extend(fields("/outputs/0", &["name", "parameters", "nothing"]));
    places.extend(fields("/outputs/0/parameters", &["binary_data", "classification", "nothing"]));
    asked.places(path, &good, &places);
    for broken in BROKEN {
        asked.json(path, broken);
        asked.json("/v2/models/nothing/infer", broken);
        asked.json("/v2/models/tiny/versions/7/infer", broken);
    }
    let text = good.to_string();
    for length in ["0", "-1", "7", "many", "99999"] {
        let request = asked.server.request("POST", path).header("inference-header-content-length", length);
        assert!(message(length, &asked.server.send(request.body(text.clone()))).is_some());
    }
    for coding in ["gzip", "deflate", "br"] {
        let request = asked.server.request("POST", path).header("content-encoding", coding);
        assert!(message(coding, &asked.server.send(request.body(text.clone()))).is_some());
    }
    assert!(asked.refused > 300, "{}", asked.refused);
}

#[test]
fn a_wrong_word_to_the_repository_is_told_in_our_words() {
    let server = TestServer::start(Config { keys: keys(&[("root", "admin")]), ..TestServer::config() });
    let mut asked = Asked { server: &server, refused: 0 };
    for (path, places) in [
        ("/v2/repository/index", &["/ready", "/nothing"][..]),
        // No such package: what is wrong is said before anything is loaded, and nothing ever is.
        ("/v2/repository/models/nothing/load", &["/parameters", "/parameters/config", "/nothing"]),
        (
            "/v2/repository/models/nothing/unload",
            &["/parameters", "/parameters/unload_dependents", "/nothing"],
        ),
    ] {
        let places: Vec<_> = places.iter().map(|&place| place.to_owned()).collect();
        asked.places(path, &json!({"parameters": {}}), &places);
        for broken in BROKEN {
            asked.json(path, broken);
        }
    }
    assert!(asked.refused > 80, "{}", asked.refused);
    let message = asked.json("/v2/repository/models/tiny/unload", r#"{"parameters": 5}"#).unwrap();
    assert_eq!(message, "`parameters`: the number `5`, expected an object");
    for (method, path) in [
        ("GET", "/v1/models/nothing"),
        ("GET", "/v1/models/%ff"),
        ("GET", "/v2/models/%ff/ready"),
        ("GET", "/v2/models/tiny/versions/%ff"),
        ("DELETE", "/v1/requests/%ff"),
        ("DELETE", "/v1/requests/nobody"),
        ("GET", "/nothing"),
        ("PUT", "/v1/models"),
    ] {
        let answer = server.send(server.request(method, path).bearer_auth("root's secret"));
        assert!(self::message(path, &answer).is_some(), "{path}: {answer:?}");
        let keyless = server.send(server.request(method, path));
        assert!(self::message(path, &keyless).is_some(), "{path}: {keyless:?}");
    }
}

#[test]
fn a_body_that_does_not_come_is_told_in_our_words() {
    let body_timeout = std::time::Duration::from_millis(300);
    let server = TestServer::start(Config { body_timeout, ..TestServer::config() });
    let head = format!(
        "POST {IMAGES} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 9\r\n\r\n{{"
    );
    let answer = server.raw(head.as_bytes());
    assert!(
        answer.contains("\"the body took longer than 0.3 s, the most that is waited for one\""),
        "{answer}"
    );
}

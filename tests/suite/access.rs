//! Who may do what: every route of the document, without a key, with a wrong one, and with every role; and a file of
//! keys that changes under way. And which pages a browser lets call it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use suite::{Answer, IMAGES, TestServer, sha256};
use windowpane_server::Config;
use windowpane_server::access::{Need, need};
use windowpane_server::keys::{Keys, Role};
use windowpane_server::middleware::cors::Cors;

const ROLES: [(&str, Role); 3] =
    [("generate", Role::Generate), ("analyse", Role::Analyse), ("admin", Role::Admin)];

/// Writes a file of keys: of each name and role, the key is `NAME's secret`.
fn write(path: &Path, keys: &[(&str, &str)]) {
    let entry = |(name, role): &(&str, &str)| {
        let digest = sha256(format!("{name}'s secret").as_bytes());
        format!("[[key]]\nname = \"{name}\"\nrole = \"{role}\"\nsha256 = \"{digest}\"\n")
    };
    fs::write(path, keys.iter().map(entry).collect::<String>()).unwrap();
}

/// Method, pattern and a path of every operation of the document; of models that are not there, so that nothing is done.
fn operations(server: &TestServer) -> Vec<(String, String, String)> {
    let document = server.get("/openapi.json").ok().json();
    let mut all = Vec::new();
    for (pattern, methods) in document["paths"].as_object().unwrap() {
        let path = pattern.replace("{version}", "1").replace("{name}", "nothing").replace("{id}", "nothing");
        assert!(!path.contains('{'), "{pattern} has a part that this test does not know");
        for method in methods.as_object().unwrap().keys() {
            all.push((method.to_uppercase(), pattern.clone(), path.clone()));
        }
    }
    all
}

#[test]
fn every_route_is_open_or_closed_as_the_table_says() {
    let keys = suite::keys(&ROLES.map(|(name, _)| (name, name)));
    let server = TestServer::start(Config { keys, ..TestServer::config() });
    let ask = |method: &str, path: &str, key: Option<&str>| {
        let request = server.request(method, path).header("content-type", "application/json");
        let request = if method == "POST" { request.body("{}") } else { request };
        server.send(match key {
            Some(key) => request.bearer_auth(format!("{key}'s secret")),
            None => request,
        })
    };
    let all = operations(&server);
    assert!(all.len() >= 25, "{}", all.len());
    let (mut open, mut closed) = (0, 0);
    for (method, pattern, path) in &all {
        let got_in = |status: u16| ![401, 403].contains(&status);
        let need = need(&method.parse().unwrap(), pattern);
        for key in [None, Some("eve"), Some("")] {
            let answer = ask(method, path, key);
            if need == Need::Nothing {
                open += 1;
                assert!(got_in(answer.status), "{method} {path} {key:?}: {}", answer.status);
            } else {
                closed += 1;
                assert_eq!(answer.status, 401, "{method} {path} {key:?}");
                assert_eq!(answer.header("www-authenticate"), "Bearer");
            }
        }
        for (name, role) in ROLES {
            let status = ask(method, path, Some(name)).status;
            let may = match need {
                Need::Nothing => true,
                Need::Key(least) => role >= least,
            };
            assert_eq!(status != 403, may, "{method} {path} as {name}: {status}");
            assert_ne!(status, 401, "{method} {path} as {name}");
        }
        // The document says so, too.
        let operation = &server.get("/openapi.json").json()["paths"][pattern][method.to_lowercase()];
        assert_eq!(operation["security"].is_array(), need != Need::Nothing, "{method} {pattern}");
        assert_eq!(operation["responses"]["401"].is_object(), need != Need::Nothing, "{method} {pattern}");
    }
    assert!(open >= 20 && closed >= 40, "{open} open, {closed} closed");
    // What the document does not hold.
    for path in ["/openapi.json", "/docs/", "/docs/swagger-ui.css"] {
        ask("GET", path, None).ok();
    }
    assert_eq!(ask("GET", "/nothing", None).status, 404);
    assert_eq!(ask("PUT", IMAGES, None).status, 405);
}

#[test]
fn no_other_spelling_of_a_path_gets_in_without_a_key() {
    let server = TestServer::start(Config { keys: suite::keys(&[("a", "admin")]), ..TestServer::config() });
    for (method, path) in [
        ("HEAD", "/v1/models"),
        ("GET", "/v1/models?"),
        ("GET", "/v1//models"),
        ("GET", "/v1/models/"),
        ("GET", "/V1/models"),
        ("GET", "/v1/%6dodels"),
        ("GET", "/livez/../v1/models"),
        ("GET", "/docs/../v1/models"),
        ("GET", "/docs/%2e%2e/v1/models"),
        ("GET", "/v2/models/tiny"),
        ("GET", "/v2/models/tiny/versions/1"),
        ("GET", "/v2/models/tiny/versions/1/config"),
        ("GET", "/v2/models/stats"),
        ("POST", "/v2/repository/index"),
    ] {
        // As it is: a client that tidies paths would send another.
        let text = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = server.raw(text.as_bytes());
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(["401", "404"].contains(&status), "{method} {path}: {answer}");
        assert!(!answer.contains("\"tiny\""), "{method} {path}: {answer}");
    }
}

#[test]
fn without_a_file_of_keys_everything_is_open_but_what_an_administrator_does() {
    let server = TestServer::shared();
    for (method, pattern, path) in operations(server) {
        let request = server.request(&method, &path).header("content-type", "application/json");
        let request = if method == "POST" { request.body("{}") } else { request };
        let status = server.send(request).status;
        let admin = need(&method.parse().unwrap(), &pattern) == Need::Key(Role::Admin);
        assert_eq!(status == 403, admin, "{method} {path}: {status}");
        assert_ne!(status, 401, "{method} {path}");
    }
    for verb in ["load", "unload"] {
        let path = format!("/v2/repository/models/tiny/{verb}");
        let answer = server.send(server.request("POST", &path).body("{}"));
        assert!(
            answer.status == 403 && answer.json()["error"].as_str().unwrap().contains("--keys"),
            "{answer:?}"
        );
    }
}

/// A server that pages of this origin may call, or of none.
fn open_to(origin: Option<&str>) -> TestServer {
    let list: Vec<String> = origin.into_iter().map(str::to_owned).collect();
    let cors = Cors::of(&list).unwrap_or_else(|wrong| panic!("{wrong:?}"));
    TestServer::start(Config { cors, ..TestServer::config() })
}

#[test]
fn a_page_may_ask_for_every_method_of_a_route_and_every_header() {
    let server = open_to(Some("https://a.example"));
    let named = "authorization,content-type,idempotency-key,if-range,last-event-id,prefer,range,traceparent,\
                 x-api-key,x-request-id,x-request-timeout-ms";
    for (method, path) in
        [("GET", "/v1/models"), ("POST", IMAGES), ("PUT", "/v1/jobs/mine"), ("DELETE", "/v1/jobs/mine")]
    {
        let request = server
            .request("OPTIONS", path)
            .header("origin", "https://a.example")
            .header("access-control-request-method", method)
            .header("access-control-request-headers", named);
        let answer = server.send(request).ok();
        let mut methods = answer.header("access-control-allow-methods").split(',');
        assert!(methods.any(|allowed| allowed == method), "{method}");
        assert_eq!(answer.header("access-control-allow-headers"), named);
    }
}

#[test]
fn only_pages_of_named_origins_may_call_and_errors_are_theirs_to_read() {
    let (open, closed) = (open_to(Some("https://a.example")), open_to(None));
    let ask = |server: &TestServer, method: &str, origin: &str| {
        let request = server.request(method, IMAGES).header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        server.send(request.header("access-control-request-headers", "authorization,content-type"))
    };
    let allowed = |answer: &Answer| answer.header("access-control-allow-origin").to_owned();
    let answer = ask(&open, "OPTIONS", "https://a.example").ok();
    assert_eq!(allowed(&answer), "https://a.example");
    assert_eq!(answer.header("access-control-allow-headers"), "authorization,content-type");
    // An error, too.
    let answer = ask(&open, "POST", "https://a.example");
    answer.refused(415, "unsupported_media_type", None);
    assert_eq!(allowed(&answer), "https://a.example");
    assert_eq!(answer.header("access-control-expose-headers"), "*");
    for (server, origin) in [(&open, "https://b.example"), (&closed, "https://a.example")] {
        for method in ["OPTIONS", "POST"] {
            assert_eq!(allowed(&ask(server, method, origin)), "", "{method} {origin}");
        }
    }
}

#[test]
fn a_file_of_keys_that_changes_is_read_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    write(&path, &[("alice", "generate"), ("bob", "generate")]);
    let keys = Keys::read(&path).unwrap_or_else(|error| panic!("{error}"));
    let server = TestServer::leaked(Config { keys, ..TestServer::config() });
    let status = |name: &str| {
        let request = server.request("GET", "/v1/models").bearer_auth(format!("{name}'s secret"));
        server.send(request).status
    };
    let reloads = |outcome| server.app().metrics().reloads.with_label_values(&["keys", outcome]).get();
    assert_eq!(["alice", "bob", "carol"].map(status), [200, 200, 401]);
    // Of a caller whose request is under way, and who is moved up in the file.
    let body = json!({"prompt": "ring", "seed": 1, "n": 8, "steps": 1000}).to_string();
    let asked = server.post(body).header("x-request-id", "bobs").bearer_auth("bob's secret");
    let running = server.spawn(async move { server.answer(asked).await });
    server.until_images(8);

    write(&path, &[("carol", "generate"), ("bob", "analyse")]);
    server.until("carol gets in", || status("carol") == 200);
    assert_eq!(["alice", "bob"].map(status), [401, 200]);
    // It is counted when it has been read.
    server.until("it is counted", || reloads("done") == 1);
    let cancel = |name: &str| {
        let request = server.request("DELETE", "/v1/requests/bobs").bearer_auth(format!("{name}'s secret"));
        server.send(request)
    };
    cancel("carol").refused(404, "not_found", Some("id"));
    let told: Value = cancel("bob").ok().json();
    assert_eq!(told["cancelled"], 1);
    server.block_on(running).unwrap().refused(409, "cancelled", None);

    for broken in ["", "[[key]]\nname = \"eve\"", "\u{0}"] {
        let before = reloads("failed");
        fs::write(&path, broken).unwrap();
        server.until("the broken file is noticed", || reloads("failed") > before);
        assert_eq!(["carol", "bob", "eve"].map(status), [200, 200, 401]);
    }
    let before = reloads("failed");
    fs::remove_file(&path).unwrap();
    server.until("it is missed", || reloads("failed") > before);
    assert_eq!(status("carol"), 200);
    write(&path, &[("eve", "admin")]);
    server.until("eve gets in", || status("eve") == 200);
    assert_eq!(["alice", "bob", "carol"].map(status), [401, 401, 401]);
}

//! Our own Python client: installed as its users install it, it asks a real server for everything that it can; and the tests
//! that lie beside it, which need none.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use suite::{TestServer, pip_install, python, root};
use windowpane_server::Config;
use windowpane_server::jobs::Settings;
use windowpane_server::jobs::place::Place;

#[test]
fn the_python_client_does_all_that_it_can() {
    // With room for ten images at a time, so that one request is in the way of the next; and with jobs.
    let folder = tempfile::tempdir().unwrap();
    let jobs = Settings { place: Place::Sqlite(folder.path().join("jobs.sqlite")), ..Settings::default() };
    let server = TestServer::start(Config { queue_limit: 10, jobs, ..TestServer::config() });
    let installed = tempfile::tempdir().unwrap();
    pip_install(&root().join("clients/python"), installed.path());
    let folder = installed.path().to_str().unwrap();
    let said = python("windowpane_client.py", [server.url().as_str(), folder]);
    let said: Value = serde_json::from_str(&said).expect("the client prints JSON");
    // The same file that anybody gets, and the same numbers.
    let file = STANDARD.decode(said["png"].as_str().unwrap()).unwrap();
    assert_eq!(file, server.block_on(server.png(&json!({"prompt": "ring", "seed": 7, "steps": 2}))));
    let look = |route: &str, fields: Value| {
        let mut body = json!({"model": "tiny", "prompt": "ring", "seed": 7, "steps": 4, "timestep": 500});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let request = server.request("POST", &format!("/v1/analysis/{route}"));
        // However long it takes: it is no job.
        let request = request.header("prefer", "wait=600").header(CONTENT_TYPE, "application/json");
        server.send(request.body(body.to_string())).ok().json()
    };
    let attention = look("attention", json!({"maps": "none"}));
    let distances: Vec<&Value> =
        attention["layers"].as_array().unwrap().iter().map(|layer| &layer["locality"]["distance"]).collect();
    assert_eq!(said["distances"], json!(distances));
    assert_eq!(said["singular_values"], look("jacobian", json!({"k": 3}))["singular_values"]);
}

#[test]
fn the_python_client_says_its_types_and_keeps_to_them() {
    let said = python("mypy_client.py", [root().join("clients/python").to_str().unwrap()]);
    assert!(said.contains("no issues found in "), "{said}");
}

#[test]
fn the_python_clients_own_tests_pass() {
    let said = python("pytest_client.py", [root().join("clients/python").to_str().unwrap()]);
    assert!(said.contains(" passed") && !said.contains("skipped"), "{said}");
}

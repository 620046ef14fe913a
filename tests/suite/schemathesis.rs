//! The document against the server: `schemathesis` reads the one and sends the other whatever it can think of.

use serde_json::{Value, json};
use suite::{Package, TestServer, python};
use windowpane_server::Config;
use windowpane_server::jobs::Settings;
use windowpane_server::jobs::place::Place;

/// Requests that every operation gets at least which has anything to vary.
const LEAST: u64 = 200;

/// Requests by which it finds out whether an operation asks for a key.
const PROBES: usize = 3;

/// What can be done once to a thing that is there: a request may be over before it is cancelled, and a model that is
/// not served is not unloaded.
const ONCE: [&str; 2] = ["DELETE /v1/requests/{id}", "POST /v2/repository/models/{name}/unload"];

#[test]
fn schemathesis_finds_nothing() {
    let package = Package::tiny();
    package.copy("other");
    let manifest = package.models().join("other/manifest.json");
    let mut other: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    other["name"] = json!("other");
    std::fs::write(&manifest, other.to_string()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let place = Place::Sqlite(folder.path().join("jobs.sqlite"));
    let server = TestServer::start(Config {
        models: package.models(),
        jobs: Settings { place, limit: 10_000, ..Settings::default() },
        keys: suite::keys(&[("tester", "admin")]),
        ..TestServer::config()
    });
    let said = python("schemathesis_client.py", [server.url().as_str(), "tester's secret"]);
    // "3602 generated, 3602 passed, 51 skipped"
    let summary = said.lines().find(|line| line.contains(" generated, ")).unwrap_or_else(|| panic!("{said}"));
    let of = |what: &str| -> usize {
        let parts = summary.split(',').filter_map(|part| part.trim().strip_suffix(what));
        parts.map(|count| count.parse::<usize>().expect("a count")).sum()
    };
    assert_eq!(of(" generated"), of(" passed"), "{said}");

    // It ran, over every operation, and not only a few examples; and every operation did what it is for.
    let document = server.get("/openapi.json").ok().json();
    let operations = operations(&document);
    assert!(said.contains(&format!("Tested: {}", operations.len())), "{said}");
    // What it calls skipped are its own tries, once for each operation, without a key and with two that nobody has.
    assert!(of(" skipped") <= PROBES * operations.len(), "{said}");
    let told: Value =
        serde_json::from_str(said.lines().last().unwrap_or("")).expect("the client's last line");
    let metrics = server.get("/metrics").ok();
    for Operation { name, path, varies } in operations {
        let of_kind = |kind: &str| -> u64 {
            told[&name][kind].as_object().into_iter().flatten().map(|(_, n)| n.as_u64().unwrap()).sum()
        };
        let sent = of_kind("as generated") + of_kind("fitted");
        // Where there is nothing to vary all requests are one.
        let least = if varies { LEAST } else { 1 };
        assert!(sent >= least, "{name}: {sent} requests\n{told:#}");
        // An order is taken, and not yet done.
        let done: u64 = [200, 202]
            .iter()
            .map(|code| {
                let sample = format!("windowpane_requests_total{{code=\"{code}\",route=\"{path}\"}} ");
                let done = metrics.text().lines().find_map(|line| line.strip_prefix(&sample));
                done.map_or(0, |count| count.parse().expect("a count"))
            })
            .sum();
        assert!(done > 0, "{name} never got a 200\n{told:#}");
        // What fits the server was accepted, mostly: on a busy machine there may be no time for some (429, 504).
        let fitted = of_kind("fitted");
        let accepted: u64 =
            ["200", "202", "204", "206"].iter().filter_map(|code| told[&name]["fitted"][code].as_u64()).sum();
        assert!(
            accepted * 5 >= fitted * 4 || ONCE.contains(&name.as_str()),
            "{name}: {accepted} of {fitted}\n{told:#}"
        );
    }
    assert_eq!(server.get("/livez").ok().json()["status"], "alive");
}

/// An operation of the document.
struct Operation {
    /// `GET /livez`.
    name: String,
    path: String,
    /// Whether it takes anything that could be one thing or another.
    varies: bool,
}

fn operations(document: &Value) -> Vec<Operation> {
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let varies = operation["parameters"].is_array() || operation["requestBody"].is_object();
            let name = format!("{} {path}", method.to_uppercase());
            all.push(Operation { name, path: path.clone(), varies });
        }
    }
    all
}

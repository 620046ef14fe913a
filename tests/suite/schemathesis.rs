//! The document against the server: `schemathesis` reads the one and sends the other whatever it can think of.

use serde_json::json;
use suite::{Package, TestServer, python};
use windowpane_server::Config;

#[test]
fn schemathesis_finds_nothing() {
    let package = Package::tiny();
    package.copy("other");
    let manifest = package.models().join("other/manifest.json");
    let mut other: serde_json::Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    other["name"] = json!("other");
    std::fs::write(&manifest, other.to_string()).unwrap();
    let server = TestServer::start(Config {
        models: package.models(),
        keys: suite::keys(&[("tester", "admin")]),
        ..TestServer::config()
    });
    let said = python("schemathesis_client.py", [server.url().as_str(), "tester's secret"]);
    // It ran, over every operation, and not only a few examples.
    let operations = server.get("/openapi.json").ok().json()["paths"]
        .as_object()
        .unwrap()
        .values()
        .map(|methods| methods.as_object().unwrap().len())
        .sum::<usize>();
    assert!(said.contains(&format!("Tested: {operations}")), "{said}");
    // "3602 generated, 3602 passed"
    let cases = said.lines().find_map(|line| line.trim().strip_suffix(" passed")?.split_once(" generated, "));
    let (generated, passed) = cases.unwrap_or_else(|| panic!("{said}"));
    assert_eq!(generated, passed, "{said}");
    let generated: usize = generated.parse().unwrap_or_else(|_| panic!("{said}"));
    assert!(generated > 2000, "{said}");
    assert_eq!(server.get("/livez").ok().json()["status"], "alive");
}

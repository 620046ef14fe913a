//! The examples that request schemas carry themselves, for pages and clients that show no others: each is sent to every
//! operation that takes it, of a server which has the model that it names and keeps jobs.

use std::collections::BTreeSet;

use serde_json::Value;
use suite::TestServer;

use super::document;

/// The path of an operation, with the examples of its parts in their places.
fn path(pattern: &str, operation: &Value) -> String {
    let parts = operation["parameters"].as_array().into_iter().flatten().filter(|part| part["in"] == "path");
    parts.fold(pattern.to_owned(), |path, part| {
        let name = part["name"].as_str().unwrap();
        // There is one version of each model.
        let example = if name == "version" { "1" } else { part["example"].as_str().unwrap() };
        path.replace(&format!("{{{name}}}"), example)
    })
}

#[test]
fn openapi_requests_that_are_shown_are_taken() {
    let (document, server) = (document(), TestServer::shelf());
    let schemas = &document["components"]["schemas"];
    let mut sent = BTreeSet::new();
    for (pattern, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
            let name = schema.as_str().and_then(|schema| schema.rsplit('/').next()).unwrap_or_default();
            let Some(example) = schemas[name].get("example") else { continue };
            let request = server.request(&method.to_uppercase(), &path(pattern, operation));
            let answer =
                server.send(request.header("content-type", "application/json").body(example.to_string()));
            // An order is taken; everything else is done.
            let expected = if pattern.starts_with("/v1/jobs") { 202 } else { 200 };
            assert!(
                answer.status == expected,
                "`{name}` at {method} {pattern}: {}",
                String::from_utf8_lossy(&answer.bytes)
            );
            sent.insert(name);
        }
    }
    assert!(sent.len() >= 6, "{sent:?}");
    let shown = schemas.as_object().unwrap().iter().filter(|(_, schema)| schema.get("example").is_some());
    assert_eq!(sent, shown.map(|(name, _)| name.as_str()).collect(), "an example is sent nowhere");
}

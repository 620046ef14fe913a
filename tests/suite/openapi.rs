//! The document that clients read, as a snapshot in `openapi/`. With `UPDATE_OPENAPI=1` it is written instead of compared;
//! `cargo xtask openapi` does that, after it has recorded the examples in it (`openapi/examples.rs`).

mod examples;
mod requests;

use std::fs;

use serde_json::{Map, Value};
use suite::{TestServer, root};

fn updating() -> bool {
    std::env::var_os("UPDATE_OPENAPI").is_some_and(|value| value == "1")
}

/// With keys in order, whatever order the JSON library keeps; so that the snapshot changes only if the document does.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut keys: Vec<&String> = fields.keys().collect();
            keys.sort();
            Value::Object(
                keys.into_iter().map(|key| (key.clone(), sorted(&fields[key]))).collect::<Map<_, _>>(),
            )
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(&sorted(value)).unwrap() + "\n"
}

fn document() -> Value {
    TestServer::shared().get("/openapi.json").ok().json()
}

#[test]
fn openapi_document_is_the_stored_one() {
    let path = root().join("openapi/openapi.json");
    let now = pretty(&document());
    if updating() {
        return fs::write(&path, now).unwrap();
    }
    let stored = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for (number, (new, old)) in now.lines().zip(stored.lines()).enumerate() {
        let line = number + 1;
        assert_eq!(
            new, old,
            "openapi/openapi.json differs at line {line}: run `cargo xtask openapi`, read the diff"
        );
    }
    assert_eq!(
        now.len(),
        stored.len(),
        "openapi/openapi.json is longer or shorter: run `cargo xtask openapi`"
    );
}

#[test]
fn openapi_version_and_title_are_ours() {
    let document = document();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    assert_eq!(document["info"]["title"], "windowpane");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn openapi_describes_every_field_and_answer() {
    let document = document();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for (name, schema) in schemas {
        for (field, property) in schema["properties"].as_object().into_iter().flatten() {
            let told = property["description"].is_string() || property.get("$ref").is_some();
            let inner = property["oneOf"].as_array().is_some_and(|variants| !variants.is_empty());
            assert!(told || inner, "`{name}.{field}` has no description");
        }
    }
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            assert!(
                operation["summary"].is_string() || operation["description"].is_string(),
                "{method} {path}"
            );
            assert!(!operation["responses"].as_object().unwrap().is_empty(), "{method} {path}");
        }
    }
}

#[test]
fn openapi_pages_are_at_docs() {
    let server = TestServer::shared();
    let page = server.get("/docs/").ok();
    assert!(
        page.header("content-type").starts_with("text/html") && page.text().contains("swagger"),
        "{}",
        page.text()
    );
    // The page's own files come from this server, not from the network.
    let local = page.text().split(['"', '\'']).filter(|text| text.starts_with("./") && text.contains('.'));
    let files: Vec<&str> = local.filter(|text| text.ends_with(".js") || text.ends_with(".css")).collect();
    assert!(!files.is_empty(), "{}", page.text());
    for file in files {
        server.get(&format!("/docs/{}", &file[2..])).ok();
    }
    assert!(!page.text().contains("https://"), "nothing is fetched from elsewhere: {}", page.text());
    // Without the slash, a person is led there.
    assert!(server.get("/docs").ok().text().contains("swagger"));
}

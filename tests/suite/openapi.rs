//! The document that clients read, as a snapshot in `openapi/`, and its examples, replayed. With `UPDATE_OPENAPI=1`
//! both are written instead of compared; `cargo xtask openapi` does that.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::{Map, Value};
use suite::{TestServer, root};

/// The fields of an example that the server fills.
const RESPONSE: &str = "response";

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

/// The examples' files, in order of name.
fn examples() -> Vec<PathBuf> {
    let folder = root().join("openapi/examples");
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 8, "the examples are in openapi/examples");
    paths
}

/// Sends the request of an example; what came back, in the form that an example stores.
fn replay(example: &Value) -> Value {
    let server = TestServer::shared();
    let asked = &example["request"];
    let mut request = server.request(asked["method"].as_str().unwrap(), asked["path"].as_str().unwrap());
    for (name, value) in asked["headers"].as_object().into_iter().flatten() {
        request = request.header(name, value.as_str().unwrap());
    }
    if let Some(body) = asked.get("body") {
        request = request.body(body.to_string());
    }
    let answer = server.send(request);
    let kind = answer.header("content-type");
    let body = match kind.split(';').next().unwrap() {
        "application/json" => answer.json(),
        // The bytes themselves are nothing to read.
        _ => Value::String(format!("{kind}, {} bytes", answer.bytes.len())),
    };
    serde_json::json!({"status": answer.status, "content-type": kind, "body": body})
}

#[test]
fn openapi_examples_are_answered_as_they_say_and_fit_the_document() {
    let document = document();
    for path in examples() {
        let text = fs::read_to_string(&path).unwrap();
        let mut example: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let name = path.file_name().unwrap().display().to_string();
        let mut now = replay(&example);
        // What differs from machine to machine or from call to call keeps its stored value, and is compared by kind.
        let varies: Vec<String> = example["varies"]
            .as_array()
            .unwrap()
            .iter()
            .map(|place| place.as_str().unwrap().to_owned())
            .collect();
        for place in &varies {
            let fresh =
                now.pointer_mut(place).unwrap_or_else(|| panic!("{name}: no `{place}` in the answer"));
            let Some(stored) = example[RESPONSE].pointer(place) else { continue };
            let same = std::mem::discriminant(fresh) == std::mem::discriminant(stored);
            assert!(same || updating(), "{name}: `{place}` is {fresh}, stored is {stored}");
            *fresh = stored.clone();
        }
        if updating() {
            example[RESPONSE] = now;
            fs::write(&path, pretty(&example)).unwrap();
        } else {
            assert_eq!(pretty(&now), pretty(&example[RESPONSE]), "{name} is answered otherwise");
        }
        fits(&name, &example, &document);
    }
}

/// Path, method, status, type of the answer and its fields are those of the document.
fn fits(name: &str, example: &Value, document: &Value) {
    let properties = |name: &str| document["components"]["schemas"][name]["properties"].as_object().unwrap();
    let (asked, told) = (&example["request"], &example[RESPONSE]);
    assert!(example["about"].as_str().is_some_and(|about| about.len() > 10), "{name} says what it is about");
    let path = asked["path"].as_str().unwrap();
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
    let content =
        response["content"].as_object().unwrap().iter().find(|(documented, _)| essence(documented) == kind);
    let (_, content) = content.unwrap_or_else(|| panic!("{name}: {kind} is not in the document"));
    if let (Value::Object(body), Some(schema)) = (&told["body"], content["schema"]["$ref"].as_str()) {
        let schema = schema.rsplit('/').next().unwrap();
        let known: BTreeSet<&String> = properties(schema).keys().collect();
        assert_eq!(body.keys().collect::<BTreeSet<_>>(), known, "{name}: {schema}");
    }
    if told["status"] == 200 {
        let taken = operation["requestBody"]["content"]["application/json"]["schema"].to_string();
        let taken = taken.split("#/components/schemas/").nth(1).and_then(|rest| rest.split('"').next());
        for field in asked["body"].as_object().into_iter().flat_map(Map::keys) {
            let known = taken.is_some_and(|schema| properties(schema).contains_key(field));
            assert!(known, "{name}: `{field}` is not in the document");
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

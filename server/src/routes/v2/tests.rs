//! The protocol's routes through the whole stack, without a socket and with the fake network.
#![expect(clippy::needless_pass_by_value, reason = "a body is a `json!` on the spot")]

use std::io::Write as _;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use serde_json::{Value, json};

use super::*;
use crate::engine::fake::Faults;
use crate::keys::Keys;
use crate::testing::{Answer, app, get, send};

fn ready() -> App {
    app(Config::default(), &Faults::default())
}

async fn post(app: &App, path: &str, body: Value) -> Answer {
    send(app, Request::post(path).body(Body::from(body.to_string())).unwrap()).await
}

/// Rows of the classless sampler.
fn sampler(seeds: Value) -> Value {
    let rows = seeds.as_array().unwrap().len();
    let seed = json!({"name": "seed", "datatype": "INT64", "shape": [rows], "data": seeds});
    json!({"inputs": [seed], "outputs": [{"name": "samples"}]})
}

#[tokio::test]
async fn a_model_is_the_same_with_its_version_and_without() {
    let app = ready();
    for path in ["", "/config", "/ready", "/stats"] {
        let plain = get(&app, &format!("/v2/models/shoes.sampler{path}")).await;
        let versioned = get(&app, &format!("/v2/models/shoes.sampler/versions/1{path}")).await;
        assert_eq!((plain.status, versioned.status), (StatusCode::OK, StatusCode::OK), "{path}");
        assert_eq!(plain.json(), versioned.json(), "{path}");
        for wrong in ["0", "2", "01", "1.0", "%31%31"] {
            let answer = get(&app, &format!("/v2/models/shoes/versions/{wrong}{path}")).await;
            assert_eq!((answer.status, &answer.json()["param"]), (StatusCode::NOT_FOUND, &json!("version")));
        }
    }
}

#[tokio::test]
async fn a_tick_that_fails_is_an_error_and_nothing_is_told_of_the_inside() {
    let app = app(Config::default(), &Faults { error_at: vec![0], ..Faults::default() });
    let body = || sampler(json!([1]));
    let answer = post(&app, "/v2/models/plain.sampler/infer", body()).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.json()["error"], "the model failed on a batch that held this request");
    assert_eq!(answer.json()["request_id"], answer.headers["x-request-id"].to_str().unwrap());
    assert_eq!(post(&app, "/v2/models/plain.sampler/infer", body()).await.status, StatusCode::OK);
    let stats = get(&app, "/v2/models/plain.sampler/stats").await.json();
    let stats = &stats["model_stats"][0]["inference_stats"];
    assert_eq!((&stats["fail"]["count"], &stats["success"]["count"]), (&json!(1), &json!(1)));
}

#[tokio::test]
async fn the_most_rows_are_those_that_the_queue_holds() {
    let app = app(Config { queue_limit: 10, ..Config::default() }, &Faults::default());
    assert_eq!(get(&app, "/v2/models/plain/config").await.json()["max_batch_size"], 10);
    let body = |n: u64| sampler(json!((0..n).collect::<Vec<_>>()));
    assert_eq!(post(&app, "/v2/models/plain.sampler/infer", body(10)).await.status, StatusCode::OK);
    let answer = post(&app, "/v2/models/plain.sampler/infer", body(11)).await;
    assert_eq!(answer.json()["error"], "`inputs.seed.shape` is 11 rows, expected 1 to 10 rows");
}

#[tokio::test]
async fn an_answer_is_compressed_for_whoever_asks() {
    let app = ready();
    let ask = |coding: &str| {
        let request = Request::post("/v2/models/plain.sampler/infer").header(header::ACCEPT_ENCODING, coding);
        request.body(Body::from(sampler(json!([7])).to_string())).unwrap()
    };
    let plain = send(&app, ask("identity")).await;
    assert!(!plain.headers.contains_key(header::CONTENT_ENCODING));
    let gzip = send(&app, ask("gzip")).await;
    assert_eq!(gzip.headers[header::CONTENT_ENCODING], "gzip");
    let mut read = flate2::write::GzDecoder::new(Vec::new());
    read.write_all(&gzip.bytes).unwrap();
    assert_eq!(read.finish().unwrap(), plain.bytes);
}

#[tokio::test]
async fn while_models_load_the_server_is_alive_and_not_ready() {
    let app = App::new(Config::default());
    assert_eq!(get(&app, "/v2/health/live").await.status, StatusCode::OK);
    assert_eq!(get(&app, "/v2/health/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(&app, "/v2").await.status, StatusCode::OK);
    for path in ["/v2/models/shoes", "/v2/models/shoes/ready", "/v2/models/shoes/versions/1/stats"] {
        let answer = get(&app, path).await;
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (StatusCode::SERVICE_UNAVAILABLE, &json!("loading"))
        );
    }
}

#[tokio::test]
async fn keys_are_asked_for_and_only_an_administrator_loads() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = crate::keys::tests::file(&[("a", "generate", "one"), ("b", "admin", "two")]);
    std::fs::write(file.path(), text).unwrap();
    let keys = Keys::read(file.path()).unwrap();
    let app = app(Config { keys, ..Config::default() }, &Faults::default());
    let ask = async |path: &str, key: Option<&str>, body: &Value| {
        let mut request = Request::post(path);
        if let Some(key) = key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let answer = send(&app, request.body(Body::from(body.to_string())).unwrap()).await;
        (answer.status, serde_json::from_slice::<Value>(&answer.bytes).unwrap_or_default())
    };
    let (infer, unload) = ("/v2/models/plain.sampler/infer", "/v2/repository/models/plain/unload");
    let (body, none) = (sampler(json!([1])), json!({}));
    assert_eq!(ask(infer, None, &body).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(ask(infer, Some("three"), &body).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(ask(infer, Some("one"), &body).await.0, StatusCode::OK);
    let (status, told) = ask(unload, Some("one"), &none).await;
    assert_eq!((status, &told["error"]), (StatusCode::FORBIDDEN, &json!("this key may not do that")));
    let unknown = json!({"parameters": {"config": "{}"}});
    let load = "/v2/repository/models/plain/load";
    assert_eq!(ask(load, Some("two"), &unknown).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    let dependents = json!({"parameters": {"unload_dependents": false}});
    assert_eq!(ask(unload, Some("two"), &dependents).await.0, StatusCode::OK);
    assert_eq!(ask(infer, Some("one"), &body).await.0, StatusCode::NOT_FOUND);
    assert_eq!(ask(unload, Some("two"), &none).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn without_keys_nobody_loads() {
    for verb in ["load", "unload"] {
        let answer = post(&ready(), &format!("/v2/repository/models/plain/{verb}"), json!({})).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        assert!(answer.json()["error"].as_str().unwrap().contains("--keys"), "{answer:?}");
    }
}

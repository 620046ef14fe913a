//! The images route around a network that fails, is slow or does not come back, through the whole stack but the socket.
#![expect(clippy::needless_pass_by_value, reason = "a request's fields are a `json!` on the spot")]

use std::time::Instant;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::*;
use crate::app::Room;
use crate::batcher::Caller;
use crate::config::Config;
use crate::encode::ArrayFile;
use crate::engine::fake::{Faults, Gate};
use crate::keys::{Identity, Role};
use crate::middleware::request_id::RequestId;
use crate::spec::File;
use crate::testing::{app, generate, get, send};

fn sneaker(fields: Value) -> Value {
    let mut body = json!({"model": "shoes", "prompt": "sneaker", "seed": 7});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn engine_faults_are_ours_and_say_nothing_of_the_inside() {
    let app = app(Config::default(), &Faults { error_at: vec![0], ..Faults::default() });
    let answer = generate(&app, "", sneaker(json!({}))).await;
    let error = &answer.json()["error"];
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(error["code"], "engine_error");
    assert!(!error["message"].as_str().unwrap().contains("asked to fail"));
    assert_eq!(generate(&app, "", sneaker(json!({}))).await.status, StatusCode::OK);
}

/// The events of a stream: names and data.
fn events(text: &str) -> Vec<(String, Value)> {
    let event = |block: &str| {
        let (name, data) = block.strip_prefix("event: ")?.split_once("\ndata: ")?;
        Some((name.to_owned(), serde_json::from_str(data).unwrap()))
    };
    text.split_terminator("\n\n").filter_map(event).collect()
}

#[tokio::test]
async fn an_error_on_the_way_is_the_last_event() {
    // The first preview comes after three calls, the error at the sixth.
    let app = app(Config::default(), &Faults { error_at: vec![5], ..Faults::default() });
    let fields = json!({"stream": true, "partial_images": 2});
    let answer = generate(&app, "", sneaker(fields)).await;
    assert_eq!(answer.status, StatusCode::OK);
    let events = events(std::str::from_utf8(&answer.bytes).unwrap());
    assert_eq!(events[0].0, "image_generation.partial_image");
    let (name, data) = events.last().unwrap();
    assert_eq!((events.len(), name.as_str(), &data["error"]["code"]), (2, "error", &json!("engine_error")));
    assert_eq!(data["error"]["request_id"], answer.headers["x-request-id"].to_str().unwrap());
    assert!(!String::from_utf8_lossy(&answer.bytes).contains("asked to fail"));
    // Counted like any other, though the answer was a 200; and the client has had all of it.
    assert_eq!(app.metrics().rejections.with_label_values(&["engine_error"]).get(), 1);
    assert_eq!(app.metrics().hangups.with_label_values(&["answer"]).get(), 0);
}

#[tokio::test]
async fn what_cannot_be_shown_ends_a_stream_and_gives_up_the_rest() {
    let app = app(Config::default(), &Faults::default());
    let model = app.model(Some("shoes")).unwrap();
    let asked = sneaker(json!({"stream": true, "partial_images": 2, "n": 2}));
    let asked: ImageRequest = serde_json::from_value(asked).unwrap();
    let mut order = Order::resolve(&asked, &Accept::default(), &model.card).unwrap();
    // No preview is made of numbers: that is an error of ours, as one in a picture's file would be.
    order.output.file = File::Arrays(ArrayFile::Npz);
    let id = RequestId::parse("mine").unwrap();
    let call = Call::of_job(id.clone(), Identity { caller: Caller::ANONYMOUS, role: Role::Analyse });
    let running = call.submit(&app, &model, order.units(model.batcher.elements())).unwrap();
    let bench = app.workbench(Caller::ANONYMOUS);
    let mut body = stream::respond(bench, running, order, id, Room::default()).into_body();
    let mut text = String::new();
    while !text.contains("\nevent: ") {
        let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
        text += std::str::from_utf8(&piece).unwrap();
    }
    let [(name, data)] = events(&text).try_into().unwrap();
    assert_eq!((name.as_str(), &data["error"]["code"]), ("error", &json!("internal_error")));
    // Nothing is under way any more, while the client still reads; but the drain waits until it has the end.
    let delete = Request::delete("/v1/requests/mine").body(Body::empty()).unwrap();
    assert_eq!(send(&app, delete).await.status, StatusCode::NOT_FOUND);
    let soon = Duration::from_millis(30);
    assert!(tokio::time::timeout(soon, app.idle()).await.is_err(), "it leaves with the answer unsent");
    assert!(body.collect().await.unwrap().to_bytes().is_empty(), "something follows the error");
    app.idle().await;
}

#[tokio::test]
async fn a_call_that_does_not_return_is_no_life() {
    let gate = Gate::default();
    let config = Config { watchdog: Duration::from_millis(200), ..Config::default() };
    let app = app(config, &Faults { gate: gate.clone(), ..Faults::default() });
    gate.close();
    let running = tokio::spawn({
        let app = app.clone();
        async move { generate(&app, "", sneaker(json!({"steps": 2}))).await }
    });
    let start = Instant::now();
    let stuck = loop {
        let answer = get(&app, "/livez").await;
        if answer.status != StatusCode::OK {
            break answer;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "a call that does not return is not noticed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert_eq!(stuck.json()["status"], "stuck");
    assert_eq!(get(&app, "/v2/health/live").await.json()["live"], false);
    gate.open();
    assert_eq!(running.await.unwrap().status, StatusCode::OK);
    assert_eq!(get(&app, "/livez").await.json()["status"], "alive");
}

#[tokio::test]
async fn a_full_queue_is_life_and_readiness() {
    let gate = Gate::default();
    let config = Config { queue_limit: 1, ..Config::default() };
    let app = app(config, &Faults { gate: gate.clone(), ..Faults::default() });
    gate.close();
    let running = tokio::spawn({
        let app = app.clone();
        async move { generate(&app, "", sneaker(json!({"steps": 2}))).await }
    });
    while app.images() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let refused = generate(&app, "", sneaker(json!({"steps": 2}))).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (StatusCode::TOO_MANY_REQUESTS, &json!("overloaded"))
    );
    for path in ["/livez", "/readyz", "/v2/health/live", "/v2/health/ready"] {
        assert_eq!(get(&app, path).await.status, StatusCode::OK, "{path}");
    }
    gate.open();
    assert_eq!(running.await.unwrap().status, StatusCode::OK);
}

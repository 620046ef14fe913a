//! The images route through the whole stack, without a socket.
#![expect(clippy::needless_pass_by_value, reason = "a request's fields are a `json!` on the spot")]

use std::time::Instant;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::*;
use crate::batcher::Caller;
use crate::config::Config;
use crate::engine::fake::{Faults, Gate};
use crate::keys::Keys;
use crate::testing::{app, generate, get, send};

fn ready() -> App {
    app(Config::default(), &Faults::default())
}

fn sneaker(fields: Value) -> Value {
    let mut body = json!({"model": "shoes", "prompt": "sneaker", "seed": 7});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn json_is_openais_and_says_everything_that_was_used() {
    let answer = generate(&ready(), "application/json", sneaker(json!({"n": 2, "size": "12x8"}))).await;
    assert_eq!(answer.status, StatusCode::OK);
    let body = answer.json();
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    let seeds: Vec<_> = body["data"].as_array().unwrap().iter().map(|image| &image["seed"]).collect();
    assert_eq!(seeds, ["7", "8"]);
    let bytes = STANDARD.decode(body["data"][0]["b64_json"].as_str().unwrap()).unwrap();
    let picture = image::load_from_memory_with_format(&bytes, image::ImageFormat::Png).unwrap();
    assert_eq!((picture.width(), picture.height(), picture.color()), (12, 8, image::ColorType::L8));
    for (field, value) in [
        ("model", json!("shoes")),
        ("class", json!("Sneaker")),
        ("class_index", json!(0)),
        ("size", json!("12x8")),
        ("upscaled", json!(2)),
        ("steps", json!(10)),
        ("sampler", json!("ddim")),
        ("time_grid", json!("uniform")),
        ("guidance_scale", json!(2.0)),
        ("determinism", json!("bitwise")),
        ("output_format", json!("png")),
    ] {
        assert_eq!(body[field], value, "{field}");
    }
    let timing = answer.headers["server-timing"].to_str().unwrap();
    for stage in ["queue;dur=", "denoise;dur=", "encode;dur=", "total;dur="] {
        assert!(timing.contains(stage), "{timing}");
    }
}

#[tokio::test]
async fn raw_bytes_are_the_same_picture() {
    let app = ready();
    let body = generate(&app, "*/*", sneaker(json!({}))).await.json();
    let inside = STANDARD.decode(body["data"][0]["b64_json"].as_str().unwrap()).unwrap();
    let raw = generate(&app, "image/png", sneaker(json!({}))).await;
    assert_eq!((raw.status, &raw.bytes), (StatusCode::OK, &inside));
    let told = &body["data"][0]["provenance"];
    let note: Value = serde_json::from_str(crate::decode::picture::note(&inside).unwrap()).unwrap();
    let header: Value = serde_json::from_str(raw.headers["x-provenance"].to_str().unwrap()).unwrap();
    assert_eq!((&note, &header), (told, told));
    for (name, value) in [
        ("content-type", "image/png"),
        ("x-seed", "7"),
        ("x-model", "shoes"),
        ("x-steps", "10"),
        ("x-sampler", "ddim"),
        ("x-guidance-scale", "2"),
        ("x-class-index", "0"),
        ("x-upscaled", "1"),
    ] {
        assert_eq!(raw.headers[name], value, "{name}");
    }
    for (accept, magic) in [("image/jpeg", &b"\xff\xd8\xff"[..]), ("image/webp", b"RIFF")] {
        let answer = generate(&app, accept, sneaker(json!({}))).await;
        assert_eq!(answer.headers["content-type"], accept);
        assert!(answer.bytes.starts_with(magic));
    }
}

#[tokio::test]
async fn a_returned_seed_gives_the_image_again() {
    let app = ready();
    let first = generate(&app, "", json!({"model": "plain", "n": 2})).await.json();
    for image in first["data"].as_array().unwrap() {
        let again =
            generate(&app, "", json!({"model": "plain", "prompt": "", "seed": image["seed"]})).await.json();
        assert_eq!(again["data"][0], *image);
    }
    assert_eq!(first["class"], Value::Null);
}

#[tokio::test]
async fn errors_are_openais_object_with_the_requests_id() {
    let request = Request::post("/v1/images/generations")
        .header(header::CONTENT_TYPE, "application/json")
        .header("x-request-id", "mine-1")
        .body(Body::from(r#"{"model": "shoes", "prompt": "sneaker", "step": 3}"#));
    let answer = send(&ready(), request.unwrap()).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(answer.headers["x-request-id"], "mine-1");
    assert_eq!(answer.headers["content-type"], "application/json");
    let error = &answer.json()["error"];
    assert_eq!((&error["code"], &error["param"]), (&json!("unknown_field"), &json!("step")));
    assert_eq!((&error["type"], &error["request_id"]), (&json!("invalid_request_error"), &json!("mine-1")));
}

#[tokio::test]
async fn every_refusal_has_its_status() {
    let app = ready();
    let post = |kind: &str, body: Vec<u8>| {
        Request::post("/v1/images/generations")
            .header(header::CONTENT_TYPE, kind)
            .body(Body::from(body))
            .unwrap()
    };
    let json = "application/json";
    let big = format!("{{\"prompt\": \"{}\"}}", "x".repeat(1 << 20)).into_bytes();
    for (request, status, code) in [
        (post(json, b"{".to_vec()), 400, "malformed_body"),
        (post(json, b"{\"prompt\": \"\xff\"}".to_vec()), 400, "malformed_body"),
        (post(json, b"{\"guidance_scale\": NaN}".to_vec()), 400, "malformed_body"),
        (post(json, b"{\"model\": \"hats\"}".to_vec()), 404, "model_not_found"),
        (post(json, b"{\"model\": \"../../etc/passwd\"}".to_vec()), 404, "model_not_found"),
        (post(json, b"{}".to_vec()), 422, "invalid_value"),
        (post(json, b"{\"n\": -1}".to_vec()), 422, "invalid_value"),
        (post(json, big), 413, "body_too_large"),
        (post("text/plain", b"{}".to_vec()), 415, "unsupported_media_type"),
        (Request::get("/v1/images/generations").body(Body::empty()).unwrap(), 405, "method_not_allowed"),
        (Request::get("/v1/nothing").body(Body::empty()).unwrap(), 404, "not_found"),
        (Request::get("/v1/models/hats").body(Body::empty()).unwrap(), 404, "model_not_found"),
        (Request::get("/v1/models/%ff").body(Body::empty()).unwrap(), 404, "model_not_found"),
    ] {
        let path = request.uri().path().to_owned();
        let answer = send(&app, request).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["code"]),
            (status, &json!(code)),
            "{path}"
        );
    }
    let answer = generate(&app, "text/html", sneaker(json!({}))).await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (StatusCode::NOT_ACCEPTABLE, Some("not_acceptable"))
    );
}

#[tokio::test]
async fn a_body_without_a_length_is_cut_at_the_limit() {
    // A thousand chunks of 64 KiB: refused after sixteen.
    let chunk = bytes::Bytes::from(vec![b' '; 1 << 16]);
    let stream = (0..1000).map(move |_| Ok::<_, std::io::Error>(chunk.clone()));
    let body = Body::from_stream(futures::stream::iter(stream));
    let request =
        Request::post("/v1/images/generations").header(header::CONTENT_TYPE, "application/json").body(body);
    assert_eq!(send(&ready(), request.unwrap()).await.status, StatusCode::PAYLOAD_TOO_LARGE);
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

/// Thirty frames of 24 values, and of each the clean estimate.
const FRAMES: usize = 30 * 24 * 2 * 4;

#[tokio::test]
async fn frames_have_a_budget_that_all_share_and_every_request_gives_its_part_back() {
    let slow = Faults { delay: Duration::from_millis(60), ..Faults::default() };
    let app = app(Config { frame_limit: FRAMES + FRAMES / 2, ..Config::default() }, &slow);
    let kept = || app.frame_bytes();
    let frames = |steps: u64| sneaker(json!({"steps": steps, "trajectory": 1}));
    let begin = |body: Value| {
        let app = app.clone();
        tokio::spawn(async move { generate(&app, "", body).await })
    };
    let until_it_keeps = async || {
        while kept() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let first = begin(frames(30));
    until_it_keeps().await;
    assert!((FRAMES..FRAMES + 1024).contains(&kept()), "{}", kept());
    let metrics = String::from_utf8(get(&app, "/metrics").await.bytes).unwrap();
    assert!(metrics.contains(&format!("windowpane_frame_bytes {}", kept())), "{metrics}");
    // The next would be too much, and is told so; one without frames is not, and a small one fits beside it.
    let answer = generate(&app, "", frames(30)).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.json()["error"]["code"], "memory_full");
    assert!(answer.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(generate(&app, "", sneaker(json!({"steps": 1}))).await.status, StatusCode::OK);
    assert_eq!(generate(&app, "", frames(1)).await.status, StatusCode::OK);
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
    assert_eq!(kept(), 0, "it was answered");
    // Previews are frames as well; a client that goes away takes its own with it.
    let previews = sneaker(json!({"steps": 30, "stream": true, "n": 10, "partial_images": 3}));
    let gone = begin(previews);
    until_it_keeps().await;
    assert!((FRAMES..FRAMES + 1024).contains(&kept()), "{}", kept());
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    assert_eq!(kept(), 0, "it hung up");
    // Refused after it had its room, by the queue.
    let late = sneaker(json!({"steps": 30, "trajectory": 1, "timeout_ms": 1}));
    assert_eq!(generate(&app, "", late).await.json()["error"]["code"], "deadline_unmeetable");
    assert_eq!(kept(), 0, "it was refused");
    // More than there is at all: alone, it has everything.
    let most = sneaker(json!({"steps": 30, "trajectory": 1, "n": 3}));
    assert_eq!(generate(&app, "", most).await.status, StatusCode::OK);
    assert_eq!(kept(), 0);
}

#[tokio::test]
async fn who_has_no_memory_for_frames_is_told_of_those_who_have_it() {
    let slow = Faults { row_delay: Duration::from_millis(100), ..Faults::default() };
    let app = app(Config { frame_limit: FRAMES + FRAMES / 2, ..Config::default() }, &slow);
    let first = tokio::spawn({
        let app = app.clone();
        async move { generate(&app, "", sneaker(json!({"steps": 30, "trajectory": 1}))).await }
    });
    while app.frame_bytes() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Its own model has nothing to do; the other has for six seconds.
    let answer = generate(&app, "", json!({"model": "plain", "seed": 7, "steps": 30, "trajectory": 1})).await;
    assert_eq!(answer.json()["error"]["code"], "memory_full");
    let wait = answer.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap();
    assert!((3..=8).contains(&wait), "{wait}");
    first.abort();
}

#[tokio::test]
async fn one_caller_leaves_half_of_the_memory_to_the_others() {
    let key = |name: &str| {
        let digest = Sha256::digest(name).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("[[key]]\nname = \"{name}\"\nrole = \"generate\"\nsha256 = \"{digest}\"\n")
    };
    let keys = Keys::in_file(&(key("alice") + &key("bob"))).unwrap();
    let slow = Faults { delay: Duration::from_millis(60), ..Faults::default() };
    let app = app(Config { frame_limit: 3 * FRAMES, keys, ..Config::default() }, &slow);
    let ask = |who: &str| {
        let body = sneaker(json!({"steps": 30, "trajectory": 1})).to_string();
        let request =
            Request::post("/v1/images/generations").header(header::CONTENT_TYPE, "application/json");
        let request = request.header("x-api-key", who).body(Body::from(body)).unwrap();
        let app = app.clone();
        async move { send(&app, request).await }
    };
    let first = tokio::spawn(ask("alice"));
    while app.frame_bytes() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let second = ask("alice").await;
    assert_eq!(second.json()["error"]["code"], "memory_full", "two of three are more than half");
    let (first, others) = futures::future::join(first, ask("bob")).await;
    assert_eq!([first.unwrap().status, others.status], [StatusCode::OK; 2]);
    assert_eq!(ask("alice").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_full_queue_is_429_with_the_time_to_wait() {
    let gate = Gate::default();
    let faults = Faults { gate: gate.clone(), ..Faults::default() };
    let app = app(Config { queue_limit: 1, ..Config::default() }, &faults);
    gate.close();
    let running = tokio::spawn({
        let app = app.clone();
        async move { generate(&app, "", sneaker(json!({"steps": 30}))).await }
    });
    while app.model(Some("shoes")).unwrap().batcher.images() == 0 {
        tokio::task::yield_now().await;
    }
    let answer = generate(&app, "", sneaker(json!({}))).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(answer.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(answer.json()["error"]["type"], "rate_limit_error");
    gate.open();
    assert_eq!(running.await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn before_and_after_it_is_503_and_alive() {
    let app = App::new(Config::default());
    assert_eq!(get(&app, "/livez").await.status, StatusCode::OK);
    assert_eq!(get(&app, "/readyz").await.json()["status"], "loading");
    assert_eq!(get(&app, "/startupz").await.status, StatusCode::SERVICE_UNAVAILABLE);
    let answer = generate(&app, "", sneaker(json!({}))).await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, Some("loading"))
    );
    let app = ready();
    assert_eq!(get(&app, "/readyz").await.status, StatusCode::OK);
    app.drain();
    assert_eq!(get(&app, "/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(&app, "/startupz").await.json()["status"], "started");
    let answer = generate(&app, "", sneaker(json!({}))).await;
    assert_eq!(answer.json()["error"]["code"], "shutting_down");
    assert_eq!(get(&app, "/livez").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_call_that_does_not_return_is_no_life_and_a_full_queue_is() {
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
async fn models_metrics_and_documents_are_served() {
    let app = ready();
    generate(&app, "", sneaker(json!({}))).await;
    let list = get(&app, "/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let mut shoes = get(&app, "/v1/models/shoes").await.json();
    let strengths = shoes.as_object_mut().unwrap().remove("strengths").unwrap();
    assert_eq!((strengths[0]["steps"].as_u64(), strengths[9]["t"].as_f64()), (Some(1), Some(99.0)));
    assert_eq!(list["data"][1], shoes);
    assert_eq!(shoes["classes"][1], json!({"index": 1, "name": "Boot", "aliases": ["Boot shoe"]}));
    assert_eq!((&shoes["engine"]["provider"], &shoes["size"]), (&json!("fake"), &json!("6x4")));
    let metrics = String::from_utf8(get(&app, "/metrics").await.bytes).unwrap();
    assert!(metrics.contains("windowpane_images_total{model=\"shoes\"} 1"));
    assert!(metrics.contains("windowpane_requests_total{code=\"200\",route=\"/v1/images/generations\"} 1"));
    let served = get(&app, "/openapi.json").await.json();
    assert_eq!(served, serde_json::to_value(crate::openapi::document()).unwrap());
    assert_eq!(get(&app, "/docs/").await.status, StatusCode::OK);
}

/// Takes all places of those who make files; they are free again when what is returned is dropped.
async fn no_place_to_encode(app: &App) -> Vec<std::sync::mpsc::Sender<()>> {
    let (began, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let mut held = Vec::new();
    for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
        let (hold, wait) = std::sync::mpsc::channel::<()>();
        held.push(hold);
        let (app, began) = (app.clone(), began.clone());
        tokio::spawn(async move {
            let work = move || {
                began.send(()).unwrap();
                let _ = wait.recv();
            };
            app.workbench(Caller::ANONYMOUS).compute(work).await
        });
        begun.recv().await.unwrap();
    }
    held
}

#[tokio::test]
async fn who_cancels_while_the_file_is_made_gets_no_image() {
    let app = ready();
    let drawn = || app.metrics().images.with_label_values(&["shoes"]).get();
    for (accept, stream) in [("application/json", false), ("image/png", false), ("text/event-stream", true)] {
        let held = no_place_to_encode(&app).await;
        let request = Request::post("/v1/images/generations")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, accept)
            .header("x-request-id", "mine")
            .body(Body::from(sneaker(json!({"stream": stream})).to_string()));
        let (there, before) = (app.clone(), drawn());
        let answer = tokio::spawn(async move { send(&there, request.unwrap()).await });
        while drawn() == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let delete = || Request::delete("/v1/requests/mine").body(Body::empty()).unwrap();
        assert_eq!(send(&app, delete()).await.json()["cancelled"], 1);
        drop(held);
        let answer = answer.await.unwrap();
        if stream {
            let text = String::from_utf8(answer.bytes).unwrap();
            let events = text.lines().filter_map(|line| line.strip_prefix("event: "));
            assert_eq!(events.collect::<Vec<_>>(), ["error"], "{text}");
            assert!(text.contains("\"cancelled\""), "{text}");
        } else {
            assert_eq!(answer.status, StatusCode::CONFLICT);
        }
        assert_eq!(send(&app, delete()).await.status, StatusCode::NOT_FOUND);
    }
}

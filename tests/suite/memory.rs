//! Memory that requests share: for frames that are kept on the way, for bodies that are being read, and for answers until
//! their clients have them. Who finds none is told so, and each request gives back what it had, however it ends.
#![expect(clippy::needless_pass_by_value, reason = "a request's fields are a `json!` on the spot")]

use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Bytes};
use hyper::service::Service as _;
use hyper::{Request, Response};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use suite::{Answer, IMAGES, Package, TestServer, keys};
use windowpane_server::Config;
use windowpane_server::batcher::Caller;
use windowpane_server::router::router;

/// Bytes of thirty frames of 32x32 values, and of the clean estimate of each.
const FRAMES: usize = 30 * 32 * 32 * 2 * 4;

/// The request for a ring, with these fields changed.
fn ring(fields: Value) -> Value {
    let mut body = json!({"model": "tiny", "prompt": "ring", "seed": 7, "guidance_scale": 1});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// One of so many steps that keeps a frame of each.
fn frames(steps: u64) -> Value {
    ring(json!({"steps": steps, "trajectory": 1}))
}

/// What a request is told for which there is no memory: the seconds until there may be some.
fn full(answer: &Answer, what: &str) -> u64 {
    let words = answer.refused(429, "memory_full", None);
    assert!(words.contains(&format!("the memory for {what} ")), "{words}");
    let seconds = answer.header("retry-after").parse().unwrap();
    assert!(seconds >= 1);
    seconds
}

#[test]
fn frames_have_a_budget_that_all_share_and_every_request_gives_its_part_back() {
    let server = TestServer::leaked(Config { frame_limit: FRAMES + FRAMES / 2, ..TestServer::config() });
    let kept = || server.app().frame_bytes();
    let model = server.app().model(None).unwrap();
    let others = server.app().room_for_frames(Caller::ANONYMOUS, &model, FRAMES).unwrap();
    let metrics = server.get("/metrics").ok();
    assert!(metrics.text().contains(&format!("\nwindowpane_frame_bytes {FRAMES}\n")), "{}", metrics.text());
    // The next would be too much, and is told so; one without frames is not, and a small one fits beside it.
    full(&server.generate(&frames(30)), "frames");
    server.generate(&ring(json!({"steps": 1}))).ok();
    server.generate(&frames(1)).ok();
    assert_eq!(kept(), FRAMES);
    drop(others);
    server.generate(&frames(30)).ok();
    assert_eq!(kept(), 0, "it was answered");
    // Previews are frames as well; a client that goes away takes its own with it. Neither ends by itself during the test.
    let strip = json!({"steps": 990, "trajectory": 33, "guidance_scale": 2});
    let previews = json!({"steps": 990, "stream": true, "n": 10, "partial_images": 3});
    for (fields, images) in [(strip, 1), (previews, 10)] {
        let gone = server.spawn(server.answer(server.post(ring(fields).to_string())));
        server.until_images(images);
        assert!((FRAMES..FRAMES + 1024).contains(&kept()), "{}", kept());
        gone.abort();
        server.until("it hung up", || kept() == 0);
        server.until_images(0);
    }
    // Refused after it had its room, by the queue.
    let mut late = ring(json!({"steps": 990, "trajectory": 33}));
    late["timeout_ms"] = json!(1);
    server.generate(&late).refused(429, "deadline_unmeetable", None);
    assert_eq!(kept(), 0, "it was refused");
    // More than there is at all: alone, it has everything.
    server.generate(&ring(json!({"steps": 30, "trajectory": 1, "n": 3}))).ok();
    assert_eq!(kept(), 0);
}

#[test]
fn who_has_no_memory_for_frames_is_told_of_those_who_have_it() {
    let package = Package::tiny();
    package.copy("other");
    let path = package.models().join("other/manifest.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    manifest["name"] = json!("other");
    std::fs::write(&path, manifest.to_string()).unwrap();
    let server = TestServer::leaked(Config {
        frame_limit: FRAMES + FRAMES / 2,
        models: package.models(),
        ..TestServer::config()
    });
    let [busy, idle] = ["other", "tiny"].map(|name| server.app().model(Some(name)).unwrap());
    // Previews are frames: its own are charged to its model.
    let long = json!({
        "model": "other", "n": 10, "steps": 1000, "guidance_scale": 2, "stream": true, "partial_images": 3,
    });
    let long = server.spawn(server.answer(server.post(ring(long).to_string())));
    server.until_images(10);
    // Its own model has nothing to do; the other has for long. How long is measured anew all the while.
    let backlog = || busy.batcher.standing().backlog.as_secs();
    let before = backlog();
    let wait = full(&server.generate(&frames(30)), "frames");
    let after = backlog();
    assert!(idle.batcher.standing().backlog.is_zero() && wait > 1, "{wait}");
    assert!((before.min(after) / 2..=(before.max(after) + 1) * 2).contains(&wait), "{before} {wait} {after}");
    long.abort();
}

#[test]
fn one_caller_leaves_half_of_the_memory_to_the_others() {
    let keys = keys(&[("alice", "generate"), ("bob", "generate")]);
    let server = TestServer::start(Config { frame_limit: 3 * FRAMES, keys, ..TestServer::config() });
    let secret = |who: &str| format!("{who}'s secret");
    let ask = |who: &str| server.send(server.post(frames(30).to_string()).bearer_auth(secret(who)));
    let alice = server.app().keys().identify(Some(&secret("alice"))).unwrap().caller;
    let model = server.app().model(None).unwrap();
    let first = server.app().room_for_frames(alice, &model, FRAMES).unwrap();
    // Two of three are more than half.
    full(&ask("alice"), "frames");
    ask("bob").ok();
    drop(first);
    ask("alice").ok();
}

#[test]
fn a_body_without_room_is_told_so_and_a_small_one_needs_none() {
    let server = TestServer::start(Config { body_timeout: Duration::from_secs(1), ..TestServer::config() });
    // On a busy machine a body may itself come too late.
    let ask = |prompt: &str| {
        let mut answer = None;
        server.until("its body comes in time", || {
            let told = server.generate(&ring(json!({"prompt": prompt, "steps": 1})));
            answer = (told.status != 408).then_some(told);
            answer.is_some()
        });
        answer.unwrap()
    };
    // More than the beginning of one, which has its own room. There is no such class, which is known once it has been read.
    let large = "sneaker ".repeat(2 << 10);
    ask(&large).refused(422, "invalid_value", Some("prompt"));
    let others = server.block_on(server.app().room_for_body(usize::MAX));
    let answer = ask(&large);
    answer.refused(503, "bodies_full", None);
    assert_eq!(answer.header("retry-after"), "1");
    ask("ring").ok();
    drop(others);
    ask(&large).refused(422, "invalid_value", Some("prompt"));
}

/// An answer that is not on its way yet: it comes by no socket, and of its body is there what is asked for.
async fn unsent(
    server: &TestServer,
    request: Request<Full<Bytes>>,
) -> Response<impl Body<Data = Bytes, Error: std::fmt::Debug> + Unpin> {
    TowerToHyperService::new(router(server.app())).call(request).await.unwrap()
}

/// POST of this there.
fn post(path: &str, accept: &str, body: &Value) -> Request<Full<Bytes>> {
    let request = Request::post(path).header("content-type", "application/json").header("accept", accept);
    request.body(Full::from(body.to_string())).unwrap()
}

#[test]
fn an_answer_has_room_until_its_client_has_it() {
    const LIMIT: usize = 400_000;
    // Three quarters are for large answers: one, of thirty frames.
    let server = TestServer::start(Config { answer_limit: LIMIT, ..TestServer::config() });
    let (npz, held) = ("application/x-npz", || server.app().answer_bytes());
    let mut response = server.block_on(unsent(&server, post(IMAGES, npz, &frames(30))));
    assert_eq!(response.status(), 200);
    let length = response.body().size_hint().exact().unwrap() as usize;
    assert!(length > LIMIT / 2, "{length}");
    assert_eq!(held(), length, "by now it is known how much it is");
    full(&server.picture(npz, &frames(30)), "answers");
    let metrics = server.get("/metrics").ok();
    for gauge in [format!("answer_bytes {length}"), format!("answer_limit_bytes {LIMIT}")] {
        assert!(metrics.text().contains(&format!("\nwindowpane_{gauge}\n")), "{gauge}: {}", metrics.text());
    }
    let piece = server.block_on(response.body_mut().frame()).unwrap().unwrap().into_data().unwrap();
    drop(response);
    assert_eq!(held(), length, "a connection's buffer has a piece of it");
    drop(piece);
    assert_eq!(held(), 0);
    server.picture(npz, &frames(30)).ok();
    server.until("it is with its client", || held() == 0);
}

#[test]
fn every_kind_of_answer_has_room() {
    let server = TestServer::leaked(TestServer::config());
    let held = || server.app().answer_bytes();
    let seed = json!({"name": "seed", "datatype": "INT64", "shape": [1], "data": [1]});
    let class = json!({"name": "class", "datatype": "BYTES", "shape": [1], "data": ["ring"]});
    let infer = json!({"inputs": [seed, class]});
    let attention = json!({"prompt": "ring", "seed": 1, "timestep": 50, "layers": [0], "tokens": [0]});
    let jacobian = json!({"prompt": "ring", "seed": 1, "timestep": 50, "k": 1});
    let image = ring(json!({"steps": 2}));
    for (path, accept, body) in [
        (IMAGES, "application/json", &image),
        (IMAGES, "application/x-npz", &frames(30)),
        ("/v2/models/tiny.sampler/infer", "", &infer),
        ("/v1/analysis/attention", "", &attention),
        ("/v1/analysis/jacobian", "", &jacobian),
    ] {
        let response = server.block_on(unsent(server, post(path, accept, body)));
        let length = response.body().size_hint().exact().unwrap();
        assert_eq!((response.status().as_u16(), held() as u64), (200, length), "{path}");
        drop(response);
        assert_eq!(held(), 0, "{path}");
    }
    // Of a stream nobody knows beforehand; what was thought is kept until its end.
    let stream = ring(json!({"steps": 2, "stream": true}));
    let response = server.block_on(unsent(server, post(IMAGES, "", &stream)));
    assert!(held() > 1000);
    server.block_on(response.into_body().collect()).unwrap();
    assert_eq!(held(), 0);
    // What is given up gives it back.
    let long = post(IMAGES, "", &ring(json!({"steps": 1000, "n": 2})));
    let waiting = server.spawn(async { unsent(server, long).await.status() });
    server.until_images(2);
    assert!(held() > 0);
    waiting.abort();
    server.until("it is given up", || held() == 0);
}

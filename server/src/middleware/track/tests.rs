//! What is told of a request, and who waits until its answer is with its client.

use http_body_util::BodyExt;
use tokio::time::timeout;
use tower::ServiceExt;

use super::*;
use crate::config::Config;
use crate::engine::fake::Faults;
use crate::router::router;
use crate::testing::{app, send};

#[test]
fn server_timing_is_in_milliseconds() {
    let ms = Duration::from_millis;
    let stages = Stages { queue: ms(1), denoise: ms(250), encode: Duration::from_micros(1500) };
    assert_eq!(
        server_timing(Some(stages), ms(300)),
        "queue;dur=1.000, denoise;dur=250.000, encode;dur=1.500, total;dur=300.000"
    );
    assert_eq!(server_timing(None, ms(2)), "total;dur=2.000");
}

fn body(answer: &str) -> Request {
    Request::post(IMAGES)
        .header("content-type", "application/json")
        .header("accept", answer)
        .body(Body::from(r#"{"model": "shoes", "prompt": "boot", "seed": 1, "steps": 2}"#))
        .unwrap()
}

const IMAGES: &str = "/v1/images/generations";

/// One whose network takes its time.
fn app_of(delay: Duration) -> App {
    app(Config::default(), &Faults { delay, ..Faults::default() })
}

#[tokio::test]
async fn the_drain_waits_until_the_client_has_its_answer() {
    let app = app(Config::default(), &Faults::default());
    let png = send(&app, body("image/png")).await.bytes;
    let replay = Request::post("/v1/replay").header("content-type", "image/png").body(Body::from(png));
    let seed = r#"{"inputs": [{"name": "seed", "datatype": "INT64", "shape": [1], "data": [1]}]}"#;
    let infer = Request::post("/v2/models/plain.sampler/infer").body(Body::from(seed));
    for request in [body("application/json"), replay.unwrap(), infer.unwrap()] {
        let path = request.uri().path().to_owned();
        let response = router(&app).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let soon = Duration::from_millis(30);
        assert!(timeout(soon, app.idle()).await.is_err(), "{path}: it leaves with the answer unsent");
        assert!(!response.into_body().collect().await.unwrap().to_bytes().is_empty());
        timeout(soon * 100, app.idle()).await.expect("the answer is with the client");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_taken_to_its_end_is_a_hang_up() {
    let app = app(Config::default(), &Faults::default());
    let hangups =
        || ["wait", "answer"].map(|during| app.metrics().hangups.with_label_values(&[during]).get());
    let ask = || Request::get("/openapi.json").body(Body::empty()).unwrap();
    send(&app, ask()).await;
    assert_eq!(hangups(), [0, 0]);
    let head = send(&app, Request::head("/openapi.json").body(Body::empty()).unwrap()).await;
    assert!(head.status == 200 && head.bytes.is_empty());
    assert_eq!(hangups(), [0, 0], "of an answer to HEAD there is nothing more to take");
    let mut response = router(&app).oneshot(ask()).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    drop(response);
    assert_eq!(hangups(), [0, 1]);
    let slow = app_of(Duration::from_secs(5));
    let waiting = timeout(Duration::from_millis(5), router(&slow).oneshot(body("")));
    assert!(waiting.await.is_err());
    let hangups = ["wait", "answer"].map(|during| slow.metrics().hangups.with_label_values(&[during]).get());
    assert_eq!(hangups, [1, 0]);
}

#[tokio::test]
async fn the_stages_of_streams_and_replays_are_known_as_well() {
    let app = app(Config::default(), &Faults::default());
    let png = send(&app, body("image/png")).await.bytes;
    let replay = Request::post("/v1/replay").header("content-type", "image/png").body(Body::from(png));
    let asked = r#"{"model": "shoes", "prompt": "boot", "seed": 1, "steps": 2, "n": 2, "stream": true}"#;
    let stream = Request::post(IMAGES).header("content-type", "application/json").body(Body::from(asked));
    for request in [replay.unwrap(), stream.unwrap()] {
        let (log, path) = (crate::testing::Log::default(), request.uri().path().to_owned());
        let installed = log.install();
        assert_eq!(send(&app, request).await.status, 200, "{path}");
        drop(installed);
        let text = log.text();
        let stages = ["queue_us=", "denoise_us=", "encode_us=", "ended=\"whole\""];
        assert!(stages.iter().all(|stage| text.contains(stage)), "{path}: {text}");
    }
}

#[test]
fn images_of_one_request_wait_until_the_first_begins_and_are_at_work_until_the_last_is_done() {
    let ms = Duration::from_millis;
    let of = |queue, denoise, encode| Stages { queue: ms(queue), denoise: ms(denoise), encode: ms(encode) };
    assert_eq!(of(5, 10, 1).beside(of(7, 20, 2)), of(5, 22, 3));
    assert_eq!(of(7, 20, 2).beside(of(5, 10, 1)), of(5, 22, 3));
}

//! Every request is measured here: counted, timed, written to the access log, and told to the client in
//! `server-timing` under the same stage names that the metrics use; and, where a collector is given, traced. Its line in
//! the log is written when nothing more of its answer is to come, and says how that went.

use std::fmt::Write;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use super::request_id::RequestId;
use crate::app::{App, Job};
use crate::error::Cause;
use crate::pieces::Pieces;
use crate::telemetry::otlp::{Finished, Traces};

/// Stages of a generation, which the handler leaves in the response's extensions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stages {
    /// From admission to the first tick.
    pub queue: Duration,
    /// From the first tick to the last.
    pub denoise: Duration,
    /// From pixels to bytes.
    pub encode: Duration,
}

/// Whose key was shown, for the log: an extension of the request, which `middleware/access.rs` fills in.
#[derive(Debug, Clone, Default)]
pub struct Who(Arc<OnceLock<Box<str>>>);

/// How a stream ends: an extension of its response, which it fills in when it fails.
#[derive(Debug, Clone, Default)]
pub struct Fate(Arc<OnceLock<Cause>>);

/// A request's line in the access log, written when this is dropped.
struct Line {
    app: App,
    id: RequestId,
    who: Who,
    method: Method,
    route: String,
    arrived: Instant,
    head: Option<Head>,
    /// Whether all of the answer was handed over.
    whole: bool,
}

/// What is known once there is an answer.
struct Head {
    status: u16,
    stages: Option<Stages>,
    total: Duration,
    fate: Fate,
}

/// The body of an answer, with what lives as long as it.
struct Sent {
    body: Pieces,
    line: Line,
    /// The drain waits until the client has its answer.
    _job: Option<Job>,
}

// === impl Who ===

impl Who {
    /// It is the holder of this key.
    pub fn is(&self, name: &str) {
        // A request is let in once.
        let _ = self.0.set(name.into());
    }
}

// === impl Fate ===

impl Fate {
    /// It ends with an error. The first one counts.
    pub fn failed(&self, cause: Cause) {
        let _ = self.0.set(cause);
    }
}

// === impl Stages ===

impl Stages {
    /// Name and duration, in their order.
    pub fn named(&self) -> [(&'static str, Duration); 3] {
        [("queue", self.queue), ("denoise", self.denoise), ("encode", self.encode)]
    }
}

/// The layer.
pub async fn layer(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    mut request: Request,
    next: Next,
) -> Response {
    let who = Who::default();
    request.extensions_mut().insert(who.clone());
    let traces = app.traces().map(|traces| (traces, Traces::parent(request.headers())));
    // The pattern, never the path: labels must be bounded.
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let mut line = Line {
        app: app.clone(),
        id,
        who,
        method: request.method().clone(),
        route,
        arrived: Instant::now(),
        head: None,
        whole: false,
    };
    let metrics = app.metrics();
    metrics.requests_in_flight.inc();
    let in_flight = InFlight(&app);
    let mut response = next.run(request).await;
    drop(in_flight);

    let (total, status, route) = (line.arrived.elapsed(), response.status(), line.route.as_str());
    metrics.requests.with_label_values(&[route, status.as_str()]).inc();
    metrics.request.with_label_values(&[route]).observe(total.as_secs_f64());
    let extensions = response.extensions_mut();
    let (stages, job) = (extensions.get::<Stages>().copied(), extensions.remove::<Job>());
    let fate = extensions.remove::<Fate>().unwrap_or_default();
    if let Some(&cause) = extensions.get::<Cause>() {
        metrics.rejections.with_label_values(&[cause.code()]).inc();
        fate.failed(cause);
    }
    if let Ok(value) = HeaderValue::from_str(&server_timing(stages, total)) {
        response.headers_mut().insert("server-timing", value);
    }
    let status = status.as_u16();
    if let Some((traces, parent)) = traces {
        let (parent, method, id) = (&parent, line.method.as_str(), line.id.as_str());
        traces.record(&Finished { parent, method, route, id, status, total, stages });
    }
    // Of that nothing is sent but its head.
    line.whole = line.method == Method::HEAD;
    line.head = Some(Head { status, stages, total, fate });
    response.map(|body| Body::new(Sent { body: body.into(), line, _job: job }))
}

// === impl Line ===

impl Drop for Line {
    fn drop(&mut self) {
        let head = self.head.as_ref();
        let failed = head.and_then(|head| head.fate.0.get());
        let ended = match failed {
            Some(cause) => cause.code(),
            None if self.whole => "whole",
            None => {
                let during = if head.is_some() { "answer" } else { "wait" };
                self.app.metrics().hangups.with_label_values(&[during]).inc();
                "client"
            }
        };
        let stages = head.and_then(|head| head.stages);
        let stage_us =
            |name| stages.iter().flat_map(Stages::named).find(|(n, _)| *n == name).map(|(_, d)| micros(d));
        tracing::info!(
            request_id = self.id.as_str(),
            caller = self.who.0.get().map(|name| &**name),
            method = %self.method,
            route = self.route,
            status = head.map(|head| head.status),
            ended,
            queue_us = stage_us("queue"),
            denoise_us = stage_us("denoise"),
            encode_us = stage_us("encode"),
            total_us = head.map(|head| micros(head.total)),
            sent_us = micros(self.arrived.elapsed()),
            "request"
        );
    }
}

// === impl Sent ===

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        self.line.whole = frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        // Of a body that is known to be over, or that there is none, nobody asks for the end.
        self.line.whole |= self.body.is_end_stream();
    }
}

/// Falls with the request, answered or abandoned.
struct InFlight<'a>(&'a App);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.metrics().requests_in_flight.dec();
    }
}

/// Microseconds as a number that JSON has.
fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The header's value, durations in milliseconds.
fn server_timing(stages: Option<Stages>, total: Duration) -> String {
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let mut text = String::new();
    for (name, duration) in stages.iter().flat_map(Stages::named) {
        let _ = write!(text, "{name};dur={:.3}, ", ms(duration));
    }
    let _ = write!(text, "total;dur={:.3}", ms(total));
    text
}

#[cfg(test)]
mod tests {
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
        let slow = app_of(Duration::from_millis(20));
        let waiting = timeout(Duration::from_millis(5), router(&slow).oneshot(body("")));
        assert!(waiting.await.is_err());
        let hangups =
            ["wait", "answer"].map(|during| slow.metrics().hangups.with_label_values(&[during]).get());
        assert_eq!(hangups, [1, 0]);
    }
}

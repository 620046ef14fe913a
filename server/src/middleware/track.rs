//! Every request is measured here: counted, timed, written to the access log, and told to the client in
//! `server-timing` under the same stage names that the metrics use; and, where a collector is given, traced. Its line in
//! the log is written, and its span ends, when nothing more of its answer is to come; both say how that went.

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
use opentelemetry::Context as Trace;

use super::request_id::RequestId;
use crate::app::{App, Job, Room};
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

/// How a stream ends: an extension of its response, which it fills in when it fails, and when its work is done.
#[derive(Debug, Clone, Default)]
pub struct Fate(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    cause: OnceLock<Cause>,
    /// The stages, and when they were over.
    stages: OnceLock<(Stages, Instant)>,
}

/// A request's line in the access log, written when this is dropped.
struct Line {
    app: App,
    id: RequestId,
    who: Who,
    method: Method,
    route: String,
    arrived: Instant,
    /// Where its span belongs, if it has one.
    trace: Option<Trace>,
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
    /// Of all of it, until nobody has any of it.
    room: Room,
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
        let _ = self.0.cause.set(cause);
    }

    /// Its work is done, and went through these stages.
    pub fn done(&self, stages: Stages) {
        let _ = self.0.stages.set((stages, Instant::now()));
    }
}

// === impl Stages ===

impl Stages {
    /// Those of two images of one request: it waits until the first begins, and is at work until the last is done.
    #[must_use]
    pub fn beside(self, other: Self) -> Self {
        let queue = self.queue.min(other.queue);
        let end = (self.queue + self.denoise).max(other.queue + other.denoise);
        Self { queue, denoise: end - queue, encode: self.encode + other.encode }
    }

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
    let trace = app.traces().map(|_| Traces::parent(request.headers()));
    // The pattern, never the path: labels must be bounded.
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let mut line = Line {
        app: app.clone(),
        id,
        who,
        method: request.method().clone(),
        route,
        arrived: Instant::now(),
        trace,
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
    // Of that nothing is sent but its head.
    line.whole = line.method == Method::HEAD;
    line.head = Some(Head { status, stages, total, fate });
    let room = job.as_ref().map(|job| job.answer().clone()).unwrap_or_default();
    if let Some(bytes) = response.body().size_hint().exact() {
        room.is(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    response.map(|body| Body::new(Sent { body: body.into(), line, room, _job: job }))
}

/// A piece of an answer. All of the answer is in memory as long as one piece waits for its client, be it in the buffers of a
/// connection.
struct Held {
    bytes: Bytes,
    _room: Room,
}

// === impl Line ===

impl Line {
    /// How it went: `whole`, the code of an error, or `client`, which did not want to see the end.
    fn ended(&self) -> &'static str {
        match self.head.as_ref().and_then(|head| head.fate.0.cause.get()) {
            Some(cause) => cause.code(),
            None if self.whole => "whole",
            None => "client",
        }
    }

    /// The stages that it went through, and when the last of them was over.
    fn stages(&self) -> Option<(Stages, Instant)> {
        let head = self.head.as_ref()?;
        let at_the_head = head.stages.map(|stages| (stages, self.arrived + head.total));
        at_the_head.or_else(|| head.fate.0.stages.get().copied())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let (head, ended, stages) = (self.head.as_ref(), self.ended(), self.stages());
        if ended == "client" {
            let during = if head.is_some() { "answer" } else { "wait" };
            self.app.metrics().hangups.with_label_values(&[during]).inc();
        }
        if let Some((traces, parent)) = self.app.traces().zip(self.trace.as_ref()) {
            traces.record(&Finished {
                parent,
                method: self.method.as_str(),
                route: &self.route,
                id: self.id.as_str(),
                status: head.map(|head| head.status),
                ended,
                total: self.arrived.elapsed(),
                stages: stages.map(|(stages, until)| (stages, until - self.arrived)),
            });
        }
        let stage_us = |name| {
            let named = stages.iter().flat_map(|(stages, _)| stages.named()).find(|(n, _)| *n == name);
            named.map(|(_, time)| micros(time))
        };
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
        let held = |bytes| Bytes::from_owner(Held { bytes, _room: self.room.clone() });
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(held))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
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
mod tests;

//! Every request is measured here: counted, timed, written to the access log, and told to the client in
//! `server-timing` under the same stage names that the metrics use; and, where a collector is given, traced.

use std::fmt::Write;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;

use super::request_id::RequestId;
use crate::app::App;
use crate::error::Cause;
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
    request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let metrics = app.metrics();
    let method = request.method().clone();
    let traces = app.traces().map(|traces| (traces, Traces::parent(request.headers())));
    // The pattern, never the path: labels must be bounded.
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    metrics.requests_in_flight.inc();
    let in_flight = InFlight(&app);
    let mut response = next.run(request).await;
    drop(in_flight);

    let total = start.elapsed();
    let status = response.status();
    metrics.requests.with_label_values(&[&route, status.as_str()]).inc();
    metrics.request.with_label_values(&[&route]).observe(total.as_secs_f64());
    if let Some(cause) = response.extensions().get::<Cause>() {
        metrics.rejections.with_label_values(&[cause.code()]).inc();
    }
    let stages = response.extensions().get::<Stages>().copied();
    if let Ok(value) = HeaderValue::from_str(&server_timing(stages, total)) {
        response.headers_mut().insert("server-timing", value);
    }
    if let Some((traces, parent)) = traces {
        let (parent, method, route, id) = (&parent, method.as_str(), route.as_str(), id.as_str());
        traces.record(&Finished { parent, method, route, id, status: status.as_u16(), total, stages });
    }
    let stage_us =
        |name| stages.iter().flat_map(Stages::named).find(|(n, _)| *n == name).map(|(_, d)| micros(d));
    tracing::info!(
        request_id = id.as_str(),
        %method,
        route,
        status = status.as_u16(),
        queue_us = stage_us("queue"),
        denoise_us = stage_us("denoise"),
        encode_us = stage_us("encode"),
        total_us = micros(total),
        "request"
    );
    response
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
    use super::*;

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
}

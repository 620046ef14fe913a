//! Spans for whoever traces requests across services: one for each request, and in it one for each stage, under the names
//! that metrics and `server-timing` use. A request that says where it belongs (`traceparent`, W3C Trace Context) is
//! found there. They are made when nothing more of the answer is to come, of the times that were measured anyway, and leave in
//! batches by OTLP over HTTP on a thread of their own: a collector that is slow or gone costs no request anything.

use std::time::{Duration, SystemTime};

use axum::http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use crate::middleware::track::Stages;

/// Time that the last spans have to leave when the server ends.
const FLUSH: Duration = Duration::from_secs(5);

/// Sends spans to a collector.
#[derive(Debug, Clone)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// A request that is over.
#[derive(Debug)]
pub struct Finished<'a> {
    /// Where it belongs.
    pub parent: &'a Context,
    /// Its method.
    pub method: &'a str,
    /// The pattern of its path.
    pub route: &'a str,
    /// Its id.
    pub id: &'a str,
    /// The status of the answer, if there was one.
    pub status: Option<u16>,
    /// How it went, in the log's words.
    pub ended: &'static str,
    /// From arrival to the end of the answer.
    pub total: Duration,
    /// The stages, where it has some, and from arrival to the end of the last.
    pub stages: Option<(Stages, Duration)>,
}

/// There is no exporter for this address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TracesError(String);

// === impl Traces ===

impl Traces {
    /// Sends to a collector's address such as `http://localhost:4318`; the path `/v1/traces` is added.
    pub fn to(collector: &str) -> Result<Self, TracesError> {
        if !collector.starts_with("http://") {
            return Err(TracesError(format!("`{}` is not", shown(collector))));
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", collector.trim_end_matches('/')))
            .build()
            .map_err(|error| TracesError(format!("`{}` is not ({error})", shown(collector))))?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_service_name("windowpane").with_attribute(version).build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        let tracer = provider.tracer("windowpane");
        Ok(Self { provider, tracer })
    }

    /// Where a request with these headers belongs.
    pub fn parent(headers: &HeaderMap) -> Context {
        TraceContextPropagator::new().extract(&Carrier(headers))
    }

    /// Spans of a request that has just ended. Stages follow one another.
    pub fn record(&self, request: &Finished) {
        let end = SystemTime::now();
        let Finished { parent, method, route, id, status, ended, total, stages } = *request;
        let begin = end - total;
        let status_code = status.map(|status| KeyValue::new("http.response.status_code", i64::from(status)));
        let attributes = [
            KeyValue::new("http.request.method", method.to_owned()),
            KeyValue::new("http.route", route.to_owned()),
            KeyValue::new("windowpane.request_id", id.to_owned()),
            KeyValue::new("windowpane.ended", ended),
        ];
        let span = self
            .tracer
            .span_builder(format!("{method} {route}"))
            .with_kind(SpanKind::Server)
            .with_start_time(begin)
            .with_attributes(attributes.into_iter().chain(status_code))
            .start_with_context(&self.tracer, parent);
        let context = parent.with_span(span);
        if status.is_some_and(|status| status >= 500) {
            context.span().set_status(Status::error(""));
        }
        let mut until = stages.map_or(end, |(_, until)| begin + until);
        for (name, time) in stages.iter().flat_map(|(stages, _)| stages.named()).rev() {
            // Measured by another clock, which may have been set meanwhile.
            let from = (until - time.min(total)).max(begin);
            let span = self.tracer.span_builder(name).with_start_time(from);
            let stage = context.with_span(span.start_with_context(&self.tracer, &context));
            stage.span().end_with_timestamp(until);
            until = from;
        }
        context.span().end_with_timestamp(end);
    }

    /// Sends what is left. Blocks for a few seconds at most.
    pub fn flush(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH) {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}

/// An address without the password that may be in it.
fn shown(address: &str) -> String {
    match address.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => address.to_owned(),
    }
}

/// Headers, as a propagator reads them.
struct Carrier<'a>(&'a HeaderMap);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}

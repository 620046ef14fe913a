//! A body that is refused unread stays on the connection, which therefore ends after the answer. A client that keeps
//! connections is told so; otherwise it would send its next request into one that is closing.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderValue, Version, header};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::Frame;

/// A body, and whether its end has been seen.
struct Watched {
    body: Body,
    whole: Arc<AtomicBool>,
}

// === impl Watched ===

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() {
            self.whole.store(true, Relaxed);
        }
        Poll::Ready(frame)
    }
}

/// The layer.
pub async fn layer(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() || request.version() >= Version::HTTP_2 {
        return next.run(request).await;
    }
    let whole = Arc::new(AtomicBool::new(false));
    let watch = |body| Body::new(Watched { body, whole: Arc::clone(&whole) });
    let mut response = next.run(request.map(watch)).await;
    if !whole.load(Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;
    use crate::config::Config;
    use crate::engine::fake::Faults;
    use crate::testing::{app, get, send};

    #[tokio::test]
    async fn only_a_body_that_was_not_read_ends_the_connection() {
        let app = app(Config { body_limit: 1024, ..Config::default() }, &Faults::default());
        let post = |path: &str, kind: &str, body: String| {
            Request::post(path).header(header::CONTENT_TYPE, kind).body(Body::from(body)).unwrap()
        };
        let (images, json) = ("/v1/images/generations", "application/json");
        for (request, status, closes) in [
            (post(images, json, " ".repeat(2000)), StatusCode::PAYLOAD_TOO_LARGE, true),
            (post(images, "text/plain", "{}".to_owned()), StatusCode::UNSUPPORTED_MEDIA_TYPE, true),
            (post("/nothing", json, "{}".to_owned()), StatusCode::NOT_FOUND, true),
            (post(images, json, "{".to_owned()), StatusCode::BAD_REQUEST, false),
            (post(images, json, String::new()), StatusCode::BAD_REQUEST, false),
        ] {
            let answer = send(&app, request).await;
            assert_eq!(answer.status, status);
            assert_eq!(answer.headers.get(header::CONNECTION).is_some(), closes, "{status}");
        }
        assert!(get(&app, "/nothing").await.headers.get(header::CONNECTION).is_none());
    }
}

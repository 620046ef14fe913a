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

//! What hyper does not watch over on a connection of HTTP/2: a client that asks for nothing, and one that does not take
//! its answers. Neither shows on the socket, since flow control is each stream's own (a window that is never opened
//! costs a client nothing), so the streams are counted here, and the time is taken that an answer waits for its client.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Request, Response, StatusCode};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use super::limits::HEADERS;

/// Bytes of an answer that are handed over at a time: more would be taken from it, and wait elsewhere, unseen.
const PIECE: usize = 1 << 16;

/// What goes on on one connection. Clones are one and the same.
#[derive(Debug, Clone)]
pub(super) struct Streams(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Requests that are open, from their head to the end of the answer.
    open: usize,
    /// Since when there are none.
    idle: Instant,
    next: u64,
    /// Answers that have handed over a piece, and since when nobody has come for the next.
    waiting: BTreeMap<u64, Instant>,
}

/// The service of one connection: the router, watched.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    router: TowerToHyperService<axum::Router>,
    streams: Streams,
}

/// A request that is open.
#[derive(Debug)]
struct Open {
    streams: Streams,
    number: u64,
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    /// What is left of a large piece.
    rest: Bytes,
    open: Open,
}

// === impl Streams ===

impl Streams {
    pub(super) fn new() -> Self {
        let state = State { open: 0, idle: Instant::now(), next: 0, waiting: BTreeMap::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// How long no request has been open.
    pub(super) fn idle_for(&self) -> Duration {
        let state = self.lock();
        if state.open == 0 { state.idle.elapsed() } else { Duration::ZERO }
    }

    /// How long the answer that waits longest has waited for its client.
    pub(super) fn waiting_for(&self) -> Duration {
        self.lock().waiting.values().min().map_or(Duration::ZERO, Instant::elapsed)
    }

    fn open(&self) -> Open {
        let mut state = self.lock();
        state.open += 1;
        state.next += 1;
        Open { streams: self.clone(), number: state.next }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Watched ===

impl Watched {
    pub(super) fn new(router: axum::Router, streams: Streams) -> Self {
        Self { router: TowerToHyperService::new(router), streams }
    }
}

impl Service<Request<Incoming>> for Watched {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let open = self.streams.open();
        // HTTP/1's own parser refuses these.
        let answer = (request.headers().len() <= HEADERS).then(|| self.router.call(request));
        Box::pin(async move {
            let response = match answer {
                Some(answer) => answer.await?,
                None => {
                    let mut response = Response::new(Body::empty());
                    *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                    response
                }
            };
            Ok(response.map(|body| Answer { body, rest: Bytes::new(), open }))
        })
    }
}

// === impl Open ===

impl Open {
    /// A piece is with the client, or on its way.
    fn handed_over(&self) {
        self.streams.lock().waiting.insert(self.number, Instant::now());
    }

    /// Somebody has come for the next.
    fn asked(&self) {
        self.streams.lock().waiting.remove(&self.number);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.streams.lock();
        state.waiting.remove(&self.number);
        state.open -= 1;
        state.idle = Instant::now();
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.open.asked();
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)).transpose()?.map(Frame::into_data) {
                None => return Poll::Ready(None),
                Some(Err(trailers)) => return Poll::Ready(Some(Ok(trailers))),
                Some(Ok(data)) => self.rest = data,
            }
        }
        let length = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(length);
        self.open.handed_over();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, inner) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn answer(streams: &Streams, body: Body) -> Answer {
        Answer { body, rest: Bytes::new(), open: streams.open() }
    }

    #[tokio::test]
    async fn an_answer_comes_whole_in_pieces() {
        let streams = Streams::new();
        let bytes: Vec<u8> = (0..PIECE * 2 + 5).map(|i| i as u8).collect();
        let mut answer = answer(&streams, Body::from(bytes.clone()));
        assert_eq!(answer.size_hint().exact(), Some(bytes.len() as u64));
        let first = answer.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first.len(), PIECE);
        assert_eq!(answer.size_hint().exact(), Some((bytes.len() - PIECE) as u64));
        let rest = answer.collect().await.unwrap().to_bytes();
        assert_eq!([first, rest].concat(), bytes);
    }

    #[tokio::test]
    async fn who_waits_for_whom_is_told_apart() {
        let streams = Streams::new();
        let pause = Duration::from_millis(20);
        let mut answer = answer(&streams, Body::from("all of it"));
        tokio::time::sleep(pause).await;
        assert_eq!(
            (streams.idle_for(), streams.waiting_for()),
            (Duration::ZERO, Duration::ZERO),
            "we are at work"
        );
        answer.frame().await.unwrap().unwrap();
        tokio::time::sleep(pause).await;
        assert!(streams.waiting_for() >= pause, "the client has it");
        drop(answer);
        assert_eq!(streams.waiting_for(), Duration::ZERO);
        tokio::time::sleep(pause).await;
        assert!(streams.idle_for() >= pause, "nobody asks for anything");
    }
}

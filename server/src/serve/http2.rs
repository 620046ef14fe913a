//! What hyper does not watch over on a connection of HTTP/2: a client that asks for nothing, and one that does not take
//! its answers. Neither shows on the socket, since flow control is each stream's own (a window that is never opened
//! costs a client nothing), so the streams are counted here, and the time is taken that an answer waits for its client.
//!
//! An answer that waits too long is given up alone. hyper asks it for nothing while it has a piece to hand over, so it
//! cannot say so itself: the task of its stream is ended, which resets the stream and nothing else.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Request, Response, StatusCode};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::rt::Executor;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::connection::Router;
use super::limits::HEADERS;
use super::pace::Pace;
use crate::pieces::Pieces;

/// What goes on on one connection. Clones are one and the same.
#[derive(Debug, Clone)]
pub(super) struct Streams(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// For taking an answer: that of its [`Pace`].
    limit: Duration,
    /// Requests that are open, from their head to the end of the answer.
    open: BTreeMap<u64, Stream>,
    /// Since when there are none.
    idle: Instant,
    next: u64,
    /// The request that was taken last, until its task is there.
    taken: Option<u64>,
}

#[derive(Debug)]
struct Stream {
    task: Option<AbortHandle>,
    /// Its answer waits when it has handed over a piece and nobody has come for the next.
    pace: Pace,
    /// Bytes of that piece.
    piece: usize,
}

/// The service of one connection: the router, watched.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    router: TowerToHyperService<Router>,
    streams: Streams,
}

/// Starts the tasks of one connection. hyper calls the service, and has the task of that call started before anything
/// else: so it is known whose it is.
#[derive(Debug, Clone)]
pub(super) struct Tasks(Streams);

/// A request that is open.
#[derive(Debug)]
struct Open {
    streams: Streams,
    number: u64,
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// In pieces: of more at a time, what is left would wait elsewhere, unseen.
    body: Pieces,
    open: Open,
}

// === impl Streams ===

impl Streams {
    pub(super) fn new(limit: Duration) -> Self {
        let state = State { limit, open: BTreeMap::new(), idle: Instant::now(), next: 0, taken: None };
        Self(Arc::new(Mutex::new(state)))
    }

    /// What starts the connection's tasks.
    pub(super) fn tasks(&self) -> Tasks {
        Tasks(self.clone())
    }

    /// How long no request has been open.
    pub(super) fn idle_for(&self) -> Duration {
        let state = self.lock();
        if state.open.is_empty() { state.idle.elapsed() } else { Duration::ZERO }
    }

    /// Resets streams whose clients have kept their answers waiting for too long by now, and says how many. Of several it is
    /// the half that has waited longest: what they held of the connection's window may be all that the others wait for.
    pub(super) fn give_up(&self, now: Instant) -> usize {
        let mut late: Vec<(Instant, AbortHandle)> = {
            let state = self.lock();
            let late = |stream: &Stream| {
                let end = stream.pace.end().filter(|&end| end < now)?;
                Some((end, stream.task.clone()?))
            };
            state.open.values().filter_map(late).collect()
        };
        late.sort_by_key(|&(end, _)| end);
        late.truncate(late.len().div_ceil(2));
        late.iter().for_each(|(_, task)| task.abort());
        late.len()
    }

    fn open(&self) -> Open {
        let mut state = self.lock();
        state.next += 1;
        let number = state.next;
        let pace = Pace::new(state.limit);
        state.open.insert(number, Stream { task: None, pace, piece: 0 });
        Open { streams: self.clone(), number }
    }

    /// This request is the next to have its task started.
    fn taken(&self, open: &Open) {
        self.lock().taken = Some(open.number);
    }

    /// The task of the request that was taken last.
    fn started(&self, task: AbortHandle) {
        let mut state = self.lock();
        // It may be over by now.
        if let Some(stream) = state.taken.take().and_then(|number| state.open.get_mut(&number)) {
            stream.task = Some(task);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Watched ===

impl Watched {
    pub(super) fn new(router: Router, streams: Streams) -> Self {
        Self { router: TowerToHyperService::new(router), streams }
    }
}

impl Service<Request<Incoming>> for Watched {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let open = self.streams.open();
        self.streams.taken(&open);
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
            Ok(response.map(|body| Answer { body: body.into(), open }))
        })
    }
}

// === impl Tasks ===

impl<F> Executor<F> for Tasks
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.started(tokio::spawn(task).abort_handle());
    }
}

// === impl Open ===

impl Open {
    /// A piece of so many bytes is with the client, or on its way.
    fn handed_over(&self, bytes: usize) {
        if let Some(stream) = self.streams.lock().open.get_mut(&self.number) {
            stream.piece = bytes;
            stream.pace.waits(Instant::now());
        }
    }

    /// Somebody has come for the next.
    fn asked(&self) {
        let mut state = self.streams.lock();
        let sharers = state.open.values().filter(|stream| stream.pace.end().is_some()).count();
        if let Some(stream) = state.open.get_mut(&self.number) {
            let bytes = std::mem::take(&mut stream.piece);
            stream.pace.took(bytes, sharers.max(1), Instant::now());
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.streams.lock();
        state.open.remove(&self.number);
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
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            self.open.handed_over(data.len());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    impl Streams {
        /// Whether an answer waits for its client.
        fn waits(&self) -> bool {
            self.lock().open.values().any(|stream| stream.pace.end().is_some())
        }

        /// A request whose task does nothing for ever, and whose answer the client has.
        fn stalled(&self) -> (Open, tokio::task::JoinHandle<()>) {
            let open = self.open();
            self.taken(&open);
            let task = tokio::spawn(std::future::pending());
            self.started(task.abort_handle());
            open.handed_over(1);
            (open, task)
        }
    }

    #[tokio::test]
    async fn who_waits_for_whom_is_told_apart() {
        let streams = Streams::new(LIMIT);
        let pause = Duration::from_millis(20);
        let mut answer = Answer { body: Body::from("all of it").into(), open: streams.open() };
        tokio::time::sleep(pause).await;
        assert_eq!((streams.idle_for(), streams.waits()), (Duration::ZERO, false), "we are at work");
        answer.frame().await.unwrap().unwrap();
        assert!(streams.waits(), "the client has it");
        drop(answer);
        assert!(!streams.waits());
        tokio::time::sleep(pause).await;
        assert!(streams.idle_for() >= pause, "nobody asks for anything");
    }

    #[tokio::test]
    async fn of_those_who_wait_too_long_the_longer_half_is_given_up() {
        let streams = Streams::new(LIMIT);
        let mut all = Vec::new();
        for _ in 0..5 {
            all.push(streams.stalled());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(streams.give_up(Instant::now()), 0);
        // The first has taken what there was, and is at work again.
        all[0].0.asked();
        assert_eq!(streams.give_up(Instant::now() + LIMIT), 2);
        for (place, (_, task)) in all.iter_mut().enumerate().skip(1).take(2) {
            assert!(task.await.unwrap_err().is_cancelled(), "{place}");
        }
        tokio::task::yield_now().await;
        let ended: Vec<_> = all.iter().map(|(_, task)| task.is_finished()).collect();
        assert_eq!(ended, [false, true, true, false, false]);
        // A task that was started for no request is nobody's.
        Tasks(streams).execute(async {});
    }
}

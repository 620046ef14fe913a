//! What happens to a job, as it happens: server-sent events whose ids are their numbers, so that a client which was cut off
//! goes on where it was, at whichever server.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{find, kept};
use crate::app::App;
use crate::error::{ApiError, ErrorBody};
use crate::extract::{Form, JobId};
use crate::jobs::Jobs;
use crate::jobs::object::EventObject;
use crate::jobs::store::{Event, StoreError};
use crate::keys::Identity;

/// Silence after which a comment is sent, so that nobody on the way takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Time between two looks for what another server has done.
const LOOK: Duration = Duration::from_secs(1);

/// The header of a client that was cut off: the id of the last event that it has.
const LAST_EVENT_ID: &str = "last-event-id";

/// A stream under way.
struct Stream {
    jobs: Arc<Jobs>,
    id: String,
    number: i64,
    /// The number of the last event that was sent.
    after: i64,
    read: VecDeque<Event>,
    /// The turn that it waits for.
    turn: Option<BoxFuture<'static, OwnedSemaphorePermit>>,
    changes: watch::Receiver<u64>,
    leaving: watch::Receiver<bool>,
    /// When something was last sent.
    sent: Instant,
    is_over: bool,
}

/// Watch a job.
///
/// Server-sent events, from the first on or from behind the one whose id `last-event-id` names, as browsers send it by
/// themselves. The last one is `succeeded`, `failed` or `cancelled`; a stream that ends without one was cut off, by a server
/// that leaves for instance, and is asked for again. Of progress, and of tries that found no room, only the newest is kept, so
/// ids grow, with gaps.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/events",
    tag = "jobs",
    operation_id = "watch_job",
    params(
        ("id" = String, Path, description = "The job's id.", example = "fid-2026-11-28"),
        ("last-event-id" = Option<u64>, Header, description = "The id of the last event that the client has."),
    ),
    responses(
        (status = 200, description = "The events.", content((EventObject = "text/event-stream"))),
        (status = 204, description = "The client has the last one, and need not ask again."),
        (status = 401, description = "No key that is known here.", body = ErrorBody),
        (status = 404, description = "The caller has no job of this id, or no longer.", body = ErrorBody),
        (status = 409, description = "An administrator asked, and several callers have a job of this id.", body = ErrorBody),
        (status = 422, description = "`last-event-id` is no id of an event.", body = ErrorBody),
        (status = 500, description = "The server failed.", body = ErrorBody),
        (status = 503, description = "The store does not answer.", body = ErrorBody),
    )
)]
pub async fn events(
    State(app): State<App>,
    identity: Identity,
    JobId(id): JobId,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let jobs = kept(&app)?;
    let job = find(&app, &jobs, identity, &id).await?;
    let after = match headers.get(LAST_EVENT_ID) {
        None => 0,
        Some(value) => {
            let text = value.to_str().unwrap_or("not text");
            // A number beyond those of the store is beyond every event's as well.
            let number =
                text.trim().parse::<u64>().ok().map(|number| i64::try_from(number).unwrap_or(i64::MAX));
            let expected = "the id of an event, a whole number";
            number.ok_or_else(|| ApiError::invalid(LAST_EVENT_ID, crate::spec::shown(text), expected))?
        }
    };
    if job.state.is_final() && job.events <= after {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let stream = Stream {
        id: job.id,
        number: job.number,
        after,
        read: VecDeque::new(),
        turn: None,
        changes: jobs.changes(),
        leaving: jobs.leaving(),
        sent: Instant::now(),
        is_over: false,
        jobs,
    };
    let events = futures::stream::unfold(stream, |mut stream| async move {
        let bytes = stream.next().await?;
        stream.sent = Instant::now();
        Some((Ok::<_, Infallible>(bytes), stream))
    });
    let mut response = Body::from_stream(events).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(Form::Events.media_type()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

// === impl Stream ===

impl Stream {
    /// The next piece of the body; `None` ends it.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.read.pop_front() {
                self.after = event.sequence;
                self.is_over = event.what.is_final();
                return Some(written(&EventObject::new(&self.id, &event)));
            }
            if self.is_over || *self.leaving.borrow() {
                return None;
            }
            let silence = KEEP_ALIVE.saturating_sub(self.sent.elapsed());
            if silence.is_zero() {
                // A client that does not take this is not asked again, and would hold the turn that comes meanwhile.
                self.turn = None;
                return Some(Bytes::from_static(b": nothing new\n\n"));
            }
            let turn = self.turn.get_or_insert_with(|| self.jobs.turn().boxed());
            let turn = tokio::select! {
                _ = self.leaving.wait_for(|leaving| *leaving) => continue,
                () = tokio::time::sleep(silence) => continue,
                turn = turn => turn,
            };
            self.turn = None;
            // From here on: what happens while we look is seen.
            self.changes.borrow_and_update();
            match self.look(turn).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(job = self.id, %error, "a stream of events is cut off");
                    return None;
                }
            }
            tokio::select! {
                _ = self.leaving.wait_for(|leaving| *leaving) => {}
                _ = self.changes.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Reads on, in its turn. Whether there is something to do at once.
    async fn look(&mut self, _turn: OwnedSemaphorePermit) -> Result<bool, StoreError> {
        let events = self.jobs.store().events(self.number, self.after).await?;
        if !events.is_empty() {
            self.read.extend(events);
            return Ok(true);
        }
        // A client that has the last one already, or whose job has been forgotten meanwhile, waits for nothing.
        let job = self.jobs.store().by_number(self.number).await?;
        self.is_over = job.is_none_or(|job| job.state.is_final() && job.events <= self.after);
        Ok(self.is_over)
    }
}

/// An event as it is written: JSON has no line breaks.
fn written(event: &EventObject) -> Bytes {
    let data = serde_json::to_string(event).expect("numbers and text always make JSON; this is a bug");
    format!("id: {}\nevent: {}\ndata: {data}\n\n", event.sequence, event.r#type).into()
}

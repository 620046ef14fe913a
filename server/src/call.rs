//! One request's way through the engine, whichever face it came in by: who asks, under which id, until when; admission,
//! the wait, and what a client is told when it goes wrong. Studies go their own way from their admission on (`study.rs`).

mod study;

use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::app::requests::Registered;
use crate::app::{App, Job, Room, shutting_down};
use crate::batcher::admission::whole_seconds;
use crate::batcher::{Canceller, Event, Request, Sample, SampleError, SubmitError, Ticket};
use crate::error::{ApiError, Cause};
use crate::keys::Identity;
use crate::middleware::request_id::RequestId;
use crate::model::Model;
use crate::sampler::Unit;
use crate::serve::Peer;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;

pub use study::{Nobody, Studying, Watch};

/// The header with the milliseconds that a client will wait.
pub const TIMEOUT_HEADER: &str = "x-request-timeout-ms";

/// Longest wait that may be asked for: an hour.
pub const MAX_TIMEOUT_MS: u64 = 3_600_000;

/// What the engine knows of a request but the work itself.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its id.
    pub id: RequestId,
    /// Who asks.
    pub identity: Identity,
    peer: Peer,
    arrived: Instant,
    timeout: Option<Duration>,
    fingerprint: u64,
    known: u64,
    reproducible: bool,
    /// Bytes of its answer, about.
    answer: usize,
}

/// An admitted request. Dropping it abandons the work.
#[derive(Debug)]
pub struct Running {
    ticket: Ticket,
    model: Arc<Model>,
    registered: Registered,
    job: Job,
}

impl FromRequestParts<App> for Call {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let identity = Identity::from_request_parts(parts, app).await?;
        let id = parts.extensions.get::<RequestId>().cloned();
        let id = id.ok_or_else(|| ApiError::internal("a request without an id"))?;
        let timeout = match parts.headers.get(TIMEOUT_HEADER) {
            None => None,
            Some(value) => {
                let text = value.to_str().unwrap_or("not text");
                // A number beyond u64 is beyond the limit as well.
                let number = text.trim().parse().map_err(|_| invalid_timeout(TIMEOUT_HEADER, text))?;
                Some(timeout(TIMEOUT_HEADER, number)?)
            }
        };
        let peer = parts.extensions.get().copied().unwrap_or_default();
        let (known, arrived) = (hash(&id), Instant::now());
        Ok(Self {
            id,
            identity,
            peer,
            arrived,
            timeout,
            fingerprint: 0,
            known,
            reproducible: false,
            answer: 0,
        })
    }
}

// === impl Call ===

impl Call {
    /// That of a job, which nobody waits for.
    pub(crate) fn of_job(id: RequestId, identity: Identity) -> Self {
        let (known, peer, arrived) = (hash(&id), Peer::default(), Instant::now());
        Self {
            id,
            identity,
            peer,
            arrived,
            timeout: None,
            fingerprint: 0,
            known,
            reproducible: false,
            answer: 0,
        }
    }

    /// The same, with what was asked for: a client that comes back with the same is known again by its id from anywhere, and
    /// without one from the same address.
    #[must_use]
    pub fn asking(mut self, what: &impl Debug) -> Self {
        let what = format!("{what:?}");
        (self.fingerprint, self.known) = (hash(&(self.peer, &what)), hash(&(&self.id, &what)));
        self
    }

    /// The same, with a timeout from the body; the shorter of two counts.
    pub fn within(mut self, field: &str, milliseconds: Option<u64>) -> Result<Self, ApiError> {
        if let Some(milliseconds) = milliseconds {
            let asked = timeout(field, milliseconds)?;
            self.timeout = Some(self.timeout.map_or(asked, |header| header.min(asked)));
        }
        Ok(self)
    }

    /// The same, insisting on the same bits in any company. Refused for a model that cannot promise them.
    pub fn reproducible(mut self, asked: Option<bool>, model: &Model) -> Result<Self, ApiError> {
        self.reproducible = asked == Some(true);
        if self.reproducible && !model.served.determinism.promises_bits() {
            let supported = "false: the bits of this model depend on the company, as measured at load";
            return Err(ApiError::unsupported("reproducible", "true", supported));
        }
        Ok(self)
    }

    /// The same, whose answer will have about so many bytes: there is room for them from its admission on, or it is not
    /// admitted.
    #[must_use]
    pub fn answering(mut self, bytes: usize) -> Self {
        self.answer = bytes;
        self
    }

    /// Whether its client said how long it waits.
    pub fn is_timed(&self) -> bool {
        self.timeout.is_some()
    }

    /// What the drain waits for, with room for the answer.
    fn begin(&self, app: &App, model: &Arc<Model>) -> Result<Job, ApiError> {
        let job = app.begin()?;
        let answer = app.room_for_answer(self.identity.caller, model, self.answer);
        Ok(job.with_answer(answer.map_err(|wait| no_memory("answers", wait))?))
    }

    /// Room for the frames that its images will keep, or why it has none.
    pub fn room_for_frames(&self, app: &App, model: &Arc<Model>, bytes: usize) -> Result<Room, ApiError> {
        let room = app.room_for_frames(self.identity.caller, model, bytes);
        room.map_err(|wait| no_memory("frames", wait))
    }

    /// Admits the work for the model, or says why not.
    pub fn submit(self, app: &App, model: &Arc<Model>, units: Vec<Unit>) -> Result<Running, ApiError> {
        let job = self.begin(app, model)?;
        let request = Request {
            caller: self.identity.caller,
            fingerprint: self.fingerprint,
            id: self.known,
            deadline: self.timeout.map(|timeout| self.arrived + timeout),
            reproducible: self.reproducible,
            units,
        };
        // Known by its id first: whoever sees that it is under way can cancel it.
        let canceller = Canceller::default();
        let registered = app.requests().register(self.id, self.identity.caller, canceller.clone());
        let admitted = model.batcher.submit_under(request, canceller);
        let ticket = admitted.map_err(|error| refused(&error, self.timeout))?;
        Ok(Running { ticket, model: Arc::clone(model), registered, job })
    }
}

// === impl Running ===

impl Running {
    /// Time until all is done, as things stood at admission.
    pub fn eta(&self) -> Duration {
        self.ticket.eta()
    }

    /// The model at work. It stays until this request is done, whatever replaced it meanwhile.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// What the drain waits for: to be held until the answer is with the client.
    pub fn job(&self) -> Job {
        self.job.clone()
    }

    /// What happens next; `None` after the last unit, or after an error.
    pub async fn next(&mut self) -> Option<Result<Event, ApiError>> {
        self.ticket.next().await.map(|event| event.map_err(failed))
    }

    /// Whether there is nothing more to wait for.
    pub fn is_over(&self) -> bool {
        self.ticket.is_over()
    }

    /// The last word before the answer: from here on nobody cancels it. Errors: somebody has.
    pub fn settle(&self) -> Result<(), ApiError> {
        settled(&self.registered)
    }

    /// Waits for all units, whose answer nobody cancels then.
    pub async fn finish(self) -> Result<Vec<Sample>, ApiError> {
        let samples = self.ticket.finish().await.map_err(failed)?;
        settled(&self.registered)?;
        Ok(samples)
    }
}

fn hash(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

fn settled(registered: &Registered) -> Result<(), ApiError> {
    if registered.settle() { Err(failed(SampleError::Cancelled)) } else { Ok(()) }
}

fn timeout(field: &str, milliseconds: u64) -> Result<Duration, ApiError> {
    if (1..=MAX_TIMEOUT_MS).contains(&milliseconds) {
        Ok(Duration::from_millis(milliseconds))
    } else {
        Err(invalid_timeout(field, milliseconds))
    }
}

fn invalid_timeout(field: &str, got: impl std::fmt::Display) -> ApiError {
    ApiError::invalid(field, got, format!("1 to {MAX_TIMEOUT_MS} milliseconds"))
}

/// Why a request was not admitted, for the client.
pub(crate) fn refused(error: &SubmitError, timeout: Option<Duration>) -> ApiError {
    match *error {
        SubmitError::Overloaded { retry_after } => {
            let message = format!("too much is waiting; there will be room in {retry_after} s");
            ApiError::new(Cause::Overloaded, message).retry_after(retry_after)
        }
        SubmitError::Studying { quota, retry_after } => {
            let message = format!(
                "{quota} looks inside this model are under way for this caller, the most there may be; the first of them \
                 will be done in {retry_after} s"
            );
            ApiError::new(Cause::QuotaReached, message).retry_after(retry_after)
        }
        SubmitError::TooLate { needs, alone, retry_after } => {
            let timeout = timeout.unwrap_or_default();
            let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
            let (needs, asked) = (milliseconds(needs), milliseconds(timeout));
            let message = format!("this would take about {needs:.0} ms and is wanted within {asked:.0} ms");
            let error = ApiError::new(Cause::DeadlineUnmeetable, message);
            // With nothing else to do it would be late as well: coming back does not help.
            if alone > timeout { error } else { error.retry_after(retry_after) }
        }
        SubmitError::Ended => shutting_down(),
        SubmitError::Died => died(),
    }
}

/// What a request is told while others have the memory for `what`, or its caller half of it; there may be some in this time,
/// when the images of those who have it are done.
pub(crate) fn no_memory(what: &str, wait: Duration) -> ApiError {
    let seconds = whole_seconds(wait);
    let message = format!(
        "the memory for {what} is with requests that are under way; of several callers none has more than half of it, and \
         there may be some in {seconds} s"
    );
    ApiError::new(Cause::MemoryFull, message).retry_after(seconds)
}

/// What requests to a model are told whose worker has died.
fn died() -> ApiError {
    let message = "the worker of this model has died; it serves again once the server has been restarted";
    ApiError::new(Cause::Engine, message)
}

/// Why work was not finished, for the client; the engine's own words go to the log.
pub(crate) fn failed(error: SampleError) -> ApiError {
    match error {
        SampleError::ShuttingDown => shutting_down(),
        SampleError::Died => died(),
        SampleError::Cancelled => ApiError::new(Cause::Cancelled, "the request was cancelled"),
        SampleError::DeadlinePassed => {
            ApiError::new(Cause::DeadlinePassed, "the time given for this request has passed")
        }
        SampleError::NotFinite => {
            ApiError::new(Cause::Engine, "the model put out values that are not finite")
        }
        SampleError::Engine(detail) => {
            let mut error =
                ApiError::new(Cause::Engine, "the model failed on a batch that held this request");
            error.detail = Some(detail);
            error
        }
    }
}

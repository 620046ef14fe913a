//! One request's way through the engine, whichever face it came in by: who asks, under which id, until when; admission,
//! the wait, and what a client is told when it goes wrong.

use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::analysis::{Study, StudyError};
use crate::app::requests::Registered;
use crate::app::{App, Job, shutting_down};
use crate::batcher::admission::whole_seconds;
use crate::batcher::study::{StudyRequest, StudyTicket};
use crate::batcher::{Event, Request, Sample, SampleError, SubmitError, Ticket};
use crate::error::{ApiError, Cause};
use crate::keys::Identity;
use crate::middleware::request_id::RequestId;
use crate::model::Model;
use crate::sampler::Unit;

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
    arrived: Instant,
    timeout: Option<Duration>,
    fingerprint: u64,
    reproducible: bool,
}

/// An admitted request. Dropping it abandons the work.
#[derive(Debug)]
pub struct Running {
    ticket: Ticket,
    model: Arc<Model>,
    _registered: Registered,
    job: Job,
}

/// An admitted study. Dropping it ends the work.
#[derive(Debug)]
pub struct Studying {
    ticket: StudyTicket,
    app: App,
    model: Arc<Model>,
    began: Instant,
    /// How it ended; nobody waits any more where nothing has been written here.
    outcome: &'static str,
    _registered: Registered,
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
        let arrived = Instant::now();
        Ok(Self { id, identity, arrived, timeout, fingerprint: 0, reproducible: false })
    }
}

// === impl Call ===

impl Call {
    /// The same, with what was asked for: a client that comes back with the same is known again.
    #[must_use]
    pub fn asking(mut self, what: &impl Debug) -> Self {
        let mut hasher = DefaultHasher::new();
        format!("{what:?}").hash(&mut hasher);
        self.fingerprint = hasher.finish();
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

    /// Admits the work for the model, or says why not.
    pub fn submit(self, app: &App, model: &Arc<Model>, units: Vec<Unit>) -> Result<Running, ApiError> {
        let job = app.begin()?;
        let request = Request {
            caller: self.identity.caller,
            fingerprint: self.fingerprint,
            deadline: self.timeout.map(|timeout| self.arrived + timeout),
            reproducible: self.reproducible,
            units,
        };
        let ticket = model.batcher.submit(request).map_err(|error| refused(&error, self.timeout))?;
        let registered = app.requests().register(self.id, self.identity.caller, ticket.canceller());
        Ok(Running { ticket, model: Arc::clone(model), _registered: registered, job })
    }
}

// === impl Call, for studies ===

impl Call {
    /// Admits a study of the model that makes so many calls, or says why not.
    pub fn study(self, app: &App, model: &Arc<Model>, units: usize) -> Result<Studying, ApiError> {
        let job = app.begin()?;
        let deadline = self.timeout.map(|timeout| self.arrived + timeout);
        let request = StudyRequest { caller: self.identity.caller, deadline, units };
        let ticket = model.batcher.study(request).map_err(|error| refused(&error, self.timeout))?;
        let registered = app.requests().register(self.id, self.identity.caller, ticket.canceller());
        Ok(Studying {
            ticket,
            app: app.clone(),
            model: Arc::clone(model),
            began: Instant::now(),
            outcome: "disconnect",
            _registered: registered,
            job,
        })
    }
}

// === impl Studying ===

impl Studying {
    /// What the drain waits for: to be held until the answer is with the client.
    pub fn job(&self) -> Job {
        self.job.clone()
    }

    /// Takes the study to its end: its calls have their turns on the worker's thread, and what it computes between them
    /// keeps neither that thread nor an async one.
    pub async fn finish<S: Study>(mut self, study: S) -> Result<S::Findings, ApiError> {
        let ended = self.run(study).await;
        self.outcome = match ended.as_ref().map_err(|error| error.cause) {
            Ok(_) => "done",
            Err(Cause::Cancelled) => "cancelled",
            Err(Cause::DeadlinePassed) => "deadline",
            Err(Cause::ShuttingDown) => "shutdown",
            Err(_) => "failed",
        };
        ended
    }

    async fn run<S: Study>(&mut self, mut study: S) -> Result<S::Findings, ApiError> {
        loop {
            let next = move || {
                let ask = study.next();
                (study, ask)
            };
            let (back, ask) = self.app.study(next).await?;
            study = back;
            let Some(ask) = ask else { break };
            let findings = self.ticket.ask(ask).await.map_err(failed)?;
            let take = move || study.take(findings).map(|()| study);
            study = self.app.study(take).await?.map_err(unstudied)?;
        }
        self.app.study(move || study.finish()).await
    }
}

impl Drop for Studying {
    fn drop(&mut self) {
        let (metrics, model) = (self.app.metrics(), self.model.name());
        metrics.studies_total.with_label_values(&[model, self.outcome]).inc();
        metrics.study.with_label_values(&[model]).observe(self.began.elapsed().as_secs_f64());
    }
}

/// Why a study came to nothing, for the client.
fn unstudied(error: StudyError) -> ApiError {
    match error {
        StudyError::NotFinite => failed(SampleError::NotFinite),
        StudyError::Shape(detail) => ApiError::internal(detail),
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

    /// Waits for all units.
    pub async fn finish(self) -> Result<Vec<Sample>, ApiError> {
        self.ticket.finish().await.map_err(failed)
    }
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
        SubmitError::Crowded { retry_after } => {
            let message =
                format!("too many images are waiting; half of them will be done in {retry_after} s");
            ApiError::new(Cause::Overloaded, message).retry_after(retry_after)
        }
        SubmitError::Studying { quota, retry_after } => {
            let message = format!(
                "{quota} looks inside this model are under way for this caller, the most there may be; the first of them \
                 will be done in {retry_after} s"
            );
            ApiError::new(Cause::Overloaded, message).retry_after(retry_after)
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
    }
}

/// What a request is told for whose frames there is no memory now.
pub(crate) fn no_room_for_frames(model: &Model) -> ApiError {
    // Whoever has it gives it back when its images are done, by then at the latest where they are of this model.
    let seconds = whole_seconds(model.batcher.standing().backlog);
    let message =
        format!("requests under way keep all the frames that may be kept; there may be room in {seconds} s");
    ApiError::new(Cause::Overloaded, message).retry_after(seconds)
}

/// Why work was not finished, for the client; the engine's own words go to the log.
pub(crate) fn failed(error: SampleError) -> ApiError {
    match error {
        SampleError::ShuttingDown => shutting_down(),
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

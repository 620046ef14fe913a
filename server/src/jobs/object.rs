//! What is told of a job: by the routes, in its events and to webhooks, in the same words.

use serde::Serialize;
use utoipa::ToSchema;

use super::Kind;
use super::store::{Event, Failure, Job, Millis, State};

/// A job.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct JobObject {
    /// Its id.
    #[schema(example = "job_5f0c1b9a7d3e42f8a1b2c3d4e5f60718")]
    pub id: String,
    /// `job`.
    #[schema(example = "job")]
    pub object: &'static str,
    /// What is done.
    pub kind: Kind,
    /// The model that it is done with.
    #[schema(example = "fashion-dit")]
    pub model: String,
    /// The model's digest: it is done with no other version.
    pub digest: String,
    /// Where it stands.
    pub state: State,
    /// Jobs that will be taken up before it, if no others come; null unless it waits. Callers take turns, each with the oldest of
    /// theirs, and who has fewer under way comes first.
    #[schema(required, example = 0)]
    pub position: Option<u64>,
    /// How far it is.
    pub progress: Progress,
    /// Seconds that what is left takes once it is taken up: as it goes now, or as was thought when it was ordered; null where
    /// that is not known.
    #[schema(required, example = 12.5)]
    pub eta: Option<f64>,
    /// Times that a server took it up: more than one where it waited for room, or where a server went away and another went on
    /// from what was committed.
    #[schema(example = 1)]
    pub attempts: u64,
    /// When it was ordered, in seconds since 1970.
    #[schema(example = 1_764_000_000.0)]
    pub created_at: f64,
    /// When it was first taken up.
    #[schema(required)]
    pub started_at: Option<f64>,
    /// When it ended.
    #[schema(required)]
    pub finished_at: Option<f64>,
    /// When it and its result are forgotten.
    #[schema(required)]
    pub expires_at: Option<f64>,
    /// Why it came to nothing.
    #[schema(required)]
    pub error: Option<Failure>,
    /// Its result, once there is one.
    #[schema(required)]
    pub result: Option<ResultObject>,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = JobProgress)]
pub struct Progress {
    /// Units of work done, of whatever the kind counts in.
    #[schema(example = 3)]
    pub done: u64,
    /// Units of work in all; 0 while that is not known.
    #[schema(example = 12)]
    pub total: u64,
}

/// What a result is: `GET /v1/jobs/{id}/result` has it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = JobResult)]
pub struct ResultObject {
    /// Its media type.
    #[schema(example = "application/json")]
    pub media_type: String,
    /// Its bytes.
    #[schema(example = 40_960)]
    pub size: u64,
    /// The sha256 of its bytes.
    pub sha256: String,
}

/// What happened to a job.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = JobEvent)]
pub struct EventObject {
    /// `queued`, `running`, `progress`, `released` (its server left it for another, or until there is room for it), `succeeded`, `failed` or `cancelled`.
    #[schema(example = "progress")]
    pub r#type: &'static str,
    /// Its number among the events of the job, from 1: the event's `id`. Of progress, and of tries that found no
    /// room, only the newest is kept.
    #[schema(example = 3)]
    pub sequence: u64,
    /// The job.
    #[schema(example = "job_5f0c1b9a7d3e42f8a1b2c3d4e5f60718")]
    pub job: String,
    /// When, in seconds since 1970.
    #[schema(example = 1_764_000_000.0)]
    pub created_at: f64,
    /// Times that a server had taken the job up by then.
    #[schema(example = 1)]
    pub attempts: u64,
    /// How far it was.
    pub progress: Progress,
    /// Why it came to nothing, or was left.
    #[schema(required)]
    pub error: Option<Failure>,
}

// === impl JobObject ===

impl From<&Job> for JobObject {
    fn from(job: &Job) -> Self {
        Self {
            id: job.id.clone(),
            object: "job",
            kind: job.kind,
            model: job.model.clone(),
            digest: job.digest.clone(),
            state: job.state,
            position: job.ahead.map(i64::unsigned_abs),
            progress: Progress::new(job.done, job.total),
            eta: job.eta().map(seconds),
            attempts: job.attempts.unsigned_abs(),
            created_at: seconds(job.created),
            started_at: some(job.started),
            finished_at: some(job.finished),
            expires_at: some(job.expires),
            error: job.error.clone(),
            result: job.result.as_ref().map(|result| ResultObject {
                media_type: result.media_type.clone(),
                size: result.size,
                sha256: result.etag.clone(),
            }),
        }
    }
}

// === impl EventObject ===

impl EventObject {
    /// An event of the job of this id.
    pub fn new(job: &str, event: &Event) -> Self {
        Self {
            r#type: event.what.as_str(),
            sequence: event.sequence.unsigned_abs(),
            job: job.to_owned(),
            created_at: seconds(event.at),
            attempts: event.attempt.unsigned_abs(),
            progress: Progress::new(event.done, event.total),
            error: event.error.clone(),
        }
    }
}

// === impl Progress ===

impl Progress {
    fn new(done: i64, total: i64) -> Self {
        Self { done: done.unsigned_abs(), total: total.unsigned_abs() }
    }
}

/// Milliseconds as seconds.
pub(crate) fn seconds(millis: Millis) -> f64 {
    millis as f64 / 1e3
}

/// A time that is not there is 0.
fn some(millis: Millis) -> Option<f64> {
    (millis > 0).then(|| seconds(millis))
}

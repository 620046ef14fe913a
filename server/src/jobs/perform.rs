//! How the work of a job is done: what whoever does it is given, and what they give back. It may be broken off between any
//! two instructions, and is begun again elsewhere: what should not be lost is put on the desk, piece by piece.

#[cfg(test)]
pub(crate) mod fake;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::value::RawValue;

use super::store::{Lease, StoreError};
use super::{Jobs, Kind};
use crate::batcher::Caller;
use crate::error::{ApiError, Cause};
use crate::extract::Accept;
use crate::keys::Identity;
use crate::metrics::Metrics;

/// Who does the work of jobs.
pub trait Perform: Send + Sync + 'static {
    /// Refuses what the synchronous route would refuse, with the same error, and what is larger than a job may bring, before
    /// it becomes a job; and says which model it is for, and how much work. It may take as long as reading a picture does.
    fn check(
        &self,
        caller: Caller,
        kind: Kind,
        request: &RawValue,
        accept: &Accept,
    ) -> Result<Checked, ApiError>;

    /// Does the work, from what is committed on. It must be the same result wherever it goes on from. Where there is no room
    /// ([`Cause::Overloaded`], [`Cause::QuotaReached`], [`Cause::MemoryFull`]), it is called again after the time that the
    /// error names.
    fn perform<'a>(&'a self, job: &'a Leased, desk: &'a mut Desk)
    -> BoxFuture<'a, Result<Product, ApiError>>;
}

/// What a request that is in order is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The model's name.
    pub model: String,
    /// The model's digest: only servers that have this version work on the job.
    pub digest: String,
    /// Units of work that it is.
    pub units: usize,
    /// The time that these would take from now, as things stand.
    pub expected: Duration,
}

/// A job that this server works on.
#[derive(Debug)]
pub struct Leased {
    /// Its number in the store.
    pub number: i64,
    /// Its id.
    pub id: String,
    /// What is to be done.
    pub kind: Kind,
    /// The body of the synchronous route.
    pub request: Box<RawValue>,
    /// Its header `accept`.
    pub accept: Accept,
    /// The model's name.
    pub model: String,
    /// The model's digest.
    pub digest: String,
    /// Who ordered it, as this server knows them.
    pub identity: Identity,
    /// The token of the lease.
    pub token: i64,
    /// Which attempt it is, from 1.
    pub attempt: i64,
}

/// What comes of a job: the answer that the synchronous route would have given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    /// Its media type.
    pub media_type: String,
    /// Its other headers that say something of it.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Bytes,
}

/// Where the pieces of one job lie while it is worked on.
#[derive(Debug)]
pub struct Desk {
    jobs: Arc<Jobs>,
    metrics: Metrics,
    kind: Kind,
    /// The job's number and the lease's token.
    lease: (i64, i64),
    pieces: Vec<Bytes>,
    /// Bytes of all pieces.
    bytes: usize,
    /// Pieces that there were when the work was taken up.
    before: usize,
    progress: (i64, i64),
    /// When progress was last written down.
    written: Option<Instant>,
    is_lost: bool,
}

/// What is put on the desk is not committed, and the work is to end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The job is no longer this server's: it was cancelled, or taken for dead.
    #[error("the job is no longer this server's")]
    Lease,
    /// There is more of it than is kept.
    #[error("the result would have more than {0} bytes, the most there may be (`--job-result-limit`)")]
    TooLarge(usize),
    /// The store does not answer.
    #[error("the store of jobs does not answer: {0}")]
    Store(String),
}

/// Time between two writes of progress.
const SOMETIMES: Duration = Duration::from_millis(500);

/// Time between two tries at a store that does not answer.
const AGAIN: Duration = Duration::from_millis(500);

// === impl Lost ===

impl From<Lost> for ApiError {
    fn from(lost: Lost) -> Self {
        let message = lost.to_string();
        match lost {
            Lost::Lease => Self::new(Cause::Cancelled, message),
            Lost::TooLarge(_) => Self::new(Cause::InvalidValue, message),
            Lost::Store(_) => Self::new(Cause::JobsUnavailable, message),
        }
    }
}

// === impl Desk ===

impl Desk {
    pub(super) fn new(jobs: Arc<Jobs>, metrics: Metrics, lease: &Lease) -> Self {
        Self {
            jobs,
            metrics,
            kind: lease.job.kind,
            lease: (lease.job.number, lease.token),
            bytes: lease.pieces.iter().map(Bytes::len).sum(),
            before: lease.pieces.len(),
            pieces: lease.pieces.clone(),
            progress: (lease.job.done, lease.job.total),
            written: None,
            is_lost: false,
        }
    }

    /// The pieces committed so far, in order, by this server and by those before it.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// Commits the next piece: from now on the work goes on behind it, whatever happens.
    pub async fn put(&mut self, piece: Bytes) -> Result<(), Lost> {
        let limit = self.jobs.settings().result_limit;
        if self.bytes.saturating_add(piece.len()) > limit {
            return Err(Lost::TooLarge(limit));
        }
        let (lease, number, progress) = (self.lease, self.pieces.len() as i64, self.progress);
        let store = self.jobs.store().clone();
        let put = || store.put(lease, number, &piece, progress);
        let is_ours = insist(self.jobs.settings().lease, put).await;
        self.kept(is_ours)?;
        self.bytes += piece.len();
        self.pieces.push(piece);
        self.metrics.job_pieces.with_label_values(&[self.kind.as_str()]).inc();
        self.jobs.touch();
        Ok(())
    }

    /// Tells how far the work is, now and then: not every call is written down.
    pub async fn progress(&mut self, done: usize, total: usize) -> Result<(), Lost> {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.progress = (count(done), count(total));
        if self.written.is_some_and(|written| written.elapsed() < SOMETIMES) {
            return Ok(());
        }
        self.written = Some(Instant::now());
        let (number, token) = self.lease;
        let is_ours = self.jobs.store().progress(number, token, self.progress.0, self.progress.1).await;
        self.jobs.touch();
        match is_ours {
            // It is told again soon.
            Err(error) => tracing::debug!(%error, "progress of a job was not written down"),
            Ok(is_ours) => self.kept(Ok(is_ours))?,
        }
        Ok(())
    }

    /// Whether the work has got any further under this lease.
    pub(super) fn is_further(&self) -> bool {
        self.pieces.len() > self.before
    }

    /// Whether the lease turned out to be somebody else's.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost
    }

    fn kept(&mut self, is_ours: Result<bool, StoreError>) -> Result<(), Lost> {
        match is_ours {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.is_lost = true;
                Err(Lost::Lease)
            }
            Err(error) => Err(Lost::Store(error.to_string())),
        }
    }
}

/// Does something with the store, again and again for so long while it does not answer. Everything that is done so is the
/// same when it is done twice.
pub(super) async fn insist<T, F: Future<Output = Result<T, StoreError>>>(
    patience: Duration,
    what: impl Fn() -> F,
) -> Result<T, StoreError> {
    let start = Instant::now();
    loop {
        match what().await {
            Err(StoreError::Database(error)) if start.elapsed() < patience => {
                tracing::warn!(%error, "the store of jobs does not answer; trying on");
                tokio::time::sleep(AGAIN).await;
            }
            done => return done,
        }
    }
}

//! Work on jobs: as many tasks a server as `--job-workers`, each of which takes up one job after the other, keeps its lease
//! while the work is done, and ends it. Work stops at once when the job is cancelled or somebody else's, and when the
//! server leaves: then another takes it up from what is committed.

mod pauses;
mod upkeep;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use serde_json::value::RawValue;
use tokio::sync::broadcast;
use tokio::task::JoinSet;

use super::perform::{Desk, Leased, Product, insist};
use super::store::{Cancelled, FRUITLESS, Failure, Lease, Release, StoreError, Wanted};
use super::{Jobs, Kind, webhook};
use crate::app::{App, Phase};
use crate::error::{ApiError, Cause};
use crate::extract::Accept;
use crate::middleware::access::{forbidden, unauthenticated};
use crate::middleware::rescue::message_of;
use pauses::Pauses;

/// Time between two looks for a job that another server has taken in, or left.
const LOOK: Duration = Duration::from_secs(1);

/// The longest that work waits for room before it asks again.
const LONGEST_WAIT: u64 = 60;

/// How the work on a job ended.
enum End {
    Done(Result<Product, ApiError>),
    /// The job is somebody else's, or nobody's any more.
    Lost,
    /// The server leaves.
    Leaving,
}

/// Who is at work on jobs. All of them end soon after [`Jobs::leave`], and at once where this is dropped.
#[derive(Debug, Default)]
pub struct AtWork {
    /// Those who have jobs.
    pub workers: JoinSet<()>,
    /// Those who tell of them, and clear away.
    pub beside: JoinSet<()>,
}

/// Begins to work on jobs, tell of them and clear away.
pub fn start(app: &App, jobs: &Arc<Jobs>) -> AtWork {
    let (mut at_work, pauses) = (AtWork::default(), Arc::new(Pauses::default()));
    for _ in 0..jobs.settings().workers {
        at_work.workers.spawn(work(app.clone(), Arc::clone(jobs), Arc::clone(&pauses)));
    }
    at_work.beside.spawn(upkeep::keep_up(app.clone(), Arc::clone(jobs)));
    if jobs.settings().hooks.is_open() {
        at_work.beside.spawn(webhook::deliver(app.clone(), Arc::clone(jobs)));
    }
    at_work
}

/// Takes up one job after the other, until the server leaves.
async fn work(app: App, jobs: Arc<Jobs>, pauses: Arc<Pauses>) {
    let (mut leaving, mut changes) = (jobs.leaving(), jobs.changes());
    while !*leaving.borrow() {
        // From here on: what comes while we look is seen.
        changes.borrow_and_update();
        match next(&app, &jobs, &pauses).await {
            Ok(Some(lease)) => {
                Turn { app: &app, jobs: &jobs, pauses: &pauses, lease }.run().await;
                jobs.touch();
                continue;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the store of jobs does not answer; trying on"),
        }
        tokio::select! {
            _ = leaving.wait_for(|leaving| *leaving) => {}
            _ = changes.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// The models that are served here, by name and digest.
fn served(app: &App) -> Vec<(String, String)> {
    app.models().iter().map(|model| (model.name().to_owned(), model.card.digest.clone())).collect()
}

/// The next job that can be done here.
async fn next(app: &App, jobs: &Jobs, pauses: &Pauses) -> Result<Option<Lease>, StoreError> {
    if app.phase() != Phase::Ready {
        return Ok(None);
    }
    let models = served(app);
    let (holder, time) = (jobs.holder(), jobs.settings().lease);
    let paused = pauses.now();
    let wanted = Wanted { kinds: &Kind::ALL, models: &models, paused: &paused };
    let (lease, given_up) = jobs.store().lease(holder, wanted, time).await?;
    let metrics = app.metrics();
    for job in given_up {
        tracing::error!(job = job.id, kind = %job.kind, attempts = job.attempts, "a job is given up: nobody gets any further");
        metrics.jobs_total.with_label_values(&[job.kind.as_str(), "failed"]).inc();
    }
    if lease.as_ref().is_some_and(|lease| lease.was_lost) {
        metrics.job_leases_lost.inc();
    }
    Ok(lease)
}

/// Whether there will be room for the work: in the engine, among its owner's looks, or in memory.
fn is_full(cause: Cause) -> bool {
    matches!(cause, Cause::Overloaded | Cause::QuotaReached | Cause::MemoryFull)
}

/// One job under one lease.
struct Turn<'a> {
    app: &'a App,
    jobs: &'a Arc<Jobs>,
    pauses: &'a Pauses,
    lease: Lease,
}

// === impl Turn ===

impl Turn<'_> {
    async fn run(self) {
        let (job, token) = (&self.lease.job, self.lease.token);
        tracing::info!(
            job = job.id,
            kind = %job.kind,
            model = job.model,
            token,
            pieces = job.pieces,
            was_lost = self.lease.was_lost,
            "a job is taken up"
        );
        let mut desk = Desk::new(Arc::clone(self.jobs), self.app.metrics().clone(), &self.lease);
        let end = self.work(&mut desk).await;
        let outcome = match end {
            End::Lost => Ok("lost"),
            End::Done(Err(_)) if desk.is_lost() => Ok("lost"),
            End::Leaving => self.release(Duration::ZERO, None, Release::Leaving).await,
            End::Done(Ok(product)) => self.finish(&product).await,
            End::Done(Err(error)) => self.failed(&error, &desk).await,
        };
        match outcome {
            Ok(outcome) => tracing::info!(job = job.id, token, outcome, "a job is put down"),
            // Its lease runs out.
            Err(error) => {
                tracing::error!(job = job.id, token, %error, "the end of a job was not written down")
            }
        }
    }

    /// Does the work for as long as it is ours.
    async fn work(&self, desk: &mut Desk) -> End {
        let mut leaving = self.jobs.leaving();
        // From here on: what is cancelled while we begin is seen.
        let cancellations = self.jobs.cancellations();
        let work = AssertUnwindSafe(self.perform(desk)).catch_unwind();
        // All side by side: what waits for the store in one of them keeps no other from going on.
        tokio::select! {
            biased;
            _ = leaving.wait_for(|leaving| *leaving) => End::Leaving,
            () = self.keep(cancellations) => End::Lost,
            done = work => End::Done(done.unwrap_or_else(|panic| {
                Err(ApiError::internal(format!("the work on a job panicked: {}", message_of(&*panic))))
            })),
        }
    }

    /// Has the work done.
    async fn perform(&self, desk: &mut Desk) -> Result<Product, ApiError> {
        self.jobs.perform().perform(&self.leased()?, desk).await
    }

    /// The job for whoever does it. Errors: whoever ordered it may not do so any more.
    fn leased(&self) -> Result<Leased, ApiError> {
        let job = &self.lease.job;
        let keys = self.app.keys();
        let identity = keys.holder(&job.owner).ok_or_else(unauthenticated)?;
        if identity.role < job.kind.role() {
            return Err(forbidden(keys.required()));
        }
        let request = RawValue::from_string(self.lease.request.clone());
        Ok(Leased {
            number: job.number,
            id: job.id.clone(),
            kind: job.kind,
            request: request.map_err(|error| ApiError::internal(format!("the order of a job: {error}")))?,
            accept: Accept::parse(&self.lease.accept),
            model: job.model.clone(),
            digest: job.digest.clone(),
            identity,
            token: self.lease.token,
            attempt: job.attempts,
        })
    }

    /// Keeps the lease; resolves when it is ours no longer.
    async fn keep(&self, mut cancellations: broadcast::Receiver<i64>) {
        let (number, time) = (self.lease.job.number, self.jobs.settings().lease);
        let mut beat = tokio::time::interval(time / 3);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first one is at once, and it is ours for now.
        beat.tick().await;
        let mut kept = Instant::now();
        loop {
            tokio::select! {
                cancelled = cancellations.recv() => {
                    // Some were missed: ours may have been among them.
                    let is_ours = !matches!(cancelled, Ok(other) if other != number);
                    if !is_ours {
                        continue;
                    }
                }
                _ = beat.tick() => {}
            }
            let asked = Instant::now();
            match self.jobs.store().renew(number, self.lease.token, time).await {
                Ok(true) => kept = asked,
                Ok(false) => return,
                Err(error) if kept.elapsed() < time => {
                    tracing::warn!(%error, "a lease was not renewed; trying on");
                }
                // Another server may have taken it up by now.
                Err(_) => return,
            }
        }
    }

    async fn finish(&self, product: &Product) -> Result<&'static str, StoreError> {
        let (job, limit) = (&self.lease.job, self.jobs.settings().result_limit);
        if product.body.len() > limit {
            return self.fail(&super::perform::Lost::TooLarge(limit).into()).await;
        }
        let store = self.jobs.store();
        let patience = self.jobs.settings().lease;
        let finished = insist(patience, || store.finish(job.number, self.lease.token, product)).await?;
        let Some(job) = finished else { return Ok("lost") };
        self.count("succeeded");
        let seconds = (job.finished - job.started).max(0) as f64 / 1e3;
        self.app.metrics().job_duration.with_label_values(&[job.kind.as_str()]).observe(seconds);
        Ok("succeeded")
    }

    /// What becomes of a job whose work ended with an error.
    async fn failed(&self, error: &ApiError, desk: &Desk) -> Result<&'static str, StoreError> {
        let tries = if desk.is_further() { 0 } else { self.lease.job.fruitless };
        let backoff = Duration::from_secs(1 << tries.clamp(0, 6));
        match error.cause {
            cause if is_full(cause) => {
                // Others may have room meanwhile, and this server's worker is free for them.
                let mut wait = Duration::from_secs(error.retry_after.unwrap_or(1).clamp(1, LONGEST_WAIT));
                if cause == Cause::QuotaReached {
                    let job = &self.lease.job;
                    self.pauses.add(&job.owner, &job.model, std::mem::take(&mut wait));
                }
                self.release(wait, Some(&error.into()), Release::Full).await
            }
            // By the id of its request, which is the job's.
            Cause::Cancelled => self.cancel().await,
            Cause::ShuttingDown => self.release(Duration::ZERO, None, Release::Leaving).await,
            // It is another server's, or this one's once it has the model again.
            Cause::Loading => self.release(LOOK, None, Release::Leaving).await,
            Cause::Engine
            | Cause::Internal
            | Cause::JobsUnavailable
            | Cause::ModelNotFound
            | Cause::ModelChanged
                if tries < FRUITLESS =>
            {
                let detail = error.detail.as_deref().unwrap_or(&error.message);
                tracing::warn!(
                    job = self.lease.job.id,
                    detail,
                    "the work on a job failed; it is tried again"
                );
                self.release(backoff, Some(&error.into()), Release::Failed).await
            }
            _ => self.fail(error).await,
        }
    }

    async fn fail(&self, error: &ApiError) -> Result<&'static str, StoreError> {
        let job = &self.lease.job;
        if error.cause.is_fault() {
            let detail = error.detail.as_deref().unwrap_or(&error.message);
            tracing::error!(job = job.id, code = error.cause.code(), detail, "a job failed");
        }
        let (store, failure) = (self.jobs.store(), Failure::from(error));
        let patience = self.jobs.settings().lease;
        if !insist(patience, || store.fail(job.number, self.lease.token, &failure)).await? {
            return Ok("lost");
        }
        self.count("failed");
        Ok("failed")
    }

    async fn cancel(&self) -> Result<&'static str, StoreError> {
        let (store, patience) = (self.jobs.store(), self.jobs.settings().lease);
        match insist(patience, || store.cancel(self.lease.job.number)).await? {
            Cancelled::Now(_) => {
                self.count("cancelled");
                Ok("cancelled")
            }
            Cancelled::Before(_) | Cancelled::Gone => Ok("lost"),
        }
    }

    async fn release(
        &self,
        wait: Duration,
        why: Option<&Failure>,
        how: Release,
    ) -> Result<&'static str, StoreError> {
        let (store, lease) = (self.jobs.store(), (self.lease.job.number, self.lease.token));
        // Who leaves has no time; the lease runs out.
        let patience = if how == Release::Leaving { Duration::ZERO } else { self.jobs.settings().lease };
        let is_ours = insist(patience, || store.release(lease, wait, why, how)).await?;
        Ok(if is_ours { "released" } else { "lost" })
    }

    fn count(&self, outcome: &str) {
        let kind = self.lease.job.kind.as_str();
        self.app.metrics().jobs_total.with_label_values(&[kind, outcome]).inc();
    }
}

#[cfg(test)]
mod tests;

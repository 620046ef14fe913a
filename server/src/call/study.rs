//! A study's way through the engine: admitted like any request, then call after call until it comes to something, while
//! whoever watches is told how far it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;

use super::{Call, failed, refused, settled};
use crate::analysis::{Study, StudyError};
use crate::app::requests::Registered;
use crate::app::workbench::Workbench;
use crate::app::{App, Job};
use crate::batcher::study::{StudyRequest, StudyTicket};
use crate::batcher::{Canceller, SampleError};
use crate::error::{ApiError, Cause};
use crate::model::Model;

/// What a study computes at its end for longer than this waits for a place of its own.
const LONG_END: Duration = Duration::from_millis(250);

/// Who is told how far a study is, and keeps what it has done, for whoever goes on from there.
pub trait Watch: Send {
    /// What was kept before.
    fn pieces(&self) -> Vec<Bytes>;

    /// Keeps the next piece. Errors: nobody wants it any more.
    fn keep(&mut self, piece: Bytes) -> BoxFuture<'_, Result<(), ApiError>>;

    /// So many calls of all are done. Errors: nobody wants it any more.
    fn at(&mut self, done: usize, total: usize) -> BoxFuture<'_, Result<(), ApiError>>;
}

/// Whoever asks waits for the answer, and is told nothing before.
#[derive(Debug, Clone, Copy)]
pub struct Nobody;

/// An admitted study. Dropping it ends the work.
#[derive(Debug)]
pub struct Studying {
    ticket: StudyTicket,
    bench: Workbench,
    model: Arc<Model>,
    kind: &'static str,
    began: Instant,
    /// How it ended; nobody waits any more where nothing has been written here.
    outcome: &'static str,
    registered: Registered,
    job: Job,
}

// === impl Call, for studies ===

impl Call {
    /// Admits a study of the model, or says why not.
    pub fn study<S: Study>(self, app: &App, model: &Arc<Model>, study: &S) -> Result<Studying, ApiError> {
        let job = self.begin(app, model)?;
        let deadline = self.timeout.map(|timeout| self.arrived + timeout);
        let request = StudyRequest { caller: self.identity.caller, deadline, effort: study.effort() };
        let canceller = Canceller::default();
        let registered = app.requests().register(self.id, self.identity.caller, canceller.clone());
        let admitted = model.batcher.study_under(request, canceller);
        let ticket = admitted.map_err(|error| refused(&error, self.timeout))?;
        Ok(Studying {
            ticket,
            bench: app.workbench(self.identity.caller),
            model: Arc::clone(model),
            kind: S::KIND,
            began: Instant::now(),
            outcome: "disconnect",
            registered,
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
    /// keeps neither that thread nor an async one. Whoever watches is told of every call, and keeps its pieces; what was
    /// kept before is not done again.
    pub async fn watched<S: Study>(
        mut self,
        study: S,
        watch: &mut dyn Watch,
    ) -> Result<S::Findings, ApiError> {
        let ended = self.run(study, watch).await;
        self.outcome = match ended.as_ref().map_err(|error| error.cause) {
            Ok(_) => "done",
            Err(Cause::Cancelled) => "cancelled",
            Err(Cause::DeadlinePassed) => "deadline",
            Err(Cause::ShuttingDown) => "shutdown",
            Err(_) => "failed",
        };
        ended
    }

    async fn run<S: Study>(&mut self, mut study: S, watch: &mut dyn Watch) -> Result<S::Findings, ApiError> {
        let (total, pieces) = (study.left(), watch.pieces());
        if !pieces.is_empty() {
            let resume = move || study.resume(&pieces).map(|()| study);
            study = self.bench.study(resume).await?.map_err(unstudied)?;
        }
        loop {
            watch.at(total.saturating_sub(study.left()), total).await?;
            let next = move || {
                let ask = study.next();
                (study, ask)
            };
            let (back, ask) = self.bench.study(next).await?;
            study = back;
            let Some(ask) = ask else { break };
            let findings = self.ticket.ask(ask).await.map_err(failed)?;
            let take = move || study.take(findings).map(|()| study);
            study = self.bench.study(take).await?.map_err(unstudied)?;
            while let Some(piece) = study.piece() {
                watch.keep(piece).await?;
            }
        }
        let is_long = study.effort().end > LONG_END;
        let finish = move || study.finish();
        let findings =
            if is_long { self.bench.conclude(finish).await? } else { self.bench.study(finish).await? };
        settled(&self.registered)?;
        Ok(findings)
    }
}

impl Drop for Studying {
    fn drop(&mut self) {
        let (metrics, model) = (self.bench.app().metrics(), self.model.name());
        metrics.studies_total.with_label_values(&[model, self.outcome]).inc();
        metrics.study.with_label_values(&[model, self.kind]).observe(self.began.elapsed().as_secs_f64());
    }
}

/// Why a study came to nothing, for the client.
fn unstudied(error: StudyError) -> ApiError {
    match error {
        StudyError::NotFinite => failed(SampleError::NotFinite),
        StudyError::Shape(detail) => ApiError::internal(detail),
    }
}

impl Watch for Nobody {
    fn pieces(&self) -> Vec<Bytes> {
        Vec::new()
    }

    fn keep(&mut self, _: Bytes) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn at(&mut self, _: usize, _: usize) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batcher::Caller;
    use crate::batcher::study::{Ask, Findings, Like};
    use crate::config::Config;
    use crate::engine::fake::Faults;
    use crate::keys::{Identity, Role};
    use crate::middleware::request_id::RequestId;

    /// A study of no calls whose client thinks better of it in its last moment.
    struct Regretted(App, RequestId);

    impl Study for Regretted {
        const KIND: &'static str = "attention";
        type Findings = usize;

        fn left(&self) -> usize {
            0
        }

        fn like(&self) -> Like {
            Like::denoiser(1)
        }

        fn next(&mut self) -> Option<Ask> {
            None
        }

        fn take(&mut self, _: Findings) -> Result<(), StudyError> {
            Ok(())
        }

        fn finish(self) -> usize {
            self.0.requests().cancel(&self.1, None)
        }
    }

    #[tokio::test]
    async fn a_study_that_is_cancelled_in_its_last_moment_is_cancelled() {
        let app = crate::testing::app(Config::default(), &Faults::default());
        let model = app.model(Some("shoes")).unwrap();
        let id = RequestId::parse("mine").unwrap();
        let identity = Identity { caller: Caller::ANONYMOUS, role: Role::Analyse };
        let call = Call::of_job(id.clone(), identity);
        let study = Regretted(app.clone(), id);
        let studying = call.study(&app, &model, &study).unwrap();
        let error = studying.watched(study, &mut Nobody).await.unwrap_err();
        assert_eq!(error.cause, Cause::Cancelled);
        let cancelled = app.metrics().studies_total.with_label_values(&["shoes", "cancelled"]).get();
        assert_eq!(cancelled, 1);
    }
}

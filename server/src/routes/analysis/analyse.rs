//! The way of every analysis from its request to its answer: resolved, admitted, studied, told. What takes longer than its
//! client waits for becomes a job instead, and is answered with the job's place.

use std::sync::Arc;

use axum::response::Response;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::analysis::Study;
use crate::app::App;
use crate::batcher::study::Effort;
use crate::call::{Call, Nobody, Watch};
use crate::config::Config;
use crate::error::{ApiError, Cause};
use crate::extract::{Accept, Prefer};
use crate::jobs::Kind;
use crate::model::Model;
use crate::routes::jobs::submit;

/// What a route of analysis does: a request that is in order, but for the study that answers it.
pub(crate) trait Analysis: Send + Sized + 'static {
    /// What a job of it is called.
    const KIND: Kind;

    /// The body.
    type Request: Serialize + DeserializeOwned + Send + 'static;

    /// What finds the answer.
    type Study: Study;

    /// The model that a request names.
    fn model(request: &Self::Request) -> Option<&str>;

    /// How long a request says that its client waits.
    fn timeout_ms(request: &Self::Request) -> Option<u64>;

    /// Gives a request that names no seed this one: whoever begins it again looks at the same.
    fn pin(request: &mut Self::Request, seed: u64);

    /// Checks a request for this model. It may take as long as reading a picture does.
    fn resolve(
        request: &Self::Request,
        accept: &Accept,
        model: &Model,
        config: &Config,
    ) -> Result<Resolved<Self>, ApiError>;

    /// The answer of what was found.
    fn respond(self, model: &Model, findings: <Self::Study as Study>::Findings)
    -> Result<Response, ApiError>;
}

/// A request that is in order.
#[derive(Debug)]
pub(crate) struct Resolved<A: Analysis> {
    pub(super) study: A::Study,
    /// Bytes of the answer, at most.
    pub(super) told: usize,
    /// Bytes that are held on the way to it, at most.
    pub(super) held: usize,
    pub(super) analysis: A,
}

/// The answer of a route: what was asked for, or the job that it became.
pub(super) async fn analyse<A: Analysis>(
    app: &App,
    call: Call,
    (prefer, accept): (Prefer, Accept),
    request: A::Request,
) -> Result<Response, ApiError> {
    let model = app.model(A::model(&request))?;
    let call = call.within("timeout_ms", A::timeout_ms(&request))?;
    let (resolving, resolved_for) = (app.clone(), Arc::clone(&model));
    let resolve = move || {
        let resolved = A::resolve(&request, &accept, &resolved_for, resolving.config());
        resolved.map(|resolved| (resolved, request, accept))
    };
    let bench = app.workbench(call.identity.caller);
    let (resolved, request, accept) = bench.look_over(resolve).await??;
    let jobs = app.jobs().filter(|_| !call.is_timed());
    let leaves = jobs.is_some_and(|jobs| {
        let eta = model.batcher.expect_study(call.identity.caller, resolved.study.effort());
        prefer.leaves(eta, jobs.settings().after)
    });
    if leaves {
        let is_too_large = resolved.told.max(resolved.study.kept()) > app.config().jobs.result_limit;
        let job = submit::defer(app, call.identity, (A::KIND, &accept), &request).await;
        // Who has not asked for it is answered where no job can be had.
        let waits = |error: &ApiError| {
            let none = matches!(error.cause, Cause::TooManyJobs | Cause::JobsUnavailable) || is_too_large;
            prefer == Prefer::default() && none
        };
        if !job.as_ref().is_err_and(waits) {
            return job;
        }
    }
    drop(request);
    study(app, call, model, resolved, &mut Nobody).await
}

/// The answer, however long it takes, while `watch` is told how far it is.
pub(crate) async fn answer<A: Analysis>(
    app: &App,
    call: Call,
    accept: Accept,
    (request, model): (A::Request, Arc<Model>),
    watch: &mut dyn Watch,
) -> Result<Response, ApiError> {
    let (resolving, resolved_for) = (app.clone(), Arc::clone(&model));
    let resolve = move || A::resolve(&request, &accept, &resolved_for, resolving.config());
    let resolved = app.workbench(call.identity.caller).study(resolve).await??;
    study(app, call, model, resolved, watch).await
}

/// Refuses what cannot be done as a job; the model that it would be done with, and what that takes.
pub(crate) fn check<A: Analysis>(
    app: &App,
    request: &A::Request,
    accept: &Accept,
) -> Result<(Arc<Model>, Effort), ApiError> {
    let (model, limit) = (app.model(A::model(request))?, app.config().jobs.result_limit);
    let resolved = A::resolve(request, accept, &model, app.config())?;
    if resolved.told > limit {
        let message = format!(
            "the result would have {} bytes, more than {limit}, the most there may be (`--job-result-limit`)",
            resolved.told
        );
        return Err(ApiError::new(Cause::InvalidValue, message));
    }
    let kept = resolved.study.kept();
    if kept > limit {
        let message = format!(
            "the work would keep {kept} bytes on its way, more than {limit}, the most there may be (`--job-result-limit`)"
        );
        return Err(ApiError::new(Cause::InvalidValue, message));
    }
    Ok((model, resolved.study.effort()))
}

async fn study<A: Analysis>(
    app: &App,
    call: Call,
    model: Arc<Model>,
    resolved: Resolved<A>,
    watch: &mut dyn Watch,
) -> Result<Response, ApiError> {
    let Resolved { study, told, held, analysis } = resolved;
    let bench = app.workbench(call.identity.caller);
    let studying = call.answering(told.saturating_add(held)).study(app, &model, &study)?;
    let job = studying.job();
    let findings = studying.watched(study, watch).await?;
    let mut response = bench.study(move || analysis.respond(&model, findings)).await??;
    response.extensions_mut().insert(job);
    Ok(response)
}

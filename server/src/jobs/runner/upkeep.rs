//! What somebody has to do now and then: forget what has been kept for long enough, say what is served, give up what nobody
//! serves, and count what there is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::served;
use crate::app::{App, Phase};
use crate::jobs::Jobs;
use crate::jobs::store::StoreError;

/// Time between two rounds.
const ROUND: Duration = Duration::from_secs(5);

/// Time for which this server has served without a break before it says that nobody has a version: after an outage of all of them
/// the others come back as well, and this one may be the first.
const WATCH: Duration = Duration::from_secs(3600);

/// Makes its rounds until the server leaves.
pub(super) async fn keep_up(app: App, jobs: Arc<Jobs>) {
    let (mut leaving, mut ready) = (jobs.leaving(), None);
    loop {
        ready = (app.phase() == Phase::Ready).then(|| ready.unwrap_or_else(Instant::now));
        let has_watched = ready.is_some_and(|since| since.elapsed() >= WATCH);
        if let Err(error) = round(&app, &jobs, has_watched).await {
            tracing::warn!(%error, "the store of jobs does not answer; trying on");
        }
        tokio::select! {
            _ = leaving.wait_for(|leaving| *leaving) => return,
            () = tokio::time::sleep(ROUND) => {}
        }
    }
}

/// One round; `has_watched`: this server would know if anybody came back.
pub(super) async fn round(app: &App, jobs: &Jobs, has_watched: bool) -> Result<(), StoreError> {
    // First of all: it makes room where there is none.
    let forgotten = jobs.store().expire().await?;
    if forgotten > 0 {
        tracing::info!(jobs = forgotten, "jobs are forgotten: they have been kept for long enough");
    }
    jobs.store().serve(&served(app)).await?;
    let given_up = if has_watched { jobs.store().give_up_unserved().await? } else { Vec::new() };
    for job in given_up {
        tracing::warn!(
            job = job.id,
            model = job.model,
            digest = job.digest,
            "a job is given up: nobody serves its model's version"
        );
        app.metrics().jobs_total.with_label_values(&[job.kind.as_str(), "failed"]).inc();
    }
    for (state, count) in jobs.store().counts().await? {
        app.metrics().jobs.with_label_values(&[state.as_str()]).set(count);
    }
    Ok(())
}

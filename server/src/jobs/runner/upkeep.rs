//! What somebody has to do now and then: forget what has been kept for long enough, say what is served, give up what nobody
//! serves, and count what there is.

use std::sync::Arc;
use std::time::Duration;

use super::served;
use crate::app::App;
use crate::jobs::Jobs;
use crate::jobs::store::StoreError;

/// Time between two rounds.
const ROUND: Duration = Duration::from_secs(5);

/// Makes its rounds until the server leaves.
pub(super) async fn keep_up(app: App, jobs: Arc<Jobs>) {
    let mut leaving = jobs.leaving();
    loop {
        if let Err(error) = round(&app, &jobs).await {
            tracing::warn!(%error, "the store of jobs does not answer; trying on");
        }
        tokio::select! {
            _ = leaving.wait_for(|leaving| *leaving) => return,
            () = tokio::time::sleep(ROUND) => {}
        }
    }
}

async fn round(app: &App, jobs: &Jobs) -> Result<(), StoreError> {
    // First of all: it makes room where there is none.
    let forgotten = jobs.store().expire().await?;
    if forgotten > 0 {
        tracing::info!(jobs = forgotten, "jobs are forgotten: they have been kept for long enough");
    }
    jobs.store().serve(&served(app)).await?;
    for job in jobs.store().give_up_unserved().await? {
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

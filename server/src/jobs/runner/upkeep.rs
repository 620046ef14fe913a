//! What somebody has to do now and then: forget what has been kept for long enough, and count what there is.

use std::sync::Arc;
use std::time::Duration;

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
    let forgotten = jobs.store().expire().await?;
    if forgotten > 0 {
        tracing::info!(jobs = forgotten, "jobs are forgotten: they have been kept for long enough");
    }
    for (state, count) in jobs.store().counts().await? {
        app.metrics().jobs.with_label_values(&[state.as_str()]).set(count);
    }
    Ok(())
}

//! Jobs over HTTP: one thing that can be done with them a file. A job is its owner's, who is whoever showed the key that it
//! was ordered with; administrators see everybody's, and to others it does not exist.

pub mod cancel;
pub mod events;
pub mod get;
pub mod list;
mod range;
pub mod result;
pub mod submit;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::app::{App, Phase, loading, shutting_down};
use crate::error::{ApiError, Cause};
use crate::extract::no_job;
use crate::jobs::Jobs;
use crate::jobs::store::Job;
use crate::keys::{Identity, Role};
use crate::middleware::access::unauthenticated;
use crate::middleware::request_id::RequestId;

/// The jobs of this server.
fn kept(app: &App) -> Result<Arc<Jobs>, ApiError> {
    let none = || match app.phase() {
        Phase::Loading => loading(),
        // Perhaps before they were kept: whoever asks for one is not told that there are none.
        Phase::Draining => shutting_down(),
        _ => ApiError::new(Cause::NotFound, "this server keeps no jobs (`--jobs`)"),
    };
    app.jobs().ok_or_else(none)
}

/// Who a caller is to the store.
fn owner(app: &App, identity: Identity) -> Result<String, ApiError> {
    // A key may have been taken out while its request was on its way here.
    app.keys().owner(identity.caller).ok_or_else(unauthenticated)
}

/// The caller's job of this id, or for an administrator anybody's.
async fn find(app: &App, jobs: &Jobs, identity: Identity, id: &RequestId) -> Result<Job, ApiError> {
    let owner = owner(app, identity)?;
    if let Some(job) = jobs.store().job(&owner, id.as_str()).await? {
        return Ok(job);
    }
    if identity.role < Role::Admin {
        return Err(no_job());
    }
    let mut found = jobs.store().anybodys(id.as_str()).await?;
    if found.len() > 1 {
        let message = "several callers have a job of this id, of which only they themselves can ask";
        return Err(ApiError::new(Cause::JobConflict, message).param("id"));
    }
    found.pop().ok_or_else(no_job)
}

//! Whose jobs this server leaves alone for a while: an owner who has as many looks inside a model under way as one caller may
//! has no room for another job of theirs on it either, and one try says so for all of them. Other servers have quotas of
//! their own.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::jobs::store::Paused;

/// Owners and the models that they wait for, and until when.
#[derive(Debug, Default)]
pub(super) struct Pauses(Mutex<BTreeMap<Paused, Instant>>);

// === impl Pauses ===

impl Pauses {
    /// No job of this owner on this model is taken up here for so long.
    pub(super) fn add(&self, owner: &str, model: &str, time: Duration) {
        let mut pauses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pauses.insert((owner.to_owned(), model.to_owned()), Instant::now() + time);
    }

    /// The owners that wait now, each with the model.
    pub(super) fn now(&self) -> Vec<Paused> {
        let mut pauses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        pauses.retain(|_, until| *until > now);
        pauses.keys().cloned().collect()
    }
}

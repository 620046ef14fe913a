//! The lane of the studies in a model's queue: who is admitted, and which of their units wait.

use std::time::{Duration, Instant};

use super::{End, Queue, State};
use crate::batcher::admission::whole_seconds;
use crate::batcher::studies::Pace;
use crate::batcher::study::{Effort, Like, StudyRequest, StudyUnit};
use crate::batcher::{Caller, SubmitError};

// === impl Queue, for studies ===

impl Queue {
    /// Admits a study, and the time until it is done, as things stand.
    pub(in crate::batcher) fn study(&self, request: StudyRequest) -> Result<(u64, Duration), SubmitError> {
        let StudyRequest { caller, deadline, effort } = request;
        let mut state = self.lock();
        if state.end != End::No {
            return Err(SubmitError::Ended);
        }
        let pace = self.pace(&state);
        let eta = state.studies.eta(caller, effort, pace);
        if let Some(left) = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
            && eta > left
        {
            let alone = state.studies.alone(effort, Pace { tick: 0.0, ..pace });
            let retry_after = whole_seconds(eta.saturating_sub(left));
            return Err(SubmitError::TooLate { needs: eta, alone, retry_after });
        }
        let quota = self.rules.study_quota;
        let admitted = state.studies.admit(caller, effort, pace);
        let id = admitted.map_err(|full| SubmitError::Studying { quota, retry_after: full.retry_after })?;
        Ok((id, eta))
    }

    /// The time that a study would take from now, as things stand.
    pub(in crate::batcher) fn expect_study(&self, caller: Caller, effort: Effort) -> Duration {
        let state = self.lock();
        state.studies.eta(caller, effort, self.pace(&state))
    }

    /// How fast studies have their turns, as things stand.
    fn pace(&self, state: &State) -> Pace {
        if state.entries.is_empty() {
            Pace { tick: 0.0, sharers: self.device.spare_sharers(self.member) }
        } else {
            Pace { tick: self.tick(state), sharers: self.device.sharers(self.member) }
        }
    }

    /// A study waits with a unit. `false`: the worker has ended.
    pub(in crate::batcher) fn ask(&self, id: u64, unit: StudyUnit) -> bool {
        let mut state = self.lock();
        if state.end == End::Now || !state.studies.wait(id) {
            return false;
        }
        state.units.insert(id, unit);
        drop(state);
        self.wake.notify_one();
        true
    }

    /// The unit whose turn it was stands back: it is the next one again.
    pub(in crate::batcher) fn stand_back(&self, id: u64, unit: StudyUnit) {
        let mut state = self.lock();
        if state.studies.give_back(id) {
            state.units.insert(id, unit);
        }
    }

    /// A study ended; a unit that it waited with is let go.
    pub(in crate::batcher) fn end_study(&self, id: u64) {
        let mut state = self.lock();
        state.studies.end(id);
        state.units.remove(&id);
    }

    /// Whether a unit waits.
    pub(in crate::batcher) fn has_units(&self) -> bool {
        !self.lock().units.is_empty()
    }

    /// A unit like this one took so long.
    pub(in crate::batcher) fn studied(&self, like: Like, elapsed: Duration) {
        self.lock().studies.measured(like, elapsed);
    }

    /// Units that wait and shall not have their turn.
    pub(in crate::batcher) fn departed_units(&self, now: Instant) -> Vec<StudyUnit> {
        let mut state = self.lock();
        let State { units, studies, .. } = &mut *state;
        let departed = units.extract_if(.., |_, unit| unit.ended(now).is_some());
        departed
            .map(|(id, unit)| {
                studies.leave(id);
                unit
            })
            .collect()
    }

    /// Units that wait.
    pub(in crate::batcher) fn take_units(&self) -> Vec<StudyUnit> {
        std::mem::take(&mut self.lock().units).into_values().collect()
    }
}

//! Memory that requests share: whoever will want some takes it when it is admitted, or is told that there is none now.
//! Nobody waits for it, and nothing that was computed is thrown away for want of it. Where there are several callers, one that
//! has some already may have half of it in all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::batcher::Caller;
use crate::model::Model;

/// A request is small that wants no more than this part of a budget.
const SMALL: usize = 512;

/// A budget in bytes. Clones are one and the same.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    limit: usize,
    /// What large requests leave to small ones.
    kept: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Who has some, in the order in which they came.
    holders: BTreeMap<u64, Holder>,
    /// What they have together.
    used: usize,
    /// Of that, small requests.
    small: usize,
    /// Of that, each caller.
    callers: BTreeMap<Caller, usize>,
    next: u64,
}

#[derive(Debug)]
struct Holder {
    bytes: usize,
    is_small: bool,
    who: Who,
}

/// Who asks for some.
#[derive(Debug, Clone)]
pub(super) struct Who {
    pub(super) caller: Caller,
    /// Whether there may be other callers.
    pub(super) among_others: bool,
    /// Whose work it is for.
    pub(super) model: Weak<Model>,
}

/// A part of a budget; given back with the last clone.
#[derive(Debug, Clone, Default)]
pub struct Room(Option<Arc<Part>>);

#[derive(Debug)]
struct Part {
    budget: Budget,
    number: u64,
}

// === impl Budget ===

impl Budget {
    /// A budget of so many bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, kept: 0, state: Arc::default() }
    }

    /// The same, of which large requests leave a quarter to small ones: these never wait for those.
    #[must_use]
    pub(super) fn with_room_for_small(self) -> Self {
        Self { kept: self.limit / 4, ..self }
    }

    /// Room for so many bytes; none while others have it, or the caller its half. A request that wants more than there is
    /// at all may have all of it.
    pub(super) fn take(&self, who: Who, bytes: usize) -> Option<Room> {
        if bytes == 0 {
            return Some(Room::default());
        }
        let is_small = bytes <= self.limit / SMALL;
        let most = if is_small { self.limit } else { self.limit - self.kept };
        let bytes = bytes.min(most);
        let mut state = self.lock();
        // Large ones may have become more than was thought, and more than there is.
        let has_room =
            state.used.saturating_add(bytes) <= most || is_small && state.small + bytes <= self.kept;
        let own = state.callers.get(&who.caller).copied().unwrap_or(0);
        let beyond_half = who.among_others && own > 0 && own.saturating_add(bytes) > most / 2;
        if beyond_half || !has_room {
            return None;
        }
        let number = state.next;
        state.next += 1;
        *state.callers.entry(who.caller).or_default() += bytes;
        state.holders.insert(number, Holder { bytes, is_small, who });
        state.used += bytes;
        state.small += if is_small { bytes } else { 0 };
        drop(state);
        Some(Room(Some(Arc::new(Part { budget: self.clone(), number }))))
    }

    /// Bytes that somebody has.
    pub(super) fn used(&self) -> usize {
        self.lock().used
    }

    /// Time until there may be some: the longest that a model has to work of those whose requests have it. They may be of
    /// any.
    pub(super) fn wait(&self) -> Duration {
        let state = self.lock();
        let mut models: Vec<_> = state.holders.values().map(|holder| holder.who.model.clone()).collect();
        drop(state);
        models.sort_by_key(Weak::as_ptr);
        models.dedup_by(|a, b| Weak::ptr_eq(a, b));
        let backlog = |model: &Weak<Model>| model.upgrade().map(|model| model.batcher.standing().backlog);
        models.iter().filter_map(backlog).max().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// What a holder has is so much from now on.
    fn set(&mut self, number: u64, bytes: usize) {
        let Some(holder) = self.holders.get_mut(&number) else { return };
        let before = std::mem::replace(&mut holder.bytes, bytes);
        self.used = self.used - before + bytes;
        if holder.is_small {
            self.small = self.small - before + bytes;
        }
        if let Some(own) = self.callers.get_mut(&holder.who.caller) {
            *own = *own - before + bytes;
        }
    }
}

// === impl Room ===

impl Room {
    /// It is known by now how much it is, which may be more than was thought: then the next are refused for longer.
    pub(crate) fn is(&self, bytes: usize) {
        let Some(part) = &self.0 else { return };
        part.budget.lock().set(part.number, bytes);
    }
}

// === impl Part ===

impl Drop for Part {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        state.set(self.number, 0);
        state.holders.remove(&self.number);
        state.callers.retain(|_, bytes| *bytes > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(caller: u32) -> Who {
        Who { caller: Caller(caller), among_others: true, model: Weak::new() }
    }

    /// Everybody is one caller.
    fn only() -> Who {
        Who { among_others: false, ..who(0) }
    }

    #[test]
    fn what_is_taken_is_given_back_with_the_last_clone() {
        let budget = Budget::new(100);
        assert!(budget.take(only(), 0).is_some() && budget.used() == 0);
        let room = budget.take(only(), 60).unwrap();
        assert!(budget.take(only(), 41).is_none());
        assert!(budget.take(only(), 40).is_some(), "it fits, and is given back at once");
        let clone = room.clone();
        drop(room);
        assert_eq!(budget.used(), 60);
        drop(clone);
        assert_eq!(budget.used(), 0);
        // More than there is at all: alone, it has everything.
        let all = budget.take(only(), usize::MAX).unwrap();
        assert_eq!((budget.used(), budget.take(only(), 1).is_none()), (100, true));
        drop(all);
        assert!(budget.take(only(), 1).is_some());
    }

    #[test]
    fn small_ones_have_room_that_large_ones_do_not_take() {
        let budget = Budget::new(4096).with_room_for_small();
        let large: Vec<_> = std::iter::from_fn(|| budget.take(only(), 1024)).collect();
        assert_eq!((large.len(), budget.used()), (3, 3072));
        assert!(budget.take(only(), 9).is_none(), "one that is not small");
        let small: Vec<_> = std::iter::from_fn(|| budget.take(only(), 8)).collect();
        assert_eq!((small.len(), budget.used()), (128, 4096));
        drop(large);
        assert!(budget.take(only(), 9).is_some());
        drop(small);
        // One that is more than was thought, and more than there is, takes nothing of it either.
        let large = budget.take(only(), 1024).unwrap();
        large.is(10_000);
        let small: Vec<_> = std::iter::from_fn(|| budget.take(only(), 8)).collect();
        assert_eq!((small.len(), budget.used()), (128, 11_024));
    }

    #[test]
    fn how_much_it_is_may_be_learnt_later() {
        let budget = Budget::new(100);
        let room = budget.take(only(), 60).unwrap();
        room.is(10);
        assert_eq!(budget.used(), 10);
        let other = budget.take(only(), 90).unwrap();
        // More than was thought is counted as well.
        other.is(500);
        assert!(budget.used() == 510 && budget.take(only(), 1).is_none());
        drop(other);
        assert_eq!(budget.used(), 10);
        Room::default().is(7);
    }

    #[test]
    fn of_several_callers_one_that_has_some_may_have_half() {
        let budget = Budget::new(100);
        let first = budget.take(who(1), 60).unwrap();
        assert!(budget.take(who(1), 1).is_none(), "it has more than half by now");
        let other = budget.take(who(2), 30).unwrap();
        assert!(budget.take(who(2), 10).is_some(), "forty in all");
        assert!(budget.take(who(2), 21).is_none() && budget.take(who(3), 11).is_none(), "there is no more");
        first.is(10);
        assert!(budget.take(who(2), 21).is_none(), "it fits, and is more than its half");
        assert!(budget.take(who(1), 40).is_some() && budget.take(who(3), 60).is_some());
        drop((first, other));
        assert_eq!(budget.used(), 0);
        let _has_some = budget.take(only(), 60).unwrap();
        assert!(budget.take(only(), 40).is_some(), "there is nobody else");
    }
}

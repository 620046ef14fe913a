//! The requests under way, by id, so that somebody can cancel them from outside.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::batcher::{Caller, Canceller};
use crate::middleware::request_id::RequestId;

/// The requests under way. One id may be several requests: ids are the clients' choice.
#[derive(Debug, Clone, Default)]
pub struct Requests(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    entries: HashMap<RequestId, Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    caller: Caller,
    canceller: Canceller,
}

/// A request's entry; dropping it takes it out, as [settling](Self::settle) does.
#[derive(Debug)]
pub struct Registered {
    requests: Requests,
    id: RequestId,
    number: u64,
}

// === impl Requests ===

impl Requests {
    /// Enters a request for as long as the answer lives.
    pub fn register(&self, id: RequestId, caller: Caller, canceller: Canceller) -> Registered {
        let mut table = self.lock();
        let number = table.next;
        table.next += 1;
        table.entries.entry(id.clone()).or_default().push(Entry { number, caller, canceller });
        Registered { requests: self.clone(), id, number }
    }

    /// Cancels the requests of this id that are `caller`'s, or anybody's where it is `None`; and how many they are.
    pub fn cancel(&self, id: &RequestId, caller: Option<Caller>) -> usize {
        let table = self.lock();
        let entries = table.entries.get(id).into_iter().flatten();
        let own = entries.filter(|entry| caller.is_none_or(|caller| caller == entry.caller));
        own.map(|entry| entry.canceller.cancel()).count()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Registered ===

impl Registered {
    /// Takes the entry out, because the answer goes out: from here on nobody cancels it. Whether somebody has.
    pub fn settle(&self) -> bool {
        let mut table = self.requests.lock();
        let Some(entries) = table.entries.get_mut(&self.id) else { return false };
        let own = entries.iter().position(|entry| entry.number == self.number);
        // Cancelled or taken out, under one lock: who was told that it was cancelled is believed.
        let cancelled = own.is_some_and(|i| entries.swap_remove(i).canceller.is_cancelled());
        if entries.is_empty() {
            table.entries.remove(&self.id);
        }
        cancelled
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_told_that_it_was_cancelled_is_believed() {
        let requests = Requests::default();
        let id = RequestId::parse("mine").unwrap();
        let register = |caller| requests.register(id.clone(), Caller(caller), Canceller::default());
        let [first, second, third] = [1, 1, 2].map(register);
        assert!(!first.settle());
        // The second is under way, the first is answered, the third is somebody else's.
        assert_eq!(requests.cancel(&id, Some(Caller(1))), 1);
        assert!(second.settle() && !third.settle());
        assert_eq!(requests.cancel(&id, None), 0);
        let fourth = register(1);
        drop((first, second, third));
        assert_eq!(requests.cancel(&id, None), 1, "others' ends do not take it out");
        drop(fourth);
        assert!(requests.lock().entries.is_empty());
    }
}

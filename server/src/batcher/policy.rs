//! Who goes next? A pure state machine: no clock, no channel, no engine, so that its promises are tested as properties
//! and over long simulated traces.
//!
//! Two questions, two classical answers:
//!
//! - **Between callers**: deficit round robin (Shreedhar & Varghese 1995). Each caller in turn may spend a quantum of
//!   rows; what it could not spend for want of room it keeps. Whoever has work gets an equal share of the rows, and
//!   what somebody leaves is spread over the rest.
//! - **Within a caller**: earliest deadline first, where the deadline of a request is its arrival plus [`STRETCH`] times
//!   its own work, on a clock that counts the rows the caller was served (the deadlines of Bender, Chakrabarti &
//!   Muthukrishnan 1998 for small stretch). So a short request overtakes a long one; but a request can be overtaken
//!   only by what arrives within `STRETCH` times its own work, so nobody starves.
//!
//! Each image takes part in a tick at most once, since its next step needs this one's result. Ticks are filled as long
//! as anybody fits.

use std::collections::BTreeMap;

use super::Caller;

/// Rows that a caller may spend in a turn: the most that one image takes, so that every turn serves somebody.
pub const QUANTUM: usize = 2;

/// How much work may pass a request by, in units of its own.
pub const STRETCH: u64 = 4;

/// A live image, as far as the choice depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Order of arrival, unique.
    pub id: u64,
    /// Whose it is.
    pub caller: Caller,
    /// Rows it takes: 1, or 2 for a guided pair, which is never split.
    pub rows: usize,
    /// Its place among its caller's: smaller goes first. From [`Policy::deadline`].
    pub deadline: u64,
}

/// The turns.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    callers: BTreeMap<Caller, Account>,
    /// Who was served last; the round goes on behind it.
    last: Option<Caller>,
}

/// What is remembered of a caller that has work.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    /// Rows it may still spend. Negative after it filled a gap out of turn.
    deficit: i64,
    /// Rows it was served.
    clock: u64,
}

// === impl Policy ===

impl Policy {
    /// The deadline of a request of `work` row evaluations that `caller` sends now.
    pub fn deadline(&self, caller: Caller, work: u64) -> u64 {
        let clock = self.callers.get(&caller).map_or(0, |account| account.clock);
        clock.saturating_add(work.saturating_mul(STRETCH))
    }

    /// Positions in `candidates` of those that take part in the next tick, in order of arrival. Their rows add up to
    /// at most `room`.
    pub fn select(&mut self, candidates: &[Candidate], room: usize) -> Vec<usize> {
        let mut queues = queues(candidates);
        // Whoever has no work left has no claim left either.
        self.callers.retain(|caller, _| queues.contains_key(caller));
        let mut tick = Tick { candidates, room, chosen: Vec::new() };
        let mut round = self.round(&queues);
        while tick.room > 0 && !round.is_empty() {
            round.retain(|&caller| {
                if tick.room == 0 {
                    return true;
                }
                let account = self.callers.entry(caller).or_default();
                let queue = queues.get_mut(&caller).expect("a round is made of queues; this is a bug");
                if account.deficit < QUANTUM as i64 {
                    account.deficit += QUANTUM as i64;
                }
                while let Some(&next) = queue.last() {
                    let rows = candidates[next].rows;
                    if rows as i64 > account.deficit || !tick.take(next) {
                        break;
                    }
                    account.serve(rows);
                    queue.pop();
                    self.last = Some(caller);
                }
                let all_served = queue.is_empty();
                if all_served {
                    account.deficit = account.deficit.min(0);
                }
                // A pair for which there is no room ends this caller's part; it keeps what it may spend.
                !all_served && tick.room >= candidates[queue[queue.len() - 1]].rows
            });
        }
        self.fill(&mut tick, &queues);
        tick.chosen.sort_unstable_by_key(|&i| candidates[i].id);
        tick.chosen
    }

    /// A single row may be left beside pairs that need two: whoever has an image of one row gets it, on credit.
    fn fill(&mut self, tick: &mut Tick<'_>, queues: &BTreeMap<Caller, Vec<usize>>) {
        for (caller, queue) in queues {
            for &i in queue.iter().rev() {
                if tick.candidates[i].rows <= tick.room && tick.take(i) {
                    self.callers.entry(*caller).or_default().serve(tick.candidates[i].rows);
                }
            }
        }
    }

    /// The callers with work, beginning behind the one that was served last.
    fn round(&self, queues: &BTreeMap<Caller, Vec<usize>>) -> Vec<Caller> {
        let (mut first, mut then): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
        for &caller in queues.keys() {
            if self.last.is_some_and(|last| caller <= last) { &mut then } else { &mut first }.push(caller);
        }
        first.append(&mut then);
        first
    }
}

// === impl Account ===

impl Account {
    fn serve(&mut self, rows: usize) {
        self.deficit -= rows as i64;
        self.clock += rows as u64;
    }
}

/// A tick that is being filled.
struct Tick<'a> {
    candidates: &'a [Candidate],
    room: usize,
    chosen: Vec<usize>,
}

// === impl Tick ===

impl Tick<'_> {
    /// Takes a candidate if there is room for it.
    fn take(&mut self, i: usize) -> bool {
        let rows = self.candidates[i].rows;
        let fits = rows <= self.room;
        if fits {
            self.room -= rows;
            self.chosen.push(i);
        }
        fits
    }
}

/// Each caller's candidates, the most urgent last.
fn queues(candidates: &[Candidate]) -> BTreeMap<Caller, Vec<usize>> {
    let mut queues: BTreeMap<Caller, Vec<usize>> = BTreeMap::new();
    for (i, candidate) in candidates.iter().enumerate() {
        queues.entry(candidate.caller).or_default().push(i);
    }
    for queue in queues.values_mut() {
        queue.sort_unstable_by_key(|&i| std::cmp::Reverse((candidates[i].deadline, candidates[i].id)));
    }
    queues
}

#[cfg(test)]
mod tests;

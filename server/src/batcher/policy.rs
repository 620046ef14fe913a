//! Who goes next? A pure state machine: no clock, no channel, no engine, so that its promises are tested as properties
//! and over long simulated traces.
//!
//! Two questions, two classical answers:
//!
//! - **Between callers**: deficit round robin (Shreedhar & Varghese 1995). Each caller in turn may spend a quantum of
//!   rows; what it could not spend, since its next image takes more, it keeps. A turn that the end of a tick cuts short
//!   goes on in the next. So of two callers that always have work none is ever ahead of the other by more than a quantum
//!   and the largest cost of an image, and what somebody leaves is spread over the rest.
//! - **Within a caller**: earliest deadline first, where the deadline of a request is its arrival plus [`STRETCH`] times
//!   its own work, on a clock that counts the rows the caller was served (the deadlines of Bender, Chakrabarti &
//!   Muthukrishnan 1998 for small stretch). So a short request overtakes a long one; but a request can be overtaken
//!   only by what arrives within `STRETCH` times its own work, so nobody starves.
//!
//! Each image takes part in a tick at most once, since its next step needs this one's result. Ticks are filled as long
//! as anybody fits.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Bound;

use super::Caller;

/// Rows that a caller may spend in a turn: the most that one image takes, so that every turn serves somebody.
pub const QUANTUM: usize = 2;

/// How much work may pass a request by, in units of its own.
pub const STRETCH: u64 = 6;

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

/// Rows that a caller may be served ahead of its turn: the one that is left beside pairs.
const CREDIT: i64 = 1;

/// The turns.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    callers: BTreeMap<Caller, Account>,
    /// The latest turn; the round goes on behind it.
    turn: Option<Turn>,
    /// Who had the latest gap.
    filled: Option<Caller>,
}

/// A caller's turn.
#[derive(Debug, Clone, Copy)]
struct Turn {
    caller: Caller,
    /// It was cut short, and goes on.
    is_open: bool,
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
        while let Some(caller) = self.whose_turn(&queues) {
            if !self.serve(caller, &mut queues, &mut tick) {
                break;
            }
        }
        self.fill(&queues, &mut tick);
        tick.chosen.sort_unstable_by_key(|&i| candidates[i].id);
        tick.chosen
    }

    /// The caller whose turn was cut short, or else the next in the round, whose turn begins.
    fn whose_turn(&mut self, queues: &Queues) -> Option<Caller> {
        let open = self.turn.filter(|turn| turn.is_open && queues.contains_key(&turn.caller));
        if let Some(turn) = open {
            return Some(turn.caller);
        }
        let caller = round(queues, self.turn.map(|turn| turn.caller)).next()?.0;
        self.callers.entry(caller).or_default().deficit += QUANTUM as i64;
        self.turn = Some(Turn { caller, is_open: true });
        Some(caller)
    }

    /// Serves a caller until it has spent what it may, or all its images take part. `false`: there is no room for its
    /// next image; the turn stays open.
    fn serve(&mut self, caller: Caller, queues: &mut Queues, tick: &mut Tick<'_>) -> bool {
        let account = self.callers.entry(caller).or_default();
        let queue = queues.get_mut(&caller).expect("a turn is somebody's who has work; this is a bug");
        while let Some(&next) = queue.last() {
            let rows = tick.candidates[next].rows;
            if rows as i64 > account.deficit {
                self.turn = Some(Turn { caller, is_open: false });
                return true;
            }
            if !tick.take(next) {
                return false;
            }
            account.serve(rows);
            queue.pop();
        }
        // Whoever has all he wants has no claim to more.
        account.deficit = account.deficit.min(0);
        queues.remove(&caller);
        self.turn = Some(Turn { caller, is_open: false });
        true
    }

    /// A single row may be left beside pairs that need two: it goes to an image of one row, on credit; whose it is, is
    /// decided by who is owed most, and among equals in turn. What nobody but one caller can use is not held against
    /// it for longer than a turn.
    fn fill(&mut self, queues: &Queues, tick: &mut Tick<'_>) {
        let fits =
            |queue: &[usize]| queue.iter().rev().copied().find(|&i| tick.candidates[i].rows <= tick.room);
        let owed = |caller: &Caller| self.callers.get(caller).map_or(0, |account| account.deficit);
        let able = round(queues, self.filled).filter_map(|(caller, queue)| Some((caller, fits(queue)?)));
        let Some((caller, next)) = able.min_by_key(|(caller, _)| Reverse(owed(caller))) else { return };
        if tick.take(next) {
            let account = self.callers.entry(caller).or_default();
            account.serve(tick.candidates[next].rows);
            account.deficit = account.deficit.max(-CREDIT);
            self.filled = Some(caller);
        }
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
type Queues = BTreeMap<Caller, Vec<usize>>;

fn queues(candidates: &[Candidate]) -> Queues {
    let mut queues = Queues::new();
    for (i, candidate) in candidates.iter().enumerate() {
        queues.entry(candidate.caller).or_default().push(i);
    }
    for queue in queues.values_mut() {
        queue.sort_unstable_by_key(|&i| Reverse((candidates[i].deadline, candidates[i].id)));
    }
    queues
}

/// The callers with work, beginning behind this one.
fn round(queues: &Queues, behind: Option<Caller>) -> impl Iterator<Item = (Caller, &[usize])> {
    let first = behind.map_or(Bound::Unbounded, Bound::Excluded);
    let rest = behind.map(|last| queues.range(..=last)).into_iter().flatten();
    queues.range((first, Bound::Unbounded)).chain(rest).map(|(&caller, queue)| (caller, queue.as_slice()))
}

#[cfg(test)]
mod tests;

//! Ticks are smaller for a while after one for which the device had no memory: another process may have taken some since the
//! model was loaded, and half of the rows may well fit. What asks for a bucket of its own keeps it, for its bits. All times that
//! are told meanwhile are of the smaller ticks.

use std::time::{Duration, Instant};

use super::Queue;

/// How long ticks stay smaller; twice as long each time that full ones fail again.
const FIRST: Duration = Duration::from_secs(60);

/// The longest.
const LONGEST: Duration = Duration::from_secs(3600);

/// Rows of a tick at least: those of a guided image.
const LEAST: usize = 2;

/// Rows that a tick may have, for now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cap {
    rows: usize,
    until: Instant,
    pause: Duration,
}

// === impl Cap ===

impl Cap {
    /// After a tick of so many rows that failed; `before` is what there was then.
    fn after(rows: usize, before: Option<Self>, now: Instant) -> Self {
        let pause = match before {
            // It failed while ticks were small, or soon after they were full again: it has not got better.
            Some(before) if now < before.until + before.pause => {
                if now < before.until {
                    before.pause
                } else {
                    (2 * before.pause).min(LONGEST)
                }
            }
            _ => FIRST,
        };
        // One that was as small already, or has a bucket of its own, makes none larger.
        let most = before.filter(|before| now < before.until).map_or(usize::MAX, |before| before.rows);
        Self { rows: (rows / 2).max(LEAST).min(most), until: now + pause, pause }
    }

    /// Rows of a tick that would have `room`.
    pub(super) fn bound(self, room: usize, now: Instant) -> usize {
        if now < self.until { room.min(self.rows) } else { room }
    }
}

// === impl Queue, for ticks without memory ===

impl Queue {
    /// There was no memory for a call of so many rows. The rows that ticks have from now on, and for how long.
    pub(in crate::batcher) fn shrink(&self, rows: usize) -> (usize, Duration) {
        let mut state = self.lock();
        let cap = Cap::after(rows, state.cap, Instant::now());
        state.cap = Some(cap);
        (cap.rows, cap.pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_halved_and_full_again_after_a_while_that_grows() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let first = Cap::after(32, None, start);
        assert_eq!((first.bound(32, at(59)), first.bound(8, at(59)), first.bound(32, at(60))), (16, 8, 32));
        // Half was too much as well.
        let again = Cap::after(16, Some(first), at(1));
        assert_eq!((again.rows, again.pause), (8, FIRST));
        // One with a bucket of its own fails beside small ones.
        assert_eq!(Cap::after(32, Some(again), at(2)).rows, 8);
        // Full ones fail as soon as they are tried.
        let later = Cap::after(32, Some(again), at(62));
        assert_eq!((later.rows, later.pause), (16, 2 * FIRST));
        // And once all was well for as long as that.
        assert_eq!(Cap::after(32, Some(later), at(62 + 240)).pause, FIRST);
        // There is room for a guided image, and the pause has a bound.
        assert_eq!(Cap::after(1, None, start).rows, 2);
        let mut cap = first;
        for _ in 0..20 {
            cap = Cap::after(32, Some(cap), cap.until);
        }
        assert_eq!(cap.pause, LONGEST);
    }
}

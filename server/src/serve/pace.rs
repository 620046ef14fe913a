//! How fast a client has to take what waits for it: 8 KiB a second, on the average over `--write-timeout` of waiting. Some
//! progress now and then is not enough: of an answer of 64 MiB it would keep the memory for days.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes a second: less than the slowest line that people use, and enough to be rid of the largest answer in hours.
const LEAST: f64 = 8192.0;

/// The pace of one client, or of one answer. Time counts while something waits for the client, and only then.
#[derive(Debug)]
pub(super) struct Pace {
    limit: Duration,
    /// Since when something waits.
    since: Option<Instant>,
    /// How long it waited before, and what the client took, since it had taken enough.
    waited: Duration,
    taken: usize,
}

// === impl Pace ===

impl Pace {
    /// It may keep the server waiting for so long, and again once it has taken what it has to in such a time.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, since: None, waited: Duration::ZERO, taken: 0 }
    }

    /// Something waits for the client.
    pub(super) fn waits(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// The client took so many bytes, and nothing waits for it. `sharers`: so many answers, this one among them, have one
    /// line.
    pub(super) fn took(&mut self, bytes: usize, sharers: usize, now: Instant) {
        if let Some(since) = self.since.take() {
            self.waited += now.saturating_duration_since(since);
        }
        self.taken = self.taken.saturating_add(bytes);
        if self.taken as f64 * sharers as f64 >= LEAST * self.limit.as_secs_f64() {
            (self.waited, self.taken) = (Duration::ZERO, 0);
        }
    }

    /// When it will have kept the server waiting for too long, if it takes nothing; none while nothing waits.
    pub(super) fn end(&self) -> Option<Instant> {
        Some(self.since? + self.limit.saturating_sub(self.waited))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_takes_too_little_has_its_time_once_and_one_that_takes_enough_again_and_again() {
        let (limit, start) = (Duration::from_secs(30), Instant::now());
        // So many bytes after every ten seconds of waiting: when it is over, of an hour.
        let ends = |bytes: usize, sharers: usize| {
            let (mut pace, mut now) = (Pace::new(limit), start);
            while now < start + Duration::from_secs(3600) {
                pace.waits(now);
                let next = now + Duration::from_secs(10);
                if pace.end().unwrap() < next {
                    return Some(pace.end().unwrap() - start);
                }
                pace.took(bytes, sharers, next);
                now = next;
            }
            None
        };
        assert_eq!(ends(0, 1), Some(limit));
        assert_eq!(ends(1024, 1), Some(limit));
        assert_eq!(ends(81_920, 1), None);
        // Ten on one line have a tenth each.
        assert_eq!((ends(8192, 10), ends(8192, 9)), (None, Some(limit)));
    }

    #[test]
    fn time_in_which_nothing_waits_does_not_count() {
        let mut pace = Pace::new(Duration::from_secs(30));
        let at = |seconds| Instant::now() + Duration::from_secs(seconds);
        pace.waits(at(0));
        pace.took(100, 1, at(10));
        assert_eq!(pace.end(), None);
        pace.waits(at(1000));
        assert!(pace.end().unwrap() > at(1019));
    }
}

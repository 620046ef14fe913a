//! From records to numbers: throughput, goodput and latencies of one measurement, without its warm-up.

use super::client::{Outcome, Record};
use super::stats::percentile;
use super::trace::Job;

/// What every request may take, whatever its size: what a person waits without a thought, in seconds.
const PATIENCE: f64 = 1.0;

/// And how many times its own work at full throughput.
const SLOWDOWN: f64 = 10.0;

/// One measurement in numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Row evaluations a second of requests that were answered with their images.
    pub throughput: f64,
    /// The same of those answered within [`limit`] from when they were due.
    pub goodput: f64,
    /// The same of those answered within [`limit`] from when their clients came first, however often they were refused.
    pub goodput_from_first: f64,
    /// Images a second answered within [`limit`].
    pub good_images: f64,
    /// Seconds from the scheduled arrival to the answer, at 50, 95 and 99 % of the requests that were admitted. One
    /// that was not answered when the measurement ended counts with the time it had waited until then.
    pub latency: [f64; 3],
    /// The 99th percentile of the short jobs alone.
    pub short_p99: f64,
    /// Refused, as a share of all.
    pub refused: f64,
    /// Answered with another error, or by a broken connection, as a share of all.
    pub failed: f64,
    /// Seconds by which the sender was late, at 99 % of the requests.
    pub lateness: f64,
}

/// The time in seconds within which an answer is good, on a machine that does `capacity` row evaluations a second: a
/// second, and ten times what the request would take if the whole machine worked on it.
pub fn limit(job: Job, capacity: f64) -> f64 {
    PATIENCE + SLOWDOWN * job.rows() as f64 / capacity
}

// === impl Summary ===

impl Summary {
    /// Of what happened between `from` and `to` seconds: rates count answers that came then, and latencies requests
    /// that were due then.
    pub fn of(records: &[Record], capacity: f64, [from, to]: [f64; 2]) -> Self {
        let within = |time: f64| (from..to).contains(&time);
        let is_good = |r: &&Record| r.end - r.due <= limit(r.job, capacity);
        let is_good_from_first = |r: &&Record| r.end - r.first <= limit(r.job, capacity);
        let done = || records.iter().filter(|r| r.outcome == Outcome::Done && within(r.end));
        let rate = |total: u64| total as f64 / (to - from);
        let due: Vec<&Record> = records.iter().filter(|r| within(r.due)).collect();
        let admitted = || {
            let is = |r: &&&Record| matches!(r.outcome, Outcome::Done | Outcome::Unanswered);
            due.iter().filter(is)
        };
        let latencies: Vec<f64> = admitted().map(|r| r.end - r.due).collect();
        let short: Vec<f64> = admitted().filter(|r| r.job.is_short()).map(|r| r.end - r.due).collect();
        let lateness: Vec<f64> = due.iter().map(|r| r.sent - r.due).collect();
        let share = |is: fn(Outcome) -> bool| {
            due.iter().filter(|r| is(r.outcome)).count() as f64 / due.len().max(1) as f64
        };
        Self {
            throughput: rate(done().map(|r| r.job.rows()).sum()),
            goodput: rate(done().filter(is_good).map(|r| r.job.rows()).sum()),
            goodput_from_first: rate(done().filter(is_good_from_first).map(|r| r.job.rows()).sum()),
            good_images: rate(done().filter(is_good).map(|r| u64::from(r.job.n)).sum()),
            latency: [50.0, 95.0, 99.0].map(|percent| percentile(&latencies, percent)),
            short_p99: percentile(&short, 99.0),
            refused: share(|outcome| matches!(outcome, Outcome::Refused { .. })),
            failed: share(|outcome| matches!(outcome, Outcome::Failed(_))),
            lateness: percentile(&lateness, 99.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(due: f64, end: f64, outcome: Outcome) -> Record {
        Record {
            job: Job { steps: 10, guided: false, n: 2 },
            first: due,
            due,
            sent: due + 0.001,
            end,
            outcome,
            attempt: 0,
        }
    }

    #[test]
    fn what_came_late_is_throughput_and_no_goodput() {
        // 20 rows of a capacity of 100 rows a second: 1 s + 10 * 0.2 s.
        assert!((limit(Job { steps: 10, guided: false, n: 2 }, 100.0) - 3.0).abs() < 1e-12);
        let refused = Outcome::Refused { retry_after: Some(1) };
        let records = [
            record(0.5, 0.9, Outcome::Done), // before the window
            record(0.8, 1.2, Outcome::Done), // answered in it, due before it
            record(2.0, 5.5, Outcome::Done), // late
            record(3.0, 3.5, Outcome::Done),
            record(4.0, 12.0, Outcome::Unanswered),
            record(5.0, 5.01, refused),
            record(6.0, 6.01, Outcome::Failed(500)),
            record(10.5, 10.9, Outcome::Done), // after it
            // In time when it came back, and not from when it came first.
            Record { first: 4.0, attempt: 1, ..record(7.0, 7.5, Outcome::Done) },
        ];
        let summary = Summary::of(&records, 100.0, [1.0, 11.0 - 1.0]);
        assert!((summary.throughput - 80.0 / 9.0).abs() < 1e-12);
        assert!((summary.goodput - 60.0 / 9.0).abs() < 1e-12);
        assert!((summary.goodput_from_first - 40.0 / 9.0).abs() < 1e-12);
        assert!((summary.good_images - 6.0 / 9.0).abs() < 1e-12);
        assert_eq!(summary.latency, [0.5, 8.0, 8.0]);
        assert_eq!((summary.short_p99, summary.refused, summary.failed), (8.0, 1.0 / 6.0, 1.0 / 6.0));
        assert!((summary.lateness - 0.001).abs() < 1e-9);
    }
}

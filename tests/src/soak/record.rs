//! What came back: every answer, and the server's memory now and then, in numbers by the minute.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::load::stats::percentile;

/// What a client did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Asked for an image whose bytes are known.
    Fixed,
    /// Asked for images as JSON.
    Json,
    /// Read a stream of server-sent events.
    Stream,
    /// Hung up.
    Leave,
    /// Cancelled by the request's id.
    Cancel,
    /// Gave it little time.
    Late,
    /// Had a picture made again.
    Replay,
    /// Called the Open Inference Protocol.
    Infer,
    /// Looked at attention.
    Attention,
    /// Took a Jacobian apart.
    Jacobian,
    /// Ordered images as a job.
    Job,
    /// Sent what is no request.
    Wrong,
    /// Looked at health, models and metrics.
    Look,
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What was asked.
    pub kind: Kind,
    /// When it was sent, after the begin.
    pub at: Duration,
    /// How long it took.
    pub took: Duration,
    /// The status; 0 where the client left, or where something is wrong.
    pub status: u16,
    /// What is wrong with it.
    pub wrong: Option<String>,
}

/// The whole of it.
#[derive(Debug, Default)]
pub struct Record {
    /// Every answer.
    pub answers: Vec<Answer>,
    /// Resident memory in MiB, and when.
    pub memory: Vec<(Duration, f64)>,
}

/// A part of the time.
#[derive(Debug, Clone, Copy)]
pub struct Slice {
    /// Its middle, in minutes after the begin.
    pub minute: f64,
    /// Answers with 200.
    pub answered: usize,
    /// Answers with 429.
    pub refused: usize,
    /// p50 and p99 of those with 200, in seconds.
    pub latency: [f64; 2],
    /// Resident memory in MiB.
    pub memory: f64,
}

// === impl Kind ===

impl Kind {
    /// In what proportion they come.
    pub const MIX: [Self; 19] = [
        Self::Fixed,
        Self::Fixed,
        Self::Fixed,
        Self::Json,
        Self::Json,
        Self::Json,
        Self::Stream,
        Self::Stream,
        Self::Leave,
        Self::Leave,
        Self::Cancel,
        Self::Late,
        Self::Replay,
        Self::Infer,
        Self::Attention,
        Self::Jacobian,
        Self::Job,
        Self::Wrong,
        Self::Look,
    ];
}

// === impl Record ===

impl Record {
    /// The time in `count` parts.
    pub fn slices(&self, length: Duration, count: usize) -> Vec<Slice> {
        let part =
            |at: Duration| ((at.as_secs_f64() / length.as_secs_f64() * count as f64) as usize).min(count - 1);
        let within = |i: usize| self.answers.iter().filter(move |answer| part(answer.at) == i);
        (0..count)
            .map(|i| {
                let took: Vec<f64> = within(i)
                    .filter(|a| a.status == 200 && a.kind != Kind::Look)
                    .map(|a| a.took.as_secs_f64())
                    .collect();
                let memory: Vec<f64> =
                    self.memory.iter().filter(|(at, _)| part(*at) == i).map(|(_, mib)| *mib).collect();
                Slice {
                    minute: (i as f64 + 0.5) / count as f64 * length.as_secs_f64() / 60.0,
                    answered: within(i).filter(|answer| answer.status == 200).count(),
                    refused: within(i).filter(|answer| answer.status == 429).count(),
                    latency: [50.0, 99.0].map(|percent| percentile(&took, percent)),
                    memory: percentile(&memory, 50.0),
                }
            })
            .collect()
    }

    /// Answers by kind and status.
    pub fn counts(&self) -> BTreeMap<(Kind, u16), usize> {
        let mut counts = BTreeMap::new();
        for answer in &self.answers {
            *counts.entry((answer.kind, answer.status)).or_default() += 1;
        }
        counts
    }

    /// What is wrong, by kind: how many answers, and the first.
    pub fn wrong(&self) -> Vec<String> {
        let mut wrong = BTreeMap::<Kind, (usize, String)>::new();
        for answer in &self.answers {
            let Some(what) = &answer.wrong else { continue };
            let first = || format!("after {:.0} s: {what}", answer.at.as_secs_f64());
            wrong.entry(answer.kind).or_insert_with(|| (0, first())).0 += 1;
        }
        wrong
            .into_iter()
            .map(|(kind, (count, first))| format!("{count} of {kind:?}, the first {first}"))
            .collect()
    }

    /// Kinds of clients of whom not one was answered, though nothing was wrong with what they asked.
    pub fn unanswered(&self) -> Vec<Kind> {
        let answered =
            |kind: Kind| self.answers.iter().any(|answer| answer.kind == kind && answer.status == 200);
        let kinds: std::collections::BTreeSet<Kind> = Kind::MIX.into_iter().collect();
        kinds
            .into_iter()
            .filter(|&kind| !matches!(kind, Kind::Wrong | Kind::Leave) && !answered(kind))
            .collect()
    }

    /// Growth of the memory from the second fifth to the last, in MiB and as a share.
    pub fn growth(&self, length: Duration) -> (f64, f64) {
        let fifths = self.slices(length, 5);
        let (before, after) = (fifths[1].memory, fifths[4].memory);
        (after - before, (after - before) / before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(second: u64, status: u16, wrong: Option<&str>) -> Answer {
        let (at, took) = (Duration::from_secs(second), Duration::from_millis(100 * second));
        Answer { kind: Kind::Json, at, took, status, wrong: wrong.map(str::to_owned) }
    }

    #[test]
    fn numbers_belong_to_their_part_of_the_time() {
        let answers = vec![
            answer(1, 200, None),
            answer(2, 200, None),
            answer(9, 429, None),
            answer(10, 0, Some("cut")),
        ];
        let memory = (0..10).map(|s| (Duration::from_secs(s), if s < 5 { 100.0 } else { 110.0 })).collect();
        let record = Record { answers, memory };
        let length = Duration::from_secs(10);
        let slices = record.slices(length, 2);
        assert_eq!((slices[0].answered, slices[0].refused, slices[1].refused), (2, 0, 1));
        assert_eq!(slices[0].latency, [0.1, 0.2]);
        assert!(slices[1].latency[0].is_nan());
        assert_eq!(record.growth(length), (10.0, 0.1));
        assert_eq!(record.counts()[&(Kind::Json, 200)], 2);
        assert_eq!(record.wrong(), ["1 of Json, the first after 10 s: cut"]);
        assert!(!record.unanswered().contains(&Kind::Json) && record.unanswered().contains(&Kind::Replay));
    }
}

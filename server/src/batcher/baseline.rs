//! The two policies that ours is measured against, in the same binary: one request at a time, and request-level
//! batching as servers of whole-request models do it. Requests that came within a delay form a batch, the batch runs
//! from its first step to its last, and nobody joins meanwhile. Kinder than most: an image that needs fewer steps
//! leaves when it is done. Pure, like `policy.rs`.

use std::time::Duration;

/// A live image, as far as these policies depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The request it belongs to; requests are numbered in order of arrival.
    pub request: u64,
    /// Rows it takes in a tick.
    pub rows: usize,
    /// Ticks it took part in.
    pub done: usize,
    /// When it arrived.
    pub arrived: Duration,
}

/// The batch that runs, and how the next one forms.
#[derive(Debug, Clone)]
pub struct Cohort {
    delay: Duration,
    /// One request at a time.
    alone: bool,
    running: Vec<u64>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pick {
    /// A tick of these positions.
    Run(Vec<usize>),
    /// Nothing before this time, unless more arrives.
    WaitUntil(Duration),
}

// === impl Cohort ===

impl Cohort {
    /// Request-level batching: a batch forms until `delay` after its first arrival, or until a tick is full.
    pub fn batching(delay: Duration) -> Self {
        Self { delay, alone: false, running: Vec::new() }
    }

    /// One request at a time.
    pub fn serial() -> Self {
        Self { delay: Duration::ZERO, alone: true, running: Vec::new() }
    }

    /// What to do with `members`, in order of arrival, at `now`. A tick has at most `room` rows.
    pub fn select(&mut self, members: &[Member], room: usize, now: Duration) -> Pick {
        self.running.retain(|request| members.iter().any(|member| member.request == *request));
        if self.running.is_empty() {
            let Some(first) = members.first() else { return Pick::Run(Vec::new()) };
            let due = first.arrived + self.delay;
            let waiting: usize = members.iter().map(|member| member.rows).sum();
            if !self.alone && waiting < room && now < due {
                return Pick::WaitUntil(due);
            }
            self.form(members, room);
        }
        let mut turn: Vec<usize> =
            (0..members.len()).filter(|&i| self.running.contains(&members[i].request)).collect();
        // A request wider than a tick takes turns with itself.
        turn.sort_by_key(|&i| (members[i].done, i));
        let mut left = room;
        turn.retain(|&i| {
            let fits = members[i].rows <= left;
            left -= if fits { members[i].rows } else { 0 };
            fits
        });
        turn.sort_unstable();
        Pick::Run(turn)
    }

    /// Whole requests in order of arrival while they fit into a tick; the first one in any case.
    fn form(&mut self, members: &[Member], room: usize) {
        let mut left = room;
        for request in members.chunk_by(|a, b| a.request == b.request) {
            let rows: usize = request.iter().map(|member| member.rows).sum();
            if !self.running.is_empty() && (self.alone || rows > left) {
                break;
            }
            left = left.saturating_sub(rows);
            self.running.push(request[0].request);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    fn member(request: u64, rows: usize, arrived: u64) -> Member {
        Member { request, rows, done: 0, arrived: ms(arrived) }
    }

    #[test]
    fn a_batch_waits_for_company_and_then_for_nobody() {
        let mut cohort = Cohort::batching(ms(10));
        let mut members = vec![member(0, 2, 0), member(1, 1, 4)];
        assert_eq!(cohort.select(&members, 8, ms(5)), Pick::WaitUntil(ms(10)));
        assert_eq!(cohort.select(&members, 8, ms(10)), Pick::Run(vec![0, 1]));
        members.push(member(2, 1, 11));
        assert_eq!(cohort.select(&members, 8, ms(30)), Pick::Run(vec![0, 1]));
        members.remove(0);
        assert_eq!(cohort.select(&members, 8, ms(40)), Pick::Run(vec![0]));
        members.remove(0);
        assert_eq!(cohort.select(&members, 8, ms(41)), Pick::Run(vec![0]));
    }

    #[test]
    fn a_full_tick_waits_for_nothing() {
        let mut cohort = Cohort::batching(ms(1000));
        let members = [member(0, 2, 0), member(1, 2, 0), member(2, 1, 0)];
        assert_eq!(cohort.select(&members, 4, ms(0)), Pick::Run(vec![0, 1]));
    }

    #[test]
    fn one_at_a_time_is_one_request() {
        let mut cohort = Cohort::serial();
        let members = [member(0, 2, 0), member(0, 2, 0), member(1, 1, 0)];
        assert_eq!(cohort.select(&members, 16, ms(0)), Pick::Run(vec![0, 1]));
    }

    #[test]
    fn a_request_wider_than_a_tick_takes_turns_with_itself() {
        let mut cohort = Cohort::serial();
        let mut members = vec![member(0, 2, 0); 3];
        for expected in [[0, 1], [0, 2], [1, 2]] {
            let Pick::Run(chosen) = cohort.select(&members, 4, ms(0)) else { panic!("it waits") };
            assert_eq!(chosen, expected);
            chosen.iter().for_each(|&i| members[i].done += 1);
        }
    }
}

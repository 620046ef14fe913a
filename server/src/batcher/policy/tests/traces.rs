//! The promises over long seeded traces of arrivals: nobody is passed by for longer than the policy says, short requests
//! are not stuck behind long ones, and a flood of one caller leaves the others as they were.

use super::*;

/// A request of a simulated trace.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    tick: u64,
    caller: u32,
    rows: usize,
    steps: u64,
}

/// One that runs.
struct Running {
    arrival: Arrival,
    left: u64,
    deadline: u64,
    /// The rows that its caller may be served until it is done, once its deadline has passed.
    latest: Option<u64>,
}

// === impl Running ===

impl Running {
    fn rows(&self) -> u64 {
        self.arrival.rows as u64
    }
}

/// The latest time, in rows served to its caller, at which a request is done whose deadline has just passed at `now`.
///
/// Nothing that arrives from then on goes before it. What does is there, and is served `urgent` rows at most, its own
/// included; each may bring a row more that fills a gap, and a pair that waits for two rows one at the end. And each of
/// its own steps, which come one after another, is in a tick whose other rows, at most a room, are anybody's.
fn latest(live: &BTreeMap<u64, Running>, id: u64, now: u64, room: usize) -> u64 {
    let own = &live[&id];
    let urgent: u64 = live
        .iter()
        .filter(|(_, other)| other.arrival.caller == own.arrival.caller)
        .filter(|(other_id, other)| (other.deadline, **other_id) <= (own.deadline, id))
        .map(|(_, other)| other.left * other.rows())
        .sum();
    now + 2 * urgent + 1 + own.left * room as u64
}

/// Runs the trace, and returns each request with the tick at which it was done. Asserts that nobody is passed by for
/// longer than the policy says: until its deadline, [`STRETCH`] times its own work after its arrival, and from then on
/// as [`latest`] says.
fn simulate(arrivals: &[Arrival], room: usize) -> Vec<(Arrival, u64)> {
    let mut policy = Policy::default();
    let mut live: BTreeMap<u64, Running> = BTreeMap::new();
    let (mut done, mut tick, mut next) = (Vec::new(), 0, 0);
    while next < arrivals.len() || !live.is_empty() {
        while let Some(&arrival) = arrivals.get(next).filter(|arrival| arrival.tick <= tick) {
            let work = arrival.steps * arrival.rows as u64;
            let deadline = policy.deadline(Caller(arrival.caller), work);
            live.insert(next as u64, Running { arrival, left: arrival.steps, deadline, latest: None });
            next += 1;
        }
        // A request without work is due now: the clock.
        let clock = |policy: &Policy, caller: u32| policy.deadline(Caller(caller), 0);
        let passed: Vec<(u64, u64)> = live
            .iter()
            .filter(|(_, running)| running.latest.is_none())
            .filter_map(|(&id, running)| {
                let now = clock(&policy, running.arrival.caller);
                (now >= running.deadline).then(|| (id, latest(&live, id, now, room)))
            })
            .collect();
        for (id, latest) in passed {
            live.get_mut(&id).unwrap().latest = Some(latest);
        }
        let view: Vec<_> = live
            .iter()
            .map(|(&id, running)| some(id, running.arrival.caller, running.arrival.rows, running.deadline))
            .collect();
        tick += 1;
        for i in policy.select(&view, room) {
            live.get_mut(&view[i].id).unwrap().left -= 1;
        }
        for running in live.extract_if(.., |_, running| running.left == 0).map(|(_, running)| running) {
            let now = clock(&policy, running.arrival.caller);
            let latest = running.latest.unwrap_or(running.deadline + room as u64);
            assert!(now <= latest, "{:?} waited too long: {now}, not {latest}", running.arrival);
            done.push((running.arrival, tick));
        }
    }
    done
}

/// A generator that is the same everywhere, forever (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// 20,000 requests of 10, 20 or 50 steps at `load` of a room of 16 rows.
fn trace(seed: u64, load: f64, callers: u64) -> Vec<Arrival> {
    let mut random = Random(seed);
    // Mean work: 26.7 steps of 1.5 rows.
    let gap = 40.0 / (16.0 * load);
    let mut at = 0.0;
    (0..20_000)
        .map(|_| {
            let uniform = (random.below(1 << 53) as f64 + 1.0) / (1_u64 << 53) as f64;
            at -= uniform.ln() * gap;
            let (rows, steps) = (1 + random.below(2) as usize, [10, 20, 50][random.below(3) as usize]);
            Arrival { tick: at as u64, caller: random.below(callers) as u32, rows, steps }
        })
        .collect()
}

/// Mean of time over steps: 1 is a request that never waited.
fn slowdown(done: &[(Arrival, u64)], of: impl Fn(&Arrival) -> bool) -> f64 {
    let of: Vec<f64> = done
        .iter()
        .filter(|(arrival, _)| of(arrival))
        .map(|(arrival, end)| (end - arrival.tick) as f64 / arrival.steps as f64)
        .collect();
    of.iter().sum::<f64>() / of.len() as f64
}

#[test]
fn short_requests_are_not_stuck_behind_long_ones() {
    for seed in 0..4 {
        let done = simulate(&trace(seed, 0.9, 1), 16);
        assert_eq!(done.len(), 20_000);
        let (short, long) = (slowdown(&done, |a| a.steps == 10), slowdown(&done, |a| a.steps == 50));
        assert!(short < 2.0 && long < 2.5, "{seed}: {short} {long}");
    }
}

#[test]
fn a_flood_from_one_caller_leaves_the_others_as_they_were() {
    for seed in 0..4 {
        let calm = trace(seed, 0.4, 3);
        let before = slowdown(&simulate(&calm, 16), |_| true);
        let mut flooded = calm.clone();
        let end = calm.last().unwrap().tick;
        let flood = (0..end / 2).map(|i| Arrival { tick: 2 * i, caller: 9, rows: 2, steps: 20 });
        flooded.extend(flood.filter(|arrival| arrival.tick < 2000));
        flooded.sort_by_key(|arrival| arrival.tick);
        let done = simulate(&flooded, 16);
        let during = slowdown(&done, |a| a.caller < 3 && a.tick < 2000);
        assert!(during < before + 0.5, "{seed}: {before} {during}");
    }
}

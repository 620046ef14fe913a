//! The promises of the policy: as properties of single ticks, and over long seeded traces of arrivals.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn some(id: u64, caller: u32, rows: usize, deadline: u64) -> Candidate {
    Candidate { id, caller: Caller(caller), rows, deadline }
}

#[test]
fn all_take_part_while_all_fit() {
    let live = [some(3, 0, 2, 0), some(1, 1, 1, 5), some(2, 0, 1, 4)];
    assert_eq!(Policy::default().select(&live, 4), [1, 2, 0]);
}

#[test]
fn a_pair_is_not_split_and_a_single_row_takes_the_gap() {
    let live = [some(0, 0, 2, 0), some(1, 0, 2, 1), some(2, 0, 1, 9)];
    assert_eq!(Policy::default().select(&live, 3), [0, 2]);
}

#[test]
fn the_shorter_request_goes_first_and_the_longer_is_not_overtaken_for_ever() {
    let mut policy = Policy::default();
    let caller = Caller(0);
    let long = some(0, 0, 1, policy.deadline(caller, 10));
    let mut ticks = 0;
    // At every tick a new request of one row arrives, and there is room for one row.
    for id in 1.. {
        let short = some(id, 0, 1, policy.deadline(caller, 1));
        if policy.select(&[long, short], 1) == [0] {
            break;
        }
        ticks += 1;
    }
    assert_eq!(ticks, STRETCH * (10 - 1));
}

#[test]
fn callers_get_equal_rows_however_many_images_each_has() {
    let mut policy = Policy::default();
    let mut live: Vec<_> = (0..50).map(|id| some(id, 7, 2, 0)).collect();
    live.extend((50..54).map(|id| some(id, 8, 1, 0)));
    live.extend((54..80).map(|id| some(id, 9, 1, 0)));
    let mut rows = BTreeMap::<Caller, usize>::new();
    for _ in 0..300 {
        for i in policy.select(&live, 10) {
            *rows.entry(live[i].caller).or_default() += live[i].rows;
        }
    }
    // Ten rows among three; the one with four images can use them all.
    for (caller, rows) in rows {
        assert!((960..=1040).contains(&rows), "{caller:?}: {rows}");
    }
}

#[test]
fn what_one_caller_cannot_use_is_left_to_the_others() {
    let mut policy = Policy::default();
    let mut live = vec![some(0, 1, 1, 0)];
    live.extend((1..20).map(|id| some(id, 2, 1, 0)));
    for _ in 0..10 {
        let chosen = policy.select(&live, 8);
        assert_eq!(chosen.len(), 8);
        assert!(chosen.contains(&0));
    }
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    prop::collection::vec((0..4u32, 1..=2usize, 0..50u64), 0..80).prop_map(|all| {
        let candidate = |(id, (caller, rows, deadline))| some(id as u64, caller, rows, deadline);
        all.into_iter().enumerate().map(candidate).collect()
    })
}

proptest! {
    #[test]
    fn a_tick_is_bounded_unique_in_order_and_full(
        ticks in prop::collection::vec(candidates(), 1..6), room in 2..40usize,
    ) {
        let mut policy = Policy::default();
        for live in ticks {
            let chosen = policy.select(&live, room);
            let rows: usize = chosen.iter().map(|&i| live[i].rows).sum();
            prop_assert!(rows <= room);
            prop_assert!(chosen.is_sorted_by(|a, b| live[*a].id < live[*b].id));
            for (i, candidate) in live.iter().enumerate() {
                prop_assert!(chosen.contains(&i) || candidate.rows > room - rows);
            }
        }
    }

    #[test]
    fn the_most_urgent_of_a_lone_caller_takes_part(live in candidates(), room in 2..40usize) {
        let live: Vec<_> = live.into_iter().map(|one| Candidate { caller: Caller(0), ..one }).collect();
        let chosen = Policy::default().select(&live, room);
        if let Some(first) = (0..live.len()).min_by_key(|&i| (live[i].deadline, live[i].id)) {
            prop_assert!(chosen.contains(&first));
        }
    }
}

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
    /// The rows that its caller was served when it came, and may be served until it is done.
    latest: u64,
}

/// Runs the trace, and returns each request with the tick at which it was done. Asserts that nobody is passed by for
/// more work than the policy says: [`STRETCH`] times its own, what its caller had outstanding, and one full tick for
/// each of its steps, which come one after another whatever the room.
fn simulate(arrivals: &[Arrival], room: usize) -> Vec<(Arrival, u64)> {
    let mut policy = Policy::default();
    let mut live: BTreeMap<u64, Running> = BTreeMap::new();
    let mut served: BTreeMap<u32, u64> = BTreeMap::new();
    let (mut done, mut tick, mut next) = (Vec::new(), 0, 0);
    while next < arrivals.len() || !live.is_empty() {
        while let Some(&arrival) = arrivals.get(next).filter(|arrival| arrival.tick <= tick) {
            let work = arrival.steps * arrival.rows as u64;
            let deadline = policy.deadline(Caller(arrival.caller), work);
            let own = live.values().filter(|other| other.arrival.caller == arrival.caller);
            let outstanding: u64 = own.map(|other| other.left * other.arrival.rows as u64).sum();
            let now = served.get(&arrival.caller).copied().unwrap_or(0);
            let latest = now + (STRETCH + 1) * work + outstanding + (arrival.steps + 1) * room as u64;
            live.insert(next as u64, Running { arrival, left: arrival.steps, deadline, latest });
            next += 1;
        }
        let view: Vec<_> = live
            .iter()
            .map(|(&id, running)| some(id, running.arrival.caller, running.arrival.rows, running.deadline))
            .collect();
        tick += 1;
        for i in policy.select(&view, room) {
            let running = live.get_mut(&view[i].id).unwrap();
            running.left -= 1;
            *served.entry(running.arrival.caller).or_default() += running.arrival.rows as u64;
        }
        for running in live.extract_if(.., |_, running| running.left == 0).map(|(_, running)| running) {
            let now = served[&running.arrival.caller];
            // Later arrivals that are due earlier came while the clock was below its deadline: at most the
            // outstanding limit of them at once, which the traces keep far below this.
            assert!(now <= running.latest + 4000, "{:?} waited too long: {now}", running.arrival);
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

//! The promises of the policy, as properties of ticks and of what callers are served in many of them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

mod traces;

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
    // At every tick a new request of one row arrives, and there is room for one row.
    let passed_by = (1..1000).take_while(|&id| {
        let short = some(id, 0, 1, policy.deadline(caller, 1));
        policy.select(&[long, short], 1) != [0]
    });
    assert_eq!(passed_by.count() as u64, STRETCH * (10 - 1));
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
    assert!(spread(&rows) <= BOUND, "{rows:?}");
}

/// Deficit round robin's bound on how far apart two callers may be that always have work: a quantum and the largest cost.
const BOUND: usize = QUANTUM + 2;

/// How far apart the callers are.
fn spread(rows: &BTreeMap<Caller, usize>) -> usize {
    rows.values().max().unwrap_or(&0) - rows.values().min().unwrap_or(&0)
}

/// Images of callers that always have more of them than fit: the rows of each.
fn crowd(rows: &[Vec<usize>]) -> Vec<Candidate> {
    let images =
        rows.iter().enumerate().flat_map(|(caller, rows)| rows.iter().map(move |&rows| (caller, rows)));
    // Whatever is urgent, whoever's it is.
    let urgent = |id: usize| (id * 7919 % 101) as u64;
    images.enumerate().map(|(id, (caller, rows))| some(id as u64, caller as u32, rows, urgent(id))).collect()
}

/// Images of one caller: all of one row, all of two, or as it comes.
fn images() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(vec![1; 64]),
        Just(vec![2; 64]),
        prop::collection::vec(1..=2usize, 64),
        // One that is not like the others.
        (1..=2usize)
            .prop_map(|first| (0..64).map(|i| if i == 0 { first } else { 3 - first }).collect::<Vec<_>>()),
    ]
}

proptest! {
    /// At every moment, and not only in the long run.
    #[test]
    fn who_always_has_work_is_never_further_apart_than_the_bound(
        callers in prop::collection::vec(images(), 2..8), more in 0..40usize, ticks in 1..150,
    ) {
        // Room for a turn of everybody, with what was left of the one before.
        let room = (3 * callers.len() + more).min(64);
        let (mut policy, live, mut rows) = (Policy::default(), crowd(&callers), BTreeMap::new());
        (0..callers.len()).for_each(|caller| _ = rows.insert(Caller(caller as u32), 0));
        for tick in 0..ticks {
            for i in policy.select(&live, room) {
                *rows.get_mut(&live[i].caller).unwrap() += live[i].rows;
            }
            prop_assert!(spread(&rows) <= BOUND, "after tick {}: {:?}", tick, rows);
        }
    }

    /// Where not everybody has a turn in every tick, somebody may get gaps that are of use to nobody else. That is no
    /// loss to those who only have pairs: they are as close to each other, and no caller is further behind them.
    #[test]
    fn nobody_is_further_behind_than_the_bound_in_ticks_of_any_size(
        callers in prop::collection::vec(images(), 2..24), room in 2..24usize, ticks in 1..150,
    ) {
        let (mut policy, live, mut rows) = (Policy::default(), crowd(&callers), vec![0; callers.len()]);
        for tick in 0..ticks {
            for i in policy.select(&live, room) {
                rows[live[i].caller.0 as usize] += live[i].rows;
            }
            let least = *rows.iter().min().unwrap();
            for (rows, images) in rows.iter().zip(&callers).filter(|(_, images)| !images.contains(&1)) {
                prop_assert!(rows - least <= BOUND, "after tick {}: {} of {:?}", tick, rows, images);
            }
        }
    }
}

#[test]
fn a_turn_that_is_cut_short_goes_on() {
    // Three rows a tick, for one caller with single rows and one with pairs.
    let live = crowd(&[vec![1; 8], vec![2; 8]]);
    let (mut policy, mut rows) = (Policy::default(), [0; 2]);
    for _ in 0..400 {
        policy.select(&live, 3).into_iter().for_each(|i| rows[live[i].caller.0 as usize] += live[i].rows);
    }
    assert!(rows[0].abs_diff(rows[1]) <= BOUND && rows[0] + rows[1] == 1200, "{rows:?}");
}

#[test]
fn gaps_are_not_always_the_same_callers() {
    // Everybody's most urgent image is a pair, and there is one row beside one: forty callers, a turn in every thirty ticks.
    let live: Vec<_> =
        (0..160).map(|id| some(id, id as u32 / 4, if id % 4 == 0 { 2 } else { 1 }, id % 4)).collect();
    let (mut policy, mut rows) = (Policy::default(), vec![0; 40]);
    for _ in 0..1200 {
        policy.select(&live, 3).into_iter().for_each(|i| rows[live[i].caller.0 as usize] += live[i].rows);
    }
    let (least, most) = (rows.iter().min().unwrap(), rows.iter().max().unwrap());
    assert!(most - least <= BOUND && rows.iter().sum::<usize>() == 3600, "{rows:?}");
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

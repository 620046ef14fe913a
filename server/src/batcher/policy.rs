//! Who goes next? A pure function: no clock, no channel, no engine, so that its promises are tested as properties.
//!
//! The rows of a tick are bounded. While all live images fit, all take part in every tick. Beyond that they take
//! turns: whoever has waited longest goes first, and a newcomer queues behind those who already wait. So nobody
//! starves, a short image is not stuck behind a long one, and a flood of arrivals cannot stop what is running.
//! Admission by cost and fairness between callers are not here yet.

/// A live image, as far as the choice depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Order of arrival, unique.
    pub id: u64,
    /// Rows it takes: 1, or 2 for a guided pair, which is never split.
    pub rows: usize,
    /// The tick at which it last took part, or at which it arrived.
    pub since: u64,
}

/// Positions in `candidates` of those that take part in the next tick, in order of arrival. Their rows add up to at
/// most `max_rows`, and nobody else fits who has waited longer than one of them.
pub fn select(candidates: &[Candidate], max_rows: usize) -> Vec<usize> {
    let mut turn: Vec<usize> = (0..candidates.len()).collect();
    turn.sort_by_key(|&i| (candidates[i].since, candidates[i].id));
    let mut room = max_rows;
    // A pair that no longer fits lets single rows behind it pass, and is first at the next tick.
    turn.retain(|&i| {
        let fits = candidates[i].rows <= room;
        if fits {
            room -= candidates[i].rows;
        }
        fits
    });
    turn.sort_by_key(|&i| candidates[i].id);
    turn
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn some(id: u64, rows: usize, since: u64) -> Candidate {
        Candidate { id, rows, since }
    }

    #[test]
    fn all_take_part_while_all_fit() {
        let live = [some(3, 2, 0), some(1, 1, 5), some(2, 1, 4)];
        assert_eq!(select(&live, 4), [1, 2, 0]);
    }

    #[test]
    fn a_pair_is_not_split_and_comes_first_next_time() {
        let live = [some(0, 1, 0), some(1, 2, 0), some(2, 1, 0)];
        assert_eq!(select(&live, 2), [0, 2]);
        let next = [some(0, 1, 1), some(1, 2, 0), some(2, 1, 1)];
        assert_eq!(select(&next, 2), [1]);
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        prop::collection::vec((1..=2usize, 0..50u64), 0..80).prop_map(|all| {
            all.into_iter().enumerate().map(|(id, (rows, since))| some(id as u64, rows, since)).collect()
        })
    }

    proptest! {
        #[test]
        fn rows_are_bounded_and_nobody_is_chosen_twice(live in candidates(), max_rows in 2..40usize) {
            let chosen = select(&live, max_rows);
            prop_assert!(chosen.iter().map(|&i| live[i].rows).sum::<usize>() <= max_rows);
            let mut unique = chosen.clone();
            unique.sort_unstable();
            unique.dedup();
            prop_assert_eq!(unique.len(), chosen.len());
        }

        #[test]
        fn no_room_is_left_that_somebody_could_use(live in candidates(), max_rows in 2..40usize) {
            let chosen = select(&live, max_rows);
            let room = max_rows - chosen.iter().map(|&i| live[i].rows).sum::<usize>();
            for (i, candidate) in live.iter().enumerate() {
                prop_assert!(chosen.contains(&i) || candidate.rows > room);
            }
        }

        #[test]
        fn the_longest_waiting_is_always_served(live in candidates(), max_rows in 2..40usize) {
            if let Some(first) = (0..live.len()).min_by_key(|&i| (live[i].since, live[i].id)) {
                prop_assert!(select(&live, max_rows).contains(&first));
            }
        }

        /// Simulates arrivals at every tick. An image waits at most for the rows that were ahead of it, however many
        /// arrive after it: each tick serves at least `max_rows - 1` of them, or all.
        #[test]
        fn nobody_starves(
            arrivals in prop::collection::vec(prop::collection::vec((1..=2usize, 1..8u32), 0..6), 1..40),
            max_rows in 2..12usize,
        ) {
            // id -> (rows, steps left, since, ticks it may still wait)
            let mut live: BTreeMap<u64, (usize, u32, u64, usize)> = BTreeMap::new();
            let mut next_id = 0;
            let mut tick = 0;
            let bound = |rows_ahead: usize| rows_ahead / (max_rows - 1) + 1;
            while tick < arrivals.len() as u64 || !live.is_empty() {
                for &(rows, steps) in arrivals.get(tick as usize).into_iter().flatten() {
                    let ahead: usize = live.values().map(|l| l.0).sum();
                    live.insert(next_id, (rows, steps, tick, bound(ahead + rows)));
                    next_id += 1;
                }
                let view: Vec<_> = live.iter().map(|(&id, &(rows, _, since, _))| some(id, rows, since)).collect();
                let chosen: Vec<u64> = select(&view, max_rows).into_iter().map(|i| view[i].id).collect();
                let total: usize = live.values().map(|l| l.0).sum();
                for (&id, entry) in &mut live {
                    if chosen.contains(&id) {
                        (entry.1, entry.2, entry.3) = (entry.1 - 1, tick + 1, bound(total));
                    } else {
                        prop_assert!(entry.3 > 0, "image {} waits too long", id);
                        entry.3 -= 1;
                    }
                }
                live.retain(|_, entry| entry.1 > 0);
                tick += 1;
            }
        }
    }
}

//! Who goes next, as the queue decides it: a test takes the worker's place.

use std::collections::BTreeMap;

use super::*;
use crate::batcher::policy::STRETCH;
use crate::batcher::queue::Choice;

/// The queue of a model, without its worker.
fn queue_of(model: &Model, max_rows: usize) -> Queue {
    let config = WorkerConfig {
        model: "shoes".to_owned(),
        shape: model.card.shape(),
        out_channels: 1,
        max_rows,
        piece: max_rows,
        queue_limit: 100,
        max_backlog: Duration::from_secs(10),
        costs: model.served.costs.clone(),
        padded: false,
        pinned: None,
        scheduling: Scheduling::Continuous,
        study_quota: 4,
        insides: Vec::new(),
        insides_idle: Duration::from_secs(60),
    };
    Queue::new(&config, Arc::default(), 0)
}

#[test]
fn what_is_chosen_is_what_the_worker_has() {
    let (model, _) = model(8, Faults::default());
    let spec = spec(&model, Sampler::Ddim, 4, 2.0, 0);
    // Nobody has collected what arrived when the tick is chosen.
    let queue = queue_of(&model, 8);
    let _events = queue.submit(request(&model, &spec, &[1, 2]), &Arc::default()).unwrap();
    let mut live = BTreeMap::new();
    let Choice::Tick { ids, padded: None, room: 8 } = queue.choose(&mut live) else { panic!("it waits") };
    assert_eq!(ids, live.keys().copied().collect::<Vec<_>>());
    assert_eq!(ids.len(), 2);
}

/// Ticks of two rows where there were eight, of the same duration: all of it takes four times as long.
#[test]
fn what_is_told_counts_with_the_ticks_for_which_there_is_memory() {
    let (model, _) = model(8, Faults { delay: Duration::from_millis(2), ..Faults::default() });
    let spec = spec(&model, Sampler::Ddim, 10, 1.0, 0);
    let queue = queue_of(&model, 8);
    let asked = || request(&model, &spec, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let _events = queue.submit(asked(), &Arc::default()).unwrap();
    let told = || {
        let Request { caller, units, .. } = asked();
        [queue.expect(caller, &units), queue.standing().backlog].map(|time| time.as_secs_f64())
    };
    let full = told();
    assert_eq!(queue.shrink(4).0, 2);
    let small = told();
    for (full, small) in full.into_iter().zip(small) {
        assert!(small > 2.5 * full, "{small} s in small ticks, {full} s in full ones");
    }
    // In full ticks there would be time enough.
    let deadline = Some(Instant::now() + Duration::from_secs_f64(f64::midpoint(full[0], small[0])));
    let late = queue.submit(Request { deadline, ..asked() }, &Arc::default());
    assert!(matches!(late, Err(SubmitError::TooLate { .. })), "{late:?}");
    let Choice::Tick { ids, room, .. } = queue.choose(&mut BTreeMap::new()) else { panic!("it waits") };
    assert_eq!((ids.len(), room), (2, 2));
}

/// By shortest remaining work first, which is best in the mean, the long one would never be done.
#[test]
fn a_long_request_among_a_flood_of_short_ones_is_done_in_time() {
    const LONG: usize = 50;
    const SHORT: usize = 2;
    let (model, _) = model(2, Faults::default());
    let (queue, mut live) = (queue_of(&model, 2), BTreeMap::new());
    let submit = |steps| {
        let spec = spec(&model, Sampler::Ddim, steps, 1.0, 0);
        queue.submit(request(&model, &spec, &[1]), &Arc::default()).unwrap()
    };
    // Ids count from 0.
    let mut left = BTreeMap::from([(0, LONG)]);
    let mut events = vec![submit(LONG)];
    let (mut rows, mut began) = (0, None);
    // Its deadline, its own rows beside which there is one more each, and the short ones that were there.
    let bound = STRETCH as usize * LONG + 2 * LONG + 2 * SHORT;
    while left.contains_key(&0) {
        assert!(rows <= bound, "after {rows} rows it still has {} steps", left[&0]);
        // Two short ones are always there: as many as fit into a tick.
        while left.len() < 3 {
            left.insert(events.len() as u64, SHORT);
            events.push(submit(SHORT));
        }
        let Choice::Tick { ids, .. } = queue.choose(&mut live) else { panic!("it waits") };
        queue.ticked(&ids, ids.len(), Duration::from_micros(10));
        rows += ids.len();
        for id in ids {
            began = began.or((id == 0).then_some(rows));
            *left.get_mut(&id).unwrap() -= 1;
            if left[&id] == 0 {
                left.remove(&id);
                queue.remove(id);
            }
        }
    }
    // And it was overtaken, by about what it may be.
    assert!(began >= Some((STRETCH as usize - 1) * LONG), "it began after {began:?} rows");
}

//! Turns on a device: over simulated time, and of threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

use super::*;

/// Whether what threads do to each other in half a second is as it should be. A machine that stops in the midst of it is no
/// measure: one time of four is enough.
fn once_in_four(measure: impl Fn() -> f64, least: f64, most: f64) {
    let mut measured = Vec::new();
    for _ in 0..4 {
        let one = measure();
        if (least..most).contains(&one) {
            return;
        }
        measured.push(one);
    }
    panic!("{measured:?}, expected {least} to {most}");
}

#[test]
fn models_share_time_and_not_ticks() {
    let ratio = || {
        let (device, stop) = (Device::default(), AtomicBool::new(false));
        let times = [AtomicU64::new(0), AtomicU64::new(0)];
        let inside = AtomicBool::new(false);
        thread::scope(|scope| {
            for (time, length) in times.iter().zip([2, 10]) {
                let (device, stop, inside) = (&device, &stop, &inside);
                scope.spawn(move || {
                    let seat = device.join();
                    while !stop.load(SeqCst) {
                        let ((), elapsed) = seat.run(|| {
                            assert!(!inside.swap(true, SeqCst), "two ticks at once");
                            thread::sleep(Duration::from_millis(length));
                            inside.store(false, SeqCst);
                        });
                        time.fetch_add(elapsed.as_micros() as u64, SeqCst);
                    }
                });
            }
            thread::sleep(Duration::from_millis(600));
            stop.store(true, SeqCst);
        });
        let [short, long] = times.map(|time| time.load(SeqCst) as f64);
        short / long
    };
    // By ticks it would be a fifth.
    once_in_four(ratio, 0.6, 1.6);
}

#[test]
fn what_is_spare_has_a_tenth_beside_what_is_not_and_everything_without() {
    let ratio = || {
        let (device, stop) = (Device::default(), AtomicBool::new(false));
        let times = [AtomicU64::new(0), AtomicU64::new(0)];
        let (images, spare) = (device.join(), device.join());
        images.run(|| ());
        let sharers = thread::scope(|scope| {
            for (seat, is_spare) in [(images, false), (spare, true)] {
                let (stop, time) = (&stop, &times[usize::from(is_spare)]);
                scope.spawn(move || {
                    while !stop.load(SeqCst) {
                        let work = || thread::sleep(Duration::from_millis(2));
                        let had = if is_spare { seat.run_spare(0, work) } else { Some(seat.run(work)) };
                        let ((), elapsed) = had.expect("nobody calls it back");
                        time.fetch_add(elapsed.as_micros() as u64, SeqCst);
                    }
                });
            }
            thread::sleep(Duration::from_millis(600));
            let sharers = (device.sharers(0), device.spare_sharers(1));
            stop.store(true, SeqCst);
            sharers
        });
        // Known by how much the other slows each of them down.
        assert_eq!(sharers, (1.0 + 1.0 / 9.0, 10.0));
        let [images, spare] = times.map(|time| time.load(SeqCst) as f64);
        images / spare
    };
    once_in_four(ratio, 5.0, 15.0);
    // Nobody is there to give way to: it does not wait for ever.
    let device = Device::default();
    let (_idle, alone) = (device.join(), device.join());
    (0..5).for_each(|_| assert!(alone.run_spare(0, || ()).is_some()));
}

/// Members as they take turns over simulated time.
#[derive(Default)]
struct Turns {
    state: State,
    now: Duration,
}

impl Turns {
    fn join(&mut self, id: u64) {
        self.state.members.insert(id, Member::default());
    }

    /// The first of those that wait has the device for as long as its work takes.
    fn next(&mut self, length: impl Fn(u64) -> u64) -> u64 {
        let id = self.state.first(true).unwrap();
        let elapsed = Duration::from_millis(length(id));
        self.state.begin(id);
        self.state.end(id, elapsed);
        self.now += elapsed;
        id
    }
}

const MILLISECOND: Duration = Duration::from_millis(1);

/// One model draws images without end, in ticks of 10 ms; another is looked into, in units of 40 ms, and then asked for
/// an image of 20 ticks.
#[test]
fn what_a_model_is_looked_into_its_images_do_not_answer_for() {
    const IMAGES: u64 = 0;
    const LOOKS: u64 = 1;
    let mut turns = Turns::default();
    [IMAGES, LOOKS].into_iter().for_each(|id| turns.join(id));
    turns.state.enter(IMAGES, false);
    turns.state.enter(LOOKS, true);
    let mut looks = 0;
    while looks < 5 {
        let id = turns.next(|id| if id == IMAGES { 10 } else { 40 });
        looks += usize::from(id == LOOKS);
        turns.state.enter(id, id == LOOKS);
    }
    // Five looks, and what was left to the images before each but the first: nine times as much.
    assert!((1640..=1660).contains(&turns.now.as_millis()), "{:?}", turns.now);
    // The image comes: the look that waits stands back, and keeps what it owes.
    turns.state.member(LOOKS).calls = 1;
    assert!(turns.state.stands_back(LOOKS, 0) && !turns.state.stands_back(LOOKS, 1));
    let (began, owed) = (turns.now, turns.state.member(LOOKS).spare_used);
    for _ in 0..20 {
        turns.state.enter(LOOKS, false);
        while turns.next(|_| 10) == IMAGES {
            turns.state.enter(IMAGES, false);
        }
    }
    // Every other tick is its own, from the first.
    assert!(turns.now - began <= 410 * MILLISECOND, "{:?}", turns.now - began);
    assert!(turns.state.member(LOOKS).spare_used == owed && owed > turns.state.clock);
}

/// A single image between two looks, again and again: no way to more of the device than a tenth for the looks.
#[test]
fn images_between_looks_do_not_make_the_looks_cheaper() {
    const IMAGES: u64 = 0;
    const BOTH: u64 = 1;
    let mut turns = Turns::default();
    [IMAGES, BOTH].into_iter().for_each(|id| turns.join(id));
    turns.state.enter(IMAGES, false);
    let (mut is_look, mut had) = (true, [Duration::ZERO; 3]);
    turns.state.enter(BOTH, is_look);
    while turns.now < Duration::from_secs(60) {
        let before = turns.now;
        let id = turns.next(|id| if id == BOTH && is_look { 40 } else { 10 });
        had[if id == IMAGES { 0 } else { 1 + usize::from(is_look) }] += turns.now - before;
        is_look ^= id == BOTH;
        turns.state.enter(id, id == BOTH && is_look);
    }
    let [_, own, looks] = had.map(|time| time.as_secs_f64() / 60.0);
    assert!((0.09..=0.11).contains(&looks), "{looks} of the time for looks, {own} for images between them");
}

#[test]
fn spare_work_that_waits_stands_back_when_it_is_called() {
    let device = Device::default();
    let (busy, looked) = (device.join(), device.join());
    let id = looked.id();
    thread::scope(|scope| {
        busy.run(|| {
            let outcome = scope.spawn(move || looked.run_spare(0, || ()));
            while !device.lock().members.get(&id).is_some_and(|member| member.waiting) {
                thread::sleep(MILLISECOND);
            }
            device.call(id);
            // Not when the device is free again: now.
            assert_eq!(outcome.join().unwrap(), None);
        });
    });
    // One who left is called in vain; and who was called before it began to wait does not even begin.
    device.call(id);
    let looked = device.join();
    device.call(looked.id());
    assert!(looked.run_spare(0, || ()).is_none() && looked.run_spare(looked.calls(), || ()).is_some());
}

#[test]
fn who_was_idle_does_not_catch_up_and_who_leaves_holds_nobody_up() {
    let device = Device::default();
    let (busy, idle) = (device.join(), device.join());
    let used = |seat: &Seat<'_>| device.lock().members[&seat.id()].used;
    for _ in 0..4 {
        busy.run(|| thread::sleep(Duration::from_millis(2)));
    }
    let before_the_last = used(&busy);
    busy.run(|| thread::sleep(Duration::from_millis(2)));
    // Whoever is idle will share it once it works, and whoever works is not slowed down by who is idle.
    assert_eq!((device.sharers(busy.id()), device.sharers(idle.id())), (1.0, 2.0));
    idle.run(|| ());
    assert_eq!((device.sharers(busy.id()), device.sharers(idle.id())), (2.0, 2.0));
    // It begins where the latest tick began.
    assert!(used(&idle) >= before_the_last && before_the_last >= 8 * MILLISECOND, "{:?}", used(&idle));
    drop(busy);
    assert_eq!(device.sharers(idle.id()), 1.0);
    idle.rest();
    idle.run(|| ());
}

#[test]
fn a_panic_in_a_tick_frees_the_device() {
    let device = Device::default();
    let seat = device.join();
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| seat.run(|| panic!("asked to"))));
    assert!(panic.is_err());
    assert_eq!(seat.run(|| 7).0, 7);
}

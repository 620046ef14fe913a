//! Whose turn is it on the device? The models of one server share its cores or its card, and two networks that run at
//! once only slow each other down. So a tick has the device to itself, and between the models that wait the one that
//! had it for the shortest time goes first (start-time fair queueing, Goyal, Vin & Cheng 1996): equal shares of time,
//! not of ticks.
//!
//! Looks inside a model that draws no images have what images leave: their time counts ninefold, so that they have a tenth
//! of the device beside another model's images.
//!
//! A worker that has ended a tick is back with the next one in a moment. If its turn has come again the others wait
//! that moment: without it two models would alternate, whatever their ticks take.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the device stays free for a worker whose turn it is and that is between two ticks.
const MOMENT: Duration = Duration::from_micros(500);

/// What a second of spare work counts as.
const SPARE: u32 = 9;

/// A device that several workers share.
#[derive(Debug, Default)]
pub struct Device {
    state: Mutex<State>,
    free: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Since when somebody has it.
    busy: Option<Instant>,
    /// When the latest tick ended.
    freed: Option<Instant>,
    /// The time at which the latest tick began, on the clock that [`Member::used`] is on. Never goes back.
    clock: Duration,
    next: u64,
    members: BTreeMap<u64, Member>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Member {
    /// Device time it had, counted from where the clock was when it began to work.
    used: Duration,
    /// Whether it has work.
    active: bool,
    waiting: bool,
    /// Whether its latest work was spare.
    spare: bool,
}

/// A worker's membership; it ends with the worker.
#[derive(Debug)]
pub struct Seat<'a> {
    device: &'a Device,
    id: u64,
}

// === impl Device ===

impl Device {
    /// A worker joins.
    pub fn join(&self) -> Seat<'_> {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.members.insert(id, Member::default());
        Seat { device: self, id }
    }

    /// Models among which the device is shared while this member works, itself among them: the factor by which they slow it
    /// down. Of those whose work is spare each counts as a ninth.
    pub fn sharers(&self, member: u64) -> f64 {
        let [others, spare] = self.others(member);
        1.0 + others + spare / f64::from(SPARE)
    }

    /// The same for work of this member that is spare.
    pub fn spare_sharers(&self, member: u64) -> f64 {
        let [others, spare] = self.others(member);
        1.0 + others * f64::from(SPARE) + spare
    }

    /// Other members at work: those whose work is not spare, and those whose is.
    fn others(&self, member: u64) -> [f64; 2] {
        let state = self.lock();
        let others = state.members.iter().filter(|(id, other)| **id != member && other.active);
        let (spare, others): (Vec<_>, Vec<_>) = others.partition(|(_, other)| other.spare);
        [others.len() as f64, spare.len() as f64]
    }

    /// For how long it has been in one piece of work; none between two.
    pub fn busy_for(&self) -> Option<Duration> {
        self.lock().busy.map(|began| began.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// Whether it is the turn of the waiting member `id`; if not, it may be when something changes, or after a moment.
    fn is_turn_of(&self, id: u64) -> bool {
        let first = |waits: bool| {
            let able =
                self.members.iter().filter(|(_, member)| if waits { member.waiting } else { member.active });
            able.min_by_key(|(id, member)| (member.used, **id)).map(|(id, _)| *id)
        };
        let patience_is_over = || self.freed.is_none_or(|freed| freed.elapsed() >= MOMENT);
        self.busy.is_none() && (first(false) == Some(id) || patience_is_over() && first(true) == Some(id))
    }

    fn member(&mut self, id: u64) -> &mut Member {
        self.members.get_mut(&id).expect("a seat's member lives as long as the seat; this is a bug")
    }
}

// === impl Seat ===

impl Seat<'_> {
    /// Its number among the device's members.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The worker has nothing to do until it [uses](Self::run) the device again.
    pub fn rest(&self) {
        let mut state = self.device.lock();
        let was_active = std::mem::replace(&mut state.member(self.id).active, false);
        drop(state);
        if was_active {
            // Somebody may have been waiting for this one.
            self.device.free.notify_all();
        }
    }

    /// Runs `work` with the device to itself, when it is this worker's turn; and how long the work took.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> (T, Duration) {
        self.run_as(false, work)
    }

    /// The same for work that gives way to that of other models: its time counts ninefold.
    pub fn run_spare<T>(&self, work: impl FnOnce() -> T) -> (T, Duration) {
        self.run_as(true, work)
    }

    fn run_as<T>(&self, spare: bool, work: impl FnOnce() -> T) -> (T, Duration) {
        let mut state = self.device.lock();
        state.member(self.id).spare = spare;
        if !state.member(self.id).active {
            // Idle time is no credit.
            let clock = state.clock;
            let member = state.member(self.id);
            member.used = member.used.max(clock);
            member.active = true;
        }
        state.member(self.id).waiting = true;
        while !state.is_turn_of(self.id) {
            state = if state.busy.is_some() {
                self.device.free.wait(state).unwrap_or_else(PoisonError::into_inner)
            } else {
                self.device.free.wait_timeout(state, MOMENT).unwrap_or_else(PoisonError::into_inner).0
            };
        }
        state.member(self.id).waiting = false;
        state.clock = state.clock.max(state.member(self.id).used);
        let began = Instant::now();
        state.busy = Some(began);
        drop(state);
        // Given free whatever becomes of the work: the engine may panic.
        let turn = Turn { seat: self, began, price: if spare { SPARE } else { 1 } };
        let result = work();
        (result, turn.began.elapsed())
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.device.lock().members.remove(&self.id);
        self.device.free.notify_all();
    }
}

/// The device in use.
struct Turn<'a> {
    seat: &'a Seat<'a>,
    began: Instant,
    /// What its time counts as.
    price: u32,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let elapsed = self.began.elapsed();
        let mut state = self.seat.device.lock();
        state.member(self.seat.id).used += elapsed * self.price;
        state.busy = None;
        state.freed = Some(Instant::now());
        drop(state);
        self.seat.device.free.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
    use std::thread;

    use super::*;

    #[test]
    fn models_share_time_and_not_ticks() {
        let (device, stop) = (Device::default(), AtomicBool::new(false));
        let ticks = [AtomicU64::new(0), AtomicU64::new(0)];
        let inside = AtomicBool::new(false);
        thread::scope(|scope| {
            for (ticks, length) in ticks.iter().zip([2, 10]) {
                let (device, stop, inside) = (&device, &stop, &inside);
                scope.spawn(move || {
                    let seat = device.join();
                    while !stop.load(SeqCst) {
                        seat.run(|| {
                            assert!(!inside.swap(true, SeqCst), "two ticks at once");
                            thread::sleep(Duration::from_millis(length));
                            inside.store(false, SeqCst);
                        });
                        ticks.fetch_add(1, SeqCst);
                    }
                });
            }
            thread::sleep(Duration::from_millis(600));
            stop.store(true, SeqCst);
        });
        let [short, long] = ticks.map(|ticks| ticks.load(SeqCst) as f64);
        assert!((3.0..8.0).contains(&(short / long)), "{short} {long}");
    }

    #[test]
    fn what_is_spare_has_a_tenth_beside_what_is_not_and_everything_without() {
        let (device, stop) = (Device::default(), AtomicBool::new(false));
        let counts = [AtomicU64::new(0), AtomicU64::new(0)];
        let (images, spare) = (device.join(), device.join());
        images.run(|| ());
        thread::scope(|scope| {
            for (seat, is_spare) in [(images, false), (spare, true)] {
                let (stop, count) = (&stop, &counts[usize::from(is_spare)]);
                scope.spawn(move || {
                    while !stop.load(SeqCst) {
                        let work = || thread::sleep(Duration::from_millis(2));
                        let _ = if is_spare { seat.run_spare(work) } else { seat.run(work) };
                        count.fetch_add(1, SeqCst);
                    }
                });
            }
            thread::sleep(Duration::from_millis(600));
            // Known by how much the other slows each of them down.
            assert_eq!((device.sharers(0), device.spare_sharers(1)), (1.0 + 1.0 / 9.0, 10.0));
            stop.store(true, SeqCst);
        });
        let [images, spare] = counts.map(|count| count.load(SeqCst) as f64);
        assert!((5.0..15.0).contains(&(images / spare)), "{images} {spare}");
        let alone = device.join();
        let began = Instant::now();
        (0..5).for_each(|_| _ = alone.run_spare(|| thread::sleep(Duration::from_millis(2))));
        assert!(began.elapsed() < Duration::from_millis(200), "nobody is there to give way to");
    }

    #[test]
    fn who_was_idle_does_not_catch_up_and_who_leaves_holds_nobody_up() {
        let device = Device::default();
        let (busy, idle) = (device.join(), device.join());
        for _ in 0..5 {
            busy.run(|| thread::sleep(Duration::from_millis(2)));
        }
        // Whoever is idle will share it once it works, and whoever works is not slowed down by who is idle.
        assert_eq!((device.sharers(busy.id()), device.sharers(idle.id())), (1.0, 2.0));
        idle.run(|| ());
        assert_eq!((device.sharers(busy.id()), device.sharers(idle.id())), (2.0, 2.0));
        let members = device.lock().members.clone();
        assert!(members[&1].used + Duration::from_millis(4) >= members[&0].used, "{members:?}");
        drop(busy);
        assert_eq!(device.sharers(idle.id()), 1.0);
        idle.rest();
        idle.run(|| ());
    }

    #[test]
    fn a_panic_in_a_tick_frees_the_device() {
        let device = Device::default();
        let seat = device.join();
        let panic =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| seat.run(|| panic!("asked to"))));
        assert!(panic.is_err());
        assert_eq!(seat.run(|| 7).0, 7);
    }
}

//! Whose turn is it on the device? The models of one server share its cores or its card, and two networks that run at
//! once only slow each other down. So a tick has the device to itself, and between the models that wait the one that
//! had it for the shortest time goes first (start-time fair queueing, Goyal, Vin & Cheng 1996): equal shares of time,
//! not of ticks.
//!
//! Looks inside a model that draws no images have what images leave: their time counts ninefold, so that they have a tenth
//! of the device beside another model's images. That is an account of its own, which the model's images do not answer for;
//! and when such come while a look waits for the device, it stands back for them.
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
    /// The same of its spare work, at its price.
    spare_used: Duration,
    /// Whether it has work.
    active: bool,
    waiting: bool,
    /// Whether its latest work was spare.
    spare: bool,
    /// How often work came that is not spare.
    calls: u64,
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

    /// Work that is not spare came for this member: what it waits with, if that is spare, stands back.
    pub fn call(&self, member: u64) {
        let mut state = self.lock();
        // A queue may outlive its worker.
        let Some(member) = state.members.get_mut(&member) else { return };
        member.calls += 1;
        let stands_back = member.waiting && member.spare;
        drop(state);
        if stands_back {
            self.free.notify_all();
        }
    }

    /// Until something changes, or for a moment.
    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if state.busy.is_some() {
            self.free.wait(state).unwrap_or_else(PoisonError::into_inner)
        } else {
            self.free.wait_timeout(state, MOMENT).unwrap_or_else(PoisonError::into_inner).0
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Member ===

impl Member {
    /// What its present work is charged to.
    fn account(&self) -> Duration {
        if self.spare { self.spare_used } else { self.used }
    }

    fn account_mut(&mut self) -> &mut Duration {
        if self.spare { &mut self.spare_used } else { &mut self.used }
    }
}

// === impl State ===

impl State {
    /// The member waits for the device with work of this kind.
    fn enter(&mut self, id: u64, spare: bool) {
        let clock = self.clock;
        let member = self.member(id);
        if !member.active || member.spare != spare {
            (member.active, member.spare) = (true, spare);
            // Idle time is no credit.
            let account = member.account_mut();
            *account = clock.max(*account);
        }
        member.waiting = true;
    }

    /// It has the device.
    fn begin(&mut self, id: u64) {
        let member = self.member(id);
        member.waiting = false;
        let account = member.account();
        self.clock = self.clock.max(account);
    }

    /// It had the device for so long.
    fn end(&mut self, id: u64, elapsed: Duration) {
        let member = self.member(id);
        let price = if member.spare { SPARE } else { 1 };
        *member.account_mut() += elapsed * price;
    }

    /// Whether the member that waits with spare work has been called since it had heard so many calls; then it waits no
    /// longer.
    fn stands_back(&mut self, id: u64, heard: u64) -> bool {
        let member = self.member(id);
        member.waiting = member.calls == heard;
        !member.waiting
    }

    /// Of the members that wait, or of all that have work, the one that had the device for the shortest time.
    fn first(&self, waits: bool) -> Option<u64> {
        let able =
            self.members.iter().filter(|(_, member)| if waits { member.waiting } else { member.active });
        able.min_by_key(|(id, member)| (member.account(), **id)).map(|(id, _)| *id)
    }

    /// Whether it is the turn of the waiting member `id`; if not, it may be when something changes, or after a moment.
    fn is_turn_of(&self, id: u64) -> bool {
        let patience_is_over = || self.freed.is_none_or(|freed| freed.elapsed() >= MOMENT);
        self.busy.is_none()
            && (self.first(false) == Some(id) || patience_is_over() && self.first(true) == Some(id))
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
        let mut state = self.device.lock();
        state.enter(self.id, false);
        while !state.is_turn_of(self.id) {
            state = self.device.wait(state);
        }
        self.have(state, work)
    }

    /// How often it has been [called](Device::call): to be asked before it is decided that there is only spare work.
    pub fn calls(&self) -> u64 {
        self.device.lock().member(self.id).calls
    }

    /// The same for work that gives way to that of other models: its time counts ninefold. `None`: there are more calls by
    /// now than were heard of, so that it gives way to its own model's as well.
    pub fn run_spare<T>(&self, heard: u64, work: impl FnOnce() -> T) -> Option<(T, Duration)> {
        let mut state = self.device.lock();
        state.enter(self.id, true);
        loop {
            if state.stands_back(self.id, heard) {
                return None;
            }
            if state.is_turn_of(self.id) {
                return Some(self.have(state, work));
            }
            state = self.device.wait(state);
        }
    }

    fn have<T>(&self, mut state: MutexGuard<'_, State>, work: impl FnOnce() -> T) -> (T, Duration) {
        state.begin(self.id);
        let began = Instant::now();
        state.busy = Some(began);
        drop(state);
        // Given free whatever becomes of the work: the engine may panic.
        let turn = Turn { seat: self, began };
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
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let elapsed = self.began.elapsed();
        let mut state = self.seat.device.lock();
        state.end(self.seat.id, elapsed);
        state.busy = None;
        state.freed = Some(Instant::now());
        drop(state);
        self.seat.device.free.notify_all();
    }
}

#[cfg(test)]
mod tests;

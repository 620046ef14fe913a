//! What is admitted and not finished, behind one lock: handlers put requests in, the worker's thread takes its turns
//! out. Admission, deadlines and the choice of a tick are decided here, by the pure parts beside this file; the lock is
//! held for as long as that takes, never while the network runs. What studies ask of it is in `queue/lane.rs`,
//! what becomes of ticks without memory in `queue/cap.rs`.

mod cap;
mod lane;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::admission::{Ask, Ends, Ledger, Load, Served, Terms, whole_seconds};
use super::baseline::{Cohort, Member, Pick};
use super::costs::TickCosts;
use super::device::Device;
use super::eta::{Ahead, Chain, Course, Demand, TickSize};
use super::job::Job;
use super::policy::{Candidate, Policy};
use super::studies::{Studies, Turn};
use super::study::StudyUnit;
use super::{Caller, Event, Request, SampleError, Scheduling, SubmitError, WorkerConfig};
use crate::sampler::Unit;
use cap::Cap;

/// The queue of one model.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    began: Instant,
    device: Arc<Device>,
    /// The worker's number there.
    member: u64,
    rules: Rules,
}

/// What does not change.
#[derive(Debug, Clone)]
struct Rules {
    max_images: usize,
    study_quota: usize,
    max_backlog: Duration,
    /// Rows of a full tick.
    room: usize,
    /// The bucket to which every tick is padded while a request insists on it.
    pinned: Option<usize>,
    /// Buckets that every other tick is padded to; empty where every size is as good.
    padded: Vec<usize>,
}

#[derive(Debug)]
struct State {
    next_id: u64,
    next_request: u64,
    arrivals: Vec<Job>,
    entries: BTreeMap<u64, Entry>,
    studies: Studies,
    /// Units that wait for their turn, by their study.
    units: BTreeMap<u64, StudyUnit>,
    turns: Turns,
    ledger: Ledger,
    costs: TickCosts,
    /// What bounds ticks, where the device had no memory for one.
    cap: Option<Cap>,
    end: End,
}

#[derive(Debug)]
enum Turns {
    Continuous(Policy),
    Baseline(Cohort),
}

/// Whether, and how, it is about to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    No,
    /// When the last job is done.
    WhenDone,
    /// Now.
    Now,
}

/// A live job as the scheduling sees it.
#[derive(Debug)]
struct Entry {
    candidate: Candidate,
    request: u64,
    /// Ticks it still needs.
    left: usize,
    done: usize,
    arrived: Duration,
    pinned: bool,
}

/// What the worker shall do.
#[derive(Debug)]
pub enum Choice {
    /// One call of the network.
    Tick {
        /// The jobs, ascending.
        ids: Vec<u64>,
        /// Rows to fill up to.
        padded: Option<usize>,
        /// Rows that it might have had.
        room: usize,
    },
    /// One call for the study of this number.
    Study(u64, StudyUnit),
    /// Nothing yet.
    Wait(Duration),
}

/// How things stand, for people and for clients that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Images admitted and not finished.
    pub images: usize,
    /// Of them, those that have not taken part in a tick.
    pub waiting: usize,
    /// Rows that the network is still to be called on for all of it.
    pub rows: u64,
    /// Time that all of it still takes.
    pub backlog: Duration,
    /// Studies admitted and not ended.
    pub studies: usize,
}

// === impl Queue ===

impl Queue {
    /// An empty queue, of the worker that is this member of the device.
    pub fn new(config: &WorkerConfig, device: Arc<Device>, member: u64) -> Self {
        let room = match config.scheduling {
            Scheduling::Continuous => config.costs.target(config.max_rows),
            Scheduling::Request { .. } | Scheduling::Serial => config.max_rows,
        };
        let turns = match config.scheduling {
            Scheduling::Continuous => Turns::Continuous(Policy::default()),
            Scheduling::Request { delay } => Turns::Baseline(Cohort::batching(delay)),
            Scheduling::Serial => Turns::Baseline(Cohort::serial()),
        };
        let buckets = || config.costs.buckets().map(|(rows, _)| rows);
        // Until one was measured: a graph of the insides does about twice what the network does.
        let unit = 2 * config.costs.tick(1);
        Self {
            state: Mutex::new(State {
                next_id: 0,
                next_request: 0,
                arrivals: Vec::new(),
                entries: BTreeMap::new(),
                studies: Studies::new(config.study_quota, unit),
                units: BTreeMap::new(),
                turns,
                ledger: Ledger::default(),
                costs: config.costs.clone(),
                cap: None,
                end: End::No,
            }),
            wake: Condvar::new(),
            began: Instant::now(),
            device,
            member,
            rules: Rules {
                max_images: config.queue_limit,
                study_quota: config.study_quota,
                max_backlog: config.max_backlog,
                room,
                pinned: config.pinned,
                padded: if config.padded { buckets().collect() } else { Vec::new() },
            },
        }
    }

    /// Admits a request, whole or not at all. The receiver is told of every one of its units; also the time until
    /// the last of them is done, as things stand.
    pub(super) fn submit(
        &self,
        request: Request,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<(mpsc::UnboundedReceiver<Result<Event, SampleError>>, Duration), SubmitError> {
        let Request { caller, fingerprint, id, deadline, reproducible, units } = request;
        let demand = Demand::of(caller, &units);
        let (now, admitted) = (self.began.elapsed(), Instant::now());
        let mut state = self.lock();
        if state.end != End::No {
            return Err(SubmitError::Ended);
        }
        let size = self.tick_size(&state, reproducible);
        let eta = self.eta(&state, &demand, size);
        if let Some(left) = deadline.map(|deadline| deadline.saturating_duration_since(admitted))
            && eta > left
        {
            let alone = demand.alone(&state.costs, size);
            return Err(SubmitError::TooLate {
                needs: eta,
                alone,
                retry_after: whole_seconds(eta.saturating_sub(left)),
            });
        }
        let row = state.costs.row(size.room) * self.factor(&state);
        let limit = Load {
            work: (self.rules.max_backlog.as_secs_f64() / row) as u64,
            images: self.rules.max_images as u64,
        };
        let factor = self.factor(&state);
        let State { ledger, entries, costs, .. } = &mut *state;
        let ends = |whose, images| {
            let Served { work, seconds } = served(entries.values(), (whose, images), costs, size);
            Served { work, seconds: seconds * factor }
        };
        let load = Load { work: demand.work, images: units.len() as u64 };
        let terms = Terms { now, limit, row, ends: Ends(&ends) };
        if let Err(retry_after) = ledger.ask(Ask { caller, fingerprint, id, load }, terms) {
            return Err(SubmitError::Overloaded { retry_after });
        }
        let due = state.deadline(&demand);
        let (reply, receiver) = mpsc::unbounded_channel();
        let request = state.next_request;
        state.next_request += 1;
        for (position, unit) in units.into_iter().enumerate() {
            let id = state.next_id;
            state.next_id += 1;
            let candidate = Candidate { id, caller, rows: unit.rows(), deadline: due };
            let left = unit.evaluations_left();
            let pinned = reproducible && self.rules.pinned.is_some();
            state.entries.insert(id, Entry { candidate, request, left, done: 0, arrived: now, pinned });
            let (reply, cancelled) = (reply.clone(), Arc::clone(cancelled));
            state.arrivals.push(Job { id, unit, position, reply, cancelled, admitted, deadline });
        }
        drop(state);
        self.wake.notify_one();
        self.device.call(self.member);
        Ok((receiver, eta))
    }

    /// The time that these units would take from now, as things stand.
    pub fn expect(&self, caller: Caller, units: &[Unit]) -> Duration {
        let state = self.lock();
        self.eta(&state, &Demand::of(caller, units), self.tick_size(&state, false))
    }

    /// How things stand.
    pub fn standing(&self) -> Standing {
        let state = self.lock();
        Standing {
            images: state.entries.len(),
            waiting: state.entries.values().filter(|entry| entry.done == 0).count(),
            rows: state.ledger.outstanding(),
            backlog: state
                .costs
                .work(state.ledger.outstanding(), self.tick_size(&state, false).room)
                .mul_f64(self.factor(&state)),
            studies: state.studies.len(),
        }
    }

    /// For how long its device has been in one piece of work, whoever's; none between two.
    pub fn device_busy_for(&self) -> Option<Duration> {
        self.device.busy_for()
    }

    /// Rows of a full tick.
    pub fn room(&self) -> usize {
        self.rules.room
    }

    /// Moves what has arrived into `live`. Waits while there is nothing else to do, or for `pause` at most. `false`:
    /// time to end.
    pub(super) fn collect(
        &self,
        live: &mut impl Extend<(u64, Job)>,
        idle: bool,
        pause: Option<Duration>,
    ) -> bool {
        let mut state = self.lock();
        loop {
            match state.end {
                End::Now => return false,
                End::WhenDone if idle && state.arrivals.is_empty() && state.units.is_empty() => return false,
                End::No | End::WhenDone => {}
            }
            if !(state.arrivals.is_empty() && state.units.is_empty() && (idle || pause.is_some())) {
                live.extend(state.arrivals.drain(..).map(|job| (job.id, job)));
                return true;
            }
            match pause {
                Some(pause) => {
                    state = self.wake.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
                    live.extend(state.arrivals.drain(..).map(|job| (job.id, job)));
                    return state.end != End::Now;
                }
                None => state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Chooses the next tick. Whatever arrived in the meantime goes into `live` too: what is chosen from is what the
    /// worker has.
    pub(super) fn choose(&self, live: &mut impl Extend<(u64, Job)>) -> Choice {
        let mut state = self.lock();
        live.extend(state.arrivals.drain(..).map(|job| (job.id, job)));
        let pinned = self.rules.pinned.filter(|_| state.is_pinned());
        let room = pinned.unwrap_or_else(|| self.room_within(&state));
        let State { turns, entries, studies, units, .. } = &mut *state;
        if let Turn::Study(id) = studies.turn(!entries.is_empty())
            && let Some(unit) = units.remove(&id)
        {
            return Choice::Study(id, unit);
        }
        let chosen = match turns {
            Turns::Continuous(policy) => {
                let candidates: Vec<_> = entries.values().map(|entry| entry.candidate).collect();
                policy.select(&candidates, room)
            }
            Turns::Baseline(cohort) => {
                let member = |entry: &Entry| Member {
                    request: entry.request,
                    rows: entry.candidate.rows,
                    done: entry.done,
                    arrived: entry.arrived,
                };
                let members: Vec<_> = entries.values().map(member).collect();
                let now = self.began.elapsed();
                match cohort.select(&members, room, now) {
                    Pick::Run(chosen) => chosen,
                    Pick::WaitUntil(due) => {
                        let unit = studies.unit_turn().and_then(|id| units.remove_entry(&id));
                        let wait = || Choice::Wait(due.saturating_sub(now));
                        return unit.map_or_else(wait, |(id, unit)| Choice::Study(id, unit));
                    }
                }
            }
        };
        let (mut ids, mut rows, mut chosen) =
            (Vec::with_capacity(chosen.len()), 0, chosen.into_iter().peekable());
        for (i, entry) in entries.values().enumerate() {
            if chosen.next_if_eq(&i).is_some() {
                ids.push(entry.candidate.id);
                rows += entry.candidate.rows;
            }
        }
        let padded = pinned.or_else(|| self.rules.padded.iter().copied().find(|&bucket| bucket >= rows));
        Choice::Tick { ids, padded, room }
    }

    /// The jobs `ids` took part in a tick of `rows` rows, padding included, that took `elapsed`.
    pub(super) fn ticked(&self, ids: &[u64], rows: usize, elapsed: Duration) {
        let mut state = self.lock();
        state.costs.observe(rows, elapsed);
        let State { entries, ledger, .. } = &mut *state;
        for id in ids {
            let Some(entry) = entries.get_mut(id) else { continue };
            entry.done += 1;
            if entry.left > 0 {
                entry.left -= 1;
                let done = Load { work: entry.candidate.rows as u64, images: 0 };
                ledger.give_back(entry.candidate.caller, done);
            }
        }
    }

    /// The job has ended, in whatever way.
    pub(super) fn remove(&self, id: u64) {
        let mut state = self.lock();
        if let Some(entry) = state.entries.remove(&id) {
            let rest = Load { work: (entry.left * entry.candidate.rows) as u64, images: 1 };
            state.ledger.give_back(entry.candidate.caller, rest);
        }
    }

    /// Ends the worker after the tick it is in; what has arrived is left to it.
    pub fn stop(&self) {
        self.end(End::Now);
    }

    /// Ends the worker when its last job is done; nothing more is admitted.
    pub fn retire(&self) {
        self.end(End::WhenDone);
    }

    fn end(&self, end: End) {
        let mut state = self.lock();
        if state.end != End::Now {
            state.end = end;
        }
        drop(state);
        self.wake.notify_all();
        self.device.call(self.member);
    }

    /// Jobs that arrived and were not collected.
    pub(super) fn take_arrivals(&self) -> Vec<Job> {
        std::mem::take(&mut self.lock().arrivals)
    }

    /// Time until all of it is done, if nothing else arrived.
    fn eta(&self, state: &State, demand: &Demand, size: TickSize) -> Duration {
        let due = state.deadline(demand);
        let ahead = state.entries.values().map(|Entry { candidate, left, .. }| Ahead {
            caller: candidate.caller,
            work: (left * candidate.rows) as u64,
            goes_first: candidate.deadline <= due,
        });
        let images = demand.eta(ahead, &state.costs, size);
        let ticks = (images.as_secs_f64() / self.tick(state).max(1e-9)).max(demand.longest as f64);
        let studies = Duration::try_from_secs_f64(state.studies.delay(ticks)).unwrap_or(Duration::MAX);
        let all = images.saturating_add(studies).as_secs_f64() * self.device.sharers(self.member);
        Duration::try_from_secs_f64(all).unwrap_or(Duration::MAX)
    }

    /// By what factor others slow this model's images down in the long run: models on the same device, and studies.
    fn factor(&self, state: &State) -> f64 {
        self.device.sharers(self.member) * state.studies.slowdown(self.tick(state))
    }

    /// Seconds of a full tick.
    fn tick(&self, state: &State) -> f64 {
        state.costs.tick(self.room_within(state)).as_secs_f64()
    }

    /// Rows of a full tick, as many as the device has memory for.
    fn room_within(&self, state: &State) -> usize {
        state.cap.map_or(self.rules.room, |cap| cap.bound(self.rules.room, Instant::now()))
    }

    /// How large ticks are, once a request has joined that insists on its bucket, or does not.
    fn tick_size(&self, state: &State, reproducible: bool) -> TickSize {
        match self.rules.pinned.filter(|_| state.is_pinned() || reproducible) {
            Some(rows) => TickSize { room: rows, least: rows },
            None => TickSize { room: self.room_within(state), least: 1 },
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics half-way through a change that matters.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// Whether a live request insists on its bucket. It holds all ticks to it: a bucket is the same for everybody in it.
    fn is_pinned(&self) -> bool {
        self.entries.values().any(|entry| entry.pinned)
    }

    /// Its place among its caller's.
    fn deadline(&self, demand: &Demand) -> u64 {
        match &self.turns {
            Turns::Continuous(policy) => policy.deadline(demand.caller, demand.work),
            // First come, first served.
            Turns::Baseline(_) => u64::MAX,
        }
    }
}

/// What is done until so many images have ended, of one caller or of all, in the order in which they go; the engine to itself.
fn served<'a>(
    entries: impl Iterator<Item = &'a Entry>,
    (whose, images): (Option<Caller>, u64),
    costs: &TickCosts,
    size: TickSize,
) -> Served {
    let mut theirs: Vec<&Entry> =
        entries.filter(|entry| whose.is_none_or(|caller| entry.candidate.caller == caller)).collect();
    theirs.sort_by_key(|entry| (entry.candidate.deadline, entry.candidate.id));
    // Those without a tick to come end now.
    let mut ended = theirs.iter().filter(|entry| entry.left == 0).count() as u64;
    let units = theirs.iter().map(|entry| Chain { rows: entry.candidate.rows, ticks: entry.left });
    let (mut course, mut served) = (Course::new(units, size.room), Served::default());
    while ended < images
        && let Some(phase) = course.next()
    {
        ended += phase.ended as u64;
        served.work += (phase.rows * phase.ticks) as u64;
        let tick = costs.tick(phase.rows.max(size.least)).as_secs_f64();
        served.seconds += tick * phase.ticks as f64;
    }
    served
}

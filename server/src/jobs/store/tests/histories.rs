//! Histories: whatever a few servers do to a few jobs in whatever order, leases, pieces and results are as they should be.
//! A model of a few lines says what that is.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// Something that happens. Leases are numbered as they were given out.
#[derive(Debug, Clone)]
enum Deed {
    Order,
    Lease,
    Renew(usize),
    Put(usize),
    /// A piece with another number than the next.
    Misput(usize),
    Finish(usize),
    Fail(usize),
    Release(usize),
    Cancel(usize),
    /// Less than a lease.
    Wait,
    /// More than one.
    Die,
}

/// A job, as it should be.
#[derive(Debug, Clone)]
struct Known {
    number: i64,
    state: State,
    token: i64,
    /// When the lease ends, by the clock of the history.
    until: u64,
    pieces: Vec<Vec<u8>>,
    /// Leases since the last piece.
    fruitless: i64,
    result: Option<Vec<u8>>,
}

/// A lease that was given out.
#[derive(Debug, Clone, Copy)]
struct Given {
    job: usize,
    token: i64,
}

#[derive(Default)]
struct History {
    clock: u64,
    jobs: Vec<Known>,
    given: Vec<Given>,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let which = || 0..6_usize;
    let deed = prop_oneof![
        2 => Just(Deed::Order),
        5 => Just(Deed::Lease),
        2 => which().prop_map(Deed::Renew),
        6 => which().prop_map(Deed::Put),
        1 => which().prop_map(Deed::Misput),
        2 => which().prop_map(Deed::Finish),
        1 => which().prop_map(Deed::Fail),
        2 => which().prop_map(Deed::Release),
        1 => which().prop_map(Deed::Cancel),
        2 => Just(Deed::Wait),
        3 => Just(Deed::Die),
    ];
    proptest::collection::vec(deed, 1..40)
}

// === impl History ===

impl History {
    /// The lease that a number means: one of the newest.
    fn which(&self, which: usize) -> Option<Given> {
        self.given.len().checked_sub(which + 1).map(|place| self.given[place])
    }

    fn holds(&self, given: Given) -> bool {
        let job = &self.jobs[given.job];
        job.state == State::Running && job.token == given.token
    }

    /// Whether the job is in that state since this lease.
    fn stands(&self, given: Given, state: State) -> bool {
        let job = &self.jobs[given.job];
        job.state == state && job.token == given.token
    }

    async fn does(&mut self, store: &Store, deed: &Deed) {
        match *deed {
            Deed::Order => {
                let job = submit(store, "me", &self.jobs.len().to_string()).await;
                let (state, pieces) = (State::Queued, Vec::new());
                let number = job.number;
                self.jobs.push(Known {
                    number,
                    state,
                    token: 0,
                    until: 0,
                    pieces,
                    fruitless: 0,
                    result: None,
                });
            }
            Deed::Lease => self.lease(store).await,
            Deed::Renew(which) => {
                let Some(given) = self.which(which) else { return };
                let is_ours = store.renew(self.jobs[given.job].number, given.token, LEASE).await.unwrap();
                assert_eq!(is_ours, self.holds(given));
                if is_ours {
                    self.jobs[given.job].until = self.clock + LEASE.as_secs();
                }
            }
            Deed::Put(which) | Deed::Misput(which) => {
                let Some(given) = self.which(which) else { return };
                let next = self.jobs[given.job].pieces.len();
                let is_next = matches!(deed, Deed::Put(_));
                let number = if is_next { next } else { next + 1 };
                let bytes = format!("{} by {}", number, given.token).into_bytes();
                let lease = (self.jobs[given.job].number, given.token);
                let is_ours = store.put(lease, number as i64, &bytes, (0, 0)).await.unwrap();
                assert_eq!(is_ours, self.holds(given) && is_next);
                if is_ours {
                    self.jobs[given.job].pieces.push(bytes);
                    self.jobs[given.job].fruitless = 0;
                }
            }
            Deed::Finish(which) => {
                let Some(given) = self.which(which) else { return };
                let job = &self.jobs[given.job];
                let body = format!("result of {}", given.token).into_bytes();
                let done = store.finish(job.number, given.token, &product(&body)).await.unwrap();
                assert_eq!(done.is_some(), self.holds(given) || self.stands(given, State::Succeeded));
                if self.holds(given) {
                    self.jobs[given.job].state = State::Succeeded;
                    assert_eq!(self.jobs[given.job].result.replace(body), None, "a second result");
                }
            }
            Deed::Fail(which) => {
                let Some(given) = self.which(which) else { return };
                let why = Failure { code: "no".to_owned(), message: String::new(), param: None };
                let is_ours = store.fail(self.jobs[given.job].number, given.token, &why).await.unwrap();
                assert_eq!(is_ours, self.holds(given) || self.stands(given, State::Failed));
                if self.holds(given) {
                    self.jobs[given.job].state = State::Failed;
                }
            }
            Deed::Release(which) => {
                let Some(given) = self.which(which) else { return };
                let lease = (self.jobs[given.job].number, given.token);
                let is_ours = store.release(lease, Duration::ZERO, None, Release::Leaving).await.unwrap();
                assert_eq!(is_ours, self.holds(given) || self.stands(given, State::Queued));
                if self.holds(given) {
                    let job = &mut self.jobs[given.job];
                    job.state = State::Queued;
                    job.fruitless = (job.fruitless - 1).max(0);
                }
            }
            Deed::Cancel(which) => {
                let Some(job) = self.jobs.get_mut(which) else { return };
                let now = matches!(store.cancel(job.number).await.unwrap(), Cancelled::Now(_));
                assert_eq!(now, !job.state.is_final());
                if now {
                    job.state = State::Cancelled;
                }
            }
            Deed::Wait => self.pass(store, LEASE.as_secs() * 4 / 10),
            Deed::Die => self.pass(store, LEASE.as_secs() * 3 / 2),
        }
    }

    fn pass(&mut self, store: &Store, seconds: u64) {
        self.clock += seconds;
        store.pass(Duration::from_secs(seconds));
    }

    async fn lease(&mut self, store: &Store) {
        let models = [("shoes".to_owned(), "d1".to_owned())];
        let (lease, given_up) = store.lease("s", wanting(&models), LEASE).await.unwrap();
        for given_up in given_up {
            let job = self.jobs.iter_mut().find(|job| job.number == given_up.number).unwrap();
            assert!(job.fruitless >= FRUITLESS, "{job:?}");
            job.state = State::Failed;
        }
        let is_free = |clock: u64, job: &Known| match job.state {
            State::Queued => true,
            State::Running => job.until < clock,
            _ => false,
        };
        let Some(lease) = lease else {
            assert!(!self.jobs.iter().any(|job| is_free(self.clock, job)), "nobody takes it up");
            return;
        };
        let place = self.jobs.iter().position(|job| job.number == lease.job.number).unwrap();
        // The oldest of those that are free: nobody holds it.
        assert_eq!(self.jobs.iter().position(|job| is_free(self.clock, job)), Some(place));
        let job = &mut self.jobs[place];
        assert!(lease.token > job.token, "the token grows");
        assert_eq!(lease.was_lost, job.state == State::Running);
        let pieces: Vec<_> = lease.pieces.iter().map(|piece| piece.to_vec()).collect();
        assert_eq!(pieces, job.pieces);
        job.state = State::Running;
        job.token = lease.token;
        job.until = self.clock + LEASE.as_secs();
        job.fruitless += 1;
        self.given.push(Given { job: place, token: lease.token });
    }

    /// Whether the store says of every job what is known of it.
    async fn is_told(&self, store: &Store) {
        for known in &self.jobs {
            let job = store.by_number(known.number).await.unwrap().unwrap();
            assert_eq!((job.state, job.token), (known.state, known.token));
            assert_eq!(job.pieces, known.pieces.len() as i64);
            let events = store.events(known.number, 0).await.unwrap();
            let ends = events.iter().filter(|event| event.what.is_final()).count();
            assert_eq!(ends, usize::from(known.state.is_final()));
            let sequences: Vec<_> = events.iter().map(|event| event.sequence).collect();
            assert!(sequences.is_sorted() && sequences.last() == Some(&job.events));
            let result = match &known.result {
                None => store.read(known.number, 0..1).await.unwrap().map(|bytes| bytes.to_vec()),
                Some(known) => {
                    let size = job.result.as_ref().unwrap().size;
                    assert_eq!(size, known.len() as u64);
                    store.read(job.number, 0..size).await.unwrap().map(|bytes| bytes.to_vec())
                }
            };
            assert_eq!(&result, &known.result);
        }
    }
}

/// Runs so many histories on new stores of one kind.
fn histories(cases: u32, store: impl AsyncFn() -> Opened) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { cases, ..Config::default() });
    runner
        .run(&deeds(), |deeds| {
            runtime.block_on(async {
                let place = store().await;
                let mut history = History::default();
                for deed in &deeds {
                    history.does(&place.store, deed).await;
                }
                history.is_told(&place.store).await;
                place.store.close().await;
            });
            Ok(())
        })
        .unwrap();
}

#[test]
fn whatever_happens_on_sqlite_pieces_follow_each_other_and_a_result_is_committed_once() {
    histories(60, sqlite);
}

#[test]
fn whatever_happens_on_postgresql_pieces_follow_each_other_and_a_result_is_committed_once() {
    let Some(postgres) = Postgres::shared() else { return };
    histories(30, async || opened(Place::Postgres(postgres.database().await)).await);
}

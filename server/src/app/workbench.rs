//! What is computed beside the engine, off the async threads: files are made, uploads are read, studies are worked out. As
//! much at a time as there are places, and of callers that wait for one, one after the other: who has much to be made does not
//! keep others waiting.
//!
//! Studies have threads of their own, each of which stands back for the others of the process: on a machine with two cores a
//! matrix that is taken apart would otherwise have half of what the ticks of images want.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::App;
use crate::batcher::Caller;
use crate::error::{ApiError, Cause};

/// Requests of a caller that may wait to be looked over: each holds what was uploaded with it.
const MOST_WAITING: usize = 64;

/// By how much nicer whoever stands back is than the rest: to Linux it weighs a tenth, so that it has a tenth of a core that
/// others want as well, as studies have a tenth of the ticks. There it is a thread's, whatever the name of the call says;
/// elsewhere it would be the process's.
const BEHIND: i32 = 10;

/// The work of one caller.
#[derive(Debug, Clone)]
pub struct Workbench {
    app: App,
    caller: Caller,
}

/// Places, and who waits for one. Clones are one and the same.
#[derive(Debug, Clone)]
pub(super) struct Places(Arc<Mutex<Waiting>>);

#[derive(Debug)]
struct Waiting {
    free: usize,
    /// Of each caller, in the order in which they came.
    callers: BTreeMap<Caller, VecDeque<oneshot::Sender<Place>>>,
    /// Who had the latest place that somebody waited for.
    latest: Option<Caller>,
}

/// A place: the next one's when it is dropped.
#[derive(Debug)]
struct Place(Option<Places>);

// === impl App ===

impl App {
    /// Where the work of this caller is done.
    pub fn workbench(&self, caller: Caller) -> Workbench {
        Workbench { app: self.clone(), caller }
    }
}

// === impl Workbench ===

impl Workbench {
    /// The application.
    pub fn app(&self) -> &App {
        &self.app
    }

    /// Runs work that keeps a core busy, such as encoding a picture, and no more of it at a time than there are cores.
    /// Errors: it panicked.
    pub async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        computed(&self.app.0.encoders, self.caller, work, pooled).await
    }

    /// The same for a look inside, on half of the cores and behind all else: what images need of them is not kept waiting.
    pub async fn study<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        computed(&self.app.0.studies, self.caller, work, behind).await
    }

    /// The same for what a look comes to at its end, one after the other: taking a large matrix apart takes a minute and ten
    /// times the matrix, and keeps no other look from going on meanwhile.
    pub async fn conclude<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        computed(&self.app.0.conclusions, self.caller, work, behind).await
    }

    /// The same for a request that has not been admitted yet. Errors: also, too many of the caller's wait for that.
    pub async fn look_over<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        if self.app.0.studies.waiting(self.caller) >= MOST_WAITING {
            let message = format!(
                "{MOST_WAITING} requests of this caller wait to be looked over, the most there may be; there may be room in \
                 1 s"
            );
            return Err(ApiError::new(Cause::QuotaReached, message).retry_after(1));
        }
        self.study(work).await
    }
}

/// Does the work once there is a place for it, on a thread that `start` finds. The place is the work's, and not the caller's: a
/// client that goes away does not end what has begun.
async fn computed<T: Send + 'static>(
    places: &Places,
    caller: Caller,
    work: impl FnOnce() -> T + Send + 'static,
    start: fn(Box<dyn FnOnce() + Send>) -> std::io::Result<()>,
) -> Result<T, ApiError> {
    let place = places.take(caller).await;
    let (answer, answered) = oneshot::channel();
    let work = move || {
        let _place = place;
        // Nobody may wait for it any more.
        let _ = answer.send(work());
    };
    start(Box::new(work)).map_err(|error| ApiError::internal(format!("no thread to work on: {error}")))?;
    answered.await.map_err(|_| ApiError::internal("work beside the engine ended early".to_owned()))
}

/// On a thread of the runtime's pool.
fn pooled(work: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
    tokio::task::spawn_blocking(work);
    Ok(())
}

/// On a thread of its own that has the cores when nobody else wants them. A thread may give up its standing and not take it
/// back, so that one of the pool, which does other work afterwards, would not do.
fn behind(work: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
    let work = move || {
        // Where a system refuses, the work is done all the same.
        if cfg!(target_os = "linux") {
            let _ = rustix::process::nice(BEHIND);
        }
        work();
    };
    std::thread::Builder::new().name("windowpane-study".to_owned()).spawn(work).map(drop)
}

// === impl Places ===

impl Places {
    pub(super) fn new(free: usize) -> Self {
        Self(Arc::new(Mutex::new(Waiting { free, callers: BTreeMap::new(), latest: None })))
    }

    /// A place, once it is the caller's turn.
    async fn take(&self, caller: Caller) -> Place {
        loop {
            let turn = {
                let mut waiting = self.lock();
                if waiting.free > 0 {
                    waiting.free -= 1;
                    return Place(Some(self.clone()));
                }
                let (turn, turned) = oneshot::channel();
                let own = waiting.callers.entry(caller).or_default();
                own.retain(|turn| !turn.is_closed());
                own.push_back(turn);
                turned
            };
            // Whoever waits stands in the queue for as long as he waits.
            if let Ok(place) = turn.await {
                return place;
            }
        }
    }

    /// Those of the caller that wait.
    fn waiting(&self, caller: Caller) -> usize {
        let waiting = self.lock();
        let own = waiting.callers.get(&caller).into_iter().flatten();
        own.filter(|turn| !turn.is_closed()).count()
    }

    /// The place is free: it goes to whoever's turn it is.
    fn pass_on(&self) {
        let mut place = Place(Some(self.clone()));
        loop {
            let Some(turn) = self.lock().next() else {
                place.0 = None;
                return;
            };
            match turn.send(place) {
                Ok(()) => return,
                // Nobody waits there any more.
                Err(back) => place = back,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Waiting ===

impl Waiting {
    /// The next one of the next caller in the round; where nobody waits the place is free.
    fn next(&mut self) -> Option<oneshot::Sender<Place>> {
        loop {
            let behind = self.latest.map_or(Bound::Unbounded, Bound::Excluded);
            let next =
                self.callers.range((behind, Bound::Unbounded)).next().or_else(|| self.callers.iter().next());
            let Some((&caller, _)) = next else {
                self.free += 1;
                return None;
            };
            let own = self.callers.entry(caller).or_default();
            let turn = std::iter::from_fn(|| own.pop_front()).find(|turn| !turn.is_closed());
            if own.is_empty() {
                self.callers.remove(&caller);
            }
            if turn.is_none() {
                continue;
            }
            self.latest = Some(caller);
            return turn;
        }
    }
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(places) = self.0.take() {
            places.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Lets whoever can go on go on.
    async fn settle() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    #[tokio::test]
    async fn work_of_studies_stands_back_and_no_other() {
        let niceness = || {
            // The nineteenth column, counted behind the name, which may have spaces.
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let columns = stat.rsplit(')').next().unwrap();
            columns.split_whitespace().nth(16).unwrap().parse::<i32>().unwrap()
        };
        let (places, own) = (Places::new(1), niceness());
        // Nineteen is as nice as it gets.
        assert_eq!(computed(&places, Caller(1), niceness, behind).await.unwrap(), (own + BEHIND).min(19));
        for _ in 0..20 {
            assert_eq!(computed(&places, Caller(1), niceness, pooled).await.unwrap(), own);
        }
        assert_eq!(niceness(), own);
    }

    #[tokio::test]
    async fn work_that_panics_gives_its_place_back() {
        let places = Places::new(1);
        for start in [pooled, behind] {
            let panics = || -> () { panic!("as the test wants it") };
            assert!(computed(&places, Caller(1), panics, start).await.is_err());
            assert_eq!(computed(&places, Caller(1), || 7, start).await.unwrap(), 7);
        }
    }

    #[tokio::test]
    async fn callers_have_their_turns_one_after_the_other() {
        let places = Places::new(1);
        let held = places.take(Caller(1)).await;
        let (told, mut order) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        for (caller, name) in [(1, "a1"), (1, "a2"), (1, "a3"), (2, "b1"), (2, "b2"), (3, "c1")] {
            let (places, told) = (places.clone(), told.clone());
            tasks.push(tokio::spawn(async move {
                let _place = places.take(Caller(caller)).await;
                told.send(name).unwrap();
            }));
            settle().await;
        }
        assert_eq!([1, 2, 3, 4].map(|caller| places.waiting(Caller(caller))), [3, 2, 1, 0]);
        // One of them leaves before its turn.
        tasks[1].abort();
        settle().await;
        assert_eq!(places.waiting(Caller(1)), 2);
        drop(held);
        let mut seen = Vec::new();
        for _ in 0..5 {
            seen.push(order.recv().await.unwrap());
        }
        assert_eq!(seen, ["a1", "b1", "c1", "a3", "b2"]);
        settle().await;
        assert_eq!(places.lock().free, 1);
        assert!(places.lock().callers.is_empty());
    }

    #[tokio::test]
    async fn a_place_that_comes_to_one_who_has_left_is_the_next_ones() {
        let places = Places::new(1);
        let held = places.take(Caller(1)).await;
        let mut leaving = Box::pin(places.take(Caller(1)));
        // It stands in the queue, and is dropped with its turn already sent.
        assert!(futures::poll!(leaving.as_mut()).is_pending());
        drop(held);
        drop(leaving);
        assert_eq!(places.lock().free, 1);
    }
}

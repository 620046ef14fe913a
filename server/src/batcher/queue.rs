//! What is admitted and not finished: the bound on it, and how much work it is. Counted here when a request enters,
//! given back when an image ends in whatever way, so that no path can forget it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Sample, SampleError};
use crate::sampler::Trajectory;

/// The load of one model, shared by its handle and its worker.
#[derive(Debug)]
pub struct Load {
    limit: usize,
    images: AtomicUsize,
    rows: AtomicU64,
    row_nanos: AtomicU64,
}

/// A place in the queue: one image, and the rows it still needs. Dropping it gives both back.
#[derive(Debug)]
pub struct Place {
    load: Arc<Load>,
    rows: u64,
}

/// An admitted image: the trajectory, its place, and whom to tell.
#[derive(Debug)]
pub struct Job {
    /// The image.
    pub trajectory: Trajectory,
    /// Its place.
    pub place: Place,
    /// The client's end, closed when the client has gone.
    pub reply: oneshot::Sender<Result<Sample, SampleError>>,
    /// When it was admitted.
    pub admitted: std::time::Instant,
}

// === impl Load ===

impl Load {
    /// An empty queue for at most `limit` images, with a first guess of a row's time.
    pub fn new(limit: usize, row: Duration) -> Self {
        let load = Self { limit, images: 0.into(), rows: 0.into(), row_nanos: 0.into() };
        load.row_nanos.store(nanos(row), Relaxed);
        load
    }

    /// Takes a place for each of `images` images of `rows` rows, all or none.
    pub fn admit(self: &Arc<Self>, images: usize, rows: usize) -> Option<Vec<Place>> {
        let take = |now: usize| now.checked_add(images).filter(|&then| then <= self.limit);
        self.images.fetch_update(Relaxed, Relaxed, take).ok()?;
        let rows = rows as u64;
        self.rows.fetch_add(rows * images as u64, Relaxed);
        Some((0..images).map(|_| Place { load: Arc::clone(self), rows }).collect())
    }

    /// Images admitted and not finished.
    pub fn images(&self) -> usize {
        self.images.load(Relaxed)
    }

    /// The bound.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Time that everything admitted still takes, by the measured time of a row.
    pub fn backlog(&self) -> Duration {
        Duration::from_nanos(self.rows.load(Relaxed).saturating_mul(self.row_nanos.load(Relaxed)))
    }

    /// A tick of `rows` rows took `elapsed`: the estimate moves an eighth of the way.
    pub fn measured(&self, rows: usize, elapsed: Duration) {
        let row = nanos(elapsed) / rows.max(1) as u64;
        let old = self.row_nanos.load(Relaxed);
        self.row_nanos.store(old - old / 8 + row / 8, Relaxed);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

// === impl Place ===

impl Place {
    /// `rows` of them are done.
    pub fn progress(&mut self, rows: usize) {
        let done = (rows as u64).min(self.rows);
        self.rows -= done;
        self.load.rows.fetch_sub(done, Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.load.rows.fetch_sub(self.rows, Relaxed);
        self.load.images.fetch_sub(1, Relaxed);
    }
}

// === impl Job ===

impl Job {
    /// Whether nobody waits for it any more.
    pub fn departed(&self) -> bool {
        self.reply.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_admitted_whole_or_not_at_all() {
        let load = Arc::new(Load::new(3, Duration::from_millis(1)));
        let two = load.admit(2, 10).unwrap();
        assert!(load.admit(2, 10).is_none());
        assert_eq!(load.images(), 2);
        let one = load.admit(1, 10).unwrap();
        assert!(load.admit(1, 10).is_none());
        drop((two, one));
        assert_eq!((load.images(), load.backlog()), (0, Duration::ZERO));
        assert!(load.admit(usize::MAX, 1).is_none());
    }

    #[test]
    fn the_backlog_is_rows_times_their_time() {
        let load = Arc::new(Load::new(8, Duration::from_millis(2)));
        let mut places = load.admit(2, 100).unwrap();
        assert_eq!(load.backlog(), Duration::from_millis(400));
        places[0].progress(50);
        assert_eq!(load.backlog(), Duration::from_millis(300));
        drop(places.remove(0));
        assert_eq!(load.backlog(), Duration::from_millis(200));
    }

    #[test]
    fn the_estimate_follows_the_measurements() {
        let load = Arc::new(Load::new(1, Duration::ZERO));
        let _place = load.admit(1, 1000);
        (0..100).for_each(|_| load.measured(4, Duration::from_millis(8)));
        let backlog = load.backlog().as_secs_f64();
        assert!((1.9..=2.0).contains(&backlog), "{backlog}");
    }
}

//! Jobs: orders that outlive their HTTP call. An order is written down durably, worked on by whichever server that shares
//! the store has a turn for it, and its result is kept for a while. What a job is made of, in the order it is met:
//!
//! ```text
//! order ─check─> stored ─lease─> Leased ─perform, piece by piece─> Product ─finish─> result, events, webhook
//! routes/jobs    store           runner  perform (kinds)           perform   store    routes/jobs, webhook
//! ```
//!
//! A lease has a token that grows: whoever held an older one can commit nothing any more. So work is done at least once
//! from the last committed piece on, and its result is committed exactly once.

pub mod kinds;
pub mod object;
pub mod perform;
pub mod place;
pub mod runner;
pub mod store;
pub mod webhook;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch};
use utoipa::ToSchema;

use crate::app::App;
use crate::keys::Role;
use crate::middleware::request_id::random_u64;
use kinds::Kinds;
use perform::Perform;
use place::Place;
use store::{Store, StoreError};
use webhook::Hooks;

/// What is asked for: the synchronous route whose answer the result is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = JobKind)]
pub enum Kind {
    /// `POST /v1/analysis/attention`.
    Attention,
    /// `POST /v1/analysis/jacobian`.
    Jacobian,
    /// `POST /v1/analysis/psnr-gap`.
    PsnrGap,
    /// `POST /v1/images/generations`, of many more images than that route takes.
    Images,
}

/// How jobs are kept and worked on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where they are stored.
    pub place: Place,
    /// Jobs that this server works on at a time.
    pub workers: usize,
    /// Time beyond which an analysis is a job, for clients that do not say how long they wait.
    pub after: Duration,
    /// Time after which a job whose server says nothing is taken up by another.
    pub lease: Duration,
    /// Time for which a job that has ended is kept.
    pub retention: Duration,
    /// Jobs of one caller that may wait or run.
    pub limit: usize,
    /// Bytes of a result, and of all pieces on the way to it.
    pub result_limit: usize,
    /// Bytes of one caller's results, beyond which no more is ordered.
    pub store_limit: usize,
    /// Who may be told of a job's end.
    pub hooks: Hooks,
}

/// The jobs of a server: the store, and who is told when something changes in it here.
pub struct Jobs {
    store: Store,
    perform: Box<dyn Perform>,
    settings: Settings,
    /// Whose leases ours are, in the store.
    holder: String,
    /// Grows with each change that this server makes.
    changed: watch::Sender<u64>,
    /// Numbers of jobs that were cancelled through this server.
    cancelled: broadcast::Sender<i64>,
    leaving: watch::Sender<bool>,
    /// Turns of those who watch jobs.
    turns: Arc<Semaphore>,
}

/// Watchers that ask the store at a time. It has more connections: however many watch, leases are kept and orders are taken.
const TURNS: usize = 2;

/// The jobs cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("`--jobs` {place}: {source}")]
pub struct OpenError {
    place: Place,
    source: StoreError,
}

/// Opens the store of the configuration, and has the application keep its jobs there. Where no place was named and there
/// is none to be had, the server does without, and says so.
pub async fn open(app: &App) -> Result<(), OpenError> {
    let settings = &app.config().jobs;
    let Some(place) = settings.place.resolve() else {
        if settings.place == Place::Home {
            tracing::warn!("there is no home for jobs: they are refused; name a place by `--jobs`");
        }
        return Ok(());
    };
    match Store::open(&place, settings.retention).await {
        Ok(store) => {
            let store = store.with_room(settings.store_limit);
            tracing::info!(%place, workers = settings.workers, "jobs are kept");
            app.metrics().announce_jobs();
            app.keep_jobs(Jobs::new(store, Box::new(Kinds::new(app.clone())), settings.clone()));
            Ok(())
        }
        Err(error) if settings.place == Place::Home => {
            tracing::warn!(%place, %error, "jobs are refused; name another place by `--jobs`");
            Ok(())
        }
        Err(source) => Err(OpenError { place, source }),
    }
}

// === impl Kind ===

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Attention, Self::Jacobian, Self::PsnrGap, Self::Images];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Jacobian => "jacobian",
            Self::PsnrGap => "psnr-gap",
            Self::Images => "images",
        }
    }

    /// The kind of this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// What whoever orders it must be allowed: the same as for its route.
    pub fn role(self) -> Role {
        match self {
            Self::Images => Role::Generate,
            Self::Attention | Self::Jacobian | Self::PsnrGap => Role::Analyse,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Settings ===

impl Default for Settings {
    /// Those of an empty command line, but that no jobs are kept: whoever wants them names a place.
    fn default() -> Self {
        Self {
            place: Place::Off,
            workers: 1,
            after: Duration::from_secs(5),
            lease: Duration::from_secs(15),
            retention: Duration::from_secs(24 * 3600),
            limit: 100,
            result_limit: 512 << 20,
            store_limit: 16 << 30,
            hooks: Hooks::default(),
        }
    }
}

// === impl Jobs ===

impl Jobs {
    /// Jobs in this store, done by `perform`.
    pub fn new(store: Store, perform: Box<dyn Perform>, settings: Settings) -> Arc<Self> {
        // Cancellations that a worker is late for; it looks for itself when it has missed some.
        let (cancelled, _) = broadcast::channel(64);
        Arc::new(Self {
            store,
            perform,
            settings,
            holder: format!("server_{:016x}", random_u64()),
            changed: watch::Sender::new(0),
            cancelled,
            leaving: watch::Sender::new(false),
            turns: Arc::new(Semaphore::new(TURNS)),
        })
    }

    /// The turn of somebody who watches a job: to be held while the store is asked.
    pub fn turn(&self) -> impl Future<Output = OwnedSemaphorePermit> + Send + use<> {
        let turn = Arc::clone(&self.turns).acquire_owned();
        async { turn.await.expect("it is never closed: this is a bug") }
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Who does the work.
    pub fn perform(&self) -> &dyn Perform {
        self.perform.as_ref()
    }

    /// How they are kept.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whose leases ours are.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// Wakes who waits for something to change.
    pub fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Resolves at changes that this server makes; of those of others nothing is known here.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Has whoever works on the job here stop at once.
    pub fn stop_one(&self, number: i64) {
        // Nobody may be at work.
        let _ = self.cancelled.send(number);
        self.touch();
    }

    /// Numbers of jobs that are cancelled from now on.
    pub fn cancellations(&self) -> broadcast::Receiver<i64> {
        self.cancelled.subscribe()
    }

    /// Work stops, and is left for others to take up; streams of events end.
    pub fn leave(&self) {
        self.leaving.send_replace(true);
    }

    /// Whether the server leaves, and when.
    pub fn leaving(&self) -> watch::Receiver<bool> {
        self.leaving.subscribe()
    }
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").field("holder", &self.holder).field("settings", &self.settings).finish()
    }
}

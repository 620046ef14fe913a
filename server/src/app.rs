//! The application: configuration, metrics, the models that serve, and which phase of its life it is in. Handlers and
//! tests hold clones of it; it is one pointer.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use windowpane_server::{App, Config, Listeners, serve};
//!
//! let config = Config { models: "models/tiny".into(), ..Config::default() };
//! let listeners = Listeners::bind(&config).await?; // port 0: a free one
//! let app = App::open(config)?; // blocks while models load
//! serve(listeners, app, std::future::pending()).await?;
//! # Ok(()) }
//! ```

mod budget;
pub mod folder;
pub mod requests;
pub mod workbench;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit, oneshot, watch};

use crate::batcher::Caller;
use crate::config::Config;
use crate::error::{ApiError, Cause};
use crate::jobs::Jobs;
use crate::keys::{Keys, KeysError};
use crate::metrics::Metrics;
use crate::model::Model;
use crate::model::load::{LoadError, Loader};
use crate::telemetry::otlp::Traces;
use crate::v2::Statistics;
pub use budget::Room;
use budget::{Budget, Who};
use requests::Requests;
use workbench::Places;

/// The application.
#[derive(Debug, Clone)]
pub struct App(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    /// Those of the configuration, until their file changes.
    keys: RwLock<Arc<Keys>>,
    metrics: Metrics,
    statistics: Statistics,
    traces: Option<Traces>,
    loader: Loader,
    /// None while loading. A model that is replaced lives on in the requests that hold it.
    models: RwLock<Option<BTreeMap<String, Arc<Model>>>>,
    /// Held while a model is loaded or unloaded: one at a time.
    changing: Arc<Mutex<()>>,
    put_away: std::sync::Mutex<BTreeSet<String>>,
    retired: std::sync::Mutex<Vec<Weak<Model>>>,
    requests: Requests,
    /// Orders that outlive their call, where a store keeps them.
    kept: watch::Sender<Option<Arc<Jobs>>>,
    /// Encodings that may run at a time: one for each core, since they take what the networks need.
    encoders: Places,
    /// Who computes for a look inside: images come first.
    studies: Places,
    /// Who computes what a look comes to.
    conclusions: Places,
    /// Memory for bodies that are being read, in blocks; and for their beginnings.
    bodies: Semaphore,
    beginnings: Semaphore,
    /// Memory for frames that are kept.
    frames: Budget,
    /// Memory for answers, from the admission of their requests until their clients have them.
    answers: Budget,
    draining: AtomicBool,
    /// Generations being answered.
    jobs: watch::Sender<usize>,
}

/// Bytes that bodies may hold together while they are being read; the limit of one, where that is more.
const MOST_BODIES: usize = 256 << 20;

/// What a body may hold before it needs room among the bodies: more than most requests are at all.
pub(crate) const BEGINNING: usize = 16 << 10;

/// Bytes that beginnings of bodies may hold together.
const MOST_BEGINNINGS: usize = 64 << 20;

/// Bodies are counted in blocks of so many bytes.
const BLOCK: usize = 1024;

fn blocks(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(BLOCK)).unwrap_or(u32::MAX)
}

/// Where in its life the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Models are loading: alive, not ready.
    Loading,
    /// Requests are served.
    Ready,
    /// Running images finish, new ones are refused.
    Draining,
}

/// A generation being answered; the drain waits until the last clone is gone.
#[derive(Debug, Clone)]
pub struct Job {
    _begun: Arc<Begun>,
    answer: Room,
}

#[derive(Debug)]
struct Begun(App);

// === impl App ===

impl App {
    /// An application whose models are still to be loaded: it can serve at once, and says that it is not ready.
    pub fn new(config: Config) -> Self {
        let metrics = Metrics::new();
        let [bodies, beginnings] = [MOST_BODIES.max(config.body_limit), MOST_BEGINNINGS]
            .map(|bytes| Semaphore::new(blocks(bytes) as usize));
        let (frames, answers) = (Budget::new(config.frame_limit), Budget::new(config.answer_limit));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self(Arc::new(Inner {
            loader: Loader::new(config.clone(), metrics.clone()),
            traces: config.traces.clone(),
            keys: RwLock::new(Arc::new(config.keys.clone())),
            config,
            metrics,
            statistics: Statistics::default(),
            models: RwLock::default(),
            changing: Arc::default(),
            put_away: std::sync::Mutex::default(),
            retired: std::sync::Mutex::default(),
            requests: Requests::default(),
            kept: watch::Sender::default(),
            bodies,
            beginnings,
            frames,
            answers: answers.with_room_for_small(),
            encoders: Places::new(cores),
            studies: Places::new(cores.div_ceil(2)),
            conclusions: Places::new(1),
            draining: AtomicBool::new(false),
            jobs: watch::Sender::new(0),
        }))
    }

    /// [`App::new`] and [`App::load`].
    pub fn open(config: Config) -> Result<Self, LoadError> {
        let app = Self::new(config);
        app.load()?;
        Ok(app)
    }

    /// Loads every package under `config.models` and becomes ready. Blocks for seconds: on an async runtime, call it
    /// from `spawn_blocking`.
    pub fn load(&self) -> Result<(), LoadError> {
        self.install(self.0.loader.all()?);
        Ok(())
    }

    /// Becomes ready, and serves these models, e.g. [`Model::fake`] ones, beside what is served already. Of a name that
    /// is served, new requests go to the new model; the old one finishes what it has.
    pub fn install(&self, models: Vec<Model>) {
        let mut table = self.0.models.write().unwrap_or_else(PoisonError::into_inner);
        let table = table.get_or_insert_default();
        for model in models {
            let model = Arc::new(model);
            let replaced = table.insert(model.name().to_owned(), Arc::clone(&model));
            if let Some(old) = &replaced {
                self.0.loader.replaced(old, &model);
                self.retire(old);
            }
            self.0.loader.installed(&model);
        }
    }

    /// Loads the package of this name under `config.models`, in place of the one that is served under it, if any. If it
    /// does not load, nothing changes. Whoever asked may go away meanwhile: it is loaded all the same.
    pub async fn load_model(&self, name: &str) -> Result<Arc<Model>, ApiError> {
        self.model_names()?;
        let (app, name) = (self.clone(), name.to_owned());
        let (tell, told) = oneshot::channel();
        tokio::spawn(async move {
            if let Err(Err(error)) = tell.send(app.load_in_turn(name.clone()).await) {
                let detail = error.detail.unwrap_or(error.message);
                tracing::error!(model = name, detail, "it does not load, and nobody waits for it any more");
            }
        });
        told.await.unwrap_or_else(|_| Err(ApiError::internal("the loader ended early")))
    }

    async fn load_in_turn(&self, name: String) -> Result<Arc<Model>, ApiError> {
        let one_at_a_time = Arc::clone(&self.0.changing).lock_owned().await;
        let app = self.clone();
        let load = move || {
            let model = app.0.loader.named(&name)?;
            app.put_away().remove(&model.card.digest);
            app.install(vec![model]);
            let served = app.model(Some(&name));
            drop(one_at_a_time);
            served
        };
        let ended = |error| ApiError::internal(format!("the loader ended early: {error}"));
        tokio::task::spawn_blocking(load).await.map_err(ended)?
    }

    /// Serves the model no longer, until somebody asks for it again; requests under way are finished.
    pub async fn unload_model(&self, name: &str) -> Result<(), ApiError> {
        let one_at_a_time = self.0.changing.lock().await;
        // Read now, when no new version is on its way: it is this one that shall not come back.
        let digest = self.model(Some(name))?.card.digest.clone();
        self.put_away().insert(digest);
        self.remove(name, one_at_a_time)
    }

    /// Serves the model no longer, because its package is gone.
    pub(crate) async fn drop_model(&self, name: &str) -> Result<(), ApiError> {
        let one_at_a_time = self.0.changing.lock().await;
        self.remove(name, one_at_a_time)
    }

    fn remove(&self, name: &str, _one_at_a_time: MutexGuard<'_, ()>) -> Result<(), ApiError> {
        let model = self.model(Some(name))?;
        let mut table = self.0.models.write().unwrap_or_else(PoisonError::into_inner);
        let removed = table.as_mut().and_then(|table| table.remove(name));
        removed.iter().for_each(|model| self.retire(model));
        self.0.loader.forget(&model);
        Ok(())
    }

    /// Digests of packages that an administrator unloaded: a watched folder does not bring them back.
    pub(crate) fn put_away(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.0.put_away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loader, which knows the packages that could be served.
    pub fn loader(&self) -> &Loader {
        &self.0.loader
    }

    /// The API keys, as they are now.
    pub fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.0.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the file of keys again. Errors change nothing.
    pub(crate) fn read_keys(&self) -> Result<(), KeysError> {
        let new = self.keys().read_again()?;
        *self.0.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(())
    }

    /// Room in memory for so many bytes of the beginning of a body, for as long as it is held.
    pub(crate) async fn room_to_begin(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        // Never closed.
        self.0.beginnings.acquire_many(blocks(bytes.min(BEGINNING))).await.ok()
    }

    /// Room in memory for a body of so many bytes, for as long as it is held.
    pub async fn room_for_body(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        // Never closed; and a body is at most the limit.
        let most = MOST_BODIES.max(self.config().body_limit);
        self.0.bodies.acquire_many(blocks(bytes.min(most))).await.ok()
    }

    /// Room in memory for frames of so many bytes that this caller's images of the model keep; or while others have it, or
    /// the caller half of it, the time until there may be some. A request that wants more than there is at all may have all
    /// of it.
    pub fn room_for_frames(
        &self,
        caller: Caller,
        model: &Arc<Model>,
        bytes: usize,
    ) -> Result<Room, Duration> {
        let frames = &self.0.frames;
        frames.take(self.who(caller, model), bytes).ok_or_else(|| frames.wait())
    }

    /// Memory that frames have room in.
    pub fn frame_bytes(&self) -> usize {
        self.0.frames.used()
    }

    /// The same for the answer of a request, which has it until its client has the answer. Small answers have some that
    /// large ones leave them.
    pub fn room_for_answer(
        &self,
        caller: Caller,
        model: &Arc<Model>,
        bytes: usize,
    ) -> Result<Room, Duration> {
        let answers = &self.0.answers;
        answers.take(self.who(caller, model), bytes).ok_or_else(|| answers.wait())
    }

    fn who(&self, caller: Caller, model: &Arc<Model>) -> Who {
        Who { caller, among_others: self.keys().are_several(), model: Arc::downgrade(model) }
    }

    /// Memory that answers have room in.
    pub fn answer_bytes(&self) -> usize {
        self.0.answers.used()
    }

    /// Keeps jobs from now on.
    pub fn keep_jobs(&self, jobs: Arc<Jobs>) {
        self.0.kept.send_replace(Some(jobs));
    }

    /// The jobs, once they are kept.
    pub(crate) async fn when_jobs_are_kept(&self) -> Arc<Jobs> {
        let mut kept = self.0.kept.subscribe();
        match kept.wait_for(Option::is_some).await.map(|jobs| jobs.clone()) {
            Ok(Some(jobs)) => jobs,
            // This application holds the sender.
            _ => std::future::pending().await,
        }
    }

    /// Lets the jobs go, which hold this application as it holds them.
    pub(crate) fn let_jobs_go(&self) -> Option<Arc<Jobs>> {
        self.0.kept.send_replace(None)
    }

    /// The jobs, where any are kept.
    pub fn jobs(&self) -> Option<Arc<Jobs>> {
        self.0.kept.borrow().clone()
    }

    /// The requests under way.
    pub fn requests(&self) -> &Requests {
        &self.0.requests
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// The metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Where spans go, if anywhere.
    pub fn traces(&self) -> Option<&Traces> {
        self.0.traces.as_ref()
    }

    /// What was asked through the Open Inference Protocol.
    pub fn statistics(&self) -> &Statistics {
        &self.0.statistics
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        if self.0.draining.load(Relaxed) {
            Phase::Draining
        } else if self.table().is_none() {
            Phase::Loading
        } else {
            Phase::Ready
        }
    }

    /// The models that serve, in order of name; none while loading.
    pub fn models(&self) -> Vec<Arc<Model>> {
        self.table().iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// The model of this name; without a name, the only one.
    pub fn model(&self, name: Option<&str>) -> Result<Arc<Model>, ApiError> {
        let table = self.table();
        let models = table.as_ref().ok_or_else(loading)?;
        let names: Vec<&str> = models.keys().map(String::as_str).collect();
        match (name, names.as_slice()) {
            (Some(name), _) => models.get(name).cloned().ok_or_else(|| {
                let shown: String = name.chars().take(64).collect();
                ApiError::model_not_found(&shown, &names)
            }),
            (None, [only]) => Ok(Arc::clone(&models[*only])),
            (None, []) => Err(ApiError::new(Cause::ModelNotFound, "no model is served now").param("model")),
            (None, _) => Err(ApiError::invalid("model", "missing", format!("one of {}", names.join(", ")))),
        }
    }

    /// The names of the models that serve, in order. Errors: still loading.
    pub fn model_names(&self) -> Result<Vec<String>, ApiError> {
        self.table().as_ref().map(|table| table.keys().cloned().collect()).ok_or_else(loading)
    }

    fn table(&self) -> std::sync::RwLockReadGuard<'_, Option<BTreeMap<String, Arc<Model>>>> {
        self.0.models.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a generation. Errors: not ready yet, or no longer.
    pub fn begin(&self) -> Result<Job, ApiError> {
        match self.phase() {
            Phase::Ready => {
                self.0.jobs.send_modify(|jobs| *jobs += 1);
                Ok(Job { _begun: Arc::new(Begun(self.clone())), answer: Room::default() })
            }
            Phase::Loading => Err(loading()),
            Phase::Draining => Err(shutting_down()),
        }
    }

    /// Stops being ready: from now on generations are refused.
    pub fn drain(&self) {
        self.0.draining.store(true, Relaxed);
    }

    /// Resolves when no generation is being answered.
    pub async fn idle(&self) {
        // The sender lives in `self`, so the channel is open.
        let _ = self.0.jobs.subscribe().wait_for(|&jobs| jobs == 0).await;
    }

    /// Ends the workers after the ticks they are in. Images under way are answered with an error.
    pub fn stop(&self) {
        self.models().iter().chain(&self.retired()).for_each(|model| model.batcher.stop());
    }

    /// Images admitted and not finished, of all models.
    pub fn images(&self) -> usize {
        self.models().iter().chain(&self.retired()).map(|model| model.batcher.images()).sum()
    }

    /// Models that are served no longer and still have requests.
    pub(crate) fn retired(&self) -> Vec<Arc<Model>> {
        let retired = self.0.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.iter().filter_map(Weak::upgrade).collect()
    }

    fn retire(&self, model: &Arc<Model>) {
        let mut retired = self.0.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|model| model.strong_count() > 0);
        retired.push(Arc::downgrade(model));
    }
}

// === impl Job ===

impl Job {
    /// The same with room for its answer.
    #[must_use]
    pub fn with_answer(self, answer: Room) -> Self {
        Self { answer, ..self }
    }

    /// The room that its answer has.
    pub(crate) fn answer(&self) -> &Room {
        &self.answer
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.0.jobs.send_modify(|jobs| *jobs -= 1);
    }
}

/// What a request reads while models load.
pub(crate) fn loading() -> ApiError {
    ApiError::new(Cause::Loading, "the models are still loading").retry_after(1)
}

/// What a request reads while the server leaves.
pub fn shutting_down() -> ApiError {
    ApiError::new(Cause::ShuttingDown, "the server is shutting down").retry_after(5)
}

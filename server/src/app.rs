//! The application: configuration, metrics, the models that serve, and which phase of its life it is in. Handlers and
//! tests hold clones of it; it is one pointer.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use windowpane_server::{App, Config, serve};
//!
//! let config = Config { models: "models/tiny".into(), ..Config::default() };
//! let listener = tokio::net::TcpListener::bind(config.listen).await?; // port 0: a free one
//! let app = App::open(config)?; // blocks while models load
//! serve(listener, app, std::future::pending()).await?;
//! # Ok(()) }
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use crate::config::Config;
use crate::error::{ApiError, Cause};
use crate::metrics::Metrics;
use crate::model::Model;
use crate::model::load::{self, LoadError};

/// The application.
#[derive(Debug, Clone)]
pub struct App(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    metrics: Metrics,
    /// Empty while loading, then never changed.
    models: OnceLock<BTreeMap<String, Model>>,
    draining: AtomicBool,
    /// Generations being answered.
    jobs: watch::Sender<usize>,
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

/// A generation being answered; the drain waits for it.
#[derive(Debug)]
pub struct Job(App);

// === impl App ===

impl App {
    /// An application whose models are still to be loaded: it can serve at once, and says that it is not ready.
    pub fn new(config: Config) -> Self {
        Self(Arc::new(Inner {
            config,
            metrics: Metrics::new(),
            models: OnceLock::new(),
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
        self.install(load::all(&self.0.config, &self.0.metrics)?);
        Ok(())
    }

    /// Becomes ready with these models, e.g. [`Model::fake`] ones. Models that are installed stay: a second call is
    /// ignored.
    pub fn install(&self, models: Vec<Model>) {
        let table = models.into_iter().map(|model| (model.name().to_owned(), model)).collect();
        if self.0.models.set(table).is_err() {
            tracing::warn!("models are installed already; the new ones are dropped");
        }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// The metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        if self.0.draining.load(Relaxed) {
            Phase::Draining
        } else if self.0.models.get().is_none() {
            Phase::Loading
        } else {
            Phase::Ready
        }
    }

    /// The models that serve, by name; none while loading.
    pub fn models(&self) -> impl Iterator<Item = &Model> {
        self.0.models.get().into_iter().flat_map(BTreeMap::values)
    }

    /// The model of this name; without a name, the only one.
    pub fn model(&self, name: Option<&str>) -> Result<&Model, ApiError> {
        let models = self.0.models.get().ok_or_else(loading)?;
        let names: Vec<&str> = models.keys().map(String::as_str).collect();
        match (name, names.as_slice()) {
            (Some(name), _) => models.get(name).ok_or_else(|| {
                let shown: String = name.chars().take(64).collect();
                ApiError::model_not_found(&shown, &names)
            }),
            (None, [only]) => Ok(&models[*only]),
            (None, _) => Err(ApiError::invalid("model", "missing", format!("one of {}", names.join(", ")))),
        }
    }

    /// Begins a generation. Errors: not ready yet, or no longer.
    pub fn begin(&self) -> Result<Job, ApiError> {
        match self.phase() {
            Phase::Ready => {
                self.0.jobs.send_modify(|jobs| *jobs += 1);
                Ok(Job(self.clone()))
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
        self.models().for_each(|model| model.batcher.stop());
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.0.0.jobs.send_modify(|jobs| *jobs -= 1);
    }
}

/// What a request reads while models load.
fn loading() -> ApiError {
    ApiError::new(Cause::Loading, "the models are still loading").retry_after(1)
}

/// What a request reads while the server leaves.
pub fn shutting_down() -> ApiError {
    ApiError::new(Cause::ShuttingDown, "the server is shutting down").retry_after(5)
}

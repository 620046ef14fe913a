//! A model that serves: what its package says, what was measured when it was loaded, and the handle of its worker.

mod fake;
pub mod load;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use windowpane_diffusion::Schedule;
use windowpane_diffusion::manifest::{Dtype, Manifest};

use crate::batcher::Batcher;
use crate::batcher::costs::TickCosts;
use crate::encode::Colour;
use crate::engine::Provider;
use crate::engine::check::{Determinism, GoldenReport};

/// What a request is checked against: the package, with what follows from it.
#[derive(Debug, Clone)]
pub struct Card {
    /// The manifest.
    pub manifest: Manifest,
    /// The schedule's table.
    pub schedule: Schedule,
    /// How the model's channels are shown.
    pub colour: Colour,
    /// sha256 of the manifest, which pins every file: the model's identity.
    pub digest: String,
    /// When the package came to this disk, in seconds since 1970.
    pub created: u64,
    /// Its model card, Markdown; `None` where the package has none.
    pub text: Option<String>,
    /// The package's folder; `None` where there is no package.
    pub folder: Option<PathBuf>,
}

/// What the model runs on and what was measured of it at load.
#[derive(Debug, Clone, PartialEq)]
pub struct Served {
    /// The provider.
    pub provider: Provider,
    /// What it computes in.
    pub dtype: Dtype,
    /// The graph's file.
    pub graph: String,
    /// Version of ONNX Runtime.
    pub runtime: String,
    /// The golden replay.
    pub golden: GoldenReport,
    /// Whether a row depends on its batch.
    pub determinism: Determinism,
    /// What a tick costs.
    pub costs: TickCosts,
    /// Rows of one call of the network; larger ticks run in pieces.
    pub piece: usize,
}

/// A model that serves.
#[derive(Debug)]
pub struct Model {
    /// The package.
    pub card: Arc<Card>,
    /// The measurements.
    pub served: Served,
    /// The worker.
    pub batcher: Batcher,
    /// How long it took to load.
    pub loading: Duration,
}

/// A manifest describes what this server cannot show.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CardError {
    /// Neither grey nor RGB.
    #[error("`config.channels` is {0}, expected 1 (grey) or 3 (RGB): other images cannot be shown")]
    Channels(usize),
    /// The schedule does not build.
    #[error(transparent)]
    Schedule(#[from] windowpane_diffusion::Error),
}

// === impl Card ===

impl Card {
    /// From a validated manifest.
    pub fn new(manifest: Manifest, digest: String, created: u64) -> Result<Self, CardError> {
        let channels = manifest.config.channels;
        let colour = Colour::of_channels(channels).ok_or(CardError::Channels(channels))?;
        Ok(Self {
            schedule: manifest.schedule.build()?,
            manifest,
            colour,
            digest,
            created,
            text: None,
            folder: None,
        })
    }

    /// Channels, height and width.
    pub fn shape(&self) -> [usize; 3] {
        let config = &self.manifest.config;
        [config.channels, config.height, config.width]
    }
}

// === impl Model ===

impl Model {
    /// The name under which it is asked for.
    pub fn name(&self) -> &str {
        &self.card.manifest.name
    }
}

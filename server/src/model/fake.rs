//! A model around the fake network, for tests that need no package and for faults on demand.

use std::sync::Arc;
use std::time::Duration;

use windowpane_diffusion::manifest::{Dtype, Manifest};

use super::load::worker_config;
use super::{Card, CardError, Model, Served};
use crate::batcher::device::{Device, Seat};
use crate::batcher::{Batcher, StartError};
use crate::config::Config;
use crate::engine::Provider;
use crate::engine::check::GoldenReport;
use crate::engine::fake::{FakeDenoiser, Faults};
use crate::engine::insides::Engine;
use crate::engine::insides::fake::FakeInsides;
use crate::metrics::Metrics;

// === impl Model ===

impl Model {
    /// A model that the fake network serves with these faults. The manifest is taken as it is: its files need not
    /// exist. Errors: a manifest that cannot be shown.
    pub fn fake(
        manifest: Manifest,
        faults: Faults,
        config: &Config,
        metrics: &Metrics,
    ) -> Result<Self, CardError> {
        Self::fake_on(manifest, faults, config, metrics, Arc::default())
    }

    /// The same on a device that others may have a seat at.
    pub(crate) fn fake_on(
        manifest: Manifest,
        faults: Faults,
        config: &Config,
        metrics: &Metrics,
        device: Arc<Device>,
    ) -> Result<Self, CardError> {
        let card = Arc::new(Card::new(manifest, "0".repeat(64), 0)?);
        let model = &card.manifest.config;
        let fake = FakeDenoiser::new(card.schedule.clone(), model.out_channels(), model.classes)
            .with_faults(faults.clone());
        let served = Served {
            provider: Provider::Fake,
            dtype: Dtype::F32,
            graph: "none".to_owned(),
            runtime: "none".to_owned(),
            golden: GoldenReport { relative_error: 0.0, tolerance: 1.0, cases: 0 },
            determinism: fake.determinism(config.max_rows),
            costs: fake.costs(config.max_rows),
            piece: config.max_rows,
        };
        let worker = worker_config(&card, &served, config);
        let name = format!("wp-{}", card.manifest.name);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(work)
        };
        let insides = FakeInsides::new(Arc::clone(&card), fake.clone(), faults.insides);
        let engine = || Engine { denoiser: Box::new(fake), insides: Box::new(insides) };
        let open = move |_: &Seat<'_>| Ok::<_, CardError>((engine(), worker, served));
        let (batcher, served) =
            Batcher::start(spawn, open, &name, device, metrics.clone()).map_err(|error| match error {
                StartError::Open(error) => error,
                StartError::Thread(error) => panic!("a test machine has threads: {error}"),
            })?;
        Ok(Self { card, served, batcher, loading: Duration::ZERO })
    }
}

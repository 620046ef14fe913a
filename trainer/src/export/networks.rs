//! Whole packages with random weights, to measure derivatives with: what the benchmark of the Jacobian compares with
//! libtorch, at the sizes that it is told for.

use std::collections::BTreeMap;
use std::path::Path;

use tch::Tensor;
use windowpane_diffusion::config::{named, window_sides};
use windowpane_diffusion::manifest::{Lineage, Manifest, SampleDefaults};
use windowpane_diffusion::noise;
use windowpane_diffusion::solver::{Sampler, TimeGrid};
use windowpane_diffusion::{ModelConfig, Placement, Prediction, ScheduleConfig, ScheduleKind, Variance};

use super::{ExportRequest, export};
use crate::checkpoint::Meta;
use crate::config::{ExportTable, StoredWeights};
use crate::error::Result;
use crate::params::Layout;

/// Standard deviation of the weights: every path through the network counts, and no value overflows.
const DEVIATION: f64 = 0.05;

/// Writes both packages into `dir`: `global-256`, depth 8, hidden 192, 16×16 tokens; and `local-1024`, DiT-XS/1 with the
/// paper's `local*` at 32×32.
pub fn write_networks(dir: &Path) -> Result<Vec<Manifest>> {
    let (size, patch) = named("DiT-XS/1")?;
    let windows = Placement::Head.place(&window_sides("local*")?, size.depth)?;
    let local = size.model(patch, (3, 32, 32), windows);
    let windows = Placement::Head.place(&[], 8)?;
    let global = ModelConfig { hidden: 192, depth: 8, heads: 6, ..size.model(patch, (1, 16, 16), windows) };
    [("global-256", global), ("local-1024", local)]
        .into_iter()
        .map(|(name, config)| write(&dir.join(name), name, config))
        .collect()
}

fn write(out: &Path, name: &str, config: ModelConfig) -> Result<Manifest> {
    let flat = Tensor::from_slice(&noise::normal(9, 0, Layout::of(&config).total())) * DEVIATION;
    let meta = Meta {
        config,
        schedule: ScheduleConfig { kind: ScheduleKind::Linear, steps: 1000 },
        prediction: Prediction::Eps,
        variance: Variance::FixedSmall,
        classes: Vec::new(),
        step: 0,
    };
    export(&ExportRequest {
        name: name.to_owned(),
        description: "Random weights, to measure derivatives with".to_owned(),
        purpose: Some("Measuring. It draws nothing.".to_owned()),
        licence: "MIT OR Apache-2.0".to_owned(),
        meta: &meta,
        flat: &flat,
        defaults: SampleDefaults {
            sampler: Sampler::Ddim,
            grid: TimeGrid::Uniform,
            steps: 10,
            guidance_scale: 1.0,
            eta: 0.0,
            clip_x0: true,
        },
        lineage: Lineage {
            data: "none".to_owned(),
            data_sha256: "0".repeat(64),
            images: 0,
            seed: 9,
            steps: 0,
            trainer: concat!("windowpane-trainer ", env!("CARGO_PKG_VERSION")).to_owned(),
            metrics: BTreeMap::new(),
        },
        table: ExportTable { weights: StoredWeights::F32, cuda: false, insides: true },
        without_insides: None,
        extra: Vec::new(),
        out: out.to_owned(),
        force: true,
    })
}

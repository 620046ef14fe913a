//! Whole packages with random weights, to measure with: what the benchmark of the Jacobian compares with libtorch, and what
//! a GPU is measured with, at the sizes that they are told for.

use std::collections::BTreeMap;
use std::path::Path;

use clap::ValueEnum;
use tch::Tensor;
use windowpane_diffusion::config::{named, window_sides};
use windowpane_diffusion::manifest::{Lineage, Manifest, SampleDefaults};
use windowpane_diffusion::noise;
use windowpane_diffusion::solver::{Sampler, TimeGrid};
use windowpane_diffusion::{
    ModelConfig, Placement, Plan, Prediction, ScheduleConfig, ScheduleKind, Variance,
};

use super::{ExportRequest, export};
use crate::checkpoint::Meta;
use crate::config::{ExportTable, StoredWeights};
use crate::error::Result;
use crate::params::Layout;

/// Standard deviation of the weights: every path through the network counts, and no value overflows.
const DEVIATION: f64 = 0.05;

/// A set of packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Networks {
    /// `global-256`, depth 8, hidden 192, 16×16 tokens; and `local-1024`, DiT-XS/1 with the paper's `local*` at 32×32. In f32.
    Jacobian,
    /// DiT-XS/1 and DiT-S/1 at 32×32: global, and with `local*` as tiles and as masks, computing in f32 and for GPUs in f16;
    /// with `local*` once in f32 alone; and the insides of the XS.
    Gpu,
    /// The same of a size that a CPU runs in a moment, to try with what will run on a GPU.
    GpuTiny,
}

/// One of them.
struct Network {
    name: String,
    config: ModelConfig,
    plans: Option<Vec<Plan>>,
    table: ExportTable,
}

/// Writes a set into `dir`, each package into a folder of its name.
pub fn write(dir: &Path, set: Networks) -> Result<Vec<Manifest>> {
    let networks = match set {
        Networks::Jacobian => jacobian()?,
        Networks::Gpu => gpu(&[("xs", "DiT-XS/1", true), ("s", "DiT-S/1", false)], 32)?,
        Networks::GpuTiny => gpu(&[("tiny", "DiT-Tiny/1", true)], 8)?,
    };
    networks.into_iter().map(|network| network.write(dir)).collect()
}

fn jacobian() -> Result<Vec<Network>> {
    let table = ExportTable { weights: StoredWeights::F32, cuda: false, insides: true };
    let (size, patch) = named("DiT-XS/1")?;
    let windows = Placement::Head.place(&window_sides("local*")?, size.depth)?;
    let local = size.model(patch, (3, 32, 32), windows);
    let windows = Placement::Head.place(&[], 8)?;
    let global = ModelConfig { hidden: 192, depth: 8, heads: 6, ..size.model(patch, (1, 16, 16), windows) };
    let both = [("global-256", global), ("local-1024", local)];
    let network =
        |(name, config): (&str, ModelConfig)| Network { name: name.into(), config, plans: None, table };
    Ok(both.map(network).into())
}

/// Those of some sizes: the short name, the long one, and whether their insides are shown.
fn gpu(sizes: &[(&str, &str, bool)], side: usize) -> Result<Vec<Network>> {
    let mut networks = Vec::new();
    for &(short, name, insides) in sizes {
        let (size, patch) = named(name)?;
        let local = if size.depth < 9 { "3,5" } else { "local*" };
        for (kind, windows) in [("global", "global"), ("local", local), ("masks", local), ("f32", local)] {
            let windows = Placement::Head.place(&window_sides(windows)?, size.depth)?;
            let (cuda, insides) = (kind != "f32", insides && ["global", "local"].contains(&kind));
            networks.push(Network {
                name: format!("{short}-{kind}"),
                plans: (kind == "masks").then(|| vec![Plan::Dense; size.depth]),
                config: size.model(patch, (3, side, side), windows),
                table: ExportTable { weights: StoredWeights::F16, cuda, insides },
            });
        }
    }
    Ok(networks)
}

// === impl Network ===

impl Network {
    fn write(self, dir: &Path) -> Result<Manifest> {
        let Self { name, config, plans, table } = self;
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
            name: name.clone(),
            description: "Random weights, to measure with".to_owned(),
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
            table,
            plans,
            without_insides: None,
            extra: Vec::new(),
            out: dir.join(&name),
            force: true,
        })
    }
}

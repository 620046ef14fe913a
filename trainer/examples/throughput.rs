//! How fast does the trainer train? The loop that `train` is, on random images of 32×32, for a number of networks; what
//! `tests/gpu/check.py` compares with a loop in PyTorch.
//!
//! Run by `cargo run --release -p windowpane-trainer --example throughput -- CASE…`, a case being
//! `model,windows,plan,batch`, such as `DiT-XS/1,local*,tiles,128`; the plan is `tiles`, as the trainer chooses them, or
//! `masks`. One line of JSON a case: images a second of every stretch of steps after the first, and what the case is. With
//! `--breakdown` also milliseconds of a step's forward pass, its backward pass and the optimiser, each by itself: what a whole step
//! takes beyond their sum are batches that are late, and the host.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use windowpane_diffusion::{Grid, Plan, Window, noise};
use windowpane_trainer::attention::trainer_plan;
use windowpane_trainer::config::{Recipe, TrainConfig};
use windowpane_trainer::cuda;
use windowpane_trainer::data::ImageSet;
use windowpane_trainer::model::Geometry;
use windowpane_trainer::optim::Optimiser;
use windowpane_trainer::train::{Precision, RunOptions, train};

/// Measures the trainer's speed.
#[derive(Debug, Parser)]
struct Args {
    /// `model,windows,plan,batch`.
    #[arg(required = true)]
    cases: Vec<String>,
    /// `cpu` or `cuda`.
    #[arg(long, default_value = "cuda")]
    device: String,
    /// What the network computes in. [default: bf16 on a GPU, f32 on the CPU]
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// Steps of a stretch, each of which is timed as a whole.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    stretch: u64,
    /// Stretches, beside the first one.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    stretches: u64,
    /// Also time forward, backward and the optimiser by themselves.
    #[arg(long)]
    breakdown: bool,
}

/// A network in a plan.
struct Case<'a> {
    model: &'a str,
    windows: &'a str,
    plan: &'a str,
    batch: usize,
}

/// Pixels of a side.
const SIDE: usize = 32;

/// Steps before those that are timed part by part, and how many those are.
const WARM_UP: usize = 3;
const TIMED: usize = 11;

/// Images to learn from: no epoch is so short that its order costs anything.
const IMAGES: usize = 4096;

fn main() -> Result<()> {
    let args = Args::parse();
    let device = match args.device.as_str() {
        "cpu" => Device::Cpu,
        "cuda" => {
            cuda::load();
            ensure!(tch::Cuda::is_available(), cuda::none_seen("cuda"));
            Device::Cuda(0)
        }
        other => bail!("`--device {other}`: expected cpu or cuda"),
    };
    let images = images();
    for case in &args.cases {
        let found =
            measure(&Case::read(case)?, &images, device, &args).with_context(|| format!("`{case}`"))?;
        println!("{found}");
    }
    Ok(())
}

// === impl Case ===

impl<'a> Case<'a> {
    fn read(text: &'a str) -> Result<Self> {
        // Windows may be a list with commas in it.
        let words: Vec<&str> = text.split(',').collect();
        let [model, .., plan, batch] = words[..] else {
            bail!("`{text}`: expected model,windows,plan,batch, such as DiT-XS/1,local*,tiles,128");
        };
        let windows = text[model.len() + 1..text.len() - plan.len() - batch.len() - 2].trim_end_matches(',');
        ensure!(["tiles", "masks"].contains(&plan), "`{text}`: the plan `{plan}` is neither tiles nor masks");
        let batch = batch.parse().with_context(|| format!("`{text}`: the batch `{batch}` is no number"))?;
        Ok(Self { model, windows, plan, batch })
    }

    /// A recipe of this network; only what the speed depends on means anything.
    fn recipe(&self, steps: u64, stretch: u64) -> Result<Recipe> {
        let Self { model, windows, batch, .. } = self;
        Ok(toml::from_str(&format!(
            r#"
            name = "throughput"
            description = "random images"
            licence = "none"
            attribution = "none"
            model = {{ name = "{model}", windows = "{windows}" }}
            data = {{ kind = "toy", toy = {{ size = {SIDE}, channels = 3 }} }}
            diffusion = {{ schedule = {{ kind = "linear", steps = 1000 }}, prediction = "eps", variance = "fixed_small" }}
            train = {{ seed = 1, steps = {steps}, batch = {batch}, log_every = {stretch}, checkpoint_every = {steps} }}
            sample = {{ sampler = "ddim", grid = "uniform", steps = 10, guidance_scale = 1.0, eta = 0.0, clip_x0 = true }}
            "#
        ))?)
    }
}

fn images() -> ImageSet {
    let mut values = vec![0.0; IMAGES * 3 * SIDE * SIDE];
    noise::fill_normal_from(noise::Domain::TrainNoise, (7, 0), 0, &mut values);
    let pixels = values.iter().map(|value| (128.0 + 40.0 * value) as u8).collect();
    ImageSet::new((3, SIDE, SIDE), pixels, Vec::new(), Vec::new())
}

fn measure(case: &Case<'_>, images: &ImageSet, device: Device, args: &Args) -> Result<Value> {
    let steps = args.stretch * (args.stretches + 1);
    let config = TrainConfig::new(case.recipe(steps, args.stretch)?, images)?;
    let run = tempfile::tempdir()?;
    let precision = args.precision.unwrap_or_else(|| Precision::of(device));
    let masks: fn(Window, Grid) -> Plan = |_, _| Plan::Dense;
    let options = RunOptions {
        dir: run.path().to_owned(),
        device,
        precision,
        plan: if case.plan == "masks" { masks } else { trainer_plan },
        resume: false,
        from: None,
        time_limit: None,
        keep: 1,
    };
    train(&config, images, &options, &AtomicBool::new(false))?;
    // The first stretch plans memory and chooses kernels.
    let speeds = speeds(&run.path().join("log.jsonl"))?.split_off(1);
    let breakdown = args.breakdown.then(|| breakdown(&config, &options));
    Ok(json!({
        "model": case.model,
        "windows": case.windows,
        "plan": case.plan,
        "batch": case.batch,
        "precision": format!("{precision:?}").to_lowercase(),
        "images_per_second": speeds,
        "parameters": config.model.parameters(),
        "forward_flops": config.model.forward_flops(),
        "breakdown": breakdown,
    }))
}

/// Median milliseconds of the passes of a step, and of the optimiser, over one batch again and again.
fn breakdown(config: &TrainConfig, options: &RunOptions) -> Value {
    let (model, device) = (&config.model, options.device);
    let kind = match options.precision {
        Precision::F32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    };
    let geometry = Geometry::planned(model, options.plan, kind, device);
    let mut flat = geometry.layout().initial_tensor(1, device).set_requires_grad(true);
    let mut optimiser = Optimiser::new(config.recipe.optim, &flat);
    let batch = config.recipe.train.batch as i64;
    let image = [batch, model.channels as i64, model.height as i64, model.width as i64];
    let x_nchw = Tensor::randn(image, (Kind::Float, device));
    let t_n = Tensor::full([batch], 412.0, (Kind::Float, device));
    let y_n = Tensor::zeros([batch], (Kind::Int64, device));
    let wait = || {
        if let Device::Cuda(index) = device {
            tch::Cuda::synchronize(index as i64);
        }
    };
    let mut times = [(); 3].map(|()| Vec::new());
    for step in 0..WARM_UP + TIMED {
        let mut laps = Vec::new();
        let mut start = Instant::now();
        let mut lap = || {
            wait();
            laps.push(start.elapsed().as_secs_f64() * 1e3);
            start = Instant::now();
        };
        flat.zero_grad();
        let output = geometry.bind(&flat).forward(&x_nchw, &t_n, &y_n);
        let loss = output.to_kind(Kind::Float).square().mean(Kind::Float);
        lap();
        loss.backward();
        lap();
        let gradient = flat.grad();
        let _norm = optimiser.step(&mut flat, &gradient, step as u64, (WARM_UP + TIMED) as u64);
        lap();
        if step >= WARM_UP {
            times.iter_mut().zip(laps).for_each(|(all, lap)| all.push(lap));
        }
    }
    let [forward, backward, optimiser] = times.map(|mut all| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    });
    json!({"forward": forward, "backward": backward, "optimiser": optimiser})
}

/// Images a second, line by line of a run's log.
fn speeds(log: &Path) -> Result<Vec<f64>> {
    let lines = std::fs::read_to_string(log)?;
    let speed = |line: &str| {
        let record: Value = serde_json::from_str(line)?;
        record["images_per_second"]
            .as_f64()
            .with_context(|| format!("{}: no speed in `{line}`", log.display()))
    };
    lines.lines().map(speed).collect()
}

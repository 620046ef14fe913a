//! What each command does: read what it names, call the library, say what came of it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tch::{Device, Kind};

use crate::args;
use crate::checkpoint::{self, Weights};
use crate::config::{Recipe, TrainConfig, run_dir};
use crate::data;
use crate::model::Geometry;
use crate::picture::Picture;
use crate::sample::{SampleRequest, sample as draw};
use crate::train::{Ended, RunOptions, train as run_training};

/// Set by Ctrl-C and SIGTERM: the loop saves and leaves.
static STOP: AtomicBool = AtomicBool::new(false);

/// `prepare`
pub fn prepare(args: args::Prepare) -> Result<()> {
    let mut recipe = Recipe::read(&args.recipe)?;
    recipe.data.redirect(args.data);
    let report = data::prepare(&recipe.data, Some(&args.out))?;
    println!("{report}");
    println!("contact sheet: {}", args.out.display());
    Ok(())
}

/// `train`
pub fn train(args: args::Train) -> Result<()> {
    let device = device(&args.compute)?;
    let mut recipe = Recipe::read(&args.recipe)?;
    recipe.data.redirect(args.data);
    recipe.data.images = args.images.or(recipe.data.images);
    recipe.train.steps = args.steps.unwrap_or(recipe.train.steps);
    let images = data::load(&recipe.data)?;
    let dir = run_dir(&recipe, args.run);
    let config = TrainConfig::new(recipe, &images)?;
    eprintln!("{}", config.arithmetic(images.len()));
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let written = toml::to_string(&config.recipe).context("the recipe could not be written back")?;
    let recipe_path = dir.join("recipe.toml");
    std::fs::write(&recipe_path, written).with_context(|| recipe_path.display().to_string())?;
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130); // asked twice: leave now
        }
        eprintln!("stopping after this step, with a checkpoint; once more to leave at once");
    })?;
    let time_limit = match args.minutes {
        None => None,
        Some(m) => Some(Duration::try_from_secs_f64(m * 60.0).context("`--minutes` is a positive number")?),
    };
    let options = RunOptions { dir: dir.clone(), device, resume: args.resume, time_limit, keep: args.keep };
    match run_training(&config, &images, &options, &STOP)? {
        Ended::Finished => println!("finished: {}", dir.display()),
        Ended::Interrupted => println!("stopped: `--resume` goes on in {}", dir.display()),
    }
    Ok(())
}

/// `sample`
pub fn sample(args: args::Sample) -> Result<()> {
    let device = device(&args.compute)?;
    let (weights, recipe) = load(&args.from, args.raw, device)?;
    let config = &weights.meta.config;
    let schedule = weights.meta.schedule.build()?;
    let per_class = args.per_class.clamp(1, 4096);
    let labels: Vec<usize> = match config.classes {
        0 => vec![0; per_class],
        classes => (0..classes).flat_map(|class| std::iter::repeat_n(class, per_class)).collect(),
    };
    let solver = recipe.solver(args.steps);
    let request = SampleRequest {
        labels: labels.clone(),
        seed: args.seed,
        solver,
        guidance_scale: args.guidance.unwrap_or(recipe.sample.guidance_scale),
        batch: 64,
    };
    let bar = ProgressBar::new((labels.len() * solver.build(&schedule)?.len()) as u64);
    bar.set_style(ProgressStyle::with_template("{bar:32} {percent}%  {eta_precise} left")?);
    let net = Geometry::new(config, Kind::Float, device).bind(&weights.flat);
    let pixels = draw(&net, config, &schedule, device, &request, &|n| bar.inc(n as u64))?;
    bar.finish_and_clear();
    let shape = (config.channels, config.height, config.width);
    let columns = if config.classes > 0 { per_class } else { 8 };
    Picture::grid(&pixels, shape, columns, 2)?.save(&args.out)?;
    println!("{} images: {}", labels.len(), args.out.display());
    if let Some(dir) = args.each {
        for (i, image) in pixels.chunks(config.elements()).enumerate() {
            let class = weights.meta.classes.get(labels[i]).map_or("image", |c| c.name.as_str());
            let path = dir.join(class.replace('/', "-")).join(format!("{}.png", args.seed + i as u64));
            Picture::image(image, shape).save(&path)?;
        }
        println!("each by itself: {}", dir.display());
    }
    Ok(())
}

/// The weights of a run's newest checkpoint (its average unless `raw`), or of a file, and the run's recipe.
fn load(from: &Path, raw: bool, device: Device) -> Result<(Weights, Recipe)> {
    let (weights, run) = if from.is_dir() {
        let newest = checkpoint::list(&from.join("checkpoints"))?.pop();
        let newest = newest.with_context(|| format!("{} has no checkpoint yet", from.display()))?;
        let file = newest.join(if raw { "model.safetensors" } else { "ema.safetensors" });
        (file, from.to_owned())
    } else {
        // runs/<name>/checkpoints/step-…/ema.safetensors
        let run = from.ancestors().nth(3).map(Path::to_owned).unwrap_or_default();
        (from.to_owned(), run)
    };
    let recipe = Recipe::read(&run.join("recipe.toml"))?;
    Ok((checkpoint::load_weights(&weights, device)?, recipe))
}

/// The device that a flag names.
fn device(compute: &args::Compute) -> Result<Device> {
    if compute.threads > 0 {
        tch::set_num_threads(compute.threads.min(1024) as i32);
    }
    let cuda = |index: usize| {
        if (index as i64) < tch::Cuda::device_count() {
            Ok(Device::Cuda(index))
        } else {
            bail!("`--device {}`: libtorch sees {} CUDA devices", compute.device, tch::Cuda::device_count())
        }
    };
    match compute.device.as_str() {
        "cpu" => Ok(Device::Cpu),
        "auto" => Ok(Device::cuda_if_available()),
        "cuda" => cuda(0),
        other => match other.strip_prefix("cuda:").and_then(|i| i.parse().ok()) {
            Some(index) => cuda(index),
            None => bail!("`--device {other}`: expected cpu, cuda, cuda:N or auto"),
        },
    }
}

//! What each command does: read what it names, call the library, say what came of it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tch::{Device, Kind, Tensor};
use windowpane_diffusion::guidance::check_scale;
use windowpane_diffusion::manifest::{Lineage, REFERENCE_FILE, STEPS_BEFORE};
use windowpane_diffusion::solver::SolverConfig;

use crate::args;
use crate::attention::trainer_plan;
use crate::checkpoint::{self, Meta, State, Weights};
use crate::config::{RECIPE_FILE, Recipe, TrainConfig, run_dir};
use crate::cuda;
use crate::data::{self, Pair};
use crate::eval::{GapConfig, psnr_gap};
use crate::export::{self, ExportRequest};
use crate::folder;
use crate::memory;
use crate::model::Geometry;
use crate::picture::Picture;
use crate::sample::{SampleRequest, sample as draw};
use crate::train::{Ended, Precision, RunOptions, train as run_training};

mod report;

use report::EvalReport;

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
    recipe.data.images = args.images.map(|n| n as usize).or(recipe.data.images);
    recipe.train.steps = args.steps.unwrap_or(recipe.train.steps);
    let images = data::load(&recipe.data)?;
    let dir = run_dir(&recipe, args.run);
    let config = TrainConfig::new(recipe, &images)?;
    eprintln!("{}", config.arithmetic(images.len()));
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130); // asked twice: leave now
        }
        eprintln!("stopping after this step, with a checkpoint; once more to leave at once");
    })?;
    let time_limit = args.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    let keep = args.keep as usize;
    let options = RunOptions {
        dir: dir.clone(),
        device,
        precision: args.precision.unwrap_or_else(|| Precision::of(device)),
        plan: trainer_plan,
        resume: args.resume,
        from: args.from,
        time_limit,
        keep,
    };
    match run_training(&config, &images, &options, &STOP)? {
        Ended::Finished => println!("finished: {}", dir.display()),
        Ended::Interrupted => println!("stopped: `--resume` goes on in {}", dir.display()),
    }
    Ok(())
}

/// `sample`
pub fn sample(args: &args::Sample) -> Result<()> {
    let device = device(&args.compute)?;
    let (weights, recipe) = match &args.recipe {
        Some(recipe) => load_foreign(&args.from, recipe, device)?,
        None => load(&args.from, args.raw, device)?,
    };
    let config = &weights.meta.config;
    if !matches!(config.channels, 1 | 3) {
        bail!(
            "the model's images have {} channels, expected 1 or 3, which a picture can show",
            config.channels
        );
    }
    let schedule = weights.meta.schedule.build()?;
    let per_class = usize::from(args.per_class);
    let guidance_scale = args.guidance.unwrap_or(recipe.sample.guidance_scale);
    check_scale(guidance_scale)?;
    let labels: Vec<usize> = match config.classes {
        0 => vec![0; per_class],
        classes => (0..classes).flat_map(|class| std::iter::repeat_n(class, per_class)).collect(),
    };
    memory::check_images(config, labels.len(), memory::available())?;
    // What the network puts out is what its weights say, whatever has become of the recipe beside them.
    let Meta { prediction, variance, .. } = weights.meta;
    let solver = SolverConfig { prediction, variance, ..recipe.solver(args.steps) };
    let batch = memory::pass(config, 2, 64, memory::available())?; // an image and its unconditional twin
    let request = SampleRequest { labels: labels.clone(), seed: args.seed, solver, guidance_scale, batch };
    let bar = ProgressBar::new((labels.len() * solver.build(&schedule)?.len()) as u64);
    bar.set_style(ProgressStyle::with_template("{bar:32} {percent}%  {eta_precise} left")?);
    let net = Geometry::new(config, Kind::Float, device).bind(&weights.flat);
    let pixels = draw(&net, (config, &schedule), device, &request, &|n| bar.inc(n as u64))?;
    bar.finish_and_clear();
    let shape = (config.channels, config.height, config.width);
    let columns = if config.classes > 0 { per_class } else { 8 };
    Picture::grid(&pixels, shape, columns, 2)?.save(&args.out)?;
    println!("{} images: {}", labels.len(), args.out.display());
    if let Some(dir) = &args.each {
        for (i, image) in pixels.chunks(config.elements()).enumerate() {
            let class = weights.meta.classes.get(labels[i]).map_or("image", |c| c.name.as_str());
            let path = dir.join(class_folder(class)).join(format!("{}.png", args.seed + i as u64));
            Picture::image(image, shape).save(&path)?;
        }
        println!("each by itself: {}", dir.display());
    }
    Ok(())
}

/// The name of a class as that of a folder: one in the folder where it is to lie, whatever the class is called.
fn class_folder(class: &str) -> String {
    let plain = class.replace(['/', '\0'], "-");
    match plain.strip_prefix('.') {
        Some(rest) => format!("-{rest}"), // `.` and `..` lie elsewhere, and others hide
        None => plain,
    }
}

/// `eval`
pub fn eval(args: &args::Eval) -> Result<()> {
    let device = device(&args.compute)?;
    check_run(&args.run)?;
    let _lock = folder::lock(&args.run)?; // until its files are written
    let (state, weights, mut recipe) = load_run(&args.run, args.raw, device)?;
    let config = &weights.meta.config;
    let (asked, there) = (args.timesteps, weights.meta.schedule.steps);
    if asked as usize > there {
        bail!("`--timesteps` is {asked}, expected 1 to {there}, the timesteps of the run's schedule");
    }
    let pair = images_of(&args.run, (&state, &weights, &mut recipe), args.data.clone())?;
    if pair.dropped > 0 {
        eprintln!("{} held-out images are also training images and were dropped", pair.dropped);
    }
    // Before the network is made: its masks are what may not fit.
    let batch = memory::pass(config, 1, GapConfig::default().batch, memory::available())?;
    let net = Geometry::new(config, Kind::Float, device).bind(&weights.flat);
    let denoise = |x: &Tensor, t: &[f32], y: &[i64]| {
        let (t, y) = (Tensor::from_slice(t), Tensor::from_slice(y));
        tch::no_grad(|| net.forward(&x.to_device(device), &t.to_device(device), &y.to_device(device)))
    };
    let images = args.images as usize;
    let gap = GapConfig {
        images,
        timesteps: args.timesteps as usize,
        classes: config.classes,
        batch,
        ..GapConfig::default()
    };
    let sides = images.min(pair.train.len()) + images.min(pair.test.len());
    let bar = ProgressBar::new(u64::from(args.timesteps) * sides as u64);
    bar.set_style(ProgressStyle::with_template("{bar:32} {percent}%  {eta_precise} left")?);
    let schedule = weights.meta.schedule.build()?;
    let process = (&schedule, weights.meta.prediction);
    let result = psnr_gap(&denoise, (&pair.train, &pair.test), process, &gap, &|n| bar.inc(n as u64))?;
    bar.finish_and_clear();
    println!("{result}");
    let (step, data_sha256) = (state.step, state.data_sha256);
    EvalReport { step, raw: args.raw, data_sha256, config: gap, psnr_gap: result }.write(&args.run)
}

/// The images that a run was trained on, and those that were held out; `data` is where they are by now.
fn images_of(
    run: &Path,
    (state, weights, recipe): (&State, &Weights, &mut Recipe),
    data: Option<PathBuf>,
) -> Result<Pair> {
    let config = &weights.meta.config;
    recipe.data.redirect(data);
    let pair = data::load_pair(&recipe.data)?;
    let (images, expected) = (&pair.train, (config.channels, config.height, config.width));
    let got = (images.channels, images.height, images.width);
    if got != expected {
        let show = |(channels, height, width)| format!("{channels} × {height} × {width}");
        bail!(
            "the images that `--data` or else `[data]` says are {}, expected {} (channels × height × width), as {} was \
             trained on",
            show(got),
            show(expected),
            run.display()
        );
    }
    // A gap to images that were never trained on is none, and the card would tell it as one.
    state.check_images(run, images, "`--data` or else `[data]` says")?;
    Ok(pair)
}

/// `export`
pub fn export(args: &args::Export) -> Result<()> {
    let (state, weights, mut recipe) = load_run(&args.run, args.raw, Device::Cpu)?;
    let samples = args.run.join("samples").join(format!("step-{:08}.png", weights.meta.step));
    let mut metrics = report::metrics(&args.run, &state, args.raw)?;
    if let Some(steps) = state.steps_before {
        metrics.insert(STEPS_BEFORE.to_owned(), steps as f64);
    }
    let mut extra = Vec::new();
    if args.raw {
        eprintln!(
            "no samples picture: those of the run are drawn with the averaged weights, these are the raw ones"
        );
    } else if samples.exists() {
        extra.push(("samples.png".to_owned(), std::fs::read(&samples).context("samples")?));
    } else {
        eprintln!("no samples picture: {} does not exist", samples.display());
    }
    if args.reference {
        let pair = images_of(&args.run, (&state, &weights, &mut recipe), args.data.clone())?;
        let labelled = weights.meta.config.classes > 0;
        let file = export::reference::file(&pair, labelled).context(REFERENCE_FILE)?;
        extra.push((REFERENCE_FILE.to_owned(), file));
    }
    let request = ExportRequest {
        name: recipe.name.clone(),
        description: recipe.description.clone(),
        purpose: recipe.purpose.clone(),
        licence: recipe.licence.clone(),
        meta: &weights.meta,
        flat: &weights.flat,
        defaults: recipe.sample,
        lineage: Lineage {
            data: recipe.attribution.clone(),
            data_sha256: state.data_sha256,
            images: state.images,
            seed: state.seed,
            steps: state.step,
            trainer: concat!("windowpane-trainer ", env!("CARGO_PKG_VERSION")).to_owned(),
            metrics,
        },
        table: recipe.export,
        plans: None,
        without_insides: Some(format!(
            "`insides = false` under `[export]` in {}",
            args.run.join(RECIPE_FILE).display()
        )),
        extra,
        out: args.out.clone().unwrap_or_else(|| Path::new("models").join(&recipe.name)),
        force: args.force,
    };
    write_package(&request)
}

/// `refresh`
pub fn refresh(args: &args::Refresh) -> Result<()> {
    let mut package = export::reopen::reopen(&args.package)?;
    let added = args.insides && !package.table.insides;
    package.table.insides |= args.insides;
    let manifest = &package.manifest;
    write_package(&ExportRequest {
        name: manifest.name.clone(),
        description: manifest.description.clone(),
        purpose: package.purpose,
        licence: manifest.licence.clone(),
        meta: &package.meta,
        flat: &package.flat,
        defaults: manifest.defaults,
        lineage: manifest.lineage.clone(),
        table: package.table,
        plans: None,
        without_insides: added.then(|| "without `--insides`".to_owned()),
        extra: package.extra,
        force: args.out.is_none(),
        out: args.out.clone().unwrap_or_else(|| args.package.clone()),
    })
}

fn write_package(request: &ExportRequest<'_>) -> Result<()> {
    let manifest = export::export(request)?;
    let bytes: u64 = manifest.files.values().map(|f| f.size).sum();
    println!("{}: {:.1} MB in {} files", request.out.display(), bytes as f64 / 1e6, manifest.files.len() + 1);
    Ok(())
}

/// `export-ops`
pub fn export_ops(args: &args::ExportOps) -> Result<()> {
    let (written, what) = match (args.networks, args.unet) {
        (Some(set), _) => (export::networks::write(&args.out, set)?.len(), "packages"),
        (None, true) => (export::unet::write(&args.out)?, "graphs"),
        (None, false) => (export::single::write_all(&args.out)?, "graphs"),
    };
    println!("{written} {what}: {}", args.out.display());
    Ok(())
}

/// Refuses what is no folder, and so no run.
fn check_run(run: &Path) -> Result<()> {
    if !run.is_dir() {
        bail!("{}: no such folder, expected that of a run, as `train` makes it", run.display());
    }
    Ok(())
}

/// Where a run stands, the weights of its newest checkpoint (their average unless `raw`), and its recipe.
fn load_run(run: &Path, raw: bool, device: Device) -> Result<(State, Weights, Recipe)> {
    check_run(run)?;
    let newest = checkpoint::list(&run.join("checkpoints"))?.pop();
    let newest = newest.with_context(|| format!("{} has no checkpoint yet", run.display()))?;
    let (state, weights) = checkpoint::open(&newest, raw, device)?;
    Ok((state, weights, Recipe::read(&run.join(RECIPE_FILE))?))
}

/// The weights of a run, or of a file among its checkpoints, and the run's recipe.
fn load(from: &Path, raw: bool, device: Device) -> Result<(Weights, Recipe)> {
    if !from.exists() {
        bail!("{}: no such run or file, expected a run's folder or a `.safetensors` file", from.display());
    }
    if from.is_dir() {
        let (_, weights, recipe) = load_run(from, raw, device)?;
        return Ok((weights, recipe));
    }
    let weights = checkpoint::load_weights(from, device)?;
    // runs/<name>/checkpoints/step-…/ema.safetensors
    let run = from.ancestors().nth(3).unwrap_or(Path::new(""));
    Ok((weights, Recipe::read(&run.join(RECIPE_FILE))?))
}

/// A state dict of facebookresearch/DiT's `models.py`, as the model of a recipe.
fn load_foreign(from: &Path, recipe: &Path, device: Device) -> Result<(Weights, Recipe)> {
    let config = Recipe::read(recipe)?.for_size_told()?;
    Ok((checkpoint::load_foreign(from, &config.meta(0), device)?, config.recipe))
}

/// The device that a flag names.
fn device(compute: &args::Compute) -> Result<Device> {
    if compute.threads > 0 {
        tch::set_num_threads(compute.threads.min(1024) as i32);
    }
    if compute.device != "cpu" {
        cuda::load();
    }
    let cuda = |index: usize| {
        if i64::try_from(index).is_ok_and(|index| index < tch::Cuda::device_count()) {
            Ok(Device::Cuda(index))
        } else {
            bail!(cuda::none_seen(&compute.device))
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

#[cfg(test)]
mod tests {
    use std::path::Component;

    use super::*;

    #[test]
    fn a_class_is_a_folder_inside() {
        for (class, expected) in [
            ("ankle boot", "ankle boot"),
            ("..", "-."),
            (".", "-"),
            ("/etc", "-etc"),
            ("../../a", "-.-..-a"),
            ("a\0", "a-"),
        ] {
            assert_eq!(class_folder(class), expected);
            let parts: Vec<_> = Path::new(expected).components().collect();
            assert!(matches!(parts[..], [Component::Normal(_)]), "{parts:?}");
        }
    }
}

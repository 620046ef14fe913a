//! The training loop, in six paragraphs: batch, forward and backward, step, log, checkpoint, samples.
//!
//! Everything random (order, timesteps, noise, flips, dropped labels) is a pure function of (seed, step), so a
//! run that was interrupted and resumed is the run that was not, bit for bit on the CPU.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use windowpane_diffusion::{Grid, Plan, Schedule, Window};

use crate::checkpoint::{self, State};
use crate::config::{RECIPE_FILE, TrainConfig};
use crate::data::ImageSet;
use crate::error::{Error, Result};
use crate::folder;
use crate::log::{Log, Record};
use crate::loss::Process;
use crate::memory;
use crate::model::Geometry;
use crate::optim::Optimiser;
use crate::picture::Picture;
use crate::sample::{SampleRequest, sample};

mod beginning;
mod feed;
mod resume;

use feed::{Batch, Maker};

/// How a run is carried out: nothing here changes what is learnt, but for rounding.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The run's folder.
    pub dir: PathBuf,
    /// Device to train on.
    pub device: Device,
    /// What the network computes in. Weights, moments and the moving average are f32 with either.
    pub precision: Precision,
    /// How a layer's window is computed; [`trainer_plan`](crate::attention::trainer_plan) is the fastest that is known.
    pub plan: fn(Window, Grid) -> Plan,
    /// Go on from the newest checkpoint in `dir`.
    pub resume: bool,
    /// Begin with the weights of this run, package or file instead of random ones.
    pub from: Option<PathBuf>,
    /// Stop, with a checkpoint, after this long.
    pub time_limit: Option<Duration>,
    /// Checkpoints kept.
    pub keep: usize,
}

/// What a network computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    /// Single precision.
    F32,
    /// bfloat16: single precision's range at half the size, for GPUs with matrix units.
    Bf16,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All steps are done.
    Finished,
    /// It was asked to stop, or its time was over; `--resume` goes on.
    Interrupted,
}

/// A run in memory.
struct Run<'a> {
    /// Held for the life of the run: no second process writes into its folder.
    _lock: File,
    config: &'a TrainConfig,
    images: &'a ImageSet,
    options: &'a RunOptions,
    schedule: Schedule,
    process: Process,
    geometry: Geometry,
    flat: Tensor,
    optimiser: Optimiser,
    state: State,
}

/// Trains to the recipe's last step, or until `stop` is set. Checkpoints lie in `dir/checkpoints`.
///
/// Errors: too little memory, another process in the run's folder, a checkpoint that is in the way, damaged, beyond the
/// last step or of another run or recipe, none to resume from, a loss that is no longer a number, those of the file system.
pub fn train(
    config: &TrainConfig,
    images: &ImageSet,
    options: &RunOptions,
    stop: &AtomicBool,
) -> Result<Ended> {
    let mut run = Run::begin(config, images, options)?;
    // Only now: a run that is refused leaves the recipe of the one that is there.
    config.recipe.write(&options.dir.join(RECIPE_FILE))?;
    std::thread::scope(|scope| {
        let batches = Maker::new(config, images, options.device).start(scope, run.state.step)?;
        run.steps(&mut batches.into_iter(), stop)
    })
}

// === impl Precision ===

impl Precision {
    /// The one in which a device trains best: bf16 on a GPU, f32 on a CPU, which has no units for the other.
    pub fn of(device: Device) -> Self {
        if device.is_cuda() { Self::Bf16 } else { Self::F32 }
    }

    fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

// === impl Run ===

impl<'a> Run<'a> {
    fn begin(config: &'a TrainConfig, images: &'a ImageSet, options: &'a RunOptions) -> Result<Self> {
        let (recipe, device) = (&config.recipe, options.device);
        if device == Device::Cpu {
            memory::check_batch(config, memory::available())?;
        }
        // Before there is a folder, if they are none.
        let given = options.from.as_ref().map(|path| beginning::read(path, &config.meta(0), device));
        let given = given.transpose()?;
        let dir = folder::place(&options.dir)?;
        if options.resume && !dir.exists() {
            return Err(nothing_to_resume(&dir));
        }
        std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        let lock = folder::lock(&dir)?;
        let schedule = recipe.diffusion.schedule.build()?;
        let process = Process::new(&schedule, recipe.diffusion.prediction, recipe.diffusion.variance, device);
        let geometry = Geometry::planned(&config.model, options.plan, options.precision.kind(), device);
        let seed = recipe.train.seed;
        let (flat, steps_before) = match given {
            Some((flat, steps)) => (flat, Some(steps)),
            None => (geometry.layout().initial_tensor(seed, device), None),
        };
        let optimiser = Optimiser::new(recipe.optim, &flat);
        let state = State {
            step: 0,
            steps_before,
            seed,
            data_sha256: images.sha256.clone(),
            images: images.len(),
            images_seen: 0,
            seconds: 0.0,
            files: BTreeMap::new(),
        };
        let mut run = Self {
            _lock: lock,
            config,
            images,
            options,
            schedule,
            process,
            geometry,
            flat,
            optimiser,
            state,
        };
        run.go_on()?;
        // Before the work that would be lost, if it cannot be made.
        let checkpoints = run.checkpoints();
        std::fs::create_dir_all(&checkpoints).map_err(Error::io(&checkpoints))?;
        checkpoint::clear(&checkpoints)?;
        run.flat = run.flat.set_requires_grad(true);
        Ok(run)
    }

    /// All steps that are left, or those until `stop` is set.
    fn steps(&mut self, batches: &mut impl Iterator<Item = Batch>, stop: &AtomicBool) -> Result<Ended> {
        let (config, options) = (self.config, self.options);
        let steps = config.recipe.train.steps;
        let mut log = Log::open(&options.dir, self.state.step, steps)?;
        let table = config.recipe.train;
        let images_per_step = (table.batch * table.accumulate) as u64;
        let (session, seconds_before) = (Instant::now(), self.state.seconds);
        let (mut window_start, mut window_steps) = (Instant::now(), 0);
        if self.samples_due() && folder::there(&self.samples_path()).is_ok_and(|there| !there) {
            self.show_samples(&log); // the last session ended before they were drawn
        }
        let mut sums = Tensor::zeros([2], (Kind::Float, options.device)); // (loss, gradient norm)

        while self.state.step < steps {
            let step = self.state.step;

            // Forward and backward over the batches of this step. One gradient for the one flat buffer.
            let loss = self.backward(batches);

            // The optimiser's step and the moving average.
            let gradient = self.flat.grad();
            let norm = self.optimiser.step(&mut self.flat, &gradient, step, steps);
            sums += Tensor::stack(&[loss, norm], 0);
            window_steps += 1;
            self.state.step += 1;
            self.state.images_seen += images_per_step;
            self.state.seconds = seconds_before + session.elapsed().as_secs_f64();
            log.tick();

            // The log. Reading the sums is the loop's one synchronisation with the device.
            let done = self.state.step;
            let stopping = stop.load(Ordering::Relaxed)
                || options.time_limit.is_some_and(|limit| session.elapsed() >= limit)
                || done == steps;
            let saving = done.is_multiple_of(table.checkpoint_every) || stopping;
            if done.is_multiple_of(table.log_every) || saving {
                let means = Vec::<f32>::try_from(&(&sums / window_steps as f64).to_device(Device::Cpu))?;
                let record = Record {
                    step: done,
                    loss: f64::from(means[0]),
                    grad_norm: f64::from(means[1]),
                    lr: config.recipe.optim.lr_at(step, steps),
                    images_per_second: (window_steps * images_per_step) as f64
                        / window_start.elapsed().as_secs_f64(),
                    seconds: self.state.seconds,
                };
                if !record.loss.is_finite() || !record.grad_norm.is_finite() {
                    let last_good = checkpoint::list(&self.checkpoints())?.pop();
                    return Err(Error::NotFinite { step: done, loss: record.loss, last_good });
                }
                log.record(&record, steps);
                sums = sums.zeros_like();
                (window_start, window_steps) = (Instant::now(), 0);
            }

            // A checkpoint. Only finite weights get here.
            if saving {
                let path = self.save()?;
                log.say(&format!("checkpoint: {}", path.display()));
            }

            // A grid of samples, to look at. Drawing them is no training, and does not count in its speed.
            if self.samples_due() {
                let begun = Instant::now();
                self.show_samples(&log);
                window_start += begun.elapsed();
            }
            if stopping && done < steps {
                return Ok(Ended::Interrupted);
            }
        }
        Ok(Ended::Finished)
    }

    fn checkpoints(&self) -> PathBuf {
        self.options.dir.join("checkpoints")
    }

    /// Takes up the newest checkpoint, or makes sure that none would be overwritten.
    fn go_on(&mut self) -> Result<()> {
        match checkpoint::newest(&self.checkpoints())? {
            None if self.options.resume => Err(nothing_to_resume(&self.options.dir)),
            None => Ok(()),
            Some(path) if !self.options.resume => Err(Error::Config(format!(
                "{} exists: `--resume` goes on from it, `--run DIR` starts another run",
                path.display()
            ))),
            Some(path) => {
                let meta = self.config.meta(0);
                let (state, flat) = checkpoint::load(&path, &meta, &mut self.optimiser, self.options.device)?;
                let recipe = &self.config.recipe;
                resume::check_state(&path, &state, &recipe.train, self.images)?;
                resume::check_recipe(&self.options.dir.join(RECIPE_FILE), recipe)?;
                (self.state, self.flat) = (state, flat);
                Ok(())
            }
        }
    }

    /// The mean loss of the next step's batches, whose gradient is in the flat buffer then.
    fn backward(&mut self, batches: &mut impl Iterator<Item = Batch>) -> Tensor {
        let accumulate = self.config.recipe.train.accumulate;
        self.flat.zero_grad();
        let mut loss = Tensor::zeros([], (Kind::Float, self.options.device));
        for _ in 0..accumulate {
            let batch = batches.next().expect("batches come up to the last step: this is a bug");
            let batch = batch.to_device(self.options.device);
            let micro_loss = self.loss(&batch) / accumulate as f64;
            micro_loss.backward();
            loss += micro_loss.detach();
        }
        loss
    }

    fn loss(&self, batch: &Batch) -> Tensor {
        let net = self.geometry.bind(&self.flat);
        let x_t = self.process.noisy(&batch.x0_nchw, &batch.eps_nchw, &batch.t_n);
        let output = net.forward(&x_t, &batch.t_n.to_kind(Kind::Float), &batch.y_n);
        self.process.loss(&output, &batch.x0_nchw, &batch.eps_nchw, &batch.t_n)
    }

    /// Whether a grid of samples is due at the step where the run stands.
    fn samples_due(&self) -> bool {
        let (table, done) = (self.config.recipe.train, self.state.step);
        table.sample_every > 0 && done > 0 && (done.is_multiple_of(table.sample_every) || done == table.steps)
    }

    fn samples_path(&self) -> PathBuf {
        self.options.dir.join(format!("samples/step-{:08}.png", self.state.step))
    }

    /// Draws the grid: a run does not end for want of it.
    fn show_samples(&self, log: &Log) {
        match self.samples() {
            Ok(path) => log.say(&format!("samples: {}", path.display())),
            Err(error) => log.say(&format!("warning: no samples of step {}: {error}", self.state.step)),
        }
    }

    /// Draws eight images of every class (64 of an unconditional model) with the averaged weights.
    fn samples(&self) -> Result<PathBuf> {
        let recipe = &self.config.recipe;
        let labels: Vec<usize> = match self.config.model.classes {
            0 => vec![0; 64],
            classes => (0..classes.min(16)).flat_map(|class| [class; 8]).collect(),
        };
        let request = SampleRequest {
            labels,
            seed: 0,
            solver: recipe.solver(None),
            guidance_scale: recipe.sample.guidance_scale,
            batch: memory::pass(&self.config.model, 2, 64, memory::available())?,
        };
        let net = self.geometry.bind(&self.optimiser.ema);
        let pixels =
            sample(&net, (&self.config.model, &self.schedule), self.options.device, &request, &|_| ())?;
        let (path, model) = (self.samples_path(), &self.config.model);
        let picture = Picture::grid(&pixels, (model.channels, model.height, model.width), 8, 2)?.png()?;
        let above = self.options.dir.join("samples");
        std::fs::create_dir_all(&above).map_err(Error::io(&above))?;
        folder::write_file(&path, &picture)?; // `export` takes it along: whole or not at all
        Ok(path)
    }

    fn save(&self) -> Result<PathBuf> {
        let meta = self.config.meta(self.state.step);
        let place = (self.checkpoints(), self.options.keep);
        checkpoint::save((&place.0, place.1), (&meta, &self.state), &self.flat, &self.optimiser)
    }
}

fn nothing_to_resume(dir: &Path) -> Error {
    Error::file(dir, "has no checkpoint for `--resume` to go on from; without it, a run begins here")
}

#[cfg(test)]
mod tests;

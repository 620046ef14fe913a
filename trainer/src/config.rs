//! A recipe is what was written; a `TrainConfig` is what it means: names looked up, defaults filled in, every
//! field checked against the others. Unknown keys are errors, so that a typing mistake never trains for a day.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use windowpane_diffusion::config::{named, window_sides};
use windowpane_diffusion::error::number;
use windowpane_diffusion::manifest::{
    Class, SampleDefaults, class_words, not_blank, plain_name, sample_defaults,
};
use windowpane_diffusion::solver::SolverConfig;
use windowpane_diffusion::{ModelConfig, Placement, Prediction, ScheduleConfig, Variance};

use crate::checkpoint::Meta;
use crate::data::{DataSource, ImageSet, Kind};
use crate::error::{Error, Result};
use crate::folder;
use crate::optim::OptimConfig;

/// The longest run: the noise of a step is keyed by 32 bits of it.
pub const MAX_STEPS: u64 = u32::MAX as u64 - 1;

/// The recipe of a run in its folder, flags and defaults filled in.
pub const RECIPE_FILE: &str = "recipe.toml";

/// The largest batch, and the most of them in a step.
pub const MAX_BATCH: usize = 65_536;

/// A recipe file: one training run, from data to package.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the run and of the package it makes, as [`plain_name`] accepts it.
    pub name: String,
    /// One sentence for the model card.
    pub description: String,
    /// Licence of the weights, with attribution where the data asks for it.
    pub licence: String,
    /// What the images are, and whom to thank for them.
    pub attribution: String,
    /// What the model is good for, and what not: a paragraph of the card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    /// The network.
    pub model: ModelTable,
    /// The images.
    pub data: DataSource,
    /// The noise.
    pub diffusion: DiffusionTable,
    /// The run.
    pub train: TrainTable,
    /// The optimiser.
    #[serde(default)]
    pub optim: OptimConfig,
    /// How samples are drawn by default: of the grids in training, and of the package.
    pub sample: SampleDefaults,
    /// Classes by label; empty for an unconditional model.
    #[serde(default)]
    pub classes: Vec<Class>,
    /// How the package stores its weights.
    #[serde(default)]
    pub export: ExportTable,
}

/// `[model]`: a named size, or every size by itself, and the windows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelTable {
    /// A name of the table in `diffusion/src/config.rs`, e.g. `DiT-S/4`.
    pub name: String,
    /// Overrides the name's depth.
    pub depth: Option<usize>,
    /// Overrides the name's hidden width.
    pub hidden: Option<usize>,
    /// Overrides the name's heads.
    pub heads: Option<usize>,
    /// `global`, `local`, `local*`, or sides such as `3,5,7` or `3*3,5*3`.
    pub windows: String,
    /// Where the local layers sit: `head`, `mix` or `tail`.
    #[serde(default = "head")]
    pub placement: Placement,
    /// Also predict the reverse process's variance.
    #[serde(default)]
    pub learn_sigma: bool,
}

/// `[diffusion]`: the noise and what is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionTable {
    /// Schedule and number of timesteps.
    pub schedule: ScheduleConfig,
    /// `eps`, `x0` or `v`.
    pub prediction: Prediction,
    /// `fixed_small`, `fixed_large`, or `learned_range` (which goes with `learn_sigma`).
    pub variance: Variance,
}

/// `[train]`: length, batch, and what is written when.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainTable {
    /// Decides initial weights, order, noise, timesteps, flips and label drop.
    pub seed: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Images per forward pass.
    pub batch: usize,
    /// Forward passes per optimiser step.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// Mirror half of the images.
    #[serde(default)]
    pub flip: bool,
    /// Fraction of labels replaced by the null class, for classifier-free guidance (Ho & Salimans 2022).
    #[serde(default)]
    pub label_drop: f32,
    /// Steps between log lines.
    #[serde(default = "ten")]
    pub log_every: u64,
    /// Steps between sample grids; 0 for none.
    #[serde(default)]
    pub sample_every: u64,
    /// Steps between checkpoints.
    #[serde(default = "thousand")]
    pub checkpoint_every: u64,
}

/// `[export]`: what the package holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportTable {
    /// Stored weights: `f16` halves the file; CPU graphs cast at load and compute in f32.
    pub weights: StoredWeights,
    /// Also write the f16 graph for CUDA.
    pub cuda: bool,
    /// Also write the graphs that show the network's insides: attention, and products with its Jacobian.
    pub insides: bool,
}

/// How weights lie in the package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredWeights {
    /// As trained.
    F32,
    /// Rounded to half precision.
    F16,
}

/// A recipe resolved against its data: what training, sampling and export work with.
#[derive(Debug, Clone)]
pub struct TrainConfig {
    /// The recipe as written.
    pub recipe: Recipe,
    /// The network, its image sizes from the data.
    pub model: ModelConfig,
}

fn head() -> Placement {
    Placement::Head
}
fn one() -> usize {
    1
}
fn ten() -> u64 {
    10
}
fn thousand() -> u64 {
    1000
}

// === impl ExportTable ===

impl Default for ExportTable {
    fn default() -> Self {
        Self { weights: StoredWeights::F16, cuda: true, insides: true }
    }
}

// === impl Recipe ===

impl Recipe {
    /// Reads a recipe. A relative data path is taken from the working directory, as a shell would. Errors: what is not
    /// a recipe, with its line; a name that would leave the folder of the runs or that no package can have.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let recipe: Self = toml::from_str(&text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map_or(String::new(), |b| format!("line {}: ", b.matches('\n').count() + 1));
            Error::file(path, format!("{line}{}", error.message().replace('\n', ", ")))
        })?;
        plain_name("name", &recipe.name).map_err(|error| Error::file(path, error))?;
        Ok(recipe)
    }

    /// Writes the recipe, flags and defaults filled in, into a folder that exists: whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(self).map_err(|e| Error::file(path, e))?;
        folder::write_file(path, text.as_bytes())
    }

    /// Resolves the recipe for images of a size, checking every field.
    pub fn resolve(self, channels: usize, height: usize, width: usize) -> Result<TrainConfig> {
        let m = &self.model;
        let (size, patch) = named(&m.name)?;
        let depth = m.depth.unwrap_or(size.depth);
        let windows = m.placement.place(&window_sides(&m.windows)?, depth)?;
        let model = ModelConfig {
            hidden: m.hidden.unwrap_or(size.hidden),
            depth,
            heads: m.heads.unwrap_or(size.heads),
            classes: self.classes.len(),
            learn_sigma: m.learn_sigma,
            ..size.model(patch, (channels, height, width), windows)
        };
        model.validate()?;
        self.check(&model)?;
        Ok(TrainConfig { recipe: self, model })
    }

    /// Resolves the recipe for images of the size that its own `[data]` tells. Errors: it does not tell one.
    pub fn for_size_told(self) -> Result<TrainConfig> {
        let DataSource { kind, toy, channels, height, width, .. } = self.data;
        let toy = (kind == Kind::Toy).then(|| toy.unwrap_or_default());
        let told = toy.map(|toy| (toy.channels, toy.size, toy.size));
        let told = told.or_else(|| Some((channels?, height?, width?)));
        let Some((channels, height, width)) = told else {
            let needed = "`data.channels`, `data.height` and `data.width`";
            return Err(Error::Config(format!("recipe: {needed} are needed where no image is read")));
        };
        self.resolve(channels, height, width)
    }

    fn check(&self, model: &ModelConfig) -> Result<()> {
        plain_name("name", &self.name)?;
        let fail = |what: String| Err(Error::Config(format!("recipe: {what}")));
        if self.purpose.as_ref().is_some_and(|purpose| purpose.trim().is_empty()) {
            return fail("`purpose` is blank, expected a text or no such key".into());
        }
        let t = &self.train;
        if !(1..=MAX_BATCH).contains(&t.batch) || !(1..=MAX_BATCH).contains(&t.accumulate) {
            return fail(format!(
                "`train.batch` {} and `train.accumulate` {} are 1 to {MAX_BATCH}",
                t.batch, t.accumulate
            ));
        }
        if !(1..=MAX_STEPS).contains(&t.steps) {
            return fail(format!("`train.steps` is {}, expected 1 to {MAX_STEPS}", t.steps));
        }
        if !(0.0..1.0).contains(&t.label_drop) {
            let got = number(t.label_drop);
            return fail(format!("`train.label_drop` is {got}, expected 0 to below 1"));
        }
        if t.log_every == 0 || t.checkpoint_every == 0 {
            return fail("`train.log_every` and `train.checkpoint_every` are at least 1".into());
        }
        if (self.diffusion.variance == Variance::LearnedRange) != model.learn_sigma {
            return fail(
                "`variance = \"learned_range\"` goes with `learn_sigma = true`, and neither alone".into(),
            );
        }
        if let Some(problem) = self.optim.problem() {
            return fail(problem);
        }
        self.check_package().map_err(|error| Error::Config(format!("recipe: {error}")))
    }

    /// What a package is held to that comes out of the recipe as it stands: said now, not after a day of training.
    fn check_package(&self) -> windowpane_diffusion::Result<()> {
        not_blank("licence", &self.licence)?;
        not_blank("attribution", &self.attribution)?;
        class_words(&self.classes)?;
        let DiffusionTable { schedule, prediction, variance } = self.diffusion;
        let schedule = schedule.build().map_err(|error| error.within("diffusion"))?;
        sample_defaults(&self.sample, (&schedule, prediction, variance), self.classes.len())
            .map_err(|error| error.within("sample"))
    }

    /// The recipe's own sampler, with another number of steps where one is given.
    pub fn solver(&self, steps: Option<usize>) -> SolverConfig {
        SolverConfig {
            sampler: self.sample.sampler,
            grid: self.sample.grid,
            steps: steps.unwrap_or(self.sample.steps),
            eta: self.sample.eta,
            clip_x0: self.sample.clip_x0,
            prediction: self.diffusion.prediction,
            variance: self.diffusion.variance,
        }
    }
}

// === impl TrainConfig ===

impl TrainConfig {
    /// Resolves a recipe against its loaded images; the labels must fit the classes.
    pub fn new(recipe: Recipe, images: &ImageSet) -> Result<Self> {
        let classes = recipe.classes.len();
        if classes > 0 && images.labels.is_empty() {
            return Err(Error::Config(format!("recipe: {classes} classes, but the images have no labels")));
        }
        check_names(&recipe.classes, &images.names)?; // names tell more than a label beyond the last class
        if let Some(label) = images.labels.iter().find(|&&l| classes > 0 && !(0..classes as i64).contains(&l))
        {
            return Err(Error::Config(format!(
                "an image has label {label}, the recipe has {classes} classes"
            )));
        }
        recipe.resolve(images.channels, images.height, images.width)
    }

    /// What weights of this run say about themselves.
    pub fn meta(&self, step: u64) -> Meta {
        Meta {
            config: self.model.clone(),
            schedule: self.recipe.diffusion.schedule,
            prediction: self.recipe.diffusion.prediction,
            variance: self.recipe.diffusion.variance,
            classes: self.recipe.classes.clone(),
            step,
        }
    }

    /// The arithmetic header: what the run costs, before it is paid.
    pub fn arithmetic(&self, images: usize) -> String {
        let (t, flops) = (&self.recipe.train, self.model.forward_flops());
        let per_step = t.batch * t.accumulate;
        let seen = t.steps as f64 * per_step as f64;
        format!(
            "{}: {:.2} M parameters, {:.3} GFLOPs forward an image, {} tokens\n\
             {} images, {} steps of {per_step} = {:.1} epochs, {:.2e} FLOPs in all",
            self.recipe.name,
            self.model.parameters() as f64 / 1e6,
            flops / 1e9,
            self.model.grid().tokens(),
            images,
            t.steps,
            seen / images.max(1) as f64,
            3.0 * flops * seen,
        )
    }
}

/// Refuses classes that are not the images' own, where both are told. Errors: the first label that means two things.
fn check_names(classes: &[Class], names: &[String]) -> Result<()> {
    if classes.is_empty() {
        return Ok(());
    }
    let differs =
        |(label, name): &(usize, &String)| !classes.get(*label).is_some_and(|class| class.means(name));
    match names.iter().enumerate().find(differs) {
        None if (1..classes.len()).contains(&names.len()) => Err(Error::Config(format!(
            "recipe: {} classes, but the images have {}: {}",
            classes.len(),
            names.len(),
            names.join(", ")
        ))),
        None => Ok(()),
        Some((label, name)) => Err(Error::Config(format!(
            "recipe: the images call label {label} {name:?}, expected a word of `classes[{label}]`, which {}: the order of \
             the classes is that of the labels; an alias makes two words one class, `data.classes` names the labels anew",
            classes.get(label).map_or("does not exist".to_owned(), |class| format!("is {:?}", class.name))
        ))),
    }
}

/// Where a run keeps its things: `runs/<name>` unless told.
pub fn run_dir(recipe: &Recipe, given: Option<PathBuf>) -> PathBuf {
    given.unwrap_or_else(|| Path::new("runs").join(&recipe.name))
}

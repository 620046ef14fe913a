//! What is a valid request, for this model? From what a client wrote to what will be done: every field checked
//! against the model and every default filled in, once, before anything is admitted.
//!
//! An image is a pure function of (model digest, [`SampleSpec`], seed); what a spec does not hold, an image does
//! not depend on.

mod class;
mod names;
mod output;
mod seed;
mod start;
mod watch;
mod weight;

use std::sync::Arc;

use windowpane_diffusion::error::number;
use windowpane_diffusion::manifest::Manifest;
use windowpane_diffusion::{Evaluation, Sampler, SolverConfig, TimeGrid, guidance};

pub use class::ClassRef;
pub use names::{FileBytes, SamplerName, TimeGridName};
pub use output::{File, MAX_SIDE, Output};
pub use seed::{MAX_SEED, Seed};
pub(crate) use start::unwrapped;
pub use start::{DEFAULT_STRENGTH, MOST_NOISE, Start};
pub use watch::{MAX_FRAME_BYTES, MAX_PREVIEWS, Watch};

use crate::error::ApiError;
use crate::extract::Accept;
use crate::middleware::request_id::random_u64;
use crate::model::Card;
use crate::routes::images::ImageRequest;
use crate::sampler::{Trajectory, Unit};

/// Images of one request; OpenAI's bound.
pub const MAX_IMAGES: u64 = 10;

/// Everything that decides an image but the model and the seed.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleSpec {
    /// The class, if the model has classes.
    pub class: Option<usize>,
    /// The label of the conditional row.
    pub label: i64,
    /// The label of "no class".
    pub null_label: i64,
    /// Scale of guidance; 1 is none.
    pub guidance_scale: f64,
    /// The solver.
    pub solver: SolverConfig,
    /// Its network calls, in order; those of the later steps where the trajectory begins at a picture.
    pub evaluations: Vec<Evaluation>,
}

/// A valid request: what to sample, with which seeds, and how to hand it over.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// What to sample.
    pub spec: Arc<SampleSpec>,
    /// The effective seed of each image: s, s+1, …
    pub seeds: Vec<u64>,
    /// Where each image begins.
    pub start: Start,
    /// What is kept on the way.
    pub watch: Watch,
    /// How to hand it over.
    pub output: Output,
}

// === impl SampleSpec ===

impl SampleSpec {
    /// Rows of one image in a tick: two where guidance compares with the null class.
    pub fn rows(&self) -> usize {
        if self.class.is_some() && guidance::needs_unconditional(self.guidance_scale) { 2 } else { 1 }
    }

    /// What a request that names nothing but a class gets; the class is the first one.
    pub fn defaults(card: &Card) -> Self {
        let class = (!card.manifest.classes.is_empty()).then_some(ClassRef::Index(0));
        let request = ImageRequest { class, ..ImageRequest::default() };
        Self::resolve(&request, card, &Start::Noise)
            .expect("a valid manifest has valid defaults; this is a bug")
    }

    /// Solver steps that are taken: fewer than the grid's where the trajectory begins later.
    pub fn steps_taken(&self) -> usize {
        self.solver.steps - self.evaluations.first().map_or(0, |first| first.step)
    }

    /// The checked fields over the model's defaults.
    fn resolve(request: &ImageRequest, card: &Card, start: &Start) -> Result<Self, ApiError> {
        let manifest = &card.manifest;
        let class = class(request, manifest)?;
        let guidance_scale = guidance_scale(request, manifest)?;
        let solver = solver(request, manifest)?;
        // Wrong steps are said to be wrong before a strength is counted in them.
        let built = solver.build(&card.schedule).map_err(|error| of_diffusion(&error))?;
        let evaluations = match start.first_step(&solver)? {
            0 => built,
            first => solver.build_from(&card.schedule, first).map_err(|error| of_diffusion(&error))?,
        };
        let null_label = manifest.config.null_class() as i64;
        Ok(Self {
            class,
            label: class.map_or(null_label, |class| class as i64),
            null_label,
            guidance_scale,
            solver,
            evaluations,
        })
    }
}

// === impl Order ===

impl Order {
    /// Checks a request for the model of `card`. The first wrong field is the error.
    pub fn resolve(request: &ImageRequest, accept: &Accept, card: &Card) -> Result<Self, ApiError> {
        neutral(request)?;
        let count = request.n.unwrap_or(1);
        if !(1..=MAX_IMAGES).contains(&count) {
            return Err(ApiError::invalid("n", count, format!("1 to {MAX_IMAGES}")));
        }
        let start = Start::resolve(request, card, count)?;
        let spec = Arc::new(SampleSpec::resolve(request, card, &start)?);
        let output = Output::resolve(request, accept, card, count)?;
        let watch = Watch::resolve(request, &spec, output, card, count)?;
        Ok(Self { spec, seeds: seeds(request.seed, count)?, start, watch, output })
    }

    /// Its images, of `elements` values each.
    pub fn units(&self, elements: usize) -> Vec<Unit> {
        let image = |(i, &seed): (usize, &u64)| {
            let watched = Arc::clone(&self.watch.evaluations);
            let trajectory = Trajectory::new(Arc::clone(&self.spec), seed, elements).watch(watched);
            Unit::Sample(match self.start.x(i, seed, &self.spec) {
                None => trajectory,
                Some(x) => trajectory.from_x(x),
            })
        };
        self.seeds.iter().enumerate().map(image).collect()
    }

    /// Width and height of its pictures in pixels: a trajectory is a strip.
    pub fn picture_size(&self, card: &Card) -> [usize; 2] {
        let (config, scale) = (&card.manifest.config, self.output.scale);
        let beside = match self.output.file {
            File::Picture(_) => self.watch.frames().max(1),
            File::Arrays(_) => 1,
        };
        [config.width * scale * beside, config.height * scale]
    }
}

/// Fields of the OpenAI images API that ask for what this server does not do: their neutral values pass, others are
/// refused rather than ignored.
fn neutral(request: &ImageRequest) -> Result<(), ApiError> {
    let words = [
        ("quality", &request.quality, &["auto"][..], "`auto`; `steps` decides quality here"),
        ("style", &request.style, &[][..], "nothing, leave it out"),
        ("background", &request.background, &["auto", "opaque"][..], "`auto` and `opaque`"),
        ("moderation", &request.moderation, &["auto", "low"][..], "`auto` and `low`; nothing is filtered"),
        (
            "response_format",
            &request.response_format,
            &["b64_json"][..],
            "`b64_json`; no image is kept to link to",
        ),
    ];
    for (field, value, accepted, supported) in words {
        if let Some(value) = value
            && !accepted.contains(&value.as_str())
        {
            return Err(ApiError::unsupported(field, shown(value), supported));
        }
    }
    Ok(())
}

/// A random seed that every JSON library can hold.
pub(crate) fn random_seed() -> u64 {
    random_u64() >> 12
}

/// `count` seeds from the one asked for, or from a random one.
fn seeds(seed: Option<Seed>, count: u64) -> Result<Vec<u64>, ApiError> {
    let first = seed.map_or_else(random_seed, |seed| seed.0);
    match first.checked_add(count - 1).filter(|&last| last <= MAX_SEED) {
        Some(last) => Ok((first..=last).collect()),
        None => {
            let expected =
                format!("at most {} with `n` {count}: image i has seed + i", MAX_SEED - (count - 1));
            Err(ApiError::invalid("seed", first, expected))
        }
    }
}

/// The class that `class` and `prompt` name; both may, if they agree.
///
/// A model with classes needs one: an empty prompt is no wish for an arbitrary picture. A model without takes no
/// class, and of prompts only the empty one and its own name, since clients of the OpenAI API must send one.
pub(crate) fn class(request: &ImageRequest, manifest: &Manifest) -> Result<Option<usize>, ApiError> {
    let prompt = request.prompt.as_deref().map(str::trim).filter(|prompt| !prompt.is_empty());
    if manifest.classes.is_empty() {
        if request.class.is_some() {
            let message = format!("`class`: `{}` is a model without classes; leave it out", manifest.name);
            return Err(ApiError::new(crate::error::Cause::InvalidValue, message).param("class"));
        }
        return match prompt {
            Some(prompt) if !prompt.eq_ignore_ascii_case(&manifest.name) => {
                let expected =
                    format!("empty or `{}`: the model has no classes to choose from", manifest.name);
                Err(ApiError::invalid("prompt", shown(prompt), expected))
            }
            _ => Ok(None),
        };
    }
    let by_prompt = prompt.map(|prompt| class_named("prompt", prompt, manifest)).transpose()?;
    let by_class = request.class.as_ref().map(|class| class_index("class", class, manifest)).transpose()?;
    match (by_prompt, by_class) {
        (None, None) => {
            let got = if request.prompt.is_some() { "empty" } else { "missing" };
            Err(ApiError::invalid("prompt", got, one_of(manifest)))
        }
        (Some(a), Some(b)) if a != b => {
            let [a, b] = [a, b].map(|class| &manifest.classes[class].name);
            let expected = format!("the same class as `prompt`, which is `{a}`; one of the two is enough");
            Err(ApiError::invalid("class", format!("`{b}`"), expected))
        }
        (a, b) => Ok(a.or(b)),
    }
}

/// The class of a model that has classes, by index or name.
pub(crate) fn class_index(field: &str, class: &ClassRef, manifest: &Manifest) -> Result<usize, ApiError> {
    match class {
        ClassRef::Name(name) => class_named(field, name, manifest),
        ClassRef::Index(index) => {
            let known = usize::try_from(*index).ok().filter(|&index| index < manifest.classes.len());
            let expected = || format!("0 to {}, or a name", manifest.classes.len() - 1);
            known.ok_or_else(|| ApiError::invalid(field, index, expected()))
        }
    }
}

fn class_named(field: &str, word: &str, manifest: &Manifest) -> Result<usize, ApiError> {
    manifest.lookup(word).map_err(|_| ApiError::invalid(field, shown(word), one_of(manifest)))
}

/// The classes of a model in words, as many as a person reads.
fn one_of(manifest: &Manifest) -> String {
    const SHOWN: usize = 50;
    let names: Vec<_> = manifest.classes.iter().take(SHOWN).map(|class| class.name.as_str()).collect();
    let more = manifest.classes.len().saturating_sub(SHOWN);
    let rest =
        if more > 0 { format!(" and {more} more (see /v1/models/{})", manifest.name) } else { String::new() };
    format!("a class of `{}`: {}{rest}", manifest.name, names.join(", "))
}

fn guidance_scale(request: &ImageRequest, manifest: &Manifest) -> Result<f64, ApiError> {
    let Some(scale) = request.guidance_scale else {
        return Ok(if manifest.classes.is_empty() { 1.0 } else { manifest.defaults.guidance_scale });
    };
    guidance::check_scale(scale).map_err(|error| of_diffusion(&error))?;
    if manifest.classes.is_empty() && guidance::needs_unconditional(scale) {
        return Err(ApiError::invalid(
            "guidance_scale",
            number(scale),
            "1: the model has no classes to be guided to",
        ));
    }
    Ok(scale)
}

/// Sampler, time grid, steps, eta and clip: the request's over the model's defaults. The default eta belongs to the
/// default sampler: another one starts from 0.
fn solver(request: &ImageRequest, manifest: &Manifest) -> Result<SolverConfig, ApiError> {
    let defaults = &manifest.defaults;
    let list = |names: &[&str]| format!("one of {}", names.join(", "));
    let sampler = match request.sampler.as_deref() {
        None => defaults.sampler,
        Some(name) => name.parse().map_err(|_| {
            ApiError::invalid("sampler", shown(name), list(&Sampler::ALL.map(Sampler::as_str)))
        })?,
    };
    let grid = match request.time_grid.as_deref() {
        None => defaults.grid,
        Some(name) => name.parse().map_err(|_| {
            ApiError::invalid("time_grid", shown(name), list(&TimeGrid::ALL.map(TimeGrid::as_str)))
        })?,
    };
    let steps = match request.steps {
        None => defaults.steps,
        // A number beyond usize is beyond every schedule: the solver refuses both in the same words.
        Some(steps) => usize::try_from(steps).unwrap_or(usize::MAX),
    };
    let default_eta = if sampler == defaults.sampler { defaults.eta } else { 0.0 };
    Ok(SolverConfig {
        sampler,
        grid,
        steps,
        eta: request.eta.unwrap_or(default_eta),
        clip_x0: request.clip_x0.unwrap_or(defaults.clip_x0),
        prediction: manifest.prediction,
        variance: manifest.variance,
    })
}

/// An error of the mathematics about a field of ours.
fn of_diffusion(error: &windowpane_diffusion::Error) -> ApiError {
    match error {
        windowpane_diffusion::Error::BadValue { field, got, expected } => {
            ApiError::invalid(field, got, expected)
        }
        other => ApiError::new(crate::error::Cause::InvalidValue, other.to_string()),
    }
}

/// A client's text in an error: quoted, and cut where nobody reads on.
pub(crate) fn shown(text: &str) -> String {
    const MOST: usize = 80;
    let cut: String = text.chars().take(MOST).collect();
    let dots = if cut.len() < text.len() { "…" } else { "" };
    format!("`{cut}{dots}`")
}

#[cfg(test)]
mod tests;

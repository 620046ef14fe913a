//! What is looked at: a noisy image, the timestep that the network is told, and a label. It is uploaded as it is, or an
//! uploaded picture is made noisy, or it is sampled up to that level.

use std::sync::Arc;

use bytes::Bytes;
use windowpane_diffusion::error::number;
use windowpane_diffusion::{Level, noise};

use super::StudyError;
use super::upload::{array_of, image_of};
use crate::batcher::study::{Ask, Findings};
use crate::engine::StepBatch;
use crate::error::{ApiError, Cause};
use crate::extract::Accept;
use crate::model::Card;
use crate::routes::images::ImageRequest;
use crate::sampler::{Progress, Trajectory};
use crate::spec::{self, ClassRef, Order, SampleSpec, Seed};

/// The fields of a request that say what is looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct SubjectFields<'a> {
    /// A picture to be made noisy, in base64.
    pub image: Option<&'a str>,
    /// A noisy image, in base64.
    pub x_t: Option<&'a str>,
    /// Whether a picture is brought to the model's size.
    pub resize: Option<bool>,
    /// The noise level by its timestep.
    pub timestep: Option<f64>,
    /// The noise level by its standard deviation.
    pub sigma: Option<f64>,
    /// Of the noise, or of the sample.
    pub seed: Option<Seed>,
    /// The class in words.
    pub prompt: Option<&'a str>,
    /// The class by index or name.
    pub class: Option<&'a ClassRef>,
    /// Of a sample, and so the rest: solver steps.
    pub steps: Option<u64>,
    /// The sampler.
    pub sampler: Option<&'a str>,
    /// The time grid.
    pub time_grid: Option<&'a str>,
    /// The scale of guidance.
    pub guidance_scale: Option<f64>,
    /// Ancestral noise.
    pub eta: Option<f64>,
    /// Whether estimates are clipped.
    pub clip_x0: Option<bool>,
}

/// What is looked at, and how it came about.
#[derive(Debug)]
pub struct Subject {
    /// Where it begins.
    pub start: Start,
    /// Its noise level, and the timestep that the network is told.
    pub level: Level,
    /// The class, if the model has classes and one was named.
    pub class: Option<usize>,
    /// The label that the network is told.
    pub label: i64,
    /// The seed of its noise, where it has one.
    pub seed: Option<u64>,
    /// `image`, `x_t` or `sample`.
    pub kind: &'static str,
}

/// Where the work begins.
#[derive(Debug)]
pub enum Start {
    /// At the noisy image itself.
    At(Vec<f32>),
    /// It is still to be sampled.
    Sample(Box<Trajectory>),
}

/// An uploaded image, as noisy as it is looked at.
struct Upload {
    x: Vec<f32>,
    seed: Option<u64>,
    kind: &'static str,
}

/// The way to a subject's noisy image: the calls of the network that sample it, if it is to be sampled.
#[derive(Debug)]
pub struct Way {
    start: Start,
    shape: [usize; 3],
}

// === impl Way ===

impl Way {
    /// To where that start leads, of images of this shape.
    pub fn new(start: Start, shape: [usize; 3]) -> Self {
        Self { start, shape }
    }

    /// Calls of the network that are still to come.
    pub fn left(&self) -> usize {
        match &self.start {
            Start::At(_) => 0,
            Start::Sample(trajectory) => trajectory.evaluations_left(),
        }
    }

    /// The next call; `None`: the noisy image is there.
    pub fn next_call(&mut self) -> Option<Ask> {
        match &mut self.start {
            Start::Sample(trajectory) if trajectory.evaluations_left() > 0 => {
                let mut batch = StepBatch::new(self.shape);
                trajectory.gather(&mut batch);
                Some(Ask::Denoise(batch))
            }
            _ => None,
        }
    }

    /// Takes what that call brought.
    pub fn take(&mut self, findings: Findings) -> Result<(), StudyError> {
        let (Start::Sample(trajectory), Some(mut prediction)) =
            (&mut self.start, findings.into_iter().next())
        else {
            return Err(StudyError::Shape("an answer that nobody asked for".to_owned()));
        };
        match trajectory.apply(&mut prediction) {
            Progress::NotFinite => Err(StudyError::NotFinite),
            Progress::Running | Progress::Finished => Ok(()),
        }
    }

    /// The noisy image as a piece that is kept: f32, little-endian.
    pub fn piece(x: &[f32]) -> Bytes {
        x.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    /// The noisy image of such a piece; there is no more to the way.
    pub fn resume(&mut self, piece: &Bytes) -> Result<Vec<f32>, StudyError> {
        let x: Vec<f32> = piece.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        if x.len() != self.shape.iter().product::<usize>() {
            return Err(StudyError::Shape("a piece of another study".to_owned()));
        }
        self.start = Start::At(Vec::new());
        Ok(x)
    }

    /// The noisy image, once no call is left.
    pub fn arrive(&mut self) -> Vec<f32> {
        match std::mem::replace(&mut self.start, Start::At(Vec::new())) {
            Start::At(x) => x,
            Start::Sample(trajectory) => trajectory.into_values(),
        }
    }
}

// === impl Subject ===

impl Subject {
    /// From the checked fields of a request.
    pub fn resolve(request: &SubjectFields<'_>, card: &Card) -> Result<Self, ApiError> {
        let level = level(request, card)?;
        match (request.image, request.x_t) {
            (Some(_), Some(_)) => {
                let message = "`image` and `x_t` are two things to look at; give one of them";
                Err(ApiError::new(Cause::InvalidValue, message).param("x_t"))
            }
            (None, None) => Self::sample(request, card, level),
            (Some(file), None) => {
                only_for_a_sample(request)?;
                let x0 = image_of(file, request.resize == Some(true), card)?;
                let seed = seed(request);
                let (alpha, sigma) = (level.alpha as f32, level.sigma as f32);
                let noise = noise::normal(seed, noise::INITIAL, x0.len());
                let x = x0.iter().zip(noise).map(|(x0, noise)| alpha * x0 + sigma * noise).collect();
                Self::given(request, card, level, Upload { x, seed: Some(seed), kind: "image" })
            }
            (None, Some(file)) => {
                only_for_a_sample(request)?;
                for (field, given) in [("seed", request.seed.is_some()), ("resize", request.resize.is_some())]
                {
                    if given {
                        let message = format!("`{field}` is given with `x_t`, which is looked at as it is");
                        return Err(ApiError::new(Cause::InvalidValue, message).param(field));
                    }
                }
                let x = array_of("x_t", file, card)?;
                Self::given(request, card, level, Upload { x, seed: None, kind: "x_t" })
            }
        }
    }

    /// What was uploaded, at this level; with the class that was named, if one was.
    fn given(
        request: &SubjectFields<'_>,
        card: &Card,
        level: Level,
        upload: Upload,
    ) -> Result<Self, ApiError> {
        let named = request.class.is_some() || request.prompt.is_some_and(|p| !p.trim().is_empty());
        let class = if named { spec::class(&sampling(request), &card.manifest)? } else { None };
        let label = class.unwrap_or(card.manifest.config.null_class()) as i64;
        let Upload { x, seed, kind } = upload;
        Ok(Self { start: Start::At(x), level, class, label, seed, kind })
    }

    /// A sample as the images route draws it, up to the step of its time grid that is nearest to the level.
    fn sample(request: &SubjectFields<'_>, card: &Card, level: Level) -> Result<Self, ApiError> {
        if request.resize.is_some() {
            let message = "`resize` is for `image`, which is missing";
            return Err(ApiError::new(Cause::InvalidValue, message).param("resize"));
        }
        let asked = ImageRequest { seed: Some(Seed(seed(request))), ..sampling(request) };
        let order = Order::resolve(&asked, &Accept::default(), card)?;
        let (spec, seed) = (&order.spec, order.seeds[0]);
        // A solver that looks at a step twice comes to its level with the first evaluation.
        let first = |i: usize| i == 0 || spec.evaluations[i - 1].step != spec.evaluations[i].step;
        let distance = |&i: &usize| (f64::from(spec.evaluations[i].t) - level.t).abs();
        let begins = (0..spec.evaluations.len()).filter(|&i| first(i));
        let calls = begins.min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0);
        let at = &spec.evaluations[calls];
        let level = Level { t: f64::from(at.t), alpha: at.alpha, sigma: at.sigma };
        let elements = card.manifest.config.elements();
        let start = if calls == 0 {
            Start::At(noise::normal(seed, noise::INITIAL, elements))
        } else {
            let before = SampleSpec { evaluations: spec.evaluations[..calls].to_vec(), ..(**spec).clone() };
            Start::Sample(Box::new(Trajectory::new(Arc::new(before), seed, elements)))
        };
        let (class, label) = (spec.class, spec.label);
        Ok(Self { start, level, class, label, seed: Some(seed), kind: "sample" })
    }
}

/// The noise level that `timestep` or `sigma` names.
fn level(request: &SubjectFields<'_>, card: &Card) -> Result<Level, ApiError> {
    let schedule = &card.schedule;
    let last = schedule.len() - 1;
    match (request.timestep, request.sigma) {
        (Some(t), None) => {
            if !(0.0..=last as f64).contains(&t) {
                let expected = format!("0 to {last}, the schedule's last");
                return Err(ApiError::invalid("timestep", number(t), expected));
            }
            Ok(schedule.level_at(t))
        }
        (None, Some(sigma)) => {
            let (low, high) = (schedule.level(0).sigma, schedule.level(last).sigma);
            if !(low..=high).contains(&sigma) {
                let expected = format!("{low:.6} to {high:.6}, the schedule's first and last `sigma`");
                return Err(ApiError::invalid("sigma", number(sigma), expected));
            }
            Ok(schedule.level_at_sigma(sigma / (1.0 - sigma * sigma).max(f64::MIN_POSITIVE).sqrt()))
        }
        (Some(_), Some(_)) => {
            let message = "`timestep` and `sigma` are two ways to say one thing; give one of them";
            Err(ApiError::new(Cause::InvalidValue, message).param("sigma"))
        }
        (None, None) => {
            let expected = format!("0 to {last}, or `sigma` instead");
            Err(ApiError::invalid("timestep", "missing", expected))
        }
    }
}

fn seed(request: &SubjectFields<'_>) -> u64 {
    request.seed.map_or_else(spec::random_seed, |seed| seed.0)
}

/// The fields that say how to sample, as the images route takes them.
fn sampling(request: &SubjectFields<'_>) -> ImageRequest {
    ImageRequest {
        prompt: request.prompt.map(str::to_owned),
        class: request.class.cloned(),
        steps: request.steps,
        sampler: request.sampler.map(str::to_owned),
        time_grid: request.time_grid.map(str::to_owned),
        guidance_scale: request.guidance_scale,
        eta: request.eta,
        clip_x0: request.clip_x0,
        ..ImageRequest::default()
    }
}

/// Refuses fields that say how to sample, where nothing is sampled.
fn only_for_a_sample(request: &SubjectFields<'_>) -> Result<(), ApiError> {
    let given = [
        ("steps", request.steps.is_some()),
        ("sampler", request.sampler.is_some()),
        ("time_grid", request.time_grid.is_some()),
        ("guidance_scale", request.guidance_scale.is_some()),
        ("eta", request.eta.is_some()),
        ("clip_x0", request.clip_x0.is_some()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((field, _)) => {
            let message = format!("`{field}` is for a sample; what is uploaded is not sampled");
            Err(ApiError::new(Cause::InvalidValue, message).param(field))
        }
    }
}

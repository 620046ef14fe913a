//! Where do a request's trajectories begin? At the noise of their seeds, at an uploaded `x_t`, or at an uploaded picture
//! that is made noisy. Uploads are bounded and checked here; the batcher is handed numbers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use windowpane_diffusion::{SolverConfig, noise};

use super::{SampleSpec, of_diffusion, shown};
use crate::decode::npy::Npy;
use crate::decode::picture;
use crate::error::{ApiError, Cause};
use crate::model::Card;
use crate::provenance::{StartNote, digest_of};
use crate::routes::images::ImageRequest;

/// The strength of image-to-image where a request names none; that of the pipelines of diffusers.
pub const DEFAULT_STRENGTH: f64 = 0.8;

/// Largest magnitude of an `x_t`. Noise is hardly beyond 6; the arithmetic of f32 is safe far beyond this.
pub const MOST_NOISE: f32 = 1000.0;

/// Where a request's trajectories begin.
#[derive(Debug, Clone, PartialEq)]
pub enum Start {
    /// At the noise of each seed.
    Noise,
    /// At these `[channels, height, width]`: one for every image, or one for all.
    Given(Vec<Vec<f32>>),
    /// At a picture, made noisy by the noise of each seed.
    Picture {
        /// Its values in the model's range, `[channels, height, width]`.
        values: Vec<f32>,
        /// The share of the steps that is taken.
        strength: f64,
    },
}

// === impl Start ===

impl Start {
    pub(super) fn resolve(request: &ImageRequest, card: &Card, count: u64) -> Result<Self, ApiError> {
        let start = match (&request.x_t, &request.init_image) {
            (None, None) => Self::Noise,
            (Some(file), None) => Self::Given(given(file, card, count)?),
            (None, Some(file)) => {
                let strength = request.strength.unwrap_or(DEFAULT_STRENGTH);
                Self::Picture { values: picture_of(file, card)?, strength }
            }
            (Some(_), Some(_)) => {
                let message = "`init_image` and `x_t` are two beginnings; give one of them";
                return Err(ApiError::new(Cause::InvalidValue, message).param("init_image"));
            }
        };
        match (&start, request.strength) {
            (Self::Noise | Self::Given(_), Some(_)) => {
                let message = "`strength` is for `init_image`, which is missing";
                Err(ApiError::new(Cause::InvalidValue, message).param("strength"))
            }
            _ => Ok(start),
        }
    }

    /// The solver step that the trajectories begin with.
    pub(super) fn first_step(&self, solver: &SolverConfig) -> Result<usize, ApiError> {
        match self {
            Self::Noise | Self::Given(_) => Ok(0),
            Self::Picture { strength, .. } => {
                solver.first_step(*strength).map_err(|error| of_diffusion(&error))
            }
        }
    }

    /// What image `image` of the request, with this seed, begins at; `None`: the noise of its seed. A picture `x0` is
    /// made noisy as in training, `alpha · x0 + sigma · noise` at the level of the first evaluation, with the noise that
    /// would have been the whole beginning.
    pub fn x(&self, image: usize, seed: u64, spec: &SampleSpec) -> Option<Vec<f32>> {
        match self {
            Self::Noise => None,
            Self::Given(all) => all.get(image).or(all.first()).cloned(),
            Self::Picture { values, .. } => {
                let first = spec.evaluations.first()?;
                let (alpha, sigma) = (first.alpha as f32, first.sigma as f32);
                let noise = noise::normal(seed, noise::INITIAL, values.len());
                Some(values.iter().zip(noise).map(|(x0, noise)| alpha * x0 + sigma * noise).collect())
            }
        }
    }

    /// The same in words that go with image `image`.
    pub fn note(&self, image: usize) -> StartNote {
        match self {
            Self::Noise => StartNote::Noise,
            Self::Given(all) => {
                let own = all.get(image).or(all.first()).map_or(&[][..], Vec::as_slice);
                StartNote::XT { sha256: digest_of(own) }
            }
            Self::Picture { values, strength } => {
                StartNote::InitImage { sha256: digest_of(values), strength: *strength }
            }
        }
    }
}

/// An uploaded array as one beginning for all images, or one for each.
fn given(file: &str, card: &Card, count: u64) -> Result<Vec<Vec<f32>>, ApiError> {
    let [channels, height, width] = card.shape();
    let elements = channels * height * width;
    let count = count as usize;
    let invalid = |what: &dyn std::fmt::Display| {
        let message = format!(
            "`x_t`: {what}; expected a .npy of f32 [{channels}, {height}, {width}], or [{count}, {channels}, {height}, \
             {width}] for one of each image, in base64"
        );
        ApiError::new(Cause::InvalidValue, message).param("x_t")
    };
    let bytes = unwrapped("x_t", file)?;
    let Npy { shape, values } = Npy::read(&bytes, elements * count).map_err(|error| invalid(&error))?;
    if shape != [channels, height, width] && shape != [count, channels, height, width] {
        return Err(invalid(&format_args!("its shape is {shape:?}")));
    }
    if let Some(place) = values.iter().position(|value| value.abs() > MOST_NOISE) {
        return Err(invalid(&format_args!("value {place} is beyond {MOST_NOISE} in magnitude")));
    }
    Ok(values.chunks_exact(elements).map(<[f32]>::to_vec).collect())
}

/// An uploaded picture as the model's values.
fn picture_of(file: &str, card: &Card) -> Result<Vec<f32>, ApiError> {
    let (width, height) = (card.manifest.config.width, card.manifest.config.height);
    let bytes = unwrapped("init_image", file)?;
    let picture = picture::png(&bytes, card.colour, [width, height]).map_err(|error| {
        let message = format!("`init_image`: {error}; expected a PNG of {width}x{height} pixels in base64");
        ApiError::new(Cause::InvalidValue, message).param("init_image")
    })?;
    Ok(picture::planar(&picture, card.manifest.value_range))
}

/// The bytes of a field in base64.
pub(crate) fn unwrapped(field: &str, text: &str) -> Result<Vec<u8>, ApiError> {
    STANDARD
        .decode(text)
        .map_err(|_| ApiError::invalid(field, shown(text), "standard base64, without a `data:` prefix"))
}

//! What was looked at, for whoever asks later.

use serde::Serialize;
use utoipa::ToSchema;

use crate::analysis::subject::Subject;
use crate::model::Card;
use crate::spec::Seed;

/// What was looked at.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct Looked {
    /// The model.
    #[schema(example = "fashion-dit")]
    pub(super) model: String,
    /// Its identity: the sha256 of its manifest.
    pub(super) digest: String,
    /// `image`, `x_t` or `sample`.
    #[schema(example = "sample")]
    pub(super) input: &'static str,
    /// The seed of its noise, a decimal string; null for an `x_t`.
    #[schema(required, value_type = Option<String>, example = "7")]
    pub(super) seed: Option<Seed>,
    /// The class's name; null where the network was told none.
    #[schema(required, example = "sneaker")]
    pub(super) class: Option<String>,
    /// The class's index.
    #[schema(required)]
    pub(super) class_index: Option<usize>,
    /// The timestep that the network was told.
    pub(super) timestep: f64,
    /// The share of the image's variance that is the picture's, at that timestep.
    pub(super) alpha_bar: f64,
    /// The standard deviation of the noise, `sqrt(1 - alpha_bar)`.
    pub(super) sigma: f64,
}

// === impl Looked ===

impl Looked {
    /// Of a model at a subject.
    pub(super) fn new(card: &Card, subject: &Subject) -> Self {
        let (manifest, level) = (&card.manifest, subject.level);
        Self {
            model: manifest.name.clone(),
            digest: card.digest.clone(),
            input: subject.kind,
            seed: subject.seed.map(Seed),
            class: subject.class.map(|class| manifest.classes[class].name.clone()),
            class_index: subject.class,
            timestep: level.t,
            alpha_bar: level.alpha * level.alpha,
            sigma: level.sigma,
        }
    }
}

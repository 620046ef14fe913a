//! What a client may ask for.

use serde::{Deserialize, Serialize};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::analysis::subject::SubjectFields;
use crate::extract::{Fields, form_of};
use crate::spec::{ClassRef, SamplerName, Seed, TimeGridName};

/// Where to look, and what of the Jacobian to tell. `timestep` or `sigma` says how noisy the image is; it is `image`, `x_t`,
/// or without either a sample that is drawn up to there.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"model": "fashion-dit", "prompt": "sneaker", "seed": 7, "timestep": 300, "k": 4}))]
pub struct JacobianRequest {
    /// Name of the model; may be left out where only one is served.
    pub model: Option<String>,
    /// A picture that is made noisy: a PNG of the model's size, or a `.npy` of f32 (or f64) `[channels, height, width]` in the
    /// model's range; in base64. A PNG's grey becomes RGB by repetition, its RGB grey by the luma of BT.601.
    #[schema(content_encoding = "base64")]
    pub image: Option<String>,
    /// A noisy image as it is: a `.npy` of f32 (or f64) `[channels, height, width]`, in base64.
    #[schema(content_encoding = "base64")]
    pub x_t: Option<String>,
    /// Bring a PNG of another size to the model's, by a triangle filter.
    pub resize: Option<bool>,
    /// The timestep that the network is told, from 0 to the last of the model's schedule; between two of the table it is
    /// interpolated. A sample stops at the step of its time grid that is nearest, and the answer says which.
    #[schema(minimum = 0.0)]
    pub timestep: Option<f64>,
    /// The standard deviation of the noise, `sqrt(1 - alpha_bar)`, instead of the timestep.
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub sigma: Option<f64>,
    /// Seed of the noise of `image`, or of the sample: 0 to 2^63 - 1, as a number or a decimal string; random unless given,
    /// and returned.
    #[schema(value_type = Option<Seed>)]
    pub seed: Option<Seed>,
    /// A class of the model, by name or alias in any case. What is uploaded may go without: then the network is told no class.
    pub prompt: Option<String>,
    /// A class by index or name; instead of a prompt, or the same as it.
    #[schema(value_type = Option<ClassRef>)]
    pub class: Option<ClassRef>,
    /// Of a sample: solver steps.
    #[schema(minimum = 1, maximum = 1000)]
    pub steps: Option<u64>,
    /// Of a sample: the sampler.
    #[schema(value_type = Option<SamplerName>, example = "ddim")]
    pub sampler: Option<String>,
    /// Of a sample: how the steps are spread over the noise levels.
    #[schema(value_type = Option<TimeGridName>, example = "uniform")]
    pub time_grid: Option<String>,
    /// Of a sample: scale of classifier-free guidance on the way to its noise level. What is differentiated is guided by
    /// `guided` alone.
    #[schema(minimum = 0.0, maximum = 100.0)]
    pub guidance_scale: Option<f64>,
    /// Of a sample: share of ancestral noise.
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub eta: Option<f64>,
    /// Of a sample: whether every clean estimate is clipped.
    pub clip_x0: Option<bool>,
    /// What is differentiated with respect to the noisy image: `x0`, the estimate of the clean image, or the noise `eps`, or
    /// the velocity `v`, whichever of them the network predicts.
    #[schema(default = "x0", pattern = "^(x0|eps|v)$")]
    pub of: Option<String>,
    /// Differentiate the prediction as classifier-free guidance of this scale changes it; without, the conditional one.
    #[schema(minimum = 0.0, maximum = 100.0)]
    pub guided: Option<f64>,
    /// `top-k`: the largest singular values, with a bound on the error of each. `full`: the whole matrix, all of its singular
    /// values, and the eigenvalues of its symmetric part.
    #[schema(default = "top-k", pattern = "^(top-k|full)$")]
    pub method: Option<String>,
    /// Singular vectors that are told, from 1 to the values of an image.
    #[schema(minimum = 1, default = 8)]
    pub k: Option<u64>,
    /// Of `top-k`: how far a singular value may be off, as a share of the largest.
    #[schema(minimum = 1e-6, maximum = 0.5, default = 1e-3)]
    pub tolerance: Option<f64>,
    /// Of `top-k`: steps at most, from `k` on; each is a product in either direction. `4 k + 20` unless given.
    #[schema(minimum = 1)]
    pub iterations: Option<u64>,
    /// Of `full`, in a file: the matrix itself.
    pub matrix: Option<bool>,
    /// In a picture: the `right` singular vectors, which are directions of the image; the `left` ones, which are directions of
    /// what is predicted; or of `full` the `eigen`vectors of the symmetric part.
    #[schema(default = "right", pattern = "^(right|left|eigen)$")]
    pub vectors: Option<String>,
    /// In a picture: which of the first `k`, by number from 0; all unless given.
    pub show: Option<Vec<u64>>,
    /// `json`, or a file: `npz`, `safetensors` or `png`.
    #[schema(default = "json", pattern = "^(json|npz|safetensors|png)$")]
    pub output_format: Option<String>,
    /// Milliseconds that the answer is worth waiting for, as in the header `x-request-timeout-ms`; of two the shorter counts.
    #[schema(minimum = 1, maximum = 3_600_000)]
    pub timeout_ms: Option<u64>,
}

/// The same as a form: `image` and `x_t` are files, every other field is text; a list is JSON, as in `[0, 3]`, or a part for
/// each of its elements.
#[derive(Debug)]
pub enum JacobianForm {}

impl PartialSchema for JacobianForm {
    fn schema() -> RefOr<Schema> {
        form_of::<JacobianRequest>()
    }
}

impl ToSchema for JacobianForm {}

impl Fields for JacobianRequest {
    const FILES: &[&str] = &["image", "x_t"];
    const LISTS: &[&str] = &["show"];
    const TEXTS: &[&str] =
        &["model", "prompt", "sampler", "time_grid", "of", "method", "vectors", "output_format"];
}

// === impl JacobianRequest ===

impl JacobianRequest {
    /// Those of its fields that say what is looked at.
    pub(super) fn subject(&self) -> SubjectFields<'_> {
        SubjectFields {
            image: self.image.as_deref(),
            x_t: self.x_t.as_deref(),
            resize: self.resize,
            timestep: self.timestep,
            sigma: self.sigma,
            seed: self.seed,
            prompt: self.prompt.as_deref(),
            class: self.class.as_ref(),
            steps: self.steps,
            sampler: self.sampler.as_deref(),
            time_grid: self.time_grid.as_deref(),
            guidance_scale: self.guidance_scale,
            eta: self.eta,
            clip_x0: self.clip_x0,
        }
    }
}

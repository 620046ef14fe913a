//! What a client may ask for.

use serde::{Deserialize, Serialize};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::analysis::subject::SubjectFields;
use crate::extract::{Fields, form_of};
use crate::spec::{ClassRef, SamplerName, Seed, TimeGridName};

/// What to look at, and what of it to tell. `timestep` or `sigma` says how noisy it is; what is looked at is `image`, `x_t`,
/// or without either a sample that is drawn up to there.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"model": "fashion-dit", "prompt": "sneaker", "seed": 7, "timestep": 300, "layers": [0], "maps": "mean"}))]
pub struct AttentionRequest {
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
    /// Of a sample: scale of classifier-free guidance. What is looked at is the conditional evaluation.
    #[schema(minimum = 0.0, maximum = 100.0)]
    pub guidance_scale: Option<f64>,
    /// Of a sample: share of ancestral noise.
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub eta: Option<f64>,
    /// Of a sample: whether every clean estimate is clipped.
    pub clip_x0: Option<bool>,
    /// The layers, from 0; all unless given.
    pub layers: Option<Vec<u64>>,
    /// The heads, from 0; all unless given. The mean and the numbers are theirs.
    pub heads: Option<Vec<u64>>,
    /// The tokens whose attention is told, by index or as `[row, column]`; all unless given. In a picture they are those whose
    /// rows are shown below the map; that in the middle unless given.
    pub tokens: Option<Vec<TokenRef>>,
    /// Which maps come: `heads`, the `mean` over the heads, `both`, or `none` beside the numbers.
    #[schema(default = "both", pattern = "^(heads|mean|both|none)$")]
    pub maps: Option<String>,
    /// `grid`: every map on the whole token grid. `compact`: of a layer with a window only the window, centred on the token; 0
    /// beyond the image's border.
    #[schema(default = "grid", pattern = "^(grid|compact)$")]
    pub layout: Option<String>,
    /// Of a picture: the value from which on everything is darkest, where a map goes from 0 to 1.
    #[schema(default = 0.1, minimum = 0.001, maximum = 1.0)]
    pub full: Option<f64>,
    /// `json`, or a file: `npz`, `safetensors` or `png`.
    #[schema(default = "json", pattern = "^(json|npz|safetensors|png)$")]
    pub output_format: Option<String>,
    /// Milliseconds that the answer is worth waiting for, as in the header `x-request-timeout-ms`; of two the shorter counts.
    #[schema(minimum = 1, maximum = 3_600_000)]
    pub timeout_ms: Option<u64>,
}

/// A token: its number, row by row, or its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a token's index or its [row, column]")]
pub enum TokenRef {
    /// From 0, row by row.
    Index(u64),
    /// Row and column.
    Place([u64; 2]),
}

/// The same as a form: `image` and `x_t` are files, every other field is text; a list is JSON, as in `[0, 3]`, or a part for
/// each of its elements.
#[derive(Debug)]
pub enum AttentionForm {}

impl PartialSchema for AttentionForm {
    fn schema() -> RefOr<Schema> {
        form_of::<AttentionRequest>()
    }
}

impl ToSchema for AttentionForm {}

impl Fields for AttentionRequest {
    const FILES: &[&str] = &["image", "x_t"];
    const LISTS: &[&str] = &["layers", "heads", "tokens"];
    const TEXTS: &[&str] = &["model", "prompt", "sampler", "time_grid", "maps", "layout", "output_format"];
}

// === impl AttentionRequest ===

impl AttentionRequest {
    /// Those of its fields that say what is looked at.
    pub(crate) fn subject(&self) -> SubjectFields<'_> {
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

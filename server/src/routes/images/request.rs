//! What a client may ask for: the fields of the OpenAI images API, and those of diffusion.

use serde::Deserialize;
use utoipa::ToSchema;

use crate::spec::{ClassRef, SamplerName, Seed, TimeGridName};

/// What to generate. The first group is the OpenAI images API, whose every field is known: values that ask for what
/// this server does not do are refused, not ignored, and so are unknown fields. The second group is ours.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"model": "fashion-dit", "prompt": "sneaker", "seed": 7}))]
pub struct ImageRequest {
    /// Name of the model; may be left out where only one is served.
    pub model: Option<String>,
    /// A class of the model, by name or alias in any case. A model without classes takes the empty prompt or its own
    /// name.
    pub prompt: Option<String>,
    /// Images to generate; image i is the n = 1 image of seed + i.
    #[schema(minimum = 1, maximum = 10, default = 1)]
    pub n: Option<u64>,
    /// `auto`, the model's native size, or an integer multiple of it (nearest neighbour, as `upscaled` in the response
    /// says).
    #[schema(example = "auto", default = "auto", pattern = "^(auto|[0-9]+x[0-9]+)$")]
    pub size: Option<String>,
    /// Only `b64_json`.
    #[schema(pattern = "^b64_json$")]
    pub response_format: Option<String>,
    /// A picture: `png`, `webp` (lossless) or `jpeg`; or the model's own values, `[n, channels, height, width]` in f32:
    /// `npy`, `npz` or `safetensors`.
    #[schema(default = "png", pattern = "^(png|webp|jpeg|npy|npz|safetensors)$")]
    pub output_format: Option<String>,
    /// Quality of a JPEG, 95 unless given; 100 for the lossless formats.
    #[schema(minimum = 0, maximum = 100)]
    pub output_compression: Option<u64>,
    /// Only `auto`: `steps` decides quality here.
    #[schema(pattern = "^auto$")]
    pub quality: Option<String>,
    /// Not supported.
    pub style: Option<String>,
    /// `auto` or `opaque`.
    #[schema(pattern = "^(auto|opaque)$")]
    pub background: Option<String>,
    /// `auto` or `low`; nothing is filtered.
    #[schema(pattern = "^(auto|low)$")]
    pub moderation: Option<String>,
    /// Answer with server-sent events: previews, then each image as it is done.
    pub stream: Option<bool>,
    /// Previews of each image in a stream, spread over its steps: what the model takes the clean image to be. Fewer come
    /// where there are fewer steps.
    #[schema(minimum = 0, maximum = 3)]
    pub partial_images: Option<u64>,
    /// The caller's name for its user; neither used nor kept.
    pub user: Option<String>,

    /// Seed of the first image, 0 to 2^63 - 1, as a number or a decimal string; random unless given, and returned. The
    /// same model, fields and seed give the same image.
    #[schema(value_type = Option<Seed>)]
    pub seed: Option<Seed>,
    /// Solver steps, at most the timesteps of the model's schedule.
    #[schema(minimum = 1, maximum = 1000)]
    pub steps: Option<u64>,
    /// The sampler.
    #[schema(value_type = Option<SamplerName>, example = "ddim")]
    pub sampler: Option<String>,
    /// How the steps are spread over the noise levels.
    #[schema(value_type = Option<TimeGridName>, example = "uniform")]
    pub time_grid: Option<String>,
    /// Scale of classifier-free guidance; 1 is none.
    #[schema(minimum = 0.0, maximum = 100.0)]
    pub guidance_scale: Option<f64>,
    /// Share of ancestral noise; only `ddim` has one.
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub eta: Option<f64>,
    /// Whether every clean estimate is clipped to the pixels' range.
    pub clip_x0: Option<bool>,
    /// A class by index or name; instead of a prompt, or the same as it.
    #[schema(value_type = Option<ClassRef>)]
    pub class: Option<ClassRef>,
    /// The noise to begin with instead of the seed's: a `.npy` of little-endian f32 (or f64), `[channels, height, width]`
    /// for all images or with `n` in front for one each, in base64.
    #[schema(content_encoding = "base64")]
    pub x_t: Option<String>,
    /// A picture to begin with: a PNG of the model's size, in base64. Grey becomes RGB by repetition, RGB grey by the
    /// luma of BT.601; transparent pixels are refused.
    #[schema(content_encoding = "base64")]
    pub init_image: Option<String>,
    /// With `init_image`: the share of the steps that is taken, the last `k = floor(steps · strength)` of them. 0.8 unless
    /// given.
    ///
    /// The picture is made as noisy as the first of these expects: `sqrt(alpha_bar) · picture + sqrt(1 - alpha_bar) · noise`,
    /// with the `alpha_bar` of the model's schedule at the timestep `t` of that step. With `u = (k - 1) / (steps - 1)` and a
    /// schedule of `T` timesteps, `t` is `(T - 1) u` on the uniform grid and `(T - 1) u²` on the quadratic one, rounded; on
    /// the Karras grid it is where `sqrt(1 / alpha_bar - 1)` is `(b + (a - b) u)^7`, `a` and `b` being the 7th roots of that
    /// at the last timestep and at the first. So a strength is no share of the noise, which the schedule decides. `strengths` of `/v1/models/{id}` lists `t`, `alpha_bar` and `sigma` for the defaults.
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub strength: Option<f64>,
    /// Show the way: every so many steps the noisy image is kept, and the finished one last. Pictures become strips, left
    /// to right; arrays have `[n, frames, channels, height, width]` (`frames`, and `frames_x0` for the clean estimates).
    #[schema(minimum = 1)]
    pub trajectory: Option<u64>,
    /// Milliseconds that the answer is worth waiting for, as in the header `x-request-timeout-ms`; of two the shorter
    /// counts. What cannot be done in time is refused at once.
    #[schema(minimum = 1, maximum = 3_600_000)]
    pub timeout_ms: Option<u64>,
    /// Insist on the same bits in any company; needed only where `determinism` says `tolerance`.
    pub reproducible: Option<bool>,
}

//! Big sampling orders: as many images as a statistic takes, drawn a full tick at a time and kept as pixels.

use std::sync::Arc;

use axum::response::Response;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use super::sampling::{Drawn, SamplingStudy};
use crate::analysis::Study as _;
use crate::app::App;
use crate::batcher::study::Effort;
use crate::call::{Call, Watch};
use crate::encode::zip::{self, Archive};
use crate::encode::{Encoding, Picture, most_bytes_of_png, npy_head};
use crate::error::{ApiError, Cause};
use crate::extract::Accept;
use crate::model::{Card, Model};
use crate::routes::images::ImageRequest;
use crate::spec::{self, ClassRef, Order, SampleSpec, SamplerName, Seed, TimeGridName, shown};

/// Images of an order at most.
const MOST: u64 = 100_000;

/// Images of an archive at most: it has a member more.
const MOST_FILES: usize = zip::MOST_MEMBERS - 1;

/// Members of a result.
const PIXELS: &str = "arr_0.npy";
const SEEDS: &str = "seeds.npy";
const LABELS: &str = "labels.npy";
const ABOUT: &str = "about.json";

/// What to draw: the fields of `/v1/images/generations` that say how, for as many images as are wanted.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"model": "fashion-dit", "classes": "each", "n": 50_000, "seed": 0, "output_format": "npz"}))]
pub struct BulkRequest {
    /// Name of the model; may be left out where only one is served.
    pub model: Option<String>,
    /// Images; image i is the n = 1 image of seed + i. A `zip` has 65,533 at most.
    #[schema(minimum = 1, maximum = 100_000)]
    pub n: Option<u64>,
    /// Seed of the first image; 0 unless given.
    #[schema(value_type = Option<Seed>)]
    pub seed: Option<Seed>,
    /// A class of the model, by name or alias.
    pub prompt: Option<String>,
    /// A class by index or name, instead of a prompt.
    #[schema(value_type = Option<ClassRef>)]
    pub class: Option<ClassRef>,
    /// `each`: image i has the class i modulo their number, so that all come equally often.
    #[schema(pattern = "^each$")]
    pub classes: Option<String>,
    /// Solver steps.
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
    /// `npz`: pixels `arr_0`, u8 `[n, height, width, channels]`, as the usual tools for FID read them, with `seeds` and
    /// `labels`; or `zip`: a PNG for each image.
    #[schema(default = "npz", pattern = "^(npz|zip)$")]
    pub output_format: Option<String>,
}

/// A file of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum File {
    Npz,
    Zip,
}

/// A valid order.
#[derive(Debug)]
struct Bulk {
    specs: Vec<Arc<SampleSpec>>,
    seed: u64,
    count: usize,
    file: File,
    /// What is said of the result, JSON.
    about: String,
}

/// Refuses what cannot be drawn; the model that draws it, and what that takes.
pub(super) fn check(app: &App, request: &BulkRequest) -> Result<(Arc<Model>, Effort), ApiError> {
    let model = app.model(request.model.as_deref())?;
    let bulk = Bulk::resolve(request, &model.card, app.config().jobs.result_limit)?;
    let effort = bulk.study(app, &model).effort();
    Ok((model, effort))
}

/// The images of this model, whatever the request names, while `watch` keeps them piece by piece.
pub(super) async fn answer(
    app: &App,
    call: Call,
    (request, model): (BulkRequest, Arc<Model>),
    watch: &mut dyn Watch,
) -> Result<Response, ApiError> {
    let card = Arc::clone(&model.card);
    let bulk = Bulk::resolve(&request, &card, app.config().jobs.result_limit)?;
    let study = bulk.study(app, &model);
    let bench = app.workbench(call.identity.caller);
    let studying = call.study(app, &model, &study)?;
    let drawn = studying.watched(study, watch).await?;
    // Up to a hundred thousand pictures in one go: nobody else's look waits for that.
    bench.conclude(move || respond(&card, &bulk, &drawn)).await?
}

// === impl Bulk ===

impl Bulk {
    /// What draws it, a full tick at a time.
    fn study(&self, app: &App, model: &Model) -> SamplingStudy {
        let rows = model.served.costs.target(app.config().max_rows);
        SamplingStudy::new(&model.card, self.specs.clone(), self.seed, self.count, rows)
    }

    fn resolve(request: &BulkRequest, card: &Card, limit: usize) -> Result<Self, ApiError> {
        let file = match request.output_format.as_deref() {
            None | Some("npz") => File::Npz,
            Some("zip") => File::Zip,
            Some(word) => return Err(ApiError::invalid("output_format", shown(word), "`npz` or `zip`")),
        };
        let most = match file {
            File::Npz => MOST,
            File::Zip => MOST_FILES as u64,
        };
        let expected = || match file {
            File::Npz => format!("1 to {most}"),
            File::Zip => format!("1 to {most} in a `zip`"),
        };
        let count = request.n.ok_or_else(|| ApiError::invalid("n", "missing", expected()))?;
        if !(1..=most).contains(&count) {
            return Err(ApiError::invalid("n", count, expected()));
        }
        let seed = request.seed.map_or(0, |seed| seed.0);
        let last = seed.checked_add(count - 1).filter(|&last| last <= spec::MAX_SEED);
        if last.is_none() {
            let expected = format!("at most {} with `n` {count}", spec::MAX_SEED - (count - 1));
            return Err(ApiError::invalid("seed", seed, expected));
        }
        let specs = specs(request, card, seed)?;
        let about = about(card, &specs, seed, count);
        let bulk = Self { specs, seed, count: count as usize, file, about };
        bulk.fits(card, limit)?;
        Ok(bulk)
    }

    /// Refuses what is larger than a result may be: it would be drawn for nothing.
    fn fits(&self, card: &Card, limit: usize) -> Result<(), ApiError> {
        let limit = limit.min(zip::MOST_BYTES);
        let (fixed, each) = self.size(card);
        let size = each.saturating_mul(self.count).saturating_add(fixed);
        if size <= limit {
            return Ok(());
        }
        let most = limit.saturating_sub(fixed) / each.max(1);
        let message = format!(
            "`n` is {}, and the result may take {size} bytes, more than {limit}, the most there may be \
             (`--job-result-limit`); expected {most} at most",
            self.count
        );
        Err(ApiError::new(Cause::InvalidValue, message).param("n"))
    }

    /// Bytes that the result takes at most: beside the images, and for each of them.
    fn size(&self, card: &Card) -> (usize, usize) {
        let [channels, height, width] = card.shape();
        let rest = zip::EMPTY + zip::frame(ABOUT) + self.about.len();
        let list = |name: &str| zip::frame(name) + npy_head("<i8", &[self.count]).len();
        match self.file {
            File::Npz => {
                let head = npy_head("|u1", &[self.count, height, width, channels]).len();
                let (rest, each) =
                    (rest + zip::frame(PIXELS) + head + list(SEEDS), card.manifest.config.elements() + 8);
                if self.is_labelled() { (rest + list(LABELS), each + 8) } else { (rest, each) }
            }
            File::Zip => {
                // Numbers are of the same length all.
                let names = (0..self.specs.len()).map(|i| zip::frame(&self.name(i)));
                (rest, names.max().unwrap_or(0) + most_bytes_of_png(width, height, card.colour))
            }
        }
    }

    /// The class of image `i`.
    fn class(&self, i: usize) -> Option<usize> {
        self.specs[i % self.specs.len()].class
    }

    fn is_labelled(&self) -> bool {
        self.specs.iter().all(|spec| spec.class.is_some())
    }

    /// The name of image `i` in an archive.
    fn name(&self, i: usize) -> String {
        match self.class(i) {
            Some(class) => format!("{class:03}/{i:06}.png"),
            None => format!("{i:06}.png"),
        }
    }

    /// The file of these images. Pixels are copied once: into it.
    fn file(&self, card: &Card, drawn: &Drawn) -> Result<Vec<u8>, ApiError> {
        let full = |error: zip::Full| ApiError::internal(error.to_string());
        let [channels, height, width] = card.shape();
        let (fixed, each) = self.size(card);
        let mut archive = Archive::with_capacity(each.saturating_mul(self.count).saturating_add(fixed));
        match self.file {
            File::Npz => {
                let head = npy_head("|u1", &[self.count, height, width, channels]);
                let mut pixels = vec![head.as_slice()];
                pixels.extend(drawn.pieces.iter().map(|piece| &piece[..]));
                archive.add(PIXELS, &pixels).map_err(full)?;
                let head = npy_head("<i8", &[self.count]);
                let seeds = (0..self.count).map(|i| (self.seed + i as u64).to_le_bytes());
                archive.add(SEEDS, &[&head, &seeds.flatten().collect::<Vec<_>>()]).map_err(full)?;
                if self.is_labelled() {
                    let labels = (0..self.count)
                        .filter_map(|i| self.class(i))
                        .map(|class| (class as u64).to_le_bytes());
                    archive.add(LABELS, &[&head, &labels.flatten().collect::<Vec<_>>()]).map_err(full)?;
                }
            }
            File::Zip => {
                let images =
                    drawn.pieces.iter().flat_map(|piece| piece.chunks_exact(channels * height * width));
                for (i, pixels) in images.enumerate() {
                    let picture = Picture { width, height, colour: card.colour, pixels: pixels.to_vec() };
                    let png = picture.encode(Encoding::Png, None);
                    let png = png.map_err(|error| ApiError::internal(error.to_string()))?;
                    archive.add(&self.name(i), &[&png]).map_err(full)?;
                }
            }
        }
        archive.add(ABOUT, &[self.about.as_bytes()]).map_err(full)?;
        archive.finish().map_err(full)
    }
}

/// How the images are drawn: image i as spec i modulo their number says.
fn specs(request: &BulkRequest, card: &Card, seed: u64) -> Result<Vec<Arc<SampleSpec>>, ApiError> {
    let of = |class: Option<ClassRef>| -> Result<Arc<SampleSpec>, ApiError> {
        let asked = ImageRequest { class, seed: Some(Seed(seed)), ..request.image() };
        Ok(Order::resolve(&asked, &Accept::default(), card)?.spec)
    };
    match request.classes.as_deref() {
        None => Ok(vec![of(request.class.clone())?]),
        Some("each") if request.class.is_some() || request.prompt.is_some() => {
            let message = "`classes` and a class are two ways to say one thing; give one of them";
            Err(ApiError::new(Cause::InvalidValue, message).param("classes"))
        }
        Some("each") if card.manifest.classes.is_empty() => {
            let message =
                format!("`classes`: `{}` is a model without classes; leave it out", card.manifest.name);
            Err(ApiError::new(Cause::InvalidValue, message).param("classes"))
        }
        Some("each") => {
            let all = 0..card.manifest.classes.len() as u64;
            all.map(|class| of(Some(ClassRef::Index(class)))).collect()
        }
        Some(word) => Err(ApiError::invalid("classes", shown(word), "`each`")),
    }
}

/// What is said of the result.
fn about(card: &Card, specs: &[Arc<SampleSpec>], seed: u64, count: u64) -> String {
    let spec = &specs[0];
    json!({
        "model": card.manifest.name, "digest": card.digest, "n": count, "seed": seed.to_string(),
        "classes": specs.iter().map(|spec| spec.class).collect::<Vec<_>>(),
        "sampler": spec.solver.sampler.to_string(), "steps": spec.solver.steps,
        "guidance_scale": spec.guidance_scale, "eta": spec.solver.eta,
    })
    .to_string()
}

// === impl BulkRequest ===

impl BulkRequest {
    /// The fields that say how, as the images route takes them.
    fn image(&self) -> ImageRequest {
        ImageRequest {
            prompt: self.prompt.clone(),
            steps: self.steps,
            sampler: self.sampler.clone(),
            time_grid: self.time_grid.clone(),
            guidance_scale: self.guidance_scale,
            eta: self.eta,
            clip_x0: self.clip_x0,
            ..ImageRequest::default()
        }
    }
}

/// The file, with what it is of in a header.
fn respond(card: &Card, bulk: &Bulk, drawn: &Drawn) -> Result<Response, ApiError> {
    let kind = match bulk.file {
        File::Npz => "application/x-npz",
        File::Zip => "application/zip",
    };
    let header = |text: &str| text.parse().map_err(|_| ApiError::internal("a header that is not text"));
    let mut response = Response::new(bulk.file(card, drawn)?.into());
    let headers = response.headers_mut();
    headers.insert("content-type", header(kind)?);
    headers.insert("x-about", header(&crate::provenance::ascii(&bulk.about))?);
    headers.insert("x-model", header(&card.manifest.name)?);
    headers.insert("x-model-digest", header(&card.digest)?);
    Ok(response)
}

#[cfg(test)]
mod tests;

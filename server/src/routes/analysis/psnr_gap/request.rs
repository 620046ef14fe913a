//! What a client may ask for.

use serde::{Deserialize, Serialize};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::extract::{Fields, form_of};
use crate::spec::{ClassRef, Seed};

/// An archive with `sneaker/1.png`, 28x28 grey pixels: an example that is as short as one can be.
const SNEAKER: &str = "\
    UEsDBBQAAAAAAAAAIQCPrTYwTgAAAE4AAAANAAAAc25lYWtlci8xLnBuZ4lQTkcNChoKAAAADUlIRFIAAAAcAAAAHAgAAAAAV2aASAAAABVJREFUGNNjYBgF\
    NAQLcIDhJjkiAAAsuXgBXpSSrQAAAABJRU5ErkJgglBLAQIUABQAAAAAAAAAIQCPrTYwTgAAAE4AAAANAAAAAAAAAAAAAACAAQAAAABzbmVha2VyLzEucG5n\
    UEsFBgAAAAABAAEAOwAAAHkAAAAAAA==";

/// One with `bag/1.png`.
const BAG: &str = "\
    UEsDBBQAAAAAAAAAIQA4XaO4TgAAAE4AAAAJAAAAYmFnLzEucG5niVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAAAFUlEQVQY02NgGEHgBBYw\
    Kjl0JekMAO8J+gEUngawAAAAAElFTkSuQmCCUEsBAhQAFAAAAAAAAAAhADhdo7hOAAAATgAAAAkAAAAAAAAAAAAAAIABAAAAAGJhZy8xLnBuZ1BLBQYAAAAA\
    AQABADcAAAB1AAAAAAA=";

/// The images to measure on. `train` are images that the model has seen, `test` images that it has not; `train` alone is
/// measured by itself, and without either the package's own reference set is taken, where it has one.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"model": "fashion-dit", "train": SNEAKER, "test": BAG, "timesteps": 10}))]
pub struct PsnrGapRequest {
    /// Name of the model; may be left out where only one is served.
    pub model: Option<String>,
    /// Images that were trained on, in base64: a `.npy` of u8 `[n, height, width, channels]` (or `[n, height, width]` of grey
    /// ones) or of f32 `[n, channels, height, width]` in -1 to 1; or a `.zip` of PNGs, in whose folders that are named as
    /// classes lie the images of these classes.
    #[schema(content_encoding = "base64")]
    pub train: Option<String>,
    /// Images that were not, in the same forms.
    #[schema(content_encoding = "base64")]
    pub test: Option<String>,
    /// The class of each image of `train`, by index or name; of an archive in order of name, in which its files must be in it too.
    /// Without, and without folders, the network is told no class.
    #[schema(value_type = Option<Vec<ClassRef>>)]
    pub train_labels: Option<Vec<ClassRef>>,
    /// The class of each image of `test`.
    #[schema(value_type = Option<Vec<ClassRef>>)]
    pub test_labels: Option<Vec<ClassRef>>,
    /// Bring PNGs of another size to the model's, by a triangle filter.
    pub resize: Option<bool>,
    /// Images of each side at most, K: of an array the first, of an archive as many in even steps through its names.
    #[schema(default = 300, minimum = 1, maximum = 10_000)]
    pub images: Option<u64>,
    /// Timesteps, evenly spaced over the model's schedule.
    #[schema(default = 50, minimum = 1, maximum = 1000)]
    pub timesteps: Option<u64>,
    /// Seed of the noise and of the bootstrap: 0 to 2^63 - 1, as a number or a decimal string; 0 unless given.
    #[schema(value_type = Option<Seed>)]
    pub seed: Option<Seed>,
    /// `json`, or a file: `csv` has the curves as a table, with the gap clipped at 0 (`gap_db`) and as it is
    /// (`unclipped_gap_db`); `svg` and `png` have them as a plot.
    #[schema(default = "json", pattern = "^(json|csv|svg|png)$")]
    pub output_format: Option<String>,
    /// Milliseconds that the answer is worth waiting for, as in the header `x-request-timeout-ms`; of two the shorter counts.
    #[schema(minimum = 1, maximum = 3_600_000)]
    pub timeout_ms: Option<u64>,
}

/// The same as a form: `train` and `test` are files, every other field is text; a list is JSON, as in `[0, 3]`, or a part for
/// each of its elements.
#[derive(Debug)]
pub enum PsnrGapForm {}

impl PartialSchema for PsnrGapForm {
    fn schema() -> RefOr<Schema> {
        form_of::<PsnrGapRequest>()
    }
}

impl ToSchema for PsnrGapForm {}

impl Fields for PsnrGapRequest {
    const FILES: &[&str] = &["train", "test"];
    const LISTS: &[&str] = &["train_labels", "test_labels"];
    const TEXTS: &[&str] = &["model", "output_format"];
}

//! What handlers take from a request: extractors whose rejection is an [`ApiError`], so that every refusal has the
//! same form.

mod accept;
mod body;
mod compression;
mod identity;
mod infer;
mod json;
mod path;
mod upload;

pub use accept::{Accept, Form};
pub use compression::Compression;
pub use identity::{Admin, Generator};
pub use infer::{OptionalJson, infer};
pub use json::ApiJson;
pub use path::{ModelId, RequestIdPath, VersionedModel};
pub use upload::{PngUpload, UploadRequest};

#[cfg(doc)]
use crate::error::ApiError;

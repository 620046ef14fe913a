//! What handlers take from a request: extractors whose rejection is an [`ApiError`], so that every refusal has the
//! same form.

mod accept;
mod json;
mod path;

pub use accept::{Accept, Form};
pub use json::ApiJson;
pub use path::ModelId;

#[cfg(doc)]
use crate::error::ApiError;

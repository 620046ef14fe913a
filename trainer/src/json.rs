//! JSON that is an object: serde would also read the fields of a struct from an array, in their order.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Reads a struct. Errors: what is no object ("a sequence, expected a map"), and those of serde, with line and column.
pub fn object<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str::<Map<String, Value>>(text)?;
    serde_json::from_str(text)
}

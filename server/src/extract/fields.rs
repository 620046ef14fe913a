//! A body of fields, some of which are files: JSON with the files in base64, or a form (`multipart/form-data`) with the files
//! as they are. Both become the same `T`, and a wrong field is told in the same words.

use axum::extract::{FromRequest, Request};
use axum::http::header;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use utoipa::PartialSchema;
use utoipa::openapi::{RefOr, Schema};

use super::multipart::{self, Part};
use super::{body, json};
use crate::app::App;
use crate::error::{ApiError, Cause, words};
use crate::spec::FileBytes;

/// What a form has to know of the fields of a request.
pub trait Fields {
    /// Those that are files: base64 in JSON.
    const FILES: &[&str];
    /// Those that are lists.
    const LISTS: &[&str];
    /// Those that are text, whatever they look like. Others are JSON where they read as it, and text where not.
    const TEXTS: &[&str];
}

/// The body as a `T`. Every field of `T` must be optional: a wrong field is found by trying each one alone.
#[derive(Debug, Clone)]
pub struct ApiFields<T>(pub T);

/// The schema of a request as a form: that of its JSON, with files that are files.
pub(crate) fn form_of<T: Fields + PartialSchema>() -> RefOr<Schema> {
    let mut schema = T::schema();
    if let RefOr::T(Schema::Object(object)) = &mut schema {
        object.example = None;
        for file in T::FILES {
            let mut bytes = FileBytes::schema();
            if let RefOr::T(Schema::Object(bytes)) = &mut bytes {
                bytes.description = Some("As in JSON, and the file itself.".to_owned());
            }
            object.properties.insert((*file).to_owned(), bytes);
        }
    }
    schema
}

// === impl ApiFields ===

impl<T: DeserializeOwned + Fields> ApiFields<T> {
    /// The fields of a form whose `content-type` this is; `None`: that of something else.
    pub fn of_form(kind: &str, body: &[u8]) -> Option<Result<Self, ApiError>> {
        multipart::boundary(kind).map(|boundary| form(body, boundary).map(Self))
    }
}

impl<T: DeserializeOwned + Fields> FromRequest<App> for ApiFields<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let Some(boundary) = kind.and_then(multipart::boundary).map(str::to_owned) else {
            json::require_json(request.headers(), "`application/json` or `multipart/form-data`")?;
            return json::parse(&body::collect(request, app).await?).map(Self);
        };
        form(&body::collect(request, app).await?, &boundary).map(Self)
    }
}

/// The fields of a form with this boundary.
fn form<T: DeserializeOwned + Fields>(body: &[u8], boundary: &str) -> Result<T, ApiError> {
    let parts = multipart::parts(body, boundary)
        .map_err(|error| ApiError::new(Cause::MalformedBody, format!("the form does not read: {error}")))?;
    let fields = fields::<T>(parts)?;
    let read = serde_json::from_value(Value::Object(fields.clone()));
    read.map_err(|error| {
        let error = words::refused(&error);
        if error.param.is_some() { error } else { json::culprit::<T>(fields).unwrap_or(error) }
    })
}

/// The parts as they would be written in JSON.
fn fields<T: Fields>(parts: Vec<Part<'_>>) -> Result<Map<String, Value>, ApiError> {
    let mut fields = Map::new();
    for Part { name, data } in parts {
        let field = name.as_str();
        if T::FILES.contains(&field) {
            once(&mut fields, &name, STANDARD.encode(data).into())?;
            continue;
        }
        let text = std::str::from_utf8(data).map_err(|_| ApiError::invalid(field, "not UTF-8", "text"))?;
        let as_json = || serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
        if T::LISTS.contains(&field) {
            let list = fields.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(list) = list else { continue };
            match as_json() {
                Value::Array(items) => list.extend(items),
                item => list.push(item),
            }
        } else {
            let value = if T::TEXTS.contains(&field) { text.into() } else { as_json() };
            once(&mut fields, &name, value)?;
        }
    }
    Ok(fields)
}

fn once(fields: &mut Map<String, Value>, name: &str, value: Value) -> Result<(), ApiError> {
    match fields.insert(name.to_owned(), value) {
        None => Ok(()),
        Some(_) => {
            let message = format!("the field `{name}` comes twice");
            Err(ApiError::new(Cause::InvalidValue, message).param(name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Form;

    impl Fields for Form {
        const FILES: &[&str] = &["image"];
        const LISTS: &[&str] = &["layers"];
        const TEXTS: &[&str] = &["model"];
    }

    fn read(parts: &[(&str, &[u8])]) -> Result<Value, String> {
        let parts = parts.iter().map(|&(name, data)| Part { name: name.to_owned(), data }).collect();
        fields::<Form>(parts).map(Value::Object).map_err(|error| error.message)
    }

    #[test]
    fn a_form_is_read_as_its_json() {
        let parts: [(&str, &[u8]); 7] = [
            ("image", b"\xff\x00"),
            ("model", b"7"),
            ("n", b"7"),
            ("seed", b"9223372036854775807"),
            ("layers", b"[0, 2]"),
            ("layers", b"3"),
            ("word", b"ring"),
        ];
        let expected = serde_json::json!({
            "image": "/wA=", "model": "7", "n": 7, "seed": i64::MAX, "layers": [0, 2, 3], "word": "ring",
        });
        assert_eq!(read(&parts), Ok(expected));
        assert_eq!(read(&[("n", b"1"), ("n", b"2")]), Err("the field `n` comes twice".to_owned()));
        assert_eq!(read(&[("n", b"\xff")]), Err("`n` is not UTF-8, expected text".to_owned()));
    }
}

//! In what form a look is answered: JSON, or a file by `output_format` or `accept`.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use crate::encode::ArrayFile;
use crate::error::{ApiError, Cause};
use crate::extract::{Accept, Form};
use crate::model::Model;
use crate::provenance::ascii;
use crate::spec::shown;

/// How the answer is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Output<F = File> {
    /// JSON, or the bytes of the file.
    pub(super) form: Form,
    /// A file; none, where the numbers are in the JSON.
    pub(super) file: Option<F>,
    /// The word of the file, or `json`.
    word: &'static str,
}

/// A file of arrays, or a picture of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum File {
    Arrays(ArrayFile),
    Picture,
}

// === impl Output ===

impl Output {
    /// Forms that are files where arrays are told.
    const FILES: [(Form, File); 3] = [
        (Form::Npz, File::Arrays(ArrayFile::Npz)),
        (Form::Safetensors, File::Arrays(ArrayFile::Safetensors)),
        (Form::Png, File::Picture),
    ];

    /// [`Output::among`] the forms of arrays and their picture.
    pub(super) fn resolve(word: Option<&str>, accept: &Accept) -> Result<Self, ApiError> {
        Self::among(&Self::FILES, word, accept)
    }
}

impl<F: Copy> Output<F> {
    /// JSON, or the type of file among these that `accept` prefers; `output_format` says which file that is, and comes inside
    /// of JSON where `accept` does not name its type.
    pub(super) fn among(files: &[(Form, F)], word: Option<&str>, accept: &Accept) -> Result<Self, ApiError> {
        let asked = match word {
            None | Some("json") => None,
            Some(word) => {
                let found = files.iter().find(|(form, _)| form.as_str() == word);
                let words = || {
                    let (last, others) = files.split_last()?;
                    let others = others.iter().map(|(form, _)| format!(", `{}`", form.as_str()));
                    Some(format!("`json`{} or `{}`", others.collect::<String>(), last.0.as_str()))
                };
                let expected = || words().unwrap_or_default();
                Some(*found.ok_or_else(|| ApiError::invalid("output_format", shown(word), expected()))?)
            }
        };
        let mut offers = vec![Form::Json];
        match (asked, word.is_some()) {
            (Some((asked, _)), _) => offers.push(asked),
            (None, true) => {}
            (None, false) => offers.extend(files.iter().map(|(form, _)| *form)),
        }
        let form = accept.best(&offers).ok_or_else(|| {
            let types = offers.iter().map(|form| form.media_type()).collect::<Vec<_>>().join(", ");
            let message = format!("nothing that `accept` allows can be produced; {types} can");
            ApiError::new(Cause::NotAcceptable, message)
        })?;
        let file = asked.or_else(|| files.iter().copied().find(|(known, _)| *known == form));
        let word = file.map_or("json", |(form, _)| form.as_str());
        Ok(Self { form, file: file.map(|(_, file)| file), word })
    }

    /// The word of its file.
    pub(super) fn as_str(self) -> &'static str {
        self.word
    }

    /// The answer that is a file, with what it is of beside it.
    pub(super) fn respond(self, model: &Model, about: &str, file: Vec<u8>) -> Result<Response, ApiError> {
        let value =
            |text: String| HeaderValue::try_from(text).map_err(|error| ApiError::internal(error.to_string()));
        let mut response = file.into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.form.media_type()));
        headers.insert("x-about", value(ascii(about))?);
        headers.insert("x-model", value(model.name().to_owned())?);
        headers.insert("x-model-digest", value(model.card.digest.clone())?);
        Ok(response)
    }
}

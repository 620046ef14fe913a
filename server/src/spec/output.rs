//! How an image is handed over: form, file and size. None of it changes what is sampled.

use crate::encode::{ArrayFile, DEFAULT_JPEG_QUALITY, Encoding};
use crate::error::{ApiError, Cause};
use crate::extract::{Accept, Form};
use crate::model::Card;
use crate::routes::images::ImageRequest;

use super::shown;

/// Longest side of a picture in pixels: enlargement costs memory and no thought.
pub const MAX_SIDE: usize = 2048;

/// How to hand over a request's images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// A JSON object, events, or the bytes of one file.
    pub form: Form,
    /// The file.
    pub file: File,
    /// Pixels of the picture for one of the model's, along each side.
    pub scale: usize,
}

/// A file of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum File {
    /// A picture: 8 bits a channel.
    Picture(Encoding),
    /// The model's own values.
    Arrays(ArrayFile),
}

// === impl Output ===

impl Output {
    pub(super) fn resolve(
        request: &ImageRequest,
        accept: &Accept,
        card: &Card,
        count: u64,
    ) -> Result<Self, ApiError> {
        let asked = format(request)?;
        let form = if request.stream == Some(true) { events(accept)? } else { form(accept, asked)? };
        let kind = if form.is_file() { form } else { asked.unwrap_or(Form::Png) };
        let (file, scale) = (file(request, kind)?, scale(request, card)?);
        if let (File::Arrays(_), Form::Events) = (file, form) {
            let expected = "`png`, `webp` or `jpeg` with `stream`";
            return Err(ApiError::invalid("output_format", shown(file.as_str()), expected));
        }
        if let (File::Picture(_), true) = (file, form.is_file() && count > 1) {
            let expected = format!(
                "1 with `accept: {}`: JSON holds several images, and so do arrays",
                form.media_type()
            );
            return Err(ApiError::invalid("n", count, expected));
        }
        if matches!(file, File::Arrays(_)) && scale > 1 {
            let got = shown(request.size.as_deref().unwrap_or_default());
            return Err(ApiError::invalid(
                "size",
                got,
                "`auto`: arrays hold the model's own values, not pixels",
            ));
        }
        Ok(Self { form, file, scale })
    }
}

// === impl File ===

impl File {
    /// Its word in `output_format`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Picture(Encoding::Png) => "png",
            Self::Picture(Encoding::Webp) => "webp",
            Self::Picture(Encoding::Jpeg { .. }) => "jpeg",
            Self::Arrays(ArrayFile::Npy) => "npy",
            Self::Arrays(ArrayFile::Npz) => "npz",
            Self::Arrays(ArrayFile::Safetensors) => "safetensors",
        }
    }
}

/// The format that `output_format` names.
fn format(request: &ImageRequest) -> Result<Option<Form>, ApiError> {
    let Some(word) = request.output_format.as_deref() else { return Ok(None) };
    let found = Form::FILES.into_iter().find(|form| form.as_str() == word);
    let expected = "`png`, `webp`, `jpeg`, `npy`, `npz` or `safetensors`";
    found.map(Some).ok_or_else(|| ApiError::invalid("output_format", shown(word), expected))
}

/// Server-sent events, which a client that streams and names JSON alone is content with: OpenAI's does that.
fn events(accept: &Accept) -> Result<Form, ApiError> {
    if accept.best(&[Form::Events, Form::Json]).is_some() {
        return Ok(Form::Events);
    }
    let message = "`stream` is true, and `accept` allows neither text/event-stream nor application/json";
    Err(ApiError::new(Cause::NotAcceptable, message).param("stream"))
}

/// JSON, or the type of file that `accept` prefers. `output_format` settles what a wildcard leaves open, and
/// contradicts nothing that `accept` names.
fn form(accept: &Accept, asked: Option<Form>) -> Result<Form, ApiError> {
    let mut offers = vec![Form::Json];
    match asked {
        Some(asked) => offers.push(asked),
        None => offers.extend(Form::FILES),
    }
    if let Some(form) = accept.best(&offers) {
        return Ok(form);
    }
    if let (Some(asked), Some(form)) = (asked, accept.best(&Form::FILES)) {
        let expected = format!("left out or the type that `accept` names, {}", form.media_type());
        return Err(ApiError::invalid("output_format", asked.media_type(), expected));
    }
    let files = Form::FILES.map(Form::media_type).join(", ");
    let message = format!("nothing that `accept` allows can be produced; application/json, {files} can");
    Err(ApiError::new(Cause::NotAcceptable, message))
}

/// The file. Compression is a choice for JPEG alone: the others lose nothing here, so only 100 is true of them.
fn file(request: &ImageRequest, kind: Form) -> Result<File, ApiError> {
    let compression = request.output_compression;
    if let Some(percent) = compression.filter(|&percent| percent > 100) {
        return Err(ApiError::invalid("output_compression", percent, "0 to 100"));
    }
    if let (true, Some(percent)) = (kind != Form::Jpeg, compression.filter(|&percent| percent != 100)) {
        let supported = format!("100 for {}, which is lossless; `jpeg` takes 0 to 100", kind.media_type());
        return Err(ApiError::unsupported("output_compression", percent, &supported));
    }
    // The encoder's scale begins at 1.
    let quality = compression.map_or(DEFAULT_JPEG_QUALITY, |percent| (percent as u8).max(1));
    Ok(match kind {
        Form::Json | Form::Events | Form::Png | Form::Csv | Form::Svg => File::Picture(Encoding::Png),
        Form::Webp => File::Picture(Encoding::Webp),
        Form::Jpeg => File::Picture(Encoding::Jpeg { quality }),
        Form::Npy => File::Arrays(ArrayFile::Npy),
        Form::Npz => File::Arrays(ArrayFile::Npz),
        Form::Safetensors => File::Arrays(ArrayFile::Safetensors),
    })
}

/// `auto`, or width × height as an integer multiple of the model's.
fn scale(request: &ImageRequest, card: &Card) -> Result<usize, ApiError> {
    let text = match request.size.as_deref() {
        None | Some("auto") => return Ok(1),
        Some(text) => text,
    };
    let (width, height) = (card.manifest.config.width, card.manifest.config.height);
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<usize>().ok())?;
    let size = text.split_once('x').and_then(|(w, h)| Some((number(w)?, number(h)?)));
    let factor = size.and_then(|(w, h)| {
        let factor = w / width;
        (factor >= 1 && factor.checked_mul(width) == Some(w) && factor.checked_mul(height) == Some(h))
            .then_some(factor)
    });
    // The native size is served whatever it is.
    factor.filter(|factor| *factor == 1 || factor * width.max(height) <= MAX_SIDE).ok_or_else(|| {
        let most = (MAX_SIDE / width.max(height)).max(1);
        let expected = format!(
            "`auto`, the model's `{width}x{height}`, or a multiple of it up to `{}x{}`",
            most * width,
            most * height
        );
        ApiError::invalid("size", shown(text), expected)
    })
}

//! How an image is handed over: form, encoding and size. None of it changes what is sampled.

use crate::encode::{DEFAULT_JPEG_QUALITY, Encoding};
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
    /// A JSON object, or the bytes of one picture.
    pub form: Form,
    /// The picture file.
    pub encoding: Encoding,
    /// Pixels of the picture for one of the model's, along each side.
    pub scale: usize,
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
        let form = form(accept, asked)?;
        if form != Form::Json && count > 1 {
            let expected = format!("1 with `accept: {}`: JSON holds several images", form.media_type());
            return Err(ApiError::invalid("n", count, expected));
        }
        let kind = if form == Form::Json { asked.unwrap_or(Form::Png) } else { form };
        Ok(Self { form, encoding: encoding(request, kind)?, scale: scale(request, card)? })
    }
}

/// The format that `output_format` names.
fn format(request: &ImageRequest) -> Result<Option<Form>, ApiError> {
    match request.output_format.as_deref() {
        None => Ok(None),
        Some("png") => Ok(Some(Form::Png)),
        Some("webp") => Ok(Some(Form::Webp)),
        Some("jpeg") => Ok(Some(Form::Jpeg)),
        Some(other) => Err(ApiError::invalid("output_format", shown(other), "`png`, `webp` or `jpeg`")),
    }
}

/// JSON, or the image type that `accept` prefers. `output_format` settles what a wildcard leaves open, and
/// contradicts nothing that `accept` names.
fn form(accept: &Accept, asked: Option<Form>) -> Result<Form, ApiError> {
    let mut offers = vec![Form::Json];
    match asked {
        Some(asked) => offers.push(asked),
        None => offers.extend([Form::Png, Form::Webp, Form::Jpeg]),
    }
    if let Some(form) = accept.best(&offers) {
        return Ok(form);
    }
    if let (Some(asked), Some(form)) = (asked, accept.best(&[Form::Png, Form::Webp, Form::Jpeg])) {
        let expected = format!("left out or the type that `accept` names, {}", form.media_type());
        return Err(ApiError::invalid("output_format", asked.media_type(), expected));
    }
    let message = "nothing that `accept` allows can be produced; \
                   application/json, image/png, image/webp and image/jpeg can";
    Err(ApiError::new(Cause::NotAcceptable, message))
}

/// The encoder. Compression is a choice for JPEG alone: PNG and WebP lose nothing here, so only 100 is true of them.
fn encoding(request: &ImageRequest, kind: Form) -> Result<Encoding, ApiError> {
    let compression = request.output_compression;
    if let Some(percent) = compression.filter(|&percent| percent > 100) {
        return Err(ApiError::invalid("output_compression", percent, "0 to 100"));
    }
    match (kind, compression) {
        (Form::Jpeg, None) => Ok(Encoding::Jpeg { quality: DEFAULT_JPEG_QUALITY }),
        // The encoder's scale begins at 1.
        (Form::Jpeg, Some(percent)) => Ok(Encoding::Jpeg { quality: (percent as u8).max(1) }),
        (kind, None | Some(100)) => Ok(if kind == Form::Webp { Encoding::Webp } else { Encoding::Png }),
        (kind, Some(percent)) => {
            let supported =
                format!("100 for {}, which is lossless; `jpeg` takes 0 to 100", kind.media_type());
            Err(ApiError::unsupported("output_compression", percent, &supported))
        }
    }
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

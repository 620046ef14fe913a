//! The `accept` header: which of the forms a handler can produce the client likes best (RFC 9110, section 12.5.1).

use std::convert::Infallible;
use std::fmt;

use axum::extract::FromRequestParts;
use axum::http::{header, request::Parts};

/// A form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A JSON object with base64 inside.
    Json,
    /// Server-sent events, each a JSON object.
    Events,
    /// The bytes of one PNG.
    Png,
    /// The bytes of one lossless WebP.
    Webp,
    /// The bytes of one JPEG.
    Jpeg,
    /// The model's values as a NumPy array.
    Npy,
    /// Named NumPy arrays in an archive.
    Npz,
    /// Named tensors.
    Safetensors,
    /// A table, a line for each row.
    Csv,
    /// A drawing.
    Svg,
}

/// A parsed `accept` header.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Accept {
    ranges: Vec<Range>,
}

/// One media range and its quality in thousandths.
#[derive(Debug, Clone, PartialEq)]
struct Range {
    kind: String,
    subtype: String,
    quality: u16,
}

// === impl Form ===

impl Form {
    /// The forms of images that are one file, not JSON; pictures first.
    pub const FILES: [Self; 6] = [Self::Png, Self::Webp, Self::Jpeg, Self::Npy, Self::Npz, Self::Safetensors];

    /// Whether it is one file as it is.
    pub fn is_file(self) -> bool {
        !matches!(self, Self::Json | Self::Events)
    }

    /// The word that `output_format` takes for a file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Events => "events",
            Self::Png => "png",
            Self::Webp => "webp",
            Self::Jpeg => "jpeg",
            Self::Npy => "npy",
            Self::Npz => "npz",
            Self::Safetensors => "safetensors",
            Self::Csv => "csv",
            Self::Svg => "svg",
        }
    }

    /// The media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Events => "text/event-stream",
            Self::Png => "image/png",
            Self::Webp => "image/webp",
            Self::Jpeg => "image/jpeg",
            Self::Npy => "application/x-npy",
            Self::Npz => "application/x-npz",
            Self::Safetensors => "application/vnd.safetensors",
            Self::Csv => "text/csv",
            Self::Svg => "image/svg+xml",
        }
    }
}

// === impl Accept ===

impl Accept {
    /// Reads a header's value. Items that are not media ranges are skipped, as if they were not there.
    pub fn parse(header: &str) -> Self {
        Self { ranges: header.split(',').filter_map(Range::parse).collect() }
    }

    /// The best of `offers`: highest quality, then the most specific range, then the order of `offers`. A header
    /// that is absent or holds nothing readable accepts anything. `None`: nothing is acceptable.
    pub fn best(&self, offers: &[Form]) -> Option<Form> {
        if self.ranges.is_empty() {
            return offers.first().copied();
        }
        let mut best: Option<((u16, u8), Form)> = None;
        for &offer in offers {
            let Some((quality, specificity)) = self.quality(offer) else { continue };
            if quality > 0 && best.is_none_or(|(top, _)| (quality, specificity) > top) {
                best = Some(((quality, specificity), offer));
            }
        }
        best.map(|(_, form)| form)
    }

    /// Quality of the most specific range that matches, and how specific that is (0: `*/*`, 2: the type itself).
    fn quality(&self, form: Form) -> Option<(u16, u8)> {
        let (kind, subtype) =
            form.media_type().split_once('/').expect("a media type has a slash; this is a bug");
        let specificity = |range: &Range| match (range.kind.as_str(), range.subtype.as_str()) {
            ("*", "*") => Some(0),
            (k, "*") if k == kind => Some(1),
            (k, s) if k == kind && s == subtype => Some(2),
            _ => None,
        };
        self.ranges
            .iter()
            .filter_map(|range| Some((specificity(range)?, range.quality)))
            .max()
            .map(|(s, q)| (q, s))
    }
}

impl fmt::Display for Accept {
    /// As a header has it; nothing, where anything is accepted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Range { kind, subtype, quality }) in self.ranges.iter().enumerate() {
            let (comma, quality) = (if i == 0 { "" } else { ", " }, f64::from(*quality) / 1000.0);
            write!(f, "{comma}{kind}/{subtype};q={quality}")?;
        }
        Ok(())
    }
}

impl<S: Sync> FromRequestParts<S> for Accept {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let values = parts.headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        Ok(Self::parse(&values.collect::<Vec<_>>().join(",")))
    }
}

// === impl Range ===

impl Range {
    /// `type/subtype;q=0.5`; parameters other than `q` are not distinguished.
    fn parse(item: &str) -> Option<Self> {
        let mut parts = item.split(';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        if !is_token(kind) || !is_token(subtype) || (kind == "*" && subtype != "*") {
            return None;
        }
        let mut quality = 1000;
        for parameter in parts {
            if let Some((name, value)) = parameter.split_once('=')
                && name.trim().eq_ignore_ascii_case("q")
            {
                let q: f32 = value.trim().parse().ok().filter(|q| (0.0..=1.0).contains(q))?;
                quality = (q * 1000.0).round() as u16;
            }
        }
        Some(Self { kind: kind.to_ascii_lowercase(), subtype: subtype.to_ascii_lowercase(), quality })
    }
}

/// Whether it is a token of RFC 9110, section 5.6.2, as names of types are.
fn is_token(text: &str) -> bool {
    let is_of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_of_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_of_a_type_is_not_there() {
        for item in ["image/pn\0g", "image /png", "image/p\u{e4}g", "/png", "image/", "image/png/x", "a b/c"]
        {
            assert_eq!(Accept::parse(item), Accept::default(), "{item:?}");
        }
        let odd = "a/\0, application/vnd.safetensors;q=0.5, x-a!#$%&'*+-.^_`|~/b";
        assert_eq!(
            Accept::parse(odd).to_string(),
            "application/vnd.safetensors;q=0.5, x-a!#$%&'*+-.^_`|~/b;q=1"
        );
    }

    fn best(header: &str) -> Option<Form> {
        Accept::parse(header).best(&[&[Form::Json], &Form::FILES[..]].concat())
    }

    #[test]
    fn json_is_the_default() {
        for header in ["", "*/*", "application/json", "application/*", "nonsense", "*/*;q=0.1", "*/html"] {
            assert_eq!(best(header), Some(Form::Json), "{header}");
        }
    }

    #[test]
    fn an_image_type_asks_for_bytes() {
        assert_eq!(best("image/png"), Some(Form::Png));
        assert_eq!(best("IMAGE/JPEG"), Some(Form::Jpeg));
        assert_eq!(best("image/*"), Some(Form::Png));
        assert_eq!(best("application/x-npz"), Some(Form::Npz));
        assert_eq!(best("application/vnd.safetensors, application/json;q=0.9"), Some(Form::Safetensors));
        assert_eq!(best("image/png, */*"), Some(Form::Png));
        // What a browser sends for an <img>.
        assert_eq!(best("image/avif,image/webp,image/apng,image/*,*/*;q=0.8"), Some(Form::Webp));
    }

    #[test]
    fn quality_decides_and_zero_forbids() {
        assert_eq!(best("image/png;q=0.5, image/webp"), Some(Form::Webp));
        assert_eq!(best("image/png;q=0.5, application/json;q=0.6"), Some(Form::Json));
        assert_eq!(best("image/*, image/png;q=0"), Some(Form::Webp));
        assert_eq!(best("*/*, application/json;q=0"), Some(Form::Png));
        assert_eq!(best("text/html"), None);
        assert_eq!(best("image/png;q=0"), None);
    }
}

//! WebP, lossless only: smaller than PNG, and readable by every browser.

use image::ImageEncoder;
use image::codecs::webp::WebPEncoder;

use super::{EncodeError, Picture};

/// The picture as a lossless WebP.
pub(super) fn encode(picture: &Picture) -> Result<Vec<u8>, EncodeError> {
    picture.write("WebP", |out, pixels, [width, height], colour| {
        WebPEncoder::new_lossless(out).write_image(pixels, width, height, colour)
    })
}

#[cfg(test)]
mod tests {
    use crate::encode::{Colour, Encoding, tests::gradient};

    #[test]
    fn it_is_a_lossless_webp() {
        let bytes = gradient(Colour::Grey, 6, 6).encode(Encoding::Webp, None).unwrap();
        assert_eq!((&bytes[..4], &bytes[8..16]), (&b"RIFF"[..], &b"WEBPVP8L"[..]));
    }
}

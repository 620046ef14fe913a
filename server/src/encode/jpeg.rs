//! JPEG: small, lossy, for pages. `output_compression` is its quality.

use image::ImageEncoder;
use image::codecs::jpeg::JpegEncoder;

use super::{EncodeError, Picture};

/// The picture as a baseline JPEG of `quality` 1 to 100.
pub(super) fn encode(picture: &Picture, quality: u8) -> Result<Vec<u8>, EncodeError> {
    picture.write("JPEG", |out, pixels, [width, height], colour| {
        JpegEncoder::new_with_quality(out, quality.clamp(1, 100)).write_image(pixels, width, height, colour)
    })
}

#[cfg(test)]
mod tests {
    use crate::encode::{Colour, Encoding, tests::gradient};

    #[test]
    fn quality_trades_size_for_error() {
        let picture = gradient(Colour::Rgb, 64, 64);
        let [low, high] = [10, 100].map(|quality| picture.encode(Encoding::Jpeg { quality }, None).unwrap());
        assert!(low.len() < high.len());
        let back = image::load_from_memory_with_format(&high, image::ImageFormat::Jpeg).unwrap().to_rgb8();
        let worst = back.as_raw().iter().zip(&picture.pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        // Chroma is stored at full resolution at quality 100; what is left is rounding in the colour transform.
        assert!(worst <= 4, "{worst}");
    }

    #[test]
    fn grey_stays_grey() {
        let bytes = gradient(Colour::Grey, 8, 8).encode(Encoding::Jpeg { quality: 95 }, None).unwrap();
        let back = image::load_from_memory_with_format(&bytes, image::ImageFormat::Jpeg).unwrap();
        assert_eq!(back.color(), image::ColorType::L8);
    }
}

//! PNG: lossless, the default. A grey model gives a grey file.

use image::ImageEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};

use super::{EncodeError, Picture};

/// The picture as a PNG. Compression and filter are fixed: the bytes are part of what is reproducible. The fast
/// compressor is the one that has a single implementation; the others are whichever zlib the build was given, down to
/// what else cargo built with it.
pub(super) fn encode(picture: &Picture) -> Result<Vec<u8>, EncodeError> {
    picture.write("PNG", |out, pixels, [width, height], colour| {
        PngEncoder::new_with_quality(out, CompressionType::Fast, FilterType::Adaptive)
            .write_image(pixels, width, height, colour)
    })
}

#[cfg(test)]
mod tests {
    use crate::encode::{Colour, Encoding, tests::gradient};

    #[test]
    fn the_header_says_grey_or_rgb() {
        // IHDR: width and height at 16, bit depth at 24, colour type at 25 (0 grey, 2 RGB).
        for (colour, kind) in [(Colour::Grey, 0), (Colour::Rgb, 2)] {
            let bytes = gradient(colour, 3, 4).encode(Encoding::Png).unwrap();
            assert_eq!(bytes[..8], *b"\x89PNG\r\n\x1a\n");
            assert_eq!(bytes[16..26], [0, 0, 0, 4, 0, 0, 0, 3, 8, kind]);
        }
    }

    #[test]
    fn the_same_picture_gives_the_same_bytes() {
        let picture = gradient(Colour::Rgb, 32, 32);
        assert_eq!(picture.encode(Encoding::Png).unwrap(), picture.encode(Encoding::Png).unwrap());
    }
}

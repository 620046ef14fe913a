//! PNG: lossless, the default. A grey model gives a grey file. A note may travel along, in an `iTXt` chunk: it is
//! written uncompressed, so that whoever reads it back has nothing to unpack.

use super::{Colour, EncodeError, Picture};

/// The keyword of the note's chunk.
pub const KEYWORD: &str = "windowpane";

/// The picture as a PNG, with `note` in front of its pixels. Compression and filter are fixed: the bytes are part of
/// what is reproducible. The fast compressor is the one that has a single implementation; the others are whichever
/// zlib the build was given, down to what else cargo built with it.
pub(super) fn encode(picture: &Picture, note: Option<&str>) -> Result<Vec<u8>, EncodeError> {
    let [width, height] = picture.sides("PNG")?;
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(match picture.colour {
        Colour::Grey => png::ColorType::Grayscale,
        Colour::Rgb => png::ColorType::Rgb,
    });
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    encoder.set_filter(png::Filter::Adaptive);
    let write = |mut encoder: png::Encoder<'_, &mut Vec<u8>>| {
        if let Some(note) = note {
            encoder.add_itxt_chunk(KEYWORD.to_owned(), note.to_owned())?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&picture.pixels)?;
        writer.finish()
    };
    write(encoder).map_err(|error| picture.refused("PNG", error.to_string()))?;
    Ok(bytes)
}

/// The most that a PNG of this size without a note takes: what does not compress is stored as it is.
pub fn most_bytes(width: usize, height: usize, colour: Colour) -> usize {
    // A filter's byte before each line; five bytes for each block of 65535, and six around them.
    let raw = height.saturating_mul(width.saturating_mul(colour.channels()).saturating_add(1));
    let stored = raw.saturating_add(5 * raw.div_ceil(0xFFFF) + 6);
    // Signature, head, frame and end.
    stored.saturating_add(8 + 25 + 12 + 12)
}

#[cfg(test)]
mod tests {
    use image::ImageEncoder;
    use image::codecs::png::{CompressionType, FilterType, PngEncoder};

    use super::*;
    use crate::encode::{Encoding, tests::gradient};

    #[test]
    fn the_header_says_grey_or_rgb() {
        // IHDR: width and height at 16, bit depth at 24, colour type at 25 (0 grey, 2 RGB).
        for (colour, kind) in [(Colour::Grey, 0), (Colour::Rgb, 2)] {
            let bytes = gradient(colour, 3, 4).encode(Encoding::Png, None).unwrap();
            assert_eq!(bytes[..8], *b"\x89PNG\r\n\x1a\n");
            assert_eq!(bytes[16..26], [0, 0, 0, 4, 0, 0, 0, 3, 8, kind]);
        }
    }

    #[test]
    fn the_same_picture_gives_the_same_bytes() {
        let picture = gradient(Colour::Rgb, 32, 32);
        let encode = |note| picture.encode(Encoding::Png, note).unwrap();
        assert_eq!(encode(None), encode(None));
        assert_eq!(encode(Some("ü")), encode(Some("ü")));
    }

    #[test]
    fn a_note_is_one_chunk_before_the_pixels_and_changes_nothing_else() {
        for colour in [Colour::Grey, Colour::Rgb] {
            let picture = gradient(colour, 9, 17);
            let mut reference = Vec::new();
            let kind = if colour == Colour::Grey {
                image::ExtendedColorType::L8
            } else {
                image::ExtendedColorType::Rgb8
            };
            PngEncoder::new_with_quality(&mut reference, CompressionType::Fast, FilterType::Adaptive)
                .write_image(&picture.pixels, 17, 9, kind)
                .unwrap();
            assert_eq!(picture.encode(Encoding::Png, None).unwrap(), reference, "the image crate's bytes");
            let noted = picture.encode(Encoding::Png, Some("note")).unwrap();
            // Signature and IHDR are 33 bytes; a chunk's frame is 12; four zeros follow the keyword's end.
            let chunk = 12 + KEYWORD.len() + 5 + 4;
            assert_eq!((&noted[..33], &noted[33 + chunk..]), (&reference[..33], &reference[33..]));
            assert_eq!(noted[37..37 + 4 + KEYWORD.len()], *b"iTXtwindowpane");
            assert_eq!(image::load_from_memory(&noted).unwrap().into_bytes(), picture.pixels);
        }
    }

    #[test]
    fn noise_takes_no_more_than_the_most() {
        let mut noise = 1_u64;
        for (colour, height, width) in [(Colour::Grey, 28, 28), (Colour::Rgb, 1, 1), (Colour::Rgb, 150, 150)]
        {
            let pixels: Vec<u8> = (0..colour.channels() * height * width)
                .map(|_| {
                    noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (noise >> 56) as u8
                })
                .collect();
            let bytes = Picture { width, height, colour, pixels }.encode(Encoding::Png, None).unwrap().len();
            let most = most_bytes(width, height, colour);
            assert!(bytes <= most && (bytes + 16 > most || height == 1), "{bytes} of {most}");
        }
    }
}

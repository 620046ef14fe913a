//! An uploaded PNG: its pixels as the model's values, and the note that this server wrote into it. Its size is read
//! and compared before a pixel is unpacked, and no compressed text is unpacked at all.

use std::io::Cursor;

use crate::encode::{Colour, KEYWORD, Picture};

/// Bytes of a note: ours have about a thousand.
const NOTE_MOST: usize = 16 << 10;

/// What the decoder may allocate beside the pixels, in bytes: a palette, a colour profile that is not read.
const SCRATCH: usize = 1 << 20;

/// The file signature.
const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Bytes are no picture that is read here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PictureError {
    /// Not a whole PNG.
    #[error("it is not a whole PNG: {0}")]
    Png(&'static str),
    /// Another size.
    #[error("it is {}x{} pixels, expected {}x{}", got[0], got[1], expected[0], expected[1])]
    Size {
        /// Width and height of the file.
        got: [usize; 2],
        /// Width and height expected.
        expected: [usize; 2],
    },
    /// Pixels that let a background through.
    #[error("it has transparent pixels, expected opaque ones")]
    Transparent,
    /// More than one picture.
    #[error("it is animated, expected one picture")]
    Animated,
}

/// The pixels of a file as they are: no sample is rounded and no colour is converted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exact {
    /// Grey or RGB, as in the file.
    pub colour: Colour,
    /// `height · width · channels` samples of 16 bits, channels interleaved; 8 bits become 16 by repetition.
    pub samples: Vec<u16>,
}

/// The picture in `bytes`, which must be of this size. Every PNG is read: palettes are looked up, 16 bits become 8,
/// an alpha channel that is opaque is dropped. Then to `colour`: grey to RGB by repetition, RGB to grey by the luma of
/// ITU-R BT.601 in 16-bit fixed point, as Pillow's `convert("L")` does.
pub fn png(bytes: &[u8], colour: Colour, [width, height]: [usize; 2]) -> Result<Picture, PictureError> {
    let unpacked = Unpacked::of(bytes, [width, height], ::png::Transformations::STRIP_16)?;
    let (own, pixels) = unpacked.opaque(u8::MAX, |sample: &[u8; 1]| sample[0])?;
    Ok(converted(pixels, own, colour, width, height))
}

/// The pixels in `bytes`, for whoever asks whether they are the very same ones. Palettes are looked up and an alpha channel
/// that is opaque is dropped; more than one picture in a file is an error.
pub fn exact(bytes: &[u8], size: [usize; 2]) -> Result<Exact, PictureError> {
    let unpacked = Unpacked::of(bytes, size, ::png::Transformations::IDENTITY)?;
    if unpacked.animated {
        return Err(PictureError::Animated);
    }
    let (colour, samples) = match unpacked.depth {
        ::png::BitDepth::Sixteen => {
            unpacked.opaque(u16::MAX, |sample: &[u8; 2]| u16::from_be_bytes(*sample))?
        }
        _ => unpacked.opaque(u16::MAX, |sample: &[u8; 1]| u16::from(sample[0]) * 257)?,
    };
    Ok(Exact { colour, samples })
}

/// Memory that [`exact`] takes for this file at the most, by what its head says: what the decoder makes of it, and beside it the
/// samples.
pub fn exact_bytes(bytes: &[u8]) -> Option<usize> {
    let [width, height] = size(bytes)?;
    let (depth, kind) = (*bytes.get(24)?, *bytes.get(25)?);
    // Channels as they are unpacked, with an alpha channel, and as they are kept. A palette may have transparent colours.
    let (unpacked, kept) = match kind {
        0 | 4 => (2, 1),
        _ => (4, 3),
    };
    let sample = if depth == 16 { 2 } else { 1 };
    let pixel = unpacked * sample + kept * size_of::<u16>();
    Some(width.saturating_mul(height).saturating_mul(pixel))
}

/// What the decoder makes of a file: whole bytes, no palette.
struct Unpacked {
    kind: ::png::ColorType,
    depth: ::png::BitDepth,
    animated: bool,
    bytes: Vec<u8>,
}

// === impl Unpacked ===

impl Unpacked {
    /// The file's first picture, which must be of this size.
    fn of(
        bytes: &[u8],
        [width, height]: [usize; 2],
        transformations: ::png::Transformations,
    ) -> Result<Self, PictureError> {
        // The decoder's own words are about its insides.
        let wrong = |error| {
            PictureError::Png(match error {
                ::png::DecodingError::IoError(_) => "it is cut short",
                ::png::DecodingError::LimitsExceeded => "it unpacks to more than its size says",
                _ => "it is damaged",
            })
        };
        let got = size(bytes).ok_or(PictureError::Png("it does not begin as a PNG does"))?;
        if got != [width, height] {
            return Err(PictureError::Size { got, expected: [width, height] });
        }
        // 16-bit RGBA is the widest pixel.
        let limits =
            ::png::Limits { bytes: SCRATCH.saturating_add(width.saturating_mul(height).saturating_mul(8)) };
        let mut decoder = ::png::Decoder::new_with_limits(Cursor::new(bytes), limits);
        decoder.set_transformations(::png::Transformations::EXPAND | transformations);
        decoder.set_ignore_text_chunk(true);
        decoder.set_ignore_iccp_chunk(true);
        let mut reader = decoder.read_info().map_err(wrong)?;
        // Three bytes a colour, and no more colours than a byte can name: the decoder takes that for granted.
        let palette = reader.info().palette.as_ref();
        if palette.is_some_and(|palette| palette.len() % 3 != 0 || palette.len() > 3 * 256) {
            return Err(PictureError::Png("its palette is damaged"));
        }
        let mut bytes = vec![0; reader.output_buffer_size().ok_or(PictureError::Png("it is too large"))?];
        reader.next_frame(&mut bytes).map_err(wrong)?;
        let (kind, depth) = reader.output_color_type();
        Ok(Self { kind, depth, animated: reader.info().animation_control.is_some(), bytes })
    }

    /// Its samples, of `WIDTH` bytes each, without their alpha, which must be `most` everywhere.
    fn opaque<const WIDTH: usize, T: Copy + PartialEq>(
        &self,
        most: T,
        read: impl Fn(&[u8; WIDTH]) -> T,
    ) -> Result<(Colour, Vec<T>), PictureError> {
        let (colour, alpha) = match self.kind {
            ::png::ColorType::Grayscale => (Colour::Grey, 0),
            ::png::ColorType::GrayscaleAlpha => (Colour::Grey, 1),
            ::png::ColorType::Rgb | ::png::ColorType::Indexed => (Colour::Rgb, 0),
            ::png::ColorType::Rgba => (Colour::Rgb, 1),
        };
        let (samples, channels) = (self.bytes.as_chunks::<WIDTH>().0, colour.channels());
        let pixels = || samples.chunks_exact(channels + alpha).map(move |pixel| pixel.split_at(channels));
        if pixels().flat_map(|(_, alpha)| alpha).any(|alpha| read(alpha) != most) {
            return Err(PictureError::Transparent);
        }
        // Not a sample more than there are, whatever they take.
        let mut kept = Vec::with_capacity(samples.len() / (channels + alpha) * channels);
        kept.extend(pixels().flat_map(|(pixel, _)| pixel).map(read));
        Ok((colour, kept))
    }
}

/// Width and height, from where a PNG has them.
pub fn size(bytes: &[u8]) -> Option<[usize; 2]> {
    let header = bytes.strip_prefix(SIGNATURE)?.get(..16)?;
    let side = |at: usize| Some(u32::from_be_bytes(header[at..at + 4].try_into().ok()?) as usize);
    (header[4..8] == *b"IHDR").then_some([side(8)?, side(12)?])
}

/// The note that [`Picture::encode`] put into a PNG: the first `iTXt` chunk of our keyword, if it is uncompressed and
/// not larger than any of ours. Nothing of the file is copied or unpacked to find it.
pub fn note(bytes: &[u8]) -> Option<&str> {
    let mut rest = bytes.strip_prefix(SIGNATURE)?;
    // A chunk: length, kind, data, checksum.
    while let Some((head, after)) = rest.split_at_checked(8) {
        let length = u32::from_be_bytes(head[..4].try_into().ok()?) as usize;
        let (data, after) = after.split_at_checked(length)?;
        rest = after.get(4..)?;
        if head[4..] != *b"iTXt" {
            continue;
        }
        // Keyword, 0, not compressed, method 0, no language, 0, no translation, 0, text.
        let text = data.strip_prefix(KEYWORD.as_bytes()).and_then(|rest| rest.strip_prefix(&[0; 5]));
        if let Some(text) = text.filter(|text| text.len() <= NOTE_MOST) {
            return std::str::from_utf8(text).ok();
        }
    }
    None
}

/// The model's values `[channels, height, width]` of a picture: black to white is its `range`.
pub fn planar(picture: &Picture, [low, high]: [f32; 2]) -> Vec<f32> {
    let (channels, scale) = (picture.colour.channels(), (high - low) / 255.0);
    let plane = |c: usize| picture.pixels.iter().skip(c).step_by(channels);
    (0..channels).flat_map(|c| plane(c).map(|&pixel| low + f32::from(pixel) * scale)).collect()
}

fn converted(pixels: Vec<u8>, from: Colour, to: Colour, width: usize, height: usize) -> Picture {
    let pixels = match (from, to) {
        (Colour::Grey, Colour::Rgb) => pixels.iter().flat_map(|&grey| [grey; 3]).collect(),
        (Colour::Rgb, Colour::Grey) => pixels.as_chunks::<3>().0.iter().map(|&pixel| luma(pixel)).collect(),
        _ => pixels,
    };
    Picture { width, height, colour: to, pixels }
}

/// 0.299 R + 0.587 G + 0.114 B in 16-bit fixed point, rounded.
fn luma(rgb: [u8; 3]) -> u8 {
    let [r, g, b] = rgb.map(u32::from);
    ((19_595 * r + 38_470 * g + 7_471 * b + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, ImageFormat};
    use proptest::prelude::*;

    use super::*;
    use crate::encode::Encoding;
    use crate::encode::tests::gradient;

    fn file(image: &DynamicImage) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn what_was_encoded_is_read_back_with_its_note() {
        for colour in [Colour::Grey, Colour::Rgb] {
            let picture = gradient(colour, 5, 7);
            let bytes = picture.encode(Encoding::Png, Some("{\"ü\": 1}")).unwrap();
            assert_eq!(png(&bytes, colour, [7, 5]).unwrap(), picture);
            assert_eq!((note(&bytes), size(&bytes)), (Some("{\"ü\": 1}"), Some([7, 5])));
            assert_eq!(note(&picture.encode(Encoding::Png, None).unwrap()), None);
            assert_eq!(note(&picture.encode(Encoding::Png, Some(&"x".repeat(NOTE_MOST + 1))).unwrap()), None);
        }
    }

    #[test]
    fn values_become_pixels_and_pixels_values() {
        let picture = gradient(Colour::Rgb, 5, 7);
        for range in [[-1.0, 1.0], [0.0, 1.0]] {
            let values = planar(&picture, range);
            assert_eq!(Picture::from_planar(&values, Colour::Rgb, 5, 7, range), picture);
            assert!(values.iter().all(|v| (range[0]..=range[1]).contains(v)));
        }
    }

    #[test]
    fn colours_are_converted_by_the_stated_rule() {
        let rgb =
            DynamicImage::ImageRgb8(image::RgbImage::from_raw(2, 1, vec![255, 0, 0, 10, 200, 30]).unwrap());
        // 0.299 · 255 = 76.2; 0.299 · 10 + 0.587 · 200 + 0.114 · 30 = 123.8.
        assert_eq!(png(&file(&rgb), Colour::Grey, [2, 1]).unwrap().pixels, [76, 124]);
        let grey = DynamicImage::ImageLuma8(image::GrayImage::from_raw(2, 1, vec![7, 200]).unwrap());
        assert_eq!(png(&file(&grey), Colour::Rgb, [2, 1]).unwrap().pixels, [7, 7, 7, 200, 200, 200]);
        assert_eq!(
            png(&file(&DynamicImage::ImageLuma16(grey.to_luma16())), Colour::Grey, [2, 1]).unwrap().pixels,
            [7, 200]
        );
        for opaque in [DynamicImage::ImageRgba8(rgb.to_rgba8()), DynamicImage::ImageRgba16(rgb.to_rgba16())] {
            assert_eq!(png(&file(&opaque), Colour::Rgb, [2, 1]).unwrap().pixels, rgb.as_bytes());
        }
        assert_eq!(
            png(&file(&DynamicImage::ImageLumaA8(grey.to_luma_alpha8())), Colour::Grey, [2, 1])
                .unwrap()
                .pixels,
            [7, 200]
        );
    }

    #[test]
    fn exact_pixels_are_not_rounded_and_keep_their_colour() {
        let grey = image::GrayImage::from_raw(2, 1, vec![7, 200]).unwrap();
        let of = |image: DynamicImage| exact(&file(&image), [2, 1]);
        let samples = vec![7 * 257, 200 * 257];
        assert_eq!(of(grey.clone().into()), Ok(Exact { colour: Colour::Grey, samples: samples.clone() }));
        // With an alpha channel that is opaque, and as RGB whose luma is the same.
        assert_eq!(of(DynamicImage::from(grey.clone()).to_luma_alpha8().into()).unwrap().samples, samples);
        let rgb = image::RgbImage::from_raw(2, 1, vec![7, 7, 6, 200, 200, 200]).unwrap();
        assert_eq!(png(&file(&rgb.clone().into()), Colour::Grey, [2, 1]).unwrap().pixels, [7, 200]);
        let read = of(rgb.into()).unwrap();
        assert_eq!((read.colour, &read.samples[..3]), (Colour::Rgb, &[7 * 257, 7 * 257, 6 * 257][..]));
        let mut wide = DynamicImage::from(grey).to_luma16();
        wide.get_pixel_mut(1, 0).0[0] += 1;
        assert_eq!(of(wide.clone().into()).unwrap().samples, [7 * 257, 200 * 257 + 1]);
        let mut glass = DynamicImage::from(wide).to_luma_alpha16();
        glass.get_pixel_mut(0, 0).0[1] -= 1;
        assert_eq!(of(glass.into()), Err(PictureError::Transparent));
    }

    #[test]
    fn what_exact_pixels_take_is_known_from_the_head() {
        let grey = image::GrayImage::new(100, 50);
        let bytes = |image: DynamicImage| exact_bytes(&file(&image)).unwrap();
        assert_eq!(bytes(grey.clone().into()), 5000 * (2 + 2));
        assert_eq!(bytes(DynamicImage::from(grey.clone()).to_rgb8().into()), 5000 * (4 + 6));
        assert_eq!(bytes(DynamicImage::from(grey.clone()).to_rgba16().into()), 5000 * (8 + 6));
        assert_eq!(bytes(DynamicImage::from(grey).to_luma_alpha16().into()), 5000 * (4 + 2));
        assert_eq!(exact_bytes(b"GIF89a"), None);
        let whole = file(&DynamicImage::new_luma8(1, 1));
        assert_eq!(exact_bytes(&whole[..24]), None);
    }

    #[test]
    fn a_picture_that_moves_is_not_one_picture() {
        let mut bytes = Vec::new();
        let mut encoder = ::png::Encoder::new(&mut bytes, 2, 1);
        encoder.set_animated(2, 0).unwrap();
        let mut writer = encoder.write_header().unwrap();
        (0..2).for_each(|_| writer.write_image_data(&[7, 200]).unwrap());
        writer.finish().unwrap();
        assert_eq!(exact(&bytes, [2, 1]), Err(PictureError::Animated));
        assert_eq!(png(&bytes, Colour::Grey, [2, 1]).unwrap().pixels, [7, 200]);
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_unpacked() {
        let bytes = gradient(Colour::Grey, 5, 7).encode(Encoding::Png, None).unwrap();
        let error = png(&bytes, Colour::Grey, [5, 7]).unwrap_err();
        assert_eq!(error.to_string(), "it is 7x5 pixels, expected 5x7");
        assert!(matches!(png(b"GIF89a", Colour::Grey, [5, 7]), Err(PictureError::Png(_))));
        assert!(matches!(png(&bytes[..bytes.len() - 30], Colour::Grey, [7, 5]), Err(PictureError::Png(_))));
        let mut glass = image::RgbaImage::from_pixel(2, 1, image::Rgba([1, 2, 3, 255]));
        glass.get_pixel_mut(1, 0).0[3] = 254;
        assert_eq!(png(&file(&glass.into()), Colour::Rgb, [2, 1]), Err(PictureError::Transparent));
    }

    proptest! {
        #[test]
        fn no_damage_makes_it_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut bytes = gradient(Colour::Rgb, 5, 7).encode(Encoding::Png, Some("note")).unwrap();
            *at.get_mut(&mut bytes) = byte;
            for bytes in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
                let _ = (png(bytes, Colour::Grey, [7, 5]), exact(bytes, [7, 5]), note(bytes), size(bytes));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let bytes = [SIGNATURE, &bytes].concat();
            let _ = (png(&bytes, Colour::Rgb, [7, 5]), exact(&bytes, [7, 5]), note(&bytes), size(&bytes));
        }
    }
}

//! One encoded image to planar bytes. Grey stays grey, everything else becomes RGB; 16 bits become 8.
//!
//! The bytes are not trusted: a claimed side beyond [`MAX_SIDE`] is refused before anything is allocated, and a panic
//! inside a decoder becomes an error.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::error::{DataError, Result};
use super::jpeg;

/// Longest side accepted, in pixels. Models here work on pixels: larger images are a mistake or an attack.
pub const MAX_SIDE: u32 = 4096;

/// Bytes a decoder may allocate: the largest image at 16 bits and four channels, twice.
const MAX_ALLOCATION: u64 = 2 * 8 * (MAX_SIDE as u64) * (MAX_SIDE as u64);

/// A decoded image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// 1 or 3.
    pub channels: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Planar `[channels, height, width]`.
    pub pixels: Vec<u8>,
}

/// Decodes PNG, JPEG or WebP, whichever the bytes say they are. `at` names the image in errors.
///
/// Errors: an unknown format, damaged bytes, a file that lost its tail, sides beyond [`MAX_SIDE`], transparent pixels
/// (there is no telling what should show behind them).
pub fn decode(bytes: &[u8], at: impl Fn() -> String) -> Result<Decoded> {
    let outcome = catch_unwind(AssertUnwindSafe(|| decode_unguarded(bytes)));
    let reason = match outcome {
        Ok(Ok(decoded)) => return Ok(decoded),
        Ok(Err(reason)) => reason,
        Err(_) => "the decoder broke down on it".to_owned(),
    };
    Err(DataError::Image { at: at(), reason })
}

fn decode_unguarded(bytes: &[u8]) -> std::result::Result<Decoded, String> {
    if bytes.is_empty() {
        return Err("it is empty".to_owned());
    }
    let Ok(format) = image::guess_format(bytes) else {
        return Err("neither PNG nor JPEG nor WebP".to_owned());
    };
    if format != ImageFormat::Jpeg {
        return planar(&read(bytes, format)?);
    }
    let ends = jpeg::scan_ends(bytes).ok_or("no end marker: it may be cut off")?;
    let image = read(bytes, format)?;
    if let [end] = ends[..]
        && read(&jpeg::with_ones(bytes, end), format).as_ref() != Ok(&image)
    {
        return Err("it is cut off: its data ends before its last pixel".to_owned());
    }
    planar(&image)
}

/// The pixels of a file, upright.
fn read(bytes: &[u8], format: ImageFormat) -> std::result::Result<DynamicImage, String> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_ALLOCATION);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|e| e.to_string())?;
    let orientation = decoder.orientation().map_err(|e| e.to_string())?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| e.to_string())?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Interleaved to planar.
fn planar(image: &DynamicImage) -> std::result::Result<Decoded, String> {
    let (height, width) = (image.height() as usize, image.width() as usize);
    if height == 0 || width == 0 {
        return Err("it has no pixels".to_owned());
    }
    if image.color().has_alpha() && image.to_rgba8().pixels().any(|pixel| pixel.0[3] != u8::MAX) {
        return Err("it has transparent pixels".to_owned());
    }
    let grey = matches!(image.color(), ColorType::L8 | ColorType::L16 | ColorType::La8 | ColorType::La16);
    if grey {
        return Ok(Decoded { channels: 1, height, width, pixels: image.to_luma8().into_raw() });
    }
    let interleaved = image.to_rgb8().into_raw();
    let pixels = (0..3).flat_map(|c| interleaved.iter().copied().skip(c).step_by(3)).collect();
    Ok(Decoded { channels: 3, height, width, pixels })
}

#[cfg(test)]
pub(super) mod tests {
    use image::{GrayImage, ImageFormat, RgbImage, RgbaImage};

    use super::*;

    /// A PNG (or another format) of any image.
    pub(in crate::data) fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn decode_here(bytes: &[u8]) -> Result<Decoded> {
        decode(bytes, || "here".to_owned())
    }

    #[test]
    fn grey_stays_grey_and_rgb_becomes_planar() {
        let grey = encode(GrayImage::from_raw(2, 1, vec![7, 9]).unwrap(), ImageFormat::Png);
        let expected = Decoded { channels: 1, height: 1, width: 2, pixels: vec![7, 9] };
        assert_eq!(decode_here(&grey).unwrap(), expected);
        let rgb = RgbImage::from_raw(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            let expected = Decoded { channels: 3, height: 1, width: 2, pixels: vec![1, 4, 2, 5, 3, 6] };
            assert_eq!(decode_here(&encode(rgb.clone(), format)).unwrap(), expected, "{format:?}");
        }
    }

    #[test]
    fn transparency_is_refused_and_opaque_alpha_is_not() {
        let opaque = encode(RgbaImage::from_raw(1, 1, vec![1, 2, 3, 255]).unwrap(), ImageFormat::Png);
        assert_eq!(decode_here(&opaque).unwrap().pixels, [1, 2, 3]);
        let clear = encode(RgbaImage::from_raw(1, 1, vec![1, 2, 3, 254]).unwrap(), ImageFormat::Png);
        assert!(decode_here(&clear).unwrap_err().to_string().contains("transparent"));
    }

    /// An image with something to see everywhere: what is lost shows.
    fn busy(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([(x * y) as u8, (x * 5 + y * 3) as u8, (x ^ y) as u8])
        })
    }

    #[test]
    fn every_truncation_is_an_error_and_none_a_panic() {
        for (format, side) in [(ImageFormat::Png, 9), (ImageFormat::WebP, 9), (ImageFormat::Jpeg, 256)] {
            let bytes = encode(busy(side, side - 2), format);
            decode_here(&bytes).unwrap();
            // A PNG that lost only its end chunk has lost no pixel, nor a WebP only the byte that makes its length even.
            let idle = match format {
                ImageFormat::Png => 12,
                ImageFormat::WebP => usize::from(bytes[16] & 1),
                _ => 0,
            };
            let needed = bytes.len() - idle;
            for cut in 0..needed {
                let Err(error) = decode_here(&bytes[..cut]) else {
                    panic!("{format:?} cut at {cut} of {needed}")
                };
                assert!(error.to_string().starts_with("here: not a readable image: "), "{error}");
            }
        }
    }

    #[test]
    fn a_jpeg_that_was_cut_off_and_closed_is_no_jpeg() {
        for image in [DynamicImage::from(busy(256, 300)), DynamicImage::from(busy(300, 256)).grayscale()] {
            let bytes = encode(image, ImageFormat::Jpeg);
            let [end] = jpeg::scan_ends(&bytes).unwrap()[..] else { panic!("one scan") };
            assert_eq!(bytes[end..], [0xFF, 0xD9]);
            // All of its pixels are there, and nothing says so.
            let error = decode_here(&bytes[..end]).unwrap_err().to_string();
            assert!(error.ends_with("no end marker: it may be cut off"), "{error}");
            for cut in (end / 20..end - 2).step_by(101).chain([end - 2]) {
                let closed = [&bytes[..cut], &[0xFF, 0xD9]].concat();
                let error = decode_here(&closed).unwrap_err().to_string();
                assert!(error.contains("cut off"), "{cut} of {end}: {error}");
            }
            // What follows the end is nobody's business.
            let followed = [&bytes[..], &[0; 7], b"more"].concat();
            assert_eq!(decode_here(&followed).unwrap(), decode_here(&bytes).unwrap());
        }
    }

    #[test]
    fn huge_claims_are_refused() {
        let mut bytes = encode(GrayImage::new(1, 1), ImageFormat::Png);
        bytes[16..20].copy_from_slice(&1_000_000u32.to_be_bytes());
        let crc = png_crc(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        let error = decode_here(&bytes).unwrap_err().to_string();
        assert!(error.contains("limit"), "{error}");
    }

    /// The CRC-32 of PNG chunks, bit by bit.
    fn png_crc(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for &byte in bytes {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
            }
        }
        !crc
    }
}

//! From the network's numbers to the bytes of a picture file. Bytes are a pure function of pixels and options, so
//! that the same request gives the same file.

mod arrays;
mod jpeg;
mod png;
mod resize;
mod strip;
mod webp;
pub mod zip;

pub use arrays::{ArrayError, ArrayFile, Arrays, Frames, Named, npy_head, npz, safetensors};
pub use png::{KEYWORD, most_bytes as most_bytes_of_png};
pub use resize::enlarge;
pub use strip::strip;

/// A picture: 8 bits a channel, rows from the top, channels interleaved; 1 channel is grey, 3 are RGB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Grey or RGB.
    pub colour: Colour,
    /// `height · width · channels` bytes.
    pub pixels: Vec<u8>,
}

/// How a pixel is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// One channel.
    Grey,
    /// Three channels.
    Rgb,
}

/// How a picture is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// PNG.
    Png,
    /// Lossless WebP.
    Webp,
    /// JPEG of a quality from 1 to 100.
    Jpeg {
        /// The quality.
        quality: u8,
    },
}

/// The quality of a JPEG whose request names none: artefacts are invisible at a fifth of the PNG's size.
pub const DEFAULT_JPEG_QUALITY: u8 = 95;

/// The encoder refused a picture.
#[derive(Debug, thiserror::Error)]
#[error("encoding {width}×{height} {format}: {reason}")]
pub struct EncodeError {
    width: usize,
    height: usize,
    format: &'static str,
    reason: String,
}

// === impl Colour ===

impl Colour {
    /// The colour of an image with this many channels, if it can be shown as one.
    pub fn of_channels(channels: usize) -> Option<Self> {
        match channels {
            1 => Some(Self::Grey),
            3 => Some(Self::Rgb),
            _ => None,
        }
    }

    /// Bytes of a pixel.
    pub fn channels(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::Rgb => 3,
        }
    }

    fn of_image_crate(self) -> image::ExtendedColorType {
        match self {
            Self::Grey => image::ExtendedColorType::L8,
            Self::Rgb => image::ExtendedColorType::Rgb8,
        }
    }
}

// === impl Picture ===

impl Picture {
    /// From planar values `[channels, height, width]` whose `range` is black to white: scaled to 0…255, rounded
    /// half away from zero, clamped. The values are finite: the batcher fails a trajectory that is not.
    pub fn from_planar(values: &[f32], colour: Colour, height: usize, width: usize, range: [f32; 2]) -> Self {
        let (channels, plane) = (colour.channels(), height * width);
        debug_assert_eq!(values.len(), channels * plane);
        let [low, high] = range;
        let scale = 255.0 / (high - low);
        let mut pixels = vec![0; channels * plane];
        for (c, plane_values) in values.chunks_exact(plane).enumerate() {
            for (i, &value) in plane_values.iter().enumerate() {
                pixels[i * channels + c] = ((value - low) * scale).round().clamp(0.0, 255.0) as u8;
            }
        }
        Self { width, height, colour, pixels }
    }

    /// The file's bytes. A PNG carries `note` along, the other formats have no place for it that readers agree on.
    pub fn encode(&self, encoding: Encoding, note: Option<&str>) -> Result<Vec<u8>, EncodeError> {
        match encoding {
            Encoding::Png => png::encode(self, note),
            Encoding::Webp => webp::encode(self),
            Encoding::Jpeg { quality } => jpeg::encode(self, quality),
        }
    }

    /// Runs one of the `image` crate's encoders on this picture.
    fn write(
        &self,
        format: &'static str,
        encoder: impl FnOnce(&mut Vec<u8>, &[u8], [u32; 2], image::ExtendedColorType) -> image::ImageResult<()>,
    ) -> Result<Vec<u8>, EncodeError> {
        let mut bytes = Vec::new();
        encoder(&mut bytes, &self.pixels, self.sides(format)?, self.colour.of_image_crate())
            .map_err(|error| self.refused(format, error.to_string()))?;
        Ok(bytes)
    }

    /// Width and height as the formats hold them.
    fn sides(&self, format: &'static str) -> Result<[u32; 2], EncodeError> {
        let side = |n: usize| u32::try_from(n).map_err(|_| self.refused(format, "too large".to_owned()));
        Ok([side(self.width)?, side(self.height)?])
    }

    fn refused(&self, format: &'static str, reason: String) -> EncodeError {
        EncodeError { width: self.width, height: self.height, format, reason }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A gradient with a different slope in every channel.
    pub(crate) fn gradient(colour: Colour, height: usize, width: usize) -> Picture {
        let (c, plane) = (colour.channels(), height * width);
        let values: Vec<f32> = (0..c * plane)
            .map(|i| ((i % plane) as f32 / plane as f32 * 2.0 - 1.0) / (1 + i / plane) as f32)
            .collect();
        Picture::from_planar(&values, colour, height, width, [-1.0, 1.0])
    }

    #[test]
    fn values_are_scaled_rounded_and_clamped() {
        let values = [-1.0, 1.0, 0.0, -3.0, 3.0, -0.996_1];
        let picture = Picture::from_planar(&values, Colour::Grey, 2, 3, [-1.0, 1.0]);
        // round((v + 1) · 127.5); half away from zero, as 0 gives 127.5.
        assert_eq!(picture.pixels, [0, 255, 128, 0, 255, 0]);
    }

    #[test]
    fn planes_become_interleaved_pixels() {
        let values = [-1.0, 1.0, 0.0, 0.0, 1.0, -1.0];
        let picture = Picture::from_planar(&values, Colour::Rgb, 1, 2, [-1.0, 1.0]);
        assert_eq!(picture.pixels, [0, 128, 255, 255, 128, 0]);
    }

    #[test]
    fn lossless_formats_give_the_pixels_back() {
        for colour in [Colour::Grey, Colour::Rgb] {
            let picture = gradient(colour, 5, 7);
            for (encoding, format) in
                [(Encoding::Png, image::ImageFormat::Png), (Encoding::Webp, image::ImageFormat::WebP)]
            {
                let bytes = picture.encode(encoding, None).unwrap();
                let back = image::load_from_memory_with_format(&bytes, format).unwrap();
                assert_eq!((back.width(), back.height()), (7, 5));
                let pixels = match colour {
                    Colour::Grey => back.to_luma8().into_raw(),
                    Colour::Rgb => back.to_rgb8().into_raw(),
                };
                assert_eq!(pixels, picture.pixels, "{encoding:?} {colour:?}");
            }
        }
    }
}

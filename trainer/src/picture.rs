//! Many small images as one PNG to look at: contact sheets of data, grids of samples.

use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, GrayImage, ImageFormat, RgbImage};

use crate::error::{Error, Result};

/// Grey between and around the images.
const GROUND: u8 = 128;

/// Pixels between the images, before scaling.
const GAP: usize = 1;

/// A picture in memory, its values interleaved as PNG wants them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `[height, width, channels]`.
    pub pixels: Vec<u8>,
}

// === impl Picture ===

impl Picture {
    /// Lays images out row by row, `columns` to a row, each pixel `scale` wide and high.
    ///
    /// `images` are whole images, planar `[n, channels, height, width]`. Errors: channels other than 1 and 3, a side,
    /// column or scale of 0, part of an image, or no image.
    pub fn grid(
        images: &[u8],
        (channels, height, width): (usize, usize, usize),
        columns: usize,
        scale: usize,
    ) -> Result<Self> {
        let size = channels * height * width;
        if !matches!(channels, 1 | 3) || size == 0 || columns == 0 || scale == 0 {
            let got = format!("{channels} × {height} × {width}, {columns} columns, scale {scale}");
            return Err(Error::Config(format!(
                "cannot draw a grid of {got}: channels are 1 or 3, the rest above 0"
            )));
        }
        if images.is_empty() || !images.len().is_multiple_of(size) {
            let got = images.len();
            return Err(Error::Config(format!(
                "cannot draw {got} bytes: they are not whole images of {size}"
            )));
        }
        let count = images.len() / size;
        let columns = columns.min(count);
        let rows = count.div_ceil(columns);
        let side = |cells: usize, length: usize| (cells * (length + GAP) + GAP) * scale;
        let (out_height, out_width) = (side(rows, height), side(columns, width));
        let mut pixels = vec![GROUND; out_height * out_width * channels];
        for (i, image) in images.chunks_exact(size).enumerate() {
            let top = (i / columns * (height + GAP) + GAP) * scale;
            let left = (i % columns * (width + GAP) + GAP) * scale;
            for y in 0..height * scale {
                for x in 0..width * scale {
                    let target = ((top + y) * out_width + left + x) * channels;
                    for c in 0..channels {
                        pixels[target + c] = image[(c * height + y / scale) * width + x / scale];
                    }
                }
            }
        }
        Ok(Self { channels, height: out_height, width: out_width, pixels })
    }

    /// One image by itself, without a border. `image` is planar `[channels, height, width]`.
    pub fn image(image: &[u8], (channels, height, width): (usize, usize, usize)) -> Self {
        let plane = height * width;
        let pixels = (0..plane * channels).map(|i| image[i % channels * plane + i / channels]).collect();
        Self { channels, height, width, pixels }
    }

    /// The bytes of a PNG file. Errors: a picture larger than PNG allows.
    pub fn png(self) -> Result<Vec<u8>> {
        let too_large = || Error::Config("the picture is too large for a PNG".to_owned());
        let (width, height) = (u32::try_from(self.width), u32::try_from(self.height));
        let (width, height) = (width.map_err(|_| too_large())?, height.map_err(|_| too_large())?);
        let image = if self.channels == 1 {
            GrayImage::from_raw(width, height, self.pixels).map(DynamicImage::from)
        } else {
            RgbImage::from_raw(width, height, self.pixels).map(DynamicImage::from)
        };
        let mut bytes = Cursor::new(Vec::new());
        let image = image.ok_or_else(too_large)?;
        image.write_to(&mut bytes, ImageFormat::Png).map_err(|e| Error::Config(format!("no PNG: {e}")))?;
        Ok(bytes.into_inner())
    }

    /// Writes a PNG file, making its folder where there is none. Errors: those of [`Picture::png`] and of the file
    /// system.
    pub fn save(self, path: &Path) -> Result<()> {
        let bytes = self.png()?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        std::fs::write(path, bytes).map_err(Error::io(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_lie_row_by_row_with_a_gap() {
        let picture = Picture::grid(&[1, 2, 3], (1, 1, 1), 2, 1).unwrap();
        let g = GROUND;
        assert_eq!((picture.height, picture.width), (5, 5));
        let rows: Vec<&[u8]> = picture.pixels.chunks(5).collect();
        assert_eq!(rows[1], [g, 1, g, 2, g]);
        assert_eq!(rows[3], [g, 3, g, g, g]);
        assert_eq!(rows[0], [g; 5]);
    }

    #[test]
    fn planes_are_interleaved_and_pixels_repeated() {
        let picture = Picture::grid(&[1, 2, 10, 20, 100, 200], (3, 1, 2), 8, 2).unwrap();
        assert_eq!((picture.height, picture.width), (6, 8));
        let row: Vec<&[u8]> = picture.pixels.chunks(8 * 3).nth(3).unwrap().chunks(3).collect();
        assert_eq!(row[2..6], [[1, 10, 100], [1, 10, 100], [2, 20, 200], [2, 20, 200]]);
    }

    #[test]
    fn a_png_reads_back() {
        let bytes = Picture::grid(&[7, 8, 9, 10], (1, 2, 2), 1, 1).unwrap().png().unwrap();
        let image = image::load_from_memory(&bytes).unwrap().to_luma8();
        assert_eq!(
            (image.dimensions(), image.get_pixel(2, 1).0, image.get_pixel(1, 2).0),
            ((4, 4), [8], [9])
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for (images, shape, columns, scale) in [
            (&[0u8; 4][..], (2, 2, 1), 1, 1),
            (&[0; 4], (1, 2, 2), 0, 1),
            (&[0; 4], (1, 2, 2), 1, 0),
            (&[0; 4], (1, 0, 2), 1, 1),
            (&[0; 5], (1, 2, 2), 1, 1),
            (&[], (1, 2, 2), 1, 1),
        ] {
            assert!(Picture::grid(images, shape, columns, scale).is_err(), "{shape:?} {columns} {scale}");
        }
    }
}

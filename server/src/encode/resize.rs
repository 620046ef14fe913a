//! Integer enlargement by nearest neighbour: every pixel becomes a square. Nothing is invented, and the response
//! says that it was done.

use super::Picture;

/// The picture `factor` times as wide and as high.
pub fn enlarge(picture: &Picture, factor: usize) -> Picture {
    if factor == 1 {
        return picture.clone();
    }
    let channels = picture.colour.channels();
    let mut pixels = Vec::with_capacity(picture.pixels.len() * factor * factor);
    for row in picture.pixels.chunks_exact(picture.width * channels) {
        let start = pixels.len();
        for pixel in row.chunks_exact(channels) {
            (0..factor).for_each(|_| pixels.extend_from_slice(pixel));
        }
        let end = pixels.len();
        (1..factor).for_each(|_| pixels.extend_from_within(start..end));
    }
    Picture { width: picture.width * factor, height: picture.height * factor, colour: picture.colour, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{Colour, tests::gradient};

    #[test]
    fn every_pixel_becomes_a_square() {
        for colour in [Colour::Grey, Colour::Rgb] {
            let (small, channels) = (gradient(colour, 3, 5), colour.channels());
            let large = enlarge(&small, 4);
            assert_eq!((large.width, large.height), (20, 12));
            for y in 0..12 {
                for x in 0..20 {
                    let at = |p: &Picture, y: usize, x: usize| {
                        let start = (y * p.width + x) * channels;
                        p.pixels[start..start + channels].to_vec()
                    };
                    assert_eq!(at(&large, y, x), at(&small, y / 4, x / 4));
                }
            }
        }
    }

    #[test]
    fn a_factor_of_one_changes_nothing() {
        let picture = gradient(Colour::Rgb, 4, 4);
        assert_eq!(enlarge(&picture, 1), picture);
    }
}

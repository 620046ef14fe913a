//! Directions of a Jacobian as a sheet of pictures, as Figures 1 and 3 of An et al. (arXiv 2410.21273) show them: each with
//! its number and its value above it, its channels apart, R, G and B in frames of their colours; blue is less than nothing,
//! red more, and white nothing.

use super::canvas::{Canvas, DOT, INK, LINE, WHITE};
use crate::encode::Picture;

/// Pixels of one channel along its longer side, at least.
const PANEL: usize = 96;

/// Pixels between directions and around them.
const GAP: usize = 12;

/// Pixels between the channels of one.
const NEAR: usize = 4;

/// Directions beside each other.
const COLUMNS: usize = 8;

/// From the least to the most; nothing lies in the middle.
const COLOURS: [[u8; 3]; 5] = [[5, 48, 97], [103, 169, 207], WHITE, [239, 138, 98], [103, 0, 31]];

/// The frames of R, G and B.
const FRAMES: [[u8; 3]; 3] = [[200, 30, 30], [30, 140, 30], [30, 60, 200]];

/// A direction.
#[derive(Debug, Clone, Copy)]
pub struct Direction<'a> {
    /// Its number in the spectrum, from 0.
    pub number: usize,
    /// Its singular value or eigenvalue.
    pub value: f64,
    /// `[channels, height, width]`.
    pub vector: &'a [f64],
}

/// Where everything lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sheet {
    shape: [usize; 3],
    directions: usize,
    /// Pixels of a pixel.
    zoom: usize,
}

// === impl Sheet ===

impl Sheet {
    /// Of so many directions of images of this shape.
    pub fn new(shape: [usize; 3], directions: usize) -> Self {
        let zoom = PANEL.div_ceil(shape[1].max(shape[2]).max(1)).max(1);
        Self { shape, directions, zoom }
    }

    /// Width and height in pixels.
    pub fn size(&self) -> [usize; 2] {
        let [across, down] = self.cell();
        let columns = self.directions.clamp(1, COLUMNS);
        let rows = self.directions.div_ceil(COLUMNS).max(1);
        [GAP + columns * (across + GAP), GAP + rows * (down + GAP)]
    }

    /// Bytes of its pixels.
    pub fn bytes(&self) -> usize {
        let [width, height] = self.size();
        width.saturating_mul(height).saturating_mul(3)
    }

    /// Width and height of one direction: its words, and its channels below each other.
    fn cell(&self) -> [usize; 2] {
        let [channels, height, width] = self.shape;
        [(width * self.zoom).max(PANEL), LINE + channels * (height * self.zoom + NEAR)]
    }

    /// Draws it.
    pub fn draw(&self, directions: &[Direction<'_>]) -> Picture {
        let ([width, height], [across, down]) = (self.size(), self.cell());
        let mut canvas = Canvas::new(width, height);
        for (i, direction) in directions.iter().enumerate() {
            let left = GAP + i % COLUMNS * (across + GAP);
            let top = GAP + i / COLUMNS * (down + GAP);
            canvas.write((left, top), &format!("{}  {:.3}", direction.number, direction.value));
            self.channels(&mut canvas, (left, top + LINE), direction.vector);
        }
        canvas.into_picture()
    }

    fn channels(&self, canvas: &mut Canvas, (left, mut top): (usize, usize), vector: &[f64]) {
        let [channels, height, width] = self.shape;
        // One scale for all channels: what is faint in one of them stays faint.
        let most = vector.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
        for (channel, values) in vector.chunks_exact(height * width).enumerate() {
            for (place, &value) in values.iter().enumerate() {
                let at = (left + place % width * self.zoom, top + place / width * self.zoom);
                canvas.fill(at, [self.zoom; 2], colour(if most > 0.0 { value / most } else { 0.0 }));
            }
            let frame = if channels == 3 { FRAMES[channel] } else { INK };
            canvas.frame((left, top), [width * self.zoom, height * self.zoom], frame);
            top += height * self.zoom + NEAR;
        }
    }
}

/// The colour of a value from -1 to 1.
fn colour(value: f64) -> [u8; 3] {
    let place = (value.clamp(-1.0, 1.0) + 1.0) / 2.0 * (COLOURS.len() - 1) as f64;
    let low = (place as usize).min(COLOURS.len() - 2);
    let part = place - low as f64;
    std::array::from_fn(|c| {
        let (a, b) = (f64::from(COLOURS[low][c]), f64::from(COLOURS[low + 1][c]));
        (a + part * (b - a)).round() as u8
    })
}

// Letters are four dots apart; a value such as "-12.345" and its number fit above a panel.
const _: () = assert!(PANEL >= 12 * 4 * DOT);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_white_and_the_ends_are_blue_and_red() {
        assert_eq!([colour(0.0), colour(-1.0), colour(1.0)], [WHITE, COLOURS[0], COLOURS[4]]);
        assert_eq!((colour(-0.5), colour(7.0)), (COLOURS[1], COLOURS[4]));
    }

    #[test]
    fn a_sheet_is_as_large_as_it_says() {
        for (shape, directions) in [([1, 28, 28], 1), ([3, 32, 32], 17), ([1, 200, 3], 8), ([3, 1, 1], 0)] {
            let sheet = Sheet::new(shape, directions);
            let vector: Vec<f64> = (0..shape.iter().product()).map(|i| i as f64 - 3.0).collect();
            let all: Vec<_> =
                (0..directions).map(|number| Direction { number, value: 1.5, vector: &vector }).collect();
            let picture = sheet.draw(&all);
            assert_eq!([picture.width, picture.height], sheet.size());
            assert_eq!(picture.pixels.len(), sheet.bytes());
        }
    }

    #[test]
    fn the_strongest_pixel_has_the_strongest_colour_and_channels_lie_below_each_other() {
        let sheet = Sheet::new([3, 1, 2], 1);
        let vector = [0.0, 0.5, -2.0, 0.0, 0.0, 0.0];
        let picture = sheet.draw(&[Direction { number: 0, value: 2.0, vector: &vector }]);
        let pixel = |x: usize, y: usize| {
            let at = 3 * (y * picture.width + x);
            [picture.pixels[at], picture.pixels[at + 1], picture.pixels[at + 2]]
        };
        let (left, top) = (GAP + 2, GAP + LINE + 2);
        let below = sheet.zoom + NEAR;
        assert_eq!(pixel(left, top), WHITE);
        assert_eq!(pixel(left, top + below), COLOURS[0]);
        assert_eq!(pixel(GAP, GAP + LINE), FRAMES[0]);
        assert_eq!(pixel(GAP, GAP + LINE + below), FRAMES[1]);
    }

    #[test]
    fn above_a_direction_stand_its_number_and_its_value() {
        let sheet = Sheet::new([1, 4, 4], 2);
        let vector = [1.0; 16];
        let direction = |number, value| Direction { number, value, vector: &vector };
        let picture = sheet.draw(&[direction(11, 2.0_f64.sqrt()), direction(3, -0.25)]);
        let mut words = Canvas::new(picture.width, picture.height);
        words.write((GAP, GAP), "11  1.414");
        words.write((2 * GAP + PANEL, GAP), "3  -0.250");
        let line = 3 * picture.width * GAP..3 * picture.width * (GAP + LINE);
        assert!(picture.pixels[line.clone()] == words.into_picture().pixels[line]);
    }
}

//! Pixels, lines and words: what the pictures of studies are drawn with. Letters are a table of dots, so that no font is
//! looked for.

use std::convert::Infallible;

use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendTextStyle, DrawingBackend, DrawingErrorKind};

use crate::encode::{Colour, Picture};

/// Pixels of one dot of a letter.
pub(super) const DOT: usize = 2;

/// Height of a line of words.
pub(super) const LINE: usize = 5 * DOT + 4;

pub(super) const WHITE: [u8; 3] = [255; 3];
pub(super) const INK: [u8; 3] = [40; 3];

/// What drawing comes to: nothing can go wrong.
type Drawn = Result<(), DrawingErrorKind<Infallible>>;

/// Pixels to draw on. What lies beyond its edge is not drawn.
#[derive(Debug)]
pub(super) struct Canvas(Picture);

// === impl Canvas ===

impl Canvas {
    pub(super) fn new(width: usize, height: usize) -> Self {
        Self(Picture { width, height, colour: Colour::Rgb, pixels: WHITE.repeat(width * height) })
    }

    pub(super) fn fill(&mut self, (left, top): (usize, usize), [width, height]: [usize; 2], colour: [u8; 3]) {
        let Picture { width: across, height: down, pixels, .. } = &mut self.0;
        let (right, bottom) = ((left + width).min(*across), (top + height).min(*down));
        for y in top..bottom {
            let line = pixels.get_mut(3 * (y * *across + left)..3 * (y * *across + right));
            line.unwrap_or_default().as_chunks_mut::<3>().0.fill(colour);
        }
    }

    /// A line of one pixel just inside of this rectangle.
    pub(super) fn frame(
        &mut self,
        (left, top): (usize, usize),
        [width, height]: [usize; 2],
        colour: [u8; 3],
    ) {
        let (right, bottom) = ((left + width).saturating_sub(1), (top + height).saturating_sub(1));
        self.fill((left, top), [width, 1], colour);
        self.fill((left, bottom), [width, 1], colour);
        self.fill((left, top), [1, height], colour);
        self.fill((right, top), [1, height], colour);
    }

    /// What was drawn.
    pub(super) fn into_picture(self) -> Picture {
        self.0
    }

    /// Words of the letters that there are; small ones are written as capitals.
    pub(super) fn write(&mut self, at: (usize, usize), words: &str) {
        self.write_in(at, words, INK);
    }

    fn write_in(&mut self, (left, top): (usize, usize), words: &str, colour: [u8; 3]) {
        for (i, letter) in words.chars().map(|letter| letter.to_ascii_uppercase()).enumerate() {
            let Some((_, dots)) = LETTERS.iter().find(|(known, _)| *known == letter) else { continue };
            for dot in (0..15).filter(|dot| dots >> (14 - dot) & 1 == 1) {
                let (x, y) = (left + (4 * i + dot % 3) * DOT, top + dot / 3 * DOT);
                self.fill((x, y), [DOT; 2], colour);
            }
        }
    }

    /// Width and height of words.
    fn measure(words: &str) -> [usize; 2] {
        let letters = words.chars().count();
        [(4 * letters).saturating_sub(1) * DOT, 5 * DOT]
    }
}

// === impl Canvas, for plots ===

impl DrawingBackend for Canvas {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        let side = |side| u32::try_from(side).unwrap_or(u32::MAX);
        (side(self.0.width), side(self.0.height))
    }

    fn ensure_prepared(&mut self) -> Drawn {
        Ok(())
    }

    fn present(&mut self) -> Drawn {
        Ok(())
    }

    fn draw_pixel(&mut self, (x, y): BackendCoord, colour: BackendColor) -> Drawn {
        let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else { return Ok(()) };
        if x >= self.0.width {
            return Ok(());
        }
        let first = 3 * (y * self.0.width + x);
        let Some(pixel) = self.0.pixels.get_mut(first..first + 3) else { return Ok(()) };
        let (over, alpha) = (colour.rgb, colour.alpha.clamp(0.0, 1.0));
        for (under, over) in pixel.iter_mut().zip([over.0, over.1, over.2]) {
            *under = (f64::from(*under) * (1.0 - alpha) + f64::from(over) * alpha).round() as u8;
        }
        Ok(())
    }

    /// In letters of our own, of one size and never turned.
    fn draw_text<S: BackendTextStyle>(&mut self, words: &str, style: &S, at: BackendCoord) -> Drawn {
        let [width, height] = Self::measure(words).map(|side| i32::try_from(side).unwrap_or(i32::MAX));
        let anchor = style.anchor();
        let left = match anchor.h_pos {
            HPos::Left => at.0,
            HPos::Right => at.0.saturating_sub(width),
            HPos::Center => at.0.saturating_sub(width / 2),
        };
        let top = match anchor.v_pos {
            VPos::Top => at.1,
            VPos::Center => at.1.saturating_sub(height / 2),
            VPos::Bottom => at.1.saturating_sub(height),
        };
        let place = |place| usize::try_from(place).unwrap_or(0);
        let (r, g, b) = style.color().rgb;
        self.write_in((place(left), place(top)), words, [r, g, b]);
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        words: &str,
        _: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Infallible>> {
        let [width, height] = Self::measure(words).map(|side| u32::try_from(side).unwrap_or(u32::MAX));
        Ok((width, height))
    }
}

/// Letters of three by five dots, row by row from the top.
#[rustfmt::skip]
const LETTERS: [(char, u16); 44] = [
    ('0', 0b111_101_101_101_111), ('1', 0b010_110_010_010_111), ('2', 0b111_001_111_100_111),
    ('3', 0b111_001_111_001_111), ('4', 0b101_101_111_001_001), ('5', 0b111_100_111_001_111),
    ('6', 0b111_100_111_101_111), ('7', 0b111_001_001_010_010), ('8', 0b111_101_111_101_111),
    ('9', 0b111_101_111_001_111), ('A', 0b010_101_111_101_101), ('B', 0b110_101_110_101_110),
    ('C', 0b011_100_100_100_011), ('D', 0b110_101_101_101_110), ('E', 0b111_100_110_100_111),
    ('F', 0b111_100_110_100_100), ('G', 0b011_100_101_101_011), ('H', 0b101_101_111_101_101),
    ('I', 0b111_010_010_010_111), ('J', 0b001_001_001_101_010), ('K', 0b101_101_110_101_101),
    ('L', 0b100_100_100_100_111), ('M', 0b101_111_111_101_101), ('N', 0b110_101_101_101_101),
    ('O', 0b010_101_101_101_010), ('P', 0b110_101_110_100_100), ('Q', 0b010_101_101_110_011),
    ('R', 0b110_101_110_101_101), ('S', 0b011_100_010_001_110), ('T', 0b111_010_010_010_010),
    ('U', 0b101_101_101_101_111), ('V', 0b101_101_101_101_010), ('W', 0b101_101_111_111_101),
    ('X', 0b101_101_010_101_101), ('Y', 0b101_101_010_010_010), ('Z', 0b111_001_010_100_111),
    ('.', 0b000_000_000_000_010), ('-', 0b000_000_111_000_000), ('+', 0b000_010_111_010_000),
    ('%', 0b101_001_010_100_101), ('(', 0b001_010_010_010_001), (')', 0b100_010_010_010_100),
    (':', 0b000_010_000_010_000), (',', 0b000_000_000_010_100),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_drawn_beyond_the_edge() {
        let mut canvas = Canvas::new(4, 3);
        canvas.fill((3, 2), [9, 9], INK);
        canvas.fill((9, 9), [1, 1], INK);
        canvas.write((2, 0), "88888");
        canvas.frame((0, 0), [0, 0], INK);
        assert_eq!(canvas.0.pixels.len(), 36);
        assert_eq!(canvas.0.pixels[33..], INK);
    }
}

//! Pixels, lines and words: what the pictures of studies are drawn with. Letters are a table of dots, so that no font is
//! looked for.

use crate::encode::{Colour, Picture};

/// Pixels of one dot of a letter.
pub(super) const DOT: usize = 2;

/// Height of a line of words.
pub(super) const LINE: usize = 5 * DOT + 4;

pub(super) const WHITE: [u8; 3] = [255; 3];
pub(super) const INK: [u8; 3] = [40; 3];

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

    /// Words of the letters that there are.
    pub(super) fn write(&mut self, (left, top): (usize, usize), words: &str) {
        for (i, letter) in words.chars().enumerate() {
            let Some((_, dots)) = LETTERS.iter().find(|(known, _)| *known == letter) else { continue };
            for dot in (0..15).filter(|dot| dots >> (14 - dot) & 1 == 1) {
                let (x, y) = (left + (4 * i + dot % 3) * DOT, top + dot / 3 * DOT);
                self.fill((x, y), [DOT; 2], INK);
            }
        }
    }
}

/// Letters of three by five dots, row by row from the top.
#[rustfmt::skip]
const LETTERS: [(char, u16); 21] = [
    ('0', 0b111_101_101_101_111), ('1', 0b010_110_010_010_111), ('2', 0b111_001_111_100_111),
    ('3', 0b111_001_111_001_111), ('4', 0b101_101_111_001_001), ('5', 0b111_100_111_001_111),
    ('6', 0b111_100_111_101_111), ('7', 0b111_001_001_010_010), ('8', 0b111_101_111_101_111),
    ('9', 0b111_101_111_001_111), ('.', 0b000_000_000_000_010), ('A', 0b010_101_111_101_101),
    ('B', 0b110_101_110_101_110), ('E', 0b111_100_110_100_111), ('G', 0b011_100_101_101_011),
    ('L', 0b100_100_100_100_111), ('O', 0b010_101_101_101_010), ('R', 0b110_101_110_101_101),
    ('X', 0b101_101_010_101_101), ('Y', 0b101_101_010_010_010), ('-', 0b000_000_111_000_000),
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

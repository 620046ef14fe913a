//! Attention as a picture, as Figure 4 of An et al. (arXiv 2410.21273) shows it. For each layer, from the top: its number and
//! window; the mean over the heads, every token's row, normalised to [0, 1] and coloured up to 0.1 unless another value is asked for, with its centre enlarged
//! in the corner; and for a token the row that is its own, as the token grid has it, with its neighbourhood in a box.

use windowpane_diffusion::{Grid, Window};

use super::attention::Attention;
use super::canvas::{Canvas, DOT, INK, LINE};
use crate::encode::Picture;

/// Pixels of a panel, at least: the words above it fit.
const PANEL: usize = 192;

/// Pixels between panels and around them.
const GAP: usize = 12;

/// Longest side of a picture, as far as panels can be put below each other.
const WIDEST: usize = 2048;

/// The largest value that has a colour of its own, of a map normalised to [0, 1]: that of the paper.
pub const FULL: f32 = 0.1;

/// From nothing to the most: light to dark blue.
const COLOURS: [[u8; 3]; 6] =
    [[255, 247, 251], [208, 209, 230], [166, 189, 219], [54, 144, 192], [4, 90, 141], [2, 56, 88]];

const BOX: [u8; 3] = [217, 95, 2];

/// Where everything lies: decided before anything is drawn, so that its size can be told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    grid: Grid,
    layers: usize,
    tokens: usize,
    /// Pixels of a token in a map.
    scale: usize,
    /// Pixels of a panel along its side.
    side: usize,
    /// Layers beside each other.
    columns: usize,
    /// The value from which on all is darkest.
    full: f32,
}

// === impl Figure ===

impl Figure {
    /// Of so many layers, with the rows of so many tokens below each.
    pub fn new(grid: Grid, layers: usize, tokens: usize) -> Self {
        let scale = PANEL.div_ceil(grid.tokens()).max(1);
        let side = scale * grid.tokens();
        let columns = (WIDEST.saturating_sub(GAP) / (side + GAP)).clamp(1, layers.max(1));
        Self { grid, layers, tokens, scale, side, columns, full: FULL }
    }

    /// The same, with colours for the values up to this one.
    #[must_use]
    pub fn coloured_up_to(mut self, full: f32) -> Self {
        self.full = full;
        self
    }

    /// The colour of a value.
    fn colour(&self, value: f32) -> [u8; 3] {
        colour(value / self.full)
    }

    /// Width and height in pixels.
    pub fn size(&self) -> [usize; 2] {
        let rows = self.layers.div_ceil(self.columns);
        [GAP + self.columns * (self.side + GAP), rows * self.row() + GAP + LINE + GAP]
    }

    /// Bytes of its pixels.
    pub fn bytes(&self) -> usize {
        let [width, height] = self.size();
        width.saturating_mul(height).saturating_mul(3)
    }

    /// Pixels of a token in the panel of a row.
    fn zoom(&self) -> usize {
        (self.side / self.grid.height.max(self.grid.width)).max(1)
    }

    /// Height of a row of panels.
    fn row(&self) -> usize {
        GAP + LINE + self.side + self.tokens * (GAP + self.zoom() * self.grid.height)
    }

    /// Draws it; `attention` holds every token's row, and `tokens` are those that are shown.
    pub fn draw(&self, attention: &Attention, tokens: &[usize]) -> Picture {
        let [width, height] = self.size();
        let mut canvas = Canvas::new(width, height);
        let count = self.grid.tokens();
        for (i, layer) in attention.layers.iter().enumerate() {
            let left = GAP + i % self.columns * (self.side + GAP);
            let mut top = GAP + i / self.columns * self.row();
            let window = match layer.window {
                Window::Global => "GLOBAL".to_owned(),
                Window::Local { side } => format!("{side}X{side}"),
            };
            canvas.write((left, top), &format!("LAYER {} {window}", layer.layer));
            top += LINE;
            let map = normalised(attention.of_mean(layer));
            for (place, &value) in map.iter().enumerate() {
                let (y, x) = (place / count, place % count);
                canvas.fill(
                    (left + x * self.scale, top + y * self.scale),
                    [self.scale; 2],
                    self.colour(value),
                );
            }
            canvas.frame((left, top), [self.side; 2], INK);
            self.inset(&mut canvas, (left, top), &map);
            top += self.side;
            for &token in tokens {
                top += GAP;
                let row = map.get(token * count..(token + 1) * count).unwrap_or_default();
                self.token(&mut canvas, (left, top), row, (token, layer.window));
                top += self.zoom() * self.grid.height;
            }
        }
        self.legend(&mut canvas, (GAP, height - GAP - LINE));
        canvas.into_picture()
    }

    /// The centre of a map, in its upper right corner.
    fn inset(&self, canvas: &mut Canvas, (left, top): (usize, usize), map: &[f32]) {
        let count = self.grid.tokens();
        let shown = (count / 8).max(6).min(count);
        let size = self.side * 2 / 5;
        let zoom = size / shown;
        if zoom <= self.scale {
            return;
        }
        let (first, side) = ((count - shown) / 2, shown * zoom);
        let (left, top) = (left + self.side - side - 3, top + 3);
        for y in 0..shown {
            for x in 0..shown {
                let value = map[(first + y) * count + first + x];
                canvas.fill((left + x * zoom, top + y * zoom), [zoom; 2], self.colour(value));
            }
        }
        canvas.frame((left, top), [side; 2], INK);
    }

    /// A token's row as the token grid has it; the box is its window, or where it has none its neighbours.
    fn token(
        &self,
        canvas: &mut Canvas,
        (left, top): (usize, usize),
        row: &[f32],
        (token, window): (usize, Window),
    ) {
        let (grid, zoom) = (self.grid, self.zoom());
        for (place, &value) in row.iter().enumerate() {
            let (y, x) = grid.position(place);
            canvas.fill((left + x * zoom, top + y * zoom), [zoom; 2], self.colour(value));
        }
        canvas.frame((left, top), [grid.width * zoom, grid.height * zoom], INK);
        let reach = match window {
            Window::Global => 1,
            Window::Local { side } => side / 2,
        };
        let (y, x) = grid.position(token);
        let (y0, x0) = (y.saturating_sub(reach), x.saturating_sub(reach));
        let (y1, x1) = ((y + reach + 1).min(grid.height), (x + reach + 1).min(grid.width));
        let size = [(x1 - x0) * zoom, (y1 - y0) * zoom];
        canvas.frame((left + x0 * zoom, top + y0 * zoom), size, BOX);
    }

    /// What the colours mean.
    fn legend(&self, canvas: &mut Canvas, (left, top): (usize, usize)) {
        const LENGTH: usize = 100;
        canvas.write((left, top), "0");
        let bar = left + 8 * DOT;
        for x in 0..LENGTH {
            canvas.fill((bar + x, top), [1, 5 * DOT], colour(x as f32 / LENGTH as f32));
        }
        canvas.frame((bar, top), [LENGTH, 5 * DOT], INK);
        canvas.write((bar + LENGTH + 4 * DOT, top), &self.full.to_string());
    }
}

/// The values from 0 to 1.
fn normalised(mut values: Vec<f32>) -> Vec<f32> {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let range = high - low;
    values.iter_mut().for_each(|value| *value = if range > 0.0 { (*value - low) / range } else { 0.0 });
    values
}

/// The colour of a value, of which 1 is the darkest.
fn colour(value: f32) -> [u8; 3] {
    let place = value.clamp(0.0, 1.0) * (COLOURS.len() - 1) as f32;
    let low = (place as usize).min(COLOURS.len() - 2);
    let part = place - low as f32;
    std::array::from_fn(|c| {
        let (a, b) = (f32::from(COLOURS[low][c]), f32::from(COLOURS[low + 1][c]));
        (a + part * (b - a)).round() as u8
    })
}

#[cfg(test)]
mod tests;

//! Pixels to tokens and back: the index arithmetic of patchify, stated once. A token is one `p × p` patch of
//! the image; tokens are numbered row by row, as in facebookresearch/DiT `models.py` (`unpatchify`).

use serde::{Deserialize, Serialize};

/// The token grid of an image: `height × width` tokens, numbered row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grid {
    /// Rows of tokens.
    pub height: usize,
    /// Columns of tokens.
    pub width: usize,
}

// === impl Grid ===

impl Grid {
    /// A grid of `height × width` tokens.
    pub const fn new(height: usize, width: usize) -> Self {
        Self { height, width }
    }

    /// Number of tokens.
    pub const fn tokens(self) -> usize {
        self.height * self.width
    }

    /// Row and column of a token.
    pub const fn position(self, token: usize) -> (usize, usize) {
        (token / self.width, token % self.width)
    }

    /// The token at a row and column.
    pub const fn token(self, y: usize, x: usize) -> usize {
        y * self.width + x
    }
}

/// Where element `k` of token `token`'s output vector lies in the image.
///
/// The output vector of a token is laid out `[patch row, patch column, channel]` (DiT's `unpatchify`), the
/// image `[channel, y, x]`; the result is the flat index into the image.
pub fn unpatchify_index(grid: Grid, patch: usize, channels: usize, token: usize, k: usize) -> usize {
    let (ty, tx) = grid.position(token);
    let (row, rest) = (k / (patch * channels), k % (patch * channels));
    let (col, channel) = (rest / channels, rest % channels);
    let (y, x) = (ty * patch + row, tx * patch + col);
    (channel * grid.height * patch + y) * grid.width * patch + x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_and_position_are_inverse() {
        let grid = Grid::new(3, 5);
        for token in 0..grid.tokens() {
            let (y, x) = grid.position(token);
            assert_eq!(grid.token(y, x), token);
        }
    }

    #[test]
    fn unpatchify_visits_every_pixel_once() {
        let (grid, patch, channels) = (Grid::new(2, 3), 4, 3);
        let k_max = patch * patch * channels;
        let mut seen = vec![0; grid.tokens() * k_max];
        for token in 0..grid.tokens() {
            for k in 0..k_max {
                seen[unpatchify_index(grid, patch, channels, token, k)] += 1;
            }
        }
        assert!(seen.iter().all(|&n| n == 1));
    }
}

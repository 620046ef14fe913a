//! Which keys may a token see? The window of a layer, its border rule, and the two plans that realise it.
//!
//! **The border rule** (An et al., arXiv 2410.21273, Figure 5): with a window of odd side `w`, query `(y, x)`
//! sees key `(y', x')` exactly when `|y - y'| <= w/2` and `|x - x'| <= w/2` (integer division). At the border the
//! window is *truncated*: not shifted, not wrapped. Masks, tiles, exported graphs and analysis read it here.
//!
//! A window can be realised densely (all N² scores, a mask hides most) or as **tiles**: the grid is cut into
//! rectangular tiles of queries, each tile reads one rectangular patch of keys that holds all of its windows, and a
//! small bias hides the pairs outside the exact window. The numbers are the same, the work is a fraction.

mod plan;
mod tiles;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::patch::Grid;

pub use plan::{CostModel, Plan, TILES, Tile};
pub use tiles::TilePlan;

/// What is added to the score of a hidden pair. Finite, so that no arithmetic on it makes a NaN; far below any
/// score, so that its softmax is zero; beyond f16's range, where it rounds to -∞, which is as good.
pub const HIDDEN: f32 = -1.0e9;

/// The window of one attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Window {
    /// Every token sees every token.
    #[default]
    Global,
    /// Every token sees the square of odd side `side` centred on it, truncated at the border.
    Local {
        /// Side of the square in tokens; odd.
        side: usize,
    },
}

// === impl Window ===

impl Window {
    /// A local window of side `side`. Errors: an even or zero side.
    pub fn local(side: usize) -> Result<Self> {
        if side % 2 == 1 && side < 1024 {
            Ok(Self::Local { side })
        } else {
            Err(Error::bad_value("window", side, "an odd side below 1024, or \"global\""))
        }
    }

    /// The border rule: may the token at `query` see the token at `key`? Both are (row, column).
    pub fn sees(self, query: (usize, usize), key: (usize, usize)) -> bool {
        match self {
            Self::Global => true,
            Self::Local { side } => {
                query.0.abs_diff(key.0) <= side / 2 && query.1.abs_diff(key.1) <= side / 2
            }
        }
    }

    /// Whether every token of `grid` sees every other, so that no mask is needed.
    pub fn covers(self, grid: Grid) -> bool {
        match self {
            Self::Global => true,
            Self::Local { side } => side / 2 + 1 >= grid.height.max(grid.width),
        }
    }

    /// One row of the mask: for each key of `grid`, whether `query` sees it. `[tokens]`
    pub fn mask_row(self, grid: Grid, query: usize) -> Vec<bool> {
        let q = grid.position(query);
        (0..grid.tokens()).map(|key| self.sees(q, grid.position(key))).collect()
    }

    /// The whole mask as a bias on the scores, 0 or [`HIDDEN`]. `[tokens, tokens]`
    pub fn dense_bias(self, grid: Grid) -> Vec<f32> {
        (0..grid.tokens())
            .flat_map(|query| self.mask_row(grid, query))
            .map(|seen| if seen { 0.0 } else { HIDDEN })
            .collect()
    }

    /// How many keys each query sees, `[tokens]`.
    pub fn visible_keys(self, grid: Grid) -> Vec<usize> {
        let span = |at: usize, len: usize| match self {
            Self::Global => len,
            Self::Local { side } => (at + side / 2 + 1).min(len) - at.saturating_sub(side / 2),
        };
        (0..grid.tokens())
            .map(|query| {
                let (y, x) = grid.position(query);
                span(y, grid.height) * span(x, grid.width)
            })
            .collect()
    }
}

// === serde for Window: `"global"` or an odd number ===

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Side(usize),
    Name(String),
}

impl Serialize for Window {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match *self {
            Self::Global => Written::Name("global".into()),
            Self::Local { side } => Written::Side(side),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        use serde::de::Error as _;
        match Written::deserialize(deserializer) {
            Ok(Written::Side(side)) => Self::local(side).map_err(D::Error::custom),
            Ok(Written::Name(name)) if name == "global" => Ok(Self::Global),
            _ => Err(D::Error::custom("a window is \"global\" or an odd number of tokens")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_figure_five() {
        // 3 × 3 on a 4 × 4 grid: the corner sees 2 × 2 keys, a bottom-edge query 2 × 3, the inside 3 × 3.
        let (grid, window) = (Grid::new(4, 4), Window::local(3).unwrap());
        let seen = window.visible_keys(grid);
        assert_eq!((seen[0], seen[grid.token(3, 1)], seen[grid.token(1, 2)]), (4, 6, 9));
        assert_eq!(
            window
                .mask_row(grid, 0)
                .iter()
                .enumerate()
                .filter(|(_, s)| **s)
                .map(|(k, _)| k)
                .collect::<Vec<_>>(),
            [0, 1, 4, 5]
        );
    }

    #[test]
    fn the_papers_mean_keys_per_query() {
        // `local` on 32 × 32: its six layers see 63.9 of 1,024 keys on average; 5^{*6} sees 23.2.
        let grid = Grid::new(32, 32);
        let mean = |side| {
            let seen = Window::local(side).unwrap().visible_keys(grid);
            seen.iter().sum::<usize>() as f64 / grid.tokens() as f64
        };
        let local = [3, 5, 7, 9, 11, 13].map(mean).iter().sum::<f64>() / 6.0;
        assert!((local - 63.9).abs() < 0.05, "{local}");
        assert!((mean(5) - 23.2).abs() < 0.05, "{}", mean(5));
    }

    #[test]
    fn even_sides_and_other_json_are_refused() {
        assert!(Window::local(4).is_err() && Window::local(0).is_err());
        for bad in ["4", "0", "-3", "\"locale\"", "null", "[3]", "3.5"] {
            assert!(serde_json::from_str::<Window>(bad).is_err(), "{bad}");
        }
        let windows: Vec<Window> = serde_json::from_str("[3, \"global\"]").unwrap();
        assert_eq!(serde_json::to_string(&windows).unwrap(), "[3,\"global\"]");
    }
}

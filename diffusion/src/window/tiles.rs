//! A window cut into tiles: which queries and keys each tile holds, and what it hides.

use std::collections::HashMap;

use super::{HIDDEN, Plan, Tile, Window};
use crate::patch::Grid;

/// The indices and biases of a tiled window. All tiles have one shape: `queries` tokens against `keys` tokens.
///
/// On grids that a tile does not divide, the last row and column of tiles overlap their neighbours; the doubled
/// queries are computed twice and `output` picks one of them.
#[derive(Debug, Clone, PartialEq)]
pub struct TilePlan {
    /// Number of tiles.
    pub tiles: usize,
    /// Queries per tile.
    pub queries: usize,
    /// Keys per tile.
    pub keys: usize,
    /// Token of each query, `[tiles, queries]`.
    pub query_index: Vec<usize>,
    /// Token of each key, `[tiles, keys]`.
    pub key_index: Vec<usize>,
    /// For each token its place in `[tiles * queries]`, `[tokens]`.
    pub output_index: Vec<usize>,
    /// For each tile its row of `bias_table`, `[tiles]`. Interior tiles share one.
    pub bias_class: Vec<usize>,
    /// The distinct biases, 0 or [`HIDDEN`], `[classes, queries, keys]`.
    pub bias_table: Vec<f32>,
}

// === impl Window ===

impl Window {
    /// Cuts `grid` into tiles of queries (clamped to the grid) with their patches of keys.
    ///
    /// A global window has one patch: the grid.
    pub fn tile_plan(self, grid: Grid, tile: Tile) -> TilePlan {
        let rows = Axis::new(self, grid.height, tile.height.max(1));
        let cols = Axis::new(self, grid.width, tile.width.max(1));
        let mut plan = TilePlan {
            tiles: rows.starts.len() * cols.starts.len(),
            queries: rows.queries * cols.queries,
            keys: rows.keys * cols.keys,
            query_index: Vec::new(),
            key_index: Vec::new(),
            output_index: vec![0; grid.tokens()],
            bias_class: Vec::new(),
            bias_table: Vec::new(),
        };
        let mut classes = HashMap::new();
        for &(y0, ky0) in &rows.starts {
            for &(x0, kx0) in &cols.starts {
                let queries = rectangle(grid, (y0, x0), (rows.queries, cols.queries));
                let keys = rectangle(grid, (ky0, kx0), (rows.keys, cols.keys));
                for &token in &queries {
                    plan.output_index[token] = plan.query_index.len();
                    plan.query_index.push(token);
                }
                // Keys never lie outside the grid, so a tile's bias depends only on where its patch begins.
                let next = classes.len();
                let class = *classes.entry((y0 - ky0, x0 - kx0)).or_insert_with(|| {
                    for &q in &queries {
                        let seen = |&k: &usize| self.sees(grid.position(q), grid.position(k));
                        plan.bias_table.extend(keys.iter().map(|k| if seen(k) { 0.0 } else { HIDDEN }));
                    }
                    next
                });
                plan.bias_class.push(class);
                plan.key_index.extend(keys);
            }
        }
        plan
    }

    /// The tiles of this window as `plan` has them; a dense layer is one tile that holds the grid.
    pub fn realised(self, grid: Grid, plan: Plan) -> TilePlan {
        self.tile_plan(grid, plan.tile(grid))
    }

    /// How many tiles this window has as `plan` on `grid`, how many queries each, and how many keys; a dense layer is one
    /// tile that holds the grid.
    pub fn tile_counts(self, grid: Grid, plan: Plan) -> (usize, usize, usize) {
        let tile = plan.tile(grid);
        let rows = Axis::new(self, grid.height, tile.height.max(1));
        let cols = Axis::new(self, grid.width, tile.width.max(1));
        (rows.starts.len() * cols.starts.len(), rows.queries * cols.queries, rows.keys * cols.keys)
    }
}

/// The token numbers of a rectangle, row by row.
fn rectangle(grid: Grid, (y0, x0): (usize, usize), (height, width): (usize, usize)) -> Vec<usize> {
    (y0..y0 + height).flat_map(|y| (x0..x0 + width).map(move |x| grid.token(y, x))).collect()
}

/// Tiles along one axis: first query and first key of each, and the lengths all of them share.
pub(super) struct Axis {
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) starts: Vec<(usize, usize)>,
}

impl Axis {
    pub(super) fn new(window: Window, len: usize, tile: usize) -> Self {
        let queries = tile.min(len);
        let reach = match window {
            Window::Global => len,
            Window::Local { side } => side / 2,
        };
        let keys = (queries + 2 * reach).min(len);
        let starts = (0..len.div_ceil(queries))
            .map(|i| {
                let first = (i * queries).min(len - queries);
                (first, first.saturating_sub(reach).min(len - keys))
            })
            .collect();
        Self { queries, keys, starts }
    }
}

// === impl TilePlan ===

impl TilePlan {
    /// Number of distinct biases.
    pub fn classes(&self) -> usize {
        self.bias_table.len() / (self.queries * self.keys)
    }

    /// What the query of a token is compared with: the token of each key of its tile, those that its window hides among
    /// them.
    pub fn keys_of(&self, token: usize) -> &[usize] {
        let tile = self.output_index[token] / self.queries;
        &self.key_index[tile * self.keys..][..self.keys]
    }

    /// The bias of every tile written out, `[tiles, queries, keys]`.
    pub fn bias(&self) -> Vec<f32> {
        let size = self.queries * self.keys;
        self.bias_class
            .iter()
            .flat_map(|&class| &self.bias_table[class * size..(class + 1) * size])
            .copied()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn interior_tiles_share_one_bias() {
        let plan = Window::local(5).unwrap().tile_plan(Grid::new(32, 32), Tile::square(4));
        assert_eq!((plan.tiles, plan.queries, plan.keys, plan.classes()), (64, 16, 64, 9));
    }

    #[test]
    fn a_dense_layer_is_one_tile() {
        let (window, grid) = (Window::local(3).unwrap(), Grid::new(3, 5));
        let plan = window.realised(grid, Plan::Dense);
        assert_eq!((plan.tiles, plan.queries, plan.keys), window.tile_counts(grid, Plan::Dense));
        assert_eq!(plan.keys_of(7), (0..15).collect::<Vec<_>>());
    }

    proptest! {
        /// Tiles equal the mask, for any grid, window and tile side: every query appears, and the keys that its
        /// tile leaves visible are exactly those the definition allows, each once.
        #[test]
        fn tiles_equal_the_mask(
            (height, width) in (1usize..20, 1usize..20), half in 0usize..14, tile in (1usize..10, 1usize..10),
        ) {
            let (grid, window) = (Grid::new(height, width), Window::local(2 * half + 1).unwrap());
            let plan = window.tile_plan(grid, Tile { height: tile.0, width: tile.1 });
            prop_assert_eq!(plan.query_index.len(), plan.tiles * plan.queries);
            let counts = window.tile_counts(grid, Plan::Tiles(Tile { height: tile.0, width: tile.1 }));
            prop_assert_eq!(counts, (plan.tiles, plan.queries, plan.keys));
            prop_assert_eq!(plan.key_index.len(), plan.tiles * plan.keys);
            let bias = plan.bias();
            for token in 0..grid.tokens() {
                let place = plan.output_index[token];
                prop_assert_eq!(plan.query_index[place], token);
                let (tile, row) = (place / plan.queries, place);
                let keys = plan.keys_of(token);
                prop_assert_eq!(keys, &plan.key_index[tile * plan.keys..][..plan.keys]);
                let mut seen = vec![0; grid.tokens()];
                for (k, &key) in keys.iter().enumerate() {
                    seen[key] += usize::from(bias[row * plan.keys + k] == 0.0);
                }
                for (key, &seen) in seen.iter().enumerate() {
                    let (dy, dx) = (
                        (token / width).abs_diff(key / width),
                        (token % width).abs_diff(key % width),
                    );
                    prop_assert_eq!(seen, usize::from(dy <= half && dx <= half));
                }
            }
        }
    }
}

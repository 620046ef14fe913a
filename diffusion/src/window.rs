//! Which keys may a token see? The window of a layer, its border rule, and the two plans that realise it.
//!
//! **The border rule** (An et al., arXiv 2410.21273, Figure 5): with a window of odd side `w`, query `(y, x)`
//! sees key `(y', x')` exactly when `|y - y'| <= w/2` and `|x - x'| <= w/2` (integer division). At the border the
//! window is *truncated*: not shifted, not wrapped. Masks, tiles, exported graphs and analysis read it here.
//!
//! A window can be realised densely (all N² scores, a mask hides most) or as **tiles**: the grid is cut into
//! rectangular tiles of queries, each tile reads one rectangular patch of keys that holds all of its windows, and a
//! small bias hides the pairs outside the exact window. The numbers are the same, the work is a fraction.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::patch::Grid;

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

/// How a window is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plan {
    /// All N² scores; a mask hides what is outside (no mask where nothing is).
    Dense,
    /// Query tiles of this shape, each against one patch of keys.
    Tiles(Tile),
}

/// Shape of a query tile in tokens. In JSON a square is `{"side": 4}`, any other `{"height": 4, "width": 8}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "WrittenTile", into = "WrittenTile")]
pub struct Tile {
    /// Tokens down.
    pub height: usize,
    /// Tokens across.
    pub width: usize,
}

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

/// Measured costs of one device, from which the cheaper plan of a window is chosen. Units are arbitrary but
/// common: nanoseconds per head on the machine where they were measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CostModel {
    /// Per query-key pair of an unmasked dense layer (score, softmax, product with the values).
    pub dense_pair: f64,
    /// Extra per query-key pair for adding a mask.
    pub mask_pair: f64,
    /// Per query-key pair inside a tile, the bias included.
    pub tile_pair: f64,
    /// Per key collected into a tile's patch (a row of the key and one of the value).
    pub gathered_key: f64,
    /// Per query, for leaving and entering token order.
    pub query: f64,
    /// Per tile: the fixed cost of two small matrix products.
    pub tile: f64,
}

/// Tiles that are tried.
pub const TILES: [Tile; 6] = [
    Tile { height: 2, width: 4 },
    Tile::square(4),
    Tile { height: 4, width: 7 },
    Tile { height: 4, width: 8 },
    Tile::square(7),
    Tile::square(8),
];

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

    /// The cheapest plan for this window on `grid` under `cost`; dense wherever tiles would not be cheaper.
    pub fn plan(self, grid: Grid, cost: &CostModel) -> Plan {
        let dense = (Plan::Dense, cost.dense(self, grid));
        // A single tile that holds the grid is the dense plan.
        let cuts = |tile: &&Tile| tile.height < grid.height || tile.width < grid.width;
        let tiles = TILES.iter().filter(cuts).map(|&tile| (Plan::Tiles(tile), cost.tiles(self, grid, tile)));
        let candidates = std::iter::once(dense).chain(tiles.filter(|_| !self.covers(grid)));
        candidates.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(Plan::Dense, |(plan, _)| plan)
    }
}

/// The token numbers of a rectangle, row by row.
fn rectangle(grid: Grid, (y0, x0): (usize, usize), (height, width): (usize, usize)) -> Vec<usize> {
    (y0..y0 + height).flat_map(|y| (x0..x0 + width).map(move |x| grid.token(y, x))).collect()
}

/// Tiles along one axis: first query and first key of each, and the lengths all of them share.
struct Axis {
    queries: usize,
    keys: usize,
    starts: Vec<(usize, usize)>,
}

impl Axis {
    fn new(window: Window, len: usize, tile: usize) -> Self {
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

// === impl Tile ===

impl Tile {
    /// A square.
    pub const fn square(side: usize) -> Self {
        Self { height: side, width: side }
    }
}

/// `4×8`.
impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×{}", self.height, self.width)
    }
}

// === impl TilePlan ===

impl TilePlan {
    /// Number of distinct biases.
    pub fn classes(&self) -> usize {
        self.bias_table.len() / (self.queries * self.keys)
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

// === impl CostModel ===

impl CostModel {
    /// Cost of the dense plan, which is one tile holding the grid: its tokens are collected once, too.
    pub fn dense(&self, window: Window, grid: Grid) -> f64 {
        let tokens = grid.tokens() as f64;
        let mask = if window.covers(grid) { 0.0 } else { self.mask_pair };
        tokens * tokens * (self.dense_pair + mask) + tokens * (self.gathered_key + self.query) + self.tile
    }

    /// Cost of tiles of this shape.
    pub fn tiles(&self, window: Window, grid: Grid, tile: Tile) -> f64 {
        let rows = Axis::new(window, grid.height, tile.height);
        let cols = Axis::new(window, grid.width, tile.width);
        let tiles = (rows.starts.len() * cols.starts.len()) as f64;
        let (queries, keys) = ((rows.queries * cols.queries) as f64, (rows.keys * cols.keys) as f64);
        tiles
            * (queries * keys * self.tile_pair + keys * self.gathered_key + queries * self.query + self.tile)
    }
}

// === serde for Tile: a side, or height and width ===

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WrittenTile {
    Square(Square),
    Rectangle(Rectangle),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Square {
    side: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rectangle {
    height: usize,
    width: usize,
}

impl From<WrittenTile> for Tile {
    fn from(written: WrittenTile) -> Self {
        match written {
            WrittenTile::Square(Square { side }) => Self::square(side),
            WrittenTile::Rectangle(Rectangle { height, width }) => Self { height, width },
        }
    }
}

impl From<Tile> for WrittenTile {
    fn from(Tile { height, width }: Tile) -> Self {
        if height == width {
            Self::Square(Square { side: height })
        } else {
            Self::Rectangle(Rectangle { height, width })
        }
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
    use proptest::prelude::*;

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

    #[test]
    fn a_square_tile_is_written_by_its_side() {
        let written = |plan: Plan| serde_json::to_string(&plan).unwrap();
        assert_eq!(written(Plan::Tiles(Tile::square(4))), r#"{"tiles":{"side":4}}"#);
        let rectangle = Plan::Tiles(Tile { height: 4, width: 8 });
        assert_eq!(written(rectangle), r#"{"tiles":{"height":4,"width":8}}"#);
        for plan in [Plan::Dense, Plan::Tiles(Tile::square(7)), rectangle] {
            assert_eq!(serde_json::from_str::<Plan>(&written(plan)).unwrap(), plan);
        }
        for bad in [r#"{"side":4,"width":8}"#, r#"{"height":4}"#, "4", r#"{"side":-1}"#] {
            assert!(serde_json::from_str::<Plan>(&format!(r#"{{"tiles":{bad}}}"#)).is_err(), "{bad}");
        }
    }

    #[test]
    fn interior_tiles_share_one_bias() {
        let plan = Window::local(5).unwrap().tile_plan(Grid::new(32, 32), Tile::square(4));
        assert_eq!((plan.tiles, plan.queries, plan.keys, plan.classes()), (64, 16, 64, 9));
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
            prop_assert_eq!(plan.key_index.len(), plan.tiles * plan.keys);
            let bias = plan.bias();
            for token in 0..grid.tokens() {
                let place = plan.output_index[token];
                prop_assert_eq!(plan.query_index[place], token);
                let (tile, row) = (place / plan.queries, place);
                let keys = &plan.key_index[tile * plan.keys..][..plan.keys];
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

        #[test]
        fn the_plan_is_never_dearer_than_dense(height in 1usize..33, width in 1usize..33, half in 0usize..8) {
            let cost = CostModel {
                dense_pair: 1.0, mask_pair: 0.3, tile_pair: 1.4, gathered_key: 60.0, query: 40.0, tile: 500.0,
            };
            let (grid, window) = (Grid::new(height, width), Window::local(2 * half + 1).unwrap());
            let dense = cost.dense(window, grid);
            match window.plan(grid, &cost) {
                Plan::Dense => {}
                Plan::Tiles(tile) => prop_assert!(cost.tiles(window, grid, tile) < dense),
            }
        }
    }
}

//! How a window is computed: densely or in tiles of some shape, and which is cheaper by measured costs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Window;
use super::tiles::Axis;
use crate::patch::Grid;

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

/// Tiles that are tried, each with its turned twin, so that a tall grid is as cheap as a wide one. Of equal costs the
/// first wins: on a square grid 4×8, never 8×4.
pub const TILES: [Tile; 9] = [
    Tile { height: 2, width: 4 },
    Tile { height: 4, width: 2 },
    Tile::square(4),
    Tile { height: 4, width: 7 },
    Tile { height: 7, width: 4 },
    Tile { height: 4, width: 8 },
    Tile { height: 8, width: 4 },
    Tile::square(7),
    Tile::square(8),
];

// === impl Window ===

impl Window {
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

// === impl Plan ===

impl Plan {
    /// The tile of queries on `grid`: all of it, where the layer is dense.
    pub fn tile(self, grid: Grid) -> Tile {
        match self {
            Self::Dense => Tile { height: grid.height, width: grid.width },
            Self::Tiles(tile) => tile,
        }
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
        let rows = Axis::new(window, grid.height, tile.height.max(1));
        let cols = Axis::new(window, grid.width, tile.width.max(1));
        let tiles = (rows.starts.len() * cols.starts.len()) as f64;
        let (queries, keys) = ((rows.queries * cols.queries) as f64, (rows.keys * cols.keys) as f64);
        tiles
            * (queries * keys * self.tile_pair + keys * self.gathered_key + queries * self.query + self.tile)
    }
}

// === serde for Tile: a side, or height and width ===

// Untagged: serde reads other structs from arrays, too, which would make a tile of `[4]`.
#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "expected tiles as `{\"side\": 4}` or as `{\"height\": 4, \"width\": 8}`"
)]
enum WrittenTile {
    Square { side: usize },
    Rectangle { height: usize, width: usize },
}

impl From<WrittenTile> for Tile {
    fn from(written: WrittenTile) -> Self {
        match written {
            WrittenTile::Square { side } => Self::square(side),
            WrittenTile::Rectangle { height, width } => Self { height, width },
        }
    }
}

impl From<Tile> for WrittenTile {
    fn from(Tile { height, width }: Tile) -> Self {
        if height == width { Self::Square { side: height } } else { Self::Rectangle { height, width } }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_square_tile_is_written_by_its_side() {
        let written = |plan: Plan| serde_json::to_string(&plan).unwrap();
        assert_eq!(written(Plan::Tiles(Tile::square(4))), r#"{"tiles":{"side":4}}"#);
        let rectangle = Plan::Tiles(Tile { height: 4, width: 8 });
        assert_eq!(written(rectangle), r#"{"tiles":{"height":4,"width":8}}"#);
        for plan in [Plan::Dense, Plan::Tiles(Tile::square(7)), rectangle] {
            assert_eq!(serde_json::from_str::<Plan>(&written(plan)).unwrap(), plan);
        }
        for bad in [r#"{"side":4,"width":8}"#, r#"{"height":4}"#, "{}", "4", "[4]", "[4,8]", r#"{"side":-1}"#]
        {
            let error = serde_json::from_str::<Plan>(&format!(r#"{{"tiles":{bad}}}"#)).unwrap_err();
            assert!(error.to_string().starts_with("expected tiles as"), "{bad}: {error}");
        }
    }

    const COST: CostModel = CostModel {
        dense_pair: 1.0,
        mask_pair: 0.3,
        tile_pair: 1.4,
        gathered_key: 60.0,
        query: 40.0,
        tile: 500.0,
    };

    #[test]
    fn of_two_turned_tiles_a_square_grid_has_the_wide_one() {
        let plan =
            |window, height, width| Window::local(window).unwrap().plan(Grid::new(height, width), &COST);
        assert_eq!(plan(5, 12, 24), Plan::Tiles(Tile { height: 4, width: 8 }));
        assert_eq!(plan(5, 24, 12), Plan::Tiles(Tile { height: 8, width: 4 }));
        assert_eq!(plan(5, 32, 32), Plan::Tiles(Tile { height: 4, width: 8 }));
        assert_eq!(plan(3, 12, 14), Plan::Tiles(Tile { height: 4, width: 7 }));
        assert_eq!(plan(3, 14, 12), Plan::Tiles(Tile { height: 7, width: 4 }));
    }

    proptest! {
        #[test]
        fn a_tall_grid_is_as_cheap_as_the_wide_one(height in 1usize..33, width in 1usize..33, half in 0usize..8) {
            let window = Window::local(2 * half + 1).unwrap();
            let cost = |height, width| {
                let grid = Grid::new(height, width);
                match window.plan(grid, &COST) {
                    Plan::Dense => COST.dense(window, grid),
                    Plan::Tiles(tile) => COST.tiles(window, grid, tile),
                }
            };
            prop_assert_eq!(cost(height, width), cost(width, height));
        }

        #[test]
        fn the_plan_is_never_dearer_than_dense(height in 1usize..33, width in 1usize..33, half in 0usize..8) {
            let cost = COST;
            let (grid, window) = (Grid::new(height, width), Window::local(2 * half + 1).unwrap());
            let dense = cost.dense(window, grid);
            match window.plan(grid, &cost) {
                Plan::Dense => {}
                Plan::Tiles(tile) => prop_assert!(cost.tiles(window, grid, tile) < dense),
            }
        }
    }
}

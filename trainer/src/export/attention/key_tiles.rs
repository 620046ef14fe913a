//! Tiles of keys: the constants by which attention in tiles is gone through from its keys' side.
//!
//! Tokens are cut into the same tiles as queries are, with the same patches; a patch's tokens are now those whose queries see
//! the tile's. As with the tiles of queries, all is written as a part for rows and one for columns.

use std::collections::HashMap;

use windowpane_diffusion::{Plan, TilePlan, Window};

use super::super::graph::{Graph, GraphError, ValueId};
use super::super::ops::Op;
use super::super::shape::Shape;
use super::{Attended, Axes, Heads, Sum, scaled};

type Built<T> = Result<T, GraphError>;

/// The constants of windows whose keys are in tiles. Layers of one window share them.
#[derive(Debug, Default)]
pub struct KeyTiles(HashMap<(Window, Plan), WindowTiles>);

/// A window's tiles of keys, each with the patch of the queries that see them.
#[derive(Debug, Clone)]
pub(super) struct WindowTiles {
    /// How many there are.
    pub(super) tiles: usize,
    /// Tokens of a tile, whose keys and values are looked at: as many as a tile of the graph has queries.
    pub(super) tile_len: usize,
    /// Tokens of a patch, whose queries see them: as many as the graph's tile has keys.
    pub(super) patch_len: usize,
    /// Head by head, in which rows things are.
    pub(super) heads: Vec<HeadRows>,
    /// Where, among the probabilities of a head `[tiles * tile_len * patch_len]`, what a patch's token sees of a tile's token is,
    /// `[tiles, tile_len, patch_len]`.
    pub(super) seen: ValueId,
    /// 1 where it sees it, and 0 where it does not; the same shape.
    pub(super) is_seen: ValueId,
    /// Rows of `[3 * heads * tiles * tile_len, head_dim]` holding what is asked of each token, `[tokens, 3 * heads]`.
    pub(super) output_rows: ValueId,
    /// `1 / sqrt(head_dim)`.
    pub(super) scale: ValueId,
}

/// Rows of one head.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadRows {
    /// Of `[tokens * heads]`: the tokens of each tile, `[tiles, tile_len]`.
    pub(super) tile: ValueId,
    /// The same of each patch, `[tiles, patch_len]`.
    pub(super) patch: ValueId,
    /// Of `[tokens * 3 * heads]`: the queries of each patch, `[tiles, patch_len]`.
    pub(super) patch_queries: ValueId,
    /// The values of each tile, `[tiles, tile_len]`.
    pub(super) tile_values: ValueId,
}

// === impl KeyTiles ===

impl KeyTiles {
    /// Those of an operation, made once.
    pub(super) fn of(&mut self, graph: &mut Graph, attended: &Attended) -> Built<WindowTiles> {
        let key = (attended.window, attended.plan);
        if let Some(tile) = self.0.get(&key) {
            return Ok(tile.clone());
        }
        let tile = WindowTiles::new(graph, &format!("keys.{}", self.0.len()), attended)?;
        self.0.insert(key, tile.clone());
        Ok(tile)
    }
}

// === impl WindowTiles ===

impl WindowTiles {
    fn new(graph: &mut Graph, name: &str, attended: &Attended) -> Built<Self> {
        let heads = &attended.heads;
        let Axes { rows, cols } = Axes::new(attended.window, heads.grid, attended.plan);
        let (tiles, queries, keys) =
            (rows.tiles * cols.tiles, rows.queries * cols.queries, rows.keys * cols.keys);
        let mut sum = Sum { graph, name };
        let [tile, patch] = sum.tokens("tokens", [&rows, &cols], heads, heads.heads)?;
        let [tile_all, patch_all] = sum.tokens("all", [&rows, &cols], heads, 3 * heads.heads)?;
        let of_head = |head: usize| {
            let mut at = |what: &str, tokens: ValueId, part: usize| {
                let name = sum.named(what, &format!("head.{head}"));
                let offset = (part * heads.heads + head) as i64;
                let offset = sum.graph.indices(&format!("{name}.offset"), &[1, 1], vec![offset])?;
                sum.graph.add(&name, Op::Add, &[tokens, offset])
            };
            Ok(HeadRows {
                tile: at("tile", tile, 0)?,
                patch: at("patch", patch, 0)?,
                patch_queries: at("patch_queries", patch_all, 0)?,
                tile_values: at("tile_values", tile_all, 2)?,
            })
        };
        let of_heads = (0..heads.heads).map(of_head).collect::<Built<Vec<_>>>()?;
        let (seen, is_seen) = sum.seen([&rows, &cols], heads, [tiles, queries, keys])?;
        let output_rows = sum.output_rows(&rows, &cols, heads.grid, 3 * heads.heads)?;
        let scale = 1.0 / (heads.head_dim as f32).sqrt();
        let scale = sum.graph.floats(&sum.named("score", "scale"), heads.dtype, &[], vec![scale])?;
        Ok(Self {
            tiles,
            tile_len: queries,
            patch_len: keys,
            heads: of_heads,
            seen,
            is_seen,
            output_rows,
            scale,
        })
    }
}

// === impl Sum ===

impl Sum<'_> {
    /// The tokens of every tile `[tiles, tile_len]` and of its patch `[tiles, patch_len]`, `stride` rows each.
    fn tokens(
        &mut self,
        what: &str,
        [rows, cols]: [&TilePlan; 2],
        heads: &Heads,
        stride: usize,
    ) -> Built<[ValueId; 2]> {
        let tiles = rows.tiles * cols.tiles;
        let mut of = |what: String, (ys, height): (&[usize], usize), (xs, width): (&[usize], usize)| {
            let y = (scaled(ys, heads.grid.width * stride), [rows.tiles, 1, height, 1]);
            let x = (scaled(xs, stride), [1, cols.tiles, 1, width]);
            self.indices(&what, y, x, &[tiles, height * width])
        };
        let (y, x) = ((&rows.query_index[..], rows.queries), (&cols.query_index[..], cols.queries));
        let tile = of(format!("tile_{what}"), y, x)?;
        let (y, x) = ((&rows.key_index[..], rows.keys), (&cols.key_index[..], cols.keys));
        let patch = of(format!("patch_{what}"), y, x)?;
        Ok([tile, patch])
    }

    /// For each token of each tile, and each of its patch: where the probability lies with which the second sees the first,
    /// and whether it sees it at all.
    fn seen(
        &mut self,
        [rows, cols]: [&TilePlan; 2],
        heads: &Heads,
        shape: [usize; 3],
    ) -> Built<(ValueId, ValueId)> {
        let [_, queries, keys] = shape;
        let y = Seen::of(rows, [cols.tiles * queries * keys, cols.queries * keys, cols.keys]);
        let x = Seen::of(cols, [queries * keys, keys, 1]);
        let y_shape = [rows.tiles, 1, rows.queries, 1, rows.keys, 1];
        let x_shape = [1, cols.tiles, 1, cols.queries, 1, cols.keys];
        let seen = self.indices("seen", (y.places, y_shape), (x.places, x_shape), &shape)?;
        let y = self.graph.floats(&self.named("is_seen", "rows"), heads.dtype, &y_shape, y.is_seen)?;
        let x = self.graph.floats(&self.named("is_seen", "cols"), heads.dtype, &x_shape, x.is_seen)?;
        let both = self.graph.add(&self.named("is_seen", "both"), Op::Mul, &[y, x])?;
        let is_seen =
            self.graph.add(&self.named("is_seen", "all"), Op::Reshape(Shape::new(shape)), &[both])?;
        Ok((seen, is_seen))
    }
}

/// Along one axis, for each token of each tile, and each of its patch, `[tiles, queries, keys]`.
struct Seen {
    /// The axis' part of the place where the probability lies with which the second sees the first; 0 where it does not.
    places: Vec<i64>,
    /// 1 where it does, 0 where it does not.
    is_seen: Vec<f32>,
}

// === impl Seen ===

impl Seen {
    /// Strides: of a tile, of a query in it, of a key in its patch.
    fn of(plan: &TilePlan, [tile_stride, query_stride, key_stride]: [usize; 3]) -> Self {
        let (bias, mut places, mut is_seen) = (plan.bias(), Vec::new(), Vec::new());
        for tile in 0..plan.tiles {
            for &seen in &plan.query_index[tile * plan.queries..][..plan.queries] {
                for &by in &plan.key_index[tile * plan.keys..][..plan.keys] {
                    let query = plan.output_index[by];
                    let key = plan.keys_of(by).iter().position(|&key| key == seen);
                    let key = key.filter(|key| bias[query * plan.keys + key] == 0.0);
                    is_seen.push(f32::from(u8::from(key.is_some())));
                    places.push(key.map_or(0, |key| {
                        let (tile, query) = (query / plan.queries, query % plan.queries);
                        (tile * tile_stride + query * query_stride + key * key_stride) as i64
                    }));
                }
            }
        }
        Self { places, is_seen }
    }
}

//! Windowed attention as a graph: the mirror of the trainer's `attention.rs`.
//!
//! Queries, keys and values of every tile are collected by one flat Gather each, straight out of the qkv product's
//! rows; in ONNX Runtime that beats slices and two-step gathers, and it takes the place of the transposition that
//! splits heads. A dense layer is the same with a single tile, which holds the whole grid.
//!
//! Tiles are computed head by head: what one head gathers and scores stays in the processor's cache. In ONNX Runtime
//! 1.30 on the CPU at 32×32 tokens that takes 14 % off an operation of window 3, and a fifth at window 9. Dense layers
//! gain nothing by it, and take all heads at once.
//!
//! Both axes of a window are independent, so indices and biases are written as a part for rows and a part for
//! columns, whose sum the runtime computes once, at load: a graph holds kilobytes of them, not megabytes.

mod key_tiles;
mod reverse;

use std::ops::Range;

use windowpane_diffusion::{Grid, Plan, Tile, TilePlan, Window};

use super::graph::{Graph, GraphError, ValueId};
use super::ops::Op;
use super::shape::{Dim, Dtype, Shape};

pub use key_tiles::KeyTiles;

/// What all attention layers of a network share.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// The token grid.
    pub grid: Grid,
    /// Number of heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Images at once.
    pub batch: Dim,
    /// Type that scores are computed in.
    pub dtype: Dtype,
}

/// A window with its plan as values of a graph. Layers of one window share them.
#[derive(Debug, Clone)]
pub struct WindowValues {
    window: Window,
    plan: Plan,
    tiles: usize,
    queries: usize,
    /// Heads that are computed together, in order.
    groups: Vec<HeadGroup>,
    /// Rows of `[heads * tiles * queries, head_dim]` holding each token's result, `[tokens, heads]`.
    output_rows: ValueId,
    /// 0 or hidden, `[tiles, queries, keys]`; none where no pair is hidden.
    bias: Option<ValueId>,
    /// `1 / sqrt(head_dim)`.
    scale: ValueId,
}

/// Heads computed together: where the rows of `[tokens * 3 * heads, head_dim]` are that they read.
#[derive(Debug, Clone)]
struct HeadGroup {
    /// What its nodes' names begin with: nothing where it holds all heads, `head.2.` where it is one of them.
    prefix: String,
    /// Row of each query, `[heads, tiles, queries]`.
    query_rows: ValueId,
    /// Row of each key, `[heads, tiles, keys]`.
    key_rows: ValueId,
    /// Row of each value, `[heads, tiles, keys]`.
    value_rows: ValueId,
}

/// An attention operation in a graph.
#[derive(Debug, Clone)]
pub struct Attended {
    /// What it comes to, `[n, tokens, heads, head_dim]`.
    pub out: ValueId,
    /// Queries, keys and values of all tokens, `[n, tokens * 3 * heads, head_dim]`.
    pub rows: ValueId,
    /// What it comes to by groups of heads, in order.
    groups: Vec<AttendedGroup>,
    window: Window,
    plan: Plan,
    heads: Heads,
}

/// Attention of heads that are computed together, in the tiles' own order.
#[derive(Debug, Clone, Copy)]
struct AttendedGroup {
    /// `[n, group, tiles, keys, head_dim]`.
    keys: ValueId,
    /// The same.
    values: ValueId,
    /// `[n, group, tiles, queries, keys]`.
    probabilities: ValueId,
    /// `[n, group, tiles, queries, head_dim]`.
    out: ValueId,
}

/// A window's tiles along one axis of the grid.
struct Axes {
    rows: TilePlan,
    cols: TilePlan,
}

// === impl Axes ===

impl Axes {
    fn new(window: Window, grid: Grid, plan: Plan) -> Self {
        let tile = match plan {
            Plan::Dense => Tile { height: grid.height, width: grid.width },
            Plan::Tiles(tile) => tile,
        };
        Self {
            rows: window.tile_plan(Grid::new(grid.height, 1), tile),
            cols: window.tile_plan(Grid::new(1, grid.width), tile),
        }
    }
}

// === impl WindowValues ===

impl WindowValues {
    /// Appends the constants of `window`, realised as `plan`, to the graph; `name` prefixes their names.
    pub fn new(
        graph: &mut Graph,
        name: &str,
        window: Window,
        plan: Plan,
        heads: &Heads,
    ) -> Result<Self, GraphError> {
        let Axes { rows, cols } = Axes::new(window, heads.grid, plan);
        let (tiles, queries, keys) =
            (rows.tiles * cols.tiles, rows.queries * cols.queries, rows.keys * cols.keys);
        let mut sum = Sum { graph, name };
        // Row of a token's query, key or value: (token * 3 + part) * heads + head.
        let token = 3 * heads.heads;
        let collected = |of: fn(&TilePlan) -> (&[usize], usize)| {
            let ((ys, height), (xs, width)) = (of(&rows), of(&cols));
            let y = (scaled(ys, heads.grid.width * token), [rows.tiles, 1, height, 1]);
            let x = (scaled(xs, token), [1, cols.tiles, 1, width]);
            (y, x)
        };
        let (y, x) = collected(|plan| (&plan.query_index, plan.queries));
        let query = sum.indices("query_tokens", y, x, &[1, tiles, queries])?;
        let (y, x) = collected(|plan| (&plan.key_index, plan.keys));
        let key = sum.indices("key_tokens", y, x, &[1, tiles, keys])?;
        let at_once = if plan == Plan::Dense { heads.heads } else { 1 };
        let groups = (0..heads.heads).step_by(at_once).map(|first| {
            let group = first..first + at_once;
            let prefix = prefix(&group, heads);
            let mut rows = |what: &str, tokens: ValueId, part: usize| {
                let what = format!("{prefix}{what}");
                let offsets = group.clone().map(|head| (part * heads.heads + head) as i64).collect();
                let offsets = sum.graph.indices(&sum.named(&what, "heads"), &[at_once, 1, 1], offsets)?;
                sum.graph.add(&sum.named(&what, "rows"), Op::Add, &[tokens, offsets])
            };
            let query_rows = rows("query", query, 0)?;
            let key_rows = rows("key", key, 1)?;
            let value_rows = rows("value", key, 2)?;
            Ok(HeadGroup { prefix, query_rows, key_rows, value_rows })
        });
        let groups = groups.collect::<Result<Vec<_>, GraphError>>()?;
        let output_rows = sum.output_rows(&rows, &cols, heads.grid, heads.heads)?;
        let bias = if window.covers(heads.grid) {
            None
        } else {
            Some(sum.bias(&rows, &cols, heads.dtype, [tiles, queries, keys])?)
        };
        let scale = 1.0 / (heads.head_dim as f32).sqrt();
        let scale = sum.graph.floats(&sum.named("score", "scale"), heads.dtype, &[], vec![scale])?;
        Ok(Self { window, plan, tiles, queries, groups, output_rows, bias, scale })
    }

    /// Appends `softmax(q kᵀ / sqrt(head_dim) + window) v`; `name` prefixes the nodes' names.
    ///
    /// # Shapes
    /// `qkv` is `[n * tokens, 3 * heads * head_dim]`.
    pub fn attend(
        &self,
        graph: &mut Graph,
        name: &str,
        qkv: ValueId,
        heads: &Heads,
    ) -> Result<Attended, GraphError> {
        let (tokens, dim, batch) = (heads.grid.tokens(), heads.head_dim, heads.batch);
        let named = |what: &str| format!("{name}.{what}");
        let rows = Shape::led_by(batch, &[tokens * 3 * heads.heads, dim]);
        let rows = graph.add(&named("qkv.rows"), Op::Reshape(rows), &[qkv])?; // [n, tokens * 3 * heads, dim]
        let group = |group| self.group(graph, name, rows, group);
        let groups = self.groups.iter().map(group).collect::<Result<Vec<_>, _>>()?;
        let out: Vec<ValueId> = groups.iter().map(|group| group.out).collect(); // [n, group, tiles, queries, dim]
        let out = match out[..] {
            [out] => out,
            _ => graph.add(&named("values.heads"), Op::Concat { axis: 1 }, &out)?,
        }; // [n, heads, tiles, queries, dim]
        let places = Shape::led_by(batch, &[heads.heads * self.tiles * self.queries, dim]);
        let out = graph.add(&named("values.rows"), Op::Reshape(places), &[out])?;
        let out = graph.add(&named("out"), Op::Gather { axis: 1 }, &[out, self.output_rows])?; // [n, tokens, heads, dim]
        Ok(Attended { out, rows, groups, window: self.window, plan: self.plan, heads: *heads })
    }

    /// The attention of the heads of one group.
    fn group(
        &self,
        graph: &mut Graph,
        name: &str,
        all: ValueId,
        group: &HeadGroup,
    ) -> Result<AttendedGroup, GraphError> {
        let named = |what: &str| format!("{name}.{}{what}", group.prefix);
        let rows = Op::Gather { axis: 1 };
        let q = graph.add(&named("q"), rows.clone(), &[all, group.query_rows])?; // [n, group, tiles, queries, dim]
        let k = graph.add(&named("k"), rows.clone(), &[all, group.key_rows])?; // [n, group, tiles, keys, dim]
        let q = graph.add(&named("q.scaled"), Op::Mul, &[q, self.scale])?;
        let product = Op::MatMul { transpose_a: false, transpose_b: true };
        let mut scores = graph.add(&named("scores"), product, &[q, k])?; // [n, group, tiles, queries, keys]
        if let Some(bias) = self.bias {
            scores = graph.add(&named("window"), Op::Add, &[scores, bias])?;
        }
        let probabilities = graph.add(&named("softmax"), Op::Softmax, &[scores])?;
        let v = graph.add(&named("v"), rows, &[all, group.value_rows])?; // [n, group, tiles, keys, dim]
        let product = Op::MatMul { transpose_a: false, transpose_b: false };
        let out = graph.add(&named("values"), product, &[probabilities, v])?; // [n, group, tiles, queries, dim]
        Ok(AttendedGroup { keys: k, values: v, probabilities, out })
    }
}

// === impl Attended ===

impl Attended {
    /// What the queries of each group of heads see of their keys, `[n, group, tiles, queries, keys]`.
    pub fn probabilities(&self) -> impl Iterator<Item = ValueId> {
        self.groups.iter().map(|group| group.probabilities)
    }
}

/// What names of a group's nodes begin with.
fn prefix(group: &Range<usize>, heads: &Heads) -> String {
    if group.len() == heads.heads { String::new() } else { format!("head.{}.", group.start) }
}

/// Appends constants of the form (part for rows) + (part for columns).
struct Sum<'a> {
    graph: &'a mut Graph,
    name: &'a str,
}

// === impl Sum ===

impl Sum<'_> {
    fn named(&self, what: &str, part: &str) -> String {
        format!("{}.{what}.{part}", self.name)
    }

    fn indices<const R: usize>(
        &mut self,
        what: &str,
        (rows, row_shape): (Vec<i64>, [usize; R]),
        (cols, col_shape): (Vec<i64>, [usize; R]),
        shape: &[usize],
    ) -> Result<ValueId, GraphError> {
        let rows = self.graph.indices(&self.named(what, "rows"), &row_shape, rows)?;
        let cols = self.graph.indices(&self.named(what, "cols"), &col_shape, cols)?;
        self.add(what, rows, cols, shape)
    }

    /// Place of token (y, x) in each of `parts`, `[tokens, parts]`: tile (ty, tx) and query (qy, qx) within it, both told by
    /// the axes' own places.
    fn output_rows(
        &mut self,
        rows: &TilePlan,
        cols: &TilePlan,
        grid: Grid,
        parts: usize,
    ) -> Result<ValueId, GraphError> {
        let queries = rows.queries * cols.queries;
        let per_part = rows.tiles * cols.tiles * queries;
        let place = |plan: &TilePlan, tile: usize, query: usize| -> Vec<i64> {
            let at = |&place: &usize| (place / plan.queries * tile + place % plan.queries * query) as i64;
            plan.output_index.iter().map(at).collect()
        };
        let y = (place(rows, cols.tiles * queries, cols.queries), [grid.height, 1]);
        let x = (place(cols, queries, 1), [1, grid.width]);
        let tokens = self.indices("output_tokens", y, x, &[grid.tokens(), 1])?;
        let offsets = (0..parts).map(|part| (part * per_part) as i64).collect();
        let offsets = self.graph.indices(&self.named("output", "heads"), &[1, parts], offsets)?;
        self.graph.add(&self.named("output", "rows"), Op::Add, &[tokens, offsets])
    }

    /// A pair is hidden where either axis hides it; two hidden parts add up to something hidden all the same.
    fn bias(
        &mut self,
        rows: &TilePlan,
        cols: &TilePlan,
        dtype: Dtype,
        shape: [usize; 3],
    ) -> Result<ValueId, GraphError> {
        let row_shape = [rows.tiles, 1, rows.queries, 1, rows.keys, 1];
        let col_shape = [1, cols.tiles, 1, cols.queries, 1, cols.keys];
        let rows = self.graph.floats(&self.named("bias", "rows"), dtype, &row_shape, rows.bias())?;
        let cols = self.graph.floats(&self.named("bias", "cols"), dtype, &col_shape, cols.bias())?;
        self.add("bias", rows, cols, &shape)
    }

    fn add(
        &mut self,
        what: &str,
        rows: ValueId,
        cols: ValueId,
        shape: &[usize],
    ) -> Result<ValueId, GraphError> {
        let sum = self.graph.add(&self.named(what, "sum"), Op::Add, &[rows, cols])?;
        let shape = Shape::new(shape.iter().copied());
        self.graph.add(&format!("{}.{what}", self.name), Op::Reshape(shape), &[sum])
    }
}

fn scaled(index: &[usize], by: usize) -> Vec<i64> {
    index.iter().map(|&i| (i * by) as i64).collect()
}

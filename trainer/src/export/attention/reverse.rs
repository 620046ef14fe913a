//! Reverse mode of attention in tiles, as a whole: what its result asks of queries, keys and values.
//!
//! Operation by operation every tile would ask something of each key of its patch, and where patches overlap all of that
//! would have to be added up: in a window of 7 by tiles of 4, what up to nine tiles ask of one key. But a window is symmetric.
//! The queries that see a token are those that the token sees, and lie in its tile's patch; so keys and values are given the
//! tiles that queries have, and their tiles collect the cotangents of all that see them. Nothing is left to add up. The
//! cotangents of scores are then computed twice, once from either side.
//!
//! With probabilities P, scores S, values v, the result y and its cotangents u (Dao et al. 2022, appendix B.2):
//! `dv_j = Σ_i P_ij u_i`, `dS_ij = P_ij (u_i · v_j - u_i · y_i)`, `dq_i = Σ_j dS_ij k_j / √d`, `dk_j = Σ_i dS_ij q_i / √d`.

use windowpane_diffusion::Plan;

use super::super::derivative::Builder;
use super::super::graph::{GraphError, ValueId};
use super::super::ops::Op;
use super::super::shape::{Dim, Shape};
use super::key_tiles::{HeadRows, KeyTiles, WindowTiles};
use super::{Attended, AttendedGroup, Heads};

type Built<T> = Result<T, GraphError>;

const PRODUCT: Op = Op::MatMul { transpose_a: false, transpose_b: false };

/// `a bᵀ`.
const PRODUCT_TRANSPOSED: Op = Op::MatMul { transpose_a: false, transpose_b: true };

// === impl Attended ===

impl Attended {
    /// Whether its keys were collected tile by tile.
    pub fn is_in_tiles(&self) -> bool {
        self.plan != Plan::Dense
    }

    /// What of its queries, keys and values is asked for, `[k, tokens * 3 * heads, head_dim]`, by the cotangents `u` of what
    /// it comes to, `[k, tokens, heads, head_dim]`.
    pub(in crate::export) fn pull_back(
        &self,
        builder: &mut Builder<'_>,
        known: &mut KeyTiles,
        u: ValueId,
    ) -> Built<ValueId> {
        let tiles = known.of(builder.graph, self)?;
        let Heads { grid, heads, head_dim: dim, .. } = self.heads;
        let name = format!("{}.adjoint", builder.name(self.out));
        // [u, -Σ u y], so that what is taken off is part of the products with values: `[u, -Σ u y] [v, 1]ᵀ`.
        let negative = builder.negative(self.out)?;
        let along = builder.add(&name, "along", Op::Mul, &[u, negative])?; // [k, tokens, heads, dim]
        let along = builder.add(&name, "along.sum", Op::Sum { axis: 3 }, &[along])?; // [k, tokens, heads, 1]
        let wide = builder.add(&name, "wide", Op::Concat { axis: 3 }, &[u, along])?; // [k, tokens, heads, dim + 1]
        let rows = Shape::led_by(Dim::BATCH, &[grid.tokens() * heads, dim + 1]);
        let wide = builder.add(&name, "wide.rows", Op::Reshape(rows), &[wide])?;
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (number, (&rows, &group)) in tiles.heads.iter().zip(&self.groups).enumerate() {
            let name = format!("{name}.head.{number}");
            let head = Head { name, dim, all: self.rows, tiles: &tiles, rows, group, wide };
            queries.push(head.queries(builder)?);
            let [of_keys, of_values] = head.keys_and_values(builder)?;
            keys.push(of_keys);
            values.push(of_values);
        }
        let all = [queries, keys, values].concat(); // 3 * heads of [k, tiles, tile_len, dim]
        let all = builder.add(&name, "tiles", Op::Concat { axis: 1 }, &all)?;
        let places = Shape::led_by(Dim::BATCH, &[3 * heads * tiles.tiles * tiles.tile_len, dim]);
        let all = builder.add(&name, "tiles.rows", Op::Reshape(places), &[all])?;
        let all = builder.add(&name, "tokens", Op::Gather { axis: 1 }, &[all, tiles.output_rows])?; // [k, tokens, 3 * heads, dim]
        let own = builder.shape(self.rows);
        builder.gathered(all, &own, &name, "rows")
    }
}

/// One head of an operation, in reverse.
struct Head<'a> {
    /// Prefix of the names of what is made.
    name: String,
    /// Its width.
    dim: usize,
    /// Queries, keys and values of all heads.
    all: ValueId,
    tiles: &'a WindowTiles,
    rows: HeadRows,
    group: AttendedGroup,
    /// `[u, -Σ u y]` of all heads, `[k, tokens * heads, dim + 1]`.
    wide: ValueId,
}

// === impl Head ===

impl Head<'_> {
    /// What is asked of its queries, from the tiles that the graph has, `[k, tiles, queries, dim]`.
    fn queries(&self, builder: &mut Builder<'_>) -> Built<ValueId> {
        let Self { name, tiles, rows, group, .. } = self;
        let (queries, keys) = (tiles.tile_len, tiles.patch_len);
        let probabilities = self.alone(builder, "probabilities", group.probabilities, [queries, keys])?;
        let values = builder.with_ones(group.values)?;
        let values = self.alone(builder, "values", values, [keys, self.dim + 1])?;
        let scaled = builder.add(name, "keys.scaled", Op::Mul, &[group.keys, tiles.scale])?;
        let scaled = self.alone(builder, "keys", scaled, [keys, self.dim])?;
        let u = builder.add(name, "u", Op::Gather { axis: 1 }, &[self.wide, rows.tile])?; // [k, tiles, queries, dim + 1]
        let scores = builder.add(name, "centred", PRODUCT_TRANSPOSED, &[u, values])?; // [k, tiles, queries, keys]
        let scores = builder.add(name, "scores", Op::Mul, &[scores, probabilities])?;
        builder.add(name, "queries", PRODUCT, &[scores, scaled])
    }

    /// What is asked of its keys and of its values, from tiles of theirs, both `[k, tiles, tile_len, dim]`.
    fn keys_and_values(&self, builder: &mut Builder<'_>) -> Built<[ValueId; 2]> {
        let Self { name, tiles, rows, group, .. } = self;
        let collect = Op::Gather { axis: 1 };
        let flat = Shape::new([1, tiles.tiles * tiles.tile_len * tiles.patch_len]);
        let seen = builder.reshaped(group.probabilities, flat, name, "seen.flat")?;
        let seen = builder.add(name, "seen.of", collect.clone(), &[seen, tiles.seen])?; // [1, tiles, tile_len, patch_len]
        let seen = builder.add(name, "seen", Op::Mul, &[seen, tiles.is_seen])?;
        let queries =
            builder.add(name, "patch.queries.of", collect.clone(), &[self.all, rows.patch_queries])?;
        let queries = builder.add(name, "patch.queries", Op::Mul, &[queries, tiles.scale])?; // [1, tiles, patch_len, dim]
        let values = builder.add(name, "tile.values", collect.clone(), &[self.all, rows.tile_values])?;
        let values = builder.with_ones(values)?; // [1, tiles, tile_len, dim + 1]
        let u = builder.add(name, "patch.u", collect, &[self.wide, rows.patch])?; // [k, tiles, patch_len, dim + 1]
        let scores = builder.add(name, "patch.centred", PRODUCT_TRANSPOSED, &[values, u])?; // [k, tiles, tile_len, patch_len]
        let scores = builder.add(name, "patch.scores", Op::Mul, &[scores, seen])?;
        let of_keys = builder.add(name, "keys.of", PRODUCT, &[scores, queries])?;
        let of_values = builder.add(name, "values.wide", PRODUCT, &[seen, u])?; // [k, tiles, tile_len, dim + 1]
        let narrow = Op::Slice { axis: 3, start: 0, len: self.dim };
        let of_values = builder.add(name, "values.of", narrow, &[of_values])?;
        Ok([of_keys, of_values])
    }

    /// A value of its group, which holds no other head, without the group's axis: `[1, tiles, …]`.
    fn alone(
        &self,
        builder: &mut Builder<'_>,
        what: &str,
        value: ValueId,
        rest: [usize; 2],
    ) -> Built<ValueId> {
        let shape = [1, self.tiles.tiles].into_iter().chain(rest);
        builder.reshaped(value, Shape::new(shape), &self.name, &format!("{what}.alone"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use tch::{Device, Kind, Tensor};
    use windowpane_diffusion::{Grid, Tile, Window};

    use super::super::super::adjoint::pull_back;
    use super::super::super::eval::evaluate;
    use super::super::super::graph::{Graph, Source, Value};
    use super::super::super::shape::{Dtype, Type};
    use super::super::WindowValues;
    use super::*;

    const HEADS: usize = 2;
    const DIM: usize = 3;

    /// An attention operation with the cotangents of its queries, keys and values: as a whole, or operation by operation.
    fn products(window: Window, plan: Plan, grid: Grid, as_a_whole: bool) -> Graph {
        let heads = Heads { grid, heads: HEADS, head_dim: DIM, batch: Dim::Fixed(1), dtype: Dtype::F32 };
        let mut graph = Graph::over("k");
        let rows = Shape::new([grid.tokens(), 3 * HEADS * DIM]);
        let qkv = graph.input("qkv", Type::new(Dtype::F32, rows)).unwrap();
        let values = WindowValues::new(&mut graph, "window", window, plan, &heads).unwrap();
        let attended = values.attend(&mut graph, "attn", qkv, &heads).unwrap();
        let cotangents = graph.ty(attended.out).shape.batched().unwrap();
        let u = graph.input("u", Type::new(Dtype::F32, cotangents)).unwrap();
        let out = attended.out;
        let whole = if as_a_whole { vec![attended] } else { Vec::new() };
        let products = pull_back(&mut graph, qkv, u, out, &whole).unwrap();
        graph.output(products);
        graph
    }

    fn difference(window: Window, plan: Plan, grid: Grid) -> f64 {
        let _draws = crate::testing::seeded(8);
        let tokens = grid.tokens() as i64;
        let normal = |dims: &[i64]| Tensor::randn(dims, (Kind::Float, Device::Cpu));
        let qkv = normal(&[tokens, (3 * HEADS * DIM) as i64]) * 2.0;
        let u = normal(&[4, tokens, HEADS as i64, DIM as i64]);
        let given = HashMap::from([("qkv".to_owned(), qkv), ("u".to_owned(), u)]);
        let run = |whole| {
            evaluate(&products(window, plan, grid, whole), &given).unwrap().remove(0).reshape([4, -1])
        };
        let (got, expected) = (run(true), run(false));
        assert_eq!(got.size(), expected.size());
        let largest = |x: &Tensor| x.abs().max().double_value(&[]);
        largest(&(got - &expected)) / largest(&expected)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Tiles that divide the grid and tiles that do not, windows that reach beyond it, and grids of one row.
        #[test]
        fn the_whole_asks_for_what_its_operations_do(
            (height, width) in (1usize..12, 1usize..12), half in 0usize..6, tile in (1usize..9, 1usize..9),
        ) {
            let plan = Plan::Tiles(Tile { height: tile.0, width: tile.1 });
            let (window, grid) = (Window::local(2 * half + 1).unwrap(), Grid::new(height, width));
            let error = difference(window, plan, grid);
            prop_assert!(error < 1e-5, "{}", error);
        }
    }

    #[test]
    fn a_global_window_may_be_in_tiles() {
        let error = difference(Window::Global, Plan::Tiles(Tile::square(2)), Grid::new(5, 4));
        assert!(error < 1e-5, "{error}");
    }

    /// The sums of two values for every vector: patches overlap, and what they ask for is not added up.
    #[test]
    fn nothing_is_added_up_where_patches_overlap() {
        let sums = |as_a_whole| {
            let plan = Plan::Tiles(Tile::square(2));
            let graph = products(Window::local(5).unwrap(), plan, Grid::new(8, 8), as_a_whole);
            let live = graph.live();
            let is_sum = |(id, value): &(ValueId, &Value)| {
                let of_vectors = graph.ty(*id).shape.volume().1 == 1;
                live.contains(id) && of_vectors && matches!(&value.source, Source::Node { op: Op::Add, .. })
            };
            graph.values().filter(is_sum).count()
        };
        assert_eq!(sums(true), 0);
        assert!(sums(false) > 0);
    }
}

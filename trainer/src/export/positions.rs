//! How a package holds the position table `[1, t, d]`. Half of its channels depend on a token's column alone, the other
//! half on its row: a table that is large is stored as these two, and the graph puts them together again, which the runtime
//! does once, at load. What comes out is the table, bit for bit; one that is not made so would be stored whole.

use windowpane_diffusion::{Grid, ModelConfig};

use super::graph::{Graph, GraphError, ValueId};
use super::ops::Op;
use super::shape::{Dtype, Shape, Type};
use crate::model::position_table;

/// Bytes of f32 up to which the table is stored as it is: the graph of a small one reads as DiT's does.
const WHOLE: usize = 64 * 1024;

/// The position table as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Positions {
    grid: Grid,
    hidden: usize,
    /// A name in the graph, a shape and values each: `pos_embed` `[1, t, d]`; or `pos_embed.cols` `[w, d/2]` and
    /// `pos_embed.rows` `[h, d/2]`.
    pub tables: Vec<(&'static str, Vec<usize>, Vec<f32>)>,
}

// === impl Positions ===

impl Positions {
    /// Those of a model, which are DiT's sines and cosines.
    pub fn of(config: &ModelConfig) -> Self {
        let (grid, hidden) = (config.grid(), config.hidden);
        Self::store(grid, hidden, position_table(grid, hidden))
    }

    fn store(grid: Grid, hidden: usize, table: Vec<f32>) -> Self {
        let half = hidden / 2;
        let parts = if size_of_val(&table[..]) > WHOLE { apart(grid, hidden, &table) } else { None };
        let tables = match parts {
            Some((cols, rows)) => vec![
                ("pos_embed.cols", vec![grid.width, half], cols),
                ("pos_embed.rows", vec![grid.height, half], rows),
            ],
            None => vec![("pos_embed", vec![1, grid.tokens(), hidden], table)],
        };
        Self { grid, hidden, tables }
    }

    /// Appends the value `pos_embed` to a graph, `[1, t, d]` of type `dtype`.
    pub fn append(&self, graph: &mut Graph, dtype: Dtype) -> Result<ValueId, GraphError> {
        let [(cols, of_cols, _), (rows, of_rows, _)] = &self.tables[..] else {
            let (name, shape, _) = &self.tables[0];
            return graph.parameter(name, Type::new(dtype, Shape::new(shape.iter().copied())));
        };
        // In f32, in which they are stored: a processor that cannot compute in f16 could not do it at load.
        let table = |shape: &Vec<usize>| Type::new(Dtype::F32, Shape::new(shape.iter().copied()));
        let cols = graph.parameter(cols, table(of_cols))?; // [w, d/2]
        let rows = graph.parameter(rows, table(of_rows))?; // [h, d/2]
        let Grid { height, width } = self.grid;
        let rows = graph.add(
            "pos_embed.rows.column",
            Op::Reshape(Shape::new([height, 1, self.hidden / 2])),
            &[rows],
        )?;
        // Times one is a number's own bits.
        let mut repeat = |name: &str, table: ValueId, times: [usize; 3]| {
            let ones = vec![1.0; times.iter().product()];
            let ones = graph.floats(&format!("{name}.ones"), Dtype::F32, &times, ones)?;
            graph.add(&format!("{name}.grid"), Op::Mul, &[table, ones])
        };
        let cols = repeat("pos_embed.cols", cols, [height, 1, 1])?; // [h, w, d/2]
        let rows = repeat("pos_embed.rows", rows, [1, width, 1])?; // [h, w, d/2]
        let both = graph.add("pos_embed.grid", Op::Concat { axis: 2 }, &[cols, rows])?; // [h, w, d]
        let whole = Shape::new([1, self.grid.tokens(), self.hidden]);
        let whole = graph.add("pos_embed", Op::Reshape(whole), &[both])?; // [1, t, d]
        match dtype {
            Dtype::F32 => Ok(whole),
            _ => graph.add("pos_embed.cast", Op::Cast(dtype), &[whole]),
        }
    }
}

/// The columns' half `[w, d/2]` and the rows' half `[h, d/2]` of a table `[t, d]`, if these are all that it says.
fn apart(grid: Grid, hidden: usize, table: &[f32]) -> Option<(Vec<f32>, Vec<f32>)> {
    let half = hidden / 2;
    let token = |y: usize, x: usize| &table[(y * grid.width + x) * hidden..][..hidden];
    let cols: Vec<f32> = (0..grid.width).flat_map(|x| &token(0, x)[..half]).copied().collect();
    let rows: Vec<f32> = (0..grid.height).flat_map(|y| &token(y, 0)[half..]).copied().collect();
    let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
    let is_made_of_them = (0..grid.tokens()).all(|i| {
        let (y, x) = grid.position(i);
        same(&token(y, x)[..half], &cols[x * half..]) && same(&token(y, x)[half..], &rows[y * half..])
    });
    (hidden.is_multiple_of(2) && is_made_of_them).then_some((cols, rows))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tch::Tensor;

    use super::super::eval::evaluate;
    use super::*;

    /// The table that the graph makes of what is stored.
    fn rebuilt(positions: &Positions) -> Vec<f32> {
        let mut graph = Graph::new();
        let table = positions.append(&mut graph, Dtype::F32).unwrap();
        assert_eq!(graph.value(table).name, "pos_embed");
        graph.output(table);
        let tensor = |(name, shape, values): &(&'static str, Vec<usize>, Vec<f32>)| {
            let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
            ((*name).to_owned(), Tensor::from_slice(values).view(&shape[..]))
        };
        let given: HashMap<_, _> = positions.tables.iter().map(tensor).collect();
        Vec::try_from(evaluate(&graph, &given).unwrap().remove(0).view([-1])).unwrap()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn a_large_table_is_two_small_ones_and_the_same_bits() {
        for (grid, hidden) in [
            (Grid::new(32, 32), 48),
            (Grid::new(17, 40), 64),
            (Grid::new(1, 300), 252),
            (Grid::new(300, 1), 60),
        ] {
            let table = position_table(grid, hidden);
            let positions = Positions::store(grid, hidden, table.clone());
            let names: Vec<_> = positions.tables.iter().map(|(name, ..)| *name).collect();
            assert_eq!(names, ["pos_embed.cols", "pos_embed.rows"]);
            let stored: usize = positions.tables.iter().map(|(_, _, values)| values.len()).sum();
            assert_eq!(stored, (grid.height + grid.width) * hidden / 2);
            assert_eq!(bits(&rebuilt(&positions)), bits(&table));
        }
    }

    #[test]
    fn half_precision_is_made_of_the_whole_table() {
        let grid = Grid::new(32, 32);
        let mut graph = Graph::new();
        let positions = Positions::store(grid, 48, position_table(grid, 48));
        let table = positions.append(&mut graph, Dtype::F16).unwrap();
        assert_eq!(graph.ty(table).to_string(), "f16[1,1024,48]");
        let halves = graph.values().filter(|(_, value)| value.ty.dtype == Dtype::F16);
        assert_eq!(halves.map(|(id, _)| id).collect::<Vec<_>>(), [table]);
    }

    #[test]
    fn a_small_table_and_one_that_is_not_made_so_stay_whole() {
        let whole = |grid: Grid, hidden: usize, table: Vec<f32>| {
            let positions = Positions::store(grid, hidden, table.clone());
            assert_eq!(positions.tables, [("pos_embed", vec![1, grid.tokens(), hidden], table.clone())]);
            assert_eq!(bits(&rebuilt(&positions)), bits(&table));
        };
        let small = Grid::new(7, 7);
        whole(small, 160, position_table(small, 160));
        let large = Grid::new(32, 32);
        for element in [48 + 3, 48 * 1023 + 47] {
            let mut table = position_table(large, 48);
            table[element] += 1e-3;
            whole(large, 48, table);
        }
        // Equal as numbers, and not in their bits.
        let mut table = position_table(large, 48);
        let zero = (0..table.len()).skip(48).find(|&i| table[i] == 0.0).unwrap();
        table[zero] = -0.0;
        whole(large, 48, table);
    }
}

//! How a package holds the position table `[1, t, d]`. Half of its channels are those of a token's column, the other half
//! those of its row, and both are taken out of the same sines and cosines, one line of them for every place: a table that
//! is large is stored as these lines, and the graph puts it together again, which the runtime does once, at load. What
//! comes out is the table, bit for bit; one that is not made so would be stored whole.

use windowpane_diffusion::{Grid, ModelConfig};

use super::graph::{Graph, GraphError, ValueId};
use super::ops::Op;
use super::shape::{Dtype, Shape, Type};
use crate::model::position_table;

/// Bytes of f32 up to which the table is stored as it is: the graph of a small one reads as DiT's does.
const WHOLE: usize = 64 * 1024;

/// The position table as it is stored, under the checkpoint's name either way.
#[derive(Debug, Clone, PartialEq)]
pub struct Positions {
    grid: Grid,
    hidden: usize,
    /// `[1, t, d]`, the table itself, or `[max(h, w), d/2]`, a line for every place of a row or column.
    pub shape: Vec<usize>,
    /// Its values.
    pub values: Vec<f32>,
}

// === impl Positions ===

impl Positions {
    /// The name of what is stored, in a checkpoint and in a graph.
    pub const NAME: &str = "pos_embed";

    /// Those of a model, which are DiT's sines and cosines.
    pub fn of(config: &ModelConfig) -> Self {
        let (grid, hidden) = (config.grid(), config.hidden);
        Self::store(grid, hidden, position_table(grid, hidden))
    }

    fn store(grid: Grid, hidden: usize, table: Vec<f32>) -> Self {
        let lines = if size_of_val(&table[..]) > WHOLE { lines(grid, hidden, &table) } else { None };
        let (shape, values) = match lines {
            Some(lines) => (vec![grid.width.max(grid.height), hidden / 2], lines),
            None => (vec![1, grid.tokens(), hidden], table),
        };
        Self { grid, hidden, shape, values }
    }

    /// Appends the table to a graph, as a value `[1, t, d]` of type `dtype`.
    pub fn append(&self, graph: &mut Graph, dtype: Dtype) -> Result<ValueId, GraphError> {
        let stored = |dtype| Type::new(dtype, Shape::new(self.shape.iter().copied()));
        if self.shape.len() == 3 {
            return graph.parameter(Self::NAME, stored(dtype));
        }
        // In f32, in which they are stored: a processor that cannot compute in f16 could not do it at load.
        let lines = graph.parameter(Self::NAME, stored(Dtype::F32))?; // [max(h, w), d/2]
        let Grid { height, width } = self.grid;
        let mut first = |name: &str, len: usize| match len == self.shape[0] {
            true => Ok(lines),
            false => graph.add(name, Op::Slice { axis: 0, start: 0, len }, &[lines]),
        };
        let cols = first("pos_embed.cols", width)?; // [w, d/2]
        let rows = first("pos_embed.rows", height)?; // [h, d/2]
        let column = Shape::new([height, 1, self.hidden / 2]);
        let rows = graph.add("pos_embed.rows.column", Op::Reshape(column), &[rows])?; // [h, 1, d/2]
        // Times one is a number's own bits.
        let mut repeat = |name: &str, lines: ValueId, times: [usize; 3]| {
            let ones = vec![1.0; times.iter().product()];
            let ones = graph.floats(&format!("{name}.ones"), Dtype::F32, &times, ones)?;
            graph.add(&format!("{name}.grid"), Op::Mul, &[lines, ones])
        };
        let cols = repeat("pos_embed.cols", cols, [height, 1, 1])?; // [h, w, d/2]
        let rows = repeat("pos_embed.rows", rows, [1, width, 1])?; // [h, w, d/2]
        let both = graph.add("pos_embed.grid", Op::Concat { axis: 2 }, &[cols, rows])?; // [h, w, d]
        let tokens = Shape::new([1, self.grid.tokens(), self.hidden]);
        let tokens = graph.add("pos_embed.tokens", Op::Reshape(tokens), &[both])?; // [1, t, d]
        match dtype {
            Dtype::F32 => Ok(tokens),
            _ => graph.add("pos_embed.cast", Op::Cast(dtype), &[tokens]),
        }
    }
}

/// The lines `[max(h, w), d/2]` of which a table `[t, d]` takes one for a token's column and one for its row, if these are
/// all that it says.
fn lines(grid: Grid, hidden: usize, table: &[f32]) -> Option<Vec<f32>> {
    let half = hidden / 2;
    let token = |y: usize, x: usize| &table[(y * grid.width + x) * hidden..][..hidden];
    let lines: Vec<f32> = match grid.width >= grid.height {
        true => (0..grid.width).flat_map(|x| &token(0, x)[..half]).copied().collect(),
        false => (0..grid.height).flat_map(|y| &token(y, 0)[half..]).copied().collect(),
    };
    let same = |a: &[f32], place: usize| {
        a.iter().zip(&lines[place * half..]).all(|(a, b)| a.to_bits() == b.to_bits())
    };
    let is_made_of_them = (0..grid.tokens()).all(|i| {
        let (y, x) = grid.position(i);
        same(&token(y, x)[..half], x) && same(&token(y, x)[half..], y)
    });
    (hidden.is_multiple_of(2) && is_made_of_them).then_some(lines)
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
        graph.output(table);
        let shape: Vec<i64> = positions.shape.iter().map(|&n| n as i64).collect();
        let stored = Tensor::from_slice(&positions.values).view(&shape[..]);
        let given = HashMap::from([("pos_embed".to_owned(), stored)]);
        Vec::try_from(evaluate(&graph, &given).unwrap().remove(0).view([-1])).unwrap()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn a_large_table_is_stored_as_a_line_a_place_and_the_same_bits() {
        for (grid, hidden) in [
            (Grid::new(32, 32), 48),
            (Grid::new(17, 40), 64),
            (Grid::new(40, 17), 64),
            (Grid::new(1, 300), 252),
            (Grid::new(300, 1), 60),
        ] {
            let table = position_table(grid, hidden);
            let positions = Positions::store(grid, hidden, table.clone());
            assert_eq!(positions.shape, [grid.height.max(grid.width), hidden / 2]);
            assert_eq!(positions.values.len(), positions.shape.iter().product::<usize>());
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
            assert_eq!(positions.shape, [1, grid.tokens(), hidden]);
            assert_eq!(bits(&positions.values), bits(&table));
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

//! Graphs of one attention operation each, to measure plans in a runtime: what `plan.rs` was chosen from, and what
//! the server's benchmark times. `qkv [n * tokens, 3 * hidden]` to
//! `attn.out [n, tokens, heads, head_dim]`.

use std::path::Path;

use prost::Message;
use windowpane_diffusion::{Grid, Plan, Tile, Window};

use super::attention::{Heads, WindowValues};
use super::graph::Graph;
use super::lower::lower;
use super::shape::{Dim, Dtype, Shape, Type};
use super::weights::WeightFile;
use crate::error::{Error, Result};

/// Sides of the square grids measured.
pub const GRIDS: [usize; 2] = [32, 16];

/// Windows measured, besides the global one.
pub const WINDOWS: [usize; 4] = [3, 5, 9, 13];

/// Tiles measured.
pub const TILES: [Tile; 4] =
    [Tile::square(2), Tile::square(4), Tile { height: 4, width: 8 }, Tile::square(8)];

/// Heads, and the width of each.
const HEADS: (usize, usize) = (6, 64);

/// One attention operation.
pub fn attention(window: Window, plan: Plan, grid: Grid) -> Result<Graph> {
    let (heads, head_dim) = HEADS;
    let heads = Heads { grid, heads, head_dim, batch: Dim::BATCH, dtype: Dtype::F32 };
    let mut graph = Graph::new();
    let rows = Shape::led_by(Dim::Batch(grid.tokens()), &[3 * heads.heads * head_dim]);
    let qkv = graph.input("qkv", Type::new(Dtype::F32, rows))?;
    let values = WindowValues::new(&mut graph, "window", window, plan, &heads)?;
    let attended = values.attend(&mut graph, "attn", qkv, &heads)?;
    graph.output(attended.out);
    Ok(graph)
}

/// Writes every measured graph into `dir`: `GRID.global.onnx`, `GRID.WINDOW.dense.onnx` and
/// `GRID.WINDOW.tilesHEIGHTxWIDTH.onnx`. Returns the number of files.
pub fn write_all(dir: &Path) -> Result<usize> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let mut written = 0;
    let mut write = |name: String, window, plan, grid| -> Result<()> {
        let model =
            lower(&attention(window, plan, grid)?, &WeightFile::new(), &name, "one attention operation")?;
        let path = dir.join(format!("{name}.onnx"));
        std::fs::write(&path, model.encode_to_vec()).map_err(Error::io(&path))?;
        written += 1;
        Ok(())
    };
    for grid in GRIDS.map(|side| Grid::new(side, side)) {
        let side = grid.height;
        write(format!("{side}.global"), Window::Global, Plan::Dense, grid)?;
        for window in WINDOWS {
            let local = Window::local(window)?;
            write(format!("{side}.{window}.dense"), local, Plan::Dense, grid)?;
            for tile in TILES {
                let name = format!("{side}.{window}.tiles{}x{}", tile.height, tile.width);
                write(name, local, Plan::Tiles(tile), grid)?;
            }
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tch::{Device, Kind, Tensor};

    use super::super::eval::evaluate;
    use super::*;

    #[test]
    fn every_plan_of_a_window_computes_the_same() {
        let _draws = crate::testing::seeded(4);
        let grid = Grid::new(8, 6);
        let qkv = Tensor::randn([2 * 48, 3 * 6 * 64], (Kind::Float, Device::Cpu));
        let given = HashMap::from([("qkv".to_owned(), qkv)]);
        let run = |plan| {
            let graph = attention(Window::local(3).unwrap(), plan, grid).unwrap();
            evaluate(&graph, &given).unwrap().remove(0)
        };
        let dense = run(Plan::Dense);
        for tile in TILES {
            let difference = (run(Plan::Tiles(tile)) - &dense).abs().max().double_value(&[]);
            assert!(difference < 1e-5, "tiles of {tile}: {difference}");
        }
    }

    #[test]
    fn all_graphs_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let written = write_all(dir.path()).unwrap();
        assert_eq!(written, GRIDS.len() * (1 + WINDOWS.len() * (1 + TILES.len())));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), written);
    }
}

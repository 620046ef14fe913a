//! Which plan is cheapest in ONNX Runtime? The exporter's own measured costs; the trainer has others, since
//! libtorch's backward pass makes tiles dearer there.

use windowpane_diffusion::window::CostModel;
use windowpane_diffusion::{ModelConfig, Plan};

/// Nanoseconds in ONNX Runtime 1.30 on one thread of an x86-64 CPU, per head of 64.
///
/// Least squares over the graphs of `single.rs` and more like them: 146 of one attention operation each, on grids
/// from 7×7 to 32×32, windows 3 to 17, tiles of 2, 4, 7 and 8, batch 4, each the fastest of 14 turns with subnormals
/// flushed. What decides is the ratios, which a slower machine keeps: on every grid the plan chosen was the fastest
/// measured or within the noise of it. At 32×32 tokens it took 1/8.9 of the masked layer's time at window 3, 1/6.2
/// at 5, 1/2.6 at 9 and 1/1.7 at 13; at 16×16, 1/2.8 at 3 and 1/2.0 at 5, and from 9 on dense layers win.
/// A collected key costs more than its copy, since the products pack it again; a tile by itself costs nothing that
/// could be told from noise.
///
/// CUDA has not been measured; its graphs use the same plans.
pub const CPU_COST: CostModel = CostModel {
    dense_pair: 4.3,
    mask_pair: 0.8,
    tile_pair: 5.0,
    gathered_key: 120.0,
    query: 90.0,
    tile: 0.0,
};

/// The cheapest plan of every layer.
pub fn plans(config: &ModelConfig) -> Vec<Plan> {
    config.windows.iter().map(|window| window.plan(config.grid(), &CPU_COST)).collect()
}

#[cfg(test)]
mod tests {
    use windowpane_diffusion::{Grid, Window};

    use super::*;

    #[test]
    fn plans_are_those_that_were_fastest() {
        let plan =
            |side: usize, window| Window::local(window).unwrap().plan(Grid::new(side, side), &CPU_COST);
        let tiles = |side| Plan::Tiles { side };
        let measured = [
            (32, [(3, tiles(4)), (5, tiles(4)), (9, tiles(8)), (13, tiles(8))]),
            (28, [(3, tiles(4)), (5, tiles(4)), (9, tiles(7)), (13, tiles(7))]),
            (16, [(3, tiles(4)), (5, tiles(4)), (9, Plan::Dense), (13, Plan::Dense)]),
            (14, [(3, tiles(2)), (5, tiles(7)), (9, Plan::Dense), (13, Plan::Dense)]),
            (7, [(3, Plan::Dense), (5, Plan::Dense), (9, Plan::Dense), (13, Plan::Dense)]),
        ];
        for (side, fastest) in measured {
            for (window, expected) in fastest {
                assert_eq!(plan(side, window), expected, "window {window} on {side}×{side}");
            }
        }
        assert_eq!(Window::Global.plan(Grid::new(32, 32), &CPU_COST), Plan::Dense);
    }
}

//! Which plan is cheapest in ONNX Runtime? The exporter's own measured costs; the trainer has others, since
//! libtorch's backward pass makes tiles dearer there.

use windowpane_diffusion::window::CostModel;
use windowpane_diffusion::{ModelConfig, Plan};

/// Nanoseconds of one thread of an x86-64 CPU (AMD EPYC, AVX2) in ONNX Runtime 1.30, per head of 64.
///
/// Fitted to 250 graphs like those of `single.rs`: grids from 7×7 to 32×32, windows 3 to 17, tiles from 2×4 to 8×8,
/// batch 4, subnormals flushed; each measured in processor time, the least of eight turns. On 37 pairs of grid and
/// window the plan chosen was within 8 % of the fastest, but for two: 16×16 at window 9, where dense stays (by 15 %),
/// and 14×14 at window 3 (by 20 % of two milliseconds); no plan chosen was slower than dense. A collected key costs
/// more than its copy, since the products pack it again.
///
/// With two threads at 32×32 tokens the plans take 1/8.1 of the masked layer's time at window 3, 1/6.4 at 5, 1/3.3 at 9
/// and 1/1.9 at 13; at 16×16, 1/3.0 at 3 and 1/1.8 at 5 (`cargo xtask bench window`). CUDA has not been measured; its graphs use the same plans.
pub const CPU_COST: CostModel = CostModel {
    dense_pair: 4.1,
    mask_pair: 0.4,
    tile_pair: 4.6,
    gathered_key: 100.0,
    query: 80.0,
    tile: 500.0,
};

/// The cheapest plan of every layer.
pub fn plans(config: &ModelConfig) -> Vec<Plan> {
    config.windows.iter().map(|window| window.plan(config.grid(), &CPU_COST)).collect()
}

#[cfg(test)]
mod tests {
    use windowpane_diffusion::{Grid, Tile, Window};

    use super::*;

    #[test]
    fn plans_are_those_that_were_chosen_by_measurement() {
        let plan =
            |side: usize, window| Window::local(window).unwrap().plan(Grid::new(side, side), &CPU_COST);
        let tiles = |height, width| Plan::Tiles(Tile { height, width });
        let dense = Plan::Dense;
        let known = [
            (32, [(3, tiles(4, 4)), (5, tiles(4, 4)), (9, tiles(4, 8)), (13, tiles(8, 8))]),
            (28, [(3, tiles(4, 4)), (5, tiles(4, 4)), (9, tiles(4, 7)), (13, tiles(7, 7))]),
            (16, [(3, tiles(4, 4)), (5, tiles(4, 4)), (9, dense), (13, dense)]),
            (14, [(3, tiles(4, 7)), (5, tiles(7, 7)), (9, dense), (13, dense)]),
            (7, [(3, dense), (5, dense), (9, dense), (13, dense)]),
        ];
        for (side, plans) in known {
            for (window, expected) in plans {
                assert_eq!(plan(side, window), expected, "window {window} on {side}×{side}");
            }
        }
        assert_eq!(Window::Global.plan(Grid::new(32, 32), &CPU_COST), Plan::Dense);
    }
}

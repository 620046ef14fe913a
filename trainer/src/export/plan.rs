//! Which plan is cheapest in ONNX Runtime? The exporter's own measured costs; the trainer has others, since
//! libtorch's backward pass makes tiles dearer there.

use windowpane_diffusion::window::CostModel;
use windowpane_diffusion::{ModelConfig, Plan};

/// Nanoseconds of one thread of an x86-64 CPU (AMD EPYC, AVX2) in ONNX Runtime 1.30, per head of 64.
///
/// Least squares over 146 graphs like those of `single.rs`: grids from 7×7 to 32×32, windows 3 to 17, tiles of 2, 4, 7
/// and 8, batch 4, subnormals flushed; each measured in processor time, the least of ten turns. On 38 pairs of grid and
/// window the plan chosen was within 7 % of the fastest, but for two of 14×14 and 8×8 tokens, where a whole layer takes
/// half a millisecond to two; no plan chosen was slower than dense. A collected key costs more than its copy, since
/// the products pack it again.
///
/// At 32×32 tokens the plans take 1/7.5 of the masked layer's time at window 3, 1/5.3 at 5, 1/2.7 at 9 and 1/1.9 at 13;
/// at 16×16, 1/3.1 at 3, 1/2.1 at 5, and from 9 on dense layers win. CUDA has not been measured; its graphs use the
/// same plans.
pub const CPU_COST: CostModel = CostModel {
    dense_pair: 4.1,
    mask_pair: 0.4,
    tile_pair: 5.0,
    gathered_key: 110.0,
    query: 80.0,
    tile: 300.0,
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
    fn plans_are_those_that_were_chosen_by_measurement() {
        let plan =
            |side: usize, window| Window::local(window).unwrap().plan(Grid::new(side, side), &CPU_COST);
        let tiles = |side| Plan::Tiles { side };
        let known = [
            (32, [(3, tiles(4)), (5, tiles(4)), (9, tiles(8)), (13, tiles(8))]),
            (28, [(3, tiles(4)), (5, tiles(4)), (9, tiles(7)), (13, tiles(7))]),
            (16, [(3, tiles(4)), (5, tiles(4)), (9, Plan::Dense), (13, Plan::Dense)]),
            (14, [(3, tiles(7)), (5, tiles(7)), (9, Plan::Dense), (13, Plan::Dense)]),
            (7, [(3, Plan::Dense), (5, Plan::Dense), (9, Plan::Dense), (13, Plan::Dense)]),
        ];
        for (side, plans) in known {
            for (window, expected) in plans {
                assert_eq!(plan(side, window), expected, "window {window} on {side}×{side}");
            }
        }
        assert_eq!(Window::Global.plan(Grid::new(32, 32), &CPU_COST), Plan::Dense);
    }
}

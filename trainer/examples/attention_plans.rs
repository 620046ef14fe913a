//! What does a window cost in training? Forward and backward of one attention operation in every plan, on 32×32 and 16×16
//! tokens: what `attention::trainer_plan` was chosen from. Six heads of 64, batch 4, in f32; on a GPU batch 64 in bf16.
//!
//! Run by `cargo run --release -p windowpane-trainer --example attention_plans`. The plans of a window take turns, so
//! that a busy moment of the machine meets all of them alike, and each cell is the fastest of its turns.

use std::time::Instant;

use tch::{Device, Kind, Tensor};
use windowpane_diffusion::{Grid, Plan, Tile, Window};
use windowpane_trainer::attention::{WindowedAttention, trainer_plan};
use windowpane_trainer::cuda;

/// Turns of every plan, where the first argument does not say how many.
const TURNS: usize = 12;

/// What is computed, where.
struct Setting {
    device: Device,
    kind: Kind,
    batch: i64,
    turns: usize,
}

fn main() -> anyhow::Result<()> {
    cuda::load();
    let device = Device::cuda_if_available();
    let (kind, batch) = if device.is_cuda() { (Kind::BFloat16, 64) } else { (Kind::Float, 4) };
    let turns = std::env::args().nth(1).map_or(Ok(TURNS), |turns| turns.parse())?;
    let setting = Setting { device, kind, batch, turns };
    let tiles = [(4, 4), (4, 8), (8, 8)].map(|(height, width)| Plan::Tiles(Tile { height, width }));
    let plans: Vec<Plan> = std::iter::once(Plan::Dense).chain(tiles).collect();
    println!(
        "{device:?}, {kind:?}, batch {batch}, {} threads; forward and backward in milliseconds, fastest of {turns} turns",
        tch::get_num_threads()
    );
    for side in [32, 16] {
        let grid = Grid::new(side, side);
        println!(
            "\n{side}×{side} tokens\n| window | masked dense | tiles of 4×4 | 4×8 | 8×8 | best tiles against the mask | chosen |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- |");
        for w in [3, 5, 7, 9, 11, 13] {
            let window = Window::local(w)?;
            let of = |&plan: &Plan| WindowedAttention::new(window, grid, plan, kind, device);
            let fastest = measure(&plans.iter().map(of).collect::<Vec<_>>(), grid, &setting);
            let best = fastest[1..].iter().copied().fold(f64::INFINITY, f64::min);
            let cells: Vec<_> = fastest.iter().map(|ms| format!("{ms:.1}")).collect();
            let chosen = match trainer_plan(window, grid) {
                Plan::Dense => "dense".to_owned(),
                Plan::Tiles(tile) => tile.to_string(),
            };
            println!("| {w} | {} | {:.1}× | {chosen} |", cells.join(" | "), fastest[0] / best);
        }
    }
    Ok(())
}

/// Milliseconds of each plan, the least of its turns.
fn measure(plans: &[WindowedAttention], grid: Grid, setting: &Setting) -> Vec<f64> {
    let shape = [setting.batch, 6, grid.tokens() as i64, 64];
    let random = || Tensor::randn(shape, (setting.kind, setting.device));
    let leaves = [random(), random(), random()].map(|x| x.set_requires_grad(true));
    let weight = random();
    let run = |plan: &WindowedAttention| {
        let [q, k, v] = &leaves;
        let loss = (plan.forward(q, k, v) * &weight).sum(Kind::Float); // ()
        let grads = Tensor::run_backward(&[loss], &[q, k, v], false, false);
        grads[0].double_value(&[0, 0, 0, 0]) // waits for the device
    };
    let mut fastest = vec![f64::INFINITY; plans.len()];
    for _ in 0..setting.turns {
        for (plan, fastest) in plans.iter().zip(&mut fastest) {
            run(plan); // what ran before has emptied the caches
            let start = Instant::now();
            run(plan);
            *fastest = fastest.min(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    fastest
}

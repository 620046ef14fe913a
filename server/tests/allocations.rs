//! A tick in the middle of things allocates no tensor: batch, prediction and every image's state are reused. A test binary
//! of its own, because it counts what the whole process allocates.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use windowpane_diffusion::{Sampler, SolverConfig, TimeGrid};
use windowpane_server::batcher::{Caller, Request};
use windowpane_server::sampler::{Trajectory, Unit};
use windowpane_server::spec::SampleSpec;
use windowpane_server::{App, Config};

/// Bytes of one row of `models/tiny`: nothing smaller is a tensor.
const ROW: u64 = 32 * 32 * 4;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Ticks in which everything that is made once is made, and then ticks that are counted.
const WARM: u64 = 20;
const COUNTED: u64 = 60;

#[test]
fn a_tick_allocates_no_tensor() {
    let _counts = dhat::Profiler::builder().testing().build();
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
    let app = App::open(Config { models, max_rows: 8, ..Config::default() })
        .unwrap_or_else(|error| panic!("{error}; `cargo xtask setup` gets what is missing"));
    for sampler in Sampler::ALL {
        for guidance_scale in [1.0, 2.0] {
            let bytes = in_the_middle(&app, sampler, guidance_scale);
            // The lists of who takes part, and what a metric's labels cost: less than the smallest tensor there is.
            assert!(
                bytes < ROW,
                "{sampler}, guidance {guidance_scale}: {bytes} bytes in a tick, where a row has {ROW}"
            );
        }
    }
    let most = dhat::HeapStats::get().max_bytes;
    assert!(most > 100 * ROW as usize, "the counter does not count: {most}");
    // The runtime's own end must not find a thread at work in it.
    let model = app.model(None).unwrap();
    app.stop();
    until(|| !model.batcher.is_alive());
}

/// Bytes that are allocated in a tick of images in the middle of their way, on the average.
fn in_the_middle(app: &App, sampler: Sampler, guidance_scale: f64) -> u64 {
    let model = app.model(None).unwrap();
    let solver = SolverConfig {
        sampler,
        grid: TimeGrid::Uniform,
        steps: 400,
        // Noise at every step, where the sampler can be told so.
        eta: if sampler == Sampler::Ddim { 1.0 } else { 0.0 },
        clip_x0: true,
        prediction: model.card.manifest.prediction,
        variance: model.card.manifest.variance,
    };
    let defaults = SampleSpec::defaults(&model.card);
    let evaluations = solver.build(&model.card.schedule).unwrap();
    let spec = Arc::new(SampleSpec { solver, evaluations, guidance_scale, ..defaults });
    let elements = model.batcher.elements();
    let image = |seed| Unit::Sample(Trajectory::new(Arc::clone(&spec), seed, elements));
    // More of them than fit into a tick of twelve rows.
    let images = if guidance_scale == 1.0 { 14 } else { 8 };
    let request = Request {
        caller: Caller::ANONYMOUS,
        fingerprint: 0,
        id: 0,
        deadline: None,
        reproducible: false,
        units: (0..images).map(image).collect(),
    };
    let ticks = app.metrics().ticks.with_label_values(&["tiny"]);
    let ticket = model.batcher.submit(request).unwrap();
    let first = ticks.get();
    // By then every image that has a place has begun, and every buffer has its size.
    until(|| ticks.get() >= first + WARM);
    let began = ticks.get();
    let before = dhat::HeapStats::get();
    until(|| ticks.get() >= first + WARM + COUNTED);
    let after = dhat::HeapStats::get();
    // Where this thread was held up there were more of them.
    let counted = (ticks.get() - began).max(COUNTED);
    drop(ticket);
    until(|| model.batcher.images() == 0);
    (after.total_bytes - before.total_bytes) / counted
}

fn until(is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(120), "waited in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}

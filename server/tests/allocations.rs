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

#[test]
fn a_tick_allocates_no_tensor() {
    let _counts = dhat::Profiler::builder().testing().build();
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
    let app = App::open(Config { models, max_rows: 8, ..Config::default() })
        .unwrap_or_else(|error| panic!("{error}; `cargo xtask setup` gets what is missing"));
    let model = app.model(None).unwrap();
    let solver = SolverConfig {
        sampler: Sampler::Ddim,
        grid: TimeGrid::Uniform,
        steps: 400,
        eta: 1.0,
        clip_x0: true,
        prediction: model.card.manifest.prediction,
        variance: model.card.manifest.variance,
    };
    let defaults = SampleSpec::defaults(&model.card);
    let evaluations = solver.build(&model.card.schedule).unwrap();
    // Guided, with noise at every step, and more of them than fit into a tick.
    let spec = Arc::new(SampleSpec { solver, evaluations, guidance_scale: 2.0, ..defaults });
    let elements = model.batcher.elements();
    let image = |seed| Unit::Sample(Trajectory::new(Arc::clone(&spec), seed, elements));
    let request = Request {
        caller: Caller::ANONYMOUS,
        fingerprint: 0,
        deadline: None,
        reproducible: false,
        units: (0..6).map(image).collect(),
    };
    let ticket = model.batcher.submit(request).unwrap();
    let ticks = app.metrics().ticks.with_label_values(&["tiny"]);
    let until = |count: u64| {
        let start = Instant::now();
        while ticks.get() < count {
            assert!(start.elapsed() < Duration::from_secs(120), "no ticks");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    // By then every image has had its turn, and every buffer its size.
    until(20);
    let before = dhat::HeapStats::get();
    until(120);
    let after = dhat::HeapStats::get();
    let bytes = after.total_bytes - before.total_bytes;
    // The lists of who takes part, and what a metric's labels cost: less than the smallest tensor there is.
    assert!(bytes / 100 < ROW, "{bytes} bytes in 100 ticks, where a row has {ROW}");
    assert!(after.max_bytes > 100 * ROW as usize, "the counter does not count: {after:?}");
    // The runtime's own end must not find a thread at work in it.
    drop(ticket);
    app.stop();
    while model.batcher.is_alive() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

//! The worker around the fake network: who shares a tick with whom, what a failure costs, and how work ends. What the
//! images are is tested on a real one, in `server/tests/batcher.rs` and in the suite.

use std::sync::Arc;
use std::time::Duration;

use windowpane_diffusion::{Sampler, SolverConfig, TimeGrid};

use super::*;
use crate::config::Config;
use crate::engine::StepBatch;
use crate::engine::fake::{Faults, Gate};
use crate::model::Model;
use crate::sampler::{Evaluate, Trajectory};
use crate::spec::SampleSpec;
use crate::testing::{manifest, with_insides};

mod load;
mod order;
mod study;

const CLASSES: [&str; 3] = ["Sneaker", "Boot", "Sandal"];

fn model(max_rows: usize, faults: Faults) -> (Model, Metrics) {
    let (config, metrics) = (Config { max_rows, ..Config::default() }, Metrics::new());
    (Model::fake(manifest("shoes", &CLASSES), faults, &config, &metrics).unwrap(), metrics)
}

/// A spec of the test model.
fn spec(model: &Model, sampler: Sampler, steps: usize, guidance_scale: f64, class: usize) -> Arc<SampleSpec> {
    let manifest = &model.card.manifest;
    let solver = SolverConfig {
        sampler,
        grid: TimeGrid::Uniform,
        steps,
        eta: if sampler == Sampler::Ddim { 0.5 } else { 0.0 },
        clip_x0: true,
        prediction: manifest.prediction,
        variance: manifest.variance,
    };
    Arc::new(SampleSpec {
        class: Some(class),
        label: class as i64,
        null_label: 3,
        guidance_scale,
        solver,
        evaluations: solver.build(&model.card.schedule).unwrap(),
    })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn request(model: &Model, spec: &Arc<SampleSpec>, seeds: &[u64]) -> Request {
    let elements = model.batcher.elements();
    let image = |&seed| Unit::Sample(Trajectory::new(Arc::clone(spec), seed, elements));
    Request {
        caller: Caller::ANONYMOUS,
        fingerprint: seeds[0],
        id: 0,
        deadline: None,
        reproducible: false,
        units: seeds.iter().map(image).collect(),
    }
}

fn submit(model: &Model, spec: &Arc<SampleSpec>, seeds: &[u64]) -> Result<Ticket, SubmitError> {
    model.batcher.submit(request(model, spec, seeds))
}

fn sample(model: &Model, spec: &Arc<SampleSpec>, seeds: &[u64]) -> Result<Vec<Sample>, SampleError> {
    block_on(submit(model, spec, seeds).unwrap().finish())
}

/// A fake model whose rows cost 5 ms each, with this many seconds of work at most.
fn slow(max_backlog: u64) -> (Model, Metrics) {
    gated(max_backlog, &Gate::default())
}

/// The same, whose calls wait while the gate is closed.
fn gated(max_backlog: u64, gate: &Gate) -> (Model, Metrics) {
    let faults = Faults { row_delay: Duration::from_millis(5), gate: gate.clone(), ..Faults::default() };
    let max_backlog = Duration::from_secs(max_backlog);
    let (config, metrics) = (Config { max_rows: 16, max_backlog, ..Config::default() }, Metrics::new());
    (Model::fake(manifest("shoes", &CLASSES), faults, &config, &metrics).unwrap(), metrics)
}

#[test]
fn images_share_ticks_whatever_their_sampler() {
    let gate = Gate::default();
    let (model, metrics) = model(32, Faults { gate: gate.clone(), ..Faults::default() });
    gate.close();
    block_on(async {
        let tickets: Vec<_> = Sampler::ALL
            .iter()
            .map(|&sampler| submit(&model, &spec(&model, sampler, 20, 2.0, 0), &[1]).unwrap())
            .collect();
        gate.open();
        for ticket in tickets {
            ticket.finish().await.unwrap();
        }
    });
    let rows = metrics.tick_rows.with_label_values(&["shoes"]);
    let mean = rows.get_sample_sum() / rows.get_sample_count() as f64;
    // Six guided images are twelve rows; Heun's, with twice the evaluations, is alone for the second half.
    assert!(mean > 5.0, "{mean}");
}

#[test]
fn a_small_tick_has_a_cause() {
    let fill = worker::Fill { room: 16, within: 16, rows: 16, all: false, pinned: None };
    for (fill, cause) in [
        (fill, None),
        (worker::Fill { rows: 3, all: true, ..fill }, Some("demand")),
        // A guided pair in front of the last row.
        (worker::Fill { rows: 15, ..fill }, Some("turn")),
        (worker::Fill { rows: 7, within: 8, pinned: Some(8), ..fill }, Some("pinned")),
        (worker::Fill { rows: 4, within: 8, pinned: Some(8), ..fill }, Some("turn")),
        (worker::Fill { rows: 15, pinned: Some(16), ..fill }, Some("turn")),
        (worker::Fill { rows: 4, within: 4, ..fill }, Some("memory")),
        (worker::Fill { rows: 3, within: 4, ..fill }, Some("memory")),
        (worker::Fill { rows: 3, within: 8, ..fill }, Some("turn")),
        (worker::Fill { rows: 3, within: 4, all: true, ..fill }, Some("demand")),
    ] {
        assert_eq!(fill.why_small(), cause, "{fill:?}");
    }
    // Three guided images, of which two fit into five rows; and then the third.
    let (model, metrics) = model(5, Faults::default());
    sample(&model, &spec(&model, Sampler::Ddim, 4, 2.0, 0), &[1, 2, 3]).unwrap();
    let small = |cause| metrics.small_ticks.with_label_values(&["shoes", cause]).get();
    let ticks = metrics.ticks.with_label_values(&["shoes"]).get();
    assert_eq!((small("turn") + small("demand"), small("pinned")), (ticks, 0));
    assert!(small("turn") >= 4 && small("demand") >= 1, "{} {}", small("turn"), small("demand"));
    // Two and four rows are timed in the bucket of five.
    let timed = |bucket| metrics.tick.with_label_values(&["shoes", bucket]).get_sample_count();
    assert_eq!((timed("1"), timed("5"), timed("8")), (0, ticks, 0));
}

#[test]
fn a_failed_tick_costs_its_images_and_nothing_else() {
    for (faults, cause) in [
        (Faults { error_at: vec![3], ..Faults::default() }, "error"),
        (Faults { panic_at: vec![3], ..Faults::default() }, "panic"),
        // What one failure left behind, and every call after it would meet.
        (Faults { broken_from: Some(3), ..Faults::default() }, "error"),
    ] {
        let (model, metrics) = model(32, faults);
        let spec = spec(&model, Sampler::Ddim, 10, 1.0, 0);
        let error = sample(&model, &spec, &[1]).unwrap_err();
        assert!(matches!(&error, SampleError::Engine(text) if text.contains("call 3")), "{error}");
        assert_eq!(metrics.failures.with_label_values(&["shoes", cause]).get(), 1);
        // The thread goes on, with an engine that was built anew.
        assert_eq!(sample(&model, &spec, &[1]).unwrap().len(), 1);
        assert_eq!(metrics.rebuilds.with_label_values(&["shoes", "done"]).get(), 1);
        assert!(model.batcher.is_alive());
        assert_eq!(model.batcher.images(), 0);
    }
}

#[test]
fn of_four_images_that_take_turns_those_of_the_failed_tick_fail_and_no_others() {
    let values = |samples: Vec<Sample>| samples.into_iter().map(|sample| sample.values).collect::<Vec<_>>();
    let (healthy, _) = model(2, Faults::default());
    let spec = spec(&healthy, Sampler::Ddim, 10, 1.0, 0);
    // Two rows a tick, and everybody is somebody else: the first two and the last two take turns.
    for (call, failed) in [(5, [1, 2]), (6, [3, 4])] {
        let error = Faults { error_at: vec![call], ..Faults::default() };
        let panic = Faults { panic_at: vec![call], ..Faults::default() };
        for (faults, cause) in [(error, "error"), (panic, "panic")] {
            let gate = Gate::default();
            let (model, metrics) = model(2, Faults { gate: gate.clone(), ..faults });
            gate.close();
            // Call 0 is this one's alone, and waits until the four are there.
            let first = submit(&model, &self::spec(&model, Sampler::Ddim, 1, 1.0, 0), &[9]).unwrap();
            while model.batcher.device_busy_for().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let tickets: Vec<_> = (1..=4_u32)
                .map(|i| Request { caller: Caller(i), ..request(&model, &spec, &[i.into()]) })
                .map(|request| model.batcher.submit(request).unwrap())
                .collect();
            gate.open();
            assert!(block_on(first.finish()).is_ok());
            for (seed, ticket) in (1..).zip(tickets) {
                match block_on(ticket.finish()) {
                    Err(SampleError::Engine(words)) => {
                        assert!(failed.contains(&seed) && words.contains(&format!("call {call}")), "{words}");
                    }
                    ended => {
                        assert!(!failed.contains(&seed), "image {seed} was in the tick that failed");
                        let alone = sample(&healthy, &spec, &[seed]).unwrap();
                        assert_eq!(values(ended.unwrap()), values(alone), "image {seed}");
                    }
                }
            }
            assert_eq!(metrics.failures.with_label_values(&["shoes", cause]).get(), 1);
            assert_eq!(model.batcher.images(), 0);
        }
    }
}

#[test]
fn a_tick_for_which_the_device_lacks_the_memory_fails_and_the_next_are_smaller() {
    let (model, metrics) = model(8, Faults { most_rows: Some(2), ..Faults::default() });
    let spec = spec(&model, Sampler::Ddim, 10, 1.0, 0);
    // The eight of a request are there at once; half of them would be too many as well.
    for (failures, rows) in [(1, 8), (2, 4)] {
        let error = sample(&model, &spec, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap_err();
        assert!(
            matches!(&error, SampleError::Engine(text) if text.contains(&format!("{rows} rows"))),
            "{error}"
        );
        assert_eq!(metrics.failures.with_label_values(&["shoes", "memory"]).get(), failures);
    }
    while model.batcher.images() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let before = metrics.ticks.with_label_values(&["shoes"]).get();
    // From then on they are drawn by twos, and are what they are by eights.
    let drawn = sample(&model, &spec, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    let (healthy, _) = self::model(8, Faults::default());
    let expected = sample(&healthy, &spec, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    assert!(drawn.iter().zip(&expected).all(|(drawn, expected)| drawn.values == expected.values));
    assert_eq!(metrics.failures.with_label_values(&["shoes", "memory"]).get(), 2);
    assert_eq!(metrics.ticks.with_label_values(&["shoes"]).get() - before, 4 * 10);
    // Where three of four twos wait it is for memory; the last have no others beside them.
    assert!(metrics.small_ticks.with_label_values(&["shoes", "memory"]).get() >= 20);
    assert!(model.batcher.is_alive());
    assert_eq!(model.batcher.images(), 0);
}

#[test]
fn an_engine_that_cannot_be_built_anew_stays_what_it_was() {
    let faults = Faults { error_at: vec![3], other_when_rebuilt: true, ..Faults::default() };
    let (model, metrics) = model(32, faults);
    let spec = spec(&model, Sampler::Ddim, 10, 1.0, 0);
    assert!(sample(&model, &spec, &[1]).is_err());
    assert_eq!(sample(&model, &spec, &[1]).unwrap().len(), 1);
    let rebuilds = |outcome: &str| metrics.rebuilds.with_label_values(&["shoes", outcome]).get();
    assert_eq!((rebuilds("done"), rebuilds("failed")), (0, 1));
}

#[test]
fn a_row_that_is_not_finite_fails_alone() {
    let gate = Gate::default();
    let (model, metrics) = model(32, Faults { nan_for: Some(2), gate: gate.clone(), ..Faults::default() });
    let (good, bad) = (spec(&model, Sampler::Ddim, 10, 2.0, 0), spec(&model, Sampler::Ddim, 10, 2.0, 2));
    gate.close();
    block_on(async {
        let good = submit(&model, &good, &[1, 2]).unwrap();
        let bad = submit(&model, &bad, &[3]).unwrap();
        gate.open();
        assert_eq!(bad.finish().await, Err(SampleError::NotFinite));
        assert_eq!(good.finish().await.unwrap().len(), 2);
    });
    assert_eq!(metrics.failures.with_label_values(&["shoes", "not_finite"]).get(), 1);
    // Two guided images, ten times; and the two rows that failed were in one of those ticks.
    let rows = metrics.tick_rows.with_label_values(&["shoes"]);
    assert_eq!((rows.get_sample_count(), rows.get_sample_sum()), (10, 42.0));
}

#[test]
fn who_leaves_frees_the_rows() {
    let (model, metrics) = model(2, Faults { delay: Duration::from_millis(2), ..Faults::default() });
    let long = spec(&model, Sampler::Ddim, 100, 2.0, 0);
    let ticks = || metrics.ticks.with_label_values(&["shoes"]).get();
    block_on(async {
        let abandoned = submit(&model, &long, &(0..50).collect::<Vec<_>>()).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(abandoned);
        // 50 images of 100 ticks would be five thousand.
        let before = ticks();
        submit(&model, &spec(&model, Sampler::Ddim, 2, 1.0, 0), &[1]).unwrap().finish().await.unwrap();
        // Its own two, and those that were under way.
        assert!(ticks() - before <= 6, "{} ticks", ticks() - before);
    });
    assert_eq!(model.batcher.images(), 0);
    assert_eq!(metrics.cancellations.with_label_values(&["shoes", "disconnect"]).get(), 50);
}

#[test]
fn a_handle_that_is_dropped_lets_the_work_finish() {
    let (model, _) = slow(60);
    let spec = spec(&model, Sampler::Ddim, 10, 1.0, 0);
    let ticket = submit(&model, &spec, &[1]).unwrap();
    drop(model);
    assert_eq!(block_on(ticket.finish()).unwrap().len(), 1);
}

#[test]
fn stopping_answers_everybody() {
    let (model, metrics) = model(2, Faults { delay: Duration::from_millis(100), ..Faults::default() });
    let spec = spec(&model, Sampler::Ddim, 100, 1.0, 0);
    block_on(async {
        let ticket = submit(&model, &spec, &[1, 2, 3]).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        model.batcher.stop();
        assert_eq!(ticket.finish().await, Err(SampleError::ShuttingDown));
        while model.batcher.is_alive() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(submit(&model, &spec, &[1]).unwrap_err(), SubmitError::Ended);
    });
    assert_eq!(metrics.cancellations.with_label_values(&["shoes", "shutdown"]).get(), 3);
    assert_eq!(model.batcher.images(), 0);
}

#[test]
fn a_worker_that_dies_is_waited_for_by_nobody() {
    let (model, _) = model(8, Faults::default());
    let spec = spec(&model, Sampler::Ddim, 4, 2.0, 0);
    // A unit of the wrong size is a defect that no request can reach; it ends the thread, outside the engine's call.
    let unit = Unit::Evaluate(Evaluate::new(vec![0.0; 3], 0.0, 0));
    let ticket = model.batcher.submit(Request { units: vec![unit], ..request(&model, &spec, &[1]) }).unwrap();
    assert_eq!(block_on(ticket.finish()), Err(SampleError::Died));
    while model.batcher.is_alive() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(submit(&model, &spec, &[1]).unwrap_err(), SubmitError::Died);
}

//! The worker around the fake network: reproducibility in company, and what a failure costs.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use windowpane_diffusion::{Sampler, SolverConfig, TimeGrid};

use super::*;
use crate::config::Config;
use crate::engine::fake::{FakeDenoiser, Faults, Gate};
use crate::engine::{Denoiser, StepBatch};
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
fn an_image_of_the_class_comes_out() {
    let (model, metrics) = model(32, Faults::default());
    let spec = spec(&model, Sampler::Ddim, 20, 1.0, 1);
    let image = sample(&model, &spec, &[5]).unwrap().remove(0);
    // The fake's images are its class's mean give or take 0.05.
    let fake = crate::engine::fake::FakeDenoiser::new(model.card.schedule.clone(), 1, 3);
    for (i, value) in image.values.iter().enumerate() {
        assert!((f64::from(*value) - fake.mean(1, i)).abs() < 0.3, "{i}: {value}");
    }
    assert_eq!(metrics.steps.with_label_values(&["shoes"]).get(), 20);
    assert_eq!(metrics.images.with_label_values(&["shoes"]).get(), 1);
    assert_eq!(metrics.small_ticks.with_label_values(&["shoes", "demand"]).get(), 20);
    assert_eq!((model.batcher.standing().rows, model.batcher.images()), (0, 0));
}

#[test]
fn image_i_is_the_single_image_of_seed_plus_i() {
    let (model, _) = model(5, Faults::default());
    let spec = spec(&model, Sampler::EulerAncestral, 6, 3.0, 0);
    let together = sample(&model, &spec, &[10, 11, 12, 13]).unwrap();
    for image in together {
        let alone = sample(&model, &spec, &[image.seed]).unwrap().remove(0);
        assert_eq!(alone.values, image.values, "seed {}", image.seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Random company: other samplers, steps, guidance, classes and seeds, of which some leave early; ticks too small
    /// for all. Every image that is waited for has the bits it has alone.
    #[test]
    fn company_changes_no_bit(
        requests in prop::collection::vec(
            (0..6usize, 1..12usize, 0..2u8, 0..3usize, 0..1000u64, 1..4u64, prop::bool::weighted(0.2)), 1..12),
        max_rows in 2..12usize,
    ) {
        let (crowded, _) = model(max_rows, Faults::default());
        let (quiet, _) = model(32, Faults::default());
        block_on(async {
            let mut waiting = Vec::new();
            for &(sampler, steps, guided, class, seed, n, leaves) in &requests {
                let guidance = if guided == 1 { 2.5 } else { 1.0 };
                let spec = spec(&crowded, Sampler::ALL[sampler], steps, guidance, class);
                let seeds: Vec<u64> = (seed..seed + n).collect();
                let ticket = submit(&crowded, &spec, &seeds).unwrap();
                if !leaves {
                    waiting.push((spec, ticket));
                }
            }
            for (spec, ticket) in waiting {
                for image in ticket.finish().await.unwrap() {
                    let alone = submit(&quiet, &spec, &[image.seed]).unwrap().finish().await.unwrap();
                    prop_assert_eq!(&alone[0].values, &image.values);
                }
            }
            Ok(())
        })?;
    }
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
    let fill = worker::Fill { room: 16, rows: 16, all: false, pinned: None };
    for (fill, cause) in [
        (fill, None),
        (worker::Fill { rows: 3, all: true, ..fill }, Some("demand")),
        // A guided pair in front of the last row.
        (worker::Fill { rows: 15, ..fill }, Some("turn")),
        (worker::Fill { rows: 7, pinned: Some(8), ..fill }, Some("pinned")),
        (worker::Fill { rows: 4, pinned: Some(8), ..fill }, Some("turn")),
        (worker::Fill { rows: 15, pinned: Some(16), ..fill }, Some("turn")),
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
    let faults = Faults { nan_for: Some(2), delay: Duration::from_millis(1), ..Faults::default() };
    let (model, metrics) = model(32, faults);
    let (good, bad) = (spec(&model, Sampler::Ddim, 10, 2.0, 0), spec(&model, Sampler::Ddim, 10, 2.0, 2));
    block_on(async {
        let good = submit(&model, &good, &[1, 2]).unwrap();
        let bad = submit(&model, &bad, &[3]).unwrap();
        assert_eq!(bad.finish().await, Err(SampleError::NotFinite));
        assert_eq!(good.finish().await.unwrap().len(), 2);
    });
    assert_eq!(metrics.failures.with_label_values(&["shoes", "not_finite"]).get(), 1);
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
fn who_watches_sees_the_steps() {
    let (model, _) = model(8, Faults::default());
    let spec = spec(&model, Sampler::Heun, 6, 2.0, 1);
    let unit = Trajectory::new(Arc::clone(&spec), 7, model.batcher.elements()).watch(Arc::new([0, 4, 10]));
    let mut ticket = model
        .batcher
        .submit(Request { units: vec![Unit::Sample(unit)], ..request(&model, &spec, &[7]) })
        .unwrap();
    let (mut seen, mut last) = (Vec::new(), None);
    while let Some(event) = block_on(ticket.next()) {
        match event.unwrap() {
            Event::Frame { unit: 0, frame } => seen.push((frame.evaluation, frame.step, frame)),
            Event::Frame { .. } => panic!("one image has frames of position 0"),
            Event::Done { unit, sample } => last = Some((unit, sample)),
        }
    }
    assert_eq!(seen.iter().map(|&(e, s, _)| (e, s)).collect::<Vec<_>>(), [(0, 0), (4, 2), (10, 5)]);
    let (position, sample) = last.unwrap();
    // The last evaluation's x is the image.
    assert_eq!((position, &sample.values), (0, &seen[2].2.x));
    assert_eq!(seen[2].2.x0.len(), sample.values.len());
}

#[test]
fn a_given_beginning_and_a_row_that_is_only_evaluated() {
    let (model, _) = model(8, Faults::default());
    let spec = spec(&model, Sampler::Ddim, 6, 2.0, 1);
    let elements = model.batcher.elements();
    let noise = windowpane_diffusion::noise::normal(7, windowpane_diffusion::noise::INITIAL, elements);
    let units = vec![
        Unit::Sample(Trajectory::new(Arc::clone(&spec), 7, elements)),
        Unit::Sample(Trajectory::new(Arc::clone(&spec), 7, elements).from_x(noise.clone())),
        Unit::Evaluate(Evaluate::new(noise.clone(), 5.5, 1)),
    ];
    let request = Request { units, ..request(&model, &spec, &[7]) };
    let samples = block_on(model.batcher.submit(request).unwrap().finish()).unwrap();
    assert_eq!(samples[0].values, samples[1].values);
    let mut fake = FakeDenoiser::new(model.card.schedule.clone(), 1, 3);
    let (mut batch, mut expected) = (StepBatch::new(model.card.shape()), Vec::new());
    batch.push(&noise, 5.5, 1);
    fake.denoise(&batch, &mut expected).unwrap();
    assert_eq!(samples[2].values, expected);
}

/// A network whose bits depend on the batch's size: only a request that insists gets the same bits in any company.
#[test]
fn a_request_that_insists_is_held_to_one_bucket() {
    let (model, metrics) = model(8, Faults { sized: true, ..Faults::default() });
    let spec = spec(&model, Sampler::Ddim, 10, 1.0, 0);
    let insisting = |seed| Request { reproducible: true, ..request(&model, &spec, &[seed]) };
    block_on(async {
        let alone = model.batcher.submit(insisting(1)).unwrap().finish().await.unwrap();
        assert!(metrics.padding.with_label_values(&["shoes"]).get() >= 70);
        let free = submit(&model, &spec, &[1]).unwrap().finish().await.unwrap();
        assert_ne!(alone[0].values, free[0].values, "the fake is not sized");
        for company in [1, 3, 6, 20] {
            let others = submit(&model, &spec, &(100..100 + company).collect::<Vec<_>>()).unwrap();
            let again = model.batcher.submit(insisting(1)).unwrap().finish().await.unwrap();
            assert_eq!(alone[0].values, again[0].values, "{company}");
            others.finish().await.unwrap();
        }
    });
}

#[test]
fn the_baselines_give_the_same_images() {
    let (ours, _) = model(8, Faults::default());
    let spec = spec(&ours, Sampler::Heun, 10, 2.0, 0);
    let expected = sample(&ours, &spec, &[1, 2, 3, 4, 5, 6]).unwrap();
    for scheduling in [Scheduling::Serial, Scheduling::Request { delay: Duration::from_millis(5) }] {
        let config = Config { max_rows: 8, scheduling, ..Config::default() };
        let model =
            Model::fake(manifest("shoes", &CLASSES), Faults::default(), &config, &Metrics::new()).unwrap();
        let samples = block_on(async {
            let tickets: Vec<_> = (1..7).map(|seed| submit(&model, &spec, &[seed]).unwrap()).collect();
            let mut samples = Vec::new();
            for ticket in tickets {
                samples.extend(ticket.finish().await.unwrap());
            }
            samples
        });
        let values = |samples: &[Sample]| samples.iter().map(|s| s.values.clone()).collect::<Vec<_>>();
        assert_eq!(values(&samples), values(&expected), "{scheduling:?}");
    }
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

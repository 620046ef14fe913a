//! The worker around the fake network: reproducibility in company, and what a failure costs.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use windowpane_diffusion::{Sampler, SolverConfig, TimeGrid};

use super::*;
use crate::config::Config;
use crate::engine::fake::Faults;
use crate::model::Model;
use crate::testing::manifest;

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

fn sample(model: &Model, spec: &Arc<SampleSpec>, seeds: &[u64]) -> Result<Vec<Sample>, SampleError> {
    block_on(model.batcher.submit(spec, seeds).unwrap().finish())
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
    assert_eq!((metrics.trajectories.with_label_values(&["shoes"]).get(), model.batcher.images()), (0, 0));
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
                let ticket = crowded.batcher.submit(&spec, &seeds).unwrap();
                if !leaves {
                    waiting.push((spec, ticket));
                }
            }
            for (spec, ticket) in waiting {
                for image in ticket.finish().await.unwrap() {
                    let alone = quiet.batcher.submit(&spec, &[image.seed]).unwrap().finish().await.unwrap();
                    prop_assert_eq!(&alone[0].values, &image.values);
                }
            }
            Ok(())
        })?;
    }
}

#[test]
fn images_share_ticks_whatever_their_sampler() {
    let slow = Faults { delay: Duration::from_millis(5), ..Faults::default() };
    let (model, metrics) = model(32, slow);
    block_on(async {
        let tickets: Vec<_> = Sampler::ALL
            .iter()
            .map(|&sampler| model.batcher.submit(&spec(&model, sampler, 20, 2.0, 0), &[1]).unwrap())
            .collect();
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
fn a_failed_tick_costs_its_images_and_nothing_else() {
    for (faults, cause) in [
        (Faults { error_at: vec![3], ..Faults::default() }, "error"),
        (Faults { panic_at: vec![3], ..Faults::default() }, "panic"),
    ] {
        let (model, metrics) = model(32, faults);
        let spec = spec(&model, Sampler::Ddim, 10, 1.0, 0);
        let error = sample(&model, &spec, &[1]).unwrap_err();
        assert!(matches!(&error, SampleError::Engine(text) if text.contains("call 3")), "{error}");
        assert_eq!(metrics.failures.with_label_values(&["shoes", cause]).get(), 1);
        // The thread goes on.
        assert_eq!(sample(&model, &spec, &[1]).unwrap().len(), 1);
        assert!(model.batcher.is_alive());
        assert_eq!(model.batcher.images(), 0);
    }
}

#[test]
fn a_row_that_is_not_finite_fails_alone() {
    let faults = Faults { nan_for: Some(2), delay: Duration::from_millis(1), ..Faults::default() };
    let (model, metrics) = model(32, faults);
    let (good, bad) = (spec(&model, Sampler::Ddim, 10, 2.0, 0), spec(&model, Sampler::Ddim, 10, 2.0, 2));
    block_on(async {
        let good = model.batcher.submit(&good, &[1, 2]).unwrap();
        let bad = model.batcher.submit(&bad, &[3]).unwrap();
        assert_eq!(bad.finish().await, Err(SampleError::NotFinite));
        assert_eq!(good.finish().await.unwrap().len(), 2);
    });
    assert_eq!(metrics.failures.with_label_values(&["shoes", "not_finite"]).get(), 1);
}

#[test]
fn who_leaves_frees_the_rows() {
    let (model, metrics) = model(2, Faults { delay: Duration::from_millis(2), ..Faults::default() });
    let long = spec(&model, Sampler::Ddim, 100, 2.0, 0);
    block_on(async {
        let abandoned = model.batcher.submit(&long, &(0..50).collect::<Vec<_>>()).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(abandoned);
        // 50 images of 100 ticks would take ten seconds.
        let start = Instant::now();
        model.batcher.submit(&spec(&model, Sampler::Ddim, 2, 1.0, 0), &[1]).unwrap().finish().await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    });
    assert_eq!(model.batcher.images(), 0);
    assert_eq!(metrics.cancellations.with_label_values(&["shoes", "disconnect"]).get(), 50);
}

#[test]
fn a_full_queue_refuses_and_says_how_long() {
    let config = Config { queue_limit: 4, max_rows: 2, ..Config::default() };
    let faults = Faults { delay: Duration::from_millis(2), ..Faults::default() };
    let model = Model::fake(manifest("shoes", &CLASSES), faults, &config, &Metrics::new()).unwrap();
    let spec = spec(&model, Sampler::Ddim, 50, 1.0, 0);
    block_on(async {
        let running = model.batcher.submit(&spec, &[1, 2, 3, 4]).unwrap();
        tokio::time::sleep(Duration::from_millis(40)).await;
        let refused = model.batcher.submit(&spec, &[5]).unwrap_err();
        let SubmitError::Overloaded { waiting: 4, limit: 4, backlog } = refused else { panic!("{refused}") };
        // 4 images of 50 rows at 1 ms a row, less what is done.
        assert!(backlog > Duration::from_millis(20) && backlog < Duration::from_secs(2), "{backlog:?}");
        running.finish().await.unwrap();
        model.batcher.submit(&spec, &[5]).unwrap().finish().await.unwrap();
    });
}

#[test]
fn stopping_answers_everybody() {
    let (model, metrics) = model(2, Faults { delay: Duration::from_millis(5), ..Faults::default() });
    let spec = spec(&model, Sampler::Ddim, 100, 1.0, 0);
    block_on(async {
        let ticket = model.batcher.submit(&spec, &[1, 2, 3]).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        model.batcher.stop();
        assert_eq!(ticket.finish().await, Err(SampleError::ShuttingDown));
        while model.batcher.is_alive() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(model.batcher.submit(&spec, &[1]).unwrap_err(), SubmitError::Ended);
    });
    assert_eq!(metrics.cancellations.with_label_values(&["shoes", "shutdown"]).get(), 3);
    assert_eq!(model.batcher.images(), 0);
}

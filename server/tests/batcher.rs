//! The worker around ONNX Runtime and `models/tiny`, value for value: an image has the same bits in any company and in
//! ticks of any size, whoever watches sees its steps, and a row that is only evaluated is the trainer's own answer. What
//! comes out over HTTP is the suite's business; the worker's failures are tested beside it, with a network that fails on
//! demand.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use safetensors::SafeTensors;
use windowpane_diffusion::manifest::Role;
use windowpane_diffusion::{Sampler, SolverConfig, TimeGrid, noise};
use windowpane_server::batcher::{Caller, Event, Request, Sample, Ticket};
use windowpane_server::model::Model;
use windowpane_server::sampler::{Evaluate, Trajectory, Unit};
use windowpane_server::spec::SampleSpec;
use windowpane_server::{App, Config};

/// `models/tiny` in ticks of at most so many rows.
struct Tiny {
    app: App,
    model: Arc<Model>,
}

// === impl Tiny ===

impl Tiny {
    fn open(max_rows: usize) -> Self {
        let app = App::open(Config { models: package(), max_rows, ..Config::default() })
            .unwrap_or_else(|error| panic!("{error}; `cargo xtask setup` gets what is missing"));
        let model = app.model(None).unwrap_or_else(|error| panic!("{error:?}"));
        Self { app, model }
    }

    /// What an image of this class is made by.
    fn spec(&self, sampler: Sampler, steps: usize, guidance_scale: f64, class: usize) -> Arc<SampleSpec> {
        let manifest = &self.model.card.manifest;
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
            null_label: manifest.config.null_class() as i64,
            guidance_scale,
            evaluations: solver.build(&self.model.card.schedule).unwrap(),
            solver,
        })
    }

    fn image(&self, spec: &Arc<SampleSpec>, seed: u64) -> Trajectory {
        Trajectory::new(Arc::clone(spec), seed, self.model.batcher.elements())
    }

    fn submit(&self, units: Vec<Unit>) -> Ticket {
        let (caller, reproducible) = (Caller::ANONYMOUS, false);
        let request = Request { caller, fingerprint: 0, id: 0, deadline: None, reproducible, units };
        self.model.batcher.submit(request).unwrap()
    }

    fn draw(&self, spec: &Arc<SampleSpec>, seeds: impl Iterator<Item = u64>) -> Ticket {
        self.submit(seeds.map(|seed| Unit::Sample(self.image(spec, seed))).collect())
    }
}

/// The runtime's own end must not find a thread at work in it.
impl Drop for Tiny {
    fn drop(&mut self) {
        self.app.stop();
        let start = Instant::now();
        while self.model.batcher.is_alive() && start.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tiny")
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn finish(ticket: Ticket) -> Vec<Sample> {
    block_on(ticket.finish()).unwrap()
}

/// Random company: other samplers, steps, guidance, classes and seeds, of which some leave under way; ticks too small for
/// all. Every image that is waited for has the bits it has alone, in ticks of any size.
#[test]
fn company_changes_no_bit() {
    // Fewer rows than many a request has, a number that guided pairs do not fill, and one that is no bucket elsewhere.
    let crowded = [2, 5, 11].map(Tiny::open);
    let quiet = Tiny::open(16);
    assert_eq!(quiet.model.served.determinism.relative_difference, 0.0, "it is measured to be so");
    let one = (
        prop::sample::select(&Sampler::ALL[..]),
        1..6_usize,
        any::<bool>(),
        0..4_usize,
        0..1000_u64,
        1..4_u64,
        prop::bool::weighted(0.2),
    );
    let strategy = (prop::sample::select(&[0_usize, 1, 2][..]), prop::collection::vec(one, 1..9));
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    let passed = TestRunner::new(config).run(&strategy, |(which, requests)| {
        let crowded = &crowded[which];
        let (mut waiting, mut leaving) = (Vec::new(), Vec::new());
        for (sampler, steps, is_guided, class, seed, n, leaves) in requests {
            let spec = crowded.spec(sampler, steps, if is_guided { 2.5 } else { 1.0 }, class);
            let ticket = crowded.draw(&spec, seed..seed + n);
            if leaves { leaving.push(ticket) } else { waiting.push((spec, ticket)) }
        }
        for (spec, ticket) in waiting {
            for image in finish(ticket) {
                let alone = finish(quiet.draw(&spec, std::iter::once(image.seed)));
                prop_assert_eq!(&alone[0].values, &image.values);
            }
            // Those that leave do so after the first one that is waited for.
            leaving.clear();
        }
        Ok(())
    });
    passed.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn who_watches_sees_the_steps() {
    let tiny = Tiny::open(4);
    let spec = tiny.spec(Sampler::Heun, 6, 2.0, 1);
    let watched = tiny.image(&spec, 7).watch(Arc::new([0, 4, 10]));
    let mut ticket = tiny.submit(vec![Unit::Sample(watched)]);
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
    assert_ne!(seen[0].2.x, seen[2].2.x);
}

#[test]
fn a_given_beginning_and_a_row_that_is_only_evaluated() {
    let tiny = Tiny::open(4);
    let elements = tiny.model.batcher.elements();
    let file = std::fs::read(package().join("golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&file).unwrap();
    // The largest of the denoiser's batches.
    let manifest = &tiny.model.card.manifest;
    let graph = manifest.graphs.iter().find(|graph| graph.role == Role::Denoiser).unwrap();
    let case = graph.golden.last().unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let (values, _) = golden.tensor(&format!("{case}.{name}")).unwrap().data().as_chunks::<4>();
        values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    let labels: Vec<i64> = {
        let (values, _) = golden.tensor(&format!("{case}.y")).unwrap().data().as_chunks::<8>();
        values.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()
    };
    let (x, t, predictions) = (floats("x"), floats("t"), floats("prediction"));
    let rows = || {
        let inputs = x.chunks_exact(elements).zip(&t).zip(&labels);
        inputs.map(|((x, &t), &y)| Unit::Evaluate(Evaluate::new(x.to_vec(), t, y)))
    };
    // The rows among images, which begin from the seed's noise and from the same as it is handed in.
    let spec = tiny.spec(Sampler::Ddim, 6, 2.0, 1);
    let own = noise::normal(7, noise::INITIAL, elements);
    let images = [tiny.image(&spec, 7), tiny.image(&spec, 7).from_x(own)].map(Unit::Sample);
    let samples = finish(tiny.submit(images.into_iter().chain(rows()).collect()));
    assert_eq!(samples[0].values, samples[1].values);
    assert_eq!(samples[2..].len(), t.len());
    // With two rows for each image they are more than a tick takes.
    assert!(2 * 2 + t.len() > 4, "{case}");
    let largest = predictions.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    for ((row, expected), alone) in samples[2..].iter().zip(predictions.chunks_exact(elements)).zip(rows()) {
        // libtorch's prediction, by the tolerance that the package has for it.
        let worst = row.values.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-4 * largest, "{worst} of {largest}");
        assert_eq!(finish(tiny.submit(vec![alone]))[0].values, row.values);
    }
}

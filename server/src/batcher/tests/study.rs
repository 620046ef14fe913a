//! Studies beside images: who gives way to whom, and how a study ends.

use super::*;
use crate::batcher::study::{Ask, StudyRequest, StudyTicket};
use crate::engine::insides::fake::InsideFaults;
use crate::engine::insides::{Inside, Look, Wanted};

/// A fake model with insides, whose ticks and looks last two milliseconds.
fn watched(config: &Config, insides: &InsideFaults) -> (Model, Metrics) {
    let delay = Duration::from_millis(2);
    let insides = InsideFaults { delay, ..insides.clone() };
    let faults = Faults { delay, insides, ..Faults::default() };
    let (manifest, metrics) = (with_insides(manifest("shoes", &CLASSES)), Metrics::new());
    (Model::fake(manifest, faults, config, &metrics).unwrap(), metrics)
}

fn look(inside: Inside, label: i64) -> Ask {
    let mut batch = StepBatch::new([1, 4, 6]);
    batch.push(&[0.5; 24], 40.0, label);
    let (vectors, output) = match inside {
        Inside::Attention => (Vec::new(), "attention.0"),
        Inside::Jvp | Inside::Vjp => (vec![1.0; 48], "products"),
    };
    Ask::Look(Look { inside, batch, vectors, wanted: vec![Wanted::all(output)] })
}

fn study(model: &Model, caller: u32) -> Result<StudyTicket, SubmitError> {
    model.batcher.study(StudyRequest { caller: Caller(caller), deadline: None, units: 1 })
}

#[test]
fn a_look_brings_what_is_wanted() {
    let (model, metrics) = watched(&Config::default(), &InsideFaults::default());
    block_on(async {
        let mut ticket = study(&model, 0).unwrap();
        assert_eq!(model.batcher.standing().studies, 1);
        let maps = ticket.ask(look(Inside::Attention, 0)).await.unwrap().remove(0);
        // Six tokens that all see each other.
        assert_eq!(maps.len(), 36);
        assert!(maps.chunks_exact(6).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-6));
        let products = ticket.ask(look(Inside::Jvp, 0)).await.unwrap().remove(0);
        assert!(products.len() == 48 && products[0] != 0.0 && products.iter().all(|p| *p == products[0]));
        let mut batch = StepBatch::new([1, 4, 6]);
        (0..2).for_each(|_| batch.push(&[0.5; 24], 40.0, 1));
        assert_eq!(ticket.ask(Ask::Denoise(batch)).await.unwrap()[0].len(), 48);
    });
    assert_eq!(model.batcher.standing().studies, 0);
    let units = |graph| metrics.study_units.with_label_values(&["shoes", graph]).get();
    assert_eq!([units("attention"), units("jvp"), units("vjp"), units("denoiser")], [1, 1, 0, 1]);
    assert_eq!(metrics.insides_open.with_label_values(&["shoes", "jvp"]).get(), 1);
    assert_eq!(metrics.ticks.with_label_values(&["shoes"]).get(), 0, "a study's calls are no ticks");
}

#[test]
fn images_keep_nine_ticks_in_ten_and_studies_have_the_rest() {
    let (model, metrics) = watched(&Config { max_rows: 4, ..Config::default() }, &InsideFaults::default());
    let spec = spec(&model, Sampler::Ddim, 100, 1.0, 0);
    block_on(async {
        let mut tickets: Vec<_> = (0..3).map(|caller| study(&model, caller).unwrap()).collect();
        tickets[0].ask(look(Inside::Attention, 0)).await.unwrap();
        let before = metrics.study_units.with_label_values(&["shoes", "attention"]).get();
        let images = submit(&model, &spec, &[1, 2, 3]).unwrap().finish();
        let looks = futures::future::join_all(tickets.iter_mut().map(async |ticket| {
            loop {
                ticket.ask(look(Inside::Attention, 0)).await.unwrap();
            }
        }));
        tokio::select! {
            images = images => assert_eq!(images.unwrap().len(), 3),
            _ = looks => unreachable!("they go on for ever"),
        }
        let units = metrics.study_units.with_label_values(&["shoes", "attention"]).get() - before;
        // 100 ticks; the eleven turns, and one before the first or after the last.
        assert!((10..=13).contains(&units), "{units} units");
        assert_eq!(metrics.ticks.with_label_values(&["shoes"]).get(), 100);
        drop(tickets);
    });
}

#[test]
fn a_caller_has_a_quota_and_others_have_theirs() {
    let config = Config { study_quota: 2, ..Config::default() };
    let (model, _) = watched(&config, &InsideFaults::default());
    let held = [study(&model, 0).unwrap(), study(&model, 0).unwrap()];
    let refused = study(&model, 0).unwrap_err();
    assert_eq!(refused, SubmitError::Studying { quota: 2, retry_after: 1 });
    drop(study(&model, 1).unwrap());
    drop(held);
    drop(study(&model, 0).unwrap());
    let late = StudyRequest { caller: Caller(0), deadline: Some(Instant::now()), units: 5 };
    let SubmitError::TooLate { needs, alone, .. } = model.batcher.study(late).unwrap_err() else {
        panic!("it cannot be done in no time")
    };
    assert!(needs >= alone && alone > Duration::ZERO);
}

#[test]
fn a_study_ends_when_it_is_cancelled_late_or_left_and_the_others_go_on() {
    let (model, _) = watched(&Config::default(), &InsideFaults::default());
    let spec = spec(&model, Sampler::Ddim, 100, 1.0, 0);
    block_on(async {
        // While images have the worker a unit waits for up to nine ticks: time to change one's mind.
        let images = submit(&model, &spec, &[1, 2, 3]).unwrap();
        let mut other = study(&model, 1).unwrap();
        other.ask(look(Inside::Attention, 0)).await.unwrap();
        let mut cancelled = study(&model, 0).unwrap();
        let canceller = cancelled.canceller();
        let (outcome, ()) =
            futures::join!(cancelled.ask(look(Inside::Attention, 0)), async { canceller.cancel() });
        assert_eq!(outcome, Err(SampleError::Cancelled));
        assert_eq!(cancelled.ask(look(Inside::Attention, 0)).await, Err(SampleError::Cancelled));
        // Admitted in time for one unit, it asks for more and more.
        let deadline = Some(Instant::now() + Duration::from_millis(120));
        let mut late = model.batcher.study(StudyRequest { caller: Caller(0), deadline, units: 1 }).unwrap();
        let error = loop {
            if let Err(error) = late.ask(look(Inside::Attention, 0)).await {
                break error;
            }
        };
        assert_eq!(error, SampleError::DeadlinePassed);
        let mut left = study(&model, 0).unwrap();
        let waits =
            tokio::time::timeout(Duration::from_millis(1), left.ask(look(Inside::Attention, 0))).await;
        assert!(waits.is_err(), "images have their turns");
        drop((cancelled, late, left));
        assert_eq!(model.batcher.standing().studies, 1);
        other.ask(look(Inside::Attention, 0)).await.unwrap();
        images.finish().await.unwrap();
    });
}

#[test]
fn a_failure_ends_the_study_and_nobody_else_and_the_graph_is_opened_anew() {
    let faults = InsideFaults {
        unopened: Some(Inside::Vjp),
        error_for: Some(1),
        panic_for: Some(2),
        ..InsideFaults::default()
    };
    let (model, metrics) = watched(&Config::default(), &faults);
    let spec = spec(&model, Sampler::Ddim, 20, 1.0, 0);
    block_on(async {
        let images = submit(&model, &spec, &[1]).unwrap();
        let mut ticket = study(&model, 0).unwrap();
        for (label, words) in [(1, "asked to fail"), (2, "panicked: asked to panic")] {
            let Err(SampleError::Engine(said)) = ticket.ask(look(Inside::Attention, label)).await else {
                panic!("it fails")
            };
            assert!(said.contains(words), "{said}");
            assert_eq!(metrics.insides_open.with_label_values(&["shoes", "attention"]).get(), 0);
            ticket.ask(look(Inside::Attention, 0)).await.unwrap();
        }
        // Told twice, tried once: opening takes the device.
        for _ in 0..2 {
            let Err(SampleError::Engine(said)) = ticket.ask(look(Inside::Vjp, 0)).await else {
                panic!("it is closed")
            };
            assert_eq!(said, "`vjp.f32.onnx` does not open: asked not to open");
        }
        images.finish().await.unwrap();
    });
    let opened = |graph, outcome| metrics.insides_opened.with_label_values(&["shoes", graph, outcome]).get();
    assert_eq!([opened("attention", "done"), opened("vjp", "failed"), opened("vjp", "done")], [3, 1, 0]);
    let (bare, _) = self::model(4, Faults::default());
    let Err(SampleError::Engine(said)) = block_on(study(&bare, 0).unwrap().ask(look(Inside::Jvp, 0))) else {
        panic!("there is no such graph")
    };
    assert_eq!(said, "the package has no `jvp` graph");
}

#[test]
fn a_graph_that_nobody_asks_for_is_let_go() {
    let config = Config { insides_idle: Duration::from_millis(50), ..Config::default() };
    let (model, metrics) = watched(&config, &InsideFaults::default());
    let open = || metrics.insides_open.with_label_values(&["shoes", "attention"]).get();
    let ask = || block_on(study(&model, 0).unwrap().ask(look(Inside::Attention, 0))).unwrap();
    ask();
    assert_eq!(open(), 1);
    let began = Instant::now();
    while open() == 1 {
        assert!(began.elapsed() < Duration::from_secs(30), "it is never let go");
        std::thread::sleep(Duration::from_millis(1));
    }
    ask();
    assert_eq!(metrics.insides_opened.with_label_values(&["shoes", "attention", "done"]).get(), 2);
}

#[test]
fn a_worker_that_ends_keeps_no_study_waiting() {
    let (model, _) = watched(&Config::default(), &InsideFaults::default());
    let spec = spec(&model, Sampler::Ddim, 100, 1.0, 0);
    block_on(async {
        let _images = submit(&model, &spec, &[1]).unwrap();
        let mut ticket = study(&model, 0).unwrap();
        ticket.ask(look(Inside::Attention, 0)).await.unwrap();
        let (outcome, ()) =
            futures::join!(ticket.ask(look(Inside::Attention, 0)), async { model.batcher.stop() });
        assert_eq!(outcome, Err(SampleError::ShuttingDown));
        assert_eq!(ticket.ask(look(Inside::Attention, 0)).await, Err(SampleError::ShuttingDown));
        assert_eq!(study(&model, 0).unwrap_err(), SubmitError::Ended);
    });
}

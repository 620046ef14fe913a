//! Studies beside images: who gives way to whom, and how a study ends.

use futures::FutureExt as _;

use super::*;
use crate::batcher::device::Device;
use crate::batcher::study::{Ask, Effort, Like, StudyRequest, StudyTicket};
use crate::engine::insides::fake::InsideFaults;
use crate::engine::insides::{Inside, Look, Wanted};

/// A fake model with insides, whose ticks and looks last two milliseconds.
fn watched(config: &Config, insides: &InsideFaults) -> (Model, Metrics) {
    watched_behind(&Gate::default(), config, insides)
}

/// The same, whose calls of the network wait while the gate is closed.
fn watched_behind(gate: &Gate, config: &Config, insides: &InsideFaults) -> (Model, Metrics) {
    let delay = Duration::from_millis(2);
    let insides = InsideFaults { delay, ..insides.clone() };
    let faults = Faults { delay, gate: gate.clone(), insides, ..Faults::default() };
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
    model.batcher.study(StudyRequest { caller: Caller(caller), deadline: None, effort: looks(1) })
}

fn looks(units: usize) -> Effort {
    Effort::of(units, Like::inside(Inside::Attention, 1))
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
    let (gate, config) = (Gate::default(), Config { max_rows: 4, ..Config::default() });
    let (model, metrics) = watched_behind(&gate, &config, &InsideFaults::default());
    let spec = spec(&model, Sampler::Ddim, 100, 1.0, 0);
    let units = || metrics.study_units.with_label_values(&["shoes", "attention"]).get();
    let ticks = || metrics.ticks.with_label_values(&["shoes"]).get();
    block_on(async {
        let mut tickets: Vec<_> = (0..11).map(|caller| study(&model, caller).unwrap()).collect();
        tickets[0].ask(look(Inside::Attention, 0)).await.unwrap();
        let before = units();
        // All of them wait before the first tick ends.
        gate.close();
        let images = submit(&model, &spec, &[1, 2, 3]).unwrap().finish();
        while model.batcher.device_busy_for().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let asks = tickets.iter_mut().map(|ticket| ticket.ask(look(Inside::Attention, 0)));
        let mut looks = Box::pin(futures::future::join_all(asks));
        assert!((&mut looks).now_or_never().is_none());
        gate.open();
        // Every tenth turn is a look's: the eleventh comes before the last of 100 ticks, and not before ninety.
        let (units, ticks) = futures::join!(
            async {
                assert_eq!(images.await.unwrap().len(), 3);
                units() - before
            },
            async {
                assert!(looks.await.iter().all(Result::is_ok));
                ticks()
            }
        );
        assert!(units >= 10 && ticks >= 90, "{units} units; all of them after {ticks} ticks");
        drop(tickets);
    });
    assert_eq!(ticks(), 100);
}

/// One model draws without end in ticks of 5 ms; another is looked into, in looks of 40 ms, of which one is therefore let in
/// every 72 ticks. Then an image of 20 ticks is wanted of that.
#[test]
fn a_models_images_do_not_wait_behind_its_looks_for_another_models_images() {
    let (device, metrics) = (Arc::<Device>::default(), Metrics::new());
    let [drawn, looked] = ["hats", "shoes"].map(|name| {
        // The fake's look calls its network too.
        let insides = InsideFaults { delay: Duration::from_millis(35), ..InsideFaults::default() };
        let faults = Faults { delay: Duration::from_millis(5), insides, ..Faults::default() };
        // Forty images of a hundred steps in ticks of two: ten seconds of work.
        let (manifest, config) =
            (with_insides(manifest(name, &CLASSES)), Config { max_rows: 2, ..Config::default() });
        Model::fake_on(manifest, faults, &config, &metrics, Arc::clone(&device)).unwrap()
    });
    let ticks = || metrics.ticks.with_label_values(&["hats"]).get();
    let looks = || metrics.study_units.with_label_values(&["shoes", "attention"]).get();
    let put_back = || metrics.study_deferred.with_label_values(&["shoes", "attention"]).get();
    block_on(async {
        let seeds: Vec<u64> = (0..40).collect();
        let endless = submit(&drawn, &spec(&drawn, Sampler::Ddim, 100, 1.0, 0), &seeds).unwrap();
        let mut ticket = study(&looked, 0).unwrap();
        let study = async {
            loop {
                ticket.ask(look(Inside::Attention, 0)).await.unwrap();
            }
        };
        let image = async {
            while looks() < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // The third waits by now, for a while; behind the other model's images, for which none is put back.
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!(put_back(), 0);
            // A busy machine only adds to it: the best of three counts.
            let (mut beside, mut own) = (u64::MAX, u64::MAX);
            for _ in 0..3 {
                let before = (ticks(), looks());
                let spec = spec(&looked, Sampler::Ddim, 20, 1.0, 0);
                submit(&looked, &spec, &[1]).unwrap().finish().await.unwrap();
                (beside, own) = (beside.min(ticks() - before.0), own.min(looks() - before.1));
            }
            assert!(own <= 3, "beside its own images a model's looks have one tick in ten: {own} beside 20");
            assert!(beside <= 35, "{beside} ticks of the other model beside 20");
            // And the look that stood back is not forgotten.
            assert!(put_back() >= 1);
            let before = looks();
            while looks() < before + 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            () = image => {}
            _ = study => unreachable!("it goes on for ever"),
        }
        assert!(drawn.batcher.images() > 0, "it has drawn all the while");
        drop(endless);
    });
}

/// Looks of 60 ms, and ticks of 2 ms: an image of one step is done when the look under way is.
#[test]
fn a_deadline_beside_a_study_counts_the_look_under_way() {
    let insides = InsideFaults { delay: Duration::from_millis(58), ..InsideFaults::default() };
    let faults = Faults { delay: Duration::from_millis(2), insides, ..Faults::default() };
    let (manifest, metrics) = (with_insides(manifest("shoes", &CLASSES)), Metrics::new());
    let model = Model::fake(manifest, faults, &Config::default(), &metrics).unwrap();
    let spec = spec(&model, Sampler::Ddim, 1, 1.0, 0);
    let within = |milliseconds| {
        let deadline = Some(Instant::now() + Duration::from_millis(milliseconds));
        model.batcher.submit(Request { deadline, ..request(&model, &spec, &[1]) })
    };
    let expected = || model.batcher.expect(Caller::ANONYMOUS, &request(&model, &spec, &[1]).units);
    block_on(async {
        let mut ticket = study(&model, 0).unwrap();
        // What a look takes is a running mean.
        for _ in 0..20 {
            ticket.ask(look(Inside::Attention, 0)).await.unwrap();
        }
        let looks = async {
            loop {
                ticket.ask(look(Inside::Attention, 0)).await.unwrap();
            }
        };
        let images = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert!(expected() > Duration::from_millis(50), "{:?}", expected());
            let Err(SubmitError::TooLate { needs, alone, .. }) = within(30) else {
                panic!("it would be late")
            };
            assert!(needs > 5 * alone, "{needs:?}, {alone:?} alone");
            for _ in 0..5 {
                within(20_000).unwrap().finish().await.unwrap();
            }
        };
        tokio::select! {
            () = images => {}
            _ = looks => unreachable!("they go on for ever"),
        }
    });
    assert!(expected() < Duration::from_millis(30), "{:?} without a study", expected());
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
    let late = StudyRequest { caller: Caller(0), deadline: Some(Instant::now()), effort: looks(5) };
    let SubmitError::TooLate { needs, alone, .. } = model.batcher.study(late).unwrap_err() else {
        panic!("it cannot be done in no time")
    };
    assert!(needs >= alone && alone > Duration::ZERO);
}

#[test]
fn a_study_ends_when_it_is_cancelled_late_or_left_and_the_others_go_on() {
    let gate = Gate::default();
    let (model, _) = watched_behind(&gate, &Config::default(), &InsideFaults::default());
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
        let deadline = Some(Instant::now() + Duration::from_millis(800));
        let mut late =
            model.batcher.study(StudyRequest { caller: Caller(0), deadline, effort: looks(1) }).unwrap();
        let error = loop {
            if let Err(error) = late.ask(look(Inside::Attention, 0)).await {
                break error;
            }
        };
        assert_eq!(error, SampleError::DeadlinePassed);
        let mut left = study(&model, 0).unwrap();
        gate.close();
        assert!(left.ask(look(Inside::Attention, 0)).now_or_never().is_none(), "it waits");
        drop((cancelled, late, left));
        gate.open();
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
    let at_once = block_on(async {
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
        // Told twice, tried once: opening takes the device. After a second it would be tried again.
        let began = Instant::now();
        for _ in 0..2 {
            let Err(SampleError::Engine(said)) = ticket.ask(look(Inside::Vjp, 0)).await else {
                panic!("it is closed")
            };
            assert_eq!(said, "`vjp.f32.onnx` does not open: asked not to open");
        }
        let at_once = began.elapsed() < Duration::from_secs(1);
        images.finish().await.unwrap();
        at_once
    });
    let opened = |graph, outcome| metrics.insides_opened.with_label_values(&["shoes", graph, outcome]).get();
    assert_eq!([opened("attention", "done"), opened("vjp", "done")], [3, 0]);
    assert!(opened("vjp", "failed") == 1 || !at_once, "{}", opened("vjp", "failed"));
    let failures =
        ["error", "panic"].map(|cause| metrics.failures.with_label_values(&["shoes", cause]).get());
    assert_eq!(failures, [0, 0], "no tick failed, and no image");
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
    let opened = || metrics.insides_opened.with_label_values(&["shoes", "attention", "done"]).get();
    let ask = || block_on(study(&model, 0).unwrap().ask(look(Inside::Attention, 0))).unwrap();
    ask();
    // By now it may have been let go.
    assert_eq!(opened(), 1);
    let began = Instant::now();
    while open() == 1 {
        assert!(began.elapsed() < Duration::from_secs(30), "it is never let go");
        std::thread::sleep(Duration::from_millis(1));
    }
    ask();
    assert_eq!(opened(), 2);
}

#[test]
fn a_worker_that_ends_keeps_no_study_waiting() {
    let gate = Gate::default();
    let (model, _) = watched_behind(&gate, &Config::default(), &InsideFaults::default());
    let spec = spec(&model, Sampler::Ddim, 100, 1.0, 0);
    block_on(async {
        let mut ticket = study(&model, 0).unwrap();
        ticket.ask(look(Inside::Attention, 0)).await.unwrap();
        // It waits behind an image's tick that does not end before the worker is told to.
        gate.close();
        let _images = submit(&model, &spec, &[1]).unwrap();
        while model.batcher.device_busy_for().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (outcome, ()) = futures::join!(ticket.ask(look(Inside::Attention, 0)), async {
            model.batcher.stop();
            gate.open();
        });
        assert_eq!(outcome, Err(SampleError::ShuttingDown));
        assert_eq!(ticket.ask(look(Inside::Attention, 0)).await, Err(SampleError::ShuttingDown));
        assert_eq!(study(&model, 0).unwrap_err(), SubmitError::Ended);
    });
}

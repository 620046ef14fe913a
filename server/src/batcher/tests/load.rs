//! More work than can be done at once: what is admitted and when, what is given up, and who gets what.

use super::*;

#[test]
fn the_limit_is_work_and_whoever_is_told_when_to_come_back_is_admitted_then() {
    let (model, _) = slow(1);
    let spec = spec(&model, Sampler::Ddim, 40, 1.0, 0);
    block_on(async {
        // 0.8 of a second; the same again would be 1.6.
        let running = submit(&model, &spec, &[1, 2, 3, 4]).unwrap();
        // A small one fits, until room is kept for somebody.
        let small = self::spec(&model, Sampler::Ddim, 10, 1.0, 0);
        let fits = submit(&model, &small, &[9]).unwrap();
        let refused = submit(&model, &spec, &[5, 6, 7, 8]).unwrap_err();
        assert_eq!(refused, SubmitError::Overloaded { retry_after: 1 });
        assert!(submit(&model, &small, &[10]).is_err());
        tokio::time::sleep(Duration::from_secs(1)).await;
        submit(&model, &spec, &[5, 6, 7, 8]).unwrap().finish().await.unwrap();
        running.finish().await.unwrap();
        fits.finish().await.unwrap();
    });
    assert_eq!(model.batcher.images(), 0);
    assert_eq!(model.batcher.standing().backlog, Duration::ZERO);
}

#[test]
fn the_number_of_images_is_bounded_too() {
    let config = Config { queue_limit: 3, ..Config::default() };
    let faults = Faults { delay: Duration::from_millis(5), ..Faults::default() };
    let model = Model::fake(manifest("shoes", &CLASSES), faults, &config, &Metrics::new()).unwrap();
    let spec = spec(&model, Sampler::Ddim, 5, 1.0, 0);
    let running = submit(&model, &spec, &[1, 2]).unwrap();
    assert!(matches!(submit(&model, &spec, &[3, 4]), Err(SubmitError::Crowded { .. })));
    // Somebody else's share of three is one: a request of three is not refused for ever.
    let request = |seeds: &[u64]| Request { caller: Caller(1), ..request(&model, &spec, seeds) };
    let other = model.batcher.submit(request(&[3, 4, 5])).unwrap();
    assert!(matches!(model.batcher.submit(request(&[6])), Err(SubmitError::Crowded { .. })));
    block_on(running.finish()).unwrap();
    block_on(other.finish()).unwrap();
    assert_eq!(sample(&model, &spec, &[3, 4, 5]).unwrap().len(), 3);
}

#[test]
fn the_time_told_is_the_time_taken() {
    let (model, _) = slow(60);
    block_on(async {
        let mut tickets = Vec::new();
        for (steps, scale, images) in [(20, 1.0, 4), (30, 2.0, 2), (10, 1.0, 1), (12, 2.0, 8), (40, 1.0, 1)] {
            let spec = spec(&model, Sampler::Ddim, steps, scale, 0);
            let seeds: Vec<u64> = (0..images).collect();
            let ticket = submit(&model, &spec, &seeds).unwrap();
            tickets.push((Instant::now(), ticket.eta(), ticket));
        }
        for (start, eta, ticket) in tickets {
            let waited = async {
                ticket.finish().await.unwrap();
                start.elapsed().as_secs_f64()
            };
            let (eta, took) = (eta.as_secs_f64(), waited.await);
            // Short ones that come later overtake: the last are told more than it takes, the first less.
            assert!(eta > 0.1 && took < 4.0 * eta && took < 4.0, "told {eta}, took {took}");
        }
    });
}

#[test]
fn the_last_to_come_is_told_its_time_closely() {
    let (model, _) = slow(60);
    block_on(async {
        let ahead = submit(&model, &spec(&model, Sampler::Ddim, 10, 1.0, 0), &(0..10).collect::<Vec<_>>());
        let (start, ticket) = (
            Instant::now(),
            submit(&model, &spec(&model, Sampler::Ddim, 20, 2.0, 0), &(20..28).collect::<Vec<_>>()).unwrap(),
        );
        let eta = ticket.eta().as_secs_f64();
        ticket.finish().await.unwrap();
        let took = start.elapsed().as_secs_f64();
        assert!((0.6..1.5).contains(&(took / eta)), "told {eta}, took {took}");
        ahead.unwrap().finish().await.unwrap();
    });
}

#[test]
fn a_deadline_that_cannot_be_met_is_refused_and_one_that_passes_ends_the_work() {
    let (model, metrics) = slow(60);
    let spec = spec(&model, Sampler::Ddim, 100, 1.0, 0);
    let within = |seed, ms| Request {
        deadline: Some(Instant::now() + Duration::from_millis(ms)),
        ..request(&model, &spec, &[seed])
    };
    block_on(async {
        // Half a second alone.
        let refused = model.batcher.submit(within(1, 200)).unwrap_err();
        let SubmitError::TooLate { needs, alone, .. } = refused else { panic!("{refused}") };
        assert!(needs == alone && (0.4..0.7).contains(&needs.as_secs_f64()), "{needs:?}");
        let tight = model.batcher.submit(within(2, 800)).unwrap();
        // Behind two seconds of others' work it is late; when it comes again is not its own fault.
        let others: Vec<_> = (10..14).map(|seed| submit(&model, &spec, &[seed]).unwrap()).collect();
        let refused = model.batcher.submit(within(3, 1000)).unwrap_err();
        let SubmitError::TooLate { needs, alone, .. } = refused else { panic!("{refused}") };
        assert!(needs > Duration::from_secs(1) && alone < Duration::from_secs(1), "{needs:?} {alone:?}");
        assert_eq!(tight.finish().await, Err(SampleError::DeadlinePassed));
        drop(others);
    });
    assert_eq!(metrics.cancellations.with_label_values(&["shoes", "deadline"]).get(), 1);
}

#[test]
fn a_cancelled_request_ends_at_the_next_tick() {
    let (model, metrics) = slow(60);
    let spec = spec(&model, Sampler::Ddim, 100, 1.0, 0);
    block_on(async {
        let ticket = submit(&model, &spec, &[1, 2]).unwrap();
        let canceller = ticket.canceller();
        tokio::time::sleep(Duration::from_millis(50)).await;
        canceller.cancel();
        assert_eq!(ticket.finish().await, Err(SampleError::Cancelled));
    });
    while model.batcher.images() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(metrics.cancellations.with_label_values(&["shoes", "cancelled"]).get(), 2);
}

#[test]
fn callers_share_the_engine_evenly() {
    let (model, _) = slow(60);
    let spec = spec(&model, Sampler::Ddim, 20, 1.0, 0);
    let of = |caller, seeds: std::ops::Range<u64>| {
        let request = request(&model, &spec, &seeds.collect::<Vec<_>>());
        model.batcher.submit(Request { caller: Caller(caller), ..request }).unwrap()
    };
    block_on(async {
        let flood: Vec<_> = (0..4).map(|i| of(1, 10 * i..10 * i + 10)).collect();
        let start = Instant::now();
        of(2, 100..108).finish().await.unwrap();
        // 160 of its rows, and as many of the other's: 1.6 seconds, where all there is would take 4.8.
        let took = start.elapsed().as_secs_f64();
        assert!((1.2..2.6).contains(&took), "{took}");
        drop(flood);
    });
}

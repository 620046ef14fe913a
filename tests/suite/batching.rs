//! A request alone and the same request in any company: the same bytes. One tick carries images at any step, of any
//! sampler, class and guidance; they come and go at random, and some of their clients hang up.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use suite::{Package, Random, TestServer};
use tokio::time::{sleep, timeout};
use windowpane_diffusion::{Sampler, TimeGrid};
use windowpane_server::Config;
use windowpane_server::batcher::Scheduling;

/// Requests whose pictures are known from when they were alone.
const KNOWN: usize = 12;

/// Any request: up to six steps, some of two rows, some with noise on the way.
fn any(random: &mut Random) -> Value {
    let sampler = random.pick(&Sampler::ALL).as_str();
    let eta = if sampler == "ddim" { *random.pick(&[0.0, 0.5, 1.0]) } else { 0.0 };
    json!({
        "model": "tiny",
        "class": random.below(4),
        "seed": random.below(1 << 40),
        "steps": 1 + random.below(6),
        "sampler": sampler,
        "time_grid": random.pick(&TimeGrid::ALL).as_str(),
        "guidance_scale": random.pick(&[0.0, 1.0, 1.0, 1.5, 7.0]),
        "eta": eta,
        "clip_x0": random.chance(70),
    })
}

#[test]
fn same_request_same_bytes_alone_and_in_any_company() {
    // Few rows, so that ticks overflow and images take turns.
    let server: &TestServer =
        Box::leak(Box::new(TestServer::start(Config { max_rows: 6, ..TestServer::config() })));
    let mut random = Random::new(2024);
    let requests: Vec<Value> = (0..KNOWN).map(|_| any(&mut random)).collect();
    let alone: Vec<Vec<u8>> = requests.iter().map(|body| server.block_on(server.png(body))).collect();
    let mut ticks = BTreeMap::new();
    for round in 0..4 {
        let mut tasks = Vec::new();
        for _ in 0..24 {
            let delay = Duration::from_millis(random.below(400) as u64);
            if random.chance(60) {
                let i = random.below(KNOWN);
                let (body, expected) = (requests[i].clone(), alone[i].clone());
                let work = async move {
                    sleep(delay).await;
                    assert!(
                        server.png(&body).await == expected,
                        "round {round}: other bytes in company for {body}"
                    );
                };
                tasks.push(server.spawn(work));
            } else {
                // Company that hangs up, at some point on its way or not at all.
                let (body, patience) = (any(&mut random), Duration::from_millis(random.below(500) as u64));
                let work = async move {
                    sleep(delay).await;
                    let _ = timeout(patience, server.png(&body)).await;
                };
                tasks.push(server.spawn(work));
            }
        }
        for task in tasks {
            server.block_on(task).expect("the bytes are the same");
        }
        let rows = server.app().metrics().tick_rows.with_label_values(&["tiny"]);
        ticks.insert(round, (rows.get_sample_count(), rows.get_sample_sum()));
    }
    server.until_images(0);
    // The company was real: ticks of one image cannot average more than two rows.
    let (count, sum) = ticks[&3];
    assert!(sum / count as f64 > 2.0, "{sum} rows in {count} ticks is no company");
    let gone = server.app().metrics().cancellations.with_label_values(&["tiny", "disconnect"]).get();
    assert!(gone > 0, "no client hung up in time to be noticed");
}

#[test]
fn the_promise_is_measured_at_load_and_told() {
    let model = TestServer::shared().get("/v1/models/tiny").ok().json();
    let determinism = &model["determinism"];
    // On the CPU provider it is bitwise; anything less would make the test above a matter of luck.
    assert_eq!(
        (&determinism["class"], &determinism["relative_difference"]),
        (&json!("bitwise"), &json!(0.0))
    );
    let sizes = determinism["batch_sizes"].as_array().unwrap();
    assert_eq!(
        sizes.last(),
        Some(&json!(TestServer::config().max_rows)),
        "the largest tick is among those tried"
    );
    let server = TestServer::shared();
    let body = json!({"prompt": "ring", "seed": 1, "steps": 1, "stream": false});
    let stream = json!({"prompt": "ring", "seed": 1, "steps": 1, "stream": true});
    let infer = json!({"inputs": [
        {"name": "seed", "datatype": "INT64", "shape": [1], "data": [1]},
        {"name": "class", "datatype": "BYTES", "shape": [1], "data": ["ring"]},
    ]});
    let answers = [
        server.send(server.post(body.to_string())),
        server.send(server.post(body.to_string()).header("accept", "image/png")),
        server.send(server.post(stream.to_string())),
        server.send(server.request("POST", "/v2/models/tiny.sampler/infer").body(infer.to_string())),
    ];
    for answer in answers {
        assert_eq!((answer.status, answer.header("x-determinism")), (200, "bitwise"), "{}", answer.text());
    }
}

/// On a real network whose bits depend on the batch's size.
#[test]
fn where_bits_depend_on_the_batch_a_request_may_insist_on_one_size() {
    let package = Package::tiny();
    package.scale_by_batch();
    let server = TestServer::leaked(Config { max_rows: 6, ..package.config() });
    let told = &server.get("/v1/models/tiny").ok().json()["determinism"];
    assert_eq!((&told["class"], &told["pinned_rows"]), (&json!("tolerance"), &json!(6)), "{told}");
    // Six rows and one differ by 5 × 1024 × 1e-9.
    let difference = told["relative_difference"].as_f64().unwrap();
    assert!((4e-6..7e-6).contains(&difference), "{told}");
    let body = |reproducible: bool| {
        json!({
            "prompt": "ring", "seed": 7, "steps": 4, "guidance_scale": 1, "output_format": "npy",
            "reproducible": reproducible,
        })
    };
    let alone = server.generate(&body(true)).ok();
    // Beside its one row five of padding, in each of four steps.
    let padding = server.app().metrics().padding.with_label_values(&["tiny"]);
    assert_eq!(padding.get(), 20);
    assert!(alone.header("x-determinism").starts_with("tolerance "), "{}", alone.header("x-determinism"));
    assert_ne!(alone.file(0), server.generate(&body(false)).ok().file(0), "its size is not to be seen");
    for company in [1, 3, 5, 9] {
        let others =
            json!({"prompt": "blob", "seed": company, "steps": 1000, "n": company, "guidance_scale": 1});
        let others = server.spawn(server.answer(server.post(others.to_string())));
        server.until_images(company);
        let again = server.generate(&body(true)).ok();
        assert!(server.images() >= company, "the company left");
        assert!(again.file(0) == alone.file(0), "other bytes in a company of {company}");
        others.abort();
        server.until_images(0);
    }
}

#[test]
fn two_servers_draw_the_same_picture() {
    let other = TestServer::start(Config { max_rows: 2, ..TestServer::config() });
    let body = json!({"prompt": "blob", "seed": 11, "steps": 3, "sampler": "euler_a", "n": 3});
    let [a, b] = [TestServer::shared(), &other].map(|server| server.generate(&body).ok());
    for i in 0..3 {
        assert_eq!(a.file(i), b.file(i), "image {i}");
    }
    other.leave();
}

/// Those that the benchmark compares with draw the same images as ours.
#[test]
fn the_images_are_the_same_whatever_the_scheduling() {
    let shared = TestServer::shared();
    let body = |seed: u64| {
        json!({
            "prompt": "ring", "seed": seed, "steps": 10, "sampler": "heun", "guidance_scale": 2,
            "output_format": "npy",
        })
    };
    // All values of all six.
    let expected: Vec<_> = (1..7).map(|seed| shared.generate(&body(seed)).ok().file(0)).collect();
    for scheduling in [
        Scheduling::Continuous,
        Scheduling::Serial,
        Scheduling::Request { delay: Duration::from_millis(500) },
    ] {
        let server = TestServer::leaked(Config { scheduling, ..TestServer::config() });
        let asked: Vec<_> =
            (1..7).map(|seed| server.spawn(server.answer(server.post(body(seed).to_string())))).collect();
        for (task, expected) in asked.into_iter().zip(&expected) {
            let file = server.block_on(task).unwrap().ok().file(0);
            assert!(file == *expected, "{scheduling:?}");
        }
        // Heun's ten steps are nineteen evaluations.
        let (ticks, alone) = (server.app().metrics().ticks.with_label_values(&["tiny"]).get(), 6 * 19);
        assert_eq!(ticks == alone, scheduling == Scheduling::Serial, "{ticks} ticks, {scheduling:?}");
        assert!(ticks <= alone, "{ticks} ticks, {scheduling:?}");
    }
}

#[test]
fn a_short_request_overtakes_a_long_one() {
    let server = TestServer::start(Config { max_rows: 4, ..TestServer::config() });
    let long = json!({"prompt": "ring", "seed": 1, "steps": 400, "guidance_scale": 1});
    server.block_on(async {
        let mut slow = Box::pin(server.png(&long));
        // Driven until it is under way.
        let _ = timeout(Duration::from_millis(200), &mut slow).await;
        let short = json!({"prompt": "ring", "seed": 2, "steps": 2});
        tokio::select! {
            biased;
            _ = &mut slow => panic!("400 steps ended before 2: the short request waited for the long one"),
            _ = server.png(&short) => {}
        }
        // Its client is here until the end of this block.
        assert_eq!(server.images(), 1, "the long one is still under way");
    });
    server.until_images(0);
}

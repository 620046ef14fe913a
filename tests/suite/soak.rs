//! A server for a while under everything at once: more clients than it has room for, of every kind, some of whom hang up,
//! cancel or are too late. Nothing is left of them afterwards: no image, no memory, no other bytes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use suite::soak::traffic::any;
use suite::{IMAGES, Process, Random, TestServer, shipped};

/// How long.
const SOAK: Duration = Duration::from_secs(20);

/// Time that a slow machine has beyond that.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn nothing_is_left_of_a_storm() {
    let models = shipped("tiny");
    let mut server = Process::windowpane(&[
        "--models",
        models.to_str().unwrap(),
        "--port",
        "0",
        "--max-rows",
        "8",
        "--max-backlog",
        "2",
        "--log",
        "warn",
    ]);
    let url = server.url();
    let fixed = json!({"class": 1, "seed": 11, "steps": 4});
    let ask = |body: &Value| TestServer::shared().elsewhere("POST", &format!("{url}{IMAGES}"), Some(body));
    let before = ask(&fixed).unwrap().ok().file(0);
    let (stop, counts) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; 5]);
    let memory = std::thread::scope(|scope| {
        for client in 0..8 {
            let (stop, counts, url) = (&stop, &counts, &url);
            scope.spawn(move || {
                let mut random = Random::new(client);
                while !stop.load(Relaxed) {
                    let shared = TestServer::shared();
                    let request = shared.elsewhere_request(&format!("{url}{IMAGES}"), &any(&mut random));
                    let patience = Duration::from_millis(20 + random.below(3000) as u64);
                    let request = if random.chance(30) {
                        request.header("x-request-timeout-ms", "500")
                    } else {
                        request
                    };
                    let id = format!("storm-{client}");
                    let request = request.header("x-request-id", &id);
                    if random.chance(20) {
                        let url = format!("{url}/v1/requests/{id}");
                        scope.spawn(move || {
                            std::thread::sleep(Duration::from_millis(100));
                            shared.elsewhere("DELETE", &url, None).expect("it answers");
                        });
                    }
                    let answer = shared
                        .block_on(async { tokio::time::timeout(patience, shared.answer(request)).await });
                    let kind = match answer.map(|answer| answer.status) {
                        Ok(200) => 0,
                        Ok(429) => 1,
                        Ok(504) => 2,
                        Ok(409) => 4,
                        Err(_) => 3,
                        Ok(other) => panic!("answered with {other}"),
                    };
                    counts[kind].fetch_add(1, Relaxed);
                    // Ruder than any client that reads `retry-after`, and no attack either.
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
        // The buffers and arenas have their sizes after a while; from then on there is nothing to grow.
        let sample = |after: Duration| {
            std::thread::sleep(after);
            server.resident_bytes()
        };
        let memory = [sample(SOAK / 3), sample(SOAK / 3), sample(SOAK / 3)];
        // A slow machine has had less of everything by then.
        let enough = || {
            let [images, refused, _, left, cancelled] = counts.each_ref().map(|count| count.load(Relaxed));
            images > 20 && refused > 0 && left > 0 && cancelled > 0
        };
        let start = Instant::now();
        while !enough() && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(100));
        }
        stop.store(true, Relaxed);
        memory
    });
    let [images, refused, late, left, cancelled] = counts.map(|count| count.load(Relaxed));
    println!(
        "{images} answered, {refused} refused, {late} too late, {left} left, {cancelled} cancelled; {memory:?} bytes"
    );
    assert!(images > 20 && refused > 0 && left > 0 && cancelled > 0, "{images} {refused} {left} {cancelled}");
    assert!(memory[2] as f64 <= memory[0] as f64 * 1.1 + 16e6, "memory grew: {memory:?}");
    // Nobody waits for an answer any more. Who hung up is noticed in some time, and has no row from the next tick on.
    let scrape = || {
        let metrics = TestServer::shared().elsewhere("GET", &format!("{url}/metrics"), None).unwrap().ok();
        ["trajectories", "ticks_total"].map(|name| {
            let sample = format!("windowpane_{name}{{model=\"tiny\"}} ");
            let value =
                metrics.text().lines().find_map(|line| line.strip_prefix(&sample)).expect("it is told");
            value.parse::<u64>().expect("a count")
        })
    };
    let ([mut left, first], mut so_far) = (scrape(), 0);
    while left > 0 {
        assert!(so_far <= 100, "{left} images are left after {so_far} ticks");
        std::thread::sleep(Duration::from_millis(10));
        let now = scrape();
        (left, so_far) = (now[0], now[1] - first);
    }
    assert_eq!(ask(&fixed).unwrap().ok().file(0), before);
    server.signal("TERM");
    let exit = server.end();
    assert_eq!(exit.code, Some(0), "{}", exit.errors);
    assert!(!exit.errors.contains("ERROR") && !exit.errors.contains("panick"), "{}", exit.errors);
}

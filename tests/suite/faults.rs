//! What goes wrong around a server. Names that climb, clients that are killed, a clock that jumps, a disk that is full,
//! SIGTERM while everybody is asking: each is survived, and told where there is somebody left to tell.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use suite::{Answer, IMAGES, Package, Process, TestServer, keys, python_start, root, shipped};
use windowpane_server::Config;

/// A process that serves `models/tiny`.
fn process(more: &[&str], change: impl FnOnce(&mut Command)) -> (Process, String) {
    let models = shipped("tiny");
    let args = [&["--models", models.to_str().unwrap(), "--port", "0", "--max-rows", "4"], more].concat();
    let mut server = Process::spawn(&args, change);
    let url = server.url();
    (server, url)
}

fn ask(url: &str, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, String> {
    TestServer::shared().elsewhere(method, &format!("{url}{path}"), body)
}

/// An image that takes no time.
fn ring() -> Value {
    json!({"prompt": "ring", "seed": 7, "steps": 1})
}

#[test]
fn names_that_climb_out_of_the_folder_lead_nowhere() {
    let package = Package::tiny();
    package.copy("hidden");
    let models = package.models().join("tiny");
    let config = Config { keys: keys(&[("operator", "admin")]), models, max_rows: 2, ..TestServer::config() };
    let server = TestServer::start(config);
    for name in
        ["..%2fhidden", "..%2F..%2Fetc", "%2e%2e%2fhidden", "..%5chidden", "tiny%00", "%2fetc%2fpasswd"]
    {
        for action in ["load", "unload"] {
            let request = server.request("POST", &format!("/v2/repository/models/{name}/{action}"));
            let answer = server.send(request.bearer_auth("operator's secret"));
            assert_eq!(
                (answer.status, &answer.json()["code"]),
                (404, &json!("model_not_found")),
                "{name}: {answer:?}"
            );
        }
        let mut body = ring();
        body["model"] = json!(name.replace("%2f", "/").replace("%2F", "/").replace("%00", "\0"));
        let request = server.post(body.to_string()).bearer_auth("operator's secret");
        server.send(request).refused(404, "model_not_found", Some("model"));
    }
}

#[cfg(unix)]
#[test]
fn a_link_that_comes_into_a_package_is_refused_and_the_old_version_serves_on() {
    let package = Package::tiny();
    let config = Config { keys: keys(&[("operator", "admin")]), ..package.config() };
    let server = TestServer::start(config);
    let outside = package.models().join("outside.bin");
    fs::rename(package.file("weights.bin"), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, package.file("weights.bin")).unwrap();
    let load = server.request("POST", "/v2/repository/models/tiny/load").bearer_auth("operator's secret");
    let answer = server.send(load);
    assert_eq!((answer.status, &answer.json()["code"]), (500, &json!("load_failed")), "{answer:?}");
    assert!(!answer.text().contains("outside"), "{}", answer.text());
    server.send(server.post(ring().to_string()).bearer_auth("operator's secret")).ok();
}

#[test]
fn a_client_that_is_killed_within_a_stream_frees_its_rows() {
    let (_server, url) = process(&[], |_| {});
    let body =
        json!({"prompt": "ring", "steps": 1000, "n": 3, "stream": true, "partial_images": 3}).to_string();
    let mut client = python_start("stream_client.py", [format!("{url}{IMAGES}").as_str(), &body]);
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "200");
    let images = |n: usize| {
        let sample = format!("windowpane_trajectories{{model=\"tiny\"}} {n}");
        let metrics = ask(&url, "GET", "/metrics", None).unwrap().ok();
        metrics.text().lines().any(|line| line == sample)
    };
    TestServer::shared().until("its images are under way", || images(3));
    // SIGKILL: the machine closes its sockets, and nobody says goodbye.
    client.kill().unwrap();
    client.wait().unwrap();
    TestServer::shared().until("its rows are free", || images(0));
    let metrics = ask(&url, "GET", "/metrics", None).unwrap().ok();
    let told = "windowpane_cancellations_total{cause=\"disconnect\",model=\"tiny\"} 3";
    assert!(metrics.text().lines().any(|line| line == told), "{}", metrics.text());
    ask(&url, "POST", IMAGES, Some(&ring())).unwrap().ok();
}

/// A POST of JSON over a connection of its own: an error is not the end of an idle one in the moment of its use.
fn ask_once(url: &str, body: &Value) -> reqwest::Result<(u16, Value)> {
    let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build()?;
    let request = client.post(format!("{url}{IMAGES}")).header("content-type", "application/json");
    TestServer::shared().block_on(async {
        let answer = request.body(body.to_string()).send().await?;
        let status = answer.status().as_u16();
        Ok((status, serde_json::from_slice(&answer.bytes().await?).expect("every answer is JSON")))
    })
}

#[test]
fn sigterm_under_load_loses_no_answer_that_was_begun() {
    let (mut server, url) = process(&["--shutdown-timeout", "300"], |_| {});
    let (told, answered) = (AtomicBool::new(false), AtomicBool::new(false));
    let long = json!({"prompt": "ring", "seed": 12, "steps": 400, "guidance_scale": 1});
    let outcomes: Vec<&str> = std::thread::scope(|scope| {
        let client = |seed: usize| {
            let (url, told, answered) = (&url, &told, &answered);
            move || {
                let body = json!({"prompt": "ring", "seed": seed, "steps": 3});
                loop {
                    match ask_once(url, &body) {
                        Ok((200, answer)) => {
                            assert!(answer["data"][0]["b64_json"].is_string(), "{answer}");
                            answered.store(true, Relaxed);
                        }
                        Ok((status, answer)) => {
                            assert_eq!(
                                (status, &answer["error"]["code"]),
                                (503, &json!("shutting_down")),
                                "{answer}"
                            );
                            return "refused";
                        }
                        // Nobody listens any more: this one was late, and nothing of it was begun.
                        Err(error) if error.is_connect() && told.load(Relaxed) => return "late",
                        Err(error) => panic!("a request was taken and not answered: {error:?}"),
                    }
                }
            }
        };
        let clients: Vec<_> = (0..12).map(|seed| scope.spawn(client(seed))).collect();
        TestServer::shared().until("somebody is answered", || answered.load(Relaxed));
        // One that lasts, so that the server is there to refuse the others. They have 72 rows at most, this one 400.
        let long = scope.spawn(|| ask_once(&url, &long));
        TestServer::shared().until("the long one is under way", || {
            let metrics = ask(&url, "GET", "/metrics", None).unwrap().ok();
            let rows = "windowpane_backlog_rows{model=\"tiny\"} ";
            let rows = metrics.text().lines().find_map(|line| line.strip_prefix(rows)?.parse::<u64>().ok());
            rows.is_some_and(|rows| rows > 200)
        });
        told.store(true, Relaxed);
        server.signal("TERM");
        let (status, answer) = long.join().unwrap().expect("it was begun before the signal");
        assert_eq!(status, 200, "{answer}");
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let exit = server.end();
    assert_eq!(exit.code, Some(0), "{}", exit.errors);
    assert!(!exit.errors.contains("panick"), "{}", exit.errors);
    assert!(outcomes.contains(&"refused"), "{outcomes:?}");
}

#[test]
fn a_full_disk_for_the_log_stops_no_answer() {
    for form in ["text", "json"] {
        // The kernel's own full disk: every write to it fails with ENOSPC. In JSON the address goes to the log alone, so
        // the port is chosen beforehand.
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let models = shipped("tiny");
        let args =
            ["--models", models.to_str().unwrap(), "--port", &port, "--max-rows", "4", "--log-format", form];
        let full = || File::options().write(true).open("/dev/full").unwrap();
        let mut server = Process::spawn(&args, |command| {
            command.stderr(full()).stdout(full());
        });
        let url = format!("http://127.0.0.1:{port}");
        TestServer::shared().until("it is ready", || {
            ask(&url, "GET", "/readyz", None).is_ok_and(|answer| answer.status == 200)
        });
        ask(&url, "POST", IMAGES, Some(&ring())).unwrap().ok();
        ask(&url, "POST", IMAGES, Some(&json!({"surprise": 1}))).unwrap().refused(
            422,
            "unknown_field",
            Some("surprise"),
        );
        server.signal("TERM");
        assert_eq!(server.end().code, Some(0), "{form}");
    }
}

/// `tests/clients/clock.c` as a library to preload.
fn clock(folder: &Path) -> std::path::PathBuf {
    let library = folder.join("clock.so");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(root().join("tests/clients/clock.c"))
        .arg("-ldl");
    let status = compiler.status().unwrap_or_else(|error| panic!("{compiler:?}: {error}"));
    assert!(status.success(), "{compiler:?}: {status}");
    library
}

#[test]
fn a_clock_that_jumps_ends_nothing_early_and_keeps_nothing_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let (library, file) = (clock(folder.path()), folder.path().join("step"));
    let step = |seconds: i64| fs::write(&file, seconds.to_string()).unwrap();
    step(0);
    let (mut server, url) = process(&[], |command| {
        command.env("LD_PRELOAD", &library).env("CLOCK_STEP", &file);
    });
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    // Of some seconds, within which the clock jumps.
    let body = json!({"prompt": "ring", "seed": 7, "steps": 400});
    let slow = |url: &str| {
        let request = TestServer::shared().elsewhere_request(&format!("{url}{IMAGES}"), &body);
        TestServer::shared().send(request.header("x-request-timeout-ms", "250000")).ok()
    };
    let calm = slow(&url);
    for jump in [86_400, -86_400, 3_000_000_000, -1_000_000_000] {
        let answer = std::thread::scope(|scope| {
            let running = scope.spawn(|| slow(&url));
            std::thread::sleep(Duration::from_millis(50));
            step(jump);
            running.join().unwrap()
        });
        // Its deadline did not come, and its bytes are those of a calm day.
        assert_eq!(answer.file(0), calm.file(0), "{jump}");
        let created = answer.json()["created"].as_i64().unwrap();
        assert!((created - now() - jump).abs() < 60, "the clock did not jump by {jump}: {created}");
        ask(&url, "GET", "/livez", None).unwrap().ok();
        let metrics = ask(&url, "GET", "/metrics", None).unwrap().ok();
        let seconds = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        let sums = metrics.text().lines().filter(|line| line.contains("_seconds_sum"));
        for line in sums {
            assert!((0.0..600.0).contains(&seconds(line).unwrap()), "{line}");
        }
    }
    server.signal("TERM");
    let exit = server.end();
    assert_eq!(exit.code, Some(0), "{}", exit.errors);
    assert!(!exit.errors.contains("panick"), "{}", exit.errors);
}

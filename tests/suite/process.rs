//! The binary as a process: it leaves in order when told to, and it refuses to start with a sentence that says why.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use suite::{Answer, IMAGES, Package, Process, TestServer, shipped};

/// Arguments for `models/tiny` on a free port.
fn tiny<'a>(models: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["--models", models, "--port", "0", "--max-rows", "4"], more].concat()
}

/// Arguments of a server that waits for its images for as long as they take on a slow machine.
const PATIENT: [&str; 2] = ["--shutdown-timeout", "300"];

/// A request to another process's server, through the clients of this one.
fn ask(url: &str, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, String> {
    TestServer::shared().elsewhere(method, &format!("{url}{path}"), body)
}

/// Waits until the server has this many images under way.
fn until_images(url: &str, images: usize) {
    let sample = format!("windowpane_trajectories{{model=\"tiny\"}} {images}");
    TestServer::shared().until(&format!("{images} images are under way"), || {
        ask(url, "GET", "/metrics", None).is_ok_and(|answer| answer.text().lines().any(|line| line == sample))
    });
}

#[test]
fn sigterm_while_an_image_is_under_way_finishes_it_and_exits_with_0() {
    let models = shipped("tiny");
    let mut server = Process::windowpane(&tiny(models.to_str().unwrap(), &PATIENT));
    let url = server.url();
    // Of some seconds: it is still under way when all below is said.
    let body = json!({"prompt": "ring", "seed": 7, "n": 2, "steps": 500, "guidance_scale": 1});
    let answer = std::thread::scope(|scope| {
        let running = scope.spawn(|| ask(&url, "POST", IMAGES, Some(&body)));
        until_images(&url, 2);
        server.signal("TERM");
        // While it finishes, it answers: not ready, and nothing new.
        TestServer::shared().until("it is draining", || {
            ask(&url, "GET", "/readyz", None).is_ok_and(|answer| answer.status == 503)
        });
        let late = ask(&url, "POST", IMAGES, Some(&json!({"prompt": "ring"}))).expect("it still answers");
        late.refused(503, "shutting_down", None);
        running.join().unwrap()
    });
    let answer = answer.expect("the request under way is answered").ok();
    let exit = server.end();
    assert_eq!(exit.code, Some(0), "{}", exit.errors);
    // In another process, the same bytes.
    assert_eq!(answer.file(0), TestServer::shared().generate(&body).ok().file(0));
    assert!(ask(&url, "GET", "/livez", None).is_err(), "nobody listens any more");
}

#[test]
fn sigterm_at_rest_and_ctrl_c_exit_with_0_at_once() {
    let models = shipped("tiny");
    for signal in ["TERM", "INT"] {
        let mut server = Process::windowpane(&tiny(models.to_str().unwrap(), &[]));
        let url = server.url();
        assert_eq!(ask(&url, "GET", "/readyz", None).unwrap().ok().json()["status"], "ready");
        let start = Instant::now();
        server.signal(signal);
        let exit = server.end();
        assert_eq!(exit.code, Some(0), "{signal}: {}", exit.errors);
        // The idle connection of the request above does not hold it up.
        assert!(start.elapsed() < Duration::from_secs(15), "{signal}: {:?}", start.elapsed());
        assert!(exit.errors.contains(&format!("SIG{signal}")), "the log says why: {}", exit.errors);
    }
}

#[test]
fn the_binary_asks_after_its_own_health() {
    let models = shipped("tiny");
    let mut server = Process::windowpane(&tiny(models.to_str().unwrap(), &PATIENT));
    let url = server.url();
    let port = url.rsplit(':').next().unwrap().to_owned();
    let health = |more: &[&str]| {
        let exit = Process::windowpane(&[&["--port", &port, "health"], more].concat()).end();
        (exit.code, exit.errors)
    };
    assert_eq!(health(&[]), (Some(0), String::new()));
    assert_eq!(health(&["--ready"]), (Some(0), String::new()));
    // A file that is being written is no illness: the server goes on with what it read before.
    let exit = Process::windowpane(&["--port", &port, "--keys", "/nowhere/keys.toml", "health"]).end();
    assert_eq!((exit.code, exit.errors), (Some(0), String::new()));
    let body = json!({"prompt": "ring", "seed": 1, "n": 2, "steps": 600, "guidance_scale": 1});
    std::thread::scope(|scope| {
        let running = scope.spawn(|| ask(&url, "POST", IMAGES, Some(&body)).map(|answer| answer.status));
        until_images(&url, 2);
        server.signal("TERM");
        TestServer::shared().until("it is draining", || {
            ask(&url, "GET", "/readyz", None).is_ok_and(|answer| answer.status == 503)
        });
        // It works, and does not want more.
        assert_eq!(health(&[]).0, Some(0));
        let (code, says) = health(&["--ready"]);
        assert!(code == Some(1) && says.contains("/readyz answers 503"), "{code:?} {says}");
        assert_eq!(running.join().unwrap(), Ok(200));
    });
    assert_eq!(server.end().code, Some(0));
    let (code, says) = health(&[]);
    assert!(code == Some(1) && says.starts_with("windowpane: no answer from 127.0.0.1:"), "{code:?} {says}");
}

#[test]
fn a_shutdown_that_takes_too_long_is_cut_and_told() {
    let models = shipped("tiny");
    let mut server = Process::windowpane(&tiny(models.to_str().unwrap(), &["--shutdown-timeout", "0"]));
    let url = server.url();
    std::thread::scope(|scope| {
        let running = scope
            .spawn(|| ask(&url, "POST", IMAGES, Some(&json!({"prompt": "ring", "seed": 1, "steps": 1000}))));
        until_images(&url, 1);
        server.signal("TERM");
        let answer = running.join().unwrap().expect("even so, it is answered");
        answer.refused(503, "shutting_down", None);
    });
    assert_eq!(server.end().code, Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let models = shipped("tiny");
    let mut server = Process::windowpane(&tiny(models.to_str().unwrap(), &[]));
    let url = server.url();
    let body = json!({"prompt": "ring", "seed": 1, "n": 4, "steps": 1000});
    std::thread::scope(|scope| {
        let running = scope.spawn(|| ask(&url, "POST", IMAGES, Some(&body)));
        until_images(&url, 4);
        server.signal("TERM");
        TestServer::shared().until("it is draining", || {
            ask(&url, "GET", "/readyz", None).is_ok_and(|answer| answer.status == 503)
        });
        server.signal("TERM");
        assert!(running.join().unwrap().is_err(), "a thousand steps cannot have been finished");
    });
    assert_eq!(server.end().code, Some(130));
}

/// Asked for CUDA, it serves on CUDA or not at all. On a machine without, that is a sentence and a 1.
#[test]
fn cuda_that_is_not_there_is_a_refusal_to_start() {
    let models = shipped("tiny");
    let mut server = Process::windowpane(&tiny(models.to_str().unwrap(), &["--device", "cuda"]));
    if let Some(url) = server.url_or_end() {
        let model = ask(&url, "GET", "/v1/models/tiny", None).unwrap().ok().json();
        assert_eq!(model["engine"]["provider"], "cuda", "it was told to run on CUDA and runs elsewhere");
        return;
    }
    let exit = server.end();
    assert_eq!(exit.code, Some(1));
    let last =
        exit.errors.lines().find(|line| line.starts_with("windowpane: ")).expect("it says why it ends");
    assert!(last.contains("CUDA was asked for by `--device cuda` and is not available"), "{last}");
}

#[test]
fn a_broken_package_is_a_refusal_that_names_the_file() {
    let package = Package::tiny();
    let weights = package.read("weights.bin");
    package.write("weights.bin", &weights[..1000]);
    let models = package.models();
    let mut server = Process::windowpane(&tiny(models.to_str().unwrap(), &[]));
    let exit = server.end();
    assert_eq!(exit.code, Some(1));
    assert!(exit.errors.contains("tiny/weights.bin` has 1000 bytes"), "{}", exit.errors);
}

/// Of a network with a thousand tokens a full tick takes several hundred megabytes, which its session would keep.
#[test]
fn what_the_measurement_took_is_given_back() {
    let models = shipped("tiny");
    let args = ["--models", models.to_str().unwrap(), "--port", "0", "--max-rows", "16", "--jobs", "off"];
    let mut server = Process::windowpane(&[&args[..], &["--device", "cpu"]].concat());
    server.url();
    let (now, peak) = (server.resident_bytes(), server.peak_bytes());
    assert!(2 * now < peak, "{now} bytes are in memory, and {peak} were");
}

#[test]
fn a_package_is_checked_without_a_server() {
    let (good, damaged) = (shipped("tiny"), Package::tiny());
    damaged.write("weights.bin", b"");
    let check = |more: &[&str]| Process::windowpane(&[&["--max-rows", "4", "check"], more].concat()).end();
    let (good, bad) = (good.to_str().unwrap().to_owned(), damaged.models().join("tiny"));
    let bad = bad.to_str().unwrap();
    let exit = check(&[&good]);
    assert_eq!(exit.code, Some(0), "{}", exit.errors);
    let report = exit.lines.join("\n");
    assert!(report.contains("tiny: good") && report.contains("  golden  "), "{report}");
    // Scripts read an object a package, whatever is found.
    let exit = check(&["--json", &good, bad]);
    assert_eq!(exit.code, Some(1), "{}", exit.errors);
    let found: Vec<Value> = exit
        .lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let ok: Vec<_> = found.iter().map(|found| (&found["ok"], found["folder"].as_str().unwrap())).collect();
    assert_eq!(ok, [(&json!(true), good.as_str()), (&json!(false), bad)]);
    assert_eq!((&found[0]["model"], &found[0]["engine"]["provider"]), (&json!("tiny"), &json!("cpu")));
    assert!(found[1]["error"].as_str().unwrap().contains("weights.bin` has 0 bytes"), "{}", found[1]);
    // The files alone take no runtime.
    for (folder, code) in [(good.as_str(), 0), (bad, 1)] {
        let exit = check(&["--files-only", "--json", folder]);
        assert_eq!(exit.code, Some(code), "{}", exit.errors);
        let [line] = exit.lines.as_slice() else { panic!("one line: {:?}", exit.lines) };
        assert!(serde_json::from_str::<Value>(line).unwrap().get("engine").is_none(), "{line}");
    }
    let exit = check(&["/nonexistent/models"]);
    assert!(exit.code == Some(1) && exit.lines.join(" ").contains("/nonexistent/models"), "{exit:?}");
}

#[test]
fn bad_arguments_and_a_taken_port_are_sentences() {
    let models = shipped("tiny");
    let models = models.to_str().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (args, code, says) in [
        (
            vec!["--models", models, "--max-rows", "1", "--queue-limit", "0"],
            1,
            "`--max-rows` is 1, expected 2 to 1024",
        ),
        (vec!["--models", models, "--port", "70000"], 2, "70000"),
        (vec!["--models", models, "--device", "tpu"], 2, "tpu"),
        (vec!["--models", models, "--log", "=="], 1, "--log"),
        (vec!["--models", models, "--port", &port], 1, port.as_str()),
        (vec!["--models", "/nonexistent/models", "--port", "0"], 1, "/nonexistent/models"),
        (
            vec!["--models", models, "--port", "0", "--ort-dylib", "/nonexistent/ort.so"],
            1,
            "/nonexistent/ort.so",
        ),
    ] {
        let exit = Process::windowpane(&args).end();
        assert_eq!(exit.code, Some(code), "{args:?}: {}", exit.errors);
        assert!(exit.errors.contains(says), "{args:?}: {}", exit.errors);
        assert!(!exit.errors.contains("panicked"), "{args:?}: {}", exit.errors);
    }
}

#[test]
fn json_logs_are_one_object_a_line() {
    let models = shipped("tiny");
    // Its address is in the log then, not on standard output.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("windowpane.sock");
    let listen = format!("unix:{}", path.display());
    let args = ["--models", models.to_str().unwrap(), "--max-rows", "4", "--listen", &listen];
    let mut server = Process::windowpane(&[&args[..], &["--log-format", "json"]].concat());
    // It answers from the beginning on, and minds signals then.
    TestServer::shared().until("it answers", || {
        let Ok(mut socket) = UnixStream::connect(&path) else { return false };
        let asked = socket.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let mut answer = String::new();
        let read = asked.and_then(|()| socket.read_to_string(&mut answer));
        read.is_ok() && answer.starts_with("HTTP/1.1 200 ")
    });
    server.signal("TERM");
    let exit = server.end();
    assert_eq!(exit.code, Some(0), "told to stop while it loads, it stops: {}", exit.errors);
    assert!(!exit.errors.is_empty());
    for line in exit.errors.lines() {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(entry["level"].is_string() && entry["timestamp"].is_string(), "{line}");
    }
}

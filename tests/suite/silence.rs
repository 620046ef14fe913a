//! A store of jobs that says nothing: a database whose host has gone, and a network between that does not tell. The server
//! answers its probes, and leaves when it is told to.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::json;
use suite::{Postgres, Process, TestServer, shipped};

/// What leaving may take at the most beyond the time for images: the sum of docs/operating.md, and some for a busy machine.
const LEAVING: Duration = Duration::from_secs(35);

/// A network to a database, which takes what it is given and passes nothing on once it is `cut`.
struct Network {
    url: String,
    cut: Arc<AtomicBool>,
}

// === impl Network ===

impl Network {
    /// To the database of this URL.
    fn to(url: &str) -> Self {
        let (head, rest) = url.split_once('@').unwrap();
        let (address, rest) = rest.split_once('/').unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("{head}@{}/{rest}", listener.local_addr().unwrap());
        let (address, cut) = (address.to_owned(), Arc::new(AtomicBool::new(false)));
        let is_cut = Arc::clone(&cut);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let database = TcpStream::connect(&address).unwrap();
                let ways = [(client.try_clone().unwrap(), database.try_clone().unwrap()), (database, client)];
                for (from, to) in ways {
                    let is_cut = Arc::clone(&is_cut);
                    std::thread::spawn(move || pass(from, to, &is_cut));
                }
            }
        });
        Self { url, cut }
    }
}

/// Passes on what comes, until it is cut: then both ends stay open, and neither hears anything.
fn pass(mut from: TcpStream, mut to: TcpStream, is_cut: &AtomicBool) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if !is_cut.load(Relaxed) && to.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
    if !is_cut.load(Relaxed) {
        let _ = to.shutdown(Shutdown::Both);
    }
}

#[test]
fn a_server_whose_database_says_nothing_any_more_leaves_in_time() {
    let Some(postgres) = Postgres::shared() else { return };
    let network = Network::to(&TestServer::shared().block_on(postgres.database()));
    let models = shipped("tiny");
    let args = ["--models", models.to_str().unwrap(), "--port", "0", "--max-rows", "4", "--job-lease", "2"];
    let mut server =
        Process::windowpane(&[&args[..], &["--jobs", &network.url, "--shutdown-timeout", "1"]].concat());
    let url = server.url();
    let ask = |method, path: &str, body| {
        TestServer::shared().elsewhere(method, &format!("{url}{path}"), body).unwrap()
    };
    // Work that never ends by itself.
    let request = json!({"model": "tiny", "prompt": "ring", "n": 10_000, "steps": 1000});
    let order = json!({"kind": "images", "request": request});
    assert_eq!(ask("PUT", "/v1/jobs/long", Some(&order)).status, 202);
    let start = Instant::now();
    while ask("GET", "/v1/jobs/long", None).json()["state"] != "running" {
        assert!(start.elapsed() < Duration::from_secs(60), "it is taken up");
        std::thread::sleep(Duration::from_millis(20));
    }
    network.cut.store(true, Relaxed);
    // Until something is asked of it that is not answered.
    std::thread::sleep(Duration::from_secs(3));
    let image = json!({"model": "tiny", "prompt": "ring", "steps": 1});
    assert_eq!(ask("POST", "/v1/images/generations", Some(&image)).status, 200, "images go on");
    assert_eq!(ask("GET", "/livez", None).status, 200);
    let told = Instant::now();
    server.signal("TERM");
    let exit = server.end();
    assert_eq!(exit.code, Some(0), "{}", exit.errors);
    assert!(told.elapsed() < LEAVING, "it took {:?}: {}", told.elapsed(), exit.errors);
    // It said nothing: what was under way could not be put down.
    assert!(exit.errors.contains("some jobs were not put down in time"), "{}", exit.errors);
}

#[test]
fn probes_and_signals_are_minded_while_the_store_of_jobs_does_not_open() {
    // It lets everybody in and says nothing.
    let database = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let jobs = format!("postgres://postgres@{}/jobs?sslmode=disable", database.local_addr().unwrap());
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let models = shipped("tiny");
    let args = ["--models", models.to_str().unwrap(), "--port", &port.to_string(), "--jobs", &jobs];
    let mut server = Process::windowpane(&args);
    let ask =
        |path: &str| TestServer::shared().elsewhere("GET", &format!("http://127.0.0.1:{port}{path}"), None);
    let start = Instant::now();
    let alive = loop {
        if let Ok(answer) = ask("/livez") {
            break answer;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "it listens");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(alive.status, 200, "{}", alive.text());
    for path in ["/startupz", "/readyz", "/v1/jobs"] {
        let answer = ask(path).unwrap();
        assert_eq!(answer.status, 503, "{path}: {}", answer.text());
    }
    let told = Instant::now();
    server.signal("TERM");
    let exit = server.end();
    assert_eq!(exit.code, Some(0), "{}", exit.errors);
    assert!(
        told.elapsed() < Duration::from_secs(9),
        "{:?}, as long as it waits for the store",
        told.elapsed()
    );
}

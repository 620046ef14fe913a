//! Ten thousand connections that do nothing: held as far as the limit allows and closed beyond it, at a price that is known,
//! and in nobody's way.

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use serde_json::json;
use suite::{Answer, IMAGES, Process, TestServer, shipped};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use windowpane_server::serve::raise_open_files;

/// Connections.
const IDLE: usize = 10_000;

/// Files that the other tests of this process may have open meanwhile.
const OTHERS: usize = 2000;

/// The variable with which somebody says that his machine allows fewer.
const FEW_FILES: &str = "WINDOWPANE_FEW_FILES";

/// How many connections this process may hold: all of them, or where its hard limit on open files is too low and that is
/// excused, as many as it allows. And the right to hold them, which one test has at a time.
fn connections() -> (usize, MutexGuard<'static, ()>) {
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let possible = raise_open_files(IDLE + OTHERS).saturating_sub(OTHERS);
    if possible < IDLE {
        let hard = getrlimit(Resource::Nofile).maximum;
        let said = format!(
            "only {possible} connections of {IDLE} can be tried: the hard limit on open files is {hard:?}"
        );
        let forbidden = hard.is_some_and(|hard| hard < (IDLE + OTHERS + 256) as u64);
        assert!(forbidden, "{said}, which would allow more");
        let excused = std::env::var(FEW_FILES).is_ok_and(|value| value == "1");
        assert!(excused, "{said}; raise it (`ulimit -Hn`), or set {FEW_FILES}=1 to try with fewer");
        assert!(possible >= 1000, "{said}, too few to show anything");
        // Past the test's own capture, which would hide it where it passes.
        let _ = writeln!(std::io::stderr(), "{FEW_FILES}=1: {}", said.to_uppercase());
    }
    (possible, one)
}

/// A process that serves `models/tiny` to so many connections, which may do nothing for ten minutes.
fn process(max_connections: usize, more: &[&str]) -> Process {
    let (models, limit) = (shipped("tiny"), max_connections.to_string());
    let args = ["--models", models.to_str().unwrap(), "--port", "0", "--max-rows", "2"];
    let limits = ["--max-connections", &limit, "--header-timeout", "600"];
    Process::windowpane(&[&args[..], &limits, more].concat())
}

fn get(url: &str) -> Answer {
    TestServer::shared().elsewhere("GET", url, None).unwrap().ok()
}

/// A sample of the metrics at this address.
fn sample(metrics: &str, name: &str) -> usize {
    let text = get(metrics).text().to_owned();
    let line =
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {text}"));
    line.trim().parse().unwrap()
}

/// So many are open and do nothing as the limit allows; the rest are closed at once, and cost nothing.
#[test]
fn of_ten_thousand_connections_two_hundred_are_held_and_the_others_are_closed() {
    const LIMIT: usize = 200;
    let (possible, _one) = connections();
    let mut server = process(LIMIT, &["--metrics-listen", "127.0.0.1:0"]);
    let (url, metrics) = (server.url(), server.metrics_url());
    let before = server.resident_bytes();
    let shared = TestServer::shared();
    let address = url.trim_start_matches("http://").to_owned();
    let mut held = shared.block_on(async {
        let mut all = Vec::new();
        for _ in 0..possible {
            all.push(TcpStream::connect(&address).await.unwrap());
        }
        all
    });
    shared.until("all were taken or refused", || {
        sample(&metrics, "windowpane_connections_total{outcome=\"accepted\"}")
            + sample(&metrics, "windowpane_connections_total{outcome=\"refused\"}")
            >= possible
    });
    // The limit's, and the scraper's own.
    let open = sample(&metrics, "windowpane_connections ");
    assert!((LIMIT..=LIMIT + 4).contains(&open), "{open}");
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more for connections that do nothing");
    // Whoever watches is still answered, and the others were told at once.
    get(&metrics.replace("/metrics", "/readyz"));
    shared.until("the others are closed", || {
        held = shared.block_on(async {
            let mut open = Vec::new();
            for mut stream in std::mem::take(&mut held) {
                // A reset is an end as well.
                if timeout(Duration::from_millis(1), stream.read_u8()).await.is_err() {
                    open.push(stream);
                }
            }
            open
        });
        held.len() <= LIMIT
    });
    drop(held);
    shared.until("it serves again", || {
        shared.elsewhere("GET", &format!("{url}/livez"), None).is_ok_and(|a| a.status == 200)
    });
    server.signal("TERM");
    assert_eq!(server.end().code, Some(0));
}

/// Asks on each of these connections whether the server lives; they stay open. All ask before the first is heard, so that the
/// machine does not change from one process to the other and back for each.
async fn ask(streams: &mut [&mut TcpStream]) {
    for stream in &mut *streams {
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    }
    for stream in streams {
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            let read = timeout(Duration::from_secs(60), stream.read_buf(&mut answer)).await;
            assert_ne!(read.expect("it is answered").unwrap(), 0, "it was hung up on");
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    }
}

#[test]
fn ten_thousand_connections_are_held_at_a_known_price_and_images_are_drawn_beside_them() {
    /// Measured were 26 800, with all that a connection has once it was asked on; half as much again for other allocators.
    const BYTES: u64 = 40_000;
    let (possible, _one) = connections();
    let mut server = process(IDLE + 1000, &[]);
    let url = server.url();
    let metrics = format!("{url}/metrics");
    let image = json!({"prompt": "ring", "seed": 7, "steps": 2});
    let draw = || {
        let answer = TestServer::shared().elsewhere("POST", &format!("{url}{IMAGES}"), Some(&image));
        answer.unwrap().ok().file(0)
    };
    let expected = draw();
    let before = server.resident_bytes();
    let address = url.trim_start_matches("http://");
    let mut held = TestServer::shared().block_on(async {
        let mut all = Vec::new();
        while all.len() < possible {
            let first = all.len();
            for _ in first..possible.min(first + 200) {
                all.push(TcpStream::connect(address).await.unwrap());
            }
            // Whoever keeps a connection has asked for something on it, and the server has what that takes.
            ask(&mut all[first..].iter_mut().collect::<Vec<_>>()).await;
        }
        all
    });
    // Theirs, and the scraper's own.
    let open = sample(&metrics, "windowpane_connections ");
    assert!((possible + 1..=possible + 4).contains(&open), "{open}");
    let grown = server.resident_bytes().saturating_sub(before) / possible as u64;
    assert!(grown < BYTES, "{grown} bytes a connection that does nothing");
    get(&format!("{url}/livez"));
    get(&format!("{url}/readyz"));
    assert_eq!(draw(), expected);
    // And each of them is as good as ever.
    TestServer::shared().block_on(async {
        ask(&mut held.iter_mut().step_by(100).collect::<Vec<_>>()).await;
    });
    drop(held);
    TestServer::shared().until("they are gone", || sample(&metrics, "windowpane_connections ") <= 4);
    server.signal("TERM");
    assert_eq!(server.end().code, Some(0));
}

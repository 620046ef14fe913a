//! A real Prometheus, and its `promtool`: found where `cargo xtask setup` put them or on PATH, run in a folder of their
//! own, ended with the test.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tempfile::TempDir;

use crate::{REMEDY, TestServer};

/// Time that it has to start, to scrape or to evaluate a rule.
const PATIENCE: Duration = Duration::from_secs(300);

/// A Prometheus that reads one server every second.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    folder: TempDir,
    url: String,
}

/// What `promtool` said to these arguments and this input, and whether it was content.
pub fn promtool(args: &[&str], input: &str) -> (bool, String) {
    let mut command = Command::new(program("promtool"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("it is piped");
    let input = input.to_owned();
    // Whoever does not read all of its input has said enough.
    let writer = std::thread::spawn(move || _ = stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    writer.join().expect("writing does not panic");
    let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    (output.status.success(), said.concat())
}

/// Where a program of Prometheus' is: named, on PATH, or set up by ourselves.
fn program(name: &str) -> PathBuf {
    let named = std::env::var_os("WINDOWPANE_TEST_PROMETHEUS").filter(|path| !path.is_empty());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> =
        named.map(PathBuf::from).into_iter().chain(std::env::split_paths(&path)).collect();
    let absolute =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    folders.extend(cache.and_then(|cache| newest(&cache.join("windowpane"))));
    folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file()).unwrap_or_else(|| {
        panic!(
            "no `{name}`, neither on PATH nor in the cache folder; {REMEDY}; on Debian and Ubuntu also \
             `apt-get install prometheus`; or name the folder by WINDOWPANE_TEST_PROMETHEUS"
        )
    })
}

/// The newest one that is whole.
fn newest(cache: &Path) -> Option<PathBuf> {
    let whole = |folder: PathBuf| -> Option<(SystemTime, PathBuf)> {
        folder.file_name()?.to_str()?.strip_prefix("prometheus-")?;
        Some((folder.join(".complete").metadata().ok()?.modified().ok()?, folder.join("usr/bin")))
    };
    std::fs::read_dir(cache)
        .ok()?
        .filter_map(|entry| whole(entry.ok()?.path()))
        .max()
        .map(|(_, folder)| folder)
}

// === impl Prometheus ===

impl Prometheus {
    /// Starts one that scrapes `server` as the job `windowpane`, with these files of rules.
    pub fn watching(server: &TestServer, rules: &[PathBuf]) -> Self {
        let folder = tempfile::tempdir().expect("a folder for its data");
        let target = server.url().trim_start_matches("http://").to_owned();
        let rules: Vec<_> = rules.iter().map(|file| format!("  - {}\n", file.display())).collect();
        let config = format!(
            "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files:\n{}scrape_configs:\n  \
             - job_name: windowpane\n    static_configs:\n      - targets: ['{target}']\n",
            rules.concat()
        );
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("its folder can be written to");
        let address = free_address();
        let mut command = Command::new(program("prometheus"));
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address={address}")).arg("--log.level=warn");
        let log = std::fs::File::create(folder.path().join("log")).expect("its folder can be written to");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let prometheus = Self { child, folder, url: format!("http://{address}") };
        prometheus.until("it is ready", || prometheus.get("/-/ready").is_some());
        prometheus
    }

    /// The samples that a query gives now, each its labels and its value. Errors: its words about the query.
    pub fn query(&self, query: &str) -> Result<Vec<(Value, f64)>, String> {
        let mut url = reqwest::Url::parse(&format!("{}/api/v1/query", self.url)).expect("it is a URL");
        url.query_pairs_mut().append_pair("query", query);
        let answer = TestServer::shared().elsewhere("GET", url.as_str(), None)?;
        let body = answer.json();
        if body["status"] != "success" {
            return Err(format!("{query}: {}", body["error"]));
        }
        let samples = body["data"]["result"].as_array().cloned().unwrap_or_default();
        let sample = |sample: Value| {
            let value = sample["value"][1].as_str().and_then(|text| text.parse().ok());
            (sample["metric"].clone(), value.expect("a sample has a value"))
        };
        Ok(samples.into_iter().map(sample).collect())
    }

    /// The rules with what became of them: name, health, last error.
    pub fn rules(&self) -> Vec<(String, String, String)> {
        let body = self.get("/api/v1/rules").expect("it answers");
        let groups = body["data"]["groups"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let rules = groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default());
        rules.map(|rule| (text(&rule["name"]), text(&rule["health"]), text(&rule["lastError"]))).collect()
    }

    /// Waits until something is so.
    pub fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let start = Instant::now();
        while !is_so() {
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(start.elapsed() < PATIENCE, "waited in vain until {what}; it said: {}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// An answer of its own; `None` while it does not give one.
    fn get(&self, path: &str) -> Option<Value> {
        let answer = TestServer::shared().elsewhere("GET", &format!("{}{path}", self.url), None).ok()?;
        let text = String::from_utf8_lossy(&answer.bytes);
        (answer.status == 200).then(|| serde_json::from_str(&text).unwrap_or(Value::Null))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address that nobody listens at: it cannot say which it took itself.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a listener has an address")
}

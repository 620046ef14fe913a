//! A real PostgreSQL for as long as the test process lives: found by `WINDOWPANE_TEST_POSTGRES`, on PATH, where Debian puts
//! it, or where `cargo xtask setup` did; with its data in a folder of its own. Where there is none, tests of it are passed
//! over, and say so; with `WINDOWPANE_REQUIRE_POSTGRES=1` they fail instead. The server's own tests include this file.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use sqlx::AnyConnection;
use sqlx::Connection as _;

/// Time that it has to start.
const PATIENCE: Duration = Duration::from_secs(300);

/// Who runs it where we are root, whom it refuses.
const NOBODY: &str = "nobody";

/// Ends what it starts when its standard input does: however this process ends.
const GUARD: &str = "\"$@\" & pid=$!; cat >/dev/null; kill -INT $pid; wait $pid";

/// A PostgreSQL that is running.
#[derive(Debug)]
pub struct Postgres {
    address: SocketAddr,
    /// Databases made.
    made: AtomicUsize,
}

// === impl Postgres ===

impl Postgres {
    /// The one of this process; none where there is none to be had, which has then been said.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Postgres>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref()
    }

    fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            let sentence =
                "no PostgreSQL on this machine (`initdb` and `postgres`; Debian's package `postgresql`)";
            let is_required =
                std::env::var_os("WINDOWPANE_REQUIRE_POSTGRES").is_some_and(|value| value == "1");
            assert!(!is_required, "{sentence}, and WINDOWPANE_REQUIRE_POSTGRES asks for one");
            // Past the capturing of the test: whoever reads the log shall know.
            let _ = writeln!(std::io::stderr(), "\nSKIPPED: tests on PostgreSQL: {sentence}\n");
            return None;
        };
        // Outlives this function, and is the machine's to clear away: a static is not dropped.
        let folder = tempfile::tempdir().expect("a folder for its data").keep();
        let data = folder.join("data");
        if is_root() {
            run(Command::new("chown").arg(NOBODY).arg(&folder));
        }
        let mut initdb = program(&programs.join("initdb"));
        initdb.args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync"]);
        run(initdb.arg("--pgdata").arg(&data).current_dir(&folder));
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
        let address = free.expect("a free port");
        let mut postgres = program(&programs.join("postgres"));
        postgres.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-p", &address.port().to_string()]);
        // Its own crashes are not what is tested.
        postgres.arg("-k").arg(&folder).args(["-c", "fsync=off", "-c", "max_connections=200"]);
        let log = std::fs::File::create(folder.join("log")).expect("a file for its log");
        let mut guard = Command::new("sh");
        guard.args(["-c", GUARD, "sh"]).arg(postgres.get_program()).args(postgres.get_args());
        guard.current_dir(&folder).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        let child = guard.spawn().unwrap_or_else(|error| panic!("{guard:?}: {error}"));
        // Its standard input is ours to the end.
        std::mem::forget(child);
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            let said = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            assert!(start.elapsed() < PATIENCE, "PostgreSQL did not start: {}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(Self { address, made: AtomicUsize::new(0) })
    }

    /// The URL of a new database.
    pub async fn database(&self) -> String {
        sqlx::any::install_default_drivers();
        let name = format!("test_{}_{}", std::process::id(), self.made.fetch_add(1, Relaxed));
        let start = Instant::now();
        let mut connection = loop {
            match AnyConnection::connect(&self.url("postgres")).await {
                Ok(connection) => break connection,
                // It listens before it lets anybody in.
                Err(error) => assert!(start.elapsed() < PATIENCE, "PostgreSQL does not answer: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let made = sqlx::query(&format!("CREATE DATABASE {name}")).execute(&mut connection).await;
        made.unwrap_or_else(|error| panic!("{name}: {error}"));
        self.url(&name)
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://postgres@{}/{database}?sslmode=disable", self.address)
    }
}

/// The folder with its programs.
fn programs() -> Option<PathBuf> {
    let named = std::env::var_os("WINDOWPANE_TEST_POSTGRES").filter(|path| !path.is_empty());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> =
        named.map(PathBuf::from).into_iter().chain(std::env::split_paths(&path)).collect();
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let cache =
        std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home.map(|home| home.join(".cache")));
    let ours = cache.map(|cache| cache.join("windowpane/postgresql-debian/usr/lib/postgresql"));
    for folder in ours.into_iter().chain([PathBuf::from("/usr/lib/postgresql")]) {
        let versions = std::fs::read_dir(folder).into_iter().flatten().flatten();
        folders.extend(versions.map(|version| version.path().join("bin")));
    }
    folders.into_iter().find(|folder| ["initdb", "postgres"].iter().all(|name| folder.join(name).is_file()))
}

/// A command that is not run as root.
fn program(path: &Path) -> Command {
    if !is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", "nogroup", "--clear-groups"]).arg(path);
    command
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("every system has `id`");
    output.stdout.trim_ascii() == b"0"
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

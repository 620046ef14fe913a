//! Jobs through the binary: servers that are killed in the middle, twenty times, on a file and on a PostgreSQL that two of
//! them share. Nothing is lost, every result is committed once, and at most one piece of work is done again for each kill;
//! of a study, too, which is killed three times.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sqlx::AnyConnection;
use sqlx::Row as _;
use sqlx::{Connection as _, Executor as _};
use suite::{Answer, Postgres, Process, Random, TestServer, shipped};

/// Times that a server is killed.
const KILLS: usize = 20;

/// Jobs that are under way meanwhile.
const JOBS: usize = 6;

/// Time that all of it may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Pieces of a job, each of one call of the network.
const PIECES: usize = 80;

/// Rows of a call: two images, since they are guided.
const ROWS: usize = 4;

/// A few seconds of work, in many pieces: each is done between two kills, or a job would be given up after five.
fn order() -> Value {
    let request = json!({
        "model": "tiny", "prompt": "ring", "seed": 7, "steps": 1, "n": PIECES * ROWS / 2, "output_format": "npz",
    });
    json!({"kind": "images", "request": request})
}

/// Servers that share a store. One that was killed is begun again.
struct Servers {
    jobs: String,
    servers: Vec<(Process, String)>,
    /// Calls of the network for jobs, by those that were killed.
    calls: usize,
}

// === impl Servers ===

impl Servers {
    fn on(jobs: &str, count: usize) -> Self {
        let begin = |_| Self::begin(jobs);
        Self { jobs: jobs.to_owned(), servers: (0..count).map(begin).collect(), calls: 0 }
    }

    fn begin(jobs: &str) -> (Process, String) {
        let models = shipped("tiny");
        let rows = ROWS.to_string();
        let args = ["--models", models.to_str().unwrap(), "--port", "0", "--max-rows", &rows];
        let args = [&args[..], &["--job-lease", "2", "--job-limit", "1000", "--jobs", jobs]].concat();
        let mut server = Process::windowpane(&args);
        let url = server.url();
        (server, url)
    }

    /// Calls of the network for jobs, by a server that lives; none before its model is there.
    fn calls_of(&self, which: usize) -> usize {
        let metrics = self.ask(which, "GET", "/metrics", None).ok();
        let sample = "windowpane_study_units_total{graph=\"denoiser\",model=\"tiny\"} ";
        let count = metrics.text().lines().find_map(|line| line.strip_prefix(sample)?.parse().ok());
        count.unwrap_or(0)
    }

    /// By all of them.
    fn all_calls(&self) -> usize {
        self.calls + (0..self.servers.len()).map(|which| self.calls_of(which)).sum::<usize>()
    }

    fn kill(&mut self, which: usize) {
        self.calls += self.calls_of(which);
        let (server, _) = &mut self.servers[which];
        server.signal("KILL");
        assert_eq!(server.end().code, None, "it was killed");
        self.servers[which] = Self::begin(&self.jobs);
    }

    fn ask(&self, which: usize, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let url = format!("{}{path}", self.servers[which % self.servers.len()].1);
        TestServer::shared().elsewhere(method, &url, body).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    fn job(&self, id: &str) -> Value {
        self.ask(0, "GET", &format!("/v1/jobs/{id}"), None).ok().json()
    }

    /// How much of a job is done.
    fn done(&self, id: &str) -> u64 {
        self.job(id)["progress"]["done"].as_u64().unwrap()
    }

    /// Waits for the end of a job, and fetches what came of it.
    fn result(&self, id: &str) -> Vec<u8> {
        let start = Instant::now();
        loop {
            let job = self.job(id);
            match job["state"].as_str().unwrap() {
                "succeeded" => break,
                "queued" | "running" => assert!(start.elapsed() < PATIENCE, "{job}"),
                _ => panic!("{job}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.ask(1, "GET", &format!("/v1/jobs/{id}/result"), None).ok().bytes
    }
}

/// What the store knows of how the jobs were done: of each, its leases with their outcomes, and its pieces with the lease
/// under which each was committed.
async fn record(jobs: &str) -> BTreeMap<i64, (Vec<(i64, i64, String)>, Vec<(i64, i64)>)> {
    sqlx::any::install_default_drivers();
    let mut store = AnyConnection::connect(jobs).await.expect("the store is there");
    let mut record: BTreeMap<i64, (Vec<_>, Vec<_>)> = BTreeMap::new();
    let leases = "SELECT job, token, first_piece, outcome FROM windowpane_leases ORDER BY job, token";
    for row in store.fetch_all(leases).await.unwrap() {
        record.entry(row.get(0)).or_default().0.push((row.get(1), row.get(2), row.get(3)));
    }
    let pieces = "SELECT job, number, token FROM windowpane_pieces ORDER BY job, number";
    for row in store.fetch_all(pieces).await.unwrap() {
        record.entry(row.get(0)).or_default().1.push((row.get(1), row.get(2)));
    }
    record
}

/// A lease begins behind all pieces that those before it committed, and every piece is committed once: nothing but what was
/// in hand is done again.
fn nothing_is_done_again(leases: &[(i64, i64, String)], pieces: &[(i64, i64)]) {
    let numbers: Vec<i64> = pieces.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (0..pieces.len() as i64).collect::<Vec<_>>());
    for (token, first, _) in leases {
        let before = pieces.iter().filter(|(_, by)| by < token).count() as i64;
        assert_eq!(before, *first, "{leases:?}");
    }
}

fn killed_twenty_times(jobs: &str, count: usize) {
    let mut servers = Servers::on(jobs, count);
    let mut random = Random::new(7);
    let ids: Vec<String> = (0..JOBS).map(|i| format!("job-{i}")).collect();
    for (i, id) in ids.iter().enumerate() {
        let answer = servers.ask(i, "PUT", &format!("/v1/jobs/{id}"), Some(&order()));
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    for kill in 0..KILLS {
        std::thread::sleep(Duration::from_millis(100 + random.below(900) as u64));
        servers.kill(random.below(count));
        if kill % 5 == 0 {
            // Whoever does not know whether its order arrived sends it again, and there is always something to do.
            let answer = servers.ask(kill, "PUT", &format!("/v1/jobs/{}", ids[0]), Some(&order()));
            assert_eq!(answer.status, 200, "{}", answer.text());
            let more = servers.ask(kill, "PUT", &format!("/v1/jobs/more-{kill}"), Some(&order()));
            assert_eq!(more.status, 202, "{}", more.text());
        }
    }
    let more = (0..KILLS).step_by(5).map(|kill| format!("more-{kill}"));
    let all: Vec<String> = ids.into_iter().chain(more).collect();
    let results: Vec<_> = all.iter().map(|id| servers.result(id)).collect();
    let calm = servers.ask(0, "PUT", "/v1/jobs/calm", Some(&order()));
    assert_eq!(calm.status, 202);
    let undisturbed = servers.result("calm");
    for (id, result) in all.iter().zip(&results) {
        assert!(*result == undisturbed, "{id} has another result than a job that nobody disturbed");
        let events = servers.ask(0, "GET", &format!("/v1/jobs/{id}/events"), None).ok();
        assert_eq!(events.text().matches("event: succeeded").count(), 1, "{id}: {}", events.text());
    }
    let record = TestServer::shared().block_on(record(jobs));
    assert_eq!(record.len(), all.len() + 1, "every job is there");
    let mut lost = 0;
    for (job, (leases, pieces)) in &record {
        let ends = leases.iter().filter(|(.., outcome)| outcome == "finished").count();
        assert_eq!(ends, 1, "job {job} ended {ends} times: {leases:?}");
        lost += leases.iter().filter(|(.., outcome)| outcome == "lost").count();
        nothing_is_done_again(leases, pieces);
    }
    // A kill takes at most the one job with it that the server had in hand, and of that the piece it was at.
    assert!((1..=KILLS).contains(&lost), "{lost} leases were lost by {KILLS} kills");
    let (calls, pieces) = (servers.all_calls(), record.len() * PIECES);
    assert!(calls <= pieces + KILLS, "{calls} calls for {pieces} pieces");
    // Nearly all of them were counted: a server is looked at a moment before it is killed.
    assert!(calls > pieces / 2, "{calls} calls for {pieces} pieces");
    eprintln!(
        "{KILLS} kills, {lost} leases lost, {} jobs, each with one result; {calls} calls for {pieces} pieces",
        record.len()
    );
}

/// A PSNR gap over these timesteps, each a piece of sixteen images, in four calls of the network.
fn gap(timesteps: usize) -> Value {
    const IMAGES: usize = 16;
    let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({IMAGES}, 32, 32), }}");
    let header = format!("{header:<117}\n");
    let pixels = (0..IMAGES * 32 * 32).map(|i| (i * 7 % 251) as u8).collect();
    let head = [b"\x93NUMPY\x01\x00".to_vec(), (header.len() as u16).to_le_bytes().to_vec()].concat();
    let train = STANDARD.encode([head, header.into_bytes(), pixels].concat());
    let request = json!({"model": "tiny", "train": train, "timesteps": timesteps, "output_format": "csv"});
    json!({"kind": "psnr-gap", "request": request})
}

/// Kills a server three times in the middle of a study; each time whoever takes it up begins behind the pieces that were committed,
/// and what comes of it is what comes of one that nobody disturbs.
fn a_study_survives_three_kills(order: &Value, expected_pieces: usize) {
    let folder = tempfile::tempdir().unwrap();
    let jobs = format!("sqlite:{}", folder.path().join("jobs.sqlite").display());
    let mut servers = Servers::on(&jobs, 1);
    let put = |servers: &Servers, id: &str| {
        let answer = servers.ask(0, "PUT", &format!("/v1/jobs/{id}"), Some(order));
        assert_eq!(answer.status, 202, "{}", answer.text());
    };
    put(&servers, "study");
    let mut last = 0;
    for kill in 0..3 {
        // A way further than where the last one ended: it is under way, and some pieces are committed.
        let start = Instant::now();
        loop {
            let progress = &servers.job("study")["progress"];
            let [done, total] = ["done", "total"].map(|name| progress[name].as_u64().unwrap());
            if done >= last + (total / 12).max(1) {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "nobody goes on after {kill} kills: {progress}");
            std::thread::sleep(Duration::from_millis(10));
        }
        servers.kill(0);
        // Nobody goes on before the lease of the dead one has ended.
        last = servers.done("study");
    }
    let result = servers.result("study");
    put(&servers, "calm");
    assert!(result == servers.result("calm"), "what comes of it is another than where nobody disturbed");
    let record = TestServer::shared().block_on(record(&jobs));
    let (leases, pieces) = record.values().next().unwrap();
    assert_eq!(pieces.len(), expected_pieces);
    let (outcomes, firsts): (Vec<_>, Vec<_>) =
        leases.iter().map(|(_, first, outcome)| (outcome.as_str(), *first)).unzip();
    assert_eq!(outcomes, ["lost", "lost", "lost", "finished"]);
    assert!(firsts.windows(2).all(|pair| pair[0] < pair[1]), "nothing was kept: {firsts:?}");
    nothing_is_done_again(leases, pieces);
}

#[test]
fn a_psnr_gap_survives_three_kills_on_a_file() {
    const TIMESTEPS: usize = 150;
    a_study_survives_three_kills(&gap(TIMESTEPS), TIMESTEPS);
}

#[test]
fn a_whole_jacobian_survives_three_kills_on_a_file() {
    /// Columns of a piece; the first piece is the noisy image.
    const COLUMNS: usize = 8;
    let request = json!({
        "model": "tiny", "prompt": "ring", "seed": 3, "steps": 5, "timestep": 300, "method": "full", "output_format": "npz",
    });
    a_study_survives_three_kills(&json!({"kind": "jacobian", "request": request}), 1 + 32 * 32 / COLUMNS);
}

#[test]
fn jobs_survive_twenty_kills_on_a_file() {
    let folder = tempfile::tempdir().unwrap();
    killed_twenty_times(&format!("sqlite:{}", folder.path().join("jobs.sqlite").display()), 1);
}

#[test]
fn jobs_survive_twenty_kills_of_two_servers_on_postgresql() {
    let Some(postgres) = Postgres::shared() else { return };
    let jobs = TestServer::shared().block_on(postgres.database());
    killed_twenty_times(&jobs, 2);
}

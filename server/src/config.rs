//! What was meant: the arguments validated once, and everything derived from them decided once. The rest of the
//! server reads only this.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::args::{Args, Device, Listen, SchedulingName};
use crate::batcher::Scheduling;
use crate::jobs;
use crate::jobs::webhook::{Hooks, Secret, SecretError};
use crate::keys::{Keys, KeysError};
use crate::middleware::cors::{Cors, CorsError};
use crate::serve::{Tls, TlsError};
use crate::spec::{MAX_FRAME_BYTES, MAX_IMAGES};
use crate::telemetry::otlp::{Traces, TracesError};
use crate::telemetry::{self, ParseError};

/// The server's configuration. [`Config::default`] is the configuration of an empty command line on a free port,
/// which is what tests start from, but that it keeps no jobs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of model packages.
    pub models: PathBuf,
    /// Where to listen.
    pub listen: Listen,
    /// The mode of the file that a Unix socket is.
    pub socket_mode: u32,
    /// The certificate, where HTTPS is spoken.
    pub tls: Option<Tls>,
    /// Where the metrics are, if not with the rest.
    pub metrics_listen: Option<SocketAddr>,
    /// Origins whose pages may call the server from a browser.
    pub cors: Option<Cors>,
    /// Where models run.
    pub device: Device,
    /// The ONNX Runtime library, where the user named one.
    pub ort_dylib: Option<PathBuf>,
    /// Threads of one tick.
    pub threads: usize,
    /// Rows in one call of the network, at least 2: a guided pair is never split.
    pub max_rows: usize,
    /// Images of one model that may wait or run.
    pub queue_limit: usize,
    /// Work of one model that may wait or run, as the time it takes.
    pub max_backlog: Duration,
    /// Memory for the frames that requests keep on the way and for the pixels of pictures to replay, in bytes.
    pub frame_limit: usize,
    /// Memory for answers that their clients have not taken, in bytes.
    pub answer_limit: usize,
    /// How ticks are formed.
    pub scheduling: Scheduling,
    /// Studies that one caller may have under way.
    pub study_quota: usize,
    /// Largest answer of a study in bytes.
    pub study_limit: usize,
    /// Time after which a graph of the insides that nobody asks for is let go.
    pub insides_idle: Duration,
    /// How jobs are kept and worked on.
    pub jobs: jobs::Settings,
    /// The API keys.
    pub keys: Keys,
    /// How often the model folder is looked at for new versions; never without.
    pub watch: Option<Duration>,
    /// Where spans go.
    pub traces: Option<Traces>,
    /// Time after which one call of the network is taken for stuck.
    pub watchdog: Duration,
    /// Largest request body in bytes.
    pub body_limit: usize,
    /// Time that running images are given at shutdown.
    pub shutdown_timeout: Duration,
    /// Time a client has for the head of a request, and that an idle connection is kept.
    pub header_timeout: Duration,
    /// Time a client has for the body of a request.
    pub body_timeout: Duration,
    /// Time for which a client may take nothing of its answer.
    pub write_timeout: Duration,
    /// Connections at a time.
    pub max_connections: usize,
    /// Largest head of a request in bytes.
    pub header_limit: usize,
    /// Requests at a time on one connection of HTTP/2.
    pub max_streams: u32,
}

/// The arguments do not make a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value is not accepted.
    #[error("{place} is {got}, expected {expected}")]
    Value {
        /// Where it stands: a flag, a variable, or a file and its key.
        place: String,
        /// What was given.
        got: u64,
        /// What is accepted.
        expected: String,
    },
    /// The file of keys is not one.
    #[error("{0}: {1}")]
    Keys(String, KeysError),
    /// The certificate is not one.
    #[error("{0}: {1}")]
    Tls(String, TlsError),
    /// The secret of the webhooks is none.
    #[error("{0}: {1}")]
    Secret(String, SecretError),
    /// One of two that need each other.
    #[error("{0} is given without `--{1}`")]
    Alone(String, &'static str),
    /// An origin is not one.
    #[error("{0}: {1}")]
    Cors(String, CorsError),
    /// The collector's address is not one.
    #[error("{0}: {1} an address such as http://localhost:4318")]
    Traces(String, TracesError),
    /// The log's filter is not one.
    #[error("{0}: {1}")]
    Log(String, ParseError),
}

// === impl Config ===

impl Config {
    /// Validates the arguments. All problems are reported, not the first.
    pub fn from_args(args: &Args) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let place = |flag| args.places.of(flag);
        let mut within = |flag, got: u64, low: u64, high: u64| {
            if !(low..=high).contains(&got) {
                errors.push(ConfigError::Value {
                    place: place(flag),
                    got,
                    expected: format!("{low} to {high}"),
                });
            }
        };
        within("threads", args.threads as u64, 0, 1024);
        within("max-rows", args.max_rows as u64, 2, 1024);
        // A limit below the largest request would refuse that for ever.
        within("queue-limit", args.queue_limit as u64, MAX_IMAGES, 1_000_000);
        within("max-backlog", args.max_backlog, 1, 3600);
        // Below what one request may keep, that request would have to be alone.
        within("frame-limit", args.frame_limit as u64, MAX_FRAME_BYTES as u64, 1 << 40);
        within("answer-limit", args.answer_limit as u64, 1 << 20, 1 << 40);
        within("study-quota", args.study_quota as u64, 1, 10_000);
        within("study-limit", args.study_limit as u64, 1, 1 << 16);
        within("insides-idle", args.insides_idle, 1, 86_400);
        within("job-workers", args.job_workers as u64, 0, 64);
        within("job-after", args.job_after, 1, 3600);
        within("job-lease", args.job_lease, 1, 3600);
        within("job-retention", args.job_retention, 1, 24 * 366);
        within("job-limit", args.job_limit as u64, 1, 100_000);
        // PostgreSQL and SQLite hold more; one process does not.
        within("job-result-limit", args.job_result_limit as u64, 1, 1 << 14);
        within("job-store-limit", args.job_store_limit as u64, 1, 1 << 24);
        within("batch-delay-ms", args.batch_delay_ms, 0, 60_000);
        within("watch", args.watch.unwrap_or(1), 1, 3600);
        within("watchdog", args.watchdog, 1, 3600);
        within("body-limit", args.body_limit as u64, 1024, 1 << 30);
        within("shutdown-timeout", args.shutdown_timeout, 0, 3600);
        within("max-connections", args.max_connections as u64, 1, 1_000_000);
        within("header-timeout", args.header_timeout, 1, 3600);
        within("body-timeout", args.body_timeout, 1, 3600);
        within("write-timeout", args.write_timeout, 1, 3600);
        within("header-limit", args.header_limit as u64, 8192, 1 << 20);
        within("max-streams", args.max_streams.into(), 1, 10_000);
        let keys = args.keys.as_deref().map_or_else(|| Ok(Keys::default()), Keys::read);
        let keys =
            keys.map_err(|error| errors.push(ConfigError::Keys(place("keys"), error))).unwrap_or_default();
        let traces = args.otlp_endpoint.as_deref().map(Traces::to).transpose();
        let traces = traces.map_err(|error| errors.push(ConfigError::Traces(place("otlp-endpoint"), error)));
        let traces = traces.unwrap_or_default();
        let cors = Cors::of(&args.cors_origin).unwrap_or_else(|wrong| {
            errors.extend(wrong.into_iter().map(|error| ConfigError::Cors(place("cors-origin"), error)));
            None
        });
        let tls = match (&args.tls_cert, &args.tls_key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                let tls = Tls::read(certificate, key);
                let blamed = |error: &TlsError| match error {
                    TlsError::Certificate { .. } | TlsError::Pair { .. } => "tls-cert",
                    TlsError::Key { .. } => "tls-key",
                };
                tls.map_err(|error| errors.push(ConfigError::Tls(place(blamed(&error)), error))).ok()
            }
            (Some(_), None) => {
                errors.push(ConfigError::Alone(place("tls-cert"), "tls-key"));
                None
            }
            (None, Some(_)) => {
                errors.push(ConfigError::Alone(place("tls-key"), "tls-cert"));
                None
            }
        };
        let secret = args.webhook_secret_file.as_deref().map(Secret::read).transpose();
        let secret =
            secret.map_err(|error| errors.push(ConfigError::Secret(place("webhook-secret-file"), error)));
        let hooks = match (args.webhook_hosts.as_slice(), secret) {
            ([], Ok(None)) | (_, Err(())) => Hooks::default(),
            ([], Ok(Some(_))) => {
                errors.push(ConfigError::Alone(place("webhook-secret-file"), "webhook-hosts"));
                Hooks::default()
            }
            (_, Ok(None)) => {
                errors.push(ConfigError::Alone(place("webhook-hosts"), "webhook-secret-file"));
                Hooks::default()
            }
            (hosts, Ok(Some(secret))) => Hooks::new(hosts.to_vec(), secret),
        };
        if let Err(error) = telemetry::filter(&args.log) {
            errors.push(ConfigError::Log(place("log"), error));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let scheduling = match args.scheduling {
            SchedulingName::Continuous => Scheduling::Continuous,
            SchedulingName::Request => {
                Scheduling::Request { delay: Duration::from_millis(args.batch_delay_ms) }
            }
            SchedulingName::Serial => Scheduling::Serial,
        };
        Ok(Self {
            models: args.models.clone(),
            listen: args.listen(),
            socket_mode: args.socket_mode,
            tls,
            metrics_listen: args.metrics_listen,
            cors,
            device: args.device,
            ort_dylib: args.ort_dylib.clone(),
            threads: if args.threads == 0 { cores() } else { args.threads },
            max_rows: args.max_rows,
            queue_limit: args.queue_limit,
            max_backlog: Duration::from_secs(args.max_backlog),
            frame_limit: args.frame_limit,
            answer_limit: args.answer_limit,
            scheduling,
            study_quota: args.study_quota,
            study_limit: args.study_limit << 20,
            insides_idle: Duration::from_secs(args.insides_idle),
            jobs: jobs::Settings {
                place: args.jobs.clone(),
                workers: args.job_workers,
                after: Duration::from_secs(args.job_after),
                lease: Duration::from_secs(args.job_lease),
                retention: Duration::from_secs(3600 * args.job_retention),
                limit: args.job_limit,
                result_limit: args.job_result_limit << 20,
                store_limit: args.job_store_limit << 20,
                hooks,
            },
            keys,
            watch: args.watch.map(Duration::from_secs),
            traces,
            watchdog: Duration::from_secs(args.watchdog),
            body_limit: args.body_limit,
            shutdown_timeout: Duration::from_secs(args.shutdown_timeout),
            header_timeout: Duration::from_secs(args.header_timeout),
            body_timeout: Duration::from_secs(args.body_timeout),
            write_timeout: Duration::from_secs(args.write_timeout),
            max_connections: args.max_connections,
            header_limit: args.header_limit,
            max_streams: args.max_streams,
        })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            models: PathBuf::from("models"),
            listen: Listen::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)),
            socket_mode: 0o660,
            tls: None,
            metrics_listen: None,
            cors: None,
            device: Device::Cpu,
            ort_dylib: None,
            threads: cores(),
            max_rows: 32,
            queue_limit: 4096,
            max_backlog: Duration::from_secs(30),
            frame_limit: 1 << 29,
            answer_limit: 1 << 29,
            scheduling: Scheduling::Continuous,
            study_quota: 4,
            study_limit: 64 << 20,
            insides_idle: Duration::from_secs(300),
            jobs: jobs::Settings::default(),
            keys: Keys::default(),
            watch: None,
            traces: None,
            watchdog: Duration::from_secs(60),
            body_limit: 1 << 20,
            shutdown_timeout: Duration::from_secs(30),
            // Long enough for a person on a bad line, short enough that a slow-header attack frees its sockets.
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            max_connections: 4096,
            header_limit: 1 << 16,
            max_streams: 128,
        }
    }
}

/// Cores this process may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn parse(line: &[&str]) -> Result<Config, Vec<ConfigError>> {
        Config::from_args(&Args::try_parse_from([&["windowpane"], line].concat()).unwrap())
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let errors =
            parse(&["--max-rows", "1", "--queue-limit", "0", "--body-limit", "1", "--keys", "/nowhere"])
                .unwrap_err();
        let words: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(words[0], "`--max-rows` is 1, expected 2 to 1024");
        assert!(words[1].starts_with("`--queue-limit` is 0, expected ") && words[2].contains("--body-limit"));
        assert!(words[3].starts_with("`--keys`: `/nowhere`: ") && words.len() == 4, "{words:?}");
    }

    #[test]
    fn zero_threads_are_one_for_each_core() {
        assert_eq!(parse(&[]).unwrap().threads, cores());
        assert_eq!(parse(&["--threads", "3"]).unwrap().threads, 3);
    }
}

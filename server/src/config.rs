//! What was meant: the arguments validated once, and everything derived from them decided once. The rest of the
//! server reads only this.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::args::{Args, Device};
use crate::spec::MAX_IMAGES;

/// The server's configuration. [`Config::default`] is the configuration of an empty command line on a free port,
/// which is what tests start from.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of model packages.
    pub models: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
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
    /// Largest request body in bytes.
    pub body_limit: usize,
    /// Time that running images are given at shutdown.
    pub shutdown_timeout: Duration,
    /// Time a client has for the head of a request, and that an idle connection is kept.
    pub header_timeout: Duration,
    /// Time a client has for the body of a request.
    pub body_timeout: Duration,
}

/// A flag holds a value that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`--{flag}` is {got}, expected {expected}")]
pub struct ConfigError {
    /// The flag, without dashes.
    pub flag: &'static str,
    /// What was given.
    pub got: u64,
    /// What is accepted.
    pub expected: String,
}

// === impl Config ===

impl Config {
    /// Validates the arguments. All problems are reported, not the first.
    pub fn from_args(args: &Args) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut within = |flag, got: u64, low: u64, high: u64| {
            if !(low..=high).contains(&got) {
                errors.push(ConfigError { flag, got, expected: format!("{low} to {high}") });
            }
        };
        within("threads", args.threads as u64, 0, 1024);
        within("max-rows", args.max_rows as u64, 2, 1024);
        // A limit below the largest request would refuse that for ever.
        within("queue-limit", args.queue_limit as u64, MAX_IMAGES, 1_000_000);
        within("body-limit", args.body_limit as u64, 1024, 1 << 30);
        within("shutdown-timeout", args.shutdown_timeout, 0, 3600);
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            models: args.models.clone(),
            listen: SocketAddr::new(args.host, args.port),
            device: args.device,
            ort_dylib: args.ort_dylib.clone(),
            threads: if args.threads == 0 { cores() } else { args.threads },
            max_rows: args.max_rows,
            queue_limit: args.queue_limit,
            body_limit: args.body_limit,
            shutdown_timeout: Duration::from_secs(args.shutdown_timeout),
            ..Self::default()
        })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            models: PathBuf::from("models"),
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            device: Device::Cpu,
            ort_dylib: None,
            threads: cores(),
            max_rows: 32,
            queue_limit: 256,
            body_limit: 1 << 20,
            shutdown_timeout: Duration::from_secs(30),
            // Long enough for a person on a bad line, short enough that a slow-header attack frees its sockets.
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
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
        let errors = parse(&["--max-rows", "1", "--queue-limit", "0", "--body-limit", "1"]).unwrap_err();
        let flags: Vec<_> = errors.iter().map(|e| e.flag).collect();
        assert_eq!(flags, ["max-rows", "queue-limit", "body-limit"]);
        assert_eq!(errors[0].to_string(), "`--max-rows` is 1, expected 2 to 1024");
    }

    #[test]
    fn zero_threads_are_one_for_each_core() {
        assert_eq!(parse(&[]).unwrap().threads, cores());
        assert_eq!(parse(&["--threads", "3"]).unwrap().threads, 3);
    }
}

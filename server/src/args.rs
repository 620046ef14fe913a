//! What was typed: every flag, which is a `WINDOWPANE_*` variable and a key of the file of `--config` as well. This is
//! the single place where one is declared; `args/` reads them from all three places and writes the table of
//! docs/configuration.md. Nothing here looks at the world; `config.rs` decides what it means. The help text states the
//! trade of each choice.

mod file;
mod listen;
pub mod sources;
mod table;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::check::CheckArgs;
use crate::jobs::place::Place;
use crate::jobs::webhook::Host;

pub use listen::{Listen, ListenError};
pub use sources::{Found, Places};
pub use table::table;

/// Serves windowpane model packages over HTTP: images sampled through ONNX Runtime, reproducible to the bit.
#[derive(Debug, Clone, Parser)]
#[command(name = "windowpane", version, max_term_width = 100, after_help = AFTER)]
pub struct Args {
    /// What to do, if not to serve.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Where each value stands, for whoever has to change it.
    #[arg(skip)]
    pub places: Places,

    /// TOML file with a key for each flag, named as the flag without its dashes: `max-rows = 16`. A variable of the
    /// environment wins over the file, and a flag over both. An unknown key is an error.
    #[arg(long, env = "WINDOWPANE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Folder of model packages: every subfolder with a manifest.json is loaded, or the folder itself if it holds
    /// one. The server starts only if all packages load; otherwise it lists what is wrong and exits with 1.
    #[arg(long, env = "WINDOWPANE_MODELS", default_value = "models", value_name = "DIR")]
    pub models: PathBuf,

    /// Address to listen on. 127.0.0.1 keeps the server to this machine; 0.0.0.0 offers it to the network, where
    /// it belongs behind something that authenticates.
    #[arg(long, env = "WINDOWPANE_HOST", default_value = "127.0.0.1")]
    pub host: IpAddr,

    /// Port to listen on; 0 takes a free one and says which.
    #[arg(long, env = "WINDOWPANE_PORT", default_value_t = 8080)]
    pub port: u16,

    /// Where to listen, in place of `--host` and `--port`: an address with its port, or `unix:PATH` for a Unix socket,
    /// which only this machine can reach and whose file's mode says who may. A file that a server left behind is
    /// replaced if nobody listens there.
    #[arg(long, env = "WINDOWPANE_LISTEN", value_name = "WHERE")]
    pub listen: Option<Listen>,

    /// Mode of the Unix socket's file, in octal: who may write to it may ask.
    #[arg(long, env = "WINDOWPANE_SOCKET_MODE", default_value = "660", value_name = "MODE", value_parser = listen::mode, hide_short_help = true)]
    pub socket_mode: u32,

    /// File of certificates in PEM form, the server's own first: HTTPS instead of HTTP. It is read again when it changes; a
    /// new one that does not read is told in the log, and the old one stays.
    #[arg(long, env = "WINDOWPANE_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// File of the certificate's private key, in PEM form and without a passphrase.
    #[arg(long, env = "WINDOWPANE_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Serve /metrics, and /livez, /readyz and /startupz as well, on this address, over plain HTTP; /metrics is then no
    /// longer where the API is. For a network that only operators reach.
    #[arg(long, env = "WINDOWPANE_METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    pub metrics_listen: Option<SocketAddr>,

    /// Origins whose pages may call this server from a browser, such as `https://app.example.com`, or `*` for all; several
    /// by commas or by giving the flag again. Without it none may (CORS). A key is asked for all the same.
    #[arg(long, env = "WINDOWPANE_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origin: Vec<String>,

    /// Where models run. `cuda` refuses to start without a working CUDA provider; `auto` takes CUDA where it works
    /// and the CPU otherwise, and says so in the log, in /v1/models and in the metrics.
    #[arg(long, env = "WINDOWPANE_DEVICE", value_enum, default_value_t = Device::Cpu)]
    pub device: Device,

    /// The ONNX Runtime library (libonnxruntime.so, 1.30 or newer). Without it, what `cargo xtask setup` put into
    /// the user's cache folder is used.
    #[arg(long, env = "ORT_DYLIB_PATH", value_name = "FILE")]
    pub ort_dylib: Option<PathBuf>,

    /// Threads that work on one tick; 0 means one for each core. Fewer leave room for other programs, more than
    /// the cores only slow it down.
    #[arg(long, env = "WINDOWPANE_THREADS", default_value_t = 0, value_name = "N")]
    pub threads: usize,

    /// The most rows in one call of the network; a guided image takes two. The server takes as few as serve the most
    /// images a second, as it measures when it starts; this bounds them.
    #[arg(long, env = "WINDOWPANE_MAX_ROWS", default_value_t = 32, value_name = "N")]
    pub max_rows: usize,

    /// Work of one model that may wait or run, in seconds of the engine's time as measured. Beyond it a request is
    /// told 429 and when there will be room for it. A low limit refuses rather than queues, which is usually what a
    /// caller with a timeout wants.
    #[arg(long, env = "WINDOWPANE_MAX_BACKLOG", default_value_t = 30, value_name = "SECONDS")]
    pub max_backlog: u64,

    /// Images of one model that may wait or run, whatever they cost: a bound on memory.
    #[arg(long, env = "WINDOWPANE_QUEUE_LIMIT", default_value_t = 4096, value_name = "N")]
    pub queue_limit: usize,

    /// Memory in bytes for the frames that requests keep on the way (`trajectory`, `partial_images`) and for the pixels
    /// of pictures to replay, all together. Who asks for more than is left is told 429. While they become files they take a few times as much.
    #[arg(long, env = "WINDOWPANE_FRAME_LIMIT", default_value_t = 1 << 29, value_name = "BYTES", hide_short_help = true)]
    pub frame_limit: usize,

    /// Memory in bytes for answers, all together, each from the admission of its request until its client has taken it. A
    /// request whose answer would be more than is left is told 429 before it begins; small answers have a quarter that large
    /// ones leave them.
    #[arg(long, env = "WINDOWPANE_ANSWER_LIMIT", default_value_t = 1 << 29, value_name = "BYTES", hide_short_help = true)]
    pub answer_limit: usize,

    /// Looks inside a model that one caller may have under way: beyond them it is told 429, and when the first will be done.
    /// They have a tenth of the ticks while images wait, and what images leave.
    #[arg(long, env = "WINDOWPANE_STUDY_QUOTA", default_value_t = 4, value_name = "N")]
    pub study_quota: usize,

    /// Largest answer of a look inside a model, in MiB: a bound on memory. What would be larger is refused before it begins,
    /// with the size that it would have.
    #[arg(long, env = "WINDOWPANE_STUDY_LIMIT", default_value_t = 64, value_name = "MIB")]
    pub study_limit: usize,

    /// Seconds after which a graph of a model's insides that nobody asks for is let go. The next look opens it again, and
    /// replays its golden, which takes a moment.
    #[arg(
        long,
        env = "WINDOWPANE_INSIDES_IDLE",
        default_value_t = 300,
        value_name = "SECONDS",
        hide_short_help = true
    )]
    pub insides_idle: u64,

    /// Where jobs are kept: orders that outlive their HTTP call. `auto` is a file of SQLite in `$STATE_DIRECTORY`, else in
    /// `$XDG_STATE_HOME/windowpane`, else in `~/.local/state/windowpane`, and no jobs where that cannot be written;
    /// `sqlite:PATH` a file of your choice, which servers of one machine may share; `postgres://USER:PASSWORD@HOST/DATABASE`
    /// a database that any number of servers may share; `off` none.
    #[arg(long, env = "WINDOWPANE_JOBS", default_value_t = Place::Home, value_name = "WHERE", hide_env_values = true)]
    pub jobs: Place,

    /// Jobs that this server works on at a time. 0 takes orders and leaves the work to servers that share the store.
    #[arg(long, env = "WINDOWPANE_JOB_WORKERS", default_value_t = 1, value_name = "N")]
    pub job_workers: usize,

    /// Seconds beyond which an analysis is answered as a job (202), unless its client says how long it waits.
    #[arg(long, env = "WINDOWPANE_JOB_AFTER", default_value_t = 5, value_name = "SECONDS")]
    pub job_after: u64,

    /// Seconds after which a job whose server says nothing is taken up by another. Shorter finds a dead server sooner, and
    /// takes a slow one for dead.
    #[arg(
        long,
        env = "WINDOWPANE_JOB_LEASE",
        default_value_t = 15,
        value_name = "SECONDS",
        hide_short_help = true
    )]
    pub job_lease: u64,

    /// Hours for which a job that has ended is kept, with its result.
    #[arg(long, env = "WINDOWPANE_JOB_RETENTION", default_value_t = 24, value_name = "HOURS")]
    pub job_retention: u64,

    /// Jobs of one caller that may wait or run: beyond them it is told 429.
    #[arg(long, env = "WINDOWPANE_JOB_LIMIT", default_value_t = 100, value_name = "N")]
    pub job_limit: usize,

    /// Largest result of a job, in MiB; what is kept on the way to it is bounded by the same. When it is finished each of the
    /// two is in memory once, for every worker.
    #[arg(
        long,
        env = "WINDOWPANE_JOB_RESULT_LIMIT",
        default_value_t = 512,
        value_name = "MIB",
        hide_short_help = true
    )]
    pub job_result_limit: usize,

    /// Results of one caller that are kept, in MiB: where they take as much, its orders are told 429 until the oldest is
    /// forgotten. What is under way by then is finished and kept.
    #[arg(
        long,
        env = "WINDOWPANE_JOB_STORE_LIMIT",
        default_value_t = 16_384,
        value_name = "MIB",
        hide_short_help = true
    )]
    pub job_store_limit: usize,

    /// Hosts that may be told of a job's end, such as `hooks.example.com` or `hooks.example.com:8443`; several by commas or
    /// by giving the flag again. Without it none may. HTTPS is spoken, unless an entry begins with `http://`; a host that is
    /// on a private network must be named by its address.
    #[arg(long, env = "WINDOWPANE_WEBHOOK_HOSTS", value_name = "HOST", value_delimiter = ',')]
    pub webhook_hosts: Vec<Host>,

    /// File with the secret that webhooks are signed with, as Standard Webhooks has it: `whsec_` and base64, or a line of
    /// text.
    #[arg(long, env = "WINDOWPANE_WEBHOOK_SECRET_FILE", value_name = "FILE")]
    pub webhook_secret_file: Option<PathBuf>,

    /// File of API keys (TOML: a `[[key]]` each, with name, role and sha256; roles are generate, analyse and admin). Without
    /// it everybody may generate and look into models, and nobody may load or unload them.
    #[arg(long, env = "WINDOWPANE_KEYS", value_name = "FILE")]
    pub keys: Option<PathBuf>,

    /// Look at the model folder every so many seconds: new packages are loaded, changed ones replaced without
    /// dropping a request, removed ones unloaded. Without it the folder is read at start and when an administrator
    /// asks.
    #[arg(long, env = "WINDOWPANE_WATCH", value_name = "SECONDS", num_args = 0..=1, default_missing_value = "5")]
    pub watch: Option<u64>,

    /// How ticks are formed. `continuous` is the one to serve with; the other two are what it is measured against:
    /// whole batches of requests, and one request at a time.
    #[arg(long, env = "WINDOWPANE_SCHEDULING", value_enum, default_value_t = SchedulingName::Continuous, hide_short_help = true)]
    pub scheduling: SchedulingName,

    /// Milliseconds that a batch waits for company with `--scheduling request`.
    #[arg(
        long,
        env = "WINDOWPANE_BATCH_DELAY_MS",
        default_value_t = 10,
        value_name = "MS",
        hide_short_help = true
    )]
    pub batch_delay_ms: u64,

    /// Seconds after which one piece of work on the device is taken for stuck: /livez then fails, so that whoever supervises
    /// the process restarts it. A call of the network takes milliseconds to seconds, as the log of the start says; opening a
    /// graph of its insides with its golden, or building a session anew, longer.
    #[arg(
        long,
        env = "WINDOWPANE_WATCHDOG",
        default_value_t = 60,
        value_name = "SECONDS",
        hide_short_help = true
    )]
    pub watchdog: u64,

    /// Largest request body in bytes.
    #[arg(long, env = "WINDOWPANE_BODY_LIMIT", default_value_t = 1 << 20, value_name = "BYTES")]
    pub body_limit: usize,

    /// Connections at a time. Whoever comes when there are as many is hung up on at once, and counted in
    /// `windowpane_connections_total{outcome="refused"}`.
    #[arg(long, env = "WINDOWPANE_MAX_CONNECTIONS", default_value_t = 4096, value_name = "N")]
    pub max_connections: usize,

    /// Seconds that a client has for the head of a request, for a TLS handshake, and for doing nothing at all.
    #[arg(
        long,
        env = "WINDOWPANE_HEADER_TIMEOUT",
        default_value_t = 30,
        value_name = "SECONDS",
        hide_short_help = true
    )]
    pub header_timeout: u64,

    /// Seconds that a client has for the body of a request.
    #[arg(
        long,
        env = "WINDOWPANE_BODY_TIMEOUT",
        default_value_t = 30,
        value_name = "SECONDS",
        hide_short_help = true
    )]
    pub body_timeout: u64,

    /// Seconds for which a client may take nothing of an answer that is there for it, or less
    /// than 8 KiB a second on the average.
    #[arg(
        long,
        env = "WINDOWPANE_WRITE_TIMEOUT",
        default_value_t = 30,
        value_name = "SECONDS",
        hide_short_help = true
    )]
    pub write_timeout: u64,

    /// Largest head of a request in bytes; it has at most 100 lines. Beyond either it is told 431.
    #[arg(long, env = "WINDOWPANE_HEADER_LIMIT", default_value_t = 1 << 16, value_name = "BYTES", hide_short_help = true)]
    pub header_limit: usize,

    /// Requests at a time on one connection of HTTP/2.
    #[arg(
        long,
        env = "WINDOWPANE_MAX_STREAMS",
        default_value_t = 128,
        value_name = "N",
        hide_short_help = true
    )]
    pub max_streams: u32,

    /// Seconds that running images are given to finish after SIGTERM or Ctrl-C.
    #[arg(long, env = "WINDOWPANE_SHUTDOWN_TIMEOUT", default_value_t = 30, value_name = "SECONDS")]
    pub shutdown_timeout: u64,

    /// Send a span of every answer, with one for each of its stages, to this OpenTelemetry collector by OTLP over plain
    /// HTTP, e.g. http://localhost:4318. Without it none are made.
    #[arg(long, env = "WINDOWPANE_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,

    /// Form of the log, which goes to standard error.
    #[arg(long, env = "WINDOWPANE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What is logged, as a tracing filter: `info`, `debug`, `windowpane_server=debug,ort=info`, …
    #[arg(long, env = "WINDOWPANE_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

/// What to do, if not to serve.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Verify model packages without serving them: files, graphs, the golden, the bits, the ticks. Flags like `--device`
    /// and `--max-rows` stand before the word `check`.
    Check(CheckArgs),
    /// Ask the server that runs with these flags on this machine whether it works: exit code 0, or 1 and a sentence.
    /// For health checks of containers, where there is no other client.
    Health {
        /// Ask whether a request sent now would be served; else, whether the process works.
        #[arg(long)]
        ready: bool,
    },
}

/// Where models run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// CUDA where it works, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA device, or refuse.
    Cuda,
}

/// How ticks are formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SchedulingName {
    /// Step by step: fair between callers, short requests first.
    Continuous,
    /// Batches of whole requests.
    Request,
    /// One request at a time.
    Serial,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// One JSON object a line.
    Json,
}

// Lines short enough that no terminal wraps them: the command is there to be copied.
const AFTER: &str = "\
Try it:
  curl -s localhost:8080/v1/images/generations -o sneaker.png \\
    -H 'accept: image/png' -H 'content-type: application/json' \\
    -d '{\"model\":\"fashion-dit\",\"prompt\":\"sneaker\",\"seed\":7}'

The API is described at /docs, models and classes are at /v1/models,
metrics at /metrics.";

// === impl Args ===

impl Args {
    /// Where the server listens: `--listen`, or else `--host` and `--port`.
    pub fn listen(&self) -> Listen {
        self.listen.clone().unwrap_or(Listen::Tcp(SocketAddr::new(self.host, self.port)))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_help() {
        let args = Args::try_parse_from(["windowpane"]).unwrap();
        assert_eq!((args.port, args.max_rows, args.queue_limit), (8080, 32, 4096));
        assert!(args.host.is_loopback());
    }

    #[test]
    fn every_flag_but_the_runtimes_own_has_a_windowpane_variable() {
        for arg in Args::command().get_arguments().filter(|arg| !arg.is_positional()) {
            let Some(env) = arg.get_env() else { continue };
            let env = env.to_str().unwrap();
            assert!(env.starts_with("WINDOWPANE_") || env == "ORT_DYLIB_PATH", "{env}");
        }
    }
}

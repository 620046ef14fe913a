//! `windowpane`: arguments, configuration, listen, load, serve, exit code; or what a subcommand asks for, and an exit
//! code.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::time::Duration;

use anyhow::Context;
use windowpane_server::app::folder::watch;
use windowpane_server::args::{Command, Found, Listen, LogFormat};
use windowpane_server::health::{self, Door, Question};
use windowpane_server::serve::{Listener, raise_open_files};
use windowpane_server::{App, Config, Listeners, check, jobs, serve, shutdown, telemetry};

/// Exit code of a configuration that cannot be read, as of a command line that is none.
const UNREADABLE: u8 = 2;

/// Exit code of a defect; Rust's own.
const PANICKED: u8 = 101;

/// Time for what was begun to let go when the server has ended, and to say so. A model that is still loading takes longer, and
/// is not waited for.
const LETTING_GO: Duration = Duration::from_secs(1);

fn main() {
    let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let found = match Found::read(std::env::args_os().collect(), &variables.collect()) {
        Ok(found) => found,
        Err(error) => error.exit(),
    };
    if let Some(Command::Health { ready }) = &found.args.command {
        let question = if *ready { Question::Ready } else { Question::Alive };
        // Nothing but where the server is: what else is wrong by now is no concern of its health.
        let answer = health::ask(&Door::from(&found.args), question);
        answer.as_ref().err().iter().for_each(|error| tell(&error.to_string()));
        shutdown::exit(u8::from(answer.is_err()))
    }
    let code = match configure(&found) {
        Err((problems, code)) => {
            tell(&problems);
            code
        }
        // Its last line is in the log, which would be lost with the process.
        Ok(config) => match catch_unwind(AssertUnwindSafe(|| run(config, &found))) {
            Ok(Ok(code)) => code,
            Ok(Err(error)) => {
                tell(&format!("{error:#}"));
                1
            }
            Err(_) => PANICKED,
        },
    };
    // What was said reaches its reader; both outputs are ours alone by now.
    let _ = std::io::stdout().flush();
    shutdown::exit(code)
}

/// A last word, after what was logged. Where nobody can read it, the exit code tells.
fn tell(problem: &str) {
    telemetry::flush();
    telemetry::say(format!("windowpane: {problem}"));
}

/// The configuration; or everything that is wrong with it, and the exit code.
fn configure(found: &Found) -> Result<Config, (String, u8)> {
    let (config, errors) = match Config::from_args(&found.args) {
        Ok(config) => (Some(config), Vec::new()),
        Err(errors) => (None, errors),
    };
    let code = if found.problems.is_empty() { 1 } else { UNREADABLE };
    let problems: Vec<String> =
        found.problems.iter().cloned().chain(errors.iter().map(ToString::to_string)).collect();
    match (config, problems.as_slice()) {
        (Some(config), []) => Ok(config),
        (_, [only]) => Err((only.clone(), code)),
        (_, all) => {
            Err((format!("the configuration has {} problems:\n  {}", all.len(), all.join("\n  ")), code))
        }
    }
}

/// The exit code of what was done; an error ends with 1 and a sentence.
fn run(config: Config, found: &Found) -> anyhow::Result<u8> {
    let args = &found.args;
    telemetry::init(args.log_format, &args.log).context("the log")?;
    for oddity in &found.oddities {
        tracing::warn!("{oddity}");
    }
    match &args.command {
        None | Some(Command::Health { .. }) => {}
        Some(Command::Check(what)) => {
            let whole =
                check::run(what, &config, &mut std::io::stdout().lock()).context("writing the report")?;
            return Ok(u8::from(!whole));
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let traces = config.traces.clone();
    let result = runtime.block_on(start(config, args.log_format));
    // Requests that are given up write their lines.
    runtime.shutdown_timeout(LETTING_GO);
    if let Some(traces) = traces {
        traces.flush();
    }
    result.map(|()| 0)
}

/// Listens first, so that probes are answered while models load; a model that does not load ends the server.
async fn start(config: Config, log_format: LogFormat) -> anyhow::Result<()> {
    let most = raise_open_files(config.max_connections);
    if most < config.max_connections {
        tracing::warn!(
            most,
            wanted = config.max_connections,
            "the system's limit on open files bounds connections"
        );
    }
    let config = Config { max_connections: most, ..config };
    let listeners = Listeners::bind(&config).await?;
    let scheme = if config.tls.is_some() { "https://" } else { "http://" };
    let url = match listeners.main.listen()? {
        Listen::Tcp(address) => format!("{scheme}{address}"),
        socket @ Listen::Unix(_) => socket.to_string(),
    };
    // Through a socket there is a path and no address.
    let base = if url.starts_with(scheme) { url.as_str() } else { "" };
    let metrics = listeners.metrics.as_ref().and_then(Listener::address);
    let metrics = metrics.map_or_else(|| base.to_owned(), |address| format!("http://{address}"));
    let more =
        format!("API at {base}/docs, models at {base}/v1/models, metrics at {metrics}/metrics; Ctrl-C stops");
    let app = App::new(config);

    let mut failure = None;
    let until = async {
        let mut signal = pin!(shutdown::signal());
        let outcome = tokio::select! {
            () = &mut signal => return,
            outcome = load(&app) => outcome,
        };
        match outcome {
            Ok(()) => welcome(&app, &url, &more, log_format),
            Err(error) => return failure = Some(error),
        }
        match app.config().watch {
            None => signal.await,
            Some(interval) => tokio::select! {
                () = &mut signal => {}
                () = watch(app.clone(), interval) => {}
            },
        }
    };
    serve(listeners, app.clone(), until).await?;
    failure.map_or(Ok(()), Err)
}

/// Opens the store of jobs, and loads the models.
async fn load(app: &App) -> anyhow::Result<()> {
    jobs::open(app).await?;
    let loading = app.clone();
    let loaded = tokio::task::spawn_blocking(move || loading.load());
    Ok(loaded.await.context("loading the models")??)
}

/// Says where the server is and what it serves.
fn welcome(app: &App, url: &str, more: &str, log_format: LogFormat) {
    tracing::info!(url, models = app.models().len(), "serving");
    if log_format == LogFormat::Json {
        return;
    }
    let mut text = format!("windowpane {} is serving at {url}\n", env!("CARGO_PKG_VERSION"));
    for model in app.models() {
        let config = &model.card.manifest.config;
        let classes = match config.classes {
            0 => "no classes".to_owned(),
            n => format!("{n} classes"),
        };
        let (name, provider) = (model.name(), model.served.provider);
        text += &format!("  {name}: {}x{} pixels, {classes}, on {provider}\n", config.width, config.height);
    }
    text += &format!("  {more}\n");
    // A reader that has gone does not need to know.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

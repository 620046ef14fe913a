//! When to leave: the future that resolves at the first SIGTERM or Ctrl-C; and how the process ends. What leaving
//! means is in `serve.rs`.

use crate::telemetry;

/// Resolves when the process is asked to stop. A second signal ends the process at once, for a person who does not
/// want to wait for running images.
pub async fn signal() {
    let name = either().await;
    tracing::info!(signal = name, "stopping: new images are refused, running ones finish");
    tokio::spawn(async {
        let name = either().await;
        tracing::warn!(signal = name, "stopping at once");
        exit(130);
    });
}

/// Ends the process now, with what was logged, and without the destructors of the libraries in it. ONNX Runtime's would take away what a worker
/// in the middle of a tick, or a model that is still loading, is using: a crash on the way out, now and then.
pub fn exit(code: u8) -> ! {
    telemetry::flush();
    signal_hook::low_level::exit(code.into())
}

#[cfg(unix)]
async fn either() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            () = interrupt() => "SIGINT",
        },
        Err(error) => {
            tracing::warn!(%error, "no SIGTERM handler; only Ctrl-C stops the server in good order");
            interrupt().await;
            "SIGINT"
        }
    }
}

#[cfg(not(unix))]
async fn either() -> &'static str {
    interrupt().await;
    "SIGINT"
}

/// Ctrl-C; without a handler for it, the signal keeps its default effect and this never resolves.
async fn interrupt() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

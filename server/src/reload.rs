//! Files that are read again when they change: the keys and the certificate. Looked at every second, and compared by
//! what they hold: that works on any file system, through symbolic links that are switched, and with files that are
//! written in place. What does not read leaves what was read before as it is; it is told in the log and counted, and the
//! next change is tried again.

use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::metrics::Metrics;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Files, and what they held when they were last looked at.
#[derive(Debug, Clone)]
pub struct Files {
    paths: Vec<PathBuf>,
    /// None where one of them could not be read.
    seen: Option<[u8; 32]>,
}

// === impl Files ===

impl Files {
    /// Looks at the files. Whoever reads them after this misses no change.
    pub fn look(paths: impl Into<Vec<PathBuf>>) -> Self {
        let paths = paths.into();
        Self { seen: digest(&paths), paths }
    }

    /// Looks again, and says whether they hold something else.
    fn changed(&mut self) -> bool {
        let now = digest(&self.paths);
        std::mem::replace(&mut self.seen, now) != now
    }
}

fn digest(paths: &[PathBuf]) -> Option<[u8; 32]> {
    let mut hasher = Sha256::new();
    for path in paths {
        let bytes = std::fs::read(path).ok()?;
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    Some(hasher.finalize().into())
}

/// Looks at the files for ever, and has them read whenever they have changed.
pub async fn on_change(
    mut files: Files,
    what: &'static str,
    metrics: Metrics,
    read: impl Fn() -> Result<(), String> + Clone + Send + 'static,
) {
    let count = |outcome| metrics.reloads.with_label_values(&[what, outcome]);
    let (done, failed) = (count("done"), count("failed"));
    loop {
        tokio::time::sleep(LOOK).await;
        let read = read.clone();
        let mut looked = files.clone();
        let look = move || {
            let outcome = looked.changed().then(read);
            (looked, outcome)
        };
        // A file system that hangs holds up nothing but this.
        let again = files.clone();
        let (looked, outcome) = tokio::task::spawn_blocking(look)
            .await
            .unwrap_or_else(|error| (again, Some(Err(format!("reading it ended early: {error}")))));
        files = looked;
        match outcome {
            None => {}
            Some(Ok(())) => {
                done.inc();
                tracing::info!(what, "read anew");
            }
            Some(Err(error)) => {
                failed.inc();
                tracing::error!(what, error, "the new file does not read; what was read before stays");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_change_is_what_is_held_and_is_seen_once() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        fs::write(&paths[0], "one").unwrap();
        fs::write(&paths[1], "two").unwrap();
        let mut files = Files::look(paths.clone());
        assert!(!files.changed());
        fs::write(&paths[0], "one").unwrap();
        assert!(!files.changed(), "written, and the same");
        // The same bytes in all, cut elsewhere.
        fs::write(&paths[0], "onet").unwrap();
        fs::write(&paths[1], "wo").unwrap();
        assert!(files.changed() && !files.changed());
        fs::remove_file(&paths[1]).unwrap();
        assert!(files.changed() && !files.changed());
        fs::write(&paths[1], "wo").unwrap();
        assert!(files.changed());
    }
}

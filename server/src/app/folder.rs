//! Keeps what is served equal to what lies in the model folder: new packages are loaded, changed ones take the place of
//! their old versions, removed ones are let go. Looked at in intervals: a package is a folder that appears whole, and a
//! few small files read every few seconds cost nothing, on any file system.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::app::App;
use crate::model::load::LoadError;

/// Looks at the folder every `interval`, for ever.
pub async fn watch(app: App, interval: Duration) {
    let mut watch = Watch { app, interval, failed: BTreeMap::new() };
    loop {
        tokio::time::sleep(interval).await;
        watch.look().await;
    }
}

struct Watch {
    app: App,
    interval: Duration,
    /// Packages that did not load, by digest: said once, and tried again, since the rest of a package may still be on its way;
    /// but more and more seldom, since each try takes a processor for as long as it takes to load.
    failed: BTreeMap<String, Failure>,
}

/// A package that did not load.
#[derive(Debug, Clone, Copy)]
struct Failure {
    /// When it is tried again.
    next: Instant,
    /// How long it is left alone after that.
    pause: Duration,
}

/// The longest that a package which does not load is left alone.
const MOST_PAUSE: Duration = Duration::from_secs(300);

// === impl Watch ===

impl Watch {
    async fn look(&mut self) {
        let app = self.app.clone();
        let look = move || {
            let loader = app.loader();
            Ok::<_, LoadError>((loader.available()?, loader.is_unreadable()?))
        };
        let Ok(found) = tokio::task::spawn_blocking(look).await else { return };
        let (here, unreadable): (BTreeMap<String, String>, bool) = match found {
            Ok((found, unreadable)) => {
                (found.into_iter().map(|(name, digest, _)| (name, digest)).collect(), unreadable)
            }
            // An empty or missing folder is more often a mistake on its way to be mended than a wish.
            Err(error) => return tracing::warn!(%error, "the model folder; what is served stays"),
        };
        let served: BTreeMap<String, String> =
            self.app.models().iter().map(|m| (m.name().to_owned(), m.card.digest.clone())).collect();
        self.failed.retain(|digest, _| here.values().any(|other| other == digest));
        for (name, digest) in &here {
            let is_due = self.failed.get(digest).is_none_or(|failure| Instant::now() >= failure.next);
            if served.get(name) != Some(digest) && is_due && !self.app.put_away().contains(digest) {
                self.load(name, digest).await;
            }
        }
        // A manifest that does not read is one that is being written: nobody knows yet whose it is.
        if unreadable {
            return;
        }
        for name in served.keys().filter(|name| !here.contains_key(*name)) {
            if self.app.drop_model(name).await.is_ok() {
                tracing::info!(model = name, "its package is gone; it is served no longer");
            }
        }
    }

    async fn load(&mut self, name: &str, digest: &str) {
        match self.app.load_model(name).await {
            Ok(model) => {
                self.failed.remove(digest);
                tracing::info!(model = name, digest = model.card.digest, "serving the new package");
            }
            Err(error) => {
                let before = self.failed.get(digest).copied();
                let pause = before.map_or(self.interval, |failure| failure.pause);
                let next = Instant::now() + pause;
                let pause = (2 * pause).min(MOST_PAUSE.max(self.interval));
                self.failed.insert(digest.to_owned(), Failure { next, pause });
                if before.is_none() {
                    let detail = error.detail.unwrap_or(error.message);
                    tracing::error!(model = name, detail, "the new package does not load; trying on");
                }
            }
        }
    }
}

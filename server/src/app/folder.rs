//! Keeps what is served equal to what lies in the model folder: new packages are loaded, changed ones take the place of
//! their old versions, removed ones are let go. Looked at in intervals: a package is a folder that appears whole, and a
//! few small files read every few seconds cost nothing, on any file system.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::app::App;
use crate::model::load::LoadError;

/// Looks at the folder every `interval`, for ever.
pub async fn watch(app: App, interval: Duration) {
    let mut watch = Watch { app, failed: BTreeSet::new() };
    loop {
        tokio::time::sleep(interval).await;
        watch.look().await;
    }
}

struct Watch {
    app: App,
    /// Digests of packages that did not load: tried again, since the rest of a package may still be on its way, but
    /// said once.
    failed: BTreeSet<String>,
}

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
        for (name, digest) in &here {
            if served.get(name) != Some(digest) && !self.app.put_away().contains(digest) {
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
                if self.failed.insert(digest.to_owned()) {
                    let detail = error.detail.unwrap_or(error.message);
                    tracing::error!(model = name, detail, "the new package does not load; trying on");
                }
            }
        }
    }
}

//! Telling others that a job has ended: a POST to a URL on a host that the operator has listed, signed as Standard Webhooks
//! has it, at least once and with an id that stays the same. What is told is written down with the end of the job
//! (`store/deliveries.rs`); here is who may be told, what is said, and the loop that says it.

mod host;
mod post;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hmac::{Hmac, Mac};
use serde::Serialize;
use sha2::Sha256;

use super::Jobs;
use super::object::{JobObject, seconds};
use super::store::{Delivery, Millis, Outcome};
use crate::app::App;
use crate::error::ApiError;
use crate::middleware::request_id::random_u64;
use host::Target;
pub use host::{Host, HostError};
use post::Poster;

/// Who may be told, and the secret that says that it is us.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    hosts: Vec<Host>,
    secret: Option<Secret>,
}

/// The secret of the signatures; never shown.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

/// The file of the secret is none.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error("`{0}`: {1}")]
    Read(String, std::io::Error),
    /// It holds none.
    #[error("`{0}`: expected `whsec_` and base64, or a line of text, of {SHORTEST} bytes at least")]
    Content(String),
}

/// What is said: that a job has ended, and how.
#[derive(Debug, Clone, Serialize)]
pub struct Message {
    /// `job.succeeded`, `job.failed` or `job.cancelled`.
    r#type: String,
    /// When, in seconds since 1970.
    timestamp: f64,
    /// The job, as its route tells it.
    data: JobObject,
}

/// The shortest secret.
const SHORTEST: usize = 16;

/// What a secret in the form of Standard Webhooks begins with.
const PREFIX: &str = "whsec_";

/// Deliveries at a time, each to another host.
const AT_ONCE: usize = 8;

/// Time between two looks for something to deliver.
const LOOK: Duration = Duration::from_secs(1);

// === impl Hooks ===

impl Hooks {
    /// These hosts, and the secret.
    pub fn new(hosts: Vec<Host>, secret: Secret) -> Self {
        Self { hosts, secret: Some(secret) }
    }

    /// Whether anybody may be told.
    pub fn is_open(&self) -> bool {
        !self.hosts.is_empty()
    }

    /// Refuses a URL that is not on a host of the list.
    pub fn check(&self, url: &str) -> Result<(), ApiError> {
        let invalid = |what: &str| {
            let shown: String = url.chars().take(200).collect();
            ApiError::invalid("webhook.url", format!("`{shown}`"), what)
        };
        if !self.is_open() {
            return Err(invalid("none: this server tells nobody (`--webhook-hosts`)"));
        }
        let target = Target::parse(url).map_err(|error| invalid(&error.to_string()))?;
        if self.host_of(&target).is_none() {
            let known: Vec<_> = self.hosts.iter().map(ToString::to_string).collect();
            return Err(invalid(&format!("a URL on one of {}", known.join(", "))));
        }
        Ok(())
    }

    fn host_of(&self, target: &Target) -> Option<&Host> {
        self.hosts.iter().find(|host| host.is_of(target))
    }
}

// === impl Secret ===

impl Secret {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let shown = || path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| SecretError::Read(shown(), error))?;
        Self::parse(text.trim()).ok_or_else(|| SecretError::Content(shown()))
    }

    fn parse(text: &str) -> Option<Self> {
        let bytes = match text.strip_prefix(PREFIX) {
            Some(base64) => STANDARD.decode(base64).ok()?,
            None => text.as_bytes().to_vec(),
        };
        (bytes.len() >= SHORTEST).then_some(Self(bytes))
    }

    /// The signature of a message: `v1,` and base64 of HMAC-SHA256 over id, time and body with dots between them.
    fn sign(&self, id: &str, timestamp: u64, body: &str) -> String {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length; this is a bug");
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body.as_bytes());
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

// === impl Message ===

impl Message {
    /// Of a job that has ended.
    pub(super) fn new(now: Millis, job: JobObject) -> Self {
        Self { r#type: format!("job.{}", job.state), timestamp: seconds(now), data: job }
    }

    /// A new id.
    pub(super) fn id() -> String {
        format!("msg_{:016x}{:016x}", random_u64(), random_u64())
    }

    /// As it is sent.
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and text always make JSON; this is a bug")
    }
}

/// Delivers what is due, to several hosts at a time and to each of them one after the other, until the server leaves.
pub(super) async fn deliver(app: App, jobs: Arc<Jobs>) {
    let Some(secret) = jobs.settings().hooks.secret.clone() else { return };
    let post = Arc::new(Post { app, jobs: Arc::clone(&jobs), secret, poster: Poster::new() });
    let (mut leaving, mut changes) = (jobs.leaving(), jobs.changes());
    let (mut under_way, mut busy) = (FuturesUnordered::new(), Vec::new());
    while !*leaving.borrow() {
        changes.borrow_and_update();
        while busy.len() < AT_ONCE {
            match jobs.store().next_delivery(&busy).await {
                Ok(Some(delivery)) => {
                    let host = delivery.host.clone();
                    busy.push(host.clone());
                    // A task of its own: it writes to the store, which waits for nobody who is not polled.
                    let task = tokio::spawn(Arc::clone(&post).deliver(delivery));
                    under_way.push(async move {
                        if let Err(error) = task.await {
                            tracing::error!(%error, "a webhook's delivery ended early");
                        }
                        host
                    });
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "the store of jobs does not answer; trying on");
                    break;
                }
            }
        }
        tokio::select! {
            _ = leaving.wait_for(|leaving| *leaving) => {}
            Some(host) = under_way.next() => busy.retain(|other| *other != host),
            _ = changes.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    // What has begun is written down, or it would be told twice.
    while under_way.next().await.is_some() {}
}

/// The host of a URL, as the list of hosts has it; none of what is no URL.
pub(super) fn host_of(url: &str) -> String {
    Target::parse(url).map_or_else(|_| String::new(), |target| target.host.to_string())
}

/// Who delivers.
struct Post {
    app: App,
    jobs: Arc<Jobs>,
    secret: Secret,
    poster: Poster,
}

// === impl Post ===

impl Post {
    /// Tries it once, and writes down how that went.
    async fn deliver(self: Arc<Self>, delivery: Delivery) {
        let outcome = self.post(&delivery).await;
        let is_over = self.jobs.store().delivered(&delivery, &outcome).await;
        let count = |outcome| self.app.metrics().webhooks.with_label_values(&[outcome]).inc();
        let (id, attempt) = (delivery.id.as_str(), delivery.attempts);
        match (&outcome, is_over) {
            (Outcome::Delivered, _) => {
                count("delivered");
                tracing::debug!(id, attempt, "a webhook is delivered");
            }
            (Outcome::Failed(why), Ok(false)) => {
                count("retried");
                let next = delivery.pause().as_secs();
                tracing::info!(id, attempt, why, next, "a webhook was not taken; it is tried again");
            }
            (Outcome::Failed(why) | Outcome::Refused(why), _) => {
                count("given_up");
                tracing::warn!(id, attempt, why, "a webhook is given up");
            }
        }
    }

    async fn post(&self, delivery: &Delivery) -> Outcome {
        let target = match Target::parse(&delivery.url) {
            Ok(target) => target,
            Err(error) => return Outcome::Refused(error.to_string()),
        };
        let Some(host) = self.jobs.settings().hooks.host_of(&target) else {
            return Outcome::Refused("its host is no longer on the list".to_owned());
        };
        // The time is that of the try: whoever checks it refuses what is old.
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let signature = self.secret.sign(&delivery.id, timestamp, &delivery.body);
        self.poster.post(host, &target, delivery, (timestamp, signature.as_str())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_standard_webhooks() {
        // The example of the specification's own libraries.
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_has_a_length() {
        assert!(Secret::parse("").is_none() && Secret::parse("whsec_AAAA").is_none());
        assert!(Secret::parse("whsec_not base64 at all").is_none());
        assert!(Secret::parse("sixteen letters!").is_some());
        assert_eq!(format!("{:?}", Secret::parse("sixteen letters!")), "Some(Secret)");
    }

    #[test]
    fn only_hosts_of_the_list_are_told() {
        let hosts: [Host; 2] =
            ["hooks.example.com", "http://127.0.0.1:9000"].map(|host| host.parse().unwrap());
        let hooks = Hooks::new(hosts.into(), Secret::parse("sixteen letters!").unwrap());
        for good in
            ["https://hooks.example.com/a?b=c", "http://127.0.0.1:9000/", "https://HOOKS.example.com:443"]
        {
            hooks.check(good).unwrap_or_else(|error| panic!("{good}: {}", error.message));
        }
        for bad in [
            "http://hooks.example.com/",
            "https://hooks.example.com:444/",
            "https://evil.example.com/",
            "https://hooks.example.com.evil.com/",
            "https://hooks.example.com@evil.com/",
            "https://me@hooks.example.com/",
            "http://127.0.0.1:9001/",
            "ftp://hooks.example.com/",
            "hooks.example.com",
            "",
        ] {
            let error = hooks.check(bad).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("webhook.url"), "{bad}");
        }
        assert!(Hooks::default().check("https://hooks.example.com/").is_err());
    }
}

//! The `prefer` header (RFC 7240): whether a client waits for an answer, and how long.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

/// What the client would rather have. What is not understood is as if it were not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prefer {
    /// `respond-async`: it does not wait.
    pub respond_async: bool,
    /// `wait=N`: seconds that it waits for an answer.
    pub wait: Option<Duration>,
}

// === impl Prefer ===

impl Prefer {
    /// Reads a header's value. Of a preference that is named twice the first counts.
    pub fn parse(header: &str) -> Self {
        let mut prefer = Self::default();
        for preference in header.split(',') {
            // Parameters of a preference follow it behind semicolons; those that are known here have none.
            let preference = preference.split(';').next().unwrap_or_default();
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "respond-async" => prefer.respond_async = true,
                "wait" if prefer.wait.is_none() => {
                    prefer.wait = value.trim().trim_matches('"').parse().ok().map(Duration::from_secs);
                }
                _ => {}
            }
        }
        prefer
    }

    /// Whether it does not wait for what takes so long; `otherwise` is what those wait who do not say.
    pub fn leaves(self, eta: Duration, otherwise: Duration) -> bool {
        match (self.respond_async, self.wait) {
            (_, Some(wait)) => eta > wait,
            (true, None) => true,
            (false, None) => eta > otherwise,
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Prefer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let values = parts.headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
        Ok(Self::parse(&values.collect::<Vec<_>>().join(",")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_understood_is_read_and_the_rest_is_not_there() {
        let seconds = |wait: Option<u64>| wait.map(Duration::from_secs);
        for (header, respond_async, wait) in [
            ("", false, None),
            ("respond-async", true, None),
            ("Respond-Async , WAIT = 10", true, Some(10)),
            ("wait=\"3\"; foo=bar, respond-async;a", true, Some(3)),
            ("wait=1, wait=2", false, Some(1)),
            ("wait, return=minimal", false, None),
            ("wait=-1", false, None),
            ("wait=99999999999999999999", false, None),
            ("handling=lenient;wait=1", false, None),
        ] {
            assert_eq!(Prefer::parse(header), Prefer { respond_async, wait: seconds(wait) }, "{header}");
        }
    }

    #[test]
    fn it_leaves_when_it_takes_longer_than_it_waits() {
        let [short, long] = [5, 50].map(Duration::from_secs);
        for (header, leaves_short, leaves_long) in [
            ("", false, true),
            ("respond-async", true, true),
            ("wait=60", false, false),
            ("wait=5", false, true),
            ("wait=0", true, true),
            ("respond-async, wait=20", false, true),
        ] {
            let prefer = Prefer::parse(header);
            let got = [short, long].map(|eta| prefer.leaves(eta, short));
            assert_eq!(got, [leaves_short, leaves_long], "{header}");
        }
    }
}

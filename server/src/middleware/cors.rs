//! Cross-origin requests (the Fetch standard's CORS protocol): which pages a browser lets call this server. None, unless
//! `--cors-origin` names their origins: a server on a person's own machine is otherwise any web page's to use.

use std::time::Duration;

use axum::http::{HeaderValue, Method, Uri};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

/// Time for which a browser need not ask again.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// Methods that routes have.
const METHODS: [Method; 4] = [Method::GET, Method::POST, Method::PUT, Method::DELETE];

/// Origins whose pages may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cors {
    /// All.
    Any,
    /// These.
    These(Vec<HeaderValue>),
}

/// It is no origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an origin: expected `*`, or a scheme and a host such as https://app.example.com, without a path"
)]
pub struct CorsError(String);

// === impl Cors ===

impl Cors {
    /// The origins of this list; none, if it is empty. Errors: every entry that is no origin, beside a `*` as well.
    pub fn of(list: &[String]) -> Result<Option<Self>, Vec<CorsError>> {
        let (mut any, mut these, mut wrong) = (false, Vec::new(), Vec::new());
        for text in list {
            match origin(text) {
                _ if text == "*" => any = true,
                Ok(origin) => these.push(origin),
                Err(error) => wrong.push(error),
            }
        }
        match (any, these.is_empty()) {
            _ if !wrong.is_empty() => Err(wrong),
            (true, _) => Ok(Some(Self::Any)),
            (false, true) => Ok(None),
            (false, false) => Ok(Some(Self::These(these))),
        }
    }

    /// The layer.
    pub fn layer(&self) -> CorsLayer {
        let origins = match self {
            Self::Any => AllowOrigin::any(),
            Self::These(origins) => AllowOrigin::list(origins.clone()),
        };
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods(METHODS)
            // What was asked for: a list of `*` would leave out `authorization`.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(Any)
            .max_age(MAX_AGE)
    }
}

/// An origin as browsers write it: in lower case, a port only where it is not the scheme's own, and nothing after it.
fn origin(text: &str) -> Result<HeaderValue, CorsError> {
    let error = || CorsError(text.to_owned());
    let uri: Uri = text.parse().map_err(|_| error())?;
    let whole = matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        && uri.path() == "/"
        && uri.query().is_none()
        && !text.ends_with('/');
    if !whole {
        return Err(error());
    }
    let text = text.to_ascii_lowercase();
    let usual = if text.starts_with("https:") { ":443" } else { ":80" };
    HeaderValue::from_str(text.strip_suffix(usual).unwrap_or(&text)).map_err(|_| error())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: &[&str]) -> Result<Option<Cors>, Vec<CorsError>> {
        Cors::of(&list.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn an_origin_has_a_scheme_a_host_and_no_more() {
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&["http://a", "*"]), Ok(Some(Cors::Any)));
        let these = vec![HeaderValue::from_static("http://localhost:3000")];
        assert_eq!(of(&["http://LOCALHOST:3000"]), Ok(Some(Cors::These(these))));
        for bad in [
            "",
            "a",
            "a.example.com",
            "https://a/",
            "https://a/b",
            "https://a?b",
            "ftp://a",
            "http://u@a",
            "null",
        ] {
            assert!(of(&[bad]).is_err(), "{bad}");
        }
        // Every one of them, and a `*` excuses none.
        let wrong = ["a", "https://b/"].map(|text| CorsError(text.to_owned()));
        assert_eq!(of(&["*", "a", "http://good", "https://b/"]), Err(wrong.into()));
    }

    #[test]
    fn no_method_is_forgotten() {
        let document = serde_json::to_value(crate::openapi::document()).unwrap();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
                let is_there = item.get(method.to_ascii_lowercase()).is_some();
                assert!(!is_there || METHODS.iter().any(|known| known == method), "{method} {path}");
            }
        }
    }
}

//! Who may do what, on one page: what each route needs. A route that is not here can be asked by administrators only,
//! so that one that is forgotten is closed; the document says the same of each (`openapi/access.rs`).

use axum::http::Method;

use crate::keys::Role;

/// What a caller needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: whoever reaches the port.
    Nothing,
    /// A key of this role, or of one that may do more. A server without keys gives everybody `analyse`.
    Key(Role),
}

use Need::{Key, Nothing};

/// Routes by method and path, with what they need. The Open Inference Protocol's routes of a version are those of the
/// model.
#[rustfmt::skip]
pub const TABLE: &[(&str, &str, Need)] = &[
    // Supervisors and scrapers have no key. They learn the names of the models, and no more of them.
    ("GET",    "/livez",                               Nothing),
    ("GET",    "/readyz",                              Nothing),
    ("GET",    "/startupz",                            Nothing),
    ("GET",    "/metrics",                             Nothing),
    ("GET",    "/v2",                                  Nothing),
    ("GET",    "/v2/health/live",                      Nothing),
    ("GET",    "/v2/health/ready",                     Nothing),
    ("GET",    "/v2/models/{name}/ready",              Nothing),
    // How to ask is no secret.
    ("GET",    "/openapi.json",                        Nothing),
    ("GET",    "/docs",                                Nothing),
    ("GET",    "/docs/",                               Nothing),
    ("GET",    "/docs/{*rest}",                        Nothing),
    // What there is.
    ("GET",    "/v1/models",                           Key(Role::Generate)),
    ("GET",    "/v1/models/{id}",                      Key(Role::Generate)),
    ("GET",    "/v2/models/stats",                     Key(Role::Generate)),
    ("GET",    "/v2/models/{name}",                    Key(Role::Generate)),
    ("GET",    "/v2/models/{name}/config",             Key(Role::Generate)),
    ("GET",    "/v2/models/{name}/stats",              Key(Role::Generate)),
    ("POST",   "/v2/repository/index",                 Key(Role::Generate)),
    // The work. Of requests, everybody sees their own.
    ("POST",   "/v1/images/generations",               Key(Role::Generate)),
    ("POST",   "/v1/replay",                           Key(Role::Generate)),
    ("DELETE", "/v1/requests/{id}",                    Key(Role::Generate)),
    ("POST",   "/v2/models/{name}/infer",              Key(Role::Generate)),
    // Looks inside.
    ("POST",   "/v1/analysis/attention",               Key(Role::Analyse)),
    ("POST",   "/v1/analysis/jacobian",                Key(Role::Analyse)),
    ("POST",   "/v1/analysis/psnr-gap",                Key(Role::Analyse)),
    // What outlives its call. Everybody sees their own, and a kind needs what its route needs (`jobs.rs`).
    ("GET",    "/v1/jobs",                             Key(Role::Generate)),
    ("POST",   "/v1/jobs",                             Key(Role::Generate)),
    ("GET",    "/v1/jobs/{id}",                        Key(Role::Generate)),
    ("PUT",    "/v1/jobs/{id}",                        Key(Role::Generate)),
    ("DELETE", "/v1/jobs/{id}",                        Key(Role::Generate)),
    ("GET",    "/v1/jobs/{id}/events",                 Key(Role::Generate)),
    ("GET",    "/v1/jobs/{id}/result",                 Key(Role::Generate)),
    // What is served.
    ("POST",   "/v2/repository/models/{name}/load",    Key(Role::Admin)),
    ("POST",   "/v2/repository/models/{name}/unload",  Key(Role::Admin)),
];

/// Part of a path that changes nothing.
const VERSION: &str = "/versions/{version}";

/// What a route needs. A method that its path does not take needs nothing: it is told so, and nothing is done.
pub fn need(method: &Method, pattern: &str) -> Need {
    let pattern = pattern.replacen(VERSION, "", 1);
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    let mut rows = TABLE.iter().filter(|(_, path, _)| *path == pattern).peekable();
    if rows.peek().is_none() {
        return Key(Role::Admin);
    }
    rows.find(|(of, ..)| *of == method).map_or(Nothing, |(.., need)| *need)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_found_whatever_its_version_and_head_is_get() {
        let infer = "/v2/models/{name}/versions/{version}/infer";
        assert_eq!(need(&Method::POST, infer), Key(Role::Generate));
        assert_eq!(need(&Method::HEAD, "/v1/models"), Key(Role::Generate));
        assert_eq!(need(&Method::HEAD, "/livez"), Nothing);
        assert_eq!(need(&Method::DELETE, "/v1/models"), Nothing, "405 is for everybody");
        assert_eq!(need(&Method::GET, "/v1/secrets"), Key(Role::Admin), "forgotten");
    }

    /// Every operation of the document is a row, and every row an operation, but for the document itself.
    #[test]
    fn the_table_is_that_of_the_document() {
        let document = serde_json::to_value(crate::openapi::document()).unwrap();
        let mut documented = Vec::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                documented.push((method.to_uppercase(), path.replacen(VERSION, "", 1)));
            }
        }
        let is = |(method, path): (&str, &str), row: &(String, String)| {
            (row.0.as_str(), row.1.as_str()) == (method, path)
        };
        for row in &documented {
            assert!(
                TABLE.iter().any(|&(method, path, _)| is((method, path), row)),
                "{row:?} is not in the table"
            );
        }
        for &(method, path, _) in
            TABLE.iter().filter(|(_, path, _)| !path.starts_with("/docs") && *path != "/openapi.json")
        {
            assert!(documented.iter().any(|row| is((method, path), row)), "{method} {path} does not exist");
        }
    }
}

//! What each operation needs, as `access.rs` has it: the schemes of keys, and 401 and 403 where they may come.

use axum::http::Method;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder};

use crate::access::{Need, need};
use crate::keys::Role;

/// The ways to show a key.
const SCHEMES: [&str; 2] = ["bearer", "x-api-key"];

/// Adds what the table says to every operation of `document`.
pub(super) fn describe(document: &mut OpenApi) {
    let components = document.components.get_or_insert_default();
    let bearer = Http::new(HttpAuthScheme::Bearer);
    let header = ApiKey::Header(ApiKeyValue::new(SCHEMES[1]));
    let schemes = [SecurityScheme::Http(bearer), SecurityScheme::ApiKey(header)];
    components.security_schemes.extend(SCHEMES.map(str::to_owned).into_iter().zip(schemes.map(RefOr::T)));
    for (path, item) in &mut document.paths.paths {
        let methods = [
            (Method::GET, &mut item.get),
            (Method::POST, &mut item.post),
            (Method::PUT, &mut item.put),
            (Method::DELETE, &mut item.delete),
        ];
        for (method, operation) in methods {
            let Some(operation) = operation else { continue };
            if let Need::Key(role) = need(&method, path) {
                describe_one(path, operation, role);
            }
        }
    }
}

fn describe_one(path: &str, operation: &mut Operation, role: Role) {
    let requirement = |scheme| SecurityRequirement::new::<_, [String; 0], String>(scheme, []);
    operation.security = Some(SCHEMES.map(requirement).into());
    let schema = Ref::from_schema_name(if path.starts_with("/v2") { "V2Error" } else { "ErrorBody" });
    let mut add = |status: &str, description: &str| {
        let content = ContentBuilder::new().schema(Some(schema.clone())).build();
        let response =
            ResponseBuilder::new().description(description).content("application/json", content).build();
        operation.responses.responses.entry(status.to_owned()).or_insert_with(|| response.into());
    };
    add("401", "No key that is known here.");
    if role > Role::Generate {
        add("403", "The key may not do that.");
    }
}

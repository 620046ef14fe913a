//! What a client is told when something is wrong: one error type, one constructor per cause, and one table from
//! cause to status, type and code. The wire shape is that of the OpenAI API, or of the Open Inference Protocol under
//! /v2. Mistakes of the client are explained;
//! faults of ours are logged once (by `middleware/rescue.rs`, which also writes the body) and shown as a sentence.

pub mod words;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// Why a request was not answered as asked. [`Cause::row`] is the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The body is not JSON: bad syntax, bad UTF-8, cut short, nested too deeply.
    MalformedBody,
    /// The body did not arrive in time.
    BodyTimeout,
    /// There is no room for the body among those that are being read.
    BodiesFull,
    /// The body is larger than `--body-limit`.
    BodyTooLarge,
    /// The body's `content-type` is not JSON.
    UnsupportedMediaType,
    /// Nothing that `accept` allows can be produced.
    NotAcceptable,
    /// A field holds a value that is not accepted.
    InvalidValue,
    /// A field that does not exist.
    UnknownField,
    /// A field of the OpenAI API whose value asks for something this server does not do.
    Unsupported,
    /// No model of that name.
    ModelNotFound,
    /// The model of that name has another digest.
    ModelChanged,
    /// No such path.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// No known key.
    Unauthenticated,
    /// The key may not do that.
    Forbidden,
    /// Somebody cancelled the request.
    Cancelled,
    /// Too much is waiting.
    Overloaded,
    /// As much of its kind as one caller may have is under way.
    QuotaReached,
    /// Others have the memory that it would keep.
    MemoryFull,
    /// The request cannot be answered within its time.
    DeadlineUnmeetable,
    /// The request's time has passed.
    DeadlinePassed,
    /// The models are still loading.
    Loading,
    /// The server is shutting down.
    ShuttingDown,
    /// The id is that of another job.
    JobConflict,
    /// The job has no result yet.
    JobUnfinished,
    /// The job came to nothing.
    JobFailed,
    /// Of what is asked for, the range that is asked for is not there.
    RangeNotSatisfiable,
    /// The caller has as many jobs under way as it may, or as much of them is kept.
    TooManyJobs,
    /// The store of jobs does not answer.
    JobsUnavailable,
    /// A package does not load.
    LoadFailed,
    /// The engine failed or put out values that are not finite.
    Engine,
    /// A defect of the server.
    Internal,
}

/// An error on its way to the client. Build it by the word that fits: [`ApiError::invalid`], …
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The row of the table.
    pub cause: Cause,
    /// The sentence the client reads.
    pub message: String,
    /// The field that is wrong, where one is.
    pub param: Option<String>,
    /// Seconds after which trying again is worthwhile.
    pub retry_after: Option<u64>,
    /// What happened inside: logged, never shown.
    pub detail: Option<String>,
}

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorObject,
}

/// OpenAI's error object, and the id of the request.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorObject {
    /// A sentence for people.
    #[schema(example = "`steps` is 0, expected 1 to 1000")]
    pub message: String,
    /// The family: `invalid_request_error`, `authentication_error`, `permission_error`,
    /// `rate_limit_error` or `server_error`.
    #[schema(example = "invalid_request_error")]
    pub r#type: &'static str,
    /// The field that is wrong, where one is.
    #[schema(required, example = "steps")]
    pub param: Option<String>,
    /// A stable word for programs.
    #[schema(example = "invalid_value")]
    pub code: &'static str,
    /// The id of the request, as in the header `x-request-id`.
    #[schema(example = "req_5f0c1b9a7d3e42f8")]
    pub request_id: String,
}

/// The body of every error under /v2: the Open Inference Protocol's sentence, and our fields beside it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2Error)]
pub struct V2ErrorBody {
    /// A sentence for people.
    #[schema(example = "`inputs.seed` is missing, expected INT64 of shape [n]")]
    pub error: String,
    /// The input, parameter or header that is wrong, where one is.
    #[schema(required, example = "inputs.seed")]
    pub param: Option<String>,
    /// A stable word for programs.
    #[schema(example = "invalid_value")]
    pub code: &'static str,
    /// The id of the request, as in the header `x-request-id`.
    #[schema(example = "req_5f0c1b9a7d3e42f8")]
    pub request_id: String,
}

// === impl Cause ===

impl Cause {
    /// All of them, in the table's order.
    pub const ALL: [Self; 32] = [
        Self::MalformedBody,
        Self::BodyTimeout,
        Self::BodiesFull,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::NotAcceptable,
        Self::InvalidValue,
        Self::UnknownField,
        Self::Unsupported,
        Self::ModelNotFound,
        Self::ModelChanged,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::Cancelled,
        Self::Overloaded,
        Self::QuotaReached,
        Self::MemoryFull,
        Self::DeadlineUnmeetable,
        Self::DeadlinePassed,
        Self::Loading,
        Self::ShuttingDown,
        Self::JobConflict,
        Self::JobUnfinished,
        Self::JobFailed,
        Self::RangeNotSatisfiable,
        Self::TooManyJobs,
        Self::JobsUnavailable,
        Self::LoadFailed,
        Self::Engine,
        Self::Internal,
    ];

    /// Status, type and code of a cause: the one table.
    #[rustfmt::skip]
    pub fn row(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        const CLIENT: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        const RATE: &str = "rate_limit_error";
        match self {
            Self::MalformedBody        => (S::BAD_REQUEST,            CLIENT, "malformed_body"),
            Self::BodyTimeout          => (S::REQUEST_TIMEOUT,        CLIENT, "body_timeout"),
            Self::BodiesFull           => (S::SERVICE_UNAVAILABLE,    SERVER, "bodies_full"),
            Self::BodyTooLarge         => (S::PAYLOAD_TOO_LARGE,      CLIENT, "body_too_large"),
            Self::UnsupportedMediaType => (S::UNSUPPORTED_MEDIA_TYPE, CLIENT, "unsupported_media_type"),
            Self::NotAcceptable        => (S::NOT_ACCEPTABLE,         CLIENT, "not_acceptable"),
            Self::InvalidValue         => (S::UNPROCESSABLE_ENTITY,   CLIENT, "invalid_value"),
            Self::UnknownField         => (S::UNPROCESSABLE_ENTITY,   CLIENT, "unknown_field"),
            Self::Unsupported          => (S::UNPROCESSABLE_ENTITY,   CLIENT, "unsupported_value"),
            Self::ModelNotFound        => (S::NOT_FOUND,              CLIENT, "model_not_found"),
            Self::ModelChanged         => (S::CONFLICT,               CLIENT, "model_changed"),
            Self::NotFound             => (S::NOT_FOUND,              CLIENT, "not_found"),
            Self::MethodNotAllowed     => (S::METHOD_NOT_ALLOWED,     CLIENT, "method_not_allowed"),
            Self::Unauthenticated      => (S::UNAUTHORIZED,           "authentication_error", "invalid_api_key"),
            Self::Forbidden            => (S::FORBIDDEN,              "permission_error", "forbidden"),
            Self::Cancelled            => (S::CONFLICT,               CLIENT, "cancelled"),
            Self::Overloaded           => (S::TOO_MANY_REQUESTS,      RATE,   "overloaded"),
            Self::QuotaReached         => (S::TOO_MANY_REQUESTS,      RATE,   "quota_reached"),
            Self::MemoryFull           => (S::TOO_MANY_REQUESTS,      RATE,   "memory_full"),
            Self::DeadlineUnmeetable   => (S::TOO_MANY_REQUESTS,      RATE,   "deadline_unmeetable"),
            Self::DeadlinePassed       => (S::GATEWAY_TIMEOUT,        SERVER, "deadline_passed"),
            Self::Loading              => (S::SERVICE_UNAVAILABLE,    SERVER, "loading"),
            Self::ShuttingDown         => (S::SERVICE_UNAVAILABLE,    SERVER, "shutting_down"),
            Self::JobConflict          => (S::CONFLICT,               CLIENT, "job_conflict"),
            Self::JobUnfinished        => (S::CONFLICT,               CLIENT, "job_unfinished"),
            Self::JobFailed            => (S::CONFLICT,               CLIENT, "job_failed"),
            Self::RangeNotSatisfiable  => (S::RANGE_NOT_SATISFIABLE,  CLIENT, "range_not_satisfiable"),
            Self::TooManyJobs          => (S::TOO_MANY_REQUESTS,      RATE,   "too_many_jobs"),
            Self::JobsUnavailable      => (S::SERVICE_UNAVAILABLE,    SERVER, "jobs_unavailable"),
            Self::LoadFailed           => (S::INTERNAL_SERVER_ERROR,  SERVER, "load_failed"),
            Self::Engine               => (S::INTERNAL_SERVER_ERROR,  SERVER, "engine_error"),
            Self::Internal             => (S::INTERNAL_SERVER_ERROR,  SERVER, "internal_error"),
        }
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        self.row().0
    }

    /// Whether something is wrong here, and an operator should read of it.
    pub fn is_fault(self) -> bool {
        matches!(self, Self::Engine | Self::LoadFailed | Self::JobsUnavailable | Self::Internal)
    }

    /// The stable word, also the metrics' label.
    pub fn code(self) -> &'static str {
        self.row().2
    }
}

// === impl ApiError ===

impl ApiError {
    /// An error of `cause` that says `message`, without its middle where it is longer than anybody reads: it may quote
    /// what a client sent.
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        let message = abridged(message.into(), MESSAGE_MOST);
        Self { cause, message, param: None, retry_after: None, detail: None }
    }

    /// `param` holds `got`, which is not `expected`.
    pub fn invalid(param: &str, got: impl std::fmt::Display, expected: impl std::fmt::Display) -> Self {
        Self::new(Cause::InvalidValue, format!("`{param}` is {got}, expected {expected}")).param(param)
    }

    /// `param` asks for `got`; what is `supported` instead.
    pub fn unsupported(param: &str, got: impl std::fmt::Display, supported: &str) -> Self {
        Self::new(Cause::Unsupported, format!("`{param}` {got} is not supported; supported: {supported}"))
            .param(param)
    }

    /// No model named `got` among `known`.
    pub fn model_not_found(got: &str, known: &[&str]) -> Self {
        let message = format!("no model `{got}`; models here: {}", known.join(", "));
        Self::new(Cause::ModelNotFound, message).param("model")
    }

    /// A defect: `detail` is logged, the client reads a sentence.
    pub fn internal(detail: impl Into<String>) -> Self {
        let mut error =
            Self::new(Cause::Internal, "the server failed while answering; the log has the request's id");
        error.detail = Some(detail.into());
        error
    }

    /// The same, about a field.
    #[must_use]
    pub fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(abridged(param.into(), PARAM_MOST));
        self
    }

    /// The same, with the seconds to wait.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Whether asking again brings the same answer, or what nobody wants any more. OpenAI's clients ask again by
    /// themselves after most errors, unless the header `x-should-retry` says no.
    fn is_final(&self) -> bool {
        match self.cause {
            Cause::Cancelled | Cause::DeadlinePassed | Cause::Engine | Cause::LoadFailed => true,
            Cause::JobConflict | Cause::JobUnfinished | Cause::JobFailed => true,
            Cause::DeadlineUnmeetable => self.retry_after.is_none(),
            _ => false,
        }
    }

    /// The body, for a request with this id.
    pub fn body(&self, request_id: &str) -> ErrorBody {
        let (_, r#type, code) = self.cause.row();
        ErrorBody {
            error: ErrorObject {
                message: self.message.clone(),
                r#type,
                param: self.param.clone(),
                code,
                request_id: request_id.to_owned(),
            },
        }
    }

    /// The body under /v2, for a request with this id.
    pub fn v2_body(&self, request_id: &str) -> V2ErrorBody {
        V2ErrorBody {
            error: self.message.clone(),
            param: self.param.clone(),
            code: self.cause.code(),
            request_id: request_id.to_owned(),
        }
    }
}

/// Characters of a message. The longest of ours lists fifty classes.
const MESSAGE_MOST: usize = 4000;

/// Characters of a field's name. Ours are shorter; the unknown ones are a client's.
const PARAM_MOST: usize = 100;

/// The text, or its first and last characters, `most` in all, where it has more. What was expected is said last.
fn abridged(text: String, most: usize) -> String {
    let length = text.chars().count();
    if length <= most {
        return text;
    }
    let head = text.chars().take(most / 8);
    let tail = text.chars().skip(length - (most - most / 8));
    head.chain(['…']).chain(tail).collect()
}

impl IntoResponse for ApiError {
    /// Status and headers only: the error itself travels as an extension to `middleware/rescue.rs`, which knows
    /// the request's id and writes the body.
    fn into_response(self) -> Response {
        let mut response = self.cause.status().into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        let headers = response.headers_mut();
        if self.cause == Cause::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.is_final() {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_openais_error_object() {
        let error = ApiError::invalid("steps", 0, "1 to 1000");
        assert_eq!(
            serde_json::to_value(error.body("req_1")).unwrap(),
            serde_json::json!({"error": {
                "message": "`steps` is 0, expected 1 to 1000",
                "type": "invalid_request_error",
                "param": "steps",
                "code": "invalid_value",
                "request_id": "req_1",
            }})
        );
    }

    #[test]
    fn every_cause_is_listed() {
        let rows = include_str!("error.rs").lines().filter(|line| line.contains("=> (S::")).count();
        // The line above is one more.
        assert_eq!(Cause::ALL.len(), rows - 1);
        let mut codes: Vec<_> = Cause::ALL.map(Cause::code).into();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Cause::ALL.len(), "{codes:?}");
    }

    #[test]
    fn what_a_client_sent_makes_no_answer_long() {
        let long = "é".repeat(1_000_000);
        let error =
            ApiError::new(Cause::UnknownField, format!("unknown field `{long}`, expected `n`")).param(long);
        assert!(error.message.chars().count() <= MESSAGE_MOST + 1);
        assert!(error.message.starts_with("unknown field `é") && error.message.ends_with("`, expected `n`"));
        assert_eq!(error.param.unwrap().chars().count(), PARAM_MOST + 1);
    }

    #[test]
    fn what_happened_inside_is_not_shown() {
        let error = ApiError::internal("open /secret/path: denied");
        let body = serde_json::to_string(&error.body("r")).unwrap();
        assert!(!body.contains("secret"));
        assert_eq!(error.into_response().status(), StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[test]
    fn overload_says_when_to_come_back() {
        let response = ApiError::new(Cause::Overloaded, "full").retry_after(3).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["retry-after"], "3");
    }
}

//! The answers that no single request brings about, since they need a full queue, a slow client or a fault: each is made by
//! the code that makes the real one, so that its sentence is the real one.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::app::{loading, shutting_down};
use crate::batcher::{SampleError, SubmitError};
use crate::call::{failed, no_memory, refused};
use crate::config::Config;
use crate::error::{ApiError, Cause};
use crate::extract::{no_room, too_large, too_slow};
use crate::jobs::store::StoreError;
use crate::middleware::access::{forbidden, unauthenticated};
use crate::model::load::LoadError;
use crate::routes::health::Health;
use crate::routes::jobs::submit::{full, taken};
use crate::routes::replay::changed;
use crate::routes::v2::health::Live;

/// The id in every example.
const ID: &str = "req_5f0c1b9a7d3e42f8";

/// Seconds that the clients of the examples are told to wait.
const WAIT: u64 = 3;

/// The form of an answer's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// OpenAI's error object.
    OpenAi,
    /// An error of the Open Inference Protocol.
    V2,
    /// No error.
    Other,
}

/// Words and bodies of the answers of this status and form that an operation may give.
pub(super) fn of(path: &str, status: &str, form: Form) -> Vec<(&'static str, Value)> {
    if form == Form::Other {
        return health(path, status).into_iter().collect();
    }
    let ours = |error: &ApiError| error.cause.status().as_str() == status && fits(error.cause, path);
    let body = |error: ApiError| {
        let body = if form == Form::V2 { value(&error.v2_body(ID)) } else { value(&error.body(ID)) };
        (error.cause.code(), body)
    };
    all().into_iter().filter(ours).map(body).collect()
}

/// One error of each cause.
fn all() -> Vec<ApiError> {
    let config = Config::default();
    let wait = Duration::from_secs(WAIT);
    let late = SubmitError::TooLate { needs: wait, alone: wait / 4, retry_after: WAIT };
    let digest = |digit: &str| digit.repeat(64);
    vec![
        unauthenticated(),
        forbidden(true),
        too_slow(config.body_timeout),
        no_room(),
        too_large(config.body_limit),
        refused(&SubmitError::Overloaded { retry_after: WAIT }, None),
        refused(&late, Some(wait / 2)),
        refused(&SubmitError::Studying { quota: config.study_quota, retry_after: WAIT }, None),
        no_memory("answers", wait),
        failed(SampleError::Cancelled),
        failed(SampleError::DeadlinePassed),
        failed(SampleError::Engine(String::new())),
        changed("tiny", &digest("a"), &digest("b")),
        taken(),
        full(config.jobs.limit),
        StoreError::Corrupt(String::new()).into(),
        LoadError::Several(Vec::new()).into(),
        ApiError::internal(""),
        loading(),
        shutting_down(),
    ]
}

/// Whether an operation can fail in this way.
fn fits(cause: Cause, path: &str) -> bool {
    let looks = path.starts_with("/v1/analysis/");
    let works = looks || path == "/v1/images/generations" || path == "/v1/replay";
    let generates = works || path.ends_with("/infer");
    let loads = path.ends_with("/load");
    // Nothing there waits for the engine.
    let of_jobs = path.starts_with("/v1/jobs");
    let orders = ["/v1/jobs", "/v1/jobs/{id}"].contains(&path);
    let reads = generates || loads || orders || path.ends_with("/unload") || path.ends_with("/index");
    match cause {
        Cause::Overloaded => !looks && !of_jobs,
        Cause::QuotaReached => looks || orders || path.ends_with("/infer"),
        Cause::MemoryFull => generates,
        Cause::ModelChanged => path == "/v1/replay",
        Cause::JobConflict => path.starts_with("/v1/jobs/{id}"),
        Cause::TooManyJobs => orders,
        Cause::JobsUnavailable => of_jobs,
        Cause::DeadlineUnmeetable | Cause::Cancelled => !of_jobs,
        Cause::ShuttingDown => generates || orders,
        Cause::Engine => generates,
        Cause::LoadFailed => loads,
        Cause::BodiesFull => reads,
        Cause::Internal => !loads,
        _ => true,
    }
}

/// What a server is answered with whose worker has died.
fn health(path: &str, status: &str) -> Option<(&'static str, Value)> {
    match (path, status) {
        ("/livez", "503") => {
            Some(("dead", value(&Health { status: "dead", models: vec!["tiny".to_owned()] })))
        }
        ("/v2/health/live", "503") => Some(("not_live", value(&Live { live: false }))),
        _ => None,
    }
}

fn value(body: &impl Serialize) -> Value {
    serde_json::to_value(body).expect("text and flags always make JSON; this is a bug")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_shown_only_what_it_can_answer() {
        let words = |path: &str, status: &str| -> Vec<_> {
            of(path, status, Form::OpenAi).into_iter().map(|(word, _)| word).collect()
        };
        assert_eq!(words("/v1/replay", "409"), ["cancelled", "model_changed"]);
        assert_eq!(words("/v1/images/generations", "409"), ["cancelled"]);
        assert_eq!(
            words("/v1/images/generations", "429"),
            ["overloaded", "deadline_unmeetable", "memory_full"]
        );
        assert_eq!(words("/v1/replay", "429"), ["overloaded", "deadline_unmeetable", "memory_full"]);
        assert_eq!(
            words("/v1/analysis/jacobian", "429"),
            ["deadline_unmeetable", "quota_reached", "memory_full"]
        );
        assert_eq!(words("/v1/images/generations", "500"), ["engine_error", "internal_error"]);
        assert_eq!(words("/v2/repository/models/{name}/load", "500"), ["load_failed"]);
        assert_eq!(words("/v1/models/{id}", "503"), ["loading"]);
        assert_eq!(words("/v1/jobs", "429"), ["quota_reached", "too_many_jobs"]);
        assert_eq!(words("/v1/jobs/{id}", "409"), ["job_conflict"]);
        assert_eq!(words("/v1/jobs/{id}/result", "503"), ["jobs_unavailable", "loading"]);
        // What a request alone brings about is recorded.
        for status in ["400", "404", "406", "415", "422"] {
            assert!(words("/v1/images/generations", status).is_empty(), "{status}");
        }
        let (_, body) = &of("/v2/models/{name}/infer", "401", Form::V2)[0];
        assert_eq!(body["error"], "no key that is known here; send `authorization: Bearer KEY`");
    }
}

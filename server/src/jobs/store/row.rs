//! A job as its row says it: everything but what was asked for and what came of it, which may be large.

use std::fmt;

use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::any::AnyRow;
use utoipa::ToSchema;

use super::{Millis, StoreError};
use crate::error::ApiError;
use crate::jobs::Kind;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = JobState)]
pub enum State {
    /// It waits for a server.
    Queued,
    /// A server works on it, or did so until a moment ago.
    Running,
    /// Its result is there.
    Succeeded,
    /// It came to nothing; `error` says why.
    Failed,
    /// Somebody did not want it any more.
    Cancelled,
}

/// Why a job came to nothing, as the body of an error would say it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = JobFailure)]
pub struct Failure {
    /// A stable word for programs.
    #[schema(example = "engine_error")]
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// The field of `request` that is wrong, where one is.
    #[schema(required)]
    pub param: Option<String>,
}

/// What is known of a result without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Its media type.
    pub media_type: String,
    /// What else its head says.
    pub headers: Vec<(String, String)>,
    /// Its bytes.
    pub size: u64,
    /// The sha256 of its bytes, in hexadecimal.
    pub etag: String,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its number in the store: the order in which jobs came.
    pub number: i64,
    /// Whose it is.
    pub owner: String,
    /// Its id, among those of its owner.
    pub id: String,
    /// What is done.
    pub kind: Kind,
    /// The model's name.
    pub model: String,
    /// The model's digest.
    pub digest: String,
    /// Who is told of its end; empty for nobody.
    pub webhook: String,
    /// Where it stands.
    pub state: State,
    /// The token of its newest lease.
    pub token: i64,
    /// Times that a server took it up.
    pub attempts: i64,
    /// Leases since its last piece.
    pub fruitless: i64,
    /// Pieces committed.
    pub pieces: i64,
    /// Units of work done.
    pub done: i64,
    /// Units of work in all; 0 while nobody knows.
    pub total: i64,
    /// Milliseconds that all of it takes, as was thought when it was ordered; 0 where nobody knew.
    pub expected: Millis,
    /// When it was ordered.
    pub created: Millis,
    /// When it was first taken up.
    pub started: Millis,
    /// When it was last taken up.
    pub leased: Millis,
    /// What was done by then.
    pub leased_done: i64,
    /// When it last changed.
    pub updated: Millis,
    /// When it ended.
    pub finished: Millis,
    /// When it is forgotten.
    pub expires: Millis,
    /// The sequence number of its newest event.
    pub events: i64,
    /// Why it came to nothing.
    pub error: Option<Failure>,
    /// What its result is.
    pub result: Option<Meta>,
    /// Jobs that are taken up before it, where it waits.
    pub ahead: Option<i64>,
}

/// The columns of a [`Job`].
pub(super) const COLUMNS: &str = "number, owner, id, kind, model, digest, webhook, state, token, attempts, fruitless, pieces, done, \
     total, expected, created, started, leased, leased_done, updated, finished, expires, events, error, media_type, headers, size, etag";

// === impl State ===

impl State {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state of this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }

    /// Whether nothing more happens.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Failure ===

impl From<&ApiError> for Failure {
    fn from(error: &ApiError) -> Self {
        Self {
            code: error.cause.code().to_owned(),
            message: error.message.clone(),
            param: error.param.clone(),
        }
    }
}

impl Failure {
    /// As a column holds it.
    pub(super) fn to_column(&self) -> String {
        serde_json::to_string(self).expect("text always makes JSON; this is a bug")
    }

    /// From a column.
    pub(super) fn of_column(text: &str) -> Result<Option<Self>, StoreError> {
        if text.is_empty() {
            return Ok(None);
        }
        serde_json::from_str(text)
            .map(Some)
            .map_err(|error| StoreError::Corrupt(format!("an error: {error}")))
    }
}

// === impl Job ===

impl Job {
    /// The job of a row with [`COLUMNS`].
    pub(super) fn of_row(row: &AnyRow) -> Result<Self, StoreError> {
        let text = |name: &str| row.try_get::<String, _>(name);
        let number = |name: &str| row.try_get::<i64, _>(name);
        let unknown = |what: &str, word: &str| StoreError::Corrupt(format!("the {what} `{word}`"));
        let (kind, state) = (text("kind")?, text("state")?);
        let state = State::parse(&state).ok_or_else(|| unknown("state", &state))?;
        let result = match state {
            State::Succeeded => {
                let headers = text("headers")?;
                let headers = serde_json::from_str(&headers).map_err(|_| unknown("headers", &headers))?;
                let size = number("size")?.unsigned_abs();
                Some(Meta { media_type: text("media_type")?, headers, size, etag: text("etag")? })
            }
            _ => None,
        };
        Ok(Self {
            number: number("number")?,
            owner: text("owner")?,
            id: text("id")?,
            kind: Kind::parse(&kind).ok_or_else(|| unknown("kind", &kind))?,
            model: text("model")?,
            digest: text("digest")?,
            webhook: text("webhook")?,
            state,
            token: number("token")?,
            attempts: number("attempts")?,
            fruitless: number("fruitless")?,
            pieces: number("pieces")?,
            done: number("done")?,
            total: number("total")?,
            expected: number("expected")?,
            created: number("created")?,
            started: number("started")?,
            leased: number("leased")?,
            leased_done: number("leased_done")?,
            updated: number("updated")?,
            finished: number("finished")?,
            expires: number("expires")?,
            events: number("events")?,
            error: Failure::of_column(&text("error")?)?,
            result,
            ahead: None,
        })
    }

    /// Milliseconds that what is left takes once it is taken up: as it has gone under the newest lease, or as was thought when
    /// it was ordered.
    pub fn eta(&self) -> Option<Millis> {
        let (made, left) = (self.done - self.leased_done, self.total - self.done);
        if self.state.is_final() || left < 0 {
            return None;
        }
        let (time, of) = match self.state {
            State::Running if made > 0 => ((self.updated - self.leased).max(0), made),
            _ => (self.expected, self.total),
        };
        (time > 0 && of > 0).then(|| (time as f64 * left as f64 / of as f64) as Millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_back() {
        for state in State::ALL {
            assert_eq!(State::parse(state.as_str()), Some(state));
        }
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.as_str()), Some(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }
}

//! What happened to a job, in order: a number more each time, without gaps but for progress and for tries that found no room,
//! of which only the newest is kept. The job's row is locked while its next event is written, so nobody reads an event before
//! an earlier one.

use sqlx::AnyConnection;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Failure, Job, Millis, State, Store, StoreError};

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// It was ordered.
    Queued,
    /// A server took it up.
    Running,
    /// It is a little further.
    Progress,
    /// A server left it for another to take up, or until there is room for it.
    Released,
    /// It ended in this way.
    Ended(State),
}

/// An event of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its number among those of its job, from 1.
    pub sequence: i64,
    /// What happened.
    pub what: Happening,
    /// When.
    pub at: Millis,
    /// Times that the job had been taken up by then.
    pub attempt: i64,
    /// Units of work done by then.
    pub done: i64,
    /// Units of work in all.
    pub total: i64,
    /// Why it came to nothing, or was left.
    pub error: Option<Failure>,
}

/// Events that are read at a time.
const PAGE: i64 = 256;

// === impl Happening ===

impl Happening {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Progress => "progress",
            Self::Released => "released",
            Self::Ended(state) => state.as_str(),
        }
    }

    fn parse(word: &str) -> Option<Self> {
        let plain = [Self::Queued, Self::Running, Self::Progress, Self::Released];
        let ends = State::ALL.into_iter().filter(|state| state.is_final()).map(Self::Ended);
        plain.into_iter().chain(ends).find(|what| what.as_str() == word)
    }

    /// Whether it is the last of its job.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Ended(_))
    }
}

// === impl Event ===

impl Event {
    fn of_row(row: &AnyRow) -> Result<Self, StoreError> {
        let what: String = row.try_get("what")?;
        let error: String = row.try_get("error")?;
        Ok(Self {
            sequence: row.try_get("sequence")?,
            what: Happening::parse(&what)
                .ok_or_else(|| StoreError::Corrupt(format!("the event `{what}`")))?,
            at: row.try_get("at")?,
            attempt: row.try_get("attempt")?,
            done: row.try_get("done")?,
            total: row.try_get("total")?,
            error: Failure::of_column(&error)?,
        })
    }
}

// === impl Store ===

impl Store {
    /// The job's events after a number, in order; not all at once where there are many.
    pub async fn events(&self, number: i64, after: i64) -> Result<Vec<Event>, StoreError> {
        let sql = "SELECT sequence, what, at, attempt, done, total, error FROM windowpane_events \
                   WHERE job = $1 AND sequence > $2 ORDER BY sequence LIMIT $3";
        let query = sqlx::query(sql).bind(number).bind(after).bind(PAGE);
        query.fetch_all(&self.pool).await?.iter().map(Event::of_row).collect()
    }
}

/// Writes down what happened to the job, which has changed already, and returns it as it is now.
pub(super) async fn happened(
    connection: &mut AnyConnection,
    number: i64,
    now: Millis,
    what: Happening,
    error: Option<&Failure>,
) -> Result<Job, StoreError> {
    let sql = format!(
        "UPDATE windowpane_jobs SET events = events + 1, updated = $2 WHERE number = $1 RETURNING {}",
        super::row::COLUMNS
    );
    let row = sqlx::query(&sql).bind(number).bind(now).fetch_one(&mut *connection).await?;
    let job = Job::of_row(&row)?;
    if what == Happening::Progress {
        let sql = "DELETE FROM windowpane_events WHERE job = $1 AND what = 'progress'";
        sqlx::query(sql).bind(number).execute(&mut *connection).await?;
    }
    let sql = "INSERT INTO windowpane_events (job, sequence, what, at, attempt, done, total, error) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    let query = sqlx::query(sql).bind(number).bind(job.events).bind(what.as_str()).bind(now);
    let query = query.bind(job.attempts).bind(job.done).bind(job.total);
    query.bind(error.map(Failure::to_column).unwrap_or_default()).execute(&mut *connection).await?;
    Ok(job)
}

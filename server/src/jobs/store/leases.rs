//! Leases: who works on what, until when. Each lease of a job has a token that is larger than that of the one before;
//! whatever a holder writes is written only while its token is the newest, in one transaction with the check. So a holder
//! that was thought dead and was not does no harm.

use std::time::Duration;

use bytes::Bytes;
use sqlx::AnyConnection;
use sqlx::Row;

use super::events::{Happening, happened};
use super::{Failure, Job, Millis, State, Store, StoreError, deliveries, results};
use crate::error::Cause;
use crate::jobs::Kind;

/// Leases without a new piece after which a job is given up: it takes its servers with it.
pub const FRUITLESS: i64 = 5;

/// Milliseconds for which a job can be somebody's, or wait, and some: an hour is the longest that `--job-lease` may be. Whatever
/// is later than that was written before the clock was set back.
const LONGEST: Millis = 2 * 3_600_000;

/// A job that is ours for a while.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The job.
    pub job: Job,
    /// What is asked for, JSON.
    pub request: String,
    /// In which form, as a header says it.
    pub accept: String,
    /// The token of this lease.
    pub token: i64,
    /// What has been committed of it.
    pub pieces: Vec<Bytes>,
    /// Whether whoever held it before has said nothing for too long.
    pub was_lost: bool,
}

/// Why a job is left before it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Its server goes, or has the model no more.
    Leaving,
    /// There is no room for it. Of such leases one after the other only the newest is remembered, with its events: a job may
    /// wait for long.
    Full,
    /// It failed: with too many such leases it is given up.
    Failed,
}

/// Whose jobs are not wanted now: of this owner, of this model.
pub type Paused = (String, String);

/// What a server takes up.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Jobs of these kinds,
    pub kinds: &'a [Kind],
    /// of these models, by name and digest,
    pub models: &'a [(String, String)],
    /// but for these.
    pub paused: &'a [Paused],
}

fn millis(time: Duration) -> Millis {
    Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX / 4)
}

// === impl Store ===

impl Store {
    /// Takes up the next job that is wanted: of the owner who has the fewest under way, and among those of whose turn was
    /// longest ago; and of that owner's the oldest. Jobs that have been taken up too often without a new piece are given up on the way, and told in the second
    /// list.
    pub async fn lease(
        &self,
        holder: &str,
        Wanted { kinds, models, paused }: Wanted<'_>,
        time: Duration,
    ) -> Result<(Option<Lease>, Vec<Job>), StoreError> {
        let mut given_up = Vec::new();
        if kinds.is_empty() || models.is_empty() {
            return Ok((None, given_up));
        }
        let sql = next(kinds.len(), models.len(), paused.len(), &self.skipping("j"));
        // No digest and no model's name has a space in it.
        let models: Vec<String> = models.iter().map(|(name, digest)| format!("{name} {digest}")).collect();
        let paused: Vec<String> = paused.iter().map(|(owner, model)| format!("{owner} {model}")).collect();
        loop {
            let mut tx = self.begin().await?;
            let now = self.now(&mut tx).await?;
            let mut query = sqlx::query(&sql).bind(now);
            for kind in kinds {
                query = query.bind(kind.as_str());
            }
            for text in models.iter().chain(&paused) {
                query = query.bind(text);
            }
            let Some(row) = query.fetch_optional(&mut *tx).await? else { return Ok((None, given_up)) };
            let (number, fruitless): (i64, i64) = (row.try_get("number")?, row.try_get("fruitless")?);
            let was_lost = row.try_get::<String, _>("state")? == State::Running.as_str();
            if was_lost {
                let sql =
                    "UPDATE windowpane_leases SET ended = $2, outcome = 'lost' WHERE job = $1 AND ended = 0";
                sqlx::query(sql).bind(number).bind(now).execute(&mut *tx).await?;
            }
            if fruitless >= FRUITLESS {
                let poison = Failure {
                    code: Cause::Internal.code().to_owned(),
                    message: format!(
                        "{fruitless} servers took it up one after the other, and none got any further"
                    ),
                    param: None,
                };
                given_up.push(self.fail_in(&mut tx, number, now, &poison).await?);
                tx.commit().await?;
                continue;
            }
            let lease = self.take(&mut tx, (number, was_lost), now, (holder, time)).await?;
            tx.commit().await?;
            return Ok((Some(lease), given_up));
        }
    }

    async fn take(
        &self,
        connection: &mut AnyConnection,
        (number, was_lost): (i64, bool),
        now: Millis,
        (holder, time): (&str, Duration),
    ) -> Result<Lease, StoreError> {
        let sql = "UPDATE windowpane_jobs \
                   SET state = 'running', token = token + 1, holder = $2, lease_until = $3, leased = $4, leased_done = done, \
                       attempts = attempts + 1, fruitless = fruitless + 1, \
                       started = CASE WHEN started = 0 THEN $4 ELSE started END \
                   WHERE number = $1 RETURNING request, accept";
        let query = sqlx::query(sql).bind(number).bind(holder).bind(now.saturating_add(millis(time)));
        let row = query.bind(now).fetch_one(&mut *connection).await?;
        let (request, accept) = (row.try_get("request")?, row.try_get("accept")?);
        let job = happened(connection, number, now, Happening::Running, None).await?;
        let sql = "INSERT INTO windowpane_leases (job, token, holder, began, first_piece) VALUES ($1, $2, $3, $4, $5)";
        let query = sqlx::query(sql).bind(number).bind(job.token).bind(holder).bind(now).bind(job.pieces);
        query.execute(&mut *connection).await?;
        let pieces = results::pieces(connection, &job).await?;
        // There may be much of it: the time of the lease begins when it is there.
        let now = self.now(connection).await?;
        let sql = "UPDATE windowpane_jobs SET lease_until = $2 WHERE number = $1";
        sqlx::query(sql).bind(number).bind(now.saturating_add(millis(time))).execute(connection).await?;
        Ok(Lease { token: job.token, job, request, accept, pieces, was_lost })
    }

    /// Keeps a lease for so long from now. Whether it is still ours.
    pub async fn renew(&self, number: i64, token: i64, time: Duration) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let now = self.now(&mut tx).await?;
        let sql = "UPDATE windowpane_jobs SET lease_until = $3 WHERE number = $1 AND token = $2 AND state = 'running'";
        let query = sqlx::query(sql).bind(number).bind(token).bind(now.saturating_add(millis(time)));
        let is_ours = query.execute(&mut *tx).await?.rows_affected() == 1;
        tx.commit().await?;
        Ok(is_ours)
    }

    /// Writes down how far it is. Whether the lease is still ours.
    pub async fn progress(&self, number: i64, token: i64, done: i64, total: i64) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let now = self.now(&mut tx).await?;
        let sql = "UPDATE windowpane_jobs SET done = $3, total = $4 WHERE number = $1 AND token = $2 AND state = 'running'";
        let query = sqlx::query(sql).bind(number).bind(token).bind(done).bind(total);
        let is_ours = query.execute(&mut *tx).await?.rows_affected() == 1;
        if is_ours {
            happened(&mut tx, number, now, Happening::Progress, None).await?;
            tx.commit().await?;
        }
        Ok(is_ours)
    }

    /// Commits the piece of this number, the next one, with how far it is by then. Whether the lease is still ours; the same
    /// piece under the same lease twice is one, for whoever did not hear the answer.
    pub async fn put(
        &self,
        (number, token): (i64, i64),
        piece: i64,
        bytes: &[u8],
        (done, total): (i64, i64),
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let now = self.now(&mut tx).await?;
        let sql = "UPDATE windowpane_jobs SET pieces = pieces + 1, fruitless = 0, updated = $4, done = $5, total = $6 \
                   WHERE number = $1 AND token = $2 AND state = 'running' AND pieces = $3";
        let query = sqlx::query(sql).bind(number).bind(token).bind(piece).bind(now).bind(done).bind(total);
        if query.execute(&mut *tx).await?.rows_affected() == 0 {
            let sql = "SELECT COUNT(*) FROM windowpane_jobs AS j JOIN windowpane_pieces AS p ON p.job = j.number \
                       WHERE j.number = $1 AND j.token = $2 AND j.state = 'running' AND p.number = $3 AND p.token = $2";
            let query = sqlx::query(sql).bind(number).bind(token).bind(piece);
            return Ok(query.fetch_one(&mut *tx).await?.try_get::<i64, _>(0)? == 1);
        }
        let sql = "INSERT INTO windowpane_pieces (job, number, token, committed, bytes) VALUES ($1, $2, $3, $4, $5)";
        let query = sqlx::query(sql).bind(number).bind(piece).bind(token).bind(now).bind(bytes);
        query.execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Leaves a job for another server to take up, after a while. Whether the lease was still ours; the same under the same
    /// lease twice is one.
    pub async fn release(
        &self,
        (number, token): (i64, i64),
        wait: Duration,
        why: Option<&Failure>,
        how: Release,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let now = self.now(&mut tx).await?;
        let back = i64::from(how != Release::Failed);
        let sql = "UPDATE windowpane_jobs SET state = 'queued', holder = '', lease_until = 0, not_before = $3, \
                       fruitless = CASE WHEN fruitless > $4 THEN fruitless - $4 ELSE 0 END \
                   WHERE number = $1 AND token = $2 AND state = 'running'";
        let query =
            sqlx::query(sql).bind(number).bind(token).bind(now.saturating_add(millis(wait))).bind(back);
        if query.execute(&mut *tx).await?.rows_affected() == 0 {
            return stands(&mut tx, number, token, State::Queued).await;
        }
        let job = happened(&mut tx, number, now, Happening::Released, why).await?;
        if how == Release::Full {
            forget_full(&mut tx, &job).await?;
        }
        ended(&mut tx, &job, now, how.as_str()).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Ends a job that comes to nothing. Whether the lease was still ours; the same end under the same lease twice is one.
    pub async fn fail(&self, number: i64, token: i64, why: &Failure) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let now = self.now(&mut tx).await?;
        if !held(&mut tx, number, token).await? {
            return stands(&mut tx, number, token, State::Failed).await;
        }
        self.fail_in(&mut tx, number, now, why).await?;
        tx.commit().await?;
        Ok(true)
    }

    pub(super) async fn fail_in(
        &self,
        connection: &mut AnyConnection,
        number: i64,
        now: Millis,
        why: &Failure,
    ) -> Result<Job, StoreError> {
        let sql = "UPDATE windowpane_jobs \
                   SET state = 'failed', finished = $2, expires = $3, lease_until = 0, holder = '', request = '', error = $4 \
                   WHERE number = $1";
        let query = sqlx::query(sql).bind(number).bind(now).bind(now.saturating_add(self.retention));
        query.bind(why.to_column()).execute(&mut *connection).await?;
        let job = happened(connection, number, now, Happening::Ended(State::Failed), Some(why)).await?;
        ended(connection, &job, now, "failed").await?;
        results::forget_pieces(connection, number).await?;
        deliveries::announce(connection, &job, now).await?;
        Ok(job)
    }

    /// What the leases of a job were, in order: token, holder, the number of the first piece, how it ended.
    #[cfg(test)]
    pub(crate) async fn leases(&self, number: i64) -> Result<Vec<(i64, String, i64, String)>, StoreError> {
        let sql =
            "SELECT token, holder, first_piece, outcome FROM windowpane_leases WHERE job = $1 ORDER BY token";
        let rows = sqlx::query(sql).bind(number).fetch_all(&self.pool).await?;
        let lease = |row: &sqlx::any::AnyRow| {
            Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
        };
        rows.iter().map(lease).collect()
    }
}

// === impl Release ===

impl Release {
    /// How the lease ended.
    fn as_str(self) -> &'static str {
        match self {
            Self::Leaving | Self::Failed => "released",
            Self::Full => "full",
        }
    }
}

/// Forgets the leases before this one that found no room, and what was told of them.
async fn forget_full(connection: &mut AnyConnection, job: &Job) -> Result<(), StoreError> {
    // An attempt has the number of its lease.
    let events = "DELETE FROM windowpane_events WHERE job = $1 AND what IN ('running', 'released') AND attempt IN \
                  (SELECT token FROM windowpane_leases WHERE job = $1 AND outcome = 'full')";
    let leases = "DELETE FROM windowpane_leases WHERE job = $1 AND outcome = 'full'";
    for sql in [events, leases] {
        sqlx::query(sql).bind(job.number).execute(&mut *connection).await?;
    }
    Ok(())
}

/// The statement that finds the next job.
fn next(kinds: usize, models: usize, paused: usize, skipping: &str) -> String {
    let places = |from: usize, count: usize| {
        (from..from + count).map(|place| format!("${place}")).collect::<Vec<_>>().join(", ")
    };
    let paused = match paused {
        0 => String::new(),
        _ => format!("AND j.owner || ' ' || j.model NOT IN ({}) ", places(2 + kinds + models, paused)),
    };
    format!(
        "SELECT j.number, j.state, j.fruitless FROM windowpane_jobs AS j \
         WHERE ((j.state = 'queued' AND (j.not_before <= $1 OR j.not_before - {LONGEST} > $1)) \
             OR (j.state = 'running' AND (j.lease_until < $1 OR j.lease_until - {LONGEST} > $1))) \
           AND j.kind IN ({}) AND j.model || ' ' || j.digest IN ({}) {paused}\
         ORDER BY \
           (SELECT COUNT(*) FROM windowpane_jobs AS r WHERE r.owner = j.owner AND r.state = 'running' AND r.lease_until >= $1), \
           (SELECT COALESCE(MAX(l.leased), 0) FROM windowpane_jobs AS l WHERE l.owner = j.owner), \
           j.number \
         LIMIT 1{skipping}",
        places(2, kinds),
        places(2 + kinds, models)
    )
}

/// Whether the lease is the newest, and the job still runs; it stays so until the transaction ends.
pub(super) async fn held(
    connection: &mut AnyConnection,
    number: i64,
    token: i64,
) -> Result<bool, StoreError> {
    let sql =
        "UPDATE windowpane_jobs SET token = token WHERE number = $1 AND token = $2 AND state = 'running'";
    let query = sqlx::query(sql).bind(number).bind(token);
    Ok(query.execute(connection).await?.rows_affected() == 1)
}

/// Whether the job is in that state since this lease, which is the newest.
async fn stands(
    connection: &mut AnyConnection,
    number: i64,
    token: i64,
    state: State,
) -> Result<bool, StoreError> {
    let sql = "SELECT COUNT(*) FROM windowpane_jobs WHERE number = $1 AND token = $2 AND state = $3";
    let query = sqlx::query(sql).bind(number).bind(token).bind(state.as_str());
    Ok(query.fetch_one(connection).await?.try_get::<i64, _>(0)? == 1)
}

/// Writes down how the newest lease of a job ended, if it had one.
pub(super) async fn ended(
    connection: &mut AnyConnection,
    job: &Job,
    now: Millis,
    how: &str,
) -> Result<(), StoreError> {
    let sql =
        "UPDATE windowpane_leases SET ended = $3, outcome = $4 WHERE job = $1 AND token = $2 AND ended = 0";
    let query = sqlx::query(sql).bind(job.number).bind(job.token).bind(now).bind(how);
    query.execute(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statement_has_a_place_for_each_kind_and_model() {
        let sql = next(2, 3, 0, "");
        assert!(sql.contains("j.kind IN ($2, $3) AND j.model || ' ' || j.digest IN ($4, $5, $6)"), "{sql}");
        assert!(!sql.contains("NOT IN"), "{sql}");
        let sql = next(1, 1, 2, " FOR UPDATE");
        assert!(sql.contains("IN ($3) AND j.owner || ' ' || j.model NOT IN ($4, $5) ORDER BY"), "{sql}");
        assert_eq!(sql.split("LIMIT").last(), Some(" 1 FOR UPDATE"));
    }
}

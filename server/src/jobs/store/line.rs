//! The line: where in it a job waits. Owners take turns, and each one's jobs come in the order in which they were ordered, so a
//! job's place is not how many came before it: who orders one job behind somebody's hundred is the next but one at the most.

use std::cmp::Ordering;

use sqlx::AnyConnection;
use sqlx::Row;

use super::{Job, Millis, State, Store, StoreError, versions};

/// Where an owner stands, who has something that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    owner: String,
    /// Jobs that wait.
    waiting: i64,
    /// Jobs that somebody has.
    running: i64,
    /// When the latest was taken up.
    leased: Millis,
    /// The oldest that waits.
    oldest: i64,
}

// === impl Store ===

impl Store {
    /// Jobs with their places in the line, where they wait.
    pub(super) async fn placed(
        &self,
        connection: &mut AnyConnection,
        mut jobs: Vec<Job>,
    ) -> Result<Vec<Job>, StoreError> {
        if jobs.iter().any(|job| job.state == State::Queued) {
            let now = self.now(connection).await?;
            let line = line(connection, now).await?;
            for job in jobs.iter_mut().filter(|job| job.state == State::Queued) {
                job.ahead = Some(ahead(connection, &line, job, now).await?);
            }
        }
        Ok(jobs)
    }

    /// The same of one.
    pub(super) async fn placed_one(
        &self,
        connection: &mut AnyConnection,
        job: Job,
    ) -> Result<Job, StoreError> {
        Ok(self.placed(connection, vec![job]).await?.remove(0))
    }
}

/// Everybody who has a job that waits for a server which could take it up.
async fn line(connection: &mut AnyConnection, now: Millis) -> Result<Vec<Standing>, StoreError> {
    let sql = format!(
        "SELECT j.owner, COUNT(*) AS waiting, MIN(j.number) AS oldest, \
           (SELECT COUNT(*) FROM windowpane_jobs AS r WHERE r.owner = j.owner AND r.state = 'running' AND r.lease_until >= $1) \
             AS running, \
           (SELECT COALESCE(MAX(l.leased), 0) FROM windowpane_jobs AS l WHERE l.owner = j.owner) AS leased \
         FROM windowpane_jobs AS j WHERE j.state = 'queued' AND {} GROUP BY j.owner",
        versions::is_served("j", 2)
    );
    let rows = sqlx::query(&sql).bind(now).bind(versions::lately(now)).fetch_all(connection).await?;
    let standing = |row: &sqlx::any::AnyRow| {
        Ok(Standing {
            owner: row.try_get("owner")?,
            waiting: row.try_get("waiting")?,
            running: row.try_get("running")?,
            leased: row.try_get("leased")?,
            oldest: row.try_get("oldest")?,
        })
    };
    rows.iter().map(standing).collect()
}

/// Jobs that are taken up before this one, if none comes and one ends after the other.
async fn ahead(
    connection: &mut AnyConnection,
    line: &[Standing],
    job: &Job,
    now: Millis,
) -> Result<i64, StoreError> {
    let sql = format!(
        "SELECT COUNT(*) FROM windowpane_jobs AS j \
         WHERE j.owner = $1 AND j.state = 'queued' AND j.number < $3 AND {}",
        versions::is_served("j", 2)
    );
    let query = sqlx::query(&sql).bind(&job.owner).bind(versions::lately(now)).bind(job.number);
    let before: i64 = query.fetch_one(connection).await?.try_get(0)?;
    // One that no server can take up now is in nobody's line; it is told the place that it would have.
    let own = line.iter().find(|standing| standing.owner == job.owner).cloned();
    let own = own.unwrap_or_else(|| Standing {
        owner: job.owner.clone(),
        waiting: 0,
        running: 0,
        leased: 0,
        oldest: job.number,
    });
    let others = line.iter().filter(|standing| standing.owner != job.owner);
    Ok(before + others.map(|other| other.turns_before(&own, before)).sum::<i64>())
}

// === impl Standing ===

impl Standing {
    /// Turns that they have before somebody else's job with so many of his own before it.
    fn turns_before(&self, other: &Self, before: i64) -> i64 {
        let is_first = match self.running.cmp(&other.running) {
            Ordering::Equal => (self.leased, self.oldest) < (other.leased, other.oldest),
            // Whoever has fewer under way goes first until both have as many, and then had the latest turn.
            fewer => fewer == Ordering::Greater,
        };
        (before + i64::from(is_first) + other.running - self.running).clamp(0, self.waiting)
    }
}

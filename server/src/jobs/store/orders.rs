//! Orders: a job comes, is looked at, and is cancelled by whoever does not want it any more; and it is forgotten after a
//! while.

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sqlx::AnyConnection;
use sqlx::Row;

use super::events::{Happening, happened};
use super::row::COLUMNS;
use super::{Job, Millis, State, Store, StoreError, deliveries, hex, versions};
use crate::jobs::Kind;

/// What is ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Its id, among those of its owner.
    pub id: String,
    /// What is done.
    pub kind: Kind,
    /// The body of the synchronous route, JSON.
    pub request: String,
    /// Its header `accept`; empty for none.
    pub accept: String,
    /// The model's name.
    pub model: String,
    /// The model's digest.
    pub digest: String,
    /// Who is told of its end; empty for nobody.
    pub webhook: String,
    /// Units of work that it is; 0 where nobody knows.
    pub units: i64,
    /// Milliseconds that these take, as things stood when it was ordered.
    pub expected: Millis,
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Submitted {
    /// It is a new job.
    New(Job),
    /// It is the job that was ordered with the same words before.
    Known(Job),
    /// The id is that of another job.
    Taken,
    /// The owner has as many jobs as there may be.
    Full,
    /// What is kept for the owner takes as much as it may.
    NoRoom,
}

/// What came of a cancellation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelled {
    /// The job ended by it.
    Now(Job),
    /// It had ended before.
    Before(Job),
    /// It has been forgotten meanwhile.
    Gone,
}

/// Bytes that a job takes beside its result, roughly: its row, its events, who was told of it.
const BESIDE: i64 = 4096;

/// What holds of a job that is remembered. One whose time has passed is gone for whoever asks, however much of it is still
/// there.
const REMEMBERED: &str = "(expires = 0 OR expires > $1)";

/// Jobs that are forgotten in one transaction, and parts of their results: where there is one writer, others wait for it.
const FORGOTTEN: i64 = 64;

// === impl Order ===

impl Order {
    /// The sha256 of what is asked for.
    fn asked(&self) -> String {
        digest(&self.request)
    }
}

/// The sha256 of a request. It is the same however the JSON is written: names are sorted when it is read.
fn digest(request: &str) -> String {
    let read = serde_json::from_str::<Value>(request);
    let text = read.map_or_else(|_| request.to_owned(), |value| value.to_string());
    hex(&Sha256::digest(text))
}

// === impl Store ===

impl Store {
    /// The job that was ordered under the id of this order before: [`Submitted::Known`] or [`Submitted::Taken`].
    pub async fn known(&self, owner: &str, order: &Order) -> Result<Option<Submitted>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        self.known_in(&mut connection, owner, order).await
    }

    async fn known_in(
        &self,
        connection: &mut AnyConnection,
        owner: &str,
        order: &Order,
    ) -> Result<Option<Submitted>, StoreError> {
        let now = self.now(connection).await?;
        let sql = format!(
            "SELECT asked, request, accept, {COLUMNS} FROM windowpane_jobs \
             WHERE {REMEMBERED} AND owner = $2 AND id = $3"
        );
        let query = sqlx::query(&sql).bind(now).bind(owner).bind(&order.id);
        let row = query.fetch_optional(&mut *connection).await?;
        let Some(row) = row else { return Ok(None) };
        let job = Job::of_row(&row)?;
        let (mut asked, accept): (String, String) = (row.try_get("asked")?, row.try_get("accept")?);
        if asked.is_empty() {
            // Ordered of a server whose store did not have this column; it has what was asked for until the job ends.
            asked = digest(row.try_get("request")?);
        }
        let is_same = (job.kind, &job.webhook, &accept) == (order.kind, &order.webhook, &order.accept)
            && asked == order.asked();
        if !is_same {
            return Ok(Some(Submitted::Taken));
        }
        Ok(Some(Submitted::Known(self.placed_one(connection, job).await?)))
    }

    /// Takes an order of an owner who may have `limit` jobs that wait or run, and room in the store. The same order twice is
    /// one job.
    pub async fn submit(&self, owner: &str, order: &Order, limit: usize) -> Result<Submitted, StoreError> {
        let mut tx = self.begin().await?;
        // One order of an owner at a time: neither its jobs nor its ids are counted twice.
        self.alone(&mut tx, owner).await?;
        if let Some(known) = self.known_in(&mut tx, owner, order).await? {
            return Ok(known);
        }
        let now = self.now(&mut tx).await?;
        // The id is free again; what is left of a job that had it goes at once.
        let sql =
            "DELETE FROM windowpane_jobs WHERE owner = $1 AND id = $2 AND expires > 0 AND expires <= $3";
        sqlx::query(sql).bind(owner).bind(&order.id).bind(now).execute(&mut *tx).await?;
        let sql = "SELECT COUNT(*), COUNT(CASE WHEN state IN ('queued', 'running') THEN 1 END), \
                          CAST(COALESCE(SUM(size), 0) AS BIGINT) \
                   FROM windowpane_jobs WHERE owner = $1";
        let row = sqlx::query(sql).bind(owner).fetch_one(&mut *tx).await?;
        let (jobs, under_way, results): (i64, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if under_way.unsigned_abs() >= limit as u64 {
            return Ok(Submitted::Full);
        }
        if results.saturating_add(jobs.saturating_mul(BESIDE)) >= self.room {
            return Ok(Submitted::NoRoom);
        }
        let sql = "INSERT INTO windowpane_jobs \
                   (owner, id, kind, model, digest, request, asked, webhook, accept, total, expected, state, created, updated) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'queued', $12, $12) RETURNING number";
        let query = sqlx::query(sql).bind(owner).bind(&order.id).bind(order.kind.as_str());
        let query = query.bind(&order.model).bind(&order.digest).bind(&order.request).bind(order.asked());
        let query = query.bind(&order.webhook).bind(&order.accept).bind(order.units).bind(order.expected);
        let number: i64 = query.bind(now).fetch_one(&mut *tx).await?.try_get(0)?;
        let job = happened(&mut tx, number, now, Happening::Queued, None).await?;
        // It was checked against the model, which is served here.
        versions::serve(&mut tx, (&order.model, &order.digest), now).await?;
        let job = self.placed_one(&mut tx, job).await?;
        tx.commit().await?;
        Ok(Submitted::New(job))
    }

    /// The owner's job of this id.
    pub async fn job(&self, owner: &str, id: &str) -> Result<Option<Job>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let now = self.now(&mut connection).await?;
        let sql =
            format!("SELECT {COLUMNS} FROM windowpane_jobs WHERE {REMEMBERED} AND owner = $2 AND id = $3");
        let row = sqlx::query(&sql).bind(now).bind(owner).bind(id).fetch_optional(&mut *connection).await?;
        match row {
            None => Ok(None),
            Some(row) => self.placed_one(&mut connection, Job::of_row(&row)?).await.map(Some),
        }
    }

    /// Anybody's jobs of this id: none, one, or two of more.
    pub async fn anybodys(&self, id: &str) -> Result<Vec<Job>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let now = self.now(&mut connection).await?;
        let sql = format!(
            "SELECT {COLUMNS} FROM windowpane_jobs WHERE {REMEMBERED} AND id = $2 ORDER BY number LIMIT 2"
        );
        let rows = sqlx::query(&sql).bind(now).bind(id).fetch_all(&mut *connection).await?;
        let jobs = rows.iter().map(Job::of_row).collect::<Result<_, _>>()?;
        self.placed(&mut connection, jobs).await
    }

    /// The job of this number, without its place in the queue.
    pub async fn by_number(&self, number: i64) -> Result<Option<Job>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM windowpane_jobs WHERE number = $1");
        let row = sqlx::query(&sql).bind(number).fetch_optional(&self.pool).await?;
        row.as_ref().map(Job::of_row).transpose()
    }

    /// The owner's jobs that came before the one of this number, the newest first; those in one state, where it is named.
    pub async fn jobs(
        &self,
        owner: &str,
        state: Option<State>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<Job>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let now = self.now(&mut connection).await?;
        let sql = format!(
            "SELECT {COLUMNS} FROM windowpane_jobs WHERE {REMEMBERED} AND owner = $2 AND number < $3 \
             AND ($4 = '' OR state = $4) ORDER BY number DESC LIMIT $5"
        );
        let query = sqlx::query(&sql).bind(now).bind(owner).bind(before.unwrap_or(i64::MAX));
        let query = query.bind(state.map_or("", State::as_str)).bind(limit as i64);
        let rows = query.fetch_all(&mut *connection).await?;
        let jobs = rows.iter().map(Job::of_row).collect::<Result<_, _>>()?;
        self.placed(&mut connection, jobs).await
    }

    /// Jobs by state, for the metrics.
    pub async fn counts(&self) -> Result<Vec<(State, i64)>, StoreError> {
        let sql = "SELECT state, COUNT(*) AS jobs FROM windowpane_jobs GROUP BY state";
        let rows = sqlx::query(sql).fetch_all(&self.pool).await?;
        let mut counts = State::ALL.map(|state| (state, 0));
        for row in rows {
            let (state, jobs): (String, i64) = (row.try_get("state")?, row.try_get("jobs")?);
            if let Some(count) = counts.iter_mut().find(|(known, _)| known.as_str() == state) {
                count.1 = jobs;
            }
        }
        Ok(counts.into())
    }

    /// Ends a job that nobody wants any more. Whoever works on it can commit nothing from now on.
    pub async fn cancel(&self, number: i64) -> Result<Cancelled, StoreError> {
        let mut tx = self.begin().await?;
        let now = self.now(&mut tx).await?;
        let sql = "UPDATE windowpane_jobs \
                   SET state = 'cancelled', finished = $2, expires = $3, lease_until = 0, holder = '', request = '' \
                   WHERE number = $1 AND state IN ('queued', 'running')";
        let query = sqlx::query(sql).bind(number).bind(now).bind(now.saturating_add(self.retention));
        if query.execute(&mut *tx).await?.rows_affected() == 0 {
            let sql = format!("SELECT {COLUMNS} FROM windowpane_jobs WHERE number = $1");
            let row = sqlx::query(&sql).bind(number).fetch_optional(&mut *tx).await?;
            return Ok(row.as_ref().map(Job::of_row).transpose()?.map_or(Cancelled::Gone, Cancelled::Before));
        }
        let job = happened(&mut tx, number, now, Happening::Ended(State::Cancelled), None).await?;
        super::leases::ended(&mut tx, &job, now, "cancelled").await?;
        super::results::forget_pieces(&mut tx, number).await?;
        deliveries::announce(&mut tx, &job, now).await?;
        tx.commit().await?;
        Ok(Cancelled::Now(job))
    }

    /// Forgets jobs whose time has passed, and says how many. A large result goes in steps, its end first.
    pub async fn expire(&self) -> Result<u64, StoreError> {
        let mut forgotten = 0;
        loop {
            let (mut parts, mut jobs) = (0, 0);
            let mut tx = self.begin().await?;
            let now = self.now(&mut tx).await?;
            let sql = format!(
                "SELECT number FROM windowpane_jobs AS j WHERE expires > 0 AND expires <= $1 \
                 ORDER BY expires LIMIT $2{}",
                self.skipping("j")
            );
            let rows = sqlx::query(&sql).bind(now).bind(FORGOTTEN).fetch_all(&mut *tx).await?;
            for row in &rows {
                let number: i64 = row.try_get(0)?;
                let sql = "DELETE FROM windowpane_parts WHERE job = $1 AND number IN \
                           (SELECT number FROM windowpane_parts WHERE job = $1 ORDER BY number DESC LIMIT $2)";
                let query = sqlx::query(sql).bind(number).bind(FORGOTTEN - parts);
                parts += query.execute(&mut *tx).await?.rows_affected() as i64;
                if parts == FORGOTTEN {
                    break;
                }
                // What else belongs to it goes with it.
                let sql = "DELETE FROM windowpane_jobs WHERE number = $1";
                sqlx::query(sql).bind(number).execute(&mut *tx).await?;
                jobs += 1;
            }
            tx.commit().await?;
            forgotten += jobs;
            if parts < FORGOTTEN && (rows.len() as i64) < FORGOTTEN {
                return Ok(forgotten);
            }
        }
    }
}

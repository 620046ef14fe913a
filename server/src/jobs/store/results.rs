//! What comes of a job: pieces on the way, and at the end the result, in parts of equal size so that a range of it is read
//! without the rest.

use std::ops::Range;

use bytes::Bytes;
use futures::TryStreamExt as _;
use sha2::{Digest, Sha256};
use sqlx::AnyConnection;
use sqlx::Row;

use super::events::{Happening, happened};
use super::{Job, State, Store, StoreError, deliveries, hex, leases};
use crate::jobs::perform::Product;

/// Bytes of a part. It is part of what is stored: another size is another version of the tables.
const PART: usize = 1 << 18;

// === impl Store ===

impl Store {
    /// Ends a job with its result, all in one. The job, if the lease was still ours; the same end under the same lease twice
    /// is one.
    pub async fn finish(
        &self,
        number: i64,
        token: i64,
        product: &Product,
    ) -> Result<Option<Job>, StoreError> {
        let mut tx = self.begin().await?;
        let now = self.now(&mut tx).await?;
        if !leases::held(&mut tx, number, token).await? {
            let sql = format!(
                "SELECT {} FROM windowpane_jobs WHERE number = $1 AND token = $2 AND state = 'succeeded'",
                super::row::COLUMNS
            );
            let row = sqlx::query(&sql).bind(number).bind(token).fetch_optional(&mut *tx).await?;
            return row.as_ref().map(Job::of_row).transpose();
        }
        let etag = hex(&Sha256::digest(&product.body));
        let headers = serde_json::to_string(&product.headers).expect("text always makes JSON; this is a bug");
        let sql = "UPDATE windowpane_jobs \
                   SET state = 'succeeded', finished = $2, expires = $3, lease_until = 0, holder = '', request = '', \
                       media_type = $4, headers = $5, size = $6, etag = $7, \
                       done = CASE WHEN total > 0 THEN total ELSE done END \
                   WHERE number = $1";
        let query = sqlx::query(sql).bind(number).bind(now).bind(now.saturating_add(self.retention));
        let query = query.bind(&product.media_type).bind(headers).bind(product.body.len() as i64).bind(etag);
        query.execute(&mut *tx).await?;
        for (part, bytes) in product.body.chunks(PART).enumerate() {
            let sql = "INSERT INTO windowpane_parts (job, number, bytes) VALUES ($1, $2, $3)";
            sqlx::query(sql).bind(number).bind(part as i64).bind(bytes).execute(&mut *tx).await?;
        }
        let job = happened(&mut tx, number, now, Happening::Ended(State::Succeeded), None).await?;
        leases::ended(&mut tx, &job, now, "finished").await?;
        forget_pieces(&mut tx, number).await?;
        deliveries::announce(&mut tx, &job, now).await?;
        tx.commit().await?;
        Ok(Some(job))
    }

    /// The first bytes of a range of the result, as many as one part has of it; none where the result is gone.
    pub async fn read(&self, number: i64, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        let part = range.start / PART as u64;
        let sql = "SELECT bytes FROM windowpane_parts WHERE job = $1 AND number = $2";
        let row = sqlx::query(sql).bind(number).bind(part as i64).fetch_optional(&self.pool).await?;
        let Some(row) = row else { return Ok(None) };
        let bytes = Bytes::from(row.try_get::<Vec<u8>, _>(0)?);
        let start = (range.start % PART as u64) as usize;
        let end = bytes.len().min(start.saturating_add((range.end - range.start) as usize));
        if start >= end {
            return Err(StoreError::Corrupt(format!("part {part} of job {number} is short")));
        }
        Ok(Some(bytes.slice(start..end)))
    }
}

/// What has been committed of a job, in order.
pub(super) async fn pieces(connection: &mut AnyConnection, job: &Job) -> Result<Vec<Bytes>, StoreError> {
    let sql = "SELECT bytes FROM windowpane_pieces WHERE job = $1 ORDER BY number";
    let mut rows = sqlx::query(sql).bind(job.number).fetch(connection);
    let mut pieces = Vec::new();
    // One by one: all of them may be as large as a result.
    while let Some(row) = rows.try_next().await? {
        pieces.push(Bytes::from(row.try_get::<Vec<u8>, _>(0)?));
    }
    if pieces.len() as i64 != job.pieces {
        return Err(StoreError::Corrupt(format!("{} of {} pieces", pieces.len(), job.pieces)));
    }
    Ok(pieces)
}

/// Lets the bytes of a job's pieces go: nobody works on it any more. Who committed them when stays.
pub(super) async fn forget_pieces(connection: &mut AnyConnection, number: i64) -> Result<(), StoreError> {
    let sql = "UPDATE windowpane_pieces SET bytes = $2 WHERE job = $1";
    sqlx::query(sql).bind(number).bind(&b""[..]).execute(connection).await?;
    Ok(())
}

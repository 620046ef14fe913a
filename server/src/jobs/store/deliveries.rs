//! What others are to be told of a job's end: written down with the end itself, so that neither is without the other, and
//! delivered at least once under an id that stays.

use std::time::Duration;

use sqlx::AnyConnection;
use sqlx::Row;

use super::{Job, Millis, Store, StoreError};
use crate::jobs::object::JobObject;
use crate::jobs::webhook::{self, Message};

/// Times that a delivery is tried.
pub const MOST_DELIVERIES: i64 = 10;

/// Time after which a delivery that was taken up and not heard of again is tried again: longer than one takes.
const HELD: Millis = 60_000;

/// Time before the second try; each further one waits three times as long as the one before, up to [`LONGEST`].
const FIRST: Millis = 5_000;

/// The longest time between two tries.
const LONGEST: Millis = 6 * 3_600_000;

/// A delivery that is ours for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its id, the same at each try.
    pub id: String,
    /// Where to.
    pub url: String,
    /// The host of that.
    pub host: String,
    /// What is said, JSON.
    pub body: String,
    /// Tries, with this one.
    pub attempts: i64,
    /// Of whom it is.
    token: i64,
}

/// How a try went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was taken.
    Delivered,
    /// It was not, for this reason; perhaps another time.
    Failed(String),
    /// It was not, and never will be.
    Refused(String),
}

// === impl Store ===

impl Store {
    /// Takes up the delivery that has been due for longest, to another host than these.
    pub async fn next_delivery(&self, busy: &[String]) -> Result<Option<Delivery>, StoreError> {
        let mut tx = self.begin().await?;
        let now = self.now(&mut tx).await?;
        let others: String = (2..2 + busy.len()).map(|place| format!(" AND host <> ${place}")).collect();
        let sql = format!(
            "SELECT id FROM windowpane_deliveries AS d WHERE state = 'waiting' \
               AND (next_at <= $1 OR next_at - {} > $1){others} \
             ORDER BY next_at LIMIT 1{}",
            // What is later than that was written before the clock was set back.
            2 * LONGEST,
            self.skipping("d")
        );
        let query = busy.iter().fold(sqlx::query(&sql).bind(now), |query, host| query.bind(host));
        let Some(row) = query.fetch_optional(&mut *tx).await? else { return Ok(None) };
        let id: String = row.try_get(0)?;
        let sql = "UPDATE windowpane_deliveries SET attempts = attempts + 1, token = token + 1, next_at = $2 \
                   WHERE id = $1 RETURNING url, host, body, attempts, token";
        let row = sqlx::query(sql).bind(&id).bind(now + HELD).fetch_one(&mut *tx).await?;
        tx.commit().await?;
        let attempts = row.try_get("attempts")?;
        let (url, host, body) = (row.try_get("url")?, row.try_get("host")?, row.try_get("body")?);
        Ok(Some(Delivery { id, url, host, body, attempts, token: row.try_get("token")? }))
    }

    /// Writes down how a try went, if nobody else has taken it up since. Whether there will be no further one.
    pub async fn delivered(&self, delivery: &Delivery, outcome: &Outcome) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let now = self.now(&mut tx).await?;
        let is_last = delivery.attempts >= MOST_DELIVERIES;
        let (state, error) = match outcome {
            Outcome::Delivered => ("delivered", ""),
            Outcome::Failed(why) => (if is_last { "dead" } else { "waiting" }, why.as_str()),
            Outcome::Refused(why) => ("dead", why.as_str()),
        };
        let sql = "UPDATE windowpane_deliveries SET state = $3, error = $4, next_at = $5 WHERE id = $1 AND token = $2";
        let query = sqlx::query(sql).bind(&delivery.id).bind(delivery.token).bind(state).bind(error);
        query.bind(now + pause(delivery.attempts)).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(state != "waiting")
    }
}

/// The time after this many tries.
fn pause(attempts: i64) -> Millis {
    let factor = 3_i64.saturating_pow(u32::try_from(attempts - 1).unwrap_or(0));
    FIRST.saturating_mul(factor).min(LONGEST)
}

// === impl Delivery ===

impl Delivery {
    /// One that no store knows.
    #[cfg(test)]
    pub(crate) fn example(body: &str) -> Self {
        let (id, url, host, body) = ("msg_1".to_owned(), String::new(), String::new(), body.to_owned());
        Self { id, url, host, body, attempts: 1, token: 1 }
    }

    /// The time until the next try, after this one.
    pub fn pause(&self) -> Duration {
        Duration::from_millis(pause(self.attempts).unsigned_abs())
    }
}

/// Has whoever wants to know be told that the job has ended.
pub(super) async fn announce(
    connection: &mut AnyConnection,
    job: &Job,
    now: Millis,
) -> Result<(), StoreError> {
    if job.webhook.is_empty() {
        return Ok(());
    }
    let message = Message::new(now, JobObject::from(job));
    let sql = "INSERT INTO windowpane_deliveries (id, job, url, host, body, state, next_at) \
               VALUES ($1, $2, $3, $4, $5, 'waiting', $6)";
    let query = sqlx::query(sql).bind(Message::id()).bind(job.number).bind(&job.webhook);
    let query = query.bind(webhook::host_of(&job.webhook));
    query.bind(message.to_json()).bind(now).execute(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        assert_eq!([1, 2, 3].map(pause), [5_000, 15_000, 45_000]);
        assert_eq!(pause(60), LONGEST);
    }
}

//! Versions of models: when a server last said that it serves one. A job is done with the version that it was ordered for, and
//! with no other; one whose version no server has had for a long time is told so, rather than kept waiting for ever.

use sqlx::AnyConnection;
use sqlx::Row;

use super::{Failure, Job, Millis, Store, StoreError};
use crate::error::Cause;

/// Time after which a server says again what it serves.
const AGAIN: Millis = 60_000;

/// Time after which a server that has said nothing is thought not to serve a version any more.
const SILENCE: Millis = 3 * AGAIN;

/// Time for which a job waits for its version at least.
const PATIENCE: Millis = 3_600_000;

/// Jobs that are given up in one transaction.
const MOST: i64 = 64;

/// From when on a version is served by somebody.
pub(super) fn lately(now: Millis) -> Millis {
    now - SILENCE
}

/// What holds of a job whose version is served by somebody; the parameter of this number is [`lately`].
pub(super) fn is_served(table: &str, parameter: usize) -> String {
    format!(
        "EXISTS (SELECT 1 FROM windowpane_versions AS v \
         WHERE v.model = {table}.model AND v.digest = {table}.digest AND v.seen >= ${parameter})"
    )
}

/// Somebody serves a version, now.
pub(super) async fn serve(
    connection: &mut AnyConnection,
    (model, digest): (&str, &str),
    now: Millis,
) -> Result<(), StoreError> {
    // Said again now and then alone, and where the clock was set back; looked at first, since who writes keeps others waiting.
    let sql = "SELECT COUNT(*) FROM windowpane_versions \
               WHERE model = $1 AND digest = $2 AND seen >= $3 AND seen <= $4";
    let query = sqlx::query(sql).bind(model).bind(digest).bind(now - AGAIN).bind(now);
    if query.fetch_one(&mut *connection).await?.try_get::<i64, _>(0)? > 0 {
        return Ok(());
    }
    let sql = "INSERT INTO windowpane_versions (model, digest, seen) VALUES ($1, $2, $3) \
               ON CONFLICT (model, digest) DO UPDATE SET seen = excluded.seen";
    sqlx::query(sql).bind(model).bind(digest).bind(now).execute(connection).await?;
    Ok(())
}

// === impl Store ===

impl Store {
    /// Says that a server has these models, by name and digest.
    pub async fn serve(&self, models: &[(String, String)]) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let now = self.now(&mut tx).await?;
        for (model, digest) in models {
            serve(&mut tx, (model, digest), now).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Ends jobs whose version no server has had for as long as results are kept, and for an hour at least. For a server that has
    /// been there for a while itself: at an outage of all of them nobody says anything.
    pub async fn give_up_unserved(&self) -> Result<Vec<Job>, StoreError> {
        let mut given_up = Vec::new();
        loop {
            let mut tx = self.begin().await?;
            let now = self.now(&mut tx).await?;
            let patience = self.retention.max(PATIENCE);
            let sql = format!(
                "SELECT j.number FROM windowpane_jobs AS j \
                   JOIN windowpane_versions AS v ON v.model = j.model AND v.digest = j.digest \
                 WHERE (j.state = 'queued' OR (j.state = 'running' AND j.lease_until < $1)) AND v.seen <= $2 \
                 ORDER BY j.number LIMIT {MOST}{}",
                self.skipping("j")
            );
            let rows = sqlx::query(&sql).bind(now).bind(now - patience).fetch_all(&mut *tx).await?;
            for row in &rows {
                let number = row.try_get(0)?;
                let why = Failure {
                    code: Cause::ModelChanged.code().to_owned(),
                    message: format!(
                        "no server has had this version of the model for {} hours; order it again of the one that is served",
                        patience / 3_600_000
                    ),
                    param: Some("model".to_owned()),
                };
                given_up.push(self.fail_in(&mut tx, number, now, &why).await?);
            }
            let sql = "DELETE FROM windowpane_versions WHERE seen <= $1 AND NOT EXISTS \
                       (SELECT 1 FROM windowpane_jobs AS j WHERE j.model = windowpane_versions.model \
                        AND j.digest = windowpane_versions.digest AND j.state IN ('queued', 'running'))";
            sqlx::query(sql).bind(now - patience).execute(&mut *tx).await?;
            tx.commit().await?;
            if (rows.len() as i64) < MOST {
                return Ok(given_up);
            }
        }
    }
}

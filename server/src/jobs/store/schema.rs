//! The tables, version by version. A store is brought up to date by whoever opens it first, while others wait; a store of a
//! newer version is left alone.

use sqlx::Row;

use super::{Dialect, Store, StoreError};

/// What is done to reach each version, from 1. `{number}` and `{bytes}` stand for what the two databases call differently.
/// Nothing is NULL: a text or a number that is not there is empty.
const VERSIONS: &[&[&str]] = &[
    &[
        // One row a job. `events` counts its events, `fruitless` the leases since its last piece.
        "CREATE TABLE windowpane_jobs (
        number {number},
        owner TEXT NOT NULL,
        id TEXT NOT NULL,
        kind TEXT NOT NULL,
        model TEXT NOT NULL,
        digest TEXT NOT NULL,
        request TEXT NOT NULL,
        webhook TEXT NOT NULL,
        state TEXT NOT NULL,
        token BIGINT NOT NULL DEFAULT 0,
        holder TEXT NOT NULL DEFAULT '',
        lease_until BIGINT NOT NULL DEFAULT 0,
        not_before BIGINT NOT NULL DEFAULT 0,
        attempts BIGINT NOT NULL DEFAULT 0,
        fruitless BIGINT NOT NULL DEFAULT 0,
        pieces BIGINT NOT NULL DEFAULT 0,
        done BIGINT NOT NULL DEFAULT 0,
        total BIGINT NOT NULL DEFAULT 0,
        created BIGINT NOT NULL,
        started BIGINT NOT NULL DEFAULT 0,
        leased BIGINT NOT NULL DEFAULT 0,
        leased_done BIGINT NOT NULL DEFAULT 0,
        updated BIGINT NOT NULL,
        finished BIGINT NOT NULL DEFAULT 0,
        expires BIGINT NOT NULL DEFAULT 0,
        events BIGINT NOT NULL DEFAULT 0,
        error TEXT NOT NULL DEFAULT '',
        media_type TEXT NOT NULL DEFAULT '',
        headers TEXT NOT NULL DEFAULT '',
        size BIGINT NOT NULL DEFAULT 0,
        etag TEXT NOT NULL DEFAULT '',
        UNIQUE (owner, id)
    )",
        "CREATE INDEX windowpane_jobs_by_state ON windowpane_jobs (state, number)",
        "CREATE INDEX windowpane_jobs_by_owner ON windowpane_jobs (owner, leased)",
        "CREATE INDEX windowpane_jobs_by_end ON windowpane_jobs (expires)",
        // One row a lease: who worked on what, from which piece on, and how that ended.
        "CREATE TABLE windowpane_leases (
        job BIGINT NOT NULL REFERENCES windowpane_jobs (number) ON DELETE CASCADE,
        token BIGINT NOT NULL,
        holder TEXT NOT NULL,
        began BIGINT NOT NULL,
        first_piece BIGINT NOT NULL,
        ended BIGINT NOT NULL DEFAULT 0,
        outcome TEXT NOT NULL DEFAULT '',
        PRIMARY KEY (job, token)
    )",
        // What is done of a job, under which lease. Once there is a result the bytes are let go.
        "CREATE TABLE windowpane_pieces (
        job BIGINT NOT NULL REFERENCES windowpane_jobs (number) ON DELETE CASCADE,
        number BIGINT NOT NULL,
        token BIGINT NOT NULL,
        committed BIGINT NOT NULL,
        bytes {bytes} NOT NULL,
        PRIMARY KEY (job, number)
    )",
        // The result, in parts of equal size but for the last.
        "CREATE TABLE windowpane_parts (
        job BIGINT NOT NULL REFERENCES windowpane_jobs (number) ON DELETE CASCADE,
        number BIGINT NOT NULL,
        bytes {bytes} NOT NULL,
        PRIMARY KEY (job, number)
    )",
        "CREATE TABLE windowpane_events (
        job BIGINT NOT NULL REFERENCES windowpane_jobs (number) ON DELETE CASCADE,
        sequence BIGINT NOT NULL,
        what TEXT NOT NULL,
        at BIGINT NOT NULL,
        attempt BIGINT NOT NULL,
        done BIGINT NOT NULL,
        total BIGINT NOT NULL,
        error TEXT NOT NULL,
        PRIMARY KEY (job, sequence)
    )",
        // What others are still to be told, or were.
        "CREATE TABLE windowpane_deliveries (
        id TEXT NOT NULL PRIMARY KEY,
        job BIGINT NOT NULL REFERENCES windowpane_jobs (number) ON DELETE CASCADE,
        url TEXT NOT NULL,
        body TEXT NOT NULL,
        state TEXT NOT NULL,
        attempts BIGINT NOT NULL DEFAULT 0,
        token BIGINT NOT NULL DEFAULT 0,
        next_at BIGINT NOT NULL,
        error TEXT NOT NULL DEFAULT ''
    )",
        "CREATE INDEX windowpane_deliveries_by_time ON windowpane_deliveries (state, next_at)",
        "CREATE INDEX windowpane_deliveries_by_job ON windowpane_deliveries (job)",
    ],
    &[
        // The form of the result, as the header `accept` of the route says it.
        "ALTER TABLE windowpane_jobs ADD COLUMN accept TEXT NOT NULL DEFAULT ''",
    ],
    &[
        // On which host a delivery is, so that one that does not answer keeps no other waiting.
        "ALTER TABLE windowpane_deliveries ADD COLUMN host TEXT NOT NULL DEFAULT ''",
        // The sha256 of what was asked for: `request` itself is let go when the job ends.
        "ALTER TABLE windowpane_jobs ADD COLUMN asked TEXT NOT NULL DEFAULT ''",
        "CREATE INDEX windowpane_jobs_by_size ON windowpane_jobs (owner, state, size)",
    ],
    &[
        // Milliseconds that the work was thought to take when it was ordered.
        "ALTER TABLE windowpane_jobs ADD COLUMN expected BIGINT NOT NULL DEFAULT 0",
        // Matrices are made of columns now, and were of rows: what there is of one is no beginning of another.
        "DELETE FROM windowpane_pieces WHERE job IN \
         (SELECT number FROM windowpane_jobs WHERE kind = 'jacobian' AND state IN ('queued', 'running'))",
        "UPDATE windowpane_jobs SET pieces = 0, done = 0, leased_done = 0 \
         WHERE kind = 'jacobian' AND state IN ('queued', 'running')",
    ],
    &[
        // When a server last said that it serves a version of a model. Of what waits already: when anything last happened.
        "CREATE TABLE windowpane_versions (
        model TEXT NOT NULL,
        digest TEXT NOT NULL,
        seen BIGINT NOT NULL,
        PRIMARY KEY (model, digest)
    )",
        "INSERT INTO windowpane_versions (model, digest, seen) \
         SELECT model, digest, (SELECT MAX(updated) FROM windowpane_jobs) FROM windowpane_jobs \
         WHERE state IN ('queued', 'running') GROUP BY model, digest",
    ],
];

/// Brings the tables up to date.
pub(super) async fn migrate(store: &Store) -> Result<(), StoreError> {
    let known = VERSIONS.len() as i64;
    let mut tx = store.begin().await?;
    store.alone(&mut tx, "windowpane schema").await?;
    let is_there = match store.dialect {
        Dialect::Sqlite => {
            "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'windowpane_schema'"
        }
        Dialect::Postgres => {
            "SELECT COUNT(*) FROM information_schema.tables \
             WHERE table_schema = current_schema() AND table_name = 'windowpane_schema'"
        }
    };
    let tables: i64 = sqlx::query(is_there).fetch_one(&mut *tx).await?.try_get(0)?;
    if tables == 0 {
        sqlx::query("CREATE TABLE windowpane_schema (version BIGINT NOT NULL)").execute(&mut *tx).await?;
        sqlx::query("INSERT INTO windowpane_schema (version) VALUES (0)").execute(&mut *tx).await?;
    }
    let row = sqlx::query("SELECT version FROM windowpane_schema").fetch_one(&mut *tx).await?;
    let found: i64 = row.try_get(0)?;
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    let missing = usize::try_from(found).ok().and_then(|found| VERSIONS.get(found..));
    let missing = missing.ok_or_else(|| StoreError::Corrupt(format!("schema {found}")))?;
    for statement in missing.iter().copied().flatten() {
        sqlx::query(&store.dialect.spell(statement)).execute(&mut *tx).await?;
    }
    if !missing.is_empty() {
        sqlx::query("UPDATE windowpane_schema SET version = $1").bind(known).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok(())
}

// === impl Dialect ===

impl Dialect {
    /// A statement in this database's words.
    fn spell(self, statement: &str) -> String {
        let (number, bytes) = match self {
            Self::Sqlite => ("INTEGER PRIMARY KEY AUTOINCREMENT", "BLOB"),
            Self::Postgres => ("BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", "BYTEA"),
        };
        statement.replace("{number}", number).replace("{bytes}", bytes)
    }
}

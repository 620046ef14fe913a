//! The store: jobs, their leases, pieces, results, events and deliveries, in SQLite or in PostgreSQL. One set of statements
//! serves both; where the two differ is here. Every operation is one transaction, and what it decides is decided by the
//! database's clock, so that servers whose clocks differ agree on who holds what.

mod deliveries;
mod events;
mod leases;
mod line;
mod orders;
mod results;
mod row;
mod schema;
#[cfg(test)]
pub(crate) mod tests;
mod versions;

use std::fs::{DirBuilder, OpenOptions};
use std::path::Path;
use std::time::{Duration, SystemTime};

use sqlx::any::AnyPoolOptions;
use sqlx::{Any, AnyConnection, AnyPool, Connection as _, Row, Transaction};

pub use deliveries::{Delivery, MOST_DELIVERIES, Outcome};
pub use events::{Event, Happening};
pub use leases::{FRUITLESS, Lease, Paused, Release, Wanted};
pub use orders::{Cancelled, Order, Submitted};
pub use row::{Failure, Job, Meta, State};

use super::place::Place;
use crate::error::{ApiError, Cause};

/// Milliseconds since 1970, by the store's clock.
pub type Millis = i64;

/// Connections of one server to the store.
const CONNECTIONS: u32 = 8;

/// Time that is waited for a connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// Times that a file is tried to be opened: another server may be making it.
const TRIES: usize = 20;

/// The store. Clones are one and the same.
#[derive(Debug, Clone)]
pub struct Store {
    pool: AnyPool,
    dialect: Dialect,
    retention: Millis,
    /// Bytes that are kept of one owner.
    room: i64,
    /// What the tests move the clock by.
    #[cfg(test)]
    skew: std::sync::Arc<std::sync::atomic::AtomicI64>,
    /// By how much each look at the clock moves it on.
    #[cfg(test)]
    drift: std::sync::Arc<std::sync::atomic::AtomicI64>,
}

/// Whose SQL it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
}

/// The store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder of the file cannot be made.
    #[error("its folder cannot be made: {0}")]
    Folder(std::io::Error),
    /// The database says no, or nothing.
    #[error("{0}")]
    Database(#[from] sqlx::Error),
    /// A newer server has been here.
    #[error("it was written by a newer version of the server (schema {found}, known {known})")]
    Newer {
        /// Its schema.
        found: i64,
        /// The newest that is known here.
        known: i64,
    },
    /// What was read makes no sense.
    #[error("it holds what no server writes: {0}")]
    Corrupt(String),
}

// === impl StoreError ===

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let mut told = Self::new(Cause::JobsUnavailable, "the store of jobs does not answer").retry_after(5);
        told.detail = Some(error.to_string());
        told
    }
}

// === impl Store ===

impl Store {
    /// Opens the store at a place, and brings its tables up to date.
    pub async fn open(place: &Place, retention: Duration) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let retention = Millis::try_from(retention.as_millis()).unwrap_or(Millis::MAX / 4);
        match place {
            Place::Postgres(url) => Self::connect(url, Dialect::Postgres, retention).await,
            Place::Sqlite(path) => {
                folder_of(path).map_err(StoreError::Folder)?;
                make_own(path);
                let url = url_of(path);
                for _ in 1..TRIES {
                    match Self::connect(&url, Dialect::Sqlite, retention).await {
                        Err(StoreError::Database(error)) if is_busy(&error) => {
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                        opened => return opened,
                    }
                }
                Self::connect(&url, Dialect::Sqlite, retention).await
            }
            Place::Off | Place::Home => Err(StoreError::Corrupt("a place that is none".to_owned())),
        }
    }

    async fn connect(url: &str, dialect: Dialect, retention: Millis) -> Result<Self, StoreError> {
        let options = AnyPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(PATIENCE);
        let options = options.after_connect(move |connection, _| {
            Box::pin(async move {
                for pragma in dialect.pragmas() {
                    sqlx::query(pragma).execute(&mut *connection).await?;
                }
                Ok(())
            })
        });
        let options = options.after_release(move |connection, _| Box::pin(is_sound(connection, dialect)));
        let store = Self {
            pool: options.connect(url).await?,
            dialect,
            retention,
            room: i64::MAX,
            #[cfg(test)]
            skew: std::sync::Arc::default(),
            #[cfg(test)]
            drift: std::sync::Arc::default(),
        };
        if dialect == Dialect::Sqlite {
            // Of the file, not of a connection: readers and the one writer do not wait for each other.
            sqlx::query("PRAGMA journal_mode = WAL").execute(&store.pool).await?;
        }
        schema::migrate(&store).await?;
        Ok(store)
    }

    /// The same, which takes no orders of owners of whom it keeps so many bytes.
    #[must_use]
    pub fn with_room(self, bytes: usize) -> Self {
        Self { room: i64::try_from(bytes).unwrap_or(i64::MAX), ..self }
    }

    /// Lets the connections go.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A transaction. SQLite's is a writer from the beginning: one that becomes a writer later may be refused.
    async fn begin(&self) -> Result<Transaction<'static, Any>, StoreError> {
        let begin = match self.dialect {
            Dialect::Sqlite => "BEGIN IMMEDIATE",
            Dialect::Postgres => "BEGIN",
        };
        Ok(self.pool.begin_with(begin).await?)
    }

    /// The time by the store's clock: the machine's own where the file is on it.
    async fn now(&self, connection: &mut AnyConnection) -> Result<Millis, StoreError> {
        let now = match self.dialect {
            Dialect::Sqlite => {
                let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX / 4)
            }
            Dialect::Postgres => {
                let sql = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";
                sqlx::query(sql).fetch_one(connection).await?.try_get(0)?
            }
        };
        #[cfg(test)]
        let now = {
            let drift = self.drift.load(std::sync::atomic::Ordering::Relaxed);
            now + self.skew.fetch_add(drift, std::sync::atomic::Ordering::Relaxed)
        };
        Ok(now)
    }

    /// Moves the clock on.
    #[cfg(test)]
    pub(crate) fn pass(&self, time: Duration) {
        let millis = Millis::try_from(time.as_millis()).unwrap();
        self.skew.fetch_add(millis, std::sync::atomic::Ordering::Relaxed);
    }

    /// Sets the clock back.
    #[cfg(test)]
    pub(crate) fn set_back(&self, time: Duration) {
        let millis = Millis::try_from(time.as_millis()).unwrap();
        self.skew.fetch_sub(millis, std::sync::atomic::Ordering::Relaxed);
    }

    /// Has so much time pass between one look at the clock and the next.
    #[cfg(test)]
    pub(crate) fn slow(&self, time: Duration) {
        let millis = Millis::try_from(time.as_millis()).unwrap();
        self.drift.store(millis, std::sync::atomic::Ordering::Relaxed);
    }

    /// Keeps everybody else who has the same name in mind waiting until the transaction ends. SQLite has one writer anyhow.
    async fn alone(&self, connection: &mut AnyConnection, name: &str) -> Result<(), StoreError> {
        if self.dialect == Dialect::Postgres {
            let sql = "SELECT pg_advisory_xact_lock(hashtext($1))";
            sqlx::query(sql).bind(name).execute(connection).await?;
        }
        Ok(())
    }

    /// Has a row that was chosen be nobody else's until the transaction ends, and passes over those that are somebody's.
    fn skipping(&self, table: &str) -> String {
        match self.dialect {
            Dialect::Sqlite => String::new(),
            Dialect::Postgres => format!(" FOR UPDATE OF {table} SKIP LOCKED"),
        }
    }
}

// === impl Dialect ===

impl Dialect {
    fn pragmas(self) -> &'static [&'static str] {
        match self {
            Self::Postgres => &[],
            // A commit is on the disk before anybody is told of it.
            Self::Sqlite => {
                &["PRAGMA busy_timeout = 10000", "PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON"]
            }
        }
    }
}

/// Whether a connection is as it was before: SQLite ends a transaction by itself where the disk is full or cannot be read, and
/// the driver believes for ever that it is in one, in which no other begins.
async fn is_sound(connection: &mut AnyConnection, dialect: Dialect) -> Result<bool, sqlx::Error> {
    match dialect {
        Dialect::Postgres => Ok(true),
        Dialect::Sqlite => match connection.begin_with("BEGIN").await {
            Ok(transaction) => transaction.rollback().await.map(|()| true),
            Err(_) => Ok(false),
        },
    }
}

/// Bytes in hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes the folder of a file, for nobody else to look into.
fn folder_of(path: &Path) -> std::io::Result<()> {
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return Ok(()) };
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Makes the file, if there is none, for nobody else to read; what SQLite puts beside it is as readable as it is. What cannot
/// be made does not open either, and that says why.
fn make_own(path: &Path) {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let _ = options.open(path);
}

/// The URL of a file, whatever letters it has.
fn url_of(path: &Path) -> String {
    let mut url = "sqlite://".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' => url.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => url.push(char::from(*byte)),
            byte => url += &format!("%{byte:02X}"),
        }
    }
    url + "?mode=rwc"
}

/// Whether somebody else has the file for a moment.
fn is_busy(error: &sqlx::Error) -> bool {
    let text = error.to_string();
    text.contains("database is locked") || text.contains("database table is locked")
}

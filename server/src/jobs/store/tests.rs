//! The store, on a file of SQLite and on a real PostgreSQL: the same tests on both.

mod histories;
mod kept;
mod leases;
mod orders;
#[expect(unreachable_pub, reason = "the suite has the same file as a module of its own")]
#[path = "../../../../tests/src/postgres.rs"]
mod postgres;

use tempfile::TempDir;

use super::*;
use crate::jobs::Kind;
use crate::jobs::perform::Product;
use postgres::Postgres;

/// A lease of the tests: long enough that no machine is too slow for it.
pub(crate) const LEASE: Duration = Duration::from_secs(100);

/// A store, and where it is.
pub(crate) struct Opened {
    pub(crate) store: Store,
    place: Place,
    _folder: TempDir,
}

/// New stores of every kind that there is here.
async fn stores() -> Vec<Opened> {
    let mut stores = vec![sqlite().await];
    stores.extend(postgres().await);
    stores
}

/// A new store in a PostgreSQL, where there is one.
pub(crate) async fn postgres() -> Option<Opened> {
    let postgres = Postgres::shared()?;
    Some(opened(Place::Postgres(postgres.database().await)).await)
}

/// A new store in a file.
pub(crate) async fn sqlite() -> Opened {
    let folder = tempfile::tempdir().unwrap();
    // A name that a URL would take apart.
    let path = folder.path().join("state of/jobs 100%?#.sqlite");
    let place = Place::Sqlite(path);
    let store = Store::open(&place, Duration::from_secs(3600)).await.unwrap();
    Opened { store, place, _folder: folder }
}

async fn opened(place: Place) -> Opened {
    let store = Store::open(&place, Duration::from_secs(3600)).await.unwrap();
    Opened { store, place, _folder: tempfile::tempdir().unwrap() }
}

/// An order of a look at `shoes`.
pub(crate) fn order(id: &str) -> Order {
    Order {
        id: id.to_owned(),
        kind: Kind::Jacobian,
        request: r#"{"model": "shoes", "seed": 1}"#.to_owned(),
        model: "shoes".to_owned(),
        digest: "d1".to_owned(),
        webhook: String::new(),
        accept: String::new(),
        units: 4,
        expected: 8000,
    }
}

fn product(body: &[u8]) -> Product {
    let headers = vec![("x-about".to_owned(), "a job".to_owned())];
    Product { media_type: "application/json".to_owned(), headers, body: body.to_vec().into() }
}

async fn submit(store: &Store, owner: &str, id: &str) -> Job {
    match store.submit(owner, &order(id), 100).await.unwrap() {
        Submitted::New(job) => job,
        other => panic!("{other:?}"),
    }
}

/// Whatever there is of these models.
fn wanting(models: &[(String, String)]) -> Wanted<'_> {
    Wanted { kinds: &Kind::ALL, models, paused: &[] }
}

async fn lease(store: &Store, holder: &str) -> Option<Lease> {
    let models = [("shoes".to_owned(), "d1".to_owned()), ("plain".to_owned(), "d2".to_owned())];
    let (lease, given_up) = store.lease(holder, wanting(&models), LEASE).await.unwrap();
    assert!(given_up.is_empty(), "{given_up:?}");
    lease
}

async fn state(store: &Store, number: i64) -> State {
    store.by_number(number).await.unwrap().unwrap().state
}

async fn happenings(store: &Store, number: i64) -> Vec<&'static str> {
    store.events(number, 0).await.unwrap().iter().map(|event| event.what.as_str()).collect()
}

/// Has the file have no more pages than it has now and these, as on a disk that is full, or as many as it may.
pub(crate) async fn limit_pages(store: &Store, more: Option<i64>) {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(store.pool.acquire().await.unwrap());
    }
    for connection in &mut connections {
        let pages: i64 =
            sqlx::query("PRAGMA page_count").fetch_one(&mut **connection).await.unwrap().try_get(0).unwrap();
        let most = more.map_or(1 << 30, |more| pages + more);
        sqlx::query(&format!("PRAGMA max_page_count = {most}")).execute(&mut **connection).await.unwrap();
    }
}

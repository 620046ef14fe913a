//! The store, on a file of SQLite and on a real PostgreSQL: the same tests on both.

mod histories;
mod kept;
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

#[tokio::test]
async fn an_order_is_one_job_however_often_it_is_sent() {
    for place in stores().await {
        let store = &place.store;
        let first = submit(store, "me", "a").await;
        assert_eq!((first.state, first.ahead, first.attempts), (State::Queued, Some(0), 0));
        let again = Order { request: r#"{"seed":1,"model":"shoes"}"#.to_owned(), ..order("a") };
        for order in [&order("a"), &again] {
            let known = store.submit("me", order, 100).await.unwrap();
            assert_eq!(known, Submitted::Known(first.clone()));
            assert_eq!(store.known("me", order).await.unwrap(), Some(known));
        }
        for other in [
            Order { request: r#"{"model": "shoes", "seed": 2}"#.to_owned(), ..order("a") },
            Order { kind: Kind::Attention, ..order("a") },
            Order { webhook: "https://a".to_owned(), ..order("a") },
            Order { accept: "image/png;q=1".to_owned(), ..order("a") },
        ] {
            assert_eq!(store.submit("me", &other, 100).await.unwrap(), Submitted::Taken);
        }
        // Another's is another job, and nobody sees it but them.
        let theirs = submit(store, "you", "a").await;
        assert_ne!(theirs.number, first.number);
        assert_eq!(theirs.ahead, Some(1));
        assert_eq!(store.job("me", "a").await.unwrap().unwrap().number, first.number);
        assert_eq!(store.job("nobody", "a").await.unwrap(), None);
        let numbers: Vec<_> = store.anybodys("a").await.unwrap().iter().map(|job| job.number).collect();
        assert_eq!(numbers, [first.number, theirs.number]);
    }
}

#[tokio::test]
async fn an_owner_has_so_many_jobs_and_no_more() {
    for place in stores().await {
        let store = &place.store;
        for id in ["a", "b"] {
            assert!(matches!(store.submit("me", &order(id), 2).await.unwrap(), Submitted::New(_)));
        }
        assert_eq!(store.submit("me", &order("c"), 2).await.unwrap(), Submitted::Full);
        assert!(matches!(store.submit("me", &order("a"), 2).await.unwrap(), Submitted::Known(_)));
        assert!(matches!(store.submit("you", &order("c"), 2).await.unwrap(), Submitted::New(_)));
        let job = store.job("me", "a").await.unwrap().unwrap();
        assert!(matches!(store.cancel(job.number).await.unwrap(), Cancelled::Now(_)));
        assert!(matches!(store.submit("me", &order("c"), 2).await.unwrap(), Submitted::New(_)));
    }
}

#[tokio::test]
async fn orders_at_the_same_time_are_counted_all_the_same() {
    for place in stores().await {
        let store = &place.store;
        let orders = (0..12).map(|i| {
            let store = store.clone();
            tokio::spawn(async move { store.submit("me", &order(&format!("{}", i % 6)), 4).await.unwrap() })
        });
        let came = futures::future::join_all(orders).await;
        let count =
            |is: fn(&Submitted) -> bool| came.iter().filter(|came| is(came.as_ref().unwrap())).count();
        assert_eq!(count(|came| matches!(came, Submitted::New(_))), 4);
        assert_eq!(count(|came| matches!(came, Submitted::Taken)), 0);
        assert_eq!(store.jobs("me", None, None, 100).await.unwrap().len(), 4);
    }
}

#[tokio::test]
async fn jobs_are_listed_from_the_newest_page_by_page() {
    for place in stores().await {
        let store = &place.store;
        for id in ["a", "b", "c"] {
            submit(store, "me", id).await;
        }
        submit(store, "you", "d").await;
        let ids = |jobs: Vec<Job>| jobs.into_iter().map(|job| job.id).collect::<Vec<_>>();
        let page = store.jobs("me", None, None, 2).await.unwrap();
        let before = page[1].number;
        assert_eq!(ids(page), ["c", "b"]);
        assert_eq!(ids(store.jobs("me", None, Some(before), 2).await.unwrap()), ["a"]);
        lease(store, "s").await.unwrap();
        assert_eq!(ids(store.jobs("me", Some(State::Running), None, 9).await.unwrap()), ["a"]);
        assert_eq!(store.counts().await.unwrap()[..2], [(State::Queued, 3), (State::Running, 1)]);
    }
}

#[tokio::test]
async fn the_oldest_job_of_the_owner_with_the_fewest_comes_next() {
    for place in stores().await {
        let store = &place.store;
        for (owner, id) in [("me", "m1"), ("me", "m2"), ("me", "m3"), ("you", "y1"), ("you", "y2")] {
            submit(store, owner, id).await;
        }
        let mut order = Vec::new();
        while let Some(lease) = lease(store, "s").await {
            store.pass(Duration::from_millis(10));
            order.push(lease.job.id);
        }
        assert_eq!(order, ["m1", "y1", "m2", "y2", "m3"]);
    }
}

#[tokio::test]
async fn owners_take_turns_where_one_job_is_done_at_a_time() {
    for place in stores().await {
        let store = &place.store;
        for (owner, id) in [("me", "m1"), ("me", "m2"), ("you", "y1"), ("you", "y2")] {
            submit(store, owner, id).await;
        }
        let mut order = Vec::new();
        while let Some(lease) = lease(store, "s").await {
            store.pass(Duration::from_millis(10));
            store.finish(lease.job.number, lease.token, &product(b"x")).await.unwrap().unwrap();
            order.push(lease.job.id);
        }
        assert_eq!(order, ["m1", "y1", "m2", "y2"]);
    }
}

#[tokio::test]
async fn only_what_is_served_is_taken_up() {
    for place in stores().await {
        let store = &place.store;
        let job = submit(store, "me", "a").await;
        let none = async |kinds: &[Kind], name: &str, digest: &str| {
            let models = [(name.to_owned(), digest.to_owned())];
            store.lease("s", Wanted { kinds, ..wanting(&models) }, LEASE).await.unwrap().0.is_none()
        };
        assert!(none(&[Kind::Attention, Kind::Images], "shoes", "d1").await);
        assert!(none(&Kind::ALL, "shoes", "d2").await && none(&Kind::ALL, "plain", "d1").await);
        assert!(store.lease("s", wanting(&[]), LEASE).await.unwrap().0.is_none());
        assert_eq!(state(store, job.number).await, State::Queued);
        assert!(!none(&[Kind::Jacobian], "shoes", "d1").await);
    }
}

#[tokio::test]
async fn two_leasers_never_hold_one_job() {
    for place in stores().await {
        let store = &place.store;
        for id in 0..8 {
            submit(store, "me", &id.to_string()).await;
        }
        let other = Store::open(&place.place, Duration::from_secs(3600)).await.unwrap();
        let leasers = (0..16).map(|i| {
            let store = if i % 2 == 0 { store.clone() } else { other.clone() };
            tokio::spawn(async move {
                let mut mine = Vec::new();
                // A row that somebody else has for a moment is passed over.
                for _ in 0..4 {
                    mine.extend(lease(&store, &format!("s{i}")).await.map(|lease| lease.job.number));
                }
                mine
            })
        });
        let mut held: Vec<i64> =
            futures::future::join_all(leasers).await.into_iter().flat_map(Result::unwrap).collect();
        held.sort_unstable();
        let all = held.len();
        held.dedup();
        assert_eq!((held.len(), all), (8, 8));
    }
}

#[tokio::test]
async fn a_lease_begins_when_its_pieces_have_been_read() {
    for place in stores().await {
        let store = &place.store;
        submit(store, "me", "a").await;
        let first = lease(store, "s1").await.unwrap();
        assert!(store.put((first.job.number, first.token), 0, b"p0", (1, 3)).await.unwrap());
        store.pass(LEASE + Duration::from_secs(1));
        // Reading them takes most of a lease, and as much time has passed after it.
        store.slow(LEASE - Duration::from_secs(20));
        let second = lease(store, "s2").await.unwrap();
        store.slow(Duration::ZERO);
        assert_eq!(second.pieces.len(), 1);
        assert!(lease(store, "s3").await.is_none(), "it is held for a whole lease from then on");
        assert!(store.renew(second.job.number, second.token, LEASE).await.unwrap());
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_keeps_no_job_from_anybody() {
    for place in stores().await {
        let store = &place.store;
        // At the start of a machine whose clock is three hours ahead.
        store.pass(Duration::from_secs(10_800));
        submit(store, "me", "held").await;
        submit(store, "me", "waiting").await;
        let held = lease(store, "dead").await.unwrap();
        let waiting = lease(store, "dead").await.unwrap();
        let (of, wait) = ((waiting.job.number, waiting.token), Duration::from_secs(60));
        assert!(store.release(of, wait, None, Release::Failed).await.unwrap());
        assert!(lease(store, "s").await.is_none(), "one is held, and one is not due");
        store.set_back(Duration::from_secs(10_800));
        let mut taken =
            [lease(store, "s").await.unwrap(), lease(store, "s").await.unwrap()].map(|lease| lease.job.id);
        taken.sort();
        assert_eq!(taken, ["held", "waiting"]);
        assert!(!store.renew(held.job.number, held.token, LEASE).await.unwrap(), "it is somebody else's");
        assert!(lease(store, "s").await.is_none(), "both are held");
    }
}

#[tokio::test]
async fn whoever_held_an_older_lease_commits_nothing() {
    for place in stores().await {
        let store = &place.store;
        submit(store, "me", "a").await;
        let first = lease(store, "s1").await.unwrap();
        let number = first.job.number;
        assert!(store.put((number, first.token), 0, b"p0", (1, 3)).await.unwrap());
        assert!(lease(store, "s2").await.is_none(), "it is held");
        store.pass(LEASE + Duration::from_secs(1));
        // Thought dead, and nobody has taken it up: it goes on.
        assert!(store.put((number, first.token), 1, b"p1", (2, 3)).await.unwrap());
        assert!(store.renew(number, first.token, LEASE).await.unwrap());
        assert!(lease(store, "s2").await.is_none(), "it is held again");
        store.pass(LEASE + Duration::from_secs(1));
        let second = lease(store, "s2").await.unwrap();
        assert!(second.was_lost && second.token > first.token);
        assert_eq!(second.pieces, [&b"p0"[..], b"p1"]);
        let stale = (number, first.token);
        assert!(!store.put(stale, 2, b"no", (3, 3)).await.unwrap());
        assert!(!store.put(stale, 1, b"no", (3, 3)).await.unwrap());
        assert!(!store.renew(number, first.token, LEASE).await.unwrap());
        assert!(!store.progress(number, first.token, 9, 9).await.unwrap());
        assert!(!store.release(stale, Duration::ZERO, None, Release::Leaving).await.unwrap());
        let failure = Failure { code: "no".to_owned(), message: "no".to_owned(), param: None };
        assert!(!store.fail(number, first.token, &failure).await.unwrap());
        assert_eq!(store.finish(number, first.token, &product(b"no")).await.unwrap(), None);
        assert_eq!(state(store, number).await, State::Running);
        assert!(store.put((number, second.token), 2, b"p2", (3, 3)).await.unwrap());
        let job = store.finish(number, second.token, &product(b"yes")).await.unwrap().unwrap();
        assert_eq!((job.state, job.pieces, job.done, job.total), (State::Succeeded, 3, 3, 3));
        assert_eq!(store.finish(number, first.token, &product(b"no")).await.unwrap(), None);
        // Whoever did not hear the answer asks again, and it is the same end.
        let again = store.finish(number, second.token, &product(b"yes")).await.unwrap().unwrap();
        assert_eq!(again.events, job.events);
        assert_eq!(store.read(number, 0..3).await.unwrap().unwrap(), "yes");
        let leases = store.leases(number).await.unwrap();
        let told: Vec<_> =
            leases.iter().map(|(_, holder, first, how)| (holder.as_str(), *first, how.as_str())).collect();
        assert_eq!(told, [("s1", 0, "lost"), ("s2", 2, "finished")]);
    }
}

#[tokio::test]
async fn pieces_are_committed_in_order_and_once() {
    for place in stores().await {
        let store = &place.store;
        submit(store, "me", "a").await;
        let held = lease(store, "s").await.unwrap();
        let lease_of = (held.job.number, held.token);
        assert!(!store.put(lease_of, 1, b"later", (0, 0)).await.unwrap());
        assert!(store.put(lease_of, 0, b"first", (0, 0)).await.unwrap());
        assert!(store.put(lease_of, 0, b"first", (0, 0)).await.unwrap(), "it did not hear the answer");
        assert!(!store.put(lease_of, 2, b"later", (0, 0)).await.unwrap());
        assert!(store.put(lease_of, 1, b"", (0, 0)).await.unwrap());
        assert!(store.release(lease_of, Duration::ZERO, None, Release::Leaving).await.unwrap());
        assert_eq!(lease(store, "s").await.unwrap().pieces, [&b"first"[..], b""]);
    }
}

#[tokio::test]
async fn a_job_that_is_left_is_taken_up_at_once_or_after_a_while() {
    for place in stores().await {
        let store = &place.store;
        let job = submit(store, "me", "a").await;
        let first = lease(store, "s1").await.unwrap();
        assert!(
            store.release((job.number, first.token), Duration::ZERO, None, Release::Leaving).await.unwrap()
        );
        let second = lease(store, "s2").await.unwrap();
        assert!(!second.was_lost);
        assert_eq!((second.job.attempts, second.job.fruitless), (2, 1));
        let wait = Duration::from_secs(30);
        let why = Failure { code: "engine_error".to_owned(), message: "it failed".to_owned(), param: None };
        assert!(store.release((job.number, second.token), wait, Some(&why), Release::Failed).await.unwrap());
        assert!(lease(store, "s3").await.is_none());
        store.pass(wait + Duration::from_secs(1));
        assert_eq!(lease(store, "s3").await.unwrap().job.fruitless, 2);
        assert_eq!(
            happenings(store, job.number).await,
            ["queued", "running", "released", "running", "released", "running"]
        );
        assert_eq!(store.events(job.number, 4).await.unwrap()[0].error.as_ref(), Some(&why));
    }
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

#[tokio::test]
async fn on_a_full_disk_nothing_new_is_kept_and_nothing_old_is_lost() {
    let place = sqlite().await;
    let store = &place.store;
    let job = submit(store, "me", "a").await;
    let held = lease(store, "s").await.unwrap();
    let lease_of = (job.number, held.token);
    assert!(store.put(lease_of, 0, b"first", (1, 4)).await.unwrap());
    limit_pages(store, Some(0)).await;
    let large = vec![7; 1 << 20];
    let error = store.put(lease_of, 1, &large, (2, 4)).await.unwrap_err();
    assert!(matches!(error, StoreError::Database(_)) && error.to_string().contains("full"), "{error}");
    let error = store.finish(job.number, held.token, &product(&large)).await.unwrap_err();
    assert!(error.to_string().contains("full"), "{error}");
    let order = Order { request: format!("\"{}\"", "x".repeat(1 << 20)), ..order("b") };
    assert!(store.submit("me", &order, 100).await.unwrap_err().to_string().contains("full"));
    // Of none of them is there a half, and the lease is kept meanwhile.
    let now = store.by_number(job.number).await.unwrap().unwrap();
    assert_eq!((now.state, now.pieces, now.done), (State::Running, 1, 1));
    assert!(store.job("me", "b").await.unwrap().is_none());
    assert!(store.renew(job.number, held.token, LEASE).await.unwrap());
    limit_pages(store, None).await;
    assert!(store.put(lease_of, 1, &large, (2, 4)).await.unwrap());
    let done = store.finish(job.number, held.token, &product(&large)).await.unwrap().unwrap();
    assert_eq!(store.read(done.number, 1_000_000..1 << 20).await.unwrap().unwrap(), large[1_000_000..]);
    assert!(matches!(store.submit("me", &order, 100).await.unwrap(), Submitted::New(_)));
}

#[tokio::test]
async fn a_job_that_waits_for_room_remembers_the_newest_try_alone() {
    for place in stores().await {
        let store = &place.store;
        let job = submit(store, "me", "a").await;
        let why = |code: &str| Failure { code: code.to_owned(), message: String::new(), param: None };
        let leave = async |how, code| {
            let held = lease(store, "s").await.unwrap();
            let is_ours =
                store.release((job.number, held.token), Duration::ZERO, Some(&why(code)), how).await;
            assert!(is_ours.unwrap());
            held.job
        };
        leave(Release::Failed, "engine_error").await;
        for _ in 0..50 {
            let held = leave(Release::Full, "quota_reached").await;
            assert_eq!(held.fruitless, 2, "waiting is no failure");
        }
        assert_eq!(
            happenings(store, job.number).await,
            ["queued", "running", "released", "running", "released"]
        );
        let outcomes: Vec<_> =
            store.leases(job.number).await.unwrap().into_iter().map(|lease| lease.3).collect();
        assert_eq!(outcomes, ["released", "full"]);
        // Whoever watches has seen some of them, and goes on behind.
        let events = store.events(job.number, 0).await.unwrap();
        assert_eq!((events[4].sequence, events[4].attempt), (103, 51));
        assert_eq!(events[4].error, Some(why("quota_reached")));
        assert_eq!(store.events(job.number, 50).await.unwrap(), events[3..]);
    }
}

#[tokio::test]
async fn an_owner_that_is_paused_waits_for_one_model_and_nobody_else_does() {
    for place in stores().await {
        let store = &place.store;
        submit(store, "me", "a").await;
        let mine = Order { model: "plain".to_owned(), digest: "d2".to_owned(), ..order("b") };
        store.submit("me", &mine, 100).await.unwrap();
        submit(store, "you", "c").await;
        let models = [("shoes".to_owned(), "d1".to_owned()), ("plain".to_owned(), "d2".to_owned())];
        let paused = [("me".to_owned(), "shoes".to_owned())];
        let mut taken = Vec::new();
        for paused in [&paused[..], &paused, &paused, &[]] {
            let (lease, _) = store.lease("s", Wanted { paused, ..wanting(&models) }, LEASE).await.unwrap();
            taken.push(lease.map(|lease| lease.job.id));
        }
        taken[..2].sort();
        let ids = ["b", "c", "", "a"].map(|id| Some(id.to_owned()).filter(|id| !id.is_empty()));
        assert_eq!(taken, ids);
    }
}

#[tokio::test]
async fn a_job_that_takes_its_servers_with_it_is_given_up() {
    for place in stores().await {
        let store = &place.store;
        let job = submit(store, "me", "poison").await;
        let good = submit(store, "me", "good").await;
        // With the second it gets further, and is counted anew.
        for attempt in 1..=FRUITLESS + 2 {
            let lease = lease(store, "s").await.unwrap();
            assert_eq!(lease.job.id, "poison", "attempt {attempt}");
            if attempt == 2 {
                assert!(store.put((job.number, lease.token), 0, b"p", (1, 2)).await.unwrap());
            }
            store.pass(LEASE + Duration::from_secs(1));
        }
        let models = [("shoes".to_owned(), "d1".to_owned())];
        let (lease, given_up) = store.lease("s", wanting(&models), LEASE).await.unwrap();
        assert_eq!(lease.unwrap().job.number, good.number);
        assert_eq!(given_up.iter().map(|job| job.number).collect::<Vec<_>>(), [job.number]);
        let job = store.by_number(job.number).await.unwrap().unwrap();
        assert_eq!((job.state, job.error.unwrap().code.as_str()), (State::Failed, "internal_error"));
        assert_eq!(happenings(store, job.number).await.last(), Some(&"failed"));
    }
}

#[tokio::test]
async fn a_cancelled_job_is_nobodys_and_stays_so() {
    for place in stores().await {
        let store = &place.store;
        let job = submit(store, "me", "a").await;
        let held = lease(store, "s").await.unwrap();
        assert!(store.put((job.number, held.token), 0, b"p", (1, 2)).await.unwrap());
        let Cancelled::Now(cancelled) = store.cancel(job.number).await.unwrap() else { panic!() };
        assert_eq!(cancelled.state, State::Cancelled);
        assert!(!store.renew(job.number, held.token, LEASE).await.unwrap());
        assert!(!store.put((job.number, held.token), 1, b"p", (2, 2)).await.unwrap());
        assert_eq!(store.finish(job.number, held.token, &product(b"no")).await.unwrap(), None);
        let again = store.cancel(job.number).await.unwrap();
        assert!(matches!(again, Cancelled::Before(job) if job.state == State::Cancelled));
        assert!(lease(store, "s").await.is_none());
        assert_eq!(happenings(store, job.number).await, ["queued", "running", "cancelled"]);
    }
}

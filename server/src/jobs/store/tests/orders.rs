//! Orders: taken once, up to a limit, listed, and cancelled.

use super::*;

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

/// Whatever has come when, and whoever had a turn already: the places that are told are the order in which jobs are taken up.
#[tokio::test]
async fn a_job_is_told_the_place_that_it_has() {
    let ended = async |store: &Store| {
        let held = lease(store, "s").await?;
        store.pass(Duration::from_millis(5));
        store.finish(held.job.number, held.token, &product(b"x")).await.unwrap().unwrap();
        Some((held.job.owner, held.job.id))
    };
    for place in stores().await {
        let store = &place.store;
        for (owner, id) in [("a", "1"), ("a", "2"), ("b", "1"), ("a", "3"), ("a", "4")] {
            submit(store, owner, id).await;
        }
        assert_eq!(ended(store).await.unwrap().0, "a");
        for (owner, id) in [("c", "1"), ("c", "2"), ("b", "2"), ("a", "5"), ("c", "3")] {
            submit(store, owner, id).await;
        }
        let mut told = Vec::new();
        for owner in ["a", "b", "c"] {
            let waiting = store.jobs(owner, Some(State::Queued), None, 9).await.unwrap();
            told.extend(waiting.into_iter().map(|job| (job.ahead.unwrap(), (job.owner, job.id))));
        }
        told.sort();
        assert_eq!(told.iter().map(|(ahead, _)| *ahead).collect::<Vec<_>>(), (0..9).collect::<Vec<_>>());
        for (_, expected) in told {
            assert_eq!(ended(store).await, Some(expected));
        }
        // While one of his is under way, somebody else comes first.
        for id in ["6", "7", "8"] {
            submit(store, "a", id).await;
        }
        let held = lease(store, "s").await.unwrap();
        for id in ["1", "2", "3"] {
            submit(store, "d", id).await;
        }
        let expected = [("d", "1"), ("a", "7"), ("d", "2"), ("a", "8"), ("d", "3")];
        for ((owner, id), ahead) in expected.into_iter().zip(0..) {
            assert_eq!(store.job(owner, id).await.unwrap().unwrap().ahead, Some(ahead), "{owner} {id}");
        }
        store.finish(held.job.number, held.token, &product(b"x")).await.unwrap().unwrap();
        for (owner, id) in expected {
            assert_eq!(ended(store).await, Some((owner.to_owned(), id.to_owned())));
        }
    }
}

#[tokio::test]
async fn a_job_whose_version_nobody_serves_is_in_nobodys_way_and_ends_some_day() {
    for place in stores().await {
        let store = &place.store;
        let [old, new] = ["d1", "d2"].map(|digest| ("shoes".to_owned(), digest.to_owned()));
        let left = submit(store, "me", "old").await;
        let begun = submit(store, "me", "begun").await;
        assert_eq!(lease(store, "dead").await.unwrap().job.number, left.number);
        store.pass(Duration::from_secs(181));
        let order = Order { digest: new.1.clone(), ..order("new") };
        let Submitted::New(job) = store.submit("me", &order, 9).await.unwrap() else { panic!() };
        assert_eq!(job.ahead, Some(0), "nobody serves what came before it");
        store.serve(std::slice::from_ref(&old)).await.unwrap();
        assert_eq!(store.job("me", "new").await.unwrap().unwrap().ahead, Some(1));
        store.pass(Duration::from_secs(3590));
        store.serve(std::slice::from_ref(&new)).await.unwrap();
        assert_eq!(store.give_up_unserved().await.unwrap(), []);
        store.pass(Duration::from_secs(20));
        let given_up: Vec<_> = store.give_up_unserved().await.unwrap().iter().map(|job| job.number).collect();
        assert_eq!(given_up, [left.number, begun.number]);
        for number in given_up {
            let job = store.by_number(number).await.unwrap().unwrap();
            assert_eq!((job.state, job.error.unwrap().code.as_str()), (State::Failed, "model_changed"));
        }
        assert_eq!(state(store, job.number).await, State::Queued);
        assert!(lease(store, "s").await.is_none());
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

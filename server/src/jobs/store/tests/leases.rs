//! Leases: whose turn it is, who may commit, and what becomes of a job whose server is gone.

use super::*;

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
        // Nor what is to be told of one: by a clock that is a day ahead, and held.
        store.pass(Duration::from_secs(86_400));
        let order = Order { webhook: "https://hooks.example.com/".to_owned(), ..order("told") };
        let Submitted::New(job) = store.submit("you", &order, 9).await.unwrap() else { panic!() };
        assert!(matches!(store.cancel(job.number).await.unwrap(), Cancelled::Now(_)));
        let first = store.next_delivery(&[]).await.unwrap().unwrap();
        assert_eq!(store.next_delivery(&[]).await.unwrap(), None, "somebody is at it");
        store.set_back(Duration::from_secs(86_400));
        assert_eq!(store.next_delivery(&[]).await.unwrap().unwrap().id, first.id);
        assert_eq!(store.next_delivery(&[]).await.unwrap(), None, "somebody is at it");
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

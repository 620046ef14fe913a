//! What is kept: events, results, what others are still to be told, and all of it from one opening to the next.

use super::*;

#[tokio::test]
async fn events_are_numbered_and_of_progress_the_newest_is_kept() {
    for place in stores().await {
        let store = &place.store;
        let job = submit(store, "me", "a").await;
        // As was thought when it was ordered, until it is known better.
        assert_eq!((job.done, job.total, job.eta()), (0, 4, Some(8000)));
        let held = lease(store, "s").await.unwrap();
        assert_eq!(held.job.eta(), Some(8000));
        for done in 1..=3 {
            store.pass(Duration::from_secs(30));
            assert!(store.progress(job.number, held.token, done, 4).await.unwrap());
        }
        let told = store.by_number(job.number).await.unwrap().unwrap();
        assert_eq!((told.done, told.total), (3, 4));
        // Thirty seconds for each, and what the machine itself took.
        assert!((30_000..40_000).contains(&told.eta().unwrap()), "{told:?}");
        store.finish(job.number, held.token, &product(b"x")).await.unwrap().unwrap();
        let all = store.events(job.number, 0).await.unwrap();
        let told: Vec<_> =
            all.iter().map(|event| (event.sequence, event.what.as_str(), event.done)).collect();
        assert_eq!(told, [(1, "queued", 0), (2, "running", 0), (5, "progress", 3), (6, "succeeded", 4)]);
        let rest = store.events(job.number, 2).await.unwrap();
        assert_eq!(rest.iter().map(|event| event.sequence).collect::<Vec<_>>(), [5, 6]);
        assert!(store.events(job.number, 6).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_result_is_read_in_any_range() {
    for place in stores().await {
        let store = &place.store;
        let body: Vec<u8> = (0..700_000_u32).map(|i| (i % 251) as u8).collect();
        let job = submit(store, "me", "a").await;
        let held = lease(store, "s").await.unwrap();
        let done = store.finish(job.number, held.token, &product(&body)).await.unwrap().unwrap();
        let meta = done.result.unwrap();
        assert_eq!((meta.size, meta.media_type.as_str()), (700_000, "application/json"));
        assert_eq!(meta.headers, [("x-about".to_owned(), "a job".to_owned())]);
        for range in [0..700_000, 262_143..262_145, 600_000..700_000, 699_999..700_000] {
            let (mut read, mut at) = (Vec::new(), range.start);
            while at < range.end {
                let part = store.read(job.number, at..range.end).await.unwrap().unwrap();
                at += part.len() as u64;
                read.extend_from_slice(&part);
            }
            assert!(read == body[range.start as usize..range.end as usize], "{range:?}");
        }
        assert_eq!(store.read(job.number + 1, 0..1).await.unwrap(), None);
    }
}

#[tokio::test]
async fn jobs_that_have_ended_are_forgotten_after_a_while_with_all_that_is_theirs() {
    for place in stores().await {
        let store = &place.store;
        let job = submit(store, "me", "a").await;
        let held = lease(store, "s").await.unwrap();
        store.put((job.number, held.token), 0, b"p", (1, 1)).await.unwrap();
        store.finish(job.number, held.token, &product(b"x")).await.unwrap().unwrap();
        let waiting = submit(store, "me", "b").await;
        store.pass(Duration::from_secs(3590));
        assert_eq!(store.expire().await.unwrap(), 0);
        store.pass(Duration::from_secs(20));
        assert_eq!(store.expire().await.unwrap(), 1);
        assert_eq!(store.by_number(job.number).await.unwrap(), None);
        assert_eq!(store.read(job.number, 0..1).await.unwrap(), None);
        assert!(store.events(job.number, 0).await.unwrap().is_empty());
        assert!(store.leases(job.number).await.unwrap().is_empty());
        assert_eq!(state(store, waiting.number).await, State::Queued);
        // Its id is free.
        assert!(submit(store, "me", "a").await.number > waiting.number);
    }
}

#[tokio::test]
async fn what_is_about_to_be_forgotten_is_gone_for_whoever_asks() {
    for place in stores().await {
        let store = &place.store;
        let job = submit(store, "me", "a").await;
        let held = lease(store, "s").await.unwrap();
        store.finish(job.number, held.token, &product(b"x")).await.unwrap().unwrap();
        assert_eq!(store.job("me", "a").await.unwrap().unwrap().number, job.number);
        store.pass(Duration::from_secs(3610));
        // Nobody has made the rounds: all of it is still there.
        assert_eq!(store.job("me", "a").await.unwrap(), None);
        assert_eq!(store.anybodys("a").await.unwrap(), []);
        assert_eq!(store.jobs("me", None, None, 9).await.unwrap(), []);
        assert_eq!(store.known("me", &order("a")).await.unwrap(), None);
        // The id is free, and nothing of the job that had it comes back.
        let again = submit(store, "me", "a").await;
        assert!(again.number > job.number);
        assert_eq!(store.by_number(job.number).await.unwrap(), None);
        assert_eq!(store.read(job.number, 0..1).await.unwrap(), None);
        assert_eq!(store.expire().await.unwrap(), 0);
        assert_eq!(store.job("me", "a").await.unwrap().unwrap().state, State::Queued);
    }
}

#[tokio::test]
async fn a_large_result_is_forgotten_in_steps_and_all_of_it() {
    for place in stores().await {
        let store = &place.store;
        // Seventy parts, and few beside: more than one transaction forgets.
        for (id, bytes) in [("a", 10), ("large", 70 << 18), ("b", 300_000), ("c", 10)] {
            let job = submit(store, "me", id).await;
            let held = lease(store, "s").await.unwrap();
            store.finish(job.number, held.token, &product(&vec![1; bytes])).await.unwrap().unwrap();
        }
        let kept = submit(store, "me", "kept").await;
        store.pass(Duration::from_secs(3610));
        assert_eq!(store.expire().await.unwrap(), 4);
        let parts: i64 = sqlx::query("SELECT COUNT(*) FROM windowpane_parts")
            .fetch_one(&store.pool)
            .await
            .unwrap()
            .try_get(0)
            .unwrap();
        assert_eq!((parts, store.expire().await.unwrap()), (0, 0));
        assert_eq!(state(store, kept.number).await, State::Queued);
        assert_eq!(store.cancel(kept.number - 1).await.unwrap(), Cancelled::Gone);
    }
}

#[tokio::test]
async fn a_job_that_has_ended_lets_its_request_go_and_is_known_all_the_same() {
    for place in stores().await {
        let store = &place.store;
        let request = async |job: &Job| -> String {
            let sql = "SELECT request FROM windowpane_jobs WHERE number = $1";
            sqlx::query(sql).bind(job.number).fetch_one(&store.pool).await.unwrap().try_get(0).unwrap()
        };
        for id in ["done", "failed", "cancelled"] {
            let job = submit(store, "me", id).await;
            assert_eq!(request(&job).await, order(id).request);
            let held = lease(store, "s").await.unwrap();
            let why = Failure { code: "x".to_owned(), message: String::new(), param: None };
            match id {
                "done" => _ = store.finish(job.number, held.token, &product(b"x")).await.unwrap().unwrap(),
                "failed" => assert!(store.fail(job.number, held.token, &why).await.unwrap()),
                _ => assert!(matches!(store.cancel(job.number).await.unwrap(), Cancelled::Now(_))),
            }
            assert_eq!(request(&job).await, "", "{id}");
            let again = Order { request: r#"{"seed":1,"model":"shoes"}"#.to_owned(), ..order(id) };
            assert!(matches!(store.submit("me", &again, 9).await.unwrap(), Submitted::Known(_)));
            let other = Order { request: r#"{"seed":2,"model":"shoes"}"#.to_owned(), ..order(id) };
            assert_eq!(store.submit("me", &other, 9).await.unwrap(), Submitted::Taken);
        }
    }
}

#[tokio::test]
async fn what_an_older_server_took_in_is_known_and_begun_anew() {
    for place in stores().await {
        let store = &place.store;
        let job = submit(store, "me", "a").await;
        let held = lease(store, "s").await.unwrap();
        assert!(store.put((job.number, held.token), 0, b"rows", (2, 4)).await.unwrap());
        // As it was before: no such columns, or nothing in them.
        for sql in [
            "ALTER TABLE windowpane_jobs DROP COLUMN expected",
            "UPDATE windowpane_jobs SET asked = ''",
            "DROP TABLE windowpane_versions",
            "UPDATE windowpane_schema SET version = 3",
        ] {
            sqlx::query(sql).execute(&store.pool).await.unwrap();
        }
        let store = Store::open(&place.place, Duration::from_secs(3600)).await.unwrap();
        let again = Order { request: r#"{"seed":1,"model":"shoes"}"#.to_owned(), ..order("a") };
        let Submitted::Known(known) = store.submit("me", &again, 9).await.unwrap() else { panic!() };
        assert_eq!((known.number, known.pieces, known.done, known.eta()), (job.number, 0, 0, None));
        let other = Order { request: r#"{"seed":2,"model":"shoes"}"#.to_owned(), ..order("a") };
        assert_eq!(store.submit("me", &other, 9).await.unwrap(), Submitted::Taken);
        let sql =
            "SELECT COUNT(*) FROM windowpane_versions WHERE model = 'shoes' AND digest = 'd1' AND seen > 0";
        let versions: i64 = sqlx::query(sql).fetch_one(&store.pool).await.unwrap().try_get(0).unwrap();
        assert_eq!(versions, 1, "its version has been there");
        // Whoever was at it commits nothing more of the old kind.
        assert!(!store.put((job.number, held.token), 1, b"rows", (3, 4)).await.unwrap());
    }
}

#[tokio::test]
async fn an_owner_whose_results_take_the_room_orders_no_more_until_they_are_forgotten() {
    for place in stores().await {
        let store = place.store.clone().with_room(3 * 4096 + 100);
        let end = async |id: &str, body: &[u8]| {
            submit(&store, "me", id).await;
            let held = lease(&store, "s").await.unwrap();
            store.finish(held.job.number, held.token, &product(body)).await.unwrap().unwrap();
        };
        end("a", &[0; 99]).await;
        end("b", b"").await;
        store.pass(Duration::from_secs(60));
        end("c", b"").await;
        // They take 99 bytes, and each something beside.
        let smaller = place.store.clone().with_room(3 * 4096 + 99);
        assert_eq!(smaller.submit("me", &order("d"), 9).await.unwrap(), Submitted::NoRoom);
        assert!(matches!(store.submit("me", &order("d"), 9).await.unwrap(), Submitted::New(_)));
        assert_eq!(store.submit("me", &order("e"), 9).await.unwrap(), Submitted::NoRoom);
        assert!(matches!(store.submit("me", &order("a"), 9).await.unwrap(), Submitted::Known(_)));
        assert!(matches!(store.submit("you", &order("e"), 9).await.unwrap(), Submitted::New(_)));
        store.pass(Duration::from_secs(3570));
        assert_eq!(store.expire().await.unwrap(), 2);
        assert!(matches!(store.submit("me", &order("e"), 9).await.unwrap(), Submitted::New(_)));
    }
}

#[tokio::test]
async fn what_is_to_be_told_is_told_until_it_is_taken_or_too_late() {
    for place in stores().await {
        let store = &place.store;
        let order = Order { webhook: "https://hooks.example.com/".to_owned(), ..order("a") };
        let Submitted::New(job) = store.submit("me", &order, 9).await.unwrap() else { panic!() };
        assert_eq!(store.next_delivery(&[]).await.unwrap(), None);
        let held = lease(store, "s").await.unwrap();
        store.finish(job.number, held.token, &product(b"x")).await.unwrap().unwrap();
        let first = store.next_delivery(&[]).await.unwrap().unwrap();
        assert_eq!((first.url.as_str(), first.attempts), ("https://hooks.example.com/", 1));
        assert_eq!(first.host, "https://hooks.example.com");
        let told: serde_json::Value = serde_json::from_str(&first.body).unwrap();
        assert_eq!((&told["type"], &told["data"]["id"]), (&"job.succeeded".into(), &"a".into()));
        assert_eq!(told["data"]["result"]["size"], 1);
        assert_eq!(store.next_delivery(&[]).await.unwrap(), None, "somebody is at it");
        // Whoever was at it is heard of no more.
        store.pass(Duration::from_secs(61));
        let second = store.next_delivery(&[]).await.unwrap().unwrap();
        assert_eq!((&second.id, &second.body, second.attempts), (&first.id, &first.body, 2));
        assert!(!store.delivered(&first, &Outcome::Failed("late".to_owned())).await.unwrap());
        assert!(!store.delivered(&second, &Outcome::Failed("500".to_owned())).await.unwrap());
        assert_eq!(store.next_delivery(&[]).await.unwrap(), None);
        store.pass(second.pause() + Duration::from_secs(1));
        let busy = [first.host.clone(), "https://other.example.com".to_owned()];
        assert_eq!(store.next_delivery(&busy).await.unwrap(), None, "its host has another at hand");
        let mut next = store.next_delivery(&[]).await.unwrap().unwrap();
        while next.attempts < MOST_DELIVERIES {
            assert!(!store.delivered(&next, &Outcome::Failed("500".to_owned())).await.unwrap());
            store.pass(next.pause() + Duration::from_secs(1));
            next = store.next_delivery(&[]).await.unwrap().unwrap();
        }
        assert!(store.delivered(&next, &Outcome::Failed("500".to_owned())).await.unwrap());
        store.pass(Duration::from_secs(999_999));
        assert_eq!(store.next_delivery(&[]).await.unwrap(), None, "enough is enough");
    }
}

#[tokio::test]
async fn a_store_is_opened_by_many_at_once_and_keeps_what_it_has() {
    for place in stores().await {
        let job = submit(&place.store, "me", "a").await;
        let opened = (0..6).map(|_| Store::open(&place.place, Duration::from_secs(1)));
        for store in futures::future::join_all(opened).await {
            assert_eq!(store.unwrap().by_number(job.number).await.unwrap().unwrap().id, "a");
        }
        let sql = "UPDATE windowpane_schema SET version = 99";
        sqlx::query(sql).execute(&place.store.pool).await.unwrap();
        let newer = Store::open(&place.place, Duration::from_secs(1)).await.unwrap_err();
        assert!(matches!(newer, StoreError::Newer { found: 99, .. }), "{newer}");
    }
    let folder = tempfile::tempdir().unwrap();
    let place = Place::Sqlite(folder.path().join("new.sqlite"));
    let opened = (0..6).map(|_| Store::open(&place, Duration::from_secs(1)));
    let stores: Vec<Store> =
        futures::future::join_all(opened).await.into_iter().map(Result::unwrap).collect();
    // What is in them is nobody else's to read.
    #[cfg(unix)]
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let mode = std::os::unix::fs::PermissionsExt::mode(&file.unwrap().metadata().unwrap().permissions());
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }
    drop(stores);
    let nowhere = Place::Sqlite("/proc/nowhere/jobs.sqlite".into());
    assert!(matches!(Store::open(&nowhere, Duration::from_secs(1)).await, Err(StoreError::Folder(_))));
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

//! Work on jobs by one server and by two that share a store, one of which goes away.

use super::*;
use crate::config::Config;
use crate::engine::fake::Faults;
use crate::jobs::Settings;
use crate::jobs::perform::fake::Fake;
use crate::jobs::store::tests::{LEASE, Opened, order, sqlite};
use crate::jobs::store::{Cancelled, Job, Order, State, Submitted};
use crate::testing::app;

/// A server that works on the jobs of a store.
struct Server {
    app: App,
    jobs: Arc<Jobs>,
    fake: Fake,
    at_work: AtWork,
}

// === impl Server ===

impl Server {
    fn on(place: &Opened) -> Self {
        let fake = Fake::default();
        let settings = Settings { lease: LEASE, result_limit: 1 << 20, ..Settings::default() };
        let app = app(Config::default(), &Faults::default());
        let jobs = Jobs::new(place.store.clone(), Box::new(fake.clone()), settings);
        app.keep_jobs(Arc::clone(&jobs));
        let at_work = start(&app, &jobs);
        Self { app, jobs, fake, at_work }
    }

    /// Orders a job of these fields.
    async fn order(&self, id: &str, fields: &str) -> Job {
        let digest = self.app.model(Some("shoes")).unwrap().card.digest.clone();
        let order = Order { request: format!("{{\"model\": \"shoes\", {fields}}}"), digest, ..order(id) };
        let Submitted::New(job) = self.jobs.store().submit("anonymous", &order, 9).await.unwrap() else {
            panic!("it is not new")
        };
        self.jobs.touch();
        job
    }

    /// The job once it is in the state.
    async fn until(&self, job: &Job, state: State) -> Job {
        self.until_it(job, |job| job.state == state).await
    }

    async fn until_it(&self, job: &Job, is: impl Fn(&Job) -> bool) -> Job {
        let wait = async {
            loop {
                let now = self.jobs.store().by_number(job.number).await.unwrap().unwrap();
                if is(&now) {
                    return now;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("it happens")
    }

    /// So many jobs have ended in this way: they are counted a moment after that is written down.
    async fn until_counted(&self, outcome: &str, jobs: u64) {
        let count = self.app.metrics().jobs_total.with_label_values(&["jacobian", outcome]);
        let wait = async {
            while count.get() < jobs {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("they are counted");
        assert_eq!(count.get(), jobs);
    }

    /// Goes away as a process does that is killed.
    fn die(self) -> Fake {
        self.fake
    }
}

/// The result of so many pieces.
fn pieces(count: usize) -> String {
    (0..count).map(|number| format!("piece {number};")).collect()
}

async fn result(server: &Server, job: &Job) -> String {
    let meta = job.result.as_ref().unwrap();
    let bytes = server.jobs.store().read(job.number, 0..meta.size).await.unwrap().unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_done_piece_by_piece() {
    let place = sqlite().await;
    let server = Server::on(&place);
    let job = server.order("a", r#""pieces": 3"#).await;
    let done = server.until(&job, State::Succeeded).await;
    assert_eq!(result(&server, &done).await, "piece 0;piece 1;piece 2;");
    let meta = done.result.unwrap();
    assert_eq!((meta.media_type.as_str(), meta.headers[0].1.as_str()), ("text/plain", "a"));
    assert_eq!((done.pieces, done.attempts), (3, 1));
    server.until_counted("succeeded", 1).await;
    assert_eq!(server.app.metrics().job_pieces.with_label_values(&["jacobian"]).get(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_server_left_is_taken_up_behind_its_last_piece() {
    let place = sqlite().await;
    let first = Server::on(&place);
    // Three seconds: it is not done when its server dies.
    let job = first.order("a", r#""pieces": 30, "pause": 100"#).await;
    first.until_it(&job, |job| job.pieces >= 2).await;
    let dead = first.die();
    // What it was in the midst of has ended by then, and so has its lease.
    tokio::time::sleep(Duration::from_millis(100)).await;
    place.store.pass(LEASE);
    let second = Server::on(&place);
    let done = second.until(&job, State::Succeeded).await;
    assert_eq!(result(&second, &done).await, pieces(30));
    assert_eq!(done.attempts, 2);
    let made = dead.pieces() + second.fake.pieces();
    assert!((30..=31).contains(&made), "at most one piece is made again: {made}");
    assert_eq!(second.app.metrics().job_leases_lost.get(), 1);
    let leases = place.store.leases(job.number).await.unwrap();
    assert_eq!(leases.iter().map(|lease| lease.3.as_str()).collect::<Vec<_>>(), ["lost", "finished"]);
}

/// After a weekend on which every server was down, the first that is back knows nothing of the others' versions.
#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_watched_for_a_while_gives_up_what_nobody_serves() {
    let place = sqlite().await;
    let order = Order { digest: "of old".to_owned(), ..order("old") };
    let Submitted::New(job) = place.store.submit("me", &order, 9).await.unwrap() else { panic!() };
    place.store.pass(Duration::from_secs(200_000));
    let server = Server::on(&place);
    let state = async || place.store.by_number(job.number).await.unwrap().unwrap().state;
    upkeep::round(&server.app, &server.jobs, false).await.unwrap();
    assert_eq!(state().await, State::Queued);
    upkeep::round(&server.app, &server.jobs, true).await.unwrap();
    assert_eq!(state().await, State::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_leaves_leaves_its_work_to_others_at_once() {
    let place = sqlite().await;
    let mut first = Server::on(&place);
    let job = first.order("a", r#""pieces": 30, "pause": 100"#).await;
    first.until_it(&job, |job| job.pieces >= 2).await;
    first.jobs.leave();
    while first.at_work.workers.join_next().await.is_some() {}
    let left = place.store.by_number(job.number).await.unwrap().unwrap();
    assert_eq!((left.state, left.fruitless), (State::Queued, 0));
    let second = Server::on(&place);
    let done = second.until(&job, State::Succeeded).await;
    assert_eq!(done.pieces, 30);
    assert_eq!(second.app.metrics().job_leases_lost.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_work_stops_at_once() {
    let place = sqlite().await;
    let server = Server::on(&place);
    let job = server.order("a", r#""pieces": 1000, "pause": 20"#).await;
    server.until_it(&job, |job| job.pieces >= 2).await;
    assert!(matches!(place.store.cancel(job.number).await.unwrap(), Cancelled::Now(_)));
    server.jobs.stop_one(job.number);
    // The next one has its turn, far sooner than the first would have ended.
    let next = server.order("b", r#""pieces": 1"#).await;
    server.until(&next, State::Succeeded).await;
    let pieces = server.fake.pieces();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(server.fake.pieces(), pieces);
    assert_eq!(server.until(&job, State::Cancelled).await.result, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn room_is_waited_for_and_the_next_one_has_its_turn_meanwhile() {
    for (fault, code) in [("overloaded", "overloaded"), ("memory", "memory_full")] {
        let place = sqlite().await;
        let server = Server::on(&place);
        let job = server.order("a", &format!(r#""pieces": 2, "fault": ["{fault}", 1]"#)).await;
        let next = server.order("b", r#""pieces": 1"#).await;
        let next = server.until(&next, State::Succeeded).await;
        let done = server.until_it(&job, |job| job.state.is_final()).await;
        assert_eq!((done.state, done.error, done.fruitless), (State::Succeeded, None, 0), "{fault}");
        assert!(next.finished < done.finished, "{fault}");
        // What was committed before there was no room is not made again.
        assert_eq!((done.attempts, server.fake.begun(), server.fake.pieces()), (2, 3, 3));
        let events = place.store.events(job.number, 0).await.unwrap();
        let why = events.iter().find_map(|event| event.error.as_ref()).expect("it is said why");
        assert_eq!(why.code, code);
    }
}

/// One try says for all jobs of the owner that there is no room, and others have their turns.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_at_their_quota_is_tried_once_and_others_have_their_turns() {
    let place = sqlite().await;
    let server = Server::on(&place);
    let job = server.order("a", r#""pieces": 2, "fault": ["quota", 1]"#).await;
    let left = server.until_it(&job, |job| job.state == State::Queued && job.attempts == 1).await;
    let why = place.store.events(job.number, 0).await.unwrap().pop().unwrap();
    assert_eq!((why.what.as_str(), why.error.unwrap().code), ("released", "quota_reached".to_owned()));
    assert_eq!((left.pieces, left.fruitless), (1, 0));
    let next = server.order("b", r#""pieces": 1"#).await;
    let done = server.until(&job, State::Succeeded).await;
    let next = server.until(&next, State::Succeeded).await;
    // Not a try that found no room again: the older one first, once there may be some.
    assert_eq!((done.attempts, next.attempts, server.fake.begun(), server.fake.pieces()), (2, 1, 3, 3));
    assert!(done.finished <= next.finished && next.started - left.updated >= 900);
}

/// `DELETE /v1/requests/{id}` knows a job's work by the job's id.
#[tokio::test(flavor = "multi_thread")]
async fn work_that_is_cancelled_as_a_request_cancels_its_job() {
    let place = sqlite().await;
    let server = Server::on(&place);
    let job = server.order("a", r#""pieces": 2, "fault": ["cancelled", 1]"#).await;
    let ended = server.until(&job, State::Cancelled).await;
    assert_eq!((ended.error, ended.result), (None, None));
    server.until_counted("cancelled", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_order_end_it() {
    let place = sqlite().await;
    let server = Server::on(&place);
    for (id, fault, code, param) in
        [("b", "invalid", "invalid_value", Some("seed")), ("c", "large", "invalid_value", None)]
    {
        let job = server.order(id, &format!("\"pieces\": 2, \"fault\": [\"{fault}\", 1]")).await;
        let why = server.until(&job, State::Failed).await.error.unwrap();
        assert_eq!((why.code.as_str(), why.param.as_deref()), (code, param));
    }
    server.until_counted("failed", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_tried_again_and_a_panic_is_one() {
    let place = sqlite().await;
    let server = Server::on(&place);
    for (id, fault) in [("a", "engine"), ("b", "panic")] {
        let job = server.order(id, &format!("\"pieces\": 2, \"fault\": [\"{fault}\", 0]")).await;
        // Who looks late sees a later attempt, or the last.
        let is_left = |job: &Job| job.attempts >= 1 && job.state != State::Running;
        let mut left = server.until_it(&job, is_left).await;
        assert_eq!(left.fruitless, left.attempts);
        let released = &place.store.events(job.number, 2).await.unwrap()[0];
        assert!(released.error.is_some(), "{released:?}");
        while left.state != State::Failed {
            let before = left.attempts;
            place.store.pass(Duration::from_secs(100));
            server.jobs.touch();
            left = server.until_it(&job, |job| job.attempts > before && is_left(job)).await;
        }
        assert_eq!(left.attempts, FRUITLESS);
        let code = left.error.unwrap().code;
        assert_eq!(code, if fault == "engine" { "engine_error" } else { "internal_error" });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_known_no_longer_has_no_work_done() {
    let place = sqlite().await;
    let server = Server::on(&place);
    let digest = server.app.model(Some("shoes")).unwrap().card.digest.clone();
    let Submitted::New(job) =
        place.store.submit("key_of_somebody", &Order { digest, ..order("a") }, 9).await.unwrap()
    else {
        panic!()
    };
    let failed = server.until(&job, State::Failed).await;
    assert_eq!(failed.error.unwrap().code, "invalid_api_key");
    assert_eq!(server.fake.begun(), 0);
}

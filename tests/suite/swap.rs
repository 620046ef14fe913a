//! Models that come and go under load, and models that share a device. Real ONNX Runtime; every answer is compared with
//! what the version that it names draws in peace.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use suite::{Answer, Package, TestServer, keys, root, shipped};
use windowpane_server::{App, Config};

const KEYS: [(&str, &str); 2] = [("alice", "generate"), ("root", "admin")];

/// Clients that ask again and again.
const CLIENTS: usize = 8;

/// Versions that are loaded while they do.
const SWAPS: usize = 5;

/// Answers between two versions, so that each has its share of the load.
const BETWEEN: usize = 2 * CLIENTS;

/// What the clients ask for: short and longer, guided and not, one image and several.
fn requests() -> Vec<Value> {
    let one = |seed: u64, more: Value| {
        let mut body = json!({"model": "tiny", "seed": seed, "class": seed % 4});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    vec![
        one(1, json!({"steps": 2})),
        one(2, json!({"steps": 12, "guidance_scale": 1})),
        one(3, json!({"steps": 5, "n": 3, "sampler": "euler_a"})),
        one(4, json!({"steps": 8, "n": 2, "sampler": "heun", "guidance_scale": 4})),
        one(5, json!({"steps": 6, "output_format": "npy", "eta": 1.0})),
    ]
}

async fn ask(server: &TestServer, body: &Value) -> Answer {
    server.answer(server.post(body.to_string()).bearer_auth("alice's secret")).await
}

/// An administrator's word about a model.
async fn tell(server: &TestServer, name: &str, verb: &str) -> Answer {
    let request = server.request("POST", &format!("/v2/repository/models/{name}/{verb}"));
    server.answer(request.bearer_auth("root's secret").body("{}")).await
}

/// The digest that an answer names, and its files.
fn told(answer: &Answer) -> (String, Vec<String>) {
    let body = answer.json();
    let data = body["data"].as_array().unwrap();
    let files = data.iter().map(|image| image["b64_json"].as_str().unwrap().to_owned()).collect();
    (body["digest"].as_str().unwrap().to_owned(), files)
}

#[test]
fn versions_are_swapped_under_load_and_every_answer_is_of_the_one_it_names() {
    let (served, turned) = (Package::tiny(), Package::tiny());
    turned.turn_round();
    let config = Config { keys: keys(&KEYS), models: served.models(), ..TestServer::config() };
    let server = TestServer::leaked(config.clone());
    // Each version in peace.
    let requests = Arc::new(requests());
    let mut references: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
    for package in [&served, &turned] {
        let alone = TestServer::start(Config { models: package.models(), ..config.clone() });
        for body in requests.iter() {
            let (digest, files) = told(&alone.block_on(ask(&alone, body)).ok());
            assert_eq!(files.len() as u64, body["n"].as_u64().unwrap_or(1));
            references.entry(digest).or_default().push(files);
        }
        alone.leave();
    }
    let both: Vec<Vec<Vec<String>>> = references.values().cloned().collect();
    assert!(both.len() == 2 && both[0].iter().zip(&both[1]).all(|(a, b)| a != b), "two versions that differ");

    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (requests, stop, answered) =
                (Arc::clone(&requests), Arc::clone(&stop), Arc::clone(&answered));
            server.spawn(async move {
                let mut answers = Vec::new();
                for i in (client..).take_while(|_| !stop.load(SeqCst)) {
                    let i = i % requests.len();
                    answers.push((i, ask(server, &requests[i]).await));
                    answered.fetch_add(1, SeqCst);
                }
                answers
            })
        })
        .collect();
    let mut digests = Vec::new();
    for swap in 0..SWAPS {
        let seen = answered.load(SeqCst);
        server.until("the version has answered some", || answered.load(SeqCst) >= seen + BETWEEN);
        // The other version in its place. Nobody watches the folder: what lies there counts when it is asked for.
        let original = shipped("tiny");
        for name in ["weights.bin", "golden.safetensors", "manifest.json"] {
            let file = if swap % 2 == 0 { turned.file(name) } else { original.join(name) };
            std::fs::copy(file, served.file(name)).unwrap();
        }
        let loaded = server.block_on(tell(server, "tiny", "load"));
        assert_eq!(loaded.status, 200, "{}", String::from_utf8_lossy(&loaded.bytes));
        let now = server.app().model(Some("tiny")).unwrap().card.digest.clone();
        assert_ne!(digests.last(), Some(&now), "load {swap} changed nothing");
        digests.push(now);
    }
    let seen = answered.load(SeqCst);
    server.until("the last version has answered some", || answered.load(SeqCst) >= seen + BETWEEN);
    stop.store(true, SeqCst);

    let mut by_digest: BTreeMap<String, usize> = BTreeMap::new();
    for client in clients {
        for (i, answer) in server.block_on(client).unwrap() {
            let (digest, files) = told(&answer.ok());
            assert!(files == references[&digest][i], "other bytes than {digest} draws for {}", requests[i]);
            *by_digest.entry(digest).or_default() += 1;
        }
    }
    // The first version and five more: each has answered while it was the one.
    assert_eq!(by_digest.len(), 2, "{by_digest:?}");
    assert!(by_digest.values().all(|&answers| answers >= 2 * BETWEEN), "{by_digest:?}");
    assert_eq!(by_digest.values().sum::<usize>(), answered.load(SeqCst), "none was dropped");
    server.until_images(0);
}

#[test]
fn a_model_that_is_unloaded_midway_finishes_what_it_has() {
    let package = Package::tiny();
    let config = Config { keys: keys(&KEYS), models: package.models(), ..TestServer::config() };
    let server = TestServer::leaked(config);
    let body = |seed: usize, steps: u64| json!({"model": "tiny", "class": 3, "seed": seed, "steps": steps});
    let expected: Vec<_> =
        (0..4).map(|seed| told(&server.block_on(ask(server, &body(seed, 150))).ok())).collect();
    let running: Vec<_> =
        (0..4).map(|seed| server.spawn(async move { ask(server, &body(seed, 150)).await })).collect();
    server.until_images(4);
    assert_eq!(server.block_on(tell(server, "tiny", "unload")).status, 200);
    assert!(server.images() > 0, "all was done before the model went");
    let late = server.block_on(ask(server, &body(9, 1)));
    late.refused(404, "model_not_found", Some("model"));
    for (task, expected) in running.into_iter().zip(expected) {
        assert!(told(&server.block_on(task).unwrap().ok()) == expected, "what was under way is finished");
    }
    server.until_images(0);
    assert_eq!(server.block_on(tell(server, "tiny", "unload")).status, 404);
    // And it comes back.
    assert_eq!(server.block_on(tell(server, "tiny", "load")).status, 200);
    server.block_on(ask(server, &body(9, 1))).ok();
}

#[test]
fn a_study_under_way_is_finished_whatever_becomes_of_its_model() {
    let package = Package::tiny();
    let keys = keys(&[("root", "admin")]);
    let config = Config { keys, models: package.models(), ..TestServer::config() };
    let server = TestServer::leaked(config);
    // A sample of a thousand steps, each a call, and the look at its end: a load takes a part of that time.
    let body = json!({
        "model": "tiny", "prompt": "ring", "seed": 7, "steps": 1000, "timestep": 0, "guidance_scale": 1, "tokens": [0],
        "maps": "none",
    });
    let look = move |body: Value| async move {
        let request =
            server.request("POST", "/v1/analysis/attention").header("content-type", "application/json");
        server.answer(request.bearer_auth("root's secret").body(body.to_string())).await
    };
    let quiet = server.block_on(look(body.clone())).ok().json();
    for verb in ["load", "unload"] {
        let old = server.app().model(Some("tiny")).unwrap();
        let running = server.spawn(look(body.clone()));
        server.until("the study is under way", || old.batcher.standing().studies == 1);
        package.edit(|manifest| manifest["description"] = json!("the second version"));
        assert_eq!(server.block_on(tell(server, "tiny", verb)).status, 200);
        let now = server.app().model(Some("tiny")).ok();
        assert_eq!(
            now.as_ref().map(|now| now.card.digest != old.card.digest),
            (verb == "load").then_some(true)
        );
        assert_eq!(old.batcher.standing().studies, 1, "it was over before");
        let mut answer = server.block_on(running).unwrap().ok().json();
        assert_eq!(answer["about"]["digest"], json!(old.card.digest));
        answer["about"]["digest"] = quiet["about"]["digest"].clone();
        assert!(answer == quiet, "{verb}: what it says differs from what it says in peace");
        // And then nothing holds the old one any more.
        let gone = Arc::downgrade(&old);
        drop(old);
        server.until("it is let go", || gone.strong_count() == 0);
    }
    server.block_on(look(body)).refused(404, "model_not_found", Some("model"));
}

#[test]
fn a_load_whose_client_hangs_up_is_finished() {
    let package = Package::tiny();
    let config = Config { keys: keys(&KEYS), models: package.models(), ..TestServer::config() };
    let server = TestServer::leaked(config);
    let loads = || server.app().metrics().loads.with_label_values(&["done"]).get();
    let is_ready = || server.app().metrics().model_ready.with_label_values(&["tiny"]).get() == 1;
    assert_eq!(server.block_on(tell(server, "tiny", "unload")).status, 200);
    assert_eq!((loads(), is_ready()), (1, false));
    let asking = || server.app().metrics().requests_in_flight.get();
    let hang_up = || {
        server.until("nobody asks", || asking() == 0);
        let asked = server.spawn(tell(server, "tiny", "load"));
        server.until("it is asked", || asking() == 1);
        // It takes longer than that to measure the network, and not so long to begin with it.
        std::thread::sleep(Duration::from_millis(50));
        assert!(!asked.is_finished(), "it was answered before the client was gone");
        asked.abort();
    };
    (0..3).for_each(|_| hang_up());
    server.until("it is served", || server.app().model(Some("tiny")).is_ok());
    assert!(is_ready());
    // One after another, and who waits for an answer has the last of them.
    assert_eq!(server.block_on(tell(server, "tiny", "load")).status, 200);
    assert_eq!(loads(), 5);
    let body = json!({"model": "tiny", "class": 3, "seed": 1, "steps": 2});
    server.block_on(ask(server, &body)).ok();
    // Away again, and so is what was told of it.
    assert_eq!(server.block_on(tell(server, "tiny", "unload")).status, 200);
    assert!(!is_ready() && server.app().model(Some("tiny")).is_err());
}

/// What a model had of its device: seconds in ticks, and ticks.
fn had(app: &App, model: &str) -> (f64, u64) {
    let metrics = app.metrics();
    let model = app.models().into_iter().find(|other| other.name() == model).expect("it is served");
    let of = |(rows, _): (usize, Duration)| {
        let ticks = metrics.tick.with_label_values(&[model.name(), &rows.to_string()]);
        (ticks.get_sample_sum(), ticks.get_sample_count())
    };
    model.served.costs.buckets().map(of).fold((0.0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

#[test]
fn two_models_on_one_device_have_each_its_share_of_the_time() {
    let server = TestServer::leaked(Config { models: root().join("models"), ..TestServer::config() });
    let models = ["tiny", "fashion-dit"];
    let body = |model: &str, steps: u64, n: u64| json!({"model": model, "class": 1, "seed": 3, "steps": steps, "n": n});
    let alone = models.map(|model| server.generate(&body(model, 3, 2)).ok());
    let before = models.map(|model| had(server.app(), model));
    // More than can be done during this test, of both.
    let endless: Vec<_> = models
        .iter()
        .map(|model| server.spawn(server.answer(server.post(body(model, 1000, 10).to_string()))))
        .collect();
    let since = |i: usize| {
        let ((seconds, ticks), (old, count)) = (had(server.app(), models[i]), before[i]);
        (seconds - old, ticks - count)
    };
    // Equal up to a tick or two of the slower one, which began a moment later or earlier. A tick may take as long as a machine
    // that does something else makes it; then the other model catches up.
    let (begun, mut furthest) = (Instant::now(), 0.0f64);
    let (shares, longest) = loop {
        let shares = [since(0), since(1)];
        let longest =
            shares.iter().map(|(seconds, ticks)| seconds / (*ticks).max(1) as f64).fold(0.0, f64::max);
        let difference = (shares[0].0 - shares[1].0).abs();
        furthest = furthest.max(difference);
        if shares.iter().all(|(seconds, _)| *seconds > 1.5) && difference < 3.0 * longest + 0.3 {
            break (shares, longest);
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "the shares do not come together: {shares:?}");
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(furthest < 3.0 * longest + 2.0, "they were {furthest} s apart: {shares:?}");
    // Of time and not of ticks: whose ticks are shorter has more of them.
    let [short, long] = {
        let mut ticks = shares.map(|(seconds, ticks)| (seconds / ticks as f64, ticks));
        ticks.sort_by(|a, b| a.0.total_cmp(&b.0));
        ticks
    };
    assert!(long.0 > 1.5 * short.0, "the models cost about the same: {shares:?}");
    assert!(short.1 as f64 > 1.2 * long.1 as f64, "{shares:?}");
    // And each draws what it draws alone.
    for (model, alone) in models.iter().zip(&alone) {
        let beside = server.generate(&body(model, 3, 2)).ok();
        assert!((0..2).all(|i| beside.file(i) == alone.file(i)), "{model}");
    }
    endless.iter().for_each(tokio::task::JoinHandle::abort);
    server.until_images(0);
    let rest = Duration::from_secs(0);
    assert!(server.app().models().iter().all(|model| model.batcher.standing().backlog == rest));
}

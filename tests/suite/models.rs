//! What is served: the list of models, readiness, every shipped package, and the command that the README begins with.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use suite::{IMAGES, TestServer, all_shipped, decode, root, shipped};
use windowpane_server::Config;

#[test]
fn the_list_is_openais_and_holds_what_a_client_must_know() {
    let list = TestServer::shared().get("/v1/models").ok().json();
    assert_eq!(list["object"], "list");
    let [model] = list["data"].as_array().unwrap().as_slice() else { panic!("one model is served: {list}") };
    let mut alone = TestServer::shared().get("/v1/models/tiny").ok().json();
    let [_card, strengths] = ["card", "strengths"].map(|field| {
        let value = alone.as_object_mut().unwrap().remove(field);
        value.unwrap_or_else(|| panic!("one model alone shows `{field}`"))
    });
    // One for each of the default's steps, from one alone to all of them, from the schedule's last timestep.
    assert_eq!((&strengths[0]["steps"], &strengths[7]["t"]), (&json!(1), &json!(999.0)), "{strengths}");
    assert_eq!((&strengths[7]["steps"], &strengths[8]), (&json!(8), &Value::Null), "{strengths}");
    // How busy it is may have changed in between.
    alone["queue"] = model["queue"].clone();
    assert_eq!(model, &alone);
    for (field, value) in [
        ("id", json!("tiny")),
        ("object", json!("model")),
        ("owned_by", json!("windowpane")),
        ("size", json!("32x32")),
        ("channels", json!(1)),
        ("samplers", json!(["ddpm", "ddim", "euler", "euler_a", "heun", "dpmpp_2m"])),
        ("time_grids", json!(["uniform", "quadratic", "karras"])),
    ] {
        assert_eq!(model[field], value, "{field}");
    }
    let engine = &model["engine"];
    assert_eq!(
        [&engine["provider"], &engine["dtype"], &engine["graph"]],
        ["cpu", "f32", "denoiser.f32.onnx"]
    );
    assert_eq!(engine["tick_rows"], 8);
    assert!(
        engine["buckets"]
            .as_array()
            .unwrap()
            .iter()
            .all(|bucket| bucket["milliseconds"].as_f64() > Some(0.0))
    );
    assert!(model["created"].as_u64().unwrap() > 1_600_000_000);
    assert_eq!(model["classes"][3], json!({"index": 3, "name": "ring", "aliases": ["circle"]}));
    assert_eq!(model["defaults"]["guidance_scale"], 1.5);
    assert_eq!((&model["limits"]["n"], &model["limits"]["steps"]), (&json!(10), &json!(1000)));
    assert_eq!(model["digest"].as_str().unwrap().len(), 64);
    assert!(model["lineage"]["images"].as_u64().unwrap() > 0);
}

#[test]
fn every_shipped_package_is_served_and_matches_its_golden() {
    let server = TestServer::shelf();
    let folders: BTreeSet<String> =
        all_shipped().iter().map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert!(folders.contains("tiny") && folders.contains("fashion-dit"), "{folders:?}");
    let list = server.get("/v1/models").ok().json();
    let models = list["data"].as_array().unwrap();
    let names: BTreeSet<String> =
        models.iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, folders, "a package is named as its folder");
    for model in models {
        let [error, tolerance] =
            ["relative_error", "tolerance"].map(|field| model["golden"][field].as_f64().unwrap());
        // What is asked of ort against libtorch in f32.
        assert!(error < 1e-4 && tolerance <= 1e-4, "{}: {error} of {tolerance}", model["id"]);
        assert!(
            model["golden"]["cases"].as_u64().unwrap() >= 3,
            "several timesteps, classes and batch sizes"
        );
        assert_eq!(model["determinism"]["class"], "bitwise", "{}", model["id"]);
    }
    // With more than one model a request must say which.
    let message = server.generate(&json!({"prompt": "ring"})).refused(422, "invalid_value", Some("model"));
    assert!(message.contains("fashion-dit, tiny"), "{message}");
}

#[test]
fn packages_hold_none_of_their_training_data_and_are_as_small_as_is_told() {
    let table = std::fs::read_to_string(root().join("models/README.md")).unwrap();
    // What draws, and what proves and shows its insides beside it.
    let drawing: u64 =
        ["weights.bin", "denoiser.f32.onnx", "denoiser.f16.onnx", "manifest.json", "samples.png"]
            .map(|name| shipped("tiny").join(name).metadata().unwrap().len())
            .iter()
            .sum();
    assert!(drawing < 600_000, "{drawing} bytes");
    for folder in all_shipped() {
        let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap()).collect();
        let size: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
        let name = folder.file_name().unwrap().to_str().unwrap();
        // The fixture lies in every clone, and what it is made of grows before anyone looks.
        let most = if name == "tiny" { 1_100_000 } else { 25_000_000 };
        assert!(size < most, "{} has {size} bytes, at most {most} are wanted", folder.display());
        let row = format!("| [`{name}`]({name}/CARD.md) |");
        let row = table.lines().find(|line| line.starts_with(&row)).unwrap_or_else(|| panic!("no {row}"));
        let told = format!("| {:.1} MB |", size as f64 / 1e6);
        assert!(row.ends_with(&told), "models/README.md says {row}, the folder is {told}");
        assert!(!folder.join("reference.safetensors").exists(), "{}", folder.display());
        let card = std::fs::read_to_string(folder.join("CARD.md")).unwrap();
        assert!(
            card.contains("samples.png") && card.to_lowercase().contains("licence"),
            "{}",
            folder.display()
        );
    }
}

/// The flags and the body of the README's `curl`, sent as they stand there.
#[test]
fn the_readmes_command_draws_a_sneaker() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let command =
        readme.split("```").find(|block| block.contains("curl -s localhost:8080")).expect("it has a curl");
    assert!(command.contains(&format!("localhost:8080{IMAGES} ")), "{command}");
    let quoted: Vec<&str> = command.split('\'').skip(1).step_by(2).collect();
    let server = TestServer::shelf();
    let mut request = server.request("POST", IMAGES);
    for text in quoted {
        request = match text.split_once(": ") {
            Some((name, value)) if !text.starts_with('{') => request.header(name, value),
            _ => request.body(text.to_owned()),
        };
    }
    let answer = server.send(request).ok();
    assert_eq!((answer.header("content-type"), answer.header("x-model")), ("image/png", "fashion-dit"));
    let picture = decode(&answer.bytes).to_luma8();
    assert_eq!(picture.dimensions(), (28, 28));
    // A sneaker on black: the corners are empty and the middle is not. Whether it is a good one, the classifier of
    // tests/quality says.
    let mean = |rows: std::ops::Range<u32>| {
        let values: Vec<f64> = rows
            .flat_map(|y| (0..28).map(move |x| (x, y)))
            .map(|(x, y)| picture.get_pixel(x, y)[0].into())
            .collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    assert!(mean(0..4) < 30.0 && mean(12..20) > 60.0, "above {}, in the middle {}", mean(0..4), mean(12..20));
}

#[test]
fn fashions_own_words_name_its_classes() {
    let server = TestServer::shelf();
    let draw = |fields: Value| {
        let mut body = json!({"model": "fashion-dit", "seed": 3, "steps": 2});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server.generate(&body).ok().json()["class"].clone()
    };
    let model = server.get("/v1/models/fashion-dit").ok().json();
    let classes = model["classes"].as_array().unwrap();
    assert_eq!(classes.len(), 10);
    for class in classes {
        let words = class["aliases"].as_array().unwrap().iter().chain([&class["name"]]);
        for word in words {
            assert_eq!(
                draw(json!({"prompt": word.as_str().unwrap().to_uppercase()})),
                class["name"],
                "{word}"
            );
        }
        assert_eq!(draw(json!({"class": class["index"]})), class["name"]);
    }
}

#[test]
fn alive_is_not_ready() {
    // It leaves when the image below is done, however slow the machine is.
    let shutdown_timeout = Duration::from_secs(300);
    let mut server = TestServer::loading(Config { shutdown_timeout, ..TestServer::config() });
    let status = |server: &TestServer, path: &str| {
        let answer = server.get(path);
        (answer.status, answer.json()["status"].as_str().unwrap().to_owned())
    };
    assert_eq!(status(&server, "/livez"), (200, "alive".to_owned()));
    assert_eq!(status(&server, "/readyz"), (503, "loading".to_owned()));
    assert_eq!(status(&server, "/startupz"), (503, "loading".to_owned()));
    assert_eq!(server.get("/v1/models").ok().json()["data"], json!([]));
    let early = server.generate(&json!({"prompt": "ring"}));
    early.refused(503, "loading", None);
    assert!(!early.header("retry-after").is_empty());
    // The protocol says so, too.
    for (path, status) in [("/v2/health/live", 200), ("/v2/health/ready", 503), ("/v2", 200)] {
        assert_eq!(server.get(path).status, status, "{path}");
    }
    for path in ["/v2/models/tiny", "/v2/models/tiny/ready", "/v2/models/tiny/versions/1/stats"] {
        let answer = server.get(path);
        assert_eq!((answer.status, &answer.json()["code"]), (503, &json!("loading")), "{path}");
    }

    server.app().load().unwrap();
    assert_eq!(status(&server, "/readyz"), (200, "ready".to_owned()));
    let health = server.get("/readyz").json();
    assert_eq!(health["models"], json!(["tiny"]));

    // While an image is under way a server that leaves still answers, and says that it is leaving.
    let body = json!({"prompt": "ring", "seed": 1, "n": 2, "steps": 600, "guidance_scale": 1}).to_string();
    let request = server.post(body);
    let running = server.spawn(async { request.send().await });
    server.until_images(2);
    server.begin_to_leave();
    server.until("it is leaving", || status(&server, "/readyz") == (503, "draining".to_owned()));
    assert_eq!(status(&server, "/livez"), (200, "alive".to_owned()));
    assert_eq!(status(&server, "/startupz"), (200, "started".to_owned()));
    server.generate(&json!({"prompt": "ring"})).refused(503, "shutting_down", None);
    let answer = server.block_on(running).unwrap().unwrap();
    assert_eq!(answer.status(), 200, "what was under way is finished");
    server.leave();
}

#[test]
fn a_model_shows_its_card_and_what_can_be_asked() {
    let server = TestServer::shared();
    let model = server.get("/v1/models/tiny").ok().json();
    let card = std::fs::read_to_string(shipped("tiny").join("CARD.md")).unwrap();
    assert_eq!(model["card"], card);
    assert_eq!(server.get("/v1/models").ok().json()["data"][0].get("card"), None, "a list is short");
    // Every format that is named is one that can be asked for.
    for format in model["output_formats"].as_array().unwrap() {
        server.generate(&json!({"prompt": "ring", "steps": 1, "output_format": format})).ok();
    }
    for sampler in model["samplers"].as_array().unwrap() {
        let answer = server.generate(&json!({"prompt": "ring", "steps": 1, "sampler": sampler, "eta": 0.5}));
        let takes = model["eta_samplers"].as_array().unwrap().contains(sampler);
        assert_eq!(answer.status == 200, takes, "{sampler}");
    }
}

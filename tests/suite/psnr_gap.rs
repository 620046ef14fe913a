//! The PSNR gap over HTTP: the trainer's own numbers, for the same images in every form; its pictures; the images that a
//! package brings along; and what wrong images are told.
#![expect(clippy::needless_pass_by_value, reason = "a request's fields are a `json!` on the spot")]

use std::collections::BTreeMap;
use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use suite::{Answer, Package, TestServer, decode, root};
use windowpane_diffusion::psnr_gap::PsnrGap;
use windowpane_server::Config;

const PSNR_GAP: &str = "/v1/analysis/psnr-gap";

/// Pixels of an image of models/tiny.
const PIXELS: usize = 32 * 32;

/// A side of the images that the trainer measured on.
struct Side {
    pixels: Vec<u8>,
    labels: Vec<i64>,
}

/// The images, and what the trainer's `eval` says of them: written by its own test.
fn reference() -> (Vec<u8>, [Side; 2], PsnrGap) {
    let path = root().join("tests/reference/psnr_gap.json");
    let gap = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let file = std::fs::read(path.with_extension("safetensors")).unwrap();
    let read = SafeTensors::deserialize(&file).unwrap();
    let sides = ["train", "test"].map(|side| {
        let labels = read.tensor(&format!("{side}.labels")).unwrap().data().as_chunks::<8>().0;
        Side {
            pixels: read.tensor(&format!("{side}.images")).unwrap().data().to_vec(),
            labels: labels.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect(),
        }
    });
    (file, sides, gap)
}

fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
}

impl Side {
    fn array(&self) -> Vec<u8> {
        npy("|u1", &format!("({}, 32, 32)", self.labels.len()), &self.pixels)
    }

    /// PNGs in folders that are named as the classes; the order of the images is that of these names.
    fn archive(&self, classes: &[&str]) -> Vec<u8> {
        self.zipped(|i| format!("{}/{i:03}.png", classes[self.labels[i] as usize]))
    }

    fn zipped(&self, name: impl Fn(usize) -> String) -> Vec<u8> {
        let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (i, pixels) in self.pixels.chunks_exact(PIXELS).enumerate() {
            let name = name(i);
            archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            let image = image::GrayImage::from_raw(32, 32, pixels.to_vec()).unwrap();
            let mut png = std::io::Cursor::new(Vec::new());
            image.write_to(&mut png, image::ImageFormat::Png).unwrap();
            archive.write_all(png.get_ref()).unwrap();
        }
        archive.finish().unwrap().into_inner()
    }
}

fn request(server: &TestServer, body: &Value) -> reqwest::RequestBuilder {
    server.request("POST", PSNR_GAP).header(CONTENT_TYPE, "application/json").body(body.to_string())
}

fn measure(server: &TestServer, body: Value) -> Answer {
    server.send(request(server, &body))
}

/// What the trainer was asked: both sides as arrays, at its timesteps and with its seed.
fn asked(fields: Value) -> Value {
    let (_, [train, test], gap) = reference();
    let mut body = json!({
        "model": "tiny",
        "train": STANDARD.encode(train.array()), "train_labels": train.labels,
        "test": STANDARD.encode(test.array()), "test_labels": test.labels,
        "timesteps": gap.timesteps.len(), "seed": 3,
    });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn numbers(array: &Value) -> Vec<f64> {
    let numbers = array.as_array().unwrap_or_else(|| panic!("no array: {array}"));
    numbers.iter().map(|number| number.as_f64().unwrap()).collect()
}

fn close(told: &Value, expected: f64) {
    let told = told.as_f64().unwrap_or_else(|| panic!("no number: {told}"));
    // The networks differ by a few roundings of f32.
    assert!((told - expected).abs() < 2e-3, "{told} dB, expected {expected}");
}

#[test]
fn the_numbers_are_the_trainers_own() {
    let (_, _, gap) = reference();
    let body = measure(TestServer::shared(), asked(json!({}))).ok().json();
    let about = &body["about"];
    assert_eq!((&about["source"], &about["labels"]), (&json!("upload"), &json!(["class", "class"])));
    assert_eq!((&about["images"], &about["seed"]), (&json!([8, 8]), &json!("3")));
    let told = &body["gap"];
    assert_eq!(told["timesteps"], json!(gap.timesteps));
    close(&told["gap"], gap.gap);
    close(&told["unclipped"], gap.unclipped);
    let both = |told: &Value, expected: [f64; 2]| (0..2).for_each(|i| close(&told[i], expected[i]));
    both(&told["interval"], gap.interval);
    both(&told["unclipped_interval"], gap.unclipped_interval);
    for (told, side) in [(&told["train"], &gap.train), (&told["test"], &gap.test)] {
        assert_eq!(told["images"], json!(side.images));
        close(&told["mean"], side.mean);
        both(&told["interval"], side.interval);
        assert_eq!(numbers(&told["curve"]).len(), side.curve.len());
        for (told, expected) in told["curve"].as_array().unwrap().iter().zip(&side.curve) {
            close(told, *expected);
        }
        for (told, expected) in told["intervals"].as_array().unwrap().iter().zip(&side.intervals) {
            both(told, *expected);
        }
    }
    assert_eq!((&body["psnr"], &body["b64_json"]), (&Value::Null, &Value::Null));
    // One set by itself, and another seed, so that the comparison can fail.
    let alone = json!({"test": null, "test_labels": null});
    let alone = measure(TestServer::shared(), asked(alone)).ok().json();
    assert_eq!((&alone["gap"], &alone["psnr"]["curve"]), (&Value::Null, &told["train"]["curve"]));
    let other = measure(TestServer::shared(), asked(json!({"seed": 4}))).ok().json();
    assert_ne!(other["gap"]["train"]["curve"], told["train"]["curve"]);
}

#[test]
fn archives_and_forms_are_the_same_images() {
    let server = TestServer::shared();
    let (_, [train, test], gap) = reference();
    let classes = ["ground", "curtain", "blob", "ring"];
    let timesteps = gap.timesteps.len().to_string();
    let mut form = Vec::new();
    for (name, bytes) in [
        ("model", b"tiny".to_vec()),
        ("train", train.archive(&classes)),
        ("test", test.archive(&classes)),
        ("timesteps", timesteps.into_bytes()),
        ("seed", b"3".to_vec()),
    ] {
        let head = format!("--bound\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n");
        form.extend([head.as_bytes(), &bytes, b"\r\n"].concat());
    }
    form.extend(b"--bound--\r\n");
    let kind = "multipart/form-data; boundary=bound";
    let body =
        server.send(server.request("POST", PSNR_GAP).header(CONTENT_TYPE, kind).body(form)).ok().json();
    assert_eq!(body["about"]["labels"], json!(["class", "class"]));
    // In another order every image meets other noise; as a set they are the same.
    let told = body["gap"]["train"]["mean"].as_f64().unwrap();
    assert!((told - gap.train.mean).abs() < 0.5, "{told} {}", gap.train.mean);
    // The values of the pixels, in the order of the names.
    let mut sorted: Vec<usize> = (0..8).collect();
    sorted.sort_by_key(|&i| (classes[train.labels[i] as usize], i));
    let floats = sorted.iter().flat_map(|&i| &train.pixels[i * PIXELS..(i + 1) * PIXELS]);
    let floats: Vec<u8> = floats.flat_map(|&pixel| (f32::from(pixel) / 127.5 - 1.0).to_le_bytes()).collect();
    let labels: Vec<&str> = sorted.iter().map(|&i| classes[train.labels[i] as usize]).collect();
    let array = npy("<f4", "(8, 1, 32, 32)", &floats);
    let floats = json!({
        "train": STANDARD.encode(array), "train_labels": labels, "test": null, "test_labels": null,
    });
    let floats = measure(server, asked(floats)).ok().json();
    assert_eq!(floats["psnr"]["curve"], body["gap"]["train"]["curve"]);
}

/// A folder of 8.png, 9.png, 10.png, … is read as 10, 11, …, 8, 9 by name, and written as its program pleases.
#[test]
fn labels_of_an_archive_belong_to_its_names_or_to_nobody() {
    let server = TestServer::shared();
    let (_, [train, _], _) = reference();
    let measure = |archive: &[u8]| {
        let fields = json!({"train": STANDARD.encode(archive), "test": null, "test_labels": null});
        measure(server, asked(fields))
    };
    let numbered = measure(&train.zipped(|i| format!("{}.png", i + 8)));
    let said = numbered.refused(422, "invalid_value", Some("train_labels"));
    assert!(said.contains("`15.png` comes before `8.png`, and in the archive it comes after"), "{said}");
    let padded = measure(&train.zipped(|i| format!("{:02}.png", i + 8))).ok().json();
    let array = self::measure(server, asked(json!({"test": null, "test_labels": null}))).ok().json();
    assert_eq!(padded["psnr"], array["psnr"]);
    assert_eq!(padded["about"]["labels"], json!(["class"]));
}

#[test]
fn the_curves_come_as_a_table_and_as_plots() {
    let server = TestServer::shared();
    let as_file = |kind: &str| {
        let answer = server.send(request(server, &asked(json!({}))).header(ACCEPT, kind)).ok();
        assert_eq!(answer.header("content-type"), kind);
        let about: Value = serde_json::from_str(answer.header("x-about")).unwrap();
        assert_eq!(about["model"], "tiny");
        answer.bytes
    };
    let (_, _, gap) = reference();
    let csv = String::from_utf8(as_file("text/csv")).unwrap();
    let inside = measure(server, asked(json!({"output_format": "csv"}))).ok().json();
    assert_eq!(STANDARD.decode(inside["b64_json"].as_str().unwrap()).unwrap(), csv.as_bytes());
    let told = &inside["gap"];
    assert_eq!(csv.lines().count(), 1 + gap.timesteps.len());
    let column = column_of(&csv);
    assert_eq!(column("timestep"), numbers(&told["timesteps"]));
    // A table has six places.
    let same = |name: &str, expected: &[f64]| {
        let column = column(name);
        let close = column.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close && column.len() == expected.len(), "{name}: {column:?}, in JSON {expected:?}");
    };
    let [train, test] = ["train", "test"].map(|side| {
        let curve = numbers(&told[side]["curve"]);
        let intervals = told[side]["intervals"].as_array().unwrap();
        let ends: Vec<_> =
            (0..2).map(|i| intervals.iter().map(|end| end[i].as_f64().unwrap()).collect()).collect();
        same(&format!("{side}_db"), &curve);
        ["low", "high"]
            .iter()
            .zip(&ends)
            .for_each(|(end, of): (_, &Vec<f64>)| same(&format!("{side}_{end}_db"), of));
        curve
    });
    same("gap_db", &numbers(&told["curve"]));
    let unclipped: Vec<f64> = train.iter().zip(&test).map(|(train, test)| train - test).collect();
    assert!(unclipped.iter().any(|&gap| gap < -0.01), "the images were chosen so: {unclipped:?}");
    same("unclipped_gap_db", &unclipped);

    let svg = String::from_utf8(as_file("image/svg+xml")).unwrap();
    let db = |value: &Value| format!("{:.2}", value.as_f64().unwrap());
    let range = |ends: &Value| format!("({} - {})", db(&ends[0]), db(&ends[1]));
    for words in [
        format!("PSNR gap {} dB {} clipped at 0", db(&told["gap"]), range(&told["interval"])),
        format!("{} dB {} unclipped", db(&told["unclipped"]), range(&told["unclipped_interval"])),
        format!("training images {} dB", db(&told["train"]["mean"])),
        format!("held-out images {} dB", db(&told["test"]["mean"])),
        "timestep".to_owned(),
    ] {
        assert!(svg.contains(&words), "no {words} in {svg}");
    }
    let png = decode(&as_file("image/png"));
    assert_eq!((png.width(), png.height()), (760, 480));
    // Both curves are there, and the area between them.
    let colours: BTreeMap<[u8; 3], usize> = png.to_rgb8().pixels().fold(BTreeMap::new(), |mut all, pixel| {
        *all.entry(pixel.0).or_default() += 1;
        all
    });
    for colour in [[0, 114, 178], [213, 94, 0]] {
        assert!(
            colours.get(&colour).is_some_and(|&count| count > 20),
            "{colour:?}: {:?}",
            colours.get(&colour)
        );
    }
    // One set by itself has a table of its own.
    let alone = json!({"test": null, "test_labels": null, "output_format": "csv"});
    let alone = measure(server, asked(alone)).ok().json();
    let csv = String::from_utf8(STANDARD.decode(alone["b64_json"].as_str().unwrap()).unwrap()).unwrap();
    let expected = format!("{:.6}", alone["psnr"]["curve"][1].as_f64().unwrap());
    assert_eq!(csv.lines().nth(2).unwrap().split(',').nth(1), Some(expected.as_str()));
}

/// The numbers of a table, by the names of its columns.
fn column_of(csv: &str) -> impl Fn(&str) -> Vec<f64> {
    let names: Vec<String> = csv.lines().next().unwrap().split(',').map(str::to_owned).collect();
    let row = |line: &str| line.split(',').map(|number| number.parse().unwrap()).collect();
    let rows: Vec<Vec<f64>> = csv.lines().skip(1).map(row).collect();
    move |name| {
        let place = names.iter().position(|other| other == name);
        let place = place.unwrap_or_else(|| panic!("no {name} in {names:?}"));
        rows.iter().map(|row| row[place]).collect()
    }
}

/// Of one colour each, which is what they are in any size.
#[test]
fn images_of_another_size_are_resized_where_that_is_asked_for() {
    let server = TestServer::shared();
    let greys = [40, 90, 200];
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for grey in greys {
        archive.start_file(format!("{grey:03}.png"), zip::write::SimpleFileOptions::default()).unwrap();
        let mut png = std::io::Cursor::new(Vec::new());
        let image = image::GrayImage::from_pixel(24, 40, image::Luma([grey]));
        image.write_to(&mut png, image::ImageFormat::Png).unwrap();
        archive.write_all(png.get_ref()).unwrap();
    }
    let archive = STANDARD.encode(archive.finish().unwrap().into_inner());
    let ask = |train: &str, resize: Value| {
        measure(server, json!({"model": "tiny", "train": train, "timesteps": 3, "seed": 3, "resize": resize}))
    };
    for refused in [json!(null), json!(false)] {
        let said = ask(&archive, refused).refused(422, "invalid_value", Some("train"));
        assert!(
            said.contains("`040.png`") && said.contains("a PNG of 32x32 pixels, or `resize` true"),
            "{said}"
        );
    }
    let resized = ask(&archive, json!(true)).ok().json();
    assert_eq!(resized["about"]["images"], json!([3]));
    let pixels = greys.map(|grey| [grey; PIXELS]).concat();
    let array = ask(&STANDARD.encode(npy("|u1", "(3, 32, 32)", &pixels)), json!(null)).ok().json();
    assert_eq!(resized["psnr"], array["psnr"]);
}

#[test]
fn a_package_measures_itself_on_the_images_that_it_brings_along() {
    let (file, _, gap) = reference();
    let none =
        measure(TestServer::shared(), json!({"model": "tiny"})).refused(422, "invalid_value", Some("train"));
    assert!(none.contains("export it with `--reference`"), "{none}");
    let package = Package::tiny();
    package.write_pinned("reference.safetensors", &file);
    let server = TestServer::start(package.config());
    let body = measure(&server, json!({"timesteps": gap.timesteps.len(), "seed": 3})).ok().json();
    assert_eq!((&body["about"]["source"], &body["about"]["images"]), (&json!("reference"), &json!([8, 8])));
    close(&body["gap"]["gap"], gap.gap);
    let fewer = measure(&server, json!({"timesteps": 2, "images": 3})).ok().json();
    assert_eq!(fewer["about"]["images"], json!([3, 3]));
}

#[test]
fn wrong_images_are_told_what_is_expected() {
    let server = TestServer::shared();
    let (_, [train, _], _) = reference();
    let other = STANDARD.encode(npy("|u1", "(8, 16, 64)", &train.pixels));
    // More than their confidence intervals are drawn of.
    let roomy = TestServer::start(Config { body_limit: 8 << 20, ..TestServer::config() });
    let many = STANDARD.encode(npy("|u1", "(2001, 32, 32)", &vec![7; 2001 * PIXELS]));
    let many = measure(&roomy, json!({"model": "tiny", "train": many, "images": 10_000, "timesteps": 1000}));
    let said = many.refused(422, "invalid_value", Some("timesteps"));
    assert!(said.contains("1000 for 2001 images, expected at most 2000000"), "{said}");
    for (fields, param, said) in [
        (json!({"train": null, "train_labels": null}), "train", "`test` is given without `train`"),
        (
            json!({"train": null, "test": null, "test_labels": null}),
            "train_labels",
            "`train`, which is missing",
        ),
        (json!({"train": "aGVsbG8="}), "train", "neither a .npy nor a .zip"),
        (json!({"train": "?"}), "train", "standard base64"),
        (json!({"train": other}), "train", "its shape is [8, 16, 64]; expected a .npy of u8 [n, 32, 32, 1]"),
        (json!({"train_labels": [0, 1]}), "train_labels", "has 2 labels, expected one for each of 8 images"),
        (json!({"test_labels": [0, 1, 2, 3, 0, 1, 2, 4]}), "test_labels", "expected 0 to 3, or a name"),
        (
            json!({"test_labels": ["ring", "a", 0, 0, 0, 0, 0, 0]}),
            "test_labels",
            "expected a class of `tiny`",
        ),
        (json!({"images": 0}), "images", "1 to 10000"),
        (json!({"timesteps": 1001}), "timesteps", "1 to 1000"),
        (json!({"output_format": "npz"}), "output_format", "`json`, `csv`, `svg` or `png`"),
        (json!({"imagez": 3}), "imagez", "`images`"),
    ] {
        let answer = measure(server, asked(fields.clone()));
        let code = if param == "imagez" { "unknown_field" } else { "invalid_value" };
        let message = answer.refused(422, code, Some(param));
        assert!(message.contains(said), "{fields}: {message}");
    }
}

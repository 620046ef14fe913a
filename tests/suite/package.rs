//! Damaged packages. Every file is pinned by the manifest, so whatever is wrong is found before anything is served,
//! and the error names the file.

use std::fs;

use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize};
use serde_json::json;
use suite::onnx::{Attribute, Entry, Function, Graph, Model, Node, Sparse, Tensor};
use suite::{Package, TestServer};
use windowpane_server::{App, Config};

/// The error, which must hold all of these.
#[track_caller]
fn refused(package: &Package, words: &[&str]) {
    let error = package.error();
    for word in words {
        assert!(error.contains(word), "no `{word}` in: {error}");
    }
}

#[test]
fn an_undamaged_copy_is_served() {
    let package = Package::tiny();
    let server = TestServer::start(package.config());
    let body = json!({"prompt": "ring", "seed": 7, "steps": 1});
    // The picture comes from the package's files, wherever they are.
    assert_eq!(server.generate(&body).ok().file(0), TestServer::shared().generate(&body).ok().file(0));
}

#[test]
fn files_that_are_cut_or_overwritten_under_a_running_server_change_nothing() {
    let package = Package::tiny();
    let server = TestServer::start(package.config());
    let body = json!({"prompt": "ring", "seed": 7, "steps": 2});
    let before = server.generate(&body).ok().file(0);
    // In place: the files stay the ones that the server may have open.
    for name in ["weights.bin", "denoiser.f32.onnx", "golden.safetensors", "manifest.json"] {
        let bytes = package.read(name);
        package.write(name, vec![0xff; bytes.len()]);
        assert_eq!(server.generate(&body).ok().file(0), before, "{name} overwritten");
        package.write(name, b"");
        assert_eq!(server.generate(&body).ok().file(0), before, "{name} cut");
    }
}

#[test]
fn a_truncated_file_is_named() {
    for name in ["weights.bin", "denoiser.f32.onnx", "denoiser.f16.onnx", "golden.safetensors", "CARD.md"] {
        let package = Package::tiny();
        let bytes = package.read(name);
        package.write(name, &bytes[..bytes.len() / 2]);
        refused(&package, &[name, &format!("has {} bytes", bytes.len() / 2), &bytes.len().to_string()]);
        package.write(name, b"");
        refused(&package, &[name, "has 0 bytes"]);
    }
}

#[test]
fn one_flipped_bit_is_found() {
    for name in ["weights.bin", "denoiser.f32.onnx", "golden.safetensors", "samples.png"] {
        let package = Package::tiny();
        let mut bytes = package.read(name);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        package.write(name, &bytes);
        refused(&package, &[name, "has sha256", "the manifest says"]);
    }
}

#[test]
fn a_wrong_digest_or_size_in_the_manifest_is_found() {
    let package = Package::tiny();
    package.edit(|manifest| manifest["files"]["weights.bin"]["sha256"] = json!("0".repeat(64)));
    refused(&package, &["weights.bin", "has sha256", &"0".repeat(64)]);
    let package = Package::tiny();
    package.edit(|manifest| manifest["files"]["weights.bin"]["size"] = json!(1_u64 << 40));
    refused(&package, &["weights.bin", "1099511627776"]);
    let package = Package::tiny();
    package.edit(|manifest| manifest["files"]["weights.bin"]["sha256"] = json!("abc"));
    refused(&package, &["manifest.json", "weights.bin", "sha256"]);
}

#[test]
fn a_missing_file_is_named() {
    for name in ["weights.bin", "denoiser.f32.onnx", "golden.safetensors", "CARD.md"] {
        let package = Package::tiny();
        fs::remove_file(package.file(name)).unwrap();
        refused(&package, &[name]);
    }
    let package = Package::tiny();
    fs::remove_file(package.file("manifest.json")).unwrap();
    refused(&package, &["no model package", "manifest.json"]);
}

/// A hidden one too: a graph could name it as its weights.
#[test]
fn a_file_that_nobody_listed_is_named() {
    for name in ["extra.bin", ".weights.bin", "WEIGHTS.BIN"] {
        let package = Package::tiny();
        package.write(name, b"x");
        refused(&package, &[name, "not listed"]);
    }
}

#[test]
fn an_unknown_format_version_says_which_is_read() {
    for version in [json!(0), json!(2), json!(4_000_000_000_u32)] {
        let package = Package::tiny();
        package.edit(|manifest| manifest["format_version"] = version.clone());
        refused(&package, &["manifest.json", "format_version", &version.to_string(), "1"]);
    }
    for version in [json!("1"), json!(-1), json!(null), json!(1.5)] {
        let package = Package::tiny();
        package.edit(|manifest| manifest["format_version"] = version.clone());
        refused(&package, &["manifest.json"]);
    }
}

#[test]
fn a_manifest_that_is_not_one_is_named() {
    let package = Package::tiny();
    let whole = package.read("manifest.json");
    for bytes in [&whole[..whole.len() / 2], b"", b"[]", b"null", b"\xff\xfe", b"{\"format_version\": 1}"] {
        package.write("manifest.json", bytes);
        refused(&package, &["manifest.json"]);
    }
    package.write("manifest.json", &whole);
    package.edit(|manifest| manifest["surprise"] = json!(1));
    refused(&package, &["manifest.json", "surprise"]);
}

#[test]
fn a_bad_value_in_the_manifest_is_named_with_its_place() {
    for (pointer, value, place) in [
        ("/name", json!("../tiny"), "name"),
        ("/name", json!(""), "name"),
        ("/config/heads", json!(0), "heads"),
        ("/config/heads", json!(5), "heads"),
        ("/config/patch", json!(0), "patch"),
        ("/config/patch", json!(5), "patch"),
        ("/config/depth", json!(3), "windows"),
        ("/config/windows/0", json!(4), "window"),
        ("/config/classes", json!(5), "classes"),
        ("/config/height", json!(1_u64 << 60), "height"),
        ("/schedule/steps", json!(0), "steps"),
        ("/defaults/steps", json!(0), "steps"),
        ("/defaults/guidance_scale", json!(-1.0), "guidance_scale"),
        ("/defaults/sampler", json!("best"), "best"),
        ("/prediction", json!("score"), "score"),
        ("/value_range", json!([1.0, -1.0]), "value_range"),
        ("/graphs", json!([]), "graphs"),
        ("/graphs/0/file", json!("../denoiser.f32.onnx"), "../denoiser.f32.onnx"),
        ("/graphs/0/tolerance", json!(0.0), "tolerance"),
        ("/graphs/0/plan/0", json!({"tiles": {"side": 0}}), "plan"),
        ("/classes/1/name", json!("ground"), "ground"),
    ] {
        let package = Package::tiny();
        package.edit(|manifest| {
            *manifest.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value.clone();
        });
        let error = package.error();
        assert!(error.contains("manifest.json") && error.contains(place), "{pointer} = {value}: {error}");
    }
}

#[test]
fn a_path_out_of_the_folder_is_refused() {
    for name in ["../weights.bin", "/etc/passwd", "a/b.bin", "..", "a\\b.bin"] {
        let package = Package::tiny();
        package.edit(|manifest| manifest["files"][name] = manifest["files"]["weights.bin"].clone());
        refused(&package, &["manifest.json", name.replace('\\', "\\\\").rsplit('/').next().unwrap()]);
    }
}

#[cfg(unix)]
#[test]
fn a_link_is_refused_wherever_it_points() {
    for name in ["weights.bin", "denoiser.f32.onnx", "manifest.json"] {
        let package = Package::tiny();
        let outside = package.models().join("outside");
        fs::rename(package.file(name), &outside).unwrap();
        std::os::unix::fs::symlink(&outside, package.file(name)).unwrap();
        refused(&package, &[name, "a link"]);
    }
}

/// A graph may name any file as its weights, whatever the manifest pins.
#[test]
fn weights_outside_the_package_are_refused() {
    let package = Package::tiny();
    let mut changed = package.read("denoiser.f32.onnx");
    // Of the same length, so that the protobuf stays whole.
    let (inside, outside) = (b"weights.bin", b"../ghts.bin");
    fs::copy(package.file("weights.bin"), package.models().join("ghts.bin")).unwrap();
    let mut found = 0;
    for at in 0..changed.len() - inside.len() {
        if &changed[at..at + inside.len()] == inside {
            changed[at..at + inside.len()].copy_from_slice(outside);
            found += 1;
        }
    }
    assert!(found > 0, "the graph names its weights");
    package.write_pinned("denoiser.f32.onnx", &changed);
    refused(&package, &["denoiser.f32.onnx"]);
}

/// Where else a graph may hold tensors, and name files for them: even the package's own are refused there.
#[test]
fn files_that_are_named_anywhere_but_among_the_initializers_are_refused() {
    let entry = |key: &str, value: &str| Entry { key: key.to_owned(), value: value.to_owned() };
    let external = || Tensor {
        name: "stray".to_owned(),
        raw: Vec::new(),
        external: vec![entry("location", "weights.bin"), entry("length", "4")],
        ..Tensor::scalar("stray", 0.0)
    };
    let sparse = || Sparse { values: Some(Tensor::scalar("values", 1.0)), indices: Some(external()) };
    let graph = || Graph { initializers: vec![external()], ..Graph::default() };
    let attribute = Attribute::named;
    let node = |attribute: Attribute| Node { attributes: vec![attribute], ..Node::new("If", ["x"], "y") };
    let nodes = |attribute: Attribute| Graph { nodes: vec![node(attribute)], ..Graph::default() };
    let inner = nodes(Attribute { tensor: Some(external()), ..attribute("value") });
    let graphs = [
        ("the sparse initializers", Graph { sparse_initializers: vec![sparse()], ..Graph::default() }),
        ("`t` of the node `made.y` (`If`)", nodes(Attribute { tensor: Some(external()), ..attribute("t") })),
        (
            "`ts` of the node `made.y` (`If`)",
            nodes(Attribute { tensors: vec![external()], ..attribute("ts") }),
        ),
        ("`s` of the node `made.y` (`If`)", nodes(Attribute { sparse: Some(sparse()), ..attribute("s") })),
        (
            "`g` of the node `made.y` (`If`)",
            nodes(Attribute { graph: Some(Box::new(graph())), ..attribute("g") }),
        ),
        ("`gs` of the node `made.y` (`If`)", nodes(Attribute { graphs: vec![graph()], ..attribute("gs") })),
        (
            "`value` of the node `made.y` (`If`)",
            nodes(Attribute { graph: Some(Box::new(inner.clone())), ..attribute("g") }),
        ),
    ];
    let nameless = inner.nodes.into_iter().map(|node| Node { name: String::new(), ..node }).collect();
    let function = Function { name: "f".to_owned(), nodes: nameless };
    let models = graphs.map(|(place, graph)| (place, Model { graph: Some(graph), ..Model::default() }));
    let function = ("`value` of a node `If`", Model { functions: vec![function], ..Model::default() });
    for (place, more) in models.into_iter().chain([function]) {
        let package = Package::tiny();
        package.extend_graph("denoiser.f32.onnx", &more);
        refused(&package, &["denoiser.f32.onnx`: the tensor `stray` in", place, "lies in `weights.bin`"]);
    }
}

#[cfg(unix)]
#[test]
fn a_folder_that_is_a_link_is_the_package_that_it_leads_to() {
    let package = Package::tiny();
    let models = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(package.models().join("tiny"), models.path().join("current")).unwrap();
    let server = TestServer::start(Config { models: models.path().to_owned(), ..package.config() });
    let body = json!({"prompt": "ring", "seed": 7, "steps": 1});
    assert_eq!(server.generate(&body).ok().file(0), TestServer::shared().generate(&body).ok().file(0));
}

#[test]
fn weights_that_are_too_short_are_an_error_even_where_the_manifest_pins_them() {
    let package = Package::tiny();
    let bytes = package.read("weights.bin");
    package.write_pinned("weights.bin", &bytes[..bytes.len() / 2]);
    refused(&package, &["tiny", "denoiser.f32.onnx"]);
}

#[test]
fn a_graph_that_is_none_is_an_error_even_where_the_manifest_pins_it() {
    let whole = Package::tiny().read("denoiser.f32.onnx");
    let mut noise = suite::Random::new(5);
    let random: Vec<u8> = (0..5000).map(|_| noise.below(256) as u8).collect();
    for bytes in [&b""[..], b"not a graph", &whole[..whole.len() / 2], &random] {
        let package = Package::tiny();
        package.write_pinned("denoiser.f32.onnx", bytes);
        refused(&package, &["tiny", "denoiser.f32.onnx"]);
    }
}

#[test]
fn a_golden_that_does_not_match_is_refused() {
    let package = Package::tiny();
    package.write_pinned("golden.safetensors", &golden(&package, |value| value + 0.01));
    refused(&package, &["tiny", "denoiser.f32.onnx", "golden case `batch1` differs"]);
    // Not a number matches nothing.
    package.write_pinned("golden.safetensors", &golden(&package, |_| f32::NAN));
    refused(&package, &["golden case `batch1`: the stored prediction is not finite"]);
}

#[test]
fn other_weights_than_the_goldens_are_refused() {
    let package = Package::tiny();
    // Weights are stored as f16 or f32; a higher exponent somewhere in the middle is another network either way.
    let mut bytes = package.read("weights.bin");
    let middle = bytes.len() / 2;
    bytes[middle..middle + 2000].iter_mut().for_each(|byte| *byte ^= 0x10);
    package.write_pinned("weights.bin", &bytes);
    refused(&package, &["tiny", "golden case"]);
}

#[test]
fn a_golden_without_a_case_or_without_its_form_is_refused() {
    let package = Package::tiny();
    package.edit(|manifest| manifest["graphs"][0]["golden"] = json!(["batch1", "batch9"]));
    refused(&package, &["batch9"]);
    let package = Package::tiny();
    let bytes = package.read("golden.safetensors");
    package.write_pinned("golden.safetensors", &bytes[..bytes.len() - 100]);
    refused(&package, &["golden.safetensors"]);
    // A header that promises 2^63 bytes of header.
    package.write_pinned("golden.safetensors", &[&(1_u64 << 63).to_le_bytes()[..], &bytes[8..]].concat());
    refused(&package, &["golden.safetensors"]);
}

#[test]
fn every_bad_package_is_told_of_and_no_name_is_served_twice() {
    let package = Package::tiny();
    package.copy("second");
    // They are read in order of folder, and this one is the second.
    refused(&package, &["tiny` is named `tiny`, as another package is"]);
    package.write("weights.bin", b"");
    fs::write(package.models().join("second/CARD.md"), b"").unwrap();
    refused(&package, &["2 packages do not load", "tiny/weights.bin", "second/CARD.md"]);
}

#[test]
fn a_folder_without_packages_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = |models: &std::path::Path| {
        let config = Config { models: models.to_owned(), ..TestServer::config() };
        App::open(config).expect_err("nothing is there").to_string()
    };
    assert!(error(folder.path()).contains("holds no model package"));
    let missing = folder.path().join("missing");
    assert!(error(&missing).contains(missing.to_str().unwrap()));
}

/// The golden with every expected value changed.
fn golden(package: &Package, change: impl Fn(f32) -> f32) -> Vec<u8> {
    let bytes = package.read("golden.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let changed: Vec<(String, Vec<u8>, safetensors::Dtype, Vec<usize>)> = tensors
        .iter()
        .map(|(name, view)| {
            let mut data = view.data().to_vec();
            if name.ends_with(".prediction") {
                for value in data.chunks_exact_mut(4) {
                    let old = f32::from_le_bytes([value[0], value[1], value[2], value[3]]);
                    value.copy_from_slice(&change(old).to_le_bytes());
                }
            }
            (name.to_owned(), data, view.dtype(), view.shape().to_vec())
        })
        .collect();
    let views = changed.iter().map(|(name, data, dtype, shape)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    serialize(views, None).unwrap()
}

//! A manifest that is right, and one small wrong at a time: every error must say where.

use serde_json::{Value, json};

use super::*;

/// A package of format version 1 as it was written by this version of the program. It stays: later versions
/// must read it.
const STORED: &str = include_str!("manifest.v1.json");

fn good() -> Manifest {
    Manifest::from_json(STORED).unwrap()
}

/// The stored manifest with the value at `pointer` (RFC 6901) replaced, or removed where the new value is null.
fn changed(pointer: &str, value: Value) -> std::result::Result<Manifest, String> {
    let mut manifest: Value = serde_json::from_str(STORED).unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match manifest.pointer_mut(parent).unwrap() {
        Value::Object(map) if value.is_null() => assert!(map.remove(key).is_some(), "{pointer} exists"),
        Value::Object(map) => drop(map.insert(key.to_owned(), value)),
        Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
        other => panic!("{pointer} lies in {other}"),
    }
    Manifest::from_json(&manifest.to_string()).map_err(|error| error.to_string())
}

#[test]
fn the_stored_manifest_is_read_and_written_back_unchanged() {
    let manifest = good();
    assert_eq!(manifest.to_json(), STORED);
    assert_eq!(manifest.name, "shapes-dit");
    assert_eq!(manifest.graphs[0].plan[0], crate::window::Plan::Tiles(crate::window::Tile::square(4)));
    assert_eq!(manifest.graphs[0].inputs[0].to_string(), "x: f32[n,1,8,8]");
}

#[test]
fn another_version_is_told_from_a_broken_file() {
    for (version, rest) in [(0, ""), (2, r#","unheard_of": {}"#)] {
        let error = Manifest::from_json(&format!(r#"{{"format_version": {version}{rest}}}"#)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("`format_version` is {version}, expected 1, the only version this program reads")
        );
    }
    for broken in ["", "{", "[]", "null", "\u{0}", r#"{"format_version": "1"}"#, r#"{"format_version": -1}"#]
    {
        let error = Manifest::from_json(broken).unwrap_err().to_string();
        assert!(error.starts_with("not a valid manifest: "), "{broken}: {error}");
    }
    for cut in [10, 100, STORED.len() / 2, STORED.len() - 3] {
        let error = Manifest::from_json(&STORED[..cut]).unwrap_err().to_string();
        assert!(error.contains("line"), "{error}");
    }
}

#[test]
fn unknown_and_missing_fields_are_named() {
    for parent in
        ["", "/config", "/schedule", "/classes/0", "/defaults", "/graphs/0", "/graphs/0/inputs/0", "/lineage"]
    {
        let error = changed(&format!("{parent}/surprise"), json!(1)).unwrap_err();
        assert!(error.contains("surprise"), "{parent}: {error}");
    }
    for field in
        ["/name", "/config/depth", "/defaults/eta", "/graphs/0/tolerance", "/lineage/seed", "/licence"]
    {
        let error = changed(field, Value::Null).unwrap_err();
        assert!(error.contains("missing field") && error.contains("line"), "{field}: {error}");
    }
}

#[test]
fn clean_estimates_are_clipped_unless_it_is_said_that_they_are_not() {
    let clips = |field: Value| {
        let mut manifest: Value = serde_json::from_str(STORED).unwrap();
        match field {
            Value::Null => _ = manifest["defaults"].as_object_mut().unwrap().remove("clip_x0").unwrap(),
            said => manifest["defaults"]["clip_x0"] = said,
        }
        Manifest::from_json(&manifest.to_string()).unwrap().defaults.clip_x0
    };
    assert_eq!([Value::Null, json!(true), json!(false)].map(clips), [true, true, false]);
}

#[test]
fn an_array_is_no_object() {
    // Each holds the right values in the order of the fields.
    for (pointer, value, expected) in [
        (
            "/schedule",
            json!(["linear", 250]),
            "`schedule` is an array, expected an object with the keys kind, steps",
        ),
        ("/classes/1", json!(["square", []]), "`classes[1]` is an array"),
        ("/files/weights.bin", json!(["0".repeat(64), 1]), "`files.weights.bin` is an array"),
        ("/graphs/0/inputs/1", json!(["t", "f32", ["n"]]), "`graphs[0].inputs[1]` is an array"),
        ("/graphs/0/plan/1", json!({"tiles": [4]}), "expected tiles as `{\"side\": 4}` or as"),
    ] {
        let error = changed(pointer, value).unwrap_err();
        assert!(error.contains(expected), "{pointer}: {error}");
    }
    for whole in ["[1]", r#"[1, "name"]"#] {
        let error = Manifest::from_json(whole).unwrap_err().to_string();
        assert!(error.contains("sequence, expected a map"), "{whole}: {error}");
    }
}

#[test]
fn every_bad_value_is_refused_where_it_is() {
    let digest = |c: char| c.to_string().repeat(64);
    let dims = |n: usize| json!({"name": "x", "dtype": "f32", "shape": ["n", n, 8, 8]});
    let cases = [
        ("/name", json!(""), "`name`"),
        ("/name", json!("../etc"), "`name`"),
        ("/name", json!(".hidden"), "`name`"),
        ("/name", json!("tiny model"), "`name`"),
        ("/name", json!("x".repeat(65)), "`name`"),
        ("/config/hidden", json!(50), "`config.hidden`"),
        ("/config/windows", json!([3]), "`config.windows`"),
        ("/config/windows/0", json!(4), "odd"),
        ("/schedule/steps", json!(0), "`schedule.steps`"),
        ("/prediction", json!("noise"), "unknown variant"),
        ("/variance", json!("learned_range"), "`variance`"),
        ("/value_range", json!([0.0, 1.0]), "`value_range`"),
        ("/classes", json!([{"name": "circle"}]), "`classes`"),
        ("/classes/1/name", json!("  "), "`classes[1].name`"),
        ("/classes/1/name", json!("CIRCLE "), "`classes[1].name`"),
        ("/classes/1/aliases/0", json!("Disc"), "`classes[1].aliases[0]`"),
        ("/classes/1/aliases/0", json!("square"), "`classes[1].aliases[0]`"),
        ("/defaults/steps", json!(0), "`defaults.steps`"),
        ("/defaults/steps", json!(251), "`defaults.steps`"),
        ("/defaults/steps", json!(-1), "line"),
        ("/defaults/eta", json!(1.5), "`defaults.eta`"),
        ("/defaults/guidance_scale", json!(-1.0), "`defaults.guidance_scale`"),
        ("/defaults/guidance_scale", json!(1e9), "`defaults.guidance_scale`"),
        ("/graphs", json!([]), "`graphs`"),
        ("/graphs/0/role", json!("attention"), "`graphs[0].outputs[1]` is missing"),
        ("/graphs/0/file", json!("a/b.onnx"), "`graphs[0].file`"),
        ("/graphs/0/file", json!("a\\b.onnx"), "`graphs[0].file`"),
        ("/graphs/0/file", json!("..onnx"), "`graphs[0].file`"),
        ("/graphs/0/file", json!("other.onnx"), "`graphs[0].file`"),
        ("/graphs/0/plan", json!(["dense"]), "`graphs[0].plan`"),
        ("/graphs/0/plan/1", json!({"tiles": {"side": 0}}), "`graphs[0].plan[1].tiles`"),
        ("/graphs/0/plan/1", json!({"tiles": {"side": 9}}), "`graphs[0].plan[1].tiles`"),
        ("/graphs/0/tolerance", json!(0.0), "`graphs[0].tolerance`"),
        ("/graphs/0/tolerance", json!(-1e-4), "`graphs[0].tolerance`"),
        ("/graphs/0/tolerance", json!(1.0), "`graphs[0].tolerance`"),
        ("/graphs/0/golden", json!([]), "`graphs[0].golden`"),
        ("/graphs/0/golden", json!(["a", "a"]), "`graphs[0].golden[1]`"),
        ("/graphs/0/golden/0", json!(""), "`graphs[0].golden[0]`"),
        ("/graphs/0/inputs/0", dims(3), "`graphs[0].inputs[0]` is x: f32[n,3,8,8], expected x: f32[n,1,8,8]"),
        ("/graphs/0/inputs", json!([dims(1)]), "`graphs[0].inputs[1]` is missing"),
        ("/graphs/0/inputs/2/dtype", json!("f32"), "`graphs[0].inputs[2]`"),
        ("/graphs/0/outputs/0/name", json!("out"), "`graphs[0].outputs[0]`"),
        ("/graphs/0/outputs", json!([dims(1), dims(1)]), "`graphs[0].outputs[0]`"),
        ("/files", json!({}), "`files`"),
        ("/files/weights.bin", Value::Null, "weights.bin"),
        ("/files/golden.safetensors", Value::Null, "golden.safetensors"),
        ("/files/denoiser.f32.onnx", Value::Null, "`graphs[0].file`"),
        ("/files/manifest.json", json!({"sha256": digest('0'), "size": 1}), "`files`"),
        ("/files/weights.bin/sha256", json!(digest('A')), "`files[\"weights.bin\"].sha256`"),
        ("/files/weights.bin/sha256", json!("abc"), "`files[\"weights.bin\"].sha256`"),
        ("/files/weights.bin/size", json!(0), "`files[\"weights.bin\"].size`"),
        ("/files/weights.bin/size", json!(-1), "line"),
        ("/lineage/data", json!(" "), "`lineage.data`"),
        ("/lineage/data_sha256", json!(digest('g')), "`lineage.data_sha256`"),
        ("/licence", json!(""), "`licence`"),
    ];
    for (pointer, value, expected) in cases {
        let shown = value.to_string();
        match changed(pointer, value) {
            Ok(_) => panic!("{pointer} = {shown} was accepted"),
            Err(error) => assert!(error.contains(expected), "{pointer} = {shown}: {error}"),
        }
    }
}

#[test]
fn rules_across_fields() {
    // A path with a slash in `files` cannot be written as a JSON pointer.
    let mut manifest = good();
    manifest.files.insert("../weights.bin".into(), manifest.files[WEIGHTS_FILE].clone());
    assert!(manifest.validate().unwrap_err().to_string().contains("`files`"));

    let mut manifest = good();
    manifest.graphs.push(manifest.graphs[0].clone());
    assert!(manifest.validate().unwrap_err().to_string().contains("`graphs[1]`"));

    let mut manifest = good();
    manifest.config.learn_sigma = true;
    assert!(manifest.validate().unwrap_err().to_string().contains("`variance`"));
    manifest.variance = Variance::LearnedRange;
    assert!(manifest.validate().unwrap_err().to_string().contains("`graphs[0].outputs[0]`"));
    manifest.graphs[0].outputs[0].shape[1] = Dim::Fixed(2);
    manifest.validate().unwrap();

    let mut manifest = good();
    manifest.defaults.sampler = Sampler::Euler;
    manifest.defaults.eta = 0.5;
    assert!(manifest.validate().unwrap_err().to_string().contains("`defaults.eta`"));

    let mut manifest = good();
    manifest.lineage.metrics.insert("loss".into(), f64::NAN);
    assert!(manifest.validate().unwrap_err().to_string().contains("`lineage.metrics[\"loss\"]`"));
    manifest.lineage.metrics.clear();
    manifest.graphs[0].tolerance = f64::NAN;
    assert!(manifest.validate().unwrap_err().to_string().contains("`graphs[0].tolerance`"));

    let mut manifest = good();
    manifest.classes.clear();
    manifest.config.classes = 0;
    assert!(manifest.validate().unwrap_err().to_string().contains("`defaults.guidance_scale`"));
    manifest.defaults.guidance_scale = 1.0;
    manifest.validate().unwrap();
}

#[test]
fn an_instrumented_graph_has_the_denoisers_tensors_first() {
    let mut manifest = good();
    let (grid, heads) = (manifest.config.grid(), manifest.config.heads);
    let mut attention = manifest.graphs[0].clone();
    attention.role = Role::Attention;
    for (i, (window, plan)) in manifest.config.windows.iter().zip(&attention.plan).enumerate() {
        let (tiles, queries, keys) = window.tile_counts(grid, *plan);
        attention.outputs.push(TensorSpec {
            name: format!("attention.{i}"),
            dtype: TensorType::F32,
            shape: [Dim::batch()].into_iter().chain([heads, tiles, queries, keys].map(Dim::Fixed)).collect(),
        });
    }
    manifest.graphs.push(attention);
    manifest.validate().unwrap();
    let error = |manifest: &Manifest| manifest.validate().unwrap_err().to_string();
    let mut other = manifest.clone();
    other.graphs[1].outputs[1].shape.pop();
    assert!(error(&other).contains("`graphs[1].outputs[1]` is attention.0: f32["), "{}", error(&other));
    manifest.graphs[1].outputs.remove(0);
    assert!(error(&manifest).contains("`graphs[1].outputs[0]`"));
}

#[test]
fn products_with_the_jacobian_are_of_one_image_and_many_vectors() {
    let mut manifest = good();
    let mut jvp = manifest.graphs[0].clone();
    jvp.role = Role::Jvp;
    jvp.inputs.iter_mut().for_each(|input| input.shape[0] = Dim::Fixed(1));
    let mut vectors = jvp.inputs[0].clone();
    (vectors.name, vectors.shape[0]) = ("vectors".into(), Dim::Named("k".into()));
    jvp.inputs.push(vectors.clone());
    jvp.outputs = vec![TensorSpec { name: "products".into(), ..vectors }];
    manifest.graphs.push(jvp);
    manifest.validate().unwrap();
    manifest.graphs[1].inputs[0].shape[0] = Dim::batch();
    let error = manifest.validate().unwrap_err().to_string();
    assert!(error.contains("`graphs[1].inputs[0]` is x: f32[n,"), "{error}");
}

#[test]
fn classes_are_found_by_name_and_alias_in_any_case() {
    let manifest = good();
    for (word, label) in [("circle", 0), (" Disc\n", 0), ("SQUARE", 1), ("élan", 1), ("ÉLAN", 1)] {
        assert_eq!(manifest.lookup(word).unwrap(), label, "{word}");
    }
    for word in ["", "0", "circl", "circle square"] {
        let error = manifest.lookup(word).unwrap_err().to_string();
        assert_eq!(error, format!("unknown class `{word}`, expected one of: circle, square"));
    }
}

//! Every ONNX file that is shipped, as ONNX's own Python package sees it: it passes the checker, its weights lie in
//! one file, and its tensors and nodes read like the model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::Value;
use suite::{all_shipped, onnx, python};
use windowpane_diffusion::manifest::{Dim, Graph, Role, TensorType};
use windowpane_diffusion::{Manifest, Plan, Window};

/// A package and what `check_onnx.py` says of each of its files.
struct Checked {
    manifest: Manifest,
    files: BTreeMap<String, Value>,
}

/// All packages. Every file has passed the checker, or the script would have failed.
fn all() -> &'static [Checked] {
    static ALL: OnceLock<Vec<Checked>> = OnceLock::new();
    let check = |folder: &PathBuf| {
        let text = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
        let said = python("check_onnx.py", [folder.to_str().unwrap()]);
        let files = serde_json::from_str(&said).expect("the script prints JSON");
        Checked { manifest: Manifest::from_json(&text).unwrap(), files }
    };
    ALL.get_or_init(|| all_shipped().iter().map(check).collect())
}

/// The shapes of a checkpoint, by the names of facebookresearch/DiT's state dict; a position table of more than 64 KiB is
/// a line for every place of a row or column, as the exporter stores it (`positions.rs`).
fn checkpoint(manifest: &Manifest) -> BTreeMap<String, Vec<usize>> {
    let c = &manifest.config;
    let (h, rows, cols) = (c.hidden, c.height / c.patch, c.width / c.patch);
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let is_large = 4 * rows * cols * h > 64 * 1024;
    let positions = if is_large { vec![rows.max(cols), h / 2] } else { vec![1, rows * cols, h] };
    shapes.insert("pos_embed".to_owned(), positions);
    shapes.insert("y_embedder.embedding_table.weight".to_owned(), vec![c.classes + 1, h]);
    let mut layer = |name: &str, out: usize, rest: &[usize]| {
        shapes.insert(format!("{name}.weight"), [&[out], rest].concat());
        shapes.insert(format!("{name}.bias"), vec![out]);
    };
    layer("x_embedder.proj", h, &[c.channels, c.patch, c.patch]);
    // 256 features of the timestep, as in DiT.
    layer("t_embedder.mlp.0", h, &[256]);
    layer("t_embedder.mlp.2", h, &[h]);
    for i in 0..c.depth {
        layer(&format!("blocks.{i}.attn.qkv"), 3 * h, &[h]);
        layer(&format!("blocks.{i}.attn.proj"), h, &[h]);
        layer(&format!("blocks.{i}.mlp.fc1"), c.mlp_ratio * h, &[h]);
        layer(&format!("blocks.{i}.mlp.fc2"), h, &[c.mlp_ratio * h]);
        layer(&format!("blocks.{i}.adaLN_modulation.1"), 6 * h, &[h]);
    }
    layer("final_layer.adaLN_modulation.1", 2 * h, &[h]);
    layer("final_layer.linear", c.patch * c.patch * c.out_channels(), &[h]);
    shapes
}

#[test]
fn every_file_passes_the_checker_and_is_listed() {
    for Checked { manifest, files } in all() {
        let listed: Vec<&String> = manifest.graphs.iter().map(|graph| &graph.file).collect();
        assert!(
            !files.is_empty() && files.keys().all(|file| listed.contains(&file)),
            "{files:?} of {listed:?}"
        );
        assert_eq!(files.len(), listed.len());
    }
}

#[test]
fn initializers_carry_the_checkpoints_names_and_shapes() {
    for Checked { manifest, files } in all() {
        for graph in &manifest.graphs {
            let (file, said) = (&graph.file, &files[&graph.file]);
            // What is added last changes nothing: a derivative has no use for it.
            let dead = matches!(graph.role, Role::Jvp | Role::Vjp).then_some("final_layer.linear.bias");
            for (name, shape) in checkpoint(manifest) {
                if dead == Some(name.as_str()) {
                    assert!(said["initializers"].get(&name).is_none(), "`{name}` in {file}");
                    continue;
                }
                assert_eq!(said["initializers"][&name], serde_json::json!(shape), "`{name}` in {file}");
                // Every weight is in the one file that all graphs share.
                assert_eq!(said["external"][&name], "weights.bin", "`{name}` in {file}");
            }
        }
    }
}

/// Bytes of the largest constant that a graph may hold itself: what windows and position tables need is half of that, and the
/// smallest matrix in a block of the smallest network is more than twice that.
const LARGEST_OWN: usize = 4096;

/// What multiplies by a transposed weight reads the weight in the other direction: there is no transposed copy, neither in the
/// file nor made at load.
#[test]
fn no_weight_is_there_a_second_time() {
    for folder in all_shipped() {
        let text = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
        let manifest = Manifest::from_json(&text).unwrap();
        let names = checkpoint(&manifest);
        let mut places: BTreeMap<String, [String; 3]> = BTreeMap::new();
        for graph in &manifest.graphs {
            let (file, graph) = (&graph.file, onnx::Graph::open(&folder.join(&graph.file)));
            let mut weights = BTreeSet::new();
            for tensor in &graph.initializers {
                let name = &tensor.name;
                let Some(place) = tensor.entry("location") else {
                    let size = tensor.raw.len();
                    assert!(size <= LARGEST_OWN, "{file} holds `{name}` itself, {size} bytes");
                    continue;
                };
                assert!(names.contains_key(name), "`{name}` in {file} is no parameter");
                let place = [place, tensor.entry("offset").unwrap(), tensor.entry("length").unwrap()];
                let place = place.map(str::to_owned);
                // All graphs mean the same bytes by a name.
                assert_eq!(places.entry(name.clone()).or_insert_with(|| place.clone()), &place, "{file}");
                weights.insert(name.as_str());
            }
            let distinct: BTreeSet<_> = weights.iter().map(|&name| &places[name]).collect();
            assert_eq!(distinct.len(), weights.len(), "two names for one weight in {file}");
            // A runtime computes at load whatever depends on constants alone.
            let mut known: BTreeSet<&str> = graph.initializers.iter().map(|one| one.name.as_str()).collect();
            for node in graph.every_node() {
                let mut inputs = node.inputs.iter().map(String::as_str).filter(|name| !name.is_empty());
                let of_weights = inputs.clone().any(|name| weights.contains(name));
                assert!(
                    !(of_weights && node.op == "Transpose"),
                    "{} transposes a weight in {file}",
                    node.name
                );
                if of_weights && inputs.all(|name| known.contains(name)) {
                    known.extend(node.outputs.iter().map(String::as_str));
                    weights.extend(node.outputs.iter().map(String::as_str));
                }
            }
        }
    }
}

#[test]
fn ports_are_what_the_manifest_says() {
    let words = |graph: &Graph| {
        let port = |spec: &windowpane_diffusion::manifest::TensorSpec| {
            let dims = spec.shape.iter().map(|dim| match dim {
                Dim::Fixed(size) => serde_json::json!(size),
                Dim::Named(name) => serde_json::json!(name),
            });
            let dtype = match spec.dtype {
                TensorType::F32 => "FLOAT",
                TensorType::F16 => "FLOAT16",
                TensorType::I64 => "INT64",
            };
            (spec.name.clone(), serde_json::json!([dtype, dims.collect::<Vec<_>>()]))
        };
        graph.inputs.iter().chain(&graph.outputs).map(port).collect::<BTreeMap<_, _>>()
    };
    for Checked { manifest, files } in all() {
        for graph in &manifest.graphs {
            assert_eq!(files[&graph.file]["ports"], serde_json::json!(words(graph)), "{}", graph.file);
        }
    }
}

#[test]
fn nodes_are_named_like_the_model_and_scores_have_the_windows_shape() {
    for Checked { manifest, files } in all() {
        let c = &manifest.config;
        let (rows, cols) = (c.height / c.patch, c.width / c.patch);
        for graph in &manifest.graphs {
            let said = &files[&graph.file];
            for (layer, (window, plan)) in c.windows.iter().zip(&graph.plan).enumerate() {
                assert_eq!(said["nodes"][format!("blocks.{layer}.mlp.fc1")], "Gemm", "{}", graph.file);
                let (names, expected) = match (window, plan) {
                    (Window::Local { side }, Plan::Tiles(tile)) => {
                        let patch = |t: usize, n: usize| (t + side - 1).min(n);
                        let keys = patch(tile.height, rows) * patch(tile.width, cols);
                        let heads = (0..c.heads).map(|head| format!("head.{head}.softmax")).collect();
                        (heads, [tile.height.min(rows) * tile.width.min(cols), keys])
                    }
                    _ => (vec!["softmax".to_owned()], [rows * cols; 2]),
                };
                for name in names {
                    let softmax = format!("blocks.{layer}.attn.{name}");
                    assert_eq!(said["nodes"][&softmax], "Softmax", "{}", graph.file);
                    // As ONNX's own shape inference has it, queries against keys.
                    assert_eq!(said["scores"][&softmax], serde_json::json!(expected), "{softmax}");
                }
            }
        }
    }
}

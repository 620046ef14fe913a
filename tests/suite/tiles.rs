//! The windows of the graph that serves are tiles: each layer gathers key patches t + w - 1 wide, and nothing in
//! the graph is as large as a score for every pair of tokens.

use std::fs;

use serde_json::json;
use suite::onnx::Graph;
use suite::{TestServer, sha256, shipped};
use windowpane_diffusion::{Manifest, Plan, Window};

/// The manifest and the graph that answered: the server names the file, and the digests pin its bytes.
fn served() -> (Manifest, Graph, Vec<Plan>) {
    let server = TestServer::shared();
    let body = json!({"model": "tiny", "prompt": "ring", "seed": 1, "steps": 1});
    let answer = server.generate(&body).ok().json();
    let model = server.get("/v1/models/tiny").ok().json();
    assert_eq!(answer["digest"], model["digest"]);
    let folder = shipped("tiny");
    let text = fs::read_to_string(folder.join("manifest.json")).unwrap();
    assert_eq!(model["digest"], sha256(text.as_bytes()), "the manifest here is the one that is served");
    let manifest = Manifest::from_json(&text).unwrap();
    let file = model["engine"]["graph"].as_str().unwrap();
    assert_eq!(manifest.files[file].sha256, sha256(&fs::read(folder.join(file)).unwrap()));
    let graph =
        manifest.graphs.iter().find(|graph| graph.file == file).expect("the manifest lists its graph");
    let plan = graph.plan.clone();
    (manifest, Graph::open(&folder.join(file)), plan)
}

#[test]
fn the_fixture_has_the_windows_that_it_is_for() {
    let (manifest, _, plan) = served();
    let config = &manifest.config;
    assert_eq!((config.height / config.patch, config.width / config.patch), (32, 32));
    let tiled: Vec<usize> = config
        .windows
        .iter()
        .zip(&plan)
        .filter(|(_, plan)| matches!(plan, Plan::Tiles(_)))
        .map(|(window, _)| match window {
            Window::Local { side } => *side,
            Window::Global => panic!("a global layer has no tiles"),
        })
        .collect();
    assert_eq!(tiled, [3, 5, 9]);
}

#[test]
fn every_tiled_layer_gathers_its_key_patches() {
    let (manifest, graph, plan) = served();
    let tokens = manifest.config.height / manifest.config.patch;
    let constants = graph.constants();
    for (layer, (window, plan)) in manifest.config.windows.iter().zip(&plan).enumerate() {
        let (Window::Local { side: w }, Plan::Tiles(tile)) = (window, plan) else { continue };
        let shared = format!("window.{w}.tiles.{}x{}", tile.height, tile.width);
        for head in 0..manifest.config.heads {
            let name = |part: &str| format!("blocks.{layer}.attn.head.{head}.{part}");
            for (part, rows) in [("q", "query"), ("k", "key"), ("v", "value")] {
                let node = graph.node(&name(part));
                let rows = format!("{shared}.head.{head}.{rows}.rows");
                assert_eq!((node.op.as_str(), &node.inputs[1]), ("Gather", &rows));
            }
            // What lies in the patch and outside the window is hidden before the softmax.
            let hidden = graph.node(&name("window"));
            assert_eq!((hidden.op.as_str(), &hidden.inputs[1]), ("Add", &format!("{shared}.bias")));
            let softmax = graph.node(&name("softmax"));
            assert_eq!((softmax.op.as_str(), &softmax.inputs[0]), ("Softmax", &hidden.outputs[0]));
        }
        // One row of token numbers for each tile: t queries against t + w - 1 keys a side. Windows share a constant that
        // both have.
        let tiles = |of: &str, at: usize| {
            let node = graph.node(&format!("{shared}.{of}_tokens.sum"));
            let dims = constants[node.inputs[at].as_str()];
            (dims[at] as usize, dims.iter().product::<i64>() as usize / dims[at] as usize)
        };
        for (at, t) in [(0, tile.height), (1, tile.width)] {
            assert_eq!(tiles("query", at), (tokens / t, t), "layer {layer}");
            assert_eq!(tiles("key", at), (tokens / t, t + w - 1), "layer {layer}");
        }
    }
}

#[test]
fn no_constant_is_as_large_as_a_mask() {
    let (manifest, graph, _) = served();
    let tokens = (manifest.config.height * manifest.config.width) as i64;
    for (name, dims) in graph.constants() {
        let size: i64 = dims.iter().product();
        assert!(
            size < tokens * tokens / 4,
            "`{name}` has {dims:?}, a mask of the {tokens} tokens would have {tokens}²"
        );
    }
}

//! What the unit tests share: a small manifest, a whole package in a folder, and an application around the fake.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use axum::response::Response;
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use tower::ServiceExt;
use windowpane_diffusion::manifest::{
    Class, Dim, Dtype, FileDigest, GOLDEN_FILE, Graph, GraphDevice, Lineage, MANIFEST_FILE, Manifest, Role,
    SampleDefaults, TensorSpec, TensorType, WEIGHTS_FILE,
};
use windowpane_diffusion::{
    ModelConfig, Plan, Prediction, Sampler, ScheduleConfig, ScheduleKind, TimeGrid, Variance, Window, noise,
};

use crate::app::App;
use crate::config::Config;
use crate::engine::dylib;
use crate::engine::fake::Faults;
use crate::engine::onnx::{Element, External, Model as Onnx, Node, Port};
use crate::engine::ort::Runtime;
use crate::model::Model;
use crate::router::router;

/// The graph's file in [`package`].
pub(crate) const GRAPH: &str = "denoiser.f32.onnx";

/// A model of 4×6 grey pixels with these classes.
pub(crate) fn manifest(name: &str, classes: &[&str]) -> Manifest {
    let class = |name: &&str| Class { name: (*name).to_owned(), aliases: vec![format!("{name} shoe")] };
    let spec = |name: &str, dtype, rest: &[usize]| TensorSpec {
        name: name.to_owned(),
        dtype,
        shape: std::iter::once(Dim::batch()).chain(rest.iter().copied().map(Dim::Fixed)).collect(),
    };
    let digest = FileDigest { sha256: "0".repeat(64), size: 1 };
    Manifest {
        format_version: 1,
        name: name.to_owned(),
        description: "a model of the tests".to_owned(),
        config: ModelConfig {
            channels: 1,
            height: 4,
            width: 6,
            patch: 2,
            hidden: 4,
            depth: 1,
            heads: 1,
            mlp_ratio: 1,
            classes: classes.len(),
            learn_sigma: false,
            windows: vec![Window::Global],
        },
        schedule: ScheduleConfig { kind: ScheduleKind::Linear, steps: 100 },
        prediction: Prediction::Eps,
        variance: Variance::FixedSmall,
        value_range: [-1.0, 1.0],
        classes: classes.iter().map(class).collect(),
        defaults: SampleDefaults {
            sampler: Sampler::Ddim,
            grid: TimeGrid::Uniform,
            steps: 10,
            guidance_scale: if classes.is_empty() { 1.0 } else { 2.0 },
            eta: 0.0,
            clip_x0: true,
        },
        graphs: vec![Graph {
            role: Role::Denoiser,
            device: GraphDevice::Any,
            dtype: Dtype::F32,
            file: GRAPH.to_owned(),
            plan: vec![Plan::Dense],
            tolerance: 1e-4,
            golden: vec!["a".to_owned(), "b".to_owned()],
            inputs: vec![
                spec("x", TensorType::F32, &[1, 4, 6]),
                spec("t", TensorType::F32, &[]),
                spec("y", TensorType::I64, &[]),
            ],
            outputs: vec![spec("prediction", TensorType::F32, &[1, 4, 6])],
        }],
        files: [GRAPH, WEIGHTS_FILE, GOLDEN_FILE].map(|file| (file.to_owned(), digest.clone())).into(),
        lineage: Lineage {
            data: "none".to_owned(),
            data_sha256: "0".repeat(64),
            images: 1,
            seed: 0,
            steps: 1,
            trainer: "by hand".to_owned(),
            metrics: [("loss".to_owned(), 0.5)].into(),
        },
        licence: "CC0-1.0".to_owned(),
    }
}

/// The same manifest with the graphs of its insides, for the fake network: their files need not exist.
pub(crate) fn with_insides(mut manifest: Manifest) -> Manifest {
    let (config, denoiser) = (manifest.config.clone(), manifest.graphs[0].clone());
    let grid = config.grid();
    let named =
        |name: &str, shape: Vec<Dim>| TensorSpec { name: name.to_owned(), dtype: TensorType::F32, shape };
    let image = [config.channels, config.height, config.width].map(Dim::Fixed);
    let mut attention =
        Graph { role: Role::Attention, file: "attention.f32.onnx".to_owned(), ..denoiser.clone() };
    for (i, (window, plan)) in config.windows.iter().zip(&denoiser.plan).enumerate() {
        let (tiles, queries, keys) = window.tile_counts(grid, *plan);
        let sides = [config.heads, tiles, queries, keys].map(Dim::Fixed);
        attention
            .outputs
            .push(named(&format!("attention.{i}"), [vec![Dim::batch()], sides.to_vec()].concat()));
    }
    manifest.graphs.push(attention);
    for (role, name) in [(Role::Jvp, "jvp"), (Role::Vjp, "vjp")] {
        let vectors = || [vec![Dim::Named("k".to_owned())], image.to_vec()].concat();
        let mut graph = Graph { role, file: format!("{name}.f32.onnx"), ..denoiser.clone() };
        graph.inputs.iter_mut().for_each(|input| input.shape[0] = Dim::Fixed(1));
        graph.inputs.push(named("vectors", vectors()));
        graph.outputs = vec![named("products", vectors())];
        manifest.graphs.push(graph);
    }
    let digest = FileDigest { sha256: "0".repeat(64), size: 1 };
    for graph in &manifest.graphs {
        manifest.files.entry(graph.file.clone()).or_insert_with(|| digest.clone());
    }
    manifest.validate().unwrap_or_else(|error| panic!("{error}"));
    manifest
}

/// Writes a whole package into `folder/name` whose network is `prediction = 0.5 · x`, and returns its folder.
pub(crate) fn package(folder: &Path, name: &str) -> PathBuf {
    let folder = folder.join(name);
    fs::create_dir(&folder).unwrap();
    let port = |name, element, shape: &[u64]| Port {
        name,
        element,
        shape: std::iter::once(None).chain(shape.iter().copied().map(Some)).collect(),
    };
    let graph = Onnx {
        inputs: vec![
            port("x", Element::F32, &[1, 4, 6]),
            port("t", Element::F32, &[]),
            port("y", Element::I64, &[]),
        ],
        outputs: vec![port("prediction", Element::F32, &[1, 4, 6])],
        nodes: vec![Node { op: "Mul", inputs: ["x", "half"], output: "prediction" }],
        externals: vec![External { name: "half", file: WEIGHTS_FILE, len: 1 }],
    };
    fs::write(folder.join(GRAPH), graph.encode()).unwrap();
    fs::write(folder.join(WEIGHTS_FILE), 0.5_f32.to_le_bytes()).unwrap();
    fs::write(folder.join(GOLDEN_FILE), golden(|x| 0.5 * x)).unwrap();
    let mut manifest = manifest(name, &["Sneaker", "Boot", "Sandal"]);
    pin(&folder, &mut manifest);
    folder
}

/// Cases `a` (2 rows) and `b` (1 row) of a network that maps every value by `f`.
pub(crate) fn golden(f: impl Fn(f32) -> f32) -> Vec<u8> {
    use safetensors::tensor::{Dtype, TensorView, serialize};
    let mut tensors = Vec::new();
    for (case, n) in [("a", 2), ("b", 1)] {
        let x = noise::normal(n as u64, 0, n * 24);
        let prediction: Vec<f32> = x.iter().map(|&x| f(x)).collect();
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        tensors.push((format!("{case}.x"), Dtype::F32, vec![n, 1, 4, 6], bytes(&x)));
        tensors.push((format!("{case}.t"), Dtype::F32, vec![n], bytes(&vec![7.0; n])));
        tensors.push((format!("{case}.y"), Dtype::I64, vec![n], vec![0; 8 * n]));
        tensors.push((format!("{case}.prediction"), Dtype::F32, vec![n, 1, 4, 6], bytes(&prediction)));
    }
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    serialize(views, None).unwrap()
}

/// Writes the manifest with the digests of the files as they are now.
pub(crate) fn pin(folder: &Path, manifest: &mut Manifest) {
    for (name, pinned) in &mut manifest.files {
        let bytes = fs::read(folder.join(name)).unwrap();
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        *pinned = FileDigest { sha256, size: bytes.len() as u64 };
    }
    fs::write(folder.join(MANIFEST_FILE), manifest.to_json()).unwrap();
}

/// Reads a package's manifest, changes it, and writes it back with the digests as they were.
pub(crate) fn rewrite(folder: &Path, change: impl FnOnce(&mut Manifest)) {
    let path = folder.join(MANIFEST_FILE);
    let mut manifest = Manifest::from_json(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut manifest);
    fs::write(path, manifest.to_json()).unwrap();
}

/// ONNX Runtime as the whole test process uses it. Without the library the test fails and says how to get it.
pub(crate) fn runtime() -> &'static Runtime {
    let library = dylib::locate(None, crate::args::Device::Cpu).unwrap_or_else(|error| panic!("{error}"));
    Runtime::get(&library, 2).unwrap_or_else(|error| panic!("{error}"))
}

/// An application that is ready with two fake models: `shoes`, with classes and insides, and `plain`, without.
pub(crate) fn app(config: Config, faults: &Faults) -> App {
    let app = App::new(config);
    let fake = |manifest| Model::fake(manifest, faults.clone(), app.config(), app.metrics()).unwrap();
    let shoes = with_insides(manifest("shoes", &["Sneaker", "Boot", "Sandal"]));
    let models = [shoes, manifest("plain", &[])].map(fake);
    app.install(models.into());
    app
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: axum::http::HeaderMap,
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    pub(crate) async fn read(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes().to_vec();
        Self { status: parts.status, headers: parts.headers, bytes }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }
}

/// Sends a request through the whole stack, without a socket.
pub(crate) async fn send(app: &App, request: Request<Body>) -> Answer {
    Answer::read(router(app).oneshot(request).await.unwrap()).await
}

/// GET.
pub(crate) async fn get(app: &App, path: &str) -> Answer {
    send(app, Request::get(path).body(Body::empty()).unwrap()).await
}

/// POST of JSON to the images route.
pub(crate) async fn generate(app: &App, accept: &str, body: serde_json::Value) -> Answer {
    let request = Request::post("/v1/images/generations")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, accept)
        .body(Body::from(body.to_string()));
    send(app, request.unwrap()).await
}

/// What this thread logs while it is installed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn install(&self) -> tracing::subscriber::DefaultGuard {
        // Where there is but one dispatcher, tracing asks that of the thread which comes by a place first whether anybody cares
        // for it, and another test's thread has none.
        static OTHER: LazyLock<tracing::Dispatch> =
            LazyLock::new(|| tracing::Dispatch::new(tracing_subscriber::registry()));
        LazyLock::force(&OTHER);
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone()).finish();
        tracing::subscriber::set_default(subscriber)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

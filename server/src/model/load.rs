//! From a folder to a model that serves: verify the package, choose the graph for the device, open it on the worker's
//! own thread, replay the golden there, measure. Only then is there a [`Model`].

mod error;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use windowpane_diffusion::manifest::{Dtype, GOLDEN_FILE, Graph, GraphDevice, Manifest, Role};

pub use error::{LoadError, ModelError};

use super::{Card, Model, Served};
use crate::args::Device;
use crate::batcher::device::{Device as Shared, Seat};
use crate::batcher::{Batcher, StartError, WorkerConfig};
use crate::config::Config;
use crate::engine::check::{self, Case, DeterminismClass};
use crate::engine::dylib;
use crate::engine::insides::ort::OrtInsides;
use crate::engine::insides::{Engine, Inside};
use crate::engine::ort::{OrtDenoiser, Runtime};
use crate::engine::package::{Package, find, identity};
use crate::engine::{Denoiser as _, Provider, package, probe};
use crate::metrics::Metrics;

/// Loads packages of one folder, at start and later, onto the devices it knows.
#[derive(Debug)]
pub struct Loader {
    config: Config,
    metrics: Metrics,
    cpu: Arc<Shared>,
    cuda: Arc<Shared>,
}

// === impl Loader ===

impl Loader {
    /// A loader for `config.models`.
    pub fn new(config: Config, metrics: Metrics) -> Self {
        Self { config, metrics, cpu: Arc::default(), cuda: Arc::default() }
    }

    /// Loads every package, in order of name. All problems are reported, not the first.
    pub fn all(&self) -> Result<Vec<Model>, LoadError> {
        let folders = find(&self.config.models)?;
        let runtime = self.runtime()?;
        let (mut models, mut errors): (Vec<Model>, _) = (Vec::new(), Vec::new());
        for folder in &folders {
            match self.one(folder, runtime) {
                Ok(model) if models.iter().any(|other| other.name() == model.name()) => {
                    errors.push(LoadError::Twice { folder: folder.clone(), name: model.name().to_owned() });
                }
                Ok(model) => models.push(model),
                Err(error) => errors.push(error),
            }
        }
        match errors.len() {
            0 => Ok(models),
            1 => Err(errors.remove(0)),
            _ => Err(LoadError::Several(errors)),
        }
    }

    /// Loads the package of this name as it is now.
    pub fn named(&self, name: &str) -> Result<Model, LoadError> {
        let here = self.available()?;
        let known = here.iter().map(|(name, ..)| name.clone()).collect();
        let mut folders = here.iter().filter(|(other, ..)| other == name).map(|(_, _, folder)| folder);
        let folder = folders.next().ok_or_else(|| LoadError::Unknown { name: name.to_owned(), known })?;
        match folders.next() {
            Some(second) => Err(LoadError::Twice { folder: second.clone(), name: name.to_owned() }),
            None => self.folder(folder),
        }
    }

    /// Name, digest and folder of every package that could be loaded, as they are on the disk now, in order of their
    /// folders. A folder whose manifest does not read is left out.
    pub fn available(&self) -> Result<Vec<(String, String, PathBuf)>, LoadError> {
        let named = |folder: PathBuf| {
            let (manifest, digest) = identity(&folder)?;
            Some((manifest.name, digest, folder))
        };
        Ok(find(&self.config.models)?.into_iter().filter_map(named).collect())
    }

    /// The manifest of every such package.
    pub fn manifests(&self) -> Result<Vec<Manifest>, LoadError> {
        let manifest = |folder: PathBuf| identity(&folder).map(|(manifest, _)| manifest);
        Ok(find(&self.config.models)?.into_iter().filter_map(manifest).collect())
    }

    /// Whether a folder has a manifest that does not read.
    pub fn is_unreadable(&self) -> Result<bool, LoadError> {
        Ok(find(&self.config.models)?.iter().any(|folder| identity(folder).is_none()))
    }

    /// A model serves from now on: what was measured of it goes into the metrics.
    pub fn installed(&self, model: &Model) {
        let (metrics, served, name) = (&self.metrics, &model.served, model.name());
        metrics.model_load.with_label_values(&[name]).set(model.loading.as_secs_f64());
        metrics.golden_error.with_label_values(&[name, &served.graph]).set(served.golden.relative_error);
        let provider = served.provider.to_string();
        metrics.provider.with_label_values(&[name, &provider, dtype_name(served.dtype)]).set(1);
        metrics.model_ready.with_label_values(&[name]).set(1);
    }

    /// Takes a model that serves no longer out of the metrics.
    pub fn forget(&self, model: &Model) {
        self.metrics.model_ready.with_label_values(&[model.name()]).set(0);
        // Nothing to remove where it is not there.
        let _ = self.metrics.model_load.remove_label_values(&[model.name()]);
        self.forget_golden(model);
        self.forget_provider(model);
    }

    /// Another version serves in its place. What it ran on is not what is run on now, unless that is the same.
    pub fn replaced(&self, old: &Model, new: &Model) {
        if (old.served.provider, old.served.dtype) != (new.served.provider, new.served.dtype) {
            self.forget_provider(old);
        }
        if old.served.graph != new.served.graph {
            self.forget_golden(old);
        }
    }

    fn forget_golden(&self, model: &Model) {
        let _ = self.metrics.golden_error.remove_label_values(&[model.name(), &model.served.graph]);
    }

    fn forget_provider(&self, model: &Model) {
        let provider = model.served.provider.to_string();
        let labels = [model.name(), &provider, dtype_name(model.served.dtype)];
        let _ = self.metrics.provider.remove_label_values(&labels);
    }

    /// Loads the package in this folder.
    pub fn folder(&self, folder: &Path) -> Result<Model, LoadError> {
        self.one(folder, self.runtime()?)
    }

    fn runtime(&self) -> Result<&'static Runtime, LoadError> {
        let library = dylib::locate(self.config.ort_dylib.as_deref(), self.config.device)?;
        let (threads, runtime) = (self.config.threads, Runtime::get(&library, self.config.threads)?);
        tracing::info!(library = %library.display(), version = runtime.version(), threads, "ONNX Runtime");
        self.metrics.build.with_label_values(&[env!("CARGO_PKG_VERSION"), runtime.version()]).set(1);
        Ok(runtime)
    }

    /// Loads the package in `folder`, and counts it.
    fn one(&self, folder: &Path, runtime: &'static Runtime) -> Result<Model, LoadError> {
        let model = self.verified(folder, runtime);
        self.metrics.loads.with_label_values(&[if model.is_ok() { "done" } else { "failed" }]).inc();
        model
    }

    /// The package in `folder`, verified, loaded and checked.
    fn verified(&self, folder: &Path, runtime: &'static Runtime) -> Result<Model, LoadError> {
        let start = Instant::now();
        tracing::info!(folder = %folder.display(), "verifying the package");
        let package = Package::open(folder)?;
        let name = package.manifest.name.clone();
        tracing::info!(
            model = name,
            megabytes = package.size() as f64 / 1e6,
            "opening, replaying the golden, measuring"
        );
        let mut model = self
            .on_a_device(&package, runtime)
            .map_err(|cause| LoadError::Model { folder: folder.to_owned(), cause })?;
        model.loading = start.elapsed();
        let served = &model.served;
        tracing::info!(
            model = name,
            provider = %served.provider,
            graph = served.graph,
            golden_error = served.golden.relative_error,
            bitwise = served.determinism.class == DeterminismClass::Bitwise,
            rows = model.batcher.room(),
            piece = served.piece,
            tick_ms = served.costs.tick(model.batcher.room()).as_secs_f64() * 1e3,
            seconds = model.loading.as_secs_f64(),
            "ready"
        );
        Ok(model)
    }

    /// Tries the devices that `--device` allows, and says so where it is not the first.
    fn on_a_device(&self, package: &Package, runtime: &'static Runtime) -> Result<Model, ModelError> {
        let start = |provider, device: &Arc<Shared>| {
            Attempt::new(package, provider)?.serve(&self.config, Arc::clone(device), runtime, &self.metrics)
        };
        match self.config.device {
            Device::Cpu => start(Provider::Cpu, &self.cpu),
            Device::Cuda => {
                start(Provider::Cuda, &self.cuda).map_err(|error| ModelError::Cuda(Box::new(error)))
            }
            Device::Auto => start(Provider::Cuda, &self.cuda).or_else(|error| {
                tracing::info!(model = package.manifest.name, reason = %error, "no CUDA for this model; taking the CPU");
                start(Provider::Cpu, &self.cpu)
            }),
        }
    }
}

/// One try: a model's graph on a provider.
struct Attempt {
    card: Arc<Card>,
    folder: PathBuf,
    graph: Graph,
    provider: Provider,
}

// === impl Attempt ===

impl Attempt {
    fn new(package: &Package, provider: Provider) -> Result<Self, ModelError> {
        let mut card = Card::new(package.manifest.clone(), package.digest.clone(), package.created)?;
        card.text = package.card();
        card.folder = Some(package.folder.clone());
        let graph = graph_for(&card.manifest, provider).clone();
        Ok(Self { card: Arc::new(card), folder: package.folder.clone(), graph, provider })
    }

    /// Starts the worker, which opens and checks the model on its own thread.
    fn serve(
        self,
        config: &Config,
        device: Arc<Shared>,
        runtime: &'static Runtime,
        metrics: &Metrics,
    ) -> Result<Model, ModelError> {
        let card = Arc::clone(&self.card);
        let config = config.clone();
        let open = move |seat: &Seat<'_>| {
            let (engine, served) = self.open(runtime, seat, config.max_rows)?;
            let worker = worker_config(&self.card, &served, &config);
            Ok((engine, worker, served))
        };
        let thread = format!("wp-{}", card.manifest.name);
        let spawn = |name: &str, work| runtime.spawn(name, work);
        let (batcher, served) =
            Batcher::start(spawn, open, &thread, device, metrics.clone()).map_err(|error| match error {
                StartError::Open(error) => error,
                StartError::Thread(error) => ModelError::Thread(error),
            })?;
        Ok(Model { card, served, batcher, loading: Duration::ZERO })
    }

    /// On the thread that will run it: the probe, the session, the golden, the measurement.
    fn open(
        &self,
        runtime: &'static Runtime,
        seat: &Seat<'_>,
        max_rows: usize,
    ) -> Result<(Engine, Served), ModelError> {
        let Self { card, folder, graph, provider } = self;
        let check = |cause| ModelError::Check { graph: graph.file.clone(), provider: *provider, cause };
        if !probe::subnormals_are_flushed(runtime).map_err(|error| check(error.into()))? {
            return Err(ModelError::Subnormals);
        }
        let mut engine = OrtDenoiser::open(runtime, folder, &card.manifest, graph, *provider)?;
        let golden = package::read(folder, &card.manifest, GOLDEN_FILE)
            .map_err(|error| ModelError::Golden(std::io::Error::other(error)))?;
        let cases = Case::all(card, graph, &golden).map_err(check)?;
        let insides = OrtInsides::read(&engine, folder, card, *provider, golden)?;
        let golden = check::replay(&mut engine, seat, &cases).map_err(check)?;
        engine.prove_by(cases.into_iter().min_by_key(Case::rows));
        let measured = check::measure(&mut engine, seat, card, max_rows).map_err(check)?;
        if *provider == Provider::Cpu {
            // A session keeps the memory of its largest call, and few will be as large as the measurement's were; on a card it
            // keeps what it has tuned as well. Where no other is to be had this one does: it has answered the golden.
            if let Err(error) = engine.rebuild() {
                let model = &card.manifest.name;
                tracing::warn!(model, %error, "the session is not built anew; it keeps what measuring took");
            }
        }
        let served = Served {
            provider: *provider,
            dtype: graph.dtype,
            graph: graph.file.clone(),
            runtime: runtime.version().to_owned(),
            golden,
            determinism: measured.determinism,
            costs: measured.costs,
            piece: measured.piece,
        };
        Ok((Engine { denoiser: Box::new(engine), insides: Box::new(insides) }, served))
    }
}

pub(super) fn worker_config(card: &Card, served: &Served, config: &Config) -> WorkerConfig {
    WorkerConfig {
        model: card.manifest.name.clone(),
        shape: card.shape(),
        out_channels: card.manifest.config.out_channels(),
        max_rows: config.max_rows,
        piece: served.piece,
        queue_limit: config.queue_limit,
        max_backlog: config.max_backlog,
        costs: served.costs.clone(),
        // On a card a new size is planned and tuned when it first comes; on the CPU padding is pure loss.
        padded: served.provider == Provider::Cuda,
        pinned: served.determinism.pinned_rows,
        scheduling: config.scheduling,
        study_quota: config.study_quota,
        insides: Inside::ALL
            .into_iter()
            .filter(|inside| inside.graph(&card.manifest, served.provider).is_some())
            .collect(),
        insides_idle: config.insides_idle,
    }
}

/// The denoiser for a provider: on CUDA f16 where the package has it, made for CUDA before made for any; on the CPU
/// f32, since f16 there is slower, off and not batch-invariant.
fn graph_for(manifest: &Manifest, provider: Provider) -> &Graph {
    let fits = |graph: &&Graph| match provider {
        Provider::Cuda => true,
        Provider::Cpu | Provider::Fake => graph.device == GraphDevice::Any && graph.dtype == Dtype::F32,
    };
    manifest
        .graphs
        .iter()
        .filter(|graph| graph.role == Role::Denoiser)
        .filter(fits)
        .max_by_key(|graph| (graph.dtype == Dtype::F16, graph.device == GraphDevice::Cuda))
        .expect("a valid manifest has a denoiser for any device in f32; this is a bug")
}

/// A dtype's name, as in the manifest.
pub fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::F16 => "f16",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::{TempDir, tempdir};
    use windowpane_diffusion::manifest::WEIGHTS_FILE;

    use super::*;
    use crate::testing::{golden, package, pin, rewrite, runtime};

    /// A folder with one good package, and the configuration to load it on the CPU with real ONNX Runtime.
    fn good() -> (TempDir, PathBuf, Config) {
        let folder = tempdir().unwrap();
        let path = package(folder.path(), "shoes");
        let config = Config {
            models: folder.path().to_owned(),
            device: Device::Cpu,
            ort_dylib: Some(runtime().library().to_owned()),
            max_rows: 4,
            ..Config::default()
        };
        (folder, path, config)
    }

    fn all_of(config: &Config, metrics: &Metrics) -> Result<Vec<Model>, LoadError> {
        Loader::new(config.clone(), metrics.clone()).all()
    }

    fn error(config: &Config) -> String {
        all_of(config, &Metrics::new()).expect_err("the package is broken").to_string()
    }

    #[test]
    fn a_package_is_served_after_its_golden() {
        let (_folder, _path, config) = good();
        let metrics = Metrics::new();
        let loader = Loader::new(config, metrics.clone());
        let models = loader.all().unwrap();
        let served = &models[0].served;
        assert_eq!((served.provider, served.dtype), (Provider::Cpu, Dtype::F32));
        assert_eq!((served.golden.cases, served.golden.relative_error), (2, 0.0));
        assert_eq!(served.determinism.class, DeterminismClass::Bitwise);
        let ready = || metrics.model_ready.with_label_values(&["shoes"]).get();
        assert_eq!(ready(), 0, "nobody serves it yet");
        loader.installed(&models[0]);
        assert_eq!((ready(), metrics.provider.with_label_values(&["shoes", "cpu", "f32"]).get()), (1, 1));
        assert_eq!(metrics.loads.with_label_values(&["done"]).get(), 1);
    }

    #[test]
    fn what_was_measured_of_a_model_goes_with_it() {
        let (_folder, _path, config) = good();
        let metrics = Metrics::new();
        let loader = Loader::new(config, metrics.clone());
        let model = loader.all().unwrap().remove(0);
        loader.installed(&model);
        let told = |name: &str| {
            let text = metrics.scrape(|_| ()).unwrap();
            text.lines().any(|line| line.starts_with(&format!("windowpane_{name}{{")))
        };
        let measured = ["model_load_seconds", "golden_relative_error", "execution_provider_info"];
        assert_eq!(measured.map(told), [true; 3]);
        loader.forget(&model);
        assert_eq!(measured.map(told), [false; 3]);
        assert_eq!(metrics.model_ready.with_label_values(&["shoes"]).get(), 0);
    }

    #[test]
    fn what_a_killed_export_leaves_is_no_package() {
        let (folder, path, config) = good();
        fs::create_dir(folder.path().join(".shoes.partial")).unwrap();
        fs::copy(path.join("manifest.json"), folder.path().join(".shoes.partial/manifest.json")).unwrap();
        assert_eq!(all_of(&config, &Metrics::new()).unwrap().len(), 1);
    }

    #[test]
    fn another_network_than_the_goldens_is_refused() {
        let (_folder, path, config) = good();
        let mut manifest = Package::open(&path).unwrap().manifest;
        fs::write(path.join(WEIGHTS_FILE), 0.51_f32.to_le_bytes()).unwrap();
        pin(&path, &mut manifest);
        assert!(error(&config).contains("golden case `a` differs"), "{}", error(&config));
        let metrics = Metrics::new();
        all_of(&config, &metrics).unwrap_err();
        assert_eq!(metrics.loads.with_label_values(&["failed"]).get(), 1);
        fs::write(path.join(GOLDEN_FILE), golden(|x| 0.51 * x)).unwrap();
        pin(&path, &mut manifest);
        all_of(&config, &Metrics::new()).unwrap();
    }

    #[test]
    fn a_graph_that_does_not_fit_its_manifest_is_refused() {
        let (_folder, path, config) = good();
        rewrite(&path, |m| {
            m.config.height = 8;
            let size = windowpane_diffusion::manifest::Dim::Fixed(8);
            m.graphs[0].inputs[0].shape[2] = size.clone();
            m.graphs[0].outputs[0].shape[2] = size;
        });
        assert!(error(&config).contains("x: f32[n,1,8,6]"), "{}", error(&config));
    }

    #[test]
    fn a_file_that_is_no_graph_is_refused() {
        let (_folder, path, config) = good();
        let mut manifest = Package::open(&path).unwrap().manifest;
        let file = path.join("denoiser.f32.onnx");
        let mut graph = fs::read(&file).unwrap();
        fs::write(&file, b"not a graph").unwrap();
        pin(&path, &mut manifest);
        assert!(error(&config).contains("denoiser.f32.onnx`: not a whole ONNX graph"), "{}", error(&config));
        // A whole one, of an operator that nobody knows.
        let at = graph.windows(3).position(|three| three == b"Mul").unwrap();
        graph[at..at + 3].copy_from_slice(b"Mux");
        fs::write(&file, graph).unwrap();
        pin(&path, &mut manifest);
        assert!(error(&config).contains("`denoiser.f32.onnx` on cpu"), "{}", error(&config));
    }

    #[test]
    fn every_bad_package_is_reported() {
        let (folder, path, config) = good();
        package(folder.path(), "boots");
        rewrite(&path, |m| m.name = "boots".to_owned());
        assert!(error(&config).contains("named `boots`, as another"), "{}", error(&config));
        fs::write(folder.path().join("boots").join(WEIGHTS_FILE), b"").unwrap();
        fs::write(path.join(WEIGHTS_FILE), b"").unwrap();
        let text = error(&config);
        assert!(text.contains("2 packages do not load") && text.contains("boots/weights.bin"), "{text}");
    }

    #[test]
    fn cuda_asked_for_and_missing_is_a_refusal() {
        let (_folder, _path, config) = good();
        // The tests run on the CPU build, whose CUDA provider does not exist.
        let text = error(&Config { device: Device::Cuda, ..config.clone() });
        assert!(text.contains("CUDA was asked for"), "{text}");
        let models = all_of(&Config { device: Device::Auto, ..config }, &Metrics::new()).unwrap();
        assert_eq!(models[0].served.provider, Provider::Cpu);
    }
}

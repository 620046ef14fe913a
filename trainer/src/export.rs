//! From a checkpoint to a model package: a graph per device, the weights once, a golden, a card and a manifest.
//!
//! `dit` mirrors the network as a `graph` of `ops`, with `attention`'s windows realised as `plan` says; `lower`
//! turns it into `onnx`, with `weights` beside it, `positions` among them; `golden` is the proof, computed by the network
//! itself. `eval` interprets a graph on tensors, for tests; `single` writes graphs of one operation, for benchmarks, and `unet`
//! those of a convolutional network, for tests of a runtime.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};
use windowpane_diffusion::manifest::{
    self, FileDigest, GraphDevice, Lineage, MANIFEST_FILE, Manifest, Role, SampleDefaults, TensorSpec,
    TensorType,
};
use windowpane_diffusion::{ModelConfig, Plan};

use crate::checkpoint::Meta;
use crate::config::{ExportTable, StoredWeights};
use crate::error::{Error, Result};
use crate::folder::NewFolder;
use crate::memory;
use crate::params::Layout;

pub mod adjoint;
pub mod attention;
mod card;
mod derivative;
pub mod dit;
pub mod error;
pub mod eval;
pub mod golden;
pub mod graph;
pub mod insides;
mod inverse;
mod linear;
pub mod lower;
pub mod networks;
pub mod onnx;
pub mod ops;
mod outer;
pub mod plan;
pub mod positions;
pub mod reference;
pub mod reopen;
mod scan;
mod scatter;
pub mod shape;
pub mod single;
pub mod tangent;
pub mod unet;
pub mod weights;

pub use error::ExportError;
use positions::Positions;
use shape::Dtype;
use weights::WeightFile;

/// Largest relative error at which an f32 graph matches its golden: a few roundings, summed over a network.
const TOLERANCE_F32: f64 = 1e-4;

/// The same for f16, whose unit of rounding is 8,192 times as large.
const TOLERANCE_F16: f64 = 3e-2;

/// All that a package is made of.
#[derive(Debug)]
pub struct ExportRequest<'a> {
    /// Name under which the model will be served.
    pub name: String,
    /// A sentence for people.
    pub description: String,
    /// What it is good for, and what not; a paragraph of the card.
    pub purpose: Option<String>,
    /// Licence of weights and data.
    pub licence: String,
    /// The network, its noise, prediction and classes.
    pub meta: &'a Meta,
    /// The parameters to ship (the moving average, as a rule), `[parameters]` f32.
    pub flat: &'a Tensor,
    /// How to sample where a request does not say.
    pub defaults: SampleDefaults,
    /// Where the weights came from.
    pub lineage: Lineage,
    /// How weights are stored, and which graphs there are.
    pub table: ExportTable,
    /// How the windows of the layers are computed; none for what is cheapest.
    pub plans: Option<Vec<Plan>>,
    /// How to leave out the graphs of the insides, said where they would not fit into memory; none where they are to stay.
    pub without_insides: Option<String>,
    /// Further files by name, such as `samples.png`.
    pub extra: Vec<(String, Vec<u8>)>,
    /// The package's folder.
    pub out: PathBuf,
    /// Whether a package that exists is replaced.
    pub force: bool,
}

/// Writes the package: into a folder beside `out`, which takes its name when everything is there. Errors: `out`
/// exists and is no package or not to be replaced, another process writing it, weights that cannot be stored, a manifest
/// that contradicts itself, a full disk.
pub fn export(request: &ExportRequest<'_>) -> Result<Manifest> {
    request.meta.validate()?;
    let golden = (request.table.insides, golden::LARGEST_BATCH);
    let without = request.without_insides.as_deref();
    memory::check_golden(&request.meta.config, golden, without, memory::available())?;
    let (out, folder) = (&request.out, NewFolder::begin(&request.out)?);
    // Only now, when no other process can put a package there. `--force` replaces a package, and nothing else that
    // happens to have the name.
    let manifest = out.join(MANIFEST_FILE);
    let package = match std::fs::metadata(&manifest) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io(&manifest)(error)),
        there => there.is_ok_and(|there| there.is_file()),
    };
    if out.exists() && !package {
        return Err(ExportError::NoPackage { path: out.clone() }.into());
    }
    if package && !request.force {
        return Err(ExportError::Exists { path: out.clone() }.into());
    }
    let manifest = write_files(request, folder.path())?;
    folder.commit()?;
    Ok(manifest)
}

/// The weights of a package, rounded as they are stored. The position table stays f32: the model computes it, so
/// rounding it would make another model.
pub fn stored_weights(config: &ModelConfig, flat: &Tensor, stored: StoredWeights) -> Result<WeightFile> {
    let dtype = match stored {
        StoredWeights::F32 => Dtype::F32,
        StoredWeights::F16 => Dtype::F16,
    };
    let layout = Layout::of(config);
    let views = layout.views(&flat.f_to_kind(Kind::Float)?);
    let mut weights = WeightFile::new();
    for entry in &layout.entries {
        weights.add(&entry.name, &views[&entry.name], dtype)?;
    }
    let positions = Positions::of(config);
    let shape: Vec<i64> = positions.shape.iter().map(|&n| n as i64).collect();
    weights.add(Positions::NAME, &Tensor::from_slice(&positions.values).f_reshape(shape)?, Dtype::F32)?;
    Ok(weights)
}

fn write_files(request: &ExportRequest<'_>, dir: &Path) -> Result<Manifest> {
    let config = &request.meta.config;
    let weights = stored_weights(config, request.flat, request.table.weights)?;
    let plans = request.plans.clone().unwrap_or_else(|| plan::plans(config));
    let show = request.table.insides;
    let cases = golden::cases(config, request.meta.schedule.steps, &rounded(config, &weights)?, show)?;

    let mut graphs = Vec::new();
    let mut add = |role, device, graph: graph::Graph, dtype: Dtype, cases: &[golden::Case]| -> Result<()> {
        let file = format!("{}.{dtype}.onnx", role_name(role));
        let doc = format!("{}: {} (computes in {dtype})", request.name, request.description);
        write(dir, &file, &lower::lower(&graph, &weights, &request.name, &doc)?.encode_to_vec())?;
        graphs.push(manifest::Graph {
            role,
            device,
            dtype: if dtype == Dtype::F16 { manifest::Dtype::F16 } else { manifest::Dtype::F32 },
            file,
            plan: plans.clone(),
            tolerance: if dtype == Dtype::F16 { TOLERANCE_F16 } else { TOLERANCE_F32 },
            golden: cases.iter().map(|case| case.name.clone()).collect(),
            inputs: graph.inputs().map(|value| spec(&graph, value)).collect(),
            outputs: graph.outputs().iter().map(|&id| spec(&graph, graph.value(id))).collect(),
        });
        Ok(())
    };
    let denoiser = |dtype| dit::denoiser(config, &plans, dtype);
    add(Role::Denoiser, GraphDevice::Any, denoiser(Dtype::F32)?, Dtype::F32, &cases.denoiser)?;
    if request.table.cuda {
        add(Role::Denoiser, GraphDevice::Cuda, denoiser(Dtype::F16)?, Dtype::F16, &cases.denoiser)?;
    }
    if show {
        let (any, f32) = (GraphDevice::Any, Dtype::F32);
        add(Role::Attention, any, insides::attention(config, &plans)?, f32, &cases.attention)?;
        add(Role::Jvp, any, insides::jvp(config, &plans)?, f32, &cases.jvp)?;
        add(Role::Vjp, any, insides::vjp(config, &plans)?, f32, &cases.vjp)?;
    }

    let path = dir.join(manifest::WEIGHTS_FILE);
    let mut file = BufWriter::new(File::create(&path).map_err(Error::io(&path))?);
    weights.write(&mut file).and_then(|()| file.flush()).map_err(Error::io(&path))?;
    let cases = [&cases.denoiser, &cases.attention, &cases.jvp, &cases.vjp].into_iter().flatten();
    golden::write(&dir.join(manifest::GOLDEN_FILE), cases)?;
    for (name, bytes) in &request.extra {
        if dir.join(name).exists() || [card::CARD_FILE, MANIFEST_FILE].contains(&name.as_str()) {
            return Err(ExportError::Taken { name: name.clone() }.into());
        }
        write(dir, name, bytes)?;
    }
    write(dir, card::CARD_FILE, card::text(request, &plans).as_bytes())?;

    let manifest = Manifest {
        format_version: manifest::FORMAT_VERSION,
        name: request.name.clone(),
        description: request.description.clone(),
        config: config.clone(),
        schedule: request.meta.schedule,
        prediction: request.meta.prediction,
        variance: request.meta.variance,
        value_range: [-1.0, 1.0],
        classes: request.meta.classes.clone(),
        defaults: request.defaults,
        graphs,
        files: digests(dir)?,
        lineage: request.lineage.clone(),
        licence: request.licence.clone(),
    };
    manifest.validate()?;
    write(dir, MANIFEST_FILE, manifest.to_json().as_bytes())?;
    Ok(manifest)
}

/// The rounded parameters as the flat buffer that the network binds to. `[parameters]`
fn rounded(config: &ModelConfig, weights: &WeightFile) -> Result<Tensor> {
    let layout = Layout::of(config);
    let parts = layout.entries.iter().map(|entry| Ok(weights.get(&entry.name)?.values.as_slice()));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    Ok(Tensor::from_slice(&parts.concat()))
}

/// A role in a file's name.
fn role_name(role: Role) -> &'static str {
    match role {
        Role::Denoiser => "denoiser",
        Role::Attention => "attention",
        Role::Jvp => "jvp",
        Role::Vjp => "vjp",
    }
}

/// An input or output as the manifest tells it.
fn spec(graph: &graph::Graph, value: &graph::Value) -> TensorSpec {
    let dim = |dim: &shape::Dim| match dim {
        shape::Dim::Fixed(n) => manifest::Dim::Fixed(*n),
        shape::Dim::Batch(_) => manifest::Dim::Named(graph.symbol(*dim)),
    };
    TensorSpec {
        name: value.name.clone(),
        dtype: match value.ty.dtype {
            Dtype::F32 => TensorType::F32,
            Dtype::F16 => TensorType::F16,
            Dtype::I64 => TensorType::I64,
            Dtype::I32 => unreachable!("indices are known at export, and no ports: this is a bug"),
        },
        shape: value.ty.shape.dims().iter().map(dim).collect(),
    }
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(name);
    std::fs::write(&path, bytes).map_err(Error::io(&path))
}

/// Digest and size of every file in `dir`.
fn digests(dir: &Path) -> Result<BTreeMap<String, FileDigest>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
        let path = entry.map_err(Error::io(dir))?.path();
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        files.insert(name, FileDigest { sha256, size: bytes.len() as u64 });
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use windowpane_diffusion::manifest::Class;
    use windowpane_diffusion::solver::{Sampler, TimeGrid};
    use windowpane_diffusion::{ScheduleConfig, Tile, Window};

    use super::reopen::reopen;
    use super::*;
    use crate::checkpoint::tests::small_meta;

    fn meta() -> Meta {
        let small = small_meta();
        let windows = vec![Window::local(3).unwrap(), Window::Global];
        Meta {
            config: ModelConfig { height: 8, patch: 1, depth: 2, classes: 1, windows, ..small.config },
            schedule: ScheduleConfig { steps: 1000, ..small.schedule },
            classes: vec![Class { name: "thing".into(), aliases: Vec::new() }],
            step: 7,
            ..small
        }
    }

    fn request<'a>(meta: &'a Meta, flat: &'a Tensor, out: PathBuf) -> ExportRequest<'a> {
        ExportRequest {
            name: "small".into(),
            description: "A network of a few hundred weights".into(),
            purpose: None,
            licence: "none".into(),
            meta,
            flat,
            defaults: SampleDefaults {
                sampler: Sampler::Ddim,
                grid: TimeGrid::Uniform,
                steps: 10,
                guidance_scale: 1.0,
                eta: 0.0,
                clip_x0: true,
            },
            lineage: Lineage {
                data: "none".into(),
                data_sha256: "0".repeat(64),
                images: 1,
                seed: 1,
                steps: 7,
                trainer: "test".into(),
                metrics: BTreeMap::from([("loss".into(), 0.5)]),
            },
            table: ExportTable { weights: StoredWeights::F16, cuda: true, insides: true },
            plans: None,
            without_insides: None,
            extra: vec![("samples.png".into(), vec![1, 2, 3])],
            out,
            force: false,
        }
    }

    #[test]
    fn a_package_is_whole_and_says_so() {
        let (meta, dir) = (meta(), tempfile::tempdir().unwrap());
        let flat = dit::tests::parameters(&meta.config);
        let out = dir.path().join("models/small");
        let mut wanted = request(&meta, &flat, out.clone());
        let manifest = export(&wanted).unwrap();
        let text = std::fs::read_to_string(out.join(MANIFEST_FILE)).unwrap();
        assert_eq!(Manifest::from_json(&text).unwrap(), manifest);
        let mut on_disk = digests(&out).unwrap();
        on_disk.remove(MANIFEST_FILE).unwrap();
        assert_eq!(on_disk, manifest.files);
        let names: Vec<_> = manifest.files.keys().map(String::as_str).collect();
        let graphs = ["attention.f32.onnx", "denoiser.f16.onnx", "denoiser.f32.onnx"];
        let rest = ["golden.safetensors", "jvp.f32.onnx", "samples.png", "vjp.f32.onnx", "weights.bin"];
        let expected = [&["CARD.md"][..], &graphs, &rest].concat();
        assert_eq!(names, expected);
        let card = std::fs::read_to_string(out.join("CARD.md")).unwrap();
        assert!(
            card.contains("![Samples](samples.png)") && card.contains("| windows | 3×3, global |"),
            "{card}"
        );

        assert!(card.contains("## What it is good for\n\nPictures of 8 × 6 pixels like those"), "{card}");

        // A second export is refused, or replaces the first and leaves nothing else behind.
        assert!(matches!(export(&wanted), Err(Error::Export(ExportError::Exists { .. }))));
        wanted.force = true;
        wanted.extra.clear();
        wanted.purpose = Some(" For tests.\n".into());
        export(&wanted).unwrap();
        let card = std::fs::read_to_string(out.join("CARD.md")).unwrap();
        assert!(card.contains("## What it is good for\n\nFor tests.\n\n## Model"), "{card}");
        assert!(!out.join("samples.png").exists());
        assert_eq!(std::fs::read_dir(dir.path().join("models")).unwrap().count(), 1);
    }

    #[test]
    fn a_package_is_written_again_from_its_own_weights() {
        let (meta, dir) = (meta(), tempfile::tempdir().unwrap());
        let flat = dit::tests::parameters(&meta.config);
        for stored in [StoredWeights::F16, StoredWeights::F32] {
            let out = dir.path().join("small");
            let mut first = request(&meta, &flat, out.clone());
            first.table.weights = stored;
            let purpose = "For tests.\n\n## Not\n\nFor more than that.\n\n## Model\n\nSmall.";
            first.purpose = Some(purpose.into());
            first.force = true;
            let manifest = export(&first).unwrap();
            let again = reopen(&out).unwrap();
            assert_eq!(again.table, first.table);
            assert_eq!((again.purpose.as_deref(), &again.extra), (Some(purpose), &first.extra));
            let second = ExportRequest {
                meta: &again.meta,
                flat: &again.flat,
                purpose: again.purpose.clone(),
                ..request(&meta, &flat, dir.path().join("again"))
            };
            let second = ExportRequest { table: again.table, force: true, ..second };
            assert_eq!(export(&second).unwrap().files, manifest.files);
        }
        // One that shows no insides stays one.
        let mut blind = request(&meta, &flat, dir.path().join("blind"));
        blind.table.insides = false;
        export(&blind).unwrap();
        assert_eq!(reopen(&blind.out).unwrap().table, blind.table);
        // A file of somebody's own that has the name of a graph which is made now.
        let extra = vec![("jvp.f32.onnx".to_owned(), vec![1, 2, 3])];
        let refused = ExportRequest { extra, ..request(&meta, &flat, dir.path().join("taken")) };
        let error = export(&refused).unwrap_err().to_string();
        assert!(
            error.contains("`jvp.f32.onnx` is the name of a file that an export writes itself"),
            "{error}"
        );
        assert!(!dir.path().join("taken").exists());

        std::fs::write(dir.path().join("small/weights.bin"), [0; 64]).unwrap();
        let error = reopen(&dir.path().join("small")).unwrap_err().to_string();
        assert!(error.contains("weights.bin: its sha256 is"), "{error}");
        let error = reopen(dir.path()).unwrap_err().to_string();
        assert!(error.contains("manifest.json: No such file"), "{error}");
    }

    #[test]
    fn what_is_no_package_is_not_replaced() {
        let (meta, dir) = (meta(), tempfile::tempdir().unwrap());
        let flat = dit::tests::parameters(&meta.config);
        let out = dir.path().join("small");
        let refused = |force: bool| {
            export(&ExportRequest { force, ..request(&meta, &flat, out.clone()) }).unwrap_err().to_string()
        };
        std::fs::write(&out, "mine").unwrap();
        for force in [false, true] {
            let error = refused(force);
            assert!(error.contains("is in the way") && !error.contains("--force"), "{error}");
        }
        assert_eq!(std::fs::read(&out).unwrap(), b"mine");
        std::fs::remove_file(&out).unwrap();
        std::fs::create_dir(&out).unwrap();
        std::fs::write(out.join("notes"), "mine").unwrap();
        for force in [false, true] {
            let error = refused(force);
            assert!(error.contains("is no package") && !error.contains("--force"), "{error}");
        }
        // Whether it exists is asked under the lock: the other one's answer comes first.
        let other = NewFolder::begin(&out).unwrap();
        assert!(refused(false).contains("another process of this machine is writing here"));
        drop(other);
        assert_eq!(std::fs::read(out.join("notes")).unwrap(), b"mine");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        // A manifest that cannot be looked at is not one that is missing.
        std::os::unix::fs::symlink(MANIFEST_FILE, out.join(MANIFEST_FILE)).unwrap();
        let error = refused(true);
        assert!(error.contains("small/manifest.json: Too many levels of symbolic links"), "{error}");
    }

    #[test]
    fn a_failed_export_leaves_nothing() {
        let (meta, dir) = (meta(), tempfile::tempdir().unwrap());
        let flat = dit::tests::parameters(&meta.config) * 1e9;
        let out = dir.path().join("small");
        // Weights that can be stored, but overflow on the way through the network.
        let overflowing = dit::tests::parameters(&meta.config) * 1e25;
        let mut large = request(&meta, &overflowing, out.clone());
        large.table.weights = StoredWeights::F32;
        let refused = export(&large).unwrap_err().to_string();
        assert!(refused.contains("the network's output is not finite"), "{refused}");
        let refused = export(&request(&meta, &flat, out)).unwrap_err();
        assert!(matches!(refused, Error::Export(ExportError::WeightValue { .. })), "{refused}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn lowered_graphs_keep_the_checkpoints_names() {
        let meta = meta();
        let flat = dit::tests::parameters(&meta.config);
        let weights = stored_weights(&meta.config, &flat, StoredWeights::F16).unwrap();
        let plans = [Plan::Tiles(Tile::square(2)), Plan::Dense];
        for dtype in [Dtype::F32, Dtype::F16] {
            let graph = dit::denoiser(&meta.config, &plans, dtype).unwrap();
            let model = lower::lower(&graph, &weights, "small", "").unwrap();
            let proto = onnx::ModelProto::decode(&model.encode_to_vec()[..]).unwrap().graph.unwrap();
            for entry in &Layout::of(&meta.config).entries {
                let found = proto.initializer.iter().find(|t| t.name.as_ref() == Some(&entry.name));
                let dims = &found.expect("every parameter is there").dims;
                assert_eq!(dims, &entry.shape, "{}", entry.name);
            }
            let count = |op: &str| proto.node.iter().filter(|n| n.op_type.as_deref() == Some(op)).count();
            // Six parts of each block's modulation are one Split each, and the final layer's two.
            assert_eq!((count("Split"), count("Slice")), (3, 0));
            assert!(proto.node.iter().any(|n| n.name.as_deref() == Some("blocks.1.attn.softmax")));
            // No constant is written twice.
            let constants = proto.initializer.iter().filter(|t| t.raw_data.is_some());
            let contents: Vec<_> = constants.map(|t| (t.data_type, &t.dims, &t.raw_data)).collect();
            let distinct: std::collections::HashSet<_> = contents.iter().collect();
            assert_eq!(distinct.len(), contents.len());
            // Every name that is read has been written before.
            let mut known: std::collections::HashSet<&String> =
                proto.initializer.iter().filter_map(|t| t.name.as_ref()).collect();
            known.extend(proto.input.iter().filter_map(|v| v.name.as_ref()));
            for node in &proto.node {
                assert!(node.input.iter().all(|name| known.contains(name)), "{node:?}");
                assert!(node.output.iter().all(|name| known.insert(name)), "{node:?}");
            }
            assert!(proto.output.iter().all(|v| known.contains(v.name.as_ref().unwrap())));
        }
    }
}

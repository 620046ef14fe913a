//! How fast is a graph on a device? Calls of a package's graph in ONNX Runtime, with the settings of the server's sessions, for
//! a number of batch sizes and in three ways: `run`, from and into the host's memory, as the server calls it; `bound`, with
//! inputs and output that lie on the device; and `graph`, the same replayed as a CUDA graph. What `run` takes longer than
//! `bound` is what crossing to the device and back costs.
//!
//! Run by `cargo run --release -p windowpane-server --example device -- FILE.onnx… --rows 1,8,64`; `tests/gpu/check.py`
//! compares it with PyTorch. One line of JSON a file, way and size: milliseconds of every call after the first ones, or why
//! there are none. `--exhaust` asks for more and more rows until the device has no memory for them, and then whether a
//! small call still gives the same. `--profile` lets ONNX Runtime write what each node of the graph takes; on a GPU that is
//! the node's time there only where launches wait for their kernels (`CUDA_LAUNCH_BLOCKING=1`).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use ort::environment::Environment;
use ort::ep;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{IoBinding, RunOptions, Session};
use ort::value::{DynTensor, Outlet, Tensor, TensorElementType};
use serde_json::{Value, json};
use windowpane_diffusion::noise;
use windowpane_server::args::Device;
use windowpane_server::engine::dylib;

/// Times the calls of graphs.
#[derive(Debug, Parser)]
struct Args {
    /// Graphs, each beside the weights of its package.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// `cpu` or `cuda`.
    #[arg(long, default_value = "cuda")]
    device: String,
    /// Rows of a call, or vectors of a graph that takes some.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16,32,64,128")]
    rows: Vec<usize>,
    /// Ways to call.
    #[arg(long, value_delimiter = ',', default_value = "run,bound,graph")]
    ways: Vec<String>,
    /// Seconds of calls of a size; three calls at least.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Ask for more rows until there is no memory, instead of timing.
    #[arg(long)]
    exhaust: bool,
    /// Also write ONNX Runtime's profile, to a file whose name begins so: of one file, way and number of rows.
    #[arg(long, value_name = "PREFIX", conflicts_with = "exhaust")]
    profile: Option<PathBuf>,
}

/// Calls before the clock starts: the first plans its memory, and a CUDA graph is caught in the second.
const WARM_UP: usize = 3;

/// Rows beyond which a device is not exhausted any more.
const MOST_ROWS: usize = 1 << 16;

/// A graph on a device.
struct Opened {
    session: Session,
    cuda: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let cuda = match args.device.as_str() {
        "cpu" => false,
        "cuda" => true,
        other => bail!("`--device {other}`: expected cpu or cuda"),
    };
    let library = dylib::locate(None, if cuda { Device::Cuda } else { Device::Cpu })?;
    let environment = ort::init_from(library)?.with_telemetry(false).build()?;
    let profile = args.profile.as_deref();
    if profile.is_some() && [args.files.len(), args.ways.len(), args.rows.len()] != [1; 3] {
        bail!("`--profile`: expected one file, one of `--ways` and one of `--rows`");
    }
    for file in &args.files {
        let open = |graph| Opened::open((&environment, profile), file, cuda, graph);
        if args.exhaust {
            println!("{}", exhaust(&mut open(false)?, file)?);
            continue;
        }
        for way in &args.ways {
            let told = |rows: usize, found: Result<Vec<f64>>| {
                let mut line = json!({"file": file, "way": way, "rows": rows, "device": args.device});
                match found {
                    Ok(milliseconds) => line["milliseconds"] = json!(milliseconds),
                    Err(error) => line["error"] = json!(format!("{error:#}")),
                }
                println!("{line}");
            };
            let mut opened = match open(way == "graph") {
                Ok(opened) => opened,
                Err(error) => {
                    told(0, Err(error));
                    continue;
                }
            };
            for &rows in &args.rows {
                told(rows, opened.time(way, rows, Duration::from_secs_f64(args.seconds)));
            }
            if profile.is_some() {
                let written = opened.session.end_profiling()?;
                println!("{}", json!({"file": file, "way": way, "profile": written, "warm_up": WARM_UP}));
            }
        }
    }
    Ok(())
}

// === impl Opened ===

impl Opened {
    fn open(
        (environment, profile): (&Environment, Option<&Path>),
        file: &Path,
        cuda: bool,
        graph: bool,
    ) -> Result<Self> {
        ensure!(cuda || !graph, "the CPU has no CUDA graphs");
        let session =
            session((environment, profile), file, cuda, graph).with_context(|| file.display().to_string())?;
        Ok(Self { session, cuda })
    }

    fn time(&mut self, way: &str, rows: usize, span: Duration) -> Result<Vec<f64>> {
        let inputs = self.inputs(rows)?;
        let mut times = Vec::new();
        let mut calls = |call: &mut dyn FnMut() -> Result<()>| {
            for _ in 0..WARM_UP {
                call()?;
            }
            let began = Instant::now();
            while times.len() < 3 || began.elapsed() < span {
                let start = Instant::now();
                call()?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            anyhow::Ok(())
        };
        if way == "run" {
            let session = &mut self.session;
            calls(&mut || {
                let named: Vec<(String, &DynTensor)> =
                    inputs.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
                session.run(named)?;
                Ok(())
            })?;
            return Ok(times);
        }
        ensure!(["bound", "graph"].contains(&way), "`--ways {way}`: expected run, bound or graph");
        let binding = self.bind(&inputs)?;
        let mut options = RunOptions::new()?;
        // A graph is caught for each size, under its number.
        options
            .set("gpu_graph_annotation_id", if way == "graph" { rows.to_string() } else { "-1".into() })?;
        let session = &mut self.session;
        calls(&mut || {
            session.run_binding_with_options(&binding, &options)?;
            Ok(())
        })?;
        Ok(times)
    }

    /// Normal values for every input; timesteps in the middle, and class 0.
    fn inputs(&self, rows: usize) -> Result<Vec<(String, DynTensor)>> {
        let vectors = self.session.inputs().iter().any(|input| input.name() == "vectors");
        let tensor = |input: &Outlet| {
            let rows = if vectors && input.name() != "vectors" { 1 } else { rows };
            let shape = shape(input, rows)?;
            let count = shape.iter().product::<i64>() as usize;
            let tensor = match (input.dtype().tensor_type(), input.name()) {
                (Some(TensorElementType::Int64), _) => {
                    Tensor::from_array((shape, vec![0_i64; count]))?.into_dyn()
                }
                (Some(TensorElementType::Float32), "t") => {
                    Tensor::from_array((shape, vec![412.0_f32; count]))?.into_dyn()
                }
                (Some(TensorElementType::Float32), _) => {
                    Tensor::from_array((shape, noise::normal(3, 0, count)))?.into_dyn()
                }
                (other, name) => bail!("input `{name}` is {other:?}, expected f32 or i64"),
            };
            anyhow::Ok((input.name().to_owned(), tensor.downcast()?))
        };
        self.session.inputs().iter().map(tensor).collect()
    }

    /// Everything on the device.
    fn bind(&self, inputs: &[(String, DynTensor)]) -> Result<IoBinding> {
        let at = if self.cuda { AllocationDevice::CUDA } else { AllocationDevice::CPU };
        let mut binding = self.session.create_binding()?;
        for (name, tensor) in inputs {
            if self.cuda {
                binding.bind_input(name, &tensor.to(at.clone(), 0)?)?;
            } else {
                binding.bind_input(name, tensor)?;
            }
        }
        let memory = MemoryInfo::new(at, 0, AllocatorType::Device, MemoryType::Default)?;
        let allocator = Allocator::new(&self.session, memory)?;
        let batch = inputs.iter().map(|(_, tensor)| tensor.shape()[0]).max().context("no inputs")?;
        for output in self.session.outputs() {
            let shape = shape(output, batch as usize)?;
            binding.bind_output(output.name(), Tensor::<f32>::new(&allocator, shape)?)?;
        }
        Ok(binding)
    }
}

/// With the server's settings: no TF32, nothing that falls back to the CPU.
fn session(
    (environment, profile): (&Environment, Option<&Path>),
    file: &Path,
    cuda: bool,
    graph: bool,
) -> ort::Result<Session> {
    let mut builder = Session::builder(environment)?
        .with_flush_to_zero()?
        .with_deterministic_compute(true)?
        .with_optimization_level(GraphOptimizationLevel::All)?;
    if cuda {
        let provider = ep::CUDA::default().with_tf32(false).with_cuda_graph(graph).build();
        builder =
            builder.with_execution_providers([provider.error_on_failure()])?.with_disable_cpu_fallback()?;
    }
    if let Some(prefix) = profile {
        builder = builder.with_profiling(prefix)?;
    }
    builder.commit_from_file(file)
}

/// The shape of an input or output of so many rows.
fn shape(outlet: &Outlet, rows: usize) -> Result<Vec<i64>> {
    let shape = outlet.dtype().tensor_shape().context("a port is a tensor")?;
    Ok(shape.iter().map(|&size| if size < 0 { rows as i64 } else { size }).collect())
}

/// Twice as many rows each time, until there is no memory for them; then one row again, whose prediction has to be the same.
fn exhaust(opened: &mut Opened, file: &Path) -> Result<Value> {
    let of = |opened: &mut Opened, rows: usize| -> Result<Vec<f32>> {
        let inputs = opened.inputs(rows)?;
        let outputs = opened.session.run(inputs)?;
        Ok(outputs[0].try_extract_tensor::<f32>()?.1.to_vec())
    };
    let before = of(opened, 1)?;
    let mut rows = 1;
    let error = loop {
        rows *= 2;
        if rows > MOST_ROWS {
            break None;
        }
        if let Err(error) = of(opened, rows) {
            break Some(format!("{error:#}"));
        }
    };
    let same = of(opened, 1)?.iter().zip(&before).all(|(a, b)| a.to_bits() == b.to_bits());
    Ok(json!({"file": file, "rows": rows, "error": error, "the_same_afterwards": same}))
}

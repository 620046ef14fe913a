//! What was typed. The commands stand in the order of a model's life; each one's help says what it reads and what
//! it leaves behind.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

use crate::config::MAX_STEPS;
use crate::export::networks::Networks;
use crate::train::Precision;

/// Trains diffusion transformers with windowed attention, and exports them as model packages.
#[derive(Debug, Parser)]
#[command(name = "windowpane-trainer", version, about, long_about = None, after_help = EXAMPLES)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
A first try, which needs no data and takes minutes:
  cargo xtask train trainer/recipes/toy.toml
  cargo xtask sample runs/toy --out toy.png

On images of your own:
  cargo xtask prepare trainer/recipes/fashion-dit.toml --data DIR
  cargo xtask train trainer/recipes/fashion-dit.toml --data DIR
  cargo xtask export runs/fashion-dit --out models/fashion-dit";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read a recipe's images: count them, check every one, and draw a contact sheet.
    Prepare(Prepare),
    /// Train a recipe into a run folder: checkpoints, logs and grids of samples.
    Train(Train),
    /// Draw a grid of samples from a run or a checkpoint.
    Sample(Sample),
    /// Measure a run that is not training: the PSNR gap between training and held-out images.
    Eval(Eval),
    /// Write a run as a model package that the server can load.
    Export(Export),
    /// Write a package anew from its own weights: graphs, golden and card as this version of the trainer makes them.
    Refresh(Refresh),
    /// Write one-operation attention graphs, to measure tiles against masks with, or networks to measure derivatives with, or a
    /// UNet to test a runtime with.
    ExportOps(ExportOps),
}

/// `prepare`.
#[derive(Debug, ClapArgs)]
pub struct Prepare {
    /// The recipe (TOML).
    pub recipe: PathBuf,
    /// Where the images are, instead of the recipe's `data.path`.
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Where to draw the contact sheet; folders above it are made.
    #[arg(long, value_name = "PNG", default_value = "contact-sheet.png", value_parser = png)]
    pub out: PathBuf,
}

/// Flags that several commands share.
#[derive(Debug, Clone, ClapArgs)]
pub struct Compute {
    /// Device: `cpu`, `cuda`, `cuda:1`, or `auto` for the GPU where there is one.
    #[arg(long, default_value = "auto", env = "WINDOWPANE_DEVICE")]
    pub device: String,
    /// CPU threads of libtorch; 0 for one a core.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

/// `train`.
#[derive(Debug, ClapArgs)]
pub struct Train {
    /// The recipe (TOML).
    pub recipe: PathBuf,
    /// Where the images are, instead of the recipe's `data.path`.
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// The run's folder. [default: runs/NAME, the recipe's name]
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Go on from the newest checkpoint of the run, as it began: only what does not decide what is learnt may differ.
    #[arg(long)]
    pub resume: bool,
    /// Begin with the weights of a run (their moving average), of a package, or of a `.safetensors` file, also a state dict of
    /// facebookresearch/DiT, instead of random ones. They have to be of the recipe's model; steps, the rate's warm-up and the
    /// moments begin anew, and so does the order of the images, unless the recipe has another seed.
    #[arg(long, value_name = "PATH", conflicts_with = "resume")]
    pub from: Option<PathBuf>,
    /// Train this many steps instead of the recipe's.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=MAX_STEPS))]
    pub steps: Option<u64>,
    /// Use the first N images only.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub images: Option<u32>,
    /// Stop after this many minutes, with a checkpoint.
    #[arg(long, value_parser = minutes)]
    pub minutes: Option<f64>,
    /// What the network computes in; weights and moments stay f32. [default: bf16 on a GPU, f32 on the CPU]
    #[arg(long, value_enum)]
    pub precision: Option<Precision>,
    /// Checkpoints kept.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: u32,
    /// Where to compute.
    #[command(flatten)]
    pub compute: Compute,
}

/// `sample`.
#[derive(Debug, ClapArgs)]
pub struct Sample {
    /// A run's folder (its newest checkpoint) or a `.safetensors` file of weights.
    pub from: PathBuf,
    /// Where to draw the grid; folders above it are made.
    #[arg(long, value_name = "PNG", default_value = "samples.png", value_parser = png)]
    pub out: PathBuf,
    /// Images of every class (in all, for an unconditional model).
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub per_class: u16,
    /// Seed of the first image, 0 to 2^62; image i has seed + i.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1 << 62))]
    pub seed: u64,
    /// Solver steps. [default: the recipe's]
    #[arg(long)]
    pub steps: Option<usize>,
    /// Classifier-free guidance; 1 is none. [default: the recipe's]
    #[arg(long)]
    pub guidance: Option<f64>,
    /// Use the raw weights instead of their moving average.
    #[arg(long)]
    pub raw: bool,
    /// The weights are no run's, but a state dict of facebookresearch/DiT as safetensors: the recipe says what model.
    #[arg(long, value_name = "RECIPE", conflicts_with = "raw")]
    pub recipe: Option<PathBuf>,
    /// Also write every image by itself into this folder, as `CLASS/SEED.png`.
    #[arg(long, value_name = "DIR")]
    pub each: Option<PathBuf>,
    /// Where to compute.
    #[command(flatten)]
    pub compute: Compute,
}

/// `eval`.
#[derive(Debug, ClapArgs)]
pub struct Eval {
    /// A run's folder.
    pub run: PathBuf,
    /// Where the run's images are by now, instead of the recipe's `data.path`. Other images are refused.
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Images of each side, K in the paper.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub images: u32,
    /// Respaced timesteps.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub timesteps: u32,
    /// Use the raw weights instead of their moving average.
    #[arg(long)]
    pub raw: bool,
    /// Where to compute.
    #[command(flatten)]
    pub compute: Compute,
}

/// `export`.
#[derive(Debug, ClapArgs)]
pub struct Export {
    /// A run's folder.
    pub run: PathBuf,
    /// The package's folder. [default: models/NAME, the recipe's name]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Replace a package that is already there, and nothing else that is.
    #[arg(long)]
    pub force: bool,
    /// Export the raw weights instead of their moving average; the run's samples, drawn with that, stay behind.
    #[arg(long)]
    pub raw: bool,
    /// Let the first 300 training images and 300 held-out images travel along, so that a server can measure the PSNR gap
    /// without being sent any. Whoever has the package has them.
    #[arg(long)]
    pub reference: bool,
    /// With `--reference`: where the run's images are by now, instead of the recipe's `data.path`. Other images are refused.
    #[arg(long, value_name = "PATH", requires = "reference")]
    pub data: Option<PathBuf>,
}

/// `refresh`.
#[derive(Debug, ClapArgs)]
pub struct Refresh {
    /// The package's folder. It is replaced, as one.
    pub package: PathBuf,
    /// Leave it as it is, and write into this folder.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Add the graphs that show the network's insides to a package that has none.
    #[arg(long)]
    pub insides: bool,
}

/// `export-ops`.
#[derive(Debug, ClapArgs)]
pub struct ExportOps {
    /// The folder to write into.
    pub out: PathBuf,
    /// Instead packages with random weights: two to measure products with the Jacobian, or those that a GPU is measured with.
    #[arg(long, value_name = "SET", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "jacobian")]
    pub networks: Option<Networks>,
    /// Instead the three graphs of a small convolutional UNet with random weights, and libtorch's answers.
    #[arg(long, conflicts_with = "networks")]
    pub unet: bool,
}

/// The path of a picture to write.
fn png(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("png")) {
        Ok(path)
    } else {
        Err("expected a path that ends in .png, the only format written".to_owned())
    }
}

/// A length of time; at most a million minutes, which is two years.
fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if minutes > 0.0 && minutes <= 1e6 => Ok(minutes),
        _ => Err("expected a number above 0 and at most 1000000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn values_out_of_range_are_refused_before_any_work() {
        for (args, expected) in [
            (&["train", "x", "--minutes", "1e300"][..], "at most 1000000"),
            (&["train", "x", "--minutes", "nan"], "at most 1000000"),
            (&["train", "x", "--minutes=-1"], "above 0"),
            (&["train", "x", "--minutes", "0"], "above 0"),
            (&["train", "x", "--steps", "0"], "0 is not in 1..=4294967294"),
            (&["train", "x", "--steps", "4294967295"], "is not in 1..=4294967294"),
            (&["train", "x", "--images", "0"], "0 is not in 1..=4294967295"),
            (&["train", "x", "--keep", "0"], "0 is not in 1..=4294967295"),
            (&["sample", "x", "--out", "o.xyz"], "ends in .png"),
            (&["prepare", "x", "--out", "png"], "ends in .png"),
            (&["eval", "x", "--images", "0"], "0 is not in 1..=100000000"),
        ] {
            let error = Args::try_parse_from([&["trainer"][..], args].concat()).unwrap_err().to_string();
            assert!(error.contains(expected), "{args:?}: {error}");
        }
        Args::try_parse_from(["trainer", "train", "x", "--minutes", "0.5"]).unwrap();
        Args::try_parse_from(["trainer", "sample", "x", "--out", "a/o.PNG"]).unwrap();
    }
}

//! `cargo xtask …`: the words that people, the README and CI share. This file owns the command line and
//! nothing else; each command is one function in a file of its own, and whatever needs libraries gets them
//! from [`setup`]. It is compiled before anything else in the project, so it stays light: no async, no TLS,
//! no JSON.

mod bench;
mod ci;
mod fuzz;
mod gpu;
mod openapi;
mod paths;
mod process;
mod report;
mod sbom;
mod serve;
mod setup;
mod test;
mod trainer;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::trainer::Verb;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Set up, serve, train, test: every command of this repository",
    after_help = "The first `serve`, `train` or `test` downloads what it needs into the cache folder (about \
                  24 MB to serve, 544 MB more to train or test) and later ones start at once. Only Linux \
                  on x86-64 is supported."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Download, check and lay out ONNX Runtime and libtorch; does nothing when they are in place
    Setup(setup::SetupArgs),
    /// Print the variables that plain `cargo` needs for the trainer: eval "$(cargo xtask env)"
    Env,
    /// Serve the models folder over HTTP (release build; sets up ONNX Runtime first)
    #[command(after_help = "Arguments go to the server: --port, --models DIR, --device cpu|cuda|auto, …\n\
                            `cargo xtask serve -- --help` lists them all.")]
    Serve(Handed),
    /// Read a recipe's images: count them, check every one, and draw a contact sheet
    #[command(after_help = HANDED_TO_TRAINER)]
    Prepare(Handed),
    /// Train a model from a recipe (release build; sets up libtorch first)
    #[command(after_help = HANDED_TO_TRAINER)]
    Train(Handed),
    /// Draw a grid of samples from a run, a checkpoint or another's DiT
    #[command(after_help = HANDED_TO_TRAINER)]
    Sample(Handed),
    /// Measure a checkpoint
    #[command(after_help = HANDED_TO_TRAINER)]
    Eval(Handed),
    /// Write a checkpoint as a model package that the server loads
    #[command(after_help = HANDED_TO_TRAINER)]
    Export(Handed),
    /// Write a package anew from its own weights, as this version exports it
    #[command(after_help = HANDED_TO_TRAINER)]
    Refresh(Handed),
    /// Write graphs of one attention each, which the benchmarks time as tiles and as masks
    #[command(after_help = HANDED_TO_TRAINER)]
    ExportOps(Handed),
    /// Set up, then run every test of every crate
    #[command(
        after_help = "Arguments go to `cargo test`: `cargo xtask test -p suite` runs the integration suite \
                            alone, and what follows `--` goes to the test binaries."
    )]
    Test(Handed),
    /// All that CI runs: the tests, formatting, lints, documentation, and the rules about who may depend on
    /// whom
    Ci,
    /// Measure: the server under load, or what a window costs
    #[command(subcommand)]
    Bench(Bench),
    /// Measure on a GPU all that is said of GPUs, in parts that go on where they stopped (needs Python with torch)
    #[command(
        after_help = "Arguments go to the list; `cargo xtask gpu-check -- --help` lists them and the parts.\n\
                            What it measures, and how to run it on a machine without cargo: tests/gpu/README.md."
    )]
    GpuCheck(gpu::GpuArgs),
    /// Feed every reader of foreign bytes what nobody would send, for a bounded time (nightly, cargo-fuzz)
    Fuzz(fuzz::FuzzArgs),
    /// Storm a server for as long as one likes, every answer checked: --minutes N
    #[command(after_help = "Arguments go to the soak; `cargo xtask soak -- --help` lists them.")]
    Soak(Handed),
    /// Rewrite openapi/openapi.json from the running code
    Openapi,
    /// Print what is in a program, as a CycloneDX bill of materials
    Sbom(sbom::SbomArgs),
}

/// The benchmarks.
#[derive(Subcommand)]
enum Bench {
    /// The server under load, against other ways to serve: most of an hour, or --quick
    #[command(after_help = "Arguments go to the benchmark: --quick, --model DIR, --turns N, …\n\
                            `cargo xtask bench serve -- --help` lists them all; what follows a second `--` goes \
                            to the server.\nHow to read the result: server/benches/README.md.")]
    Serve(Handed),
    /// One attention operation in every plan: tiles against masks (builds the trainer, which writes its graphs)
    #[command(after_help = "Arguments go to criterion.")]
    Window(Handed),
}

/// Arguments that are not ours to read.
#[derive(Args)]
struct Handed {
    /// Handed on as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

const HANDED_TO_TRAINER: &str =
    "Arguments go to the trainer; `cargo xtask train -- --help` (likewise for the others) lists them.";

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::Env => setup::print_env(),
        Command::Serve(handed) => serve::run(&handed.args),
        Command::Prepare(handed) => trainer::run(Verb::Prepare, &handed.args),
        Command::Train(handed) => trainer::run(Verb::Train, &handed.args),
        Command::Sample(handed) => trainer::run(Verb::Sample, &handed.args),
        Command::Eval(handed) => trainer::run(Verb::Eval, &handed.args),
        Command::Export(handed) => trainer::run(Verb::Export, &handed.args),
        Command::Refresh(handed) => trainer::run(Verb::Refresh, &handed.args),
        Command::ExportOps(handed) => trainer::run(Verb::ExportOps, &handed.args),
        Command::Test(handed) => test::run(&handed.args),
        Command::Ci => ci::run(),
        Command::Bench(Bench::Serve(handed)) => bench::serve(&handed.args),
        Command::Bench(Bench::Window(handed)) => bench::window(&handed.args),
        Command::GpuCheck(args) => gpu::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Soak(handed) => bench::soak(&handed.args),
        Command::Openapi => openapi::run(),
        Command::Sbom(args) => sbom::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_after_serve_are_handed_on() {
        let cli =
            Cli::try_parse_from(["cargo xtask", "serve", "--port", "9000", "--device", "cpu", "--help"])
                .unwrap();
        let Command::Serve(handed) = cli.command else { panic!("not serve") };
        assert_eq!(handed.args, ["--port", "9000", "--device", "cpu", "--help"]);
    }

    #[test]
    fn a_double_dash_hands_on_help() {
        let cli = Cli::try_parse_from(["cargo xtask", "train", "--", "--help"]).unwrap();
        let Command::Train(handed) = cli.command else { panic!("not train") };
        assert_eq!(handed.args, ["--help"]);
    }

    #[test]
    fn a_second_double_dash_survives() {
        let cli = Cli::try_parse_from(["cargo xtask", "test", "-p", "suite", "--", "--nocapture"]).unwrap();
        let Command::Test(handed) = cli.command else { panic!("not test") };
        assert_eq!(handed.args, ["-p", "suite", "--", "--nocapture"]);
    }

    #[test]
    fn a_benchmark_is_named() {
        let cli =
            Cli::try_parse_from(["cargo xtask", "bench", "serve", "--quick", "--", "--queue-limit", "9"]);
        let Command::Bench(Bench::Serve(handed)) = cli.unwrap().command else { panic!("not bench serve") };
        assert_eq!(handed.args, ["--quick", "--", "--queue-limit", "9"]);
        assert!(Cli::try_parse_from(["cargo xtask", "bench"]).is_err());
    }

    #[test]
    fn a_gpu_is_checked_with_flags_of_the_list() {
        let words = ["cargo xtask", "gpu-check", "--small", "--device", "cpu"];
        let Command::GpuCheck(args) = Cli::try_parse_from(words).unwrap().command else { panic!("not gpu") };
        assert_eq!((args.pack, args.args.len()), (None, 3));
        let words = ["cargo xtask", "gpu-check", "--pack", "folder"];
        let Command::GpuCheck(args) = Cli::try_parse_from(words).unwrap().command else { panic!("not gpu") };
        assert_eq!((args.pack, args.args.len()), (Some("folder".into()), 0));
    }

    #[test]
    fn an_unknown_command_is_refused() {
        assert!(Cli::try_parse_from(["cargo xtask", "sreve"]).is_err());
        assert!(Cli::try_parse_from(["cargo xtask", "setup", "--gpu"]).is_err());
    }
}

//! The trainer's command line: arguments to calls, errors to a sentence and exit code 1.

use std::process::ExitCode;

use clap::Parser;
use windowpane_trainer::args::{Args, Command};
use windowpane_trainer::commands;
use windowpane_trainer::error::sentence;

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Prepare(args) => commands::prepare(args),
        Command::Train(args) => commands::train(args),
        Command::Sample(args) => commands::sample(&args),
        Command::Eval(args) => commands::eval(&args),
        Command::Export(args) => commands::export(&args),
        Command::Refresh(args) => commands::refresh(&args),
        Command::ExportOps(args) => commands::export_ops(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", sentence(error.chain()));
            ExitCode::FAILURE
        }
    }
}

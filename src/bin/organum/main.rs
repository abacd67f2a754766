//! The command line `organum`; it parses, calls the library and prints.
#![forbid(unsafe_code)]

mod args;
mod batch;
mod bench;
mod compiled;
mod convert;
mod demo;
mod device;
mod evaluate;
mod fail;
mod habits;
mod infer;
mod info;
mod inspect;
mod interrupt;
mod models;
mod npy;
mod output;
mod outputs;
mod plan;
mod plot;
mod profile;
mod report;
mod segment;
mod slicer;
mod tune;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    let arguments = slicer::arguments(std::env::args_os());
    if slicer::asked(&arguments) {
        output::say(&slicer::description());
        return ExitCode::SUCCESS;
    }
    let cli = Cli::parse_from(arguments);
    let cancel = interrupt::handle();
    let done = match &cli.command {
        Command::Demo(a) => demo::run(a),
        Command::Segment(a) => segment::run(a),
        Command::Stats(a) => outputs::stats(a),
        Command::Picture(a) => habits::picture(a),
        Command::Report(a) => report::run(a),
        Command::Surfaces(a) => habits::surfaces(a),
        Command::Infer(a) => infer::run(a),
        Command::Plan(a) => plan::run(a),
        Command::Inspect(a) => inspect::run(a),
        Command::Convert(a) => convert::run(a),
        Command::Devices(a) => info::devices(a),
        Command::Evaluate(a) => evaluate::run(a),
        Command::Bench(a) => bench::run(a),
        Command::Tune(a) => tune::run(a),
        Command::Doctor(a) => habits::doctor(a),
        Command::Completions(a) => habits::completions(a),
        Command::Man(a) => habits::man(a),
    };
    match done {
        Ok(()) => {
            output::say_waiting();
            ExitCode::SUCCESS
        }
        // whatever failed because of it
        Err(_) if cancel.is_raised() => {
            interrupt::say();
            ExitCode::from(interrupt::CODE)
        }
        Err(failure) => {
            output::note(&format!("organum: {}", failure.message));
            ExitCode::from(failure.code)
        }
    }
}

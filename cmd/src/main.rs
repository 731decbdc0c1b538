//! The garden command: the server, and the verbs for developers and operators.
//!
//! Each verb is a module of [`commands`] with its argument structure and its function. Every verb
//! speaks to a server through `garden::client`; where none runs, `run` hosts one ([`host`]).
//! Exit codes are docker's: the process's own, 125 for a failure of Garden's, 126 and 127 for an
//! executable that cannot be run or found, 2 for a command line that makes no sense.

mod commands;
mod failure;
mod host;
mod lab;
mod logging;
mod progress;
mod reach;
mod registry;
mod settings;
mod streams;
mod table;
mod terminal;
mod values;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::{
    attach, config, cp, create, doctor, events, exec, health, inspect, limits, ls, pea, pull,
    repro, rm, rootfs, run, scale, server, stop, stream_in, stream_out, teardown, wait,
};
use crate::reach::Target;

/// Runs and looks after containers and their sidecars ("peas").
#[derive(Debug, Parser)]
#[command(name = "garden", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::RunArgs),
    Create(create::CreateArgs),
    Exec(exec::ExecArgs),
    Attach(attach::AttachArgs),
    Ls(ls::LsArgs),
    Inspect(inspect::InspectArgs),
    #[command(subcommand)]
    Health(health::HealthVerb),
    Events(events::EventsArgs),
    Wait(wait::WaitArgs),
    Limits(limits::LimitsArgs),
    Stop(stop::StopArgs),
    Rm(rm::RmArgs),
    Pull(pull::PullArgs),
    Rootfs(rootfs::RootfsArgs),
    Doctor(doctor::DoctorArgs),
    #[command(subcommand)]
    Pea(pea::PeaVerb),
    Cp(cp::CpArgs),
    StreamIn(stream_in::StreamInArgs),
    StreamOut(stream_out::StreamOutArgs),
    #[command(subcommand)]
    Teardown(teardown::TeardownVerb),
    Scale(scale::ScaleArgs),
    #[command(subcommand)]
    Repro(repro::ReproVerb),
    Server(server::ServerArgs),
    Config(config::ConfigVerb),
}

fn main() -> ExitCode {
    // Before everything else: a container waits for these commands, each of which is a process.
    if let Some((program, words)) = rootfs::called(std::env::args_os()) {
        return rootfs::main(&program, words);
    }
    let command = Cli::command();
    let expanded = match settings::expand(&command, std::env::args_os().collect()) {
        Ok(expanded) => expanded,
        Err(error) => return failure::report(&error),
    };
    let matches = command.get_matches_from(&expanded.words);
    let mut cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    if let Verb::Config(args) = &mut cli.verb {
        args.explain(Cli::command(), &matches, &expanded);
    }
    logging::start(matches!(cli.verb, Verb::Server(_)));
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failure::report(&anyhow::Error::new(error).context("cannot start")),
    };
    let outcome = runtime.block_on(run_verb(cli));
    // A thread that reads a terminal's input cannot be stopped: it is left behind.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => failure::report(&error),
    }
}

async fn run_verb(cli: Cli) -> anyhow::Result<u8> {
    let target = cli.target;
    match cli.verb {
        Verb::Run(args) => run::run(&target, args).await,
        Verb::Create(args) => create::run(&target, &args).await,
        Verb::Exec(args) => exec::run(&target, args).await,
        Verb::Attach(args) => attach::run(&target, args).await,
        Verb::Ls(args) => ls::run(&target, &args).await,
        Verb::Inspect(args) => inspect::run(&target, &args).await,
        Verb::Health(verb) => health::run(&target, verb).await,
        Verb::Events(args) => events::run(&target, args).await,
        Verb::Wait(args) => wait::run(&target, args).await,
        Verb::Limits(args) => limits::run(&target, &args).await,
        Verb::Stop(args) => stop::run(&target, &args).await,
        Verb::Rm(args) => rm::run(&target, &args).await,
        Verb::Pull(args) => pull::run(&target, args).await,
        Verb::Rootfs(args) => Ok(rootfs::run_after_flags(args)),
        Verb::Doctor(args) => doctor::run(args).await,
        Verb::Pea(verb) => pea::run(&target, verb).await,
        Verb::Cp(args) => cp::run(&target, &args).await,
        Verb::StreamIn(args) => stream_in::run(&target, &args).await,
        Verb::StreamOut(args) => stream_out::run(&target, &args).await,
        Verb::Teardown(verb) => teardown::run(&target, &verb).await,
        Verb::Scale(args) => scale::run(args).await,
        Verb::Repro(verb) => repro::run(verb).await,
        Verb::Server(args) => server::run(&target, args).await,
        Verb::Config(args) => config::run(&args),
    }
}

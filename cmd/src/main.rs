//! The garden command: the server, and the verbs for developers and operators.
//!
//! Each verb is a module of [`commands`] with its argument structure and its function. Every verb
//! speaks to a server through `garden::client`; where none runs, `run` hosts one ([`host`]).
//! Exit codes are docker's: the process's own, 125 for a failure of Garden's, 126 and 127 for an
//! executable that cannot be run or found, 2 for a command line that makes no sense.

mod colour;
mod commands;
mod examples;
mod failure;
mod host;
mod lab;
mod logging;
mod notify;
mod pod;
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
    attach, cleanup, completion, config, cp, create, doctor, events, exec, health, images, inspect,
    limits, logs, ls, net_out, pea, port, prop, ps, pull, repro, rm, rootfs, run, scale, server,
    setup, shell, start, stats, stop, stream_in, stream_out, teardown, timeline, top, up, version,
    wait,
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
    Start(start::StartArgs),
    Exec(exec::ExecArgs),
    Shell(shell::ShellArgs),
    Attach(attach::AttachArgs),
    #[command(visible_alias = "list")]
    Ls(ls::LsArgs),
    Ps(ps::PsArgs),
    Logs(logs::LogsArgs),
    Timeline(timeline::TimelineArgs),
    Up(up::UpArgs),
    Down(up::DownArgs),
    Top(top::TopArgs),
    Stats(stats::StatsArgs),
    Inspect(inspect::InspectArgs),
    #[command(subcommand)]
    Health(health::HealthVerb),
    Events(events::EventsArgs),
    Wait(wait::WaitArgs),
    Limits(limits::LimitsArgs),
    Port(port::PortArgs),
    NetOut(net_out::NetOutArgs),
    #[command(subcommand)]
    Prop(prop::PropVerb),
    Stop(stop::StopArgs),
    Rm(rm::RmArgs),
    Pull(pull::PullArgs),
    Images(images::ImagesArgs),
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
    Setup(setup::SetupArgs),
    Cleanup(cleanup::CleanupArgs),
    Completion(completion::CompletionArgs),
    #[command(hide = true)]
    Man(completion::ManArgs),
    Version(version::VersionArgs),
    #[command(hide = true)]
    Examples(ExamplesArgs),
}

/// Print every example of the help, each behind its command
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  garden examples")]
struct ExamplesArgs {}

fn print_examples() -> anyhow::Result<u8> {
    let lines: String = examples::all(&Cli::command())
        .iter()
        .map(|example| format!("{}\t{}\n", example.command, example.line))
        .collect();
    commands::print(&lines).map(|()| 0)
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
    match &cli.verb {
        Verb::Server(args) => logging::start_server(args.log_level()),
        _ => logging::start(),
    }
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
    let mut target = cli.target;
    target.prepare()?;
    match cli.verb {
        Verb::Run(args) => run::run(&target, args).await,
        Verb::Create(args) => create::run(&target, &args).await,
        Verb::Logs(args) => logs::run(&target, args).await,
        Verb::Timeline(args) => timeline::run(&target, &args).await,
        Verb::Up(args) => up::up(&target, &args).await,
        Verb::Down(args) => up::down(&target, &args).await,
        Verb::Images(args) => images::run(args).await,
        Verb::Examples(_) => print_examples(),
        Verb::Start(args) => start::run(&target, &args).await,
        Verb::Shell(args) => shell::run(&target, args).await,
        Verb::Ps(args) => ps::run(&target, args).await,
        Verb::Top(args) => top::run(&target, &args).await,
        Verb::Stats(args) => stats::run(&target, args).await,
        Verb::Prop(verb) => prop::run(&target, verb).await,
        Verb::Completion(args) => completion::complete(&args, Cli::command()),
        Verb::Man(args) => completion::man(&args, Cli::command()),
        Verb::Version(args) => version::run(&target, &args).await,
        Verb::Exec(args) => exec::run(&target, args).await,
        Verb::Attach(args) => attach::run(&target, args).await,
        Verb::Ls(args) => ls::run(&target, &args).await,
        Verb::Inspect(args) => inspect::run(&target, &args).await,
        Verb::Health(verb) => health::run(&target, verb).await,
        Verb::Events(args) => events::run(&target, args).await,
        Verb::Wait(args) => wait::run(&target, args).await,
        Verb::Limits(args) => limits::run(&target, &args).await,
        Verb::Port(args) => port::run(&target, &args).await,
        Verb::NetOut(args) => net_out::run(&target, args).await,
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
        Verb::Config(args) => config::run(&target, &args),
        Verb::Setup(args) => setup::run(&target, args).await,
        Verb::Cleanup(args) => cleanup::run(&target, args).await,
    }
}

//! The garden command.
mod commands;
mod host;
use clap::Parser;
#[derive(clap::Parser)]
enum Cli {
    Scale(commands::scale::ScaleArgs),
}
fn main() -> std::process::ExitCode {
    let Cli::Scale(args) = Cli::parse();
    match commands::scale::run(&args) {
        Ok(c) => c.into(),
        Err(e) => {
            eprintln!("garden: {e:#}");
            125.into()
        }
    }
}

//! `garden completion` and `garden man`: what is generated from the command line itself.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, Command};
use clap_complete::Shell;

use super::print;

/// Print a script that completes command lines in a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Bash looks for it as /etc/bash_completion.d/garden, fish as
~/.config/fish/completions/garden.fish, and zsh as _garden in a directory of $fpath.

Examples:
  garden completion bash > garden
  garden completion zsh > _garden
  garden completion fish > garden.fish"
)]
pub(crate) struct CompletionArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Write a manual page for each command into a directory
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden man man1")]
pub(crate) struct ManArgs {
    /// Where they go; made when missing
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Prints the script for a command line.
pub(crate) fn complete(args: &CompletionArgs, mut command: Command) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "garden", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

/// Writes the pages of a command line.
pub(crate) fn man(args: &ManArgs, command: Command) -> Result<u8> {
    let directory = &args.directory;
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    clap_mangen::generate_to(command, directory)
        .with_context(|| format!("cannot write manual pages into {}", directory.display()))?;
    Ok(0)
}

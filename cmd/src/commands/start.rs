//! `garden start`: the command that a container was created with.
//!
//! The command is a property of the container, so that any server keeps it and any client can
//! start it. Its environment is the container's. `run --detach` uses the same way.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use garden::client::{Client, Process, Wanted};
use garden::error::Error;
use garden::model::{Handle, ProcessId, ProcessSpec, Rlimit, WindowSize};
use serde::{Deserialize, Serialize};

use super::{MAIN, exec, print};
use crate::reach::Target;
use crate::values;

/// Where the command is kept.
pub(crate) const PROPERTY: &str = "garden.entry";
/// How much of the output of a process that nobody follows is kept for `garden logs`.
pub(crate) const LOG_BYTES: u64 = 1 << 20;

/// Run the command that containers were created with, in the background
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  garden start job
  garden start --attach job")]
pub(crate) struct StartArgs {
    /// The containers
    #[arg(required = true, value_name = "NAME", value_parser = values::handle)]
    names: Vec<Handle>,
    /// Follow it to its end, as `garden exec` does
    #[arg(long, short)]
    attach: bool,
}

/// The command of a container, with all that its process needs beside the container's environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Entry {
    id: Option<ProcessId>,
    path: String,
    args: Vec<String>,
    user: Option<String>,
    dir: Option<String>,
    rlimits: Vec<Rlimit>,
    tty: Option<WindowSize>,
}

impl Entry {
    /// The command of a process that is to be started later.
    pub(crate) fn new(spec: &ProcessSpec) -> Self {
        Self {
            id: spec.id.clone(),
            path: spec.path.clone(),
            args: spec.args.clone(),
            user: spec.user.clone(),
            dir: spec.dir.clone(),
            rlimits: spec.rlimits.clone(),
            tty: spec.tty,
        }
    }

    /// As the property has it.
    pub(crate) fn to_text(&self) -> Result<String> {
        serde_json::to_string(self).context("cannot write the command down")
    }

    /// A process of it.
    pub(crate) fn spec(&self) -> ProcessSpec {
        ProcessSpec {
            id: self.id.clone().or_else(|| MAIN.parse().ok()),
            path: self.path.clone(),
            args: self.args.clone(),
            user: self.user.clone(),
            dir: self.dir.clone(),
            rlimits: self.rlimits.clone(),
            tty: self.tty,
            log_bytes: Some(LOG_BYTES),
            ..ProcessSpec::default()
        }
    }
}

/// Starts them; one that runs already is left alone.
pub(crate) async fn run(target: &Target, args: &StartArgs) -> Result<u8> {
    let client = target.server().await?;
    if args.attach && args.names.len() > 1 {
        bail!("only one container can be followed: leave --attach out, or name one");
    }
    for name in &args.names {
        let entry = entry(&client, name).await?;
        if args.attach {
            let process = client.run(name, &entry.spec(), Wanted::ALL).await?;
            return exec::follow(name, process, entry.tty.is_some()).await;
        }
        match launch(&client, name, &entry).await {
            Ok(_) | Err(Error::ProcessIdInUse(_)) => print(&format!("{name}\n"))?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(0)
}

/// Starts a container's command without following it.
pub(crate) async fn launch(
    client: &Client,
    name: &Handle,
    entry: &Entry,
) -> Result<Process, Error> {
    client.run(name, &entry.spec(), Wanted::NONE).await
}

async fn entry(client: &Client, name: &Handle) -> Result<Entry> {
    let properties = client.properties(name).await?;
    let Some(text) = properties.get(PROPERTY) else {
        bail!(
            "container {name} was created without a command: run one with `garden exec {name} CMD`"
        );
    };
    serde_json::from_str(text).with_context(|| {
        format!("cannot understand the property {PROPERTY} of container {name}: set it anew")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_comes_back_as_it_was() {
        let spec = ProcessSpec {
            path: "sh".into(),
            args: vec!["-c".into(), "x".into()],
            user: Some("vcap".into()),
            ..ProcessSpec::default()
        };
        let text = Entry::new(&spec).to_text().unwrap();
        let again: Entry = serde_json::from_str(&text).unwrap();
        assert_eq!(again, Entry::new(&spec));
        assert_eq!(again.spec().id.unwrap().as_str(), MAIN);
        // As an earlier release may have written it.
        assert_eq!(
            serde_json::from_str::<Entry>("{}").unwrap(),
            Entry::default()
        );
    }
}

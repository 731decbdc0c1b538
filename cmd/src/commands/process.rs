//! How a process is started: the flags that every verb shares which starts one.

use clap::Args;
use garden::model::{ProcessId, ProcessSpec, Rlimit};

use super::program;
use crate::{terminal, values};

/// How a process is started.
#[derive(Debug, Args)]
pub(crate) struct ProcessArgs {
    /// User: name, uid, uid:gid or name:group [default: root]
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// Working directory, made when missing [default: the user's home; / for a pea]
    #[arg(long, visible_alias = "workdir", short = 'w', value_name = "DIR")]
    cwd: Option<String>,
    /// Name of the process [default: a generated one]
    #[arg(long, value_name = "ID", value_parser = values::process_id)]
    id: Option<ProcessId>,
    /// Resource limit, like nofile=1024 or core=unlimited; repeatable
    #[arg(long, value_name = "NAME=N", value_parser = values::rlimit)]
    ulimit: Vec<Rlimit>,
    /// Give it a terminal, which follows the size of this one
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// Pass standard input on; it always is, so that this only pleases docker's users
    #[arg(long, short)]
    interactive: bool,
}

impl ProcessArgs {
    /// As the server wants it.
    pub(crate) fn spec(&self, command: &[String]) -> ProcessSpec {
        let (path, args) = program(command);
        ProcessSpec {
            id: self.id.clone(),
            path,
            args,
            user: self.user.clone(),
            dir: self.cwd.clone(),
            rlimits: self.ulimit.clone(),
            tty: self.tty.then(|| terminal::size().unwrap_or_default()),
            ..ProcessSpec::default()
        }
    }
}

//! How a process is started: the flags that every verb shares which starts one.

use anyhow::{Result, bail};
use clap::Args;
use garden::model::{ProcessId, ProcessSpec, Rlimit};

use super::program;
use crate::{terminal, values};

/// Stands for the server's own image where an image is expected.
const SERVERS_OWN: &str = "-";

/// What is to be run, as docker's users write it: `IMAGE CMD...`; with `--image` only `CMD...`.
#[derive(Debug, Args)]
pub(crate) struct Words {
    /// Image, unless --image names it (- is the server's own), then the command and its arguments;
    /// from there on all words are the command's
    #[arg(value_name = "IMAGE] [CMD", trailing_var_arg = true)]
    words: Vec<String>,
}

impl Words {
    /// Whether nothing was given.
    pub(crate) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The image, if it is not the server's own, and the command. `flag` is what `--image` says.
    pub(crate) fn read<'a>(
        &'a self,
        flag: Option<&'a str>,
    ) -> Result<(Option<&'a str>, &'a [String])> {
        let (image, command) = match (flag, self.words.split_first()) {
            (Some(image), _) => (image, self.words.as_slice()),
            (None, Some((image, command))) => (image.as_str(), command),
            (None, None) => bail!(
                "no image is named: write it first, like `garden run busybox.tar sh`, or - for \
                 the server's own"
            ),
        };
        let command = match command.split_first() {
            Some((dashes, command)) if dashes == "--" => command,
            _ => command,
        };
        Ok(((image != SERVERS_OWN).then_some(image), command))
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Words {
        Words {
            words: text.split_whitespace().map(str::to_owned).collect(),
        }
    }

    #[test]
    fn the_first_word_is_the_image_unless_a_flag_names_it() {
        let all = words("box sh -c x");
        let (image, command) = all.read(None).unwrap();
        assert_eq!((image, command.len()), (Some("box"), 3));
        let (image, command) = all.read(Some("other")).unwrap();
        assert_eq!((image, command.len()), (Some("other"), 4));
        let own = words("- -- sh");
        assert_eq!(own.read(None).unwrap(), (None, &["sh".to_owned()][..]));
        assert!(words("").read(None).is_err());
    }
}

//! The commands, their flags, and the help that is made of both.

use super::args::{Flag, Kind, Parsed};
use super::{Context, Failure};
use super::{check, clean, create, delete, init, list, maintain, stats};

/// A command.
pub(super) struct Command {
    pub(super) name: &'static str,
    /// As it is shown to somebody who uses it wrongly.
    pub(super) usage: &'static str,
    pub(super) about: &'static str,
    pub(super) flags: &'static [Flag],
    /// For programs: not in the list of commands.
    pub(super) hidden: bool,
    pub(super) run: fn(&Context, &Parsed) -> Result<(), Failure>,
}

const fn switch(name: &'static str, help: &'static str) -> Flag {
    let kind = Kind::Switch;
    Flag { name, kind, help }
}

const fn text(name: &'static str, value: &'static str, help: &'static str) -> Flag {
    let kind = Kind::Text(value);
    Flag { name, kind, help }
}

const fn number(name: &'static str, help: &'static str) -> Flag {
    let kind = Kind::Number("BYTES");
    Flag { name, kind, help }
}

const fn list(name: &'static str, value: &'static str, help: &'static str) -> Flag {
    let kind = Kind::List(value);
    Flag { name, kind, help }
}

/// Before the command.
pub(super) const GLOBAL: &[Flag] = &[
    text("config", "FILE", "Configuration in YAML; flags win over it"),
    text("store", "DIR", "The store [default: /var/lib/grootfs]"),
    text(
        "log-level",
        "LEVEL",
        "debug, info, error or fatal [default: fatal]",
    ),
    text(
        "log-file",
        "FILE",
        "Where the log goes [default: standard error]",
    ),
    text(
        "metron-endpoint",
        "HOST:PORT",
        "Accepted; metrics are not sent",
    ),
    text("tardis-bin", "PATH", "Accepted; there is no such helper"),
    text("newuidmap-bin", "PATH", "Accepted; there is no such helper"),
    text("newgidmap-bin", "PATH", "Accepted; there is no such helper"),
    switch("version", "Print the version"),
];

const INIT: &[Flag] = &[
    list(
        "uid-mapping",
        "INSIDE:HOST:SIZE",
        "Users of the images made here; repeatable",
    ),
    list(
        "gid-mapping",
        "INSIDE:HOST:SIZE",
        "Groups of the images made here; repeatable",
    ),
    number(
        "store-size-bytes",
        "Keep the store in a file of this size, formatted as XFS",
    ),
    switch(
        "with-direct-io",
        "Read and write that file past the page cache",
    ),
];

const CREATE: &[Flag] = &[
    number(
        "disk-limit-size-bytes",
        "What the root filesystem may take, its image included",
    ),
    switch(
        "exclude-image-from-quota",
        "The limit is for what is written alone",
    ),
    list(
        "insecure-registry",
        "HOST",
        "Registry without (verified) TLS; repeatable",
    ),
    switch(
        "skip-layer-validation",
        "Believe the digests of an oci:// image",
    ),
    switch("with-mount", "Mount the root filesystem [default]"),
    switch("without-mount", "Tell how it is to be mounted instead"),
    switch("with-clean", "Remove unused layers afterwards"),
    switch("without-clean", "Do not"),
    number(
        "threshold-bytes",
        "What the store may hold before unused layers are removed",
    ),
    text("username", "NAME", "For the registry"),
    text(
        "password",
        "PASSWORD",
        "For the registry; $GROOTFS_PASSWORD is not in process lists",
    ),
    text(
        "clean-log-file",
        "FILE",
        "Where the removing logs [default: standard error]",
    ),
];

const CLEAN: &[Flag] = &[number(
    "threshold-bytes",
    "What the store may hold before anything is removed",
)];

const CHECK: &[Flag] = &[
    switch(
        "repair",
        "Take damaged layers and what belongs to nothing out of the store",
    ),
    switch("json", "For programs"),
];

const JSON: &[Flag] = &[switch("json", "For programs")];

/// All commands.
pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "init-store",
        usage: "init-store --store <path>",
        about: "Prepare a store",
        flags: INIT,
        hidden: false,
        run: init::init_store,
    },
    Command {
        name: "delete-store",
        usage: "delete-store --store <path>",
        about: "Remove a store with all that is in it",
        flags: &[],
        hidden: false,
        run: init::delete_store,
    },
    Command {
        name: "create",
        usage: "create [options] <image> <id>",
        about: "Make a root filesystem from an image and print a bundle's part for it",
        flags: CREATE,
        hidden: false,
        run: create::run,
    },
    Command {
        name: "delete",
        usage: "delete <id|image path>",
        about: "Remove a root filesystem",
        flags: &[],
        hidden: false,
        run: delete::run,
    },
    Command {
        name: "stats",
        usage: "stats <id|image path>",
        about: "Print what a root filesystem takes, as JSON",
        flags: &[],
        hidden: false,
        run: stats::stats,
    },
    Command {
        name: "clean",
        usage: "clean",
        about: "Remove layers that no root filesystem uses",
        flags: CLEAN,
        hidden: false,
        run: clean::run,
    },
    Command {
        name: "list",
        usage: "list",
        about: "Print the directories of all root filesystems",
        flags: &[],
        hidden: false,
        run: list::list,
    },
    Command {
        name: "capacity",
        usage: "capacity",
        about: "Print how much the store holds, as JSON",
        flags: &[],
        hidden: false,
        run: stats::capacity,
    },
    Command {
        name: "ls",
        usage: "ls [--json]",
        about: "Show all root filesystems with their use of the disk",
        flags: JSON,
        hidden: false,
        run: list::ls,
    },
    Command {
        name: "images",
        usage: "images [--json]",
        about: "Show the images whose layers are in the store",
        flags: JSON,
        hidden: false,
        run: list::images,
    },
    Command {
        name: "check",
        usage: "check [--repair] [--json]",
        about: "Verify the records and the content of the store",
        flags: CHECK,
        hidden: false,
        run: check::run,
    },
    Command {
        name: "generate-volume-size-metadata",
        usage: "generate-volume-size-metadata",
        about: "Nothing: every layer has its size on record",
        flags: &[],
        hidden: true,
        run: stats::generate_volume_size_metadata,
    },
    Command {
        name: "maintain",
        usage: "maintain",
        about: "Empty the trash of the store, and what else can wait",
        flags: maintain::FLAGS,
        hidden: true,
        run: maintain::run,
    },
];

/// A command by its name.
pub(super) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

/// The help of everything.
pub(super) fn help(program: &str) -> String {
    let mut text = format!(
        "{program} - root filesystems for containers\n\nUsage: {program} [flags] <command> \
         [flags] [arguments]\n\nCommands:\n"
    );
    let shown: Vec<_> = COMMANDS.iter().filter(|command| !command.hidden).collect();
    let rows = shown
        .iter()
        .map(|command| (command.name.to_owned(), command.about));
    push_rows(&mut text, rows);
    text.push_str("\nFlags:\n");
    push_rows(&mut text, GLOBAL.iter().map(row));
    text
}

/// The help of one command.
pub(super) fn command_help(program: &str, command: &Command) -> String {
    let mut text = format!(
        "{}\n\nUsage: {program} [flags] {}\n",
        command.about, command.usage
    );
    if !command.flags.is_empty() {
        text.push_str("\nFlags:\n");
        push_rows(&mut text, command.flags.iter().map(row));
    }
    text
}

fn row(flag: &Flag) -> (String, &'static str) {
    let name = match flag.kind {
        Kind::Switch => format!("--{}", flag.name),
        Kind::Text(value) | Kind::Number(value) | Kind::List(value) => {
            format!("--{} {value}", flag.name)
        }
    };
    (name, flag.help)
}

fn push_rows(text: &mut String, rows: impl Iterator<Item = (String, &'static str)>) {
    let rows: Vec<_> = rows.collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, about) in rows {
        text.push_str(&format!("  {name:<width$}  {about}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_there_once_and_shown() {
        let help = help("grootfs");
        for command in COMMANDS {
            let same = COMMANDS.iter().filter(|other| other.name == command.name);
            assert_eq!(same.count(), 1);
            assert_ne!(
                help.contains(command.about),
                command.hidden,
                "{}",
                command.name
            );
            for flag in command.flags {
                assert!(command_help("grootfs", command).contains(&format!("--{}", flag.name)));
            }
        }
    }
}

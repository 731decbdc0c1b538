//! What a command leaves to a process of its own: emptying the trash, making layers durable,
//! collecting what nobody uses.
//!
//! Started by the commands, in a session of its own, with nothing of theirs open but what it is
//! given on its standard input: a mount whose last close may wait for the disk. Nobody waits for
//! it; one at a time does the work, and a server that works in the store would do it as well.

use std::fs::OpenOptions;
use std::process::{Command, Stdio};

use garden_rootfs::Maintenance;

use super::args::{Flag, Kind, Parsed};
use super::{Context, Failure, clean};

/// The flag that also collects.
const CLEAN: &str = "clean";
/// Rounds of one process: whoever keeps it busy for longer starts another one.
const ROUNDS: usize = 1000;

pub(super) const FLAGS: &[Flag] = &[
    Flag {
        name: "threshold-bytes",
        kind: Kind::Number("BYTES"),
        help: "What the store may hold before anything is collected",
    },
    Flag {
        name: CLEAN,
        kind: Kind::Switch,
        help: "Collect unused layers, too",
    },
];

/// Starts a process that does what can wait. That it cannot be started is no failure of the command:
/// the next one starts another.
pub(super) fn leave_to_another(context: &Context, pin: Stdio) {
    start(context, pin, false);
}

/// The same, and collects what nobody uses.
pub(super) fn leave_with_clean(context: &Context) {
    start(context, Stdio::null(), true);
}

fn start(context: &Context, pin: Stdio, clean: bool) {
    let config = &context.config;
    // The program itself, also after an update has replaced its file.
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["rootfs", "--store"])
        .arg(context.place.path());
    if !config.log_level.is_empty() {
        command.args(["--log-level", &config.log_level]);
    }
    let log = if clean && !config.create.clean_log_file.as_os_str().is_empty() {
        Some(&*config.create.clean_log_file)
    } else {
        config.log_file()
    };
    if let Some(log) = log {
        command.arg("--log-file").arg(log);
    }
    command.arg("maintain");
    if clean {
        command.arg("--clean");
        let threshold = config.clean.threshold_bytes.to_string();
        command.args(["--threshold-bytes", &threshold]);
    }
    // Its standard error would keep open what Guardian reads to its end.
    command
        .stdin(pin)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.current_dir("/");
    if let Err(error) = command.spawn() {
        tracing::error!(%error, "cannot start the process that clears up; the next command will");
    }
}

/// Does it.
pub(super) fn run(context: &Context, flags: &Parsed) -> Result<(), Failure> {
    // Not a member of the caller's session: it must not end with it. Fails for a leader, whose
    // session is its own already.
    let _ = rustix::process::setsid();
    context.place.expect_store()?;
    let store = context.place.open(&context.config)?;
    if flags.has(CLEAN) {
        match clean::clean(&store, context.config.clean.threshold_bytes) {
            Ok(_) => {}
            Err(failure) => tracing::error!(error = failure.text, "cannot clean"),
        }
    }
    for _ in 0..ROUNDS {
        match store.maintain()? {
            Maintenance::ByAnother => return Ok(()),
            Maintenance::Done { left, .. } if left.failing > 0 => {
                tracing::error!(left = left.failing, "some trees cannot be removed");
                return Ok(());
            }
            // What came after the last look found the lock taken, and left it to this one.
            Maintenance::Done { .. } if !store.has_trash()? => return Ok(()),
            _ => {}
        }
    }
    Ok(())
}

/// Opens a log file early, so that a mistake in its name is told while somebody listens.
pub(super) fn check_log_file(context: &Context) -> Result<(), Failure> {
    let file = &context.config.create.clean_log_file;
    if file.as_os_str().is_empty() {
        return Ok(());
    }
    let opened = OpenOptions::new().create(true).append(true).open(file);
    opened.map(drop).map_err(|error| {
        Failure::new(format!(
            "cannot write the log file {}: {error}",
            file.display()
        ))
    })
}

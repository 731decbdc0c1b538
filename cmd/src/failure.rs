//! How a failure ends the command: one line on standard error and an exit code by kind.

use std::process::ExitCode;

use garden::error::Error;

/// Garden itself could not do what was asked.
pub(crate) const OWN: u8 = 125;
/// The executable is there but cannot be run.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// There is no such executable.
pub(crate) const NOT_FOUND: u8 = 127;

/// Prints the whole chain of causes in one line and returns the code for it.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let text = one_line(error);
    #[expect(clippy::print_stderr, reason = "this is where errors are printed")]
    {
        eprintln!("garden: {text}");
    }
    ExitCode::from(code(error))
}

fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let more = cause.to_string().replace(['\n', '\r'], " ");
        // A cause that its effect has already told is not told twice.
        if text.ends_with(more.as_str()) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&more);
    }
    text
}

fn code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::ExecutableNotFound(_)) => NOT_FOUND,
        Some(Error::NotExecutable(_)) => NOT_EXECUTABLE,
        _ => OWN,
    }
}

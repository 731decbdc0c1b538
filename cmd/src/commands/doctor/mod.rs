//! `garden doctor`: what this host can do for containers, what it cannot, and what to do about it.
//!
//! One screen, a line for each check, and a reason with a remedy for whatever is not well. A check
//! is one function over what was looked at once ([`Host`]); a new one is a function and a row in
//! [`CHECKS`]. Nothing is changed and, but for one small measurement (`unmount.rs`), nothing waited
//! for: a store is only looked at as far as that is quick (`garden rootfs check` reads all of it).

mod host;
mod leftovers;
mod network;
mod store;
mod system;
mod unmount;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{print, print_json};
use crate::colour::{self, Tone};
use crate::host::STORE;
use host::Host;

/// Tell what this host lacks for running containers well
#[derive(Debug, Args)]
#[command(after_help = "The exit code is 1 when something fails.

Examples:
  garden doctor
  garden doctor --quick --json")]
pub(crate) struct DoctorArgs {
    /// The store to look at
    #[arg(
        long,
        env = "GARDEN_STORE",
        value_name = "DIR",
        default_value = STORE
    )]
    store: PathBuf,
    /// Do not measure what an unmount costs
    #[arg(long)]
    quick: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// How it is with something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// It works, but worse than it could.
    Warn,
    /// Containers cannot be run, or not safely.
    Fail,
    /// There is nothing to look at.
    Unknown,
}

/// What a check found.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    state: State,
    /// What is there.
    found: String,
    /// What to do about it, where something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn ok(found: impl Into<String>) -> Self {
        Self {
            state: State::Ok,
            found: found.into(),
            remedy: None,
        }
    }

    fn warn(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            state: State::Warn,
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn unknown(found: impl Into<String>) -> Self {
        Self {
            state: State::Unknown,
            ..Self::ok(found)
        }
    }

    fn fail(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            state: State::Fail,
            ..Self::warn(found, remedy)
        }
    }
}

type Check = fn(&Host) -> Finding;

/// All checks, in the order of their lines.
const CHECKS: &[(&str, Check)] = &[
    ("kernel", system::kernel),
    ("user", system::user),
    ("cgroups", system::cgroups),
    ("cgroup controllers", system::controllers),
    ("user namespaces", system::user_namespaces),
    ("seccomp", system::seccomp),
    ("forwarding", system::forwarding),
    ("store", store::place),
    ("overlay", store::overlay),
    ("volatile mounts", store::volatile),
    ("unmount", unmount::cost),
    ("id-mapped mounts", store::mapped_owners),
    ("quota", store::quota),
    ("free space", store::free_space),
    ("trash", store::trash),
    ("stored", store::content),
    ("packet filter", network::filter),
    ("forwarding", network::forwarding),
    ("ports", network::ports),
    ("clock", leftovers::clock),
    ("crashed servers", leftovers::crashed),
];

#[derive(Serialize)]
struct Row {
    check: &'static str,
    #[serde(flatten)]
    finding: Finding,
}

/// Looks, and tells.
pub(crate) async fn run(args: DoctorArgs) -> Result<u8> {
    // Statting a disk may hang; nothing else runs in this process.
    let looked = tokio::task::spawn_blocking(move || {
        let host = Host::look(&args.store, !args.quick);
        let look = |&(check, look): &(&'static str, Check)| Row {
            check,
            finding: look(&host),
        };
        CHECKS.iter().map(look).collect::<Vec<_>>()
    });
    let rows = looked.await?;
    if args.json {
        print_json(&rows)?;
    } else {
        print(&text(&rows))?;
    }
    let failed = rows.iter().any(|row| row.finding.state == State::Fail);
    Ok(u8::from(failed))
}

fn text(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Row { check, finding } in rows {
        let state = match finding.state {
            State::Ok => colour::paint("ok  ", Tone::Good),
            State::Warn => colour::paint("warn", Tone::Odd),
            State::Fail => colour::paint("FAIL", Tone::Bad),
            State::Unknown => colour::paint("   -", Tone::Faint),
        };
        text.push_str(&format!("{state}  {check:<width$}  {}\n", finding.found));
        if let Some(remedy) = &finding.remedy {
            text.push_str(&format!("{:1$}-> {remedy}\n", "", width + 8));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_check_and_one_for_a_remedy() {
        let rows = [
            Row {
                check: "a",
                finding: Finding::ok("good"),
            },
            Row {
                check: "long",
                finding: Finding::fail("bad", "mend it"),
            },
        ];
        let expected = "ok    a     good\nFAIL  long  bad\n            -> mend it\n";
        assert_eq!(text(&rows), expected);
        let json = serde_json::to_string(&rows[1]).unwrap();
        assert_eq!(
            json,
            r#"{"check":"long","state":"fail","found":"bad","remedy":"mend it"}"#
        );
    }

    #[test]
    fn every_check_has_an_answer_on_any_host() {
        let nowhere = Host::look(std::path::Path::new("/nowhere/store"), false);
        for (name, check) in CHECKS {
            let finding = check(&nowhere);
            assert!(!finding.found.is_empty(), "{name}");
            let fine = matches!(finding.state, State::Ok | State::Unknown);
            assert_eq!(finding.remedy.is_none(), fine, "{name}");
        }
        assert!(!std::path::Path::new("/nowhere").exists());
    }
}

//! `check`: verifies what the store holds, and with `--repair` mends what can be mended.
//!
//! May run beside everything else. Reads every layer, so it takes as long as that takes.

use garden_rootfs::{CheckReport, Repair};

use super::args::Parsed;
use super::{Context, Failure, expect_args, print};
use crate::commands::print_json;
use crate::table;

/// Checks. The exit code says whether anything is wrong still.
pub(super) fn run(context: &Context, flags: &Parsed) -> Result<(), Failure> {
    expect_args::<0>(flags, "check [--repair] [--json]")?;
    context.place.expect_store()?;
    let store = context.place.open(&context.config)?;
    let repair = if flags.has("repair") {
        Repair::Yes
    } else {
        Repair::No
    };
    let report = store.check(repair)?;
    let shown = if flags.has("json") {
        print_json(&report)
    } else {
        print(&text(&report))
    };
    shown.map_err(|error| Failure::new(error.to_string()))?;
    if repair == Repair::Yes && !report.findings.is_empty() {
        super::maintain::leave_to_another(context, std::process::Stdio::null());
    }
    if report.is_sound() {
        return Ok(());
    }
    // Everything has been said.
    Err(Failure::silent())
}

fn text(report: &CheckReport) -> String {
    let mut text: String = report
        .findings
        .iter()
        .map(|finding| format!("{finding}\n"))
        .collect();
    text.push_str(&format!(
        "checked {} layers ({}), {} images, {} root filesystems: {}\n",
        report.layers,
        table::size(report.bytes),
        report.images,
        report.rootfs,
        match report.findings.len() {
            0 => "all is well".to_owned(),
            1 => "1 thing is wrong".to_owned(),
            findings => format!("{findings} things are wrong"),
        }
    ));
    text
}

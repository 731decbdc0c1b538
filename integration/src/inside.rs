//! Reading what a process in a container says about itself.
//!
//! Tests run busybox's `cat`, `readlink` and `ls` inside and give the text to these functions.

use std::fs;

use anyhow::{Context, Result};

/// The kinds of namespaces that a container has of its own, as `/proc/<pid>/ns` names them.
pub const NAMESPACES: [&str; 6] = ["net", "ipc", "uts", "pid", "user", "mnt"];

/// The value of a field of `/proc/<pid>/status`, such as `CapEff`.
pub fn status_field<'t>(status: &'t str, field: &str) -> Result<&'t str> {
    let line = status.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name == field).then_some(value)
    });
    let value = line.with_context(|| format!("no {field} in {status:?}"))?;
    Ok(value.trim())
}

/// The lines of a text, without blanks around them, empty ones left out.
pub fn lines_of(text: &str) -> Vec<&str> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty()).collect()
}

/// The host's own namespace of a kind, as `readlink` names it.
pub fn host_namespace(kind: &str) -> Result<String> {
    let link = fs::read_link(format!("/proc/self/ns/{kind}"))?;
    Ok(link.display().to_string())
}

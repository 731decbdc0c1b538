//! How many files the server may have open.
//!
//! Each connection is a file, and an app with output holds three. The soft limit that a shell or
//! systemd gives (often 1024) is for programs that use `select(2)`; the server raises its own to the
//! hard one. What it starts gets the old one back, so that containers' processes see what they would
//! have seen.

use std::io;
use std::sync::OnceLock;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// What the process was started with.
static ORIGINAL: OnceLock<Rlimit> = OnceLock::new();

/// Files that are not for connections: those of containers, the store, the runtime.
const OTHERS: u64 = 512;

/// Raises the soft limit to the hard one. Returns how many connections there is room for, when a
/// container needs about as many files as its clients do.
///
/// # Errors
/// When the kernel refuses.
pub fn raise() -> io::Result<usize> {
    let original = *ORIGINAL.get_or_init(|| getrlimit(Resource::Nofile));
    let raised = Rlimit {
        current: original.maximum,
        maximum: original.maximum,
    };
    setrlimit(Resource::Nofile, raised)?;
    let most = original.maximum.unwrap_or(u64::MAX);
    let room = most.saturating_sub(OTHERS).max(most / 2) / 2;
    Ok(usize::try_from(room).unwrap_or(usize::MAX))
}

/// Gives a child of ours, which is not reaped yet, the limit that this process was started with.
///
/// # Errors
/// When the child is gone.
pub(crate) fn restore_for(child: &std::process::Child) -> io::Result<()> {
    let (Some(original), Some(pid)) = (ORIGINAL.get(), Pid::from_raw(child.id().cast_signed()))
    else {
        return Ok(());
    };
    prlimit(Some(pid), Resource::Nofile, *original)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_have_what_they_would_have_had() {
        let before = getrlimit(Resource::Nofile);
        let room = raise().unwrap();
        assert!(room > 0);
        let raised = getrlimit(Resource::Nofile);
        assert_eq!(raised.current, before.maximum);
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        restore_for(&child).unwrap();
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"))
            .unwrap();
        let soft = before
            .current
            .map_or("unlimited".to_owned(), |number| number.to_string());
        assert!(line.split_whitespace().any(|word| word == soft), "{line}");
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}

//! What the end of an overlay mount costs on this disk: measured, with a few megabytes.
//!
//! The founding story of this project: the kernel may write out the whole file system, whoever's
//! data it is, before an unmount returns. So each mount ends beside a file of somebody else's that
//! is not written out yet.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Finding;
use super::host::Host;
use crate::commands::repro::overlay::{Overlay, Way};

/// Bytes of the others' file. Enough to be seen on any disk, and soon written.
const OTHERS: usize = 8 << 20;
/// What a step takes at most when it waits for no disk, in milliseconds.
const QUICK_MS: f64 = 2.0;

/// Measures, unless that is not wanted or not possible.
pub(super) fn cost(host: &Host) -> Finding {
    if !host.measure {
        return Finding::unknown("not measured");
    }
    if !host.root {
        return Finding::unknown("not measured: only root can mount");
    }
    let Some(place) = host.path.ancestors().find(|path| path.is_dir()) else {
        return Finding::unknown("not measured: there is no directory to do it in");
    };
    let directory = place.join(format!(".garden-doctor-{}", std::process::id()));
    let measured = measure(&directory);
    let _ = fs::remove_dir_all(&directory);
    match measured {
        Ok((plain, volatile)) => verdict(plain, volatile),
        Err(error) => Finding::unknown(format!("not measured: {error:#}")),
    }
}

/// Milliseconds of the end of a mount, as most engines do it and as Garden does it.
fn measure(directory: &Path) -> Result<(f64, Option<f64>)> {
    fs::create_dir(directory).with_context(|| format!("cannot use {}", directory.display()))?;
    let volatile = end(directory, Way::Volatile)?;
    let plain = end(directory, Way::Plain)?.unwrap_or_default();
    Ok((plain, volatile))
}

fn end(directory: &Path, way: Way) -> Result<Option<f64>> {
    let base = directory.join(way.name());
    let Some(mut overlay) = Overlay::make(base, way == Way::Volatile)? else {
        return Ok(None);
    };
    overlay.fill(1)?;
    let others = fs::File::create(directory.join("others"));
    others.and_then(|mut file| file.write_all(&vec![0x5a; OTHERS]))?;
    Ok(Some(overlay.end(way)?.total_ms()))
}

fn verdict(plain: f64, volatile: Option<f64>) -> Finding {
    let others = OTHERS >> 20;
    let syncs = plain > QUICK_MS && volatile.is_none_or(|volatile| plain > 4.0 * volatile);
    match (syncs, volatile) {
        (false, Some(volatile)) => Finding::ok(format!(
            "waits for no disk here: {plain:.1} ms, {volatile:.1} ms with volatile"
        )),
        (false, None) => Finding::ok(format!("waits for no disk here: {plain:.1} ms")),
        (true, Some(volatile)) => Finding::ok(format!(
            "writes out the disk here: {plain:.1} ms beside {others}M of others'; {volatile:.1} ms \
             with volatile, which Garden uses"
        )),
        (true, None) => Finding::warn(
            format!("writes out the disk: {plain:.1} ms beside {others}M of others'"),
            "run Linux 5.10 or newer, whose volatile mounts do not",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn only_a_sync_that_cannot_be_avoided_is_a_warning() {
        assert_eq!(verdict(0.3, Some(0.2)).state, State::Ok);
        assert_eq!(verdict(40.0, None).state, State::Warn);
        let avoided = verdict(40.0, Some(0.2));
        assert_eq!(avoided.state, State::Ok);
        assert!(
            avoided
                .found
                .starts_with("writes out the disk here: 40.0 ms")
        );
        // Both slow: the host is, not the unmount.
        assert_eq!(verdict(40.0, Some(30.0)).state, State::Ok);
    }
}

//! Checks of the store and of the disk that it is on.

use garden_rootfs::{QuotaKind, Space, WaterMarks};

use super::Finding;
use super::host::Host;
use crate::table;

/// What cannot be known without a store.
fn unknown(_: &Host) -> Finding {
    Finding::unknown("not known without a store")
}

pub(super) fn place(host: &Host) -> Finding {
    let path = host.path.display().to_string();
    match &host.store {
        Some(Ok(_)) => Finding::ok(path),
        Some(Err(error)) => Finding::fail(
            format!("{path} cannot be opened: {error}"),
            "mend what it says, or begin with another directory",
        ),
        None => Finding::warn(
            format!("nothing at {path}"),
            "it is made by the first server, pull or init-store",
        ),
    }
}

pub(super) fn overlay(host: &Host) -> Finding {
    let Some(known) = host.capabilities() else {
        return unknown(host);
    };
    if !known.overlay {
        return Finding::fail("none", "modprobe overlay");
    }
    if known.detached_layers {
        return Finding::ok(format!(
            "by descriptors, up to {} layers, on {:?}",
            known.most_layers, known.file_system
        ));
    }
    Finding::warn(
        format!(
            "by paths, up to {} layers, on {:?}",
            known.most_layers, known.file_system
        ),
        "nothing must be done; from Linux 6.15 on creates are quicker",
    )
}

pub(super) fn volatile(host: &Host) -> Finding {
    match host.capabilities() {
        None => unknown(host),
        Some(known) if known.volatile.is_some() => {
            Finding::ok("the end of a root filesystem costs nothing")
        }
        Some(_) => Finding::warn(
            "none: the end of a root filesystem may wait for the whole disk",
            "run Linux 5.10 or newer",
        ),
    }
}

pub(super) fn mapped_owners(host: &Host) -> Finding {
    match host.capabilities() {
        None => unknown(host),
        Some(known) if known.mapped_owners => Finding::ok("one copy of a layer for all owners"),
        Some(_) => Finding::warn(
            "none: layers are copied once for each mapping of owners",
            "run Linux 5.19 or newer, with the store on ext4, XFS or btrfs",
        ),
    }
}

pub(super) fn quota(host: &Host) -> Finding {
    let Some(known) = host.capabilities() else {
        return unknown(host);
    };
    let found = match known.quota {
        QuotaKind::XfsProject => "project quota of XFS",
        QuotaKind::Ext4Project => "project quota of ext4",
        QuotaKind::Btrfs => "subvolumes of btrfs, for bytes",
        QuotaKind::None { why } => {
            return Finding::warn("none: disk limits are only counted", why.to_string());
        }
    };
    if known.quota_enforced {
        return Finding::ok(found);
    }
    Finding::warn(
        format!("{found}, which counts and does not enforce"),
        "mount the file system with prjquota",
    )
}

pub(super) fn free_space(host: &Host) -> Finding {
    let existing = host.path.ancestors().find(|path| path.exists());
    let Some(Ok(disk)) = existing.map(rustix::fs::statvfs) else {
        return Finding::fail(
            format!("the disk of {} cannot be measured", host.path.display()),
            "look into the kernel's log",
        );
    };
    let marks = WaterMarks::default();
    let total = disk.f_blocks.saturating_mul(disk.f_frsize);
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let found = format!("{} of {}", table::size(free), table::size(total));
    let remedy =
        "unused images are collected as long as there are any; make room, or a larger disk";
    if free < mark(marks.low, total) {
        return Finding::fail(found, remedy);
    }
    if free < mark(marks.high, total) {
        return Finding::warn(found, remedy);
    }
    if disk.f_files > 0 && disk.f_favail < disk.f_files / 20 {
        let inodes = format!("{} inodes of {}", disk.f_favail, disk.f_files);
        return Finding::warn(
            inodes,
            "remove small files, or make the file system anew with more",
        );
    }
    Finding::ok(found)
}

fn mark(mark: Space, total: u64) -> u64 {
    match mark {
        Space::Bytes(bytes) => bytes,
        Space::Percent(percent) => total / 100 * u64::from(percent),
    }
}

pub(super) fn trash(host: &Host) -> Finding {
    let Some(store) = host.store() else {
        return unknown(host);
    };
    match store.has_trash() {
        Ok(false) => Finding::ok("empty"),
        Ok(true) => Finding::warn(
            "not empty",
            "a server empties it; without one: garden rootfs --store DIR maintain",
        ),
        Err(error) => Finding::fail(error.to_string(), "look into the kernel's log"),
    }
}

pub(super) fn content(host: &Host) -> Finding {
    let Some(store) = host.store() else {
        return unknown(host);
    };
    match (store.list_images(), store.list()) {
        (Ok(images), Ok(rootfs)) => Finding::ok(format!(
            "{} images, {} layers, {} root filesystems",
            images.len(),
            store.list_layers().len(),
            rootfs.len()
        )),
        (Err(error), _) | (_, Err(error)) => Finding::fail(
            error.to_string(),
            "garden rootfs --store DIR check --repair",
        ),
    }
}

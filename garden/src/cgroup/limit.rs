//! Writing limits into the files of one group in one hierarchy.
//!
//! Called by the groups when one is made, when its first process runs, and when its limits change.
//! On v1 a process joins as its own last step, so limits are set before it starts. On v2 it is born
//! in its group together with the helpers that set it up: there a container's limits are set once
//! its init, which runs nothing of the user's, is complete; a pea's are set before, because its
//! program must never run without them, with a little more room for processes until it runs.

use std::io;
use std::path::Path;

use super::files::{put, read, read_number};
use super::host::Hierarchy;
use super::weight::weight_of_shares;
use super::weight::{CPU_PERIOD_US, DEFAULT_SHARES, cpu_quota_us, io_weight_of_blkio};
use super::{CgroupError, Policy, devices, failed};
use crate::model::{IoLimits, Limits};

/// Processes that set another up, at most at the same time.
const HELPERS: u64 = 2;

/// When limits are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// Before a process starts that its user programs.
    BeforeProgram,
    /// When nothing but the program is left in it, or instead of other limits.
    Final,
}

/// Which limits are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Only those that are there: the group is new.
    Set,
    /// Those that differ from what the group has, also to take them away.
    Changed,
    /// All of them, because nobody knows what the group has.
    All,
}

/// Limits and how to write them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order<'a> {
    pub(super) limits: &'a Limits,
    /// What the group has now, for changes.
    pub(super) before: &'a Limits,
    pub(super) policy: &'a Policy,
    pub(super) when: When,
    pub(super) which: Which,
}

impl Order<'_> {
    /// Whether a value is to be written.
    fn is_due<T: PartialEq>(&self, new: &Option<T>, old: &Option<T>) -> bool {
        match self.which {
            Which::Set => new.is_some(),
            Which::Changed => new != old,
            Which::All => true,
        }
    }
}

/// Writes everything but the CPU's limits.
pub(super) fn write(
    hierarchy: &Hierarchy,
    path: &Path,
    order: &Order<'_>,
) -> Result<(), CgroupError> {
    let (new, old) = (order.limits, order.before);
    if hierarchy.has("memory") && order.is_due(&new.memory_bytes, &old.memory_bytes) {
        if hierarchy.unified {
            memory_v2(path, new.memory_bytes, order)?;
        } else {
            memory_v1(path, new.memory_bytes, order)?;
        }
    }
    if hierarchy.has("pids") && order.is_due(&new.pids, &old.pids) {
        let room = match order.when {
            When::BeforeProgram if hierarchy.unified => HELPERS,
            _ => 0,
        };
        let most = new.pids.map(|pids| pids.saturating_add(room).min(1 << 22));
        put(path, "pids.max", &number_or(most, "max"))?;
    }
    if hierarchy.has("io") || hierarchy.has("blkio") {
        io(hierarchy, path, order)?;
    }
    Ok(())
}

/// Writes the CPU's limits, which would slow the set-up.
pub(super) fn write_cpu(
    hierarchy: &Hierarchy,
    path: &Path,
    order: &Order<'_>,
) -> Result<(), CgroupError> {
    if !hierarchy.has("cpu") {
        return Ok(());
    }
    let (new, old) = (order.limits, order.before);
    if order.is_due(&new.cpu_shares, &old.cpu_shares) {
        set_shares(hierarchy, path, new.cpu_shares)?;
    }
    let per_share = order.policy.cpu_quota_per_share;
    let quota = cpu_quota_us(new, per_share);
    if order.is_due(&quota, &cpu_quota_us(old, per_share)) {
        if hierarchy.unified {
            let text = format!("{} {CPU_PERIOD_US}", number_or(quota, "max"));
            put(path, "cpu.max", &text)?;
        } else {
            put(path, "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
            put(path, "cpu.cfs_quota_us", &number_or(quota, "-1"))?;
        }
    }
    Ok(())
}

/// Writes the CPU share alone; `None` is the kernel's default.
pub(super) fn set_shares(
    hierarchy: &Hierarchy,
    path: &Path,
    shares: Option<u64>,
) -> Result<(), CgroupError> {
    let shares = shares.unwrap_or(DEFAULT_SHARES);
    if hierarchy.unified {
        put(path, "cpu.weight", &weight_of_shares(shares).to_string())
    } else {
        put(path, "cpu.shares", &shares.to_string())
    }
}

fn number_or(number: Option<u64>, none: &str) -> String {
    number.map_or_else(|| none.to_owned(), |number| number.to_string())
}

fn memory_v1(path: &Path, bytes: Option<u64>, order: &Order<'_>) -> Result<(), CgroupError> {
    const MEMORY: &str = "memory.limit_in_bytes";
    const WITH_SWAP: &str = "memory.memsw.limit_in_bytes";
    let value = number_or(bytes.map(|bytes| bytes.min(i64::MAX.unsigned_abs())), "-1");
    if order.policy.leave_swap || !path.join(WITH_SWAP).exists() {
        return put(path, MEMORY, &value).map_err(|error| in_use(error, path, bytes));
    }
    // The kernel keeps memory at or below memory with swap at every moment: downwards the one
    // goes first, upwards the other.
    let down = put(path, MEMORY, &value).and_then(|()| put(path, WITH_SWAP, &value));
    let written = match down {
        Err(error) if error.is(io::ErrorKind::InvalidInput) => {
            put(path, WITH_SWAP, &value).and_then(|()| put(path, MEMORY, &value))
        }
        other => other,
    };
    written.map_err(|error| in_use(error, path, bytes))
}

/// v1 refuses a limit below what is in use by EBUSY, which says nothing to a person.
fn in_use(error: CgroupError, path: &Path, bytes: Option<u64>) -> CgroupError {
    if !error.is(io::ErrorKind::ResourceBusy) {
        return error;
    }
    CgroupError::InUse {
        path: path.to_owned(),
        used: read_number(path, "memory.usage_in_bytes").unwrap_or_default(),
        wanted: bytes.unwrap_or_default(),
    }
}

fn memory_v2(path: &Path, bytes: Option<u64>, order: &Order<'_>) -> Result<(), CgroupError> {
    let value = number_or(bytes, "max");
    if let (Which::Changed | Which::All, Some(bytes)) = (order.which, bytes) {
        make_room_v2(path, bytes)?;
    }
    put(path, "memory.max", &value)?;
    if !order.policy.leave_swap && path.join("memory.swap.max").exists() {
        let swap = if bytes.is_some() { "0" } else { "max" };
        put(path, "memory.swap.max", swap)?;
    }
    Ok(())
}

/// Brings a group's use below a new limit, or fails. Without this `memory.max` would kill in it:
/// what runs there did nothing wrong by using what it had.
fn make_room_v2(path: &Path, bytes: u64) -> Result<(), CgroupError> {
    const CURRENT: &str = "memory.current";
    if read_number(path, CURRENT).unwrap_or_default() <= bytes {
        return Ok(());
    }
    // The write itself reclaims down to the value, as far as it gets.
    put(path, "memory.high", &bytes.to_string())?;
    let used = read_number(path, CURRENT).unwrap_or_default();
    put(path, "memory.high", "max")?;
    if used <= bytes {
        return Ok(());
    }
    Err(CgroupError::InUse {
        path: path.to_owned(),
        used,
        wanted: bytes,
    })
}

fn io(hierarchy: &Hierarchy, path: &Path, order: &Order<'_>) -> Result<(), CgroupError> {
    let new = order.limits.io.or(order.policy.io);
    let old = match order.which {
        Which::Set => IoLimits::default(),
        Which::All => IoLimits {
            // Different from any other.
            read_bps: Some(0),
            ..new
        },
        Which::Changed => order.before.io.or(order.policy.io),
    };
    if new == old {
        return Ok(());
    }
    if new.weight != old.weight {
        io_weight(hierarchy, path, new.weight)?;
    }
    let rates = |io: &IoLimits| (io.read_bps, io.write_bps, io.read_iops, io.write_iops);
    if rates(&new) == rates(&old) {
        return Ok(());
    }
    for device in devices::block() {
        if hierarchy.unified {
            let line = format!(
                "{device} rbps={} wbps={} riops={} wiops={}",
                number_or(new.read_bps, "max"),
                number_or(new.write_bps, "max"),
                number_or(new.read_iops, "max"),
                number_or(new.write_iops, "max")
            );
            put(path, "io.max", &line)?;
            continue;
        }
        for (file, rate) in [
            ("blkio.throttle.read_bps_device", new.read_bps),
            ("blkio.throttle.write_bps_device", new.write_bps),
            ("blkio.throttle.read_iops_device", new.read_iops),
            ("blkio.throttle.write_iops_device", new.write_iops),
        ] {
            // 0 takes the limit away.
            put(path, file, &format!("{device} {}", number_or(rate, "0")))?;
        }
    }
    Ok(())
}

/// Writes the share of the disks. Which file takes it is up to the host's I/O scheduler; a host
/// without any has no shares, which Guardian ignores, too.
fn io_weight(hierarchy: &Hierarchy, path: &Path, weight: Option<u64>) -> Result<(), CgroupError> {
    let of_v1 = weight.unwrap_or(500).clamp(10, 1000);
    let of_v2 = weight.map_or(100, io_weight_of_blkio);
    let files: &[(&str, u64)] = if hierarchy.unified {
        &[("io.bfq.weight", of_v1), ("io.weight", of_v2)]
    } else {
        &[("blkio.bfq.weight", of_v1), ("blkio.weight", of_v1)]
    };
    match files.iter().find(|(file, _)| path.join(file).exists()) {
        Some((file, value)) => put(path, file, &value.to_string()),
        None => {
            tracing::warn!("this host has no shares of disks: an io weight has no effect");
            Ok(())
        }
    }
}

/// The limits of a group as the kernel has them, for people: file and content.
pub(super) fn read_back(hierarchy: &Hierarchy, path: &Path) -> Vec<(String, String)> {
    const FILES: [&str; 14] = [
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.max",
        "memory.swap.max",
        "pids.max",
        "cpu.shares",
        "cpu.cfs_quota_us",
        "cpu.weight",
        "cpu.max",
        "io.max",
        "io.weight",
        "io.bfq.weight",
        "blkio.throttle.read_bps_device",
        "blkio.throttle.write_bps_device",
    ];
    let known = |file: &&&str| {
        let controller = file.split('.').next().unwrap_or_default();
        hierarchy.has(controller)
    };
    FILES
        .iter()
        .filter(known)
        .filter_map(|file| Some(((*file).to_owned(), read(path, file)?.trim().to_owned())))
        .collect()
}

/// The controller that these limits need and no hierarchy has.
pub(super) fn unsupported(limits: &Limits, has: impl Fn(&str) -> bool) -> Result<(), CgroupError> {
    let needed = [
        (limits.memory_bytes.is_some(), "memory"),
        (limits.pids.is_some(), "pids"),
        (
            limits.cpu_shares.is_some() || limits.cpu_millis.is_some(),
            "cpu",
        ),
    ];
    for (needed, controller) in needed {
        if needed && !has(controller) {
            return Err(CgroupError::NoController(controller));
        }
    }
    if limits.io.has_rate() && !has("io") && !has("blkio") {
        return Err(CgroupError::NoController("io"));
    }
    Ok(())
}

/// Refuses what the kernel would not take, before anything is made.
///
/// # Errors
/// [`CgroupError::OutOfRange`].
pub(super) fn check(limits: &Limits) -> Result<(), CgroupError> {
    // Guardian's words.
    if limits.cpu_shares.is_some_and(|shares| shares < 2) {
        return Err(CgroupError::OutOfRange(
            "minimum allowed cpu-shares is 2".to_owned(),
        ));
    }
    if let Some(weight) = limits
        .io
        .weight
        .filter(|weight| !(10..=1000).contains(weight))
    {
        return Err(CgroupError::OutOfRange(format!(
            "an io weight of {weight} cannot be used: give 10 to 1000"
        )));
    }
    if let Some(millis) = limits.cpu_millis.filter(|millis| *millis < 10) {
        return Err(CgroupError::OutOfRange(format!(
            "{millis} thousandths of a CPU are too little: give at least 10"
        )));
    }
    Ok(())
}

/// Explains a file that is not there: its controller was not handed down.
pub(super) fn missing_controller(path: &Path, file: &str, error: io::Error) -> CgroupError {
    let full = path.join(file);
    if error.kind() == io::ErrorKind::NotFound && path.exists() {
        let controller = file.split('.').next().unwrap_or(file);
        let hint = format!(
            "the {controller} controller is not enabled for it: see cgroup.subtree_control above"
        );
        return failed("write to", &full)(io::Error::new(io::ErrorKind::NotFound, hint));
    }
    failed("write to", &full)(error)
}

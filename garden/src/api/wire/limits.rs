//! Limits on the wire: those of a container, and those of a pea of its own.
//!
//! Zero means unlimited throughout, so it maps to `None` in the domain.

use serde::{Deserialize, Serialize};

use super::zero;
use crate::error::Error;
use crate::model::{DiskLimit, DiskScope, IoLimits, Limits};

/// All limits of a container.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireLimits {
    pub(crate) bandwidth_limits: WireBandwidth,
    pub(crate) cpu_limits: WireCpu,
    pub(crate) disk_limits: WireDisk,
    pub(crate) memory_limits: WireMemory,
    pub(crate) pid_limits: WirePids,
    /// Ours: Garden's API has no word for it.
    #[serde(skip_serializing_if = "zero")]
    pub(crate) io_limits: IoLimits,
}

/// Bytes per second; accepted and, as in Guardian, without effect.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireBandwidth {
    #[serde(skip_serializing_if = "zero")]
    rate: u64,
    #[serde(skip_serializing_if = "zero")]
    burst: u64,
}

/// A share of the processor.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireCpu {
    #[serde(skip_serializing_if = "zero")]
    weight: u64,
    #[serde(skip_serializing_if = "zero")]
    limit_in_shares: u64,
    /// Ours: most CPU time, in thousandths of one CPU.
    #[serde(skip_serializing_if = "zero")]
    limit_in_millis: u64,
}

/// A disk quota, of which only the hard limits count.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireDisk {
    #[serde(skip_serializing_if = "zero")]
    inode_soft: u64,
    #[serde(skip_serializing_if = "zero")]
    inode_hard: u64,
    #[serde(skip_serializing_if = "zero")]
    byte_soft: u64,
    #[serde(skip_serializing_if = "zero")]
    byte_hard: u64,
    #[serde(skip_serializing_if = "zero")]
    scope: u8,
}

/// Memory.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireMemory {
    #[serde(skip_serializing_if = "zero")]
    limit_in_bytes: u64,
}

/// Processes and threads.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WirePids {
    #[serde(skip_serializing_if = "zero")]
    max: u64,
}

/// The limits that a pea can have of its own.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireProcessLimits {
    cpu_limits: WireCpu,
    memory_limits: WireMemory,
    /// Ours, like the next.
    #[serde(skip_serializing_if = "zero")]
    pid_limits: WirePids,
    #[serde(skip_serializing_if = "zero")]
    io_limits: IoLimits,
}

fn limited(value: u64) -> Option<u64> {
    (value > 0).then_some(value)
}

impl WireMemory {
    /// Clamped to what the kernel's signed counters can hold.
    fn bytes(&self) -> Option<u64> {
        limited(self.limit_in_bytes.min(i64::MAX.unsigned_abs()))
    }

    pub(crate) fn of(limits: &Limits) -> Self {
        Self {
            limit_in_bytes: limits.memory_bytes.unwrap_or_default(),
        }
    }
}

impl WireCpu {
    fn shares(&self) -> Option<u64> {
        limited(self.weight).or(limited(self.limit_in_shares))
    }

    pub(crate) fn of(limits: &Limits) -> Self {
        Self {
            weight: 0,
            limit_in_shares: limits.cpu_shares.unwrap_or_default(),
            limit_in_millis: limits.cpu_millis.unwrap_or_default(),
        }
    }
}

impl WirePids {
    pub(crate) fn limit(&self) -> Option<u64> {
        limited(self.max)
    }

    pub(crate) fn of(pids: Option<u64>) -> Self {
        Self {
            max: pids.unwrap_or_default(),
        }
    }
}

impl WireDisk {
    pub(crate) fn limit(&self) -> Result<Option<DiskLimit>, Error> {
        let scope = match self.scope {
            0 => DiskScope::Total,
            1 => DiskScope::Exclusive,
            other => {
                return Err(Error::Invalid(format!(
                    "invalid disk limit scope: {other}: use 0 (total) or 1 (exclusive)"
                )));
            }
        };
        let limit = DiskLimit {
            bytes: limited(self.byte_hard),
            inodes: limited(self.inode_hard),
            scope,
        };
        Ok((limit.bytes.is_some() || limit.inodes.is_some()).then_some(limit))
    }

    pub(crate) fn of(disk: Option<DiskLimit>) -> Self {
        let Some(disk) = disk else {
            return Self::default();
        };
        Self {
            inode_hard: disk.inodes.unwrap_or_default(),
            byte_hard: disk.bytes.unwrap_or_default(),
            scope: u8::from(disk.scope == DiskScope::Exclusive),
            ..Self::default()
        }
    }
}

impl TryFrom<WireLimits> for Limits {
    type Error = Error;

    fn try_from(wire: WireLimits) -> Result<Self, Error> {
        Ok(Self {
            memory_bytes: wire.memory_limits.bytes(),
            pids: limited(wire.pid_limits.max),
            cpu_shares: wire.cpu_limits.shares(),
            cpu_millis: limited(wire.cpu_limits.limit_in_millis),
            io: wire.io_limits,
            disk: wire.disk_limits.limit()?,
        })
    }
}

impl From<&Limits> for WireLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            bandwidth_limits: WireBandwidth::default(),
            cpu_limits: WireCpu::of(limits),
            disk_limits: WireDisk::of(limits.disk),
            memory_limits: WireMemory::of(limits),
            pid_limits: WirePids::of(limits.pids),
            io_limits: limits.io,
        }
    }
}

impl From<WireProcessLimits> for Limits {
    fn from(wire: WireProcessLimits) -> Self {
        Self {
            memory_bytes: wire.memory_limits.bytes(),
            cpu_shares: wire.cpu_limits.shares(),
            cpu_millis: limited(wire.cpu_limits.limit_in_millis),
            pids: wire.pid_limits.limit(),
            io: wire.io_limits,
            disk: None,
        }
    }
}

impl From<&Limits> for WireProcessLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            cpu_limits: WireCpu::of(limits),
            memory_limits: WireMemory::of(limits),
            pid_limits: WirePids::of(limits.pids),
            io_limits: limits.io,
        }
    }
}

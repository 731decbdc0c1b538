//! What the server tells about containers, on the wire.
//!
//! Names are Go's own field names where the Go types carry no tag. Everything is always present,
//! and every number is a plain integer.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::error::Envelope;
use super::zero;
use crate::model::{
    Addresses, Capacity, ContainerInfo, CpuMetrics, DiskMetrics, Metrics, NetworkMetrics,
    PortMapping,
};

/// What a server can hold.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireCapacity {
    #[serde(skip_serializing_if = "zero")]
    memory_in_bytes: u64,
    #[serde(skip_serializing_if = "zero")]
    disk_in_bytes: u64,
    #[serde(skip_serializing_if = "zero")]
    schedulable_disk_in_bytes: u64,
    #[serde(skip_serializing_if = "zero")]
    max_containers: u64,
}

impl From<Capacity> for WireCapacity {
    fn from(capacity: Capacity) -> Self {
        Self {
            memory_in_bytes: capacity.memory_bytes,
            disk_in_bytes: capacity.disk_bytes,
            schedulable_disk_in_bytes: capacity.schedulable_disk_bytes,
            max_containers: capacity.max_containers,
        }
    }
}

impl From<WireCapacity> for Capacity {
    fn from(wire: WireCapacity) -> Self {
        Self {
            memory_bytes: wire.memory_in_bytes,
            disk_bytes: wire.disk_in_bytes,
            schedulable_disk_bytes: wire.schedulable_disk_in_bytes,
            max_containers: wire.max_containers,
        }
    }
}

/// A container.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct WireInfo {
    pub(crate) state: String,
    pub(crate) events: Vec<String>,
    #[serde(rename = "HostIP")]
    host_ip: String,
    #[serde(rename = "ContainerIP")]
    container_ip: String,
    #[serde(rename = "ContainerIPv6")]
    container_ipv6: String,
    #[serde(rename = "ExternalIP")]
    external_ip: String,
    pub(crate) container_path: PathBuf,
    #[serde(rename = "ProcessIDs")]
    pub(crate) process_ids: Vec<String>,
    pub(crate) properties: BTreeMap<String, String>,
    mapped_ports: Vec<WireMappedPort>,
}

/// A port that leads into a container.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct WireMappedPort {
    host_port: u32,
    container_port: u32,
}

impl From<ContainerInfo> for WireInfo {
    fn from(info: ContainerInfo) -> Self {
        let text = |address: Option<IpAddr>| address.map(|a| a.to_string()).unwrap_or_default();
        Self {
            state: if info.stopped { "stopped" } else { "active" }.into(),
            events: info.events,
            host_ip: text(info.addresses.host),
            container_ip: text(info.addresses.container),
            container_ipv6: text(info.addresses.container_v6),
            external_ip: text(info.addresses.external),
            container_path: info.path,
            process_ids: info.processes.iter().map(|p| p.id.to_string()).collect(),
            properties: info.properties,
            mapped_ports: info
                .mapped_ports
                .iter()
                .map(|mapping| WireMappedPort {
                    host_port: mapping.host_port,
                    container_port: mapping.container_port,
                })
                .collect(),
        }
    }
}

impl WireInfo {
    pub(crate) fn addresses(&self) -> Addresses {
        Addresses {
            host: self.host_ip.parse().ok(),
            container: self.container_ip.parse().ok(),
            container_v6: self.container_ipv6.parse().ok(),
            external: self.external_ip.parse().ok(),
        }
    }

    pub(crate) fn ports(&self) -> Vec<PortMapping> {
        let domain = |port: &WireMappedPort| PortMapping {
            host_port: port.host_port,
            container_port: port.container_port,
        };
        self.mapped_ports.iter().map(domain).collect()
    }
}

/// One entry of a bulk info.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireBulkInfo {
    #[serde(rename = "Info")]
    pub(crate) info: WireInfo,
    #[serde(rename = "Err")]
    pub(crate) error: Option<Envelope>,
}

/// One entry of bulk metrics.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireBulkMetrics {
    #[serde(rename = "Metrics")]
    pub(crate) metrics: WireMetrics,
    #[serde(rename = "Err")]
    pub(crate) error: Option<Envelope>,
}

/// What `MemoryStat` always has, by the kernel's names.
const MEMORY_STAT: [&str; 31] = [
    "active_anon",
    "active_file",
    "cache",
    "hierarchical_memory_limit",
    "inactive_anon",
    "inactive_file",
    "mapped_file",
    "pgfault",
    "pgmajfault",
    "pgpgin",
    "pgpgout",
    "rss",
    "total_active_anon",
    "total_active_file",
    "total_cache",
    "total_inactive_anon",
    "total_inactive_file",
    "total_mapped_file",
    "total_pgfault",
    "total_pgmajfault",
    "total_pgpgin",
    "total_pgpgout",
    "total_rss",
    "total_unevictable",
    "unevictable",
    "swap",
    "hierarchical_memsw_limit",
    "total_swap",
    "anon",
    "file",
    "swapcached",
];
const MEMORY_USAGE: &str = "TotalUsageTowardLimit";

/// What a container uses.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct WireMetrics {
    memory_stat: BTreeMap<String, u64>,
    #[serde(rename = "CPUStat")]
    cpu_stat: WireCpuStat,
    disk_stat: WireDiskStat,
    network_stat: Option<WireNetworkStat>,
    pid_stat: WirePidStat,
    age: u64,
    #[serde(rename = "CPUEntitlement")]
    cpu_entitlement: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct WireCpuStat {
    usage: u64,
    user: u64,
    system: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct WireDiskStat {
    total_bytes_used: u64,
    total_inodes_used: u64,
    exclusive_bytes_used: u64,
    exclusive_inodes_used: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct WireNetworkStat {
    rx_bytes: u64,
    tx_bytes: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct WirePidStat {
    current: u64,
    max: u64,
}

impl Default for WireMetrics {
    fn default() -> Self {
        Metrics::default().into()
    }
}

/// Nanoseconds that also fit Go's signed 64 bits.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos())
        .unwrap_or(u64::MAX)
        .min(i64::MAX.unsigned_abs())
}

impl From<Metrics> for WireMetrics {
    fn from(metrics: Metrics) -> Self {
        let stat = |name: &&str| metrics.memory_stat.get(*name).copied().unwrap_or_default();
        let mut memory_stat: BTreeMap<_, _> = MEMORY_STAT
            .iter()
            .map(|name| ((*name).to_owned(), stat(name)))
            .collect();
        memory_stat.insert(MEMORY_USAGE.to_owned(), metrics.memory_bytes);
        Self {
            memory_stat,
            cpu_stat: WireCpuStat {
                usage: nanos(metrics.cpu.usage),
                user: nanos(metrics.cpu.user),
                system: nanos(metrics.cpu.system),
            },
            disk_stat: WireDiskStat {
                total_bytes_used: metrics.disk.total_bytes,
                total_inodes_used: metrics.disk.total_inodes,
                exclusive_bytes_used: metrics.disk.exclusive_bytes,
                exclusive_inodes_used: metrics.disk.exclusive_inodes,
            },
            network_stat: metrics.network.map(|network| WireNetworkStat {
                rx_bytes: network.rx_bytes,
                tx_bytes: network.tx_bytes,
            }),
            pid_stat: WirePidStat {
                current: metrics.pids,
                max: metrics.max_pids.unwrap_or_default(),
            },
            age: nanos(metrics.age),
            cpu_entitlement: nanos(metrics.cpu_entitlement),
        }
    }
}

impl From<WireMetrics> for Metrics {
    fn from(mut wire: WireMetrics) -> Self {
        Self {
            memory_bytes: wire.memory_stat.remove(MEMORY_USAGE).unwrap_or_default(),
            memory_stat: wire.memory_stat,
            cpu: CpuMetrics {
                usage: Duration::from_nanos(wire.cpu_stat.usage),
                user: Duration::from_nanos(wire.cpu_stat.user),
                system: Duration::from_nanos(wire.cpu_stat.system),
            },
            disk: DiskMetrics {
                total_bytes: wire.disk_stat.total_bytes_used,
                total_inodes: wire.disk_stat.total_inodes_used,
                exclusive_bytes: wire.disk_stat.exclusive_bytes_used,
                exclusive_inodes: wire.disk_stat.exclusive_inodes_used,
            },
            network: wire.network_stat.map(|network| NetworkMetrics {
                rx_bytes: network.rx_bytes,
                tx_bytes: network.tx_bytes,
            }),
            pids: wire.pid_stat.current,
            max_pids: (wire.pid_stat.max > 0).then_some(wire.pid_stat.max),
            age: Duration::from_nanos(wire.age),
            cpu_entitlement: Duration::from_nanos(wire.cpu_entitlement),
            missing: Vec::new(),
        }
    }
}

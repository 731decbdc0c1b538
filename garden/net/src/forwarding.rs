//! The host as a router: what must be switched on for containers to reach anything.

use std::io;
use std::path::Path;

use crate::error::KernelError;

const IPV4: &str = "/proc/sys/net/ipv4/ip_forward";
const IPV6: &str = "/proc/sys/net/ipv6/conf";

/// Switches forwarding on, for the network namespace of the calling thread.
pub(crate) fn enable(ipv6: bool) -> Result<(), KernelError> {
    switch_on(Path::new(IPV4))
        .map_err(|error| KernelError::io(format!("switch on forwarding ({IPV4})"), error))?;
    if ipv6 {
        enable_ipv6().map_err(|error| {
            KernelError::io(
                format!("switch on forwarding of IPv6 ({IPV6}/all/forwarding)"),
                error,
            )
        })?;
    }
    Ok(())
}

/// A host that forwards IPv6 stops listening to routers, unless told otherwise: one that got its
/// address and its way out from a router would lose them.
fn enable_ipv6() -> io::Result<()> {
    let forwarding = Path::new(IPV6).join("all/forwarding");
    if std::fs::read_to_string(&forwarding)?.trim() == "1" {
        return Ok(());
    }
    for link in std::fs::read_dir(IPV6)? {
        let link = link?;
        // "all" and "default" are no links, and new ones (our bridges) must not listen.
        if link.file_name() == "all" || link.file_name() == "default" {
            continue;
        }
        let accept = link.path().join("accept_ra");
        // A link that goes meanwhile needs nothing.
        if std::fs::read_to_string(&accept).is_ok_and(|value| value.trim() == "1") {
            let _ = std::fs::write(&accept, "2");
        }
    }
    switch_on(&forwarding)
}

fn switch_on(path: &Path) -> io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "1") {
        return Ok(());
    }
    std::fs::write(path, "1")
}

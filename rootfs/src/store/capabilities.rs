//! What this kernel can do, found out once for each boot.
//!
//! Probing starts a process; a tool that makes one root filesystem has no time for that. So whoever
//! probes writes what was found into the store, and tools of the same boot and program version
//! read it. A record that cannot be read is as good as none.

use serde::{Deserialize, Serialize};

use super::Store;
use crate::capabilities::{Capabilities, Pretend};
use crate::dirs;

const RECORD: &str = "capabilities";

#[derive(Serialize, Deserialize)]
struct Remembered {
    boot: String,
    program: String,
    capabilities: Capabilities,
}

impl Store {
    /// What this kernel and this disk can do; probed once.
    pub fn capabilities(&self) -> Capabilities {
        let known = &self.inner.capabilities;
        *known.get_or_init(|| self.remembered().unwrap_or_else(|| self.probe_now()))
    }

    /// Probes, whatever is remembered: what a module adds may have been loaded meanwhile.
    pub(super) fn probe(&self) {
        self.inner.capabilities.get_or_init(|| self.probe_now());
    }

    fn probe_now(&self) -> Capabilities {
        let pretend = self.inner.pretend;
        let capabilities = Capabilities::probe(&self.inner.dirs, &self.inner.quota, pretend);
        let store = self.inner.dirs.path.display();
        tracing::info!(?capabilities, %store, "probed the kernel and the disk");
        // What is only pretended is nobody else's.
        if pretend != Pretend::default() {
            return capabilities;
        }
        if let Err(error) = self.write_capabilities(capabilities) {
            tracing::debug!(%error, "what the kernel can do is not remembered");
        }
        capabilities
    }

    fn remembered(&self) -> Option<Capabilities> {
        if self.inner.pretend != Pretend::default() {
            return None;
        }
        let bytes = dirs::read(&self.inner.dirs.root, RECORD).ok()??;
        let known: Remembered = serde_json::from_slice(&bytes).ok()?;
        let fits = known.boot == self.inner.dirs.boot && known.program == program();
        // Without overlays nothing works at all: worth another look.
        (fits && known.capabilities.overlay).then_some(known.capabilities)
    }

    fn write_capabilities(&self, capabilities: Capabilities) -> std::io::Result<()> {
        let known = Remembered {
            boot: self.inner.dirs.boot.clone(),
            program: program(),
            capabilities,
        };
        let text = serde_json::to_vec(&known)?;
        let name = format!("{RECORD}-{}", uuid::Uuid::new_v4());
        let dirs = &self.inner.dirs;
        dirs::write(&dirs.tmp, &name, &text)?;
        Ok(rustix::fs::renameat(&dirs.tmp, &*name, &dirs.root, RECORD)?)
    }
}

fn program() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

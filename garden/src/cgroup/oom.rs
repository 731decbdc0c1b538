//! Hearing of a group that runs out of memory.
//!
//! [`Alarm`] is a descriptor that the kernel makes ready when that happens: on v1 an eventfd that
//! is registered with `memory.oom_control`, on v2 the file `memory.events` itself. It is an edge:
//! how often the kernel killed is then asked of the groups. On v1 the alarm sounds *before* the
//! kernel kills, so the counter follows a moment later. Sources: cgroup-v1/memory.rst section 10,
//! cgroup-v2.rst.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::files::{open_file, put};
use super::host::Hierarchy;
use super::{CgroupError, failed};

/// A descriptor to wait on.
#[derive(Debug)]
pub struct Alarm {
    file: OwnedFd,
    /// v2: by `POLLPRI`, and armed by a read.
    priority: bool,
    /// v1: what it was registered for must stay open.
    _watched: Option<File>,
}

impl Alarm {
    /// Arms an alarm for a group.
    pub(super) fn arm(hierarchy: &Hierarchy, path: &Path) -> Result<Self, CgroupError> {
        if hierarchy.unified {
            return Ok(Self {
                file: open_file(path, "memory.events")?.into(),
                priority: true,
                _watched: None,
            });
        }
        let watched = open_file(path, "memory.oom_control")?;
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let file = rustix::event::eventfd(0, flags)
            .map_err(|errno| failed("watch", path)(errno.into()))?;
        let order = format!("{} {}", file.as_raw_fd(), watched.as_raw_fd());
        put(path, "cgroup.event_control", &order)?;
        Ok(Self {
            file,
            priority: false,
            _watched: Some(watched),
        })
    }

    /// Puts it to use. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the runtime cannot wait for it.
    pub fn listen(self) -> std::io::Result<Listening> {
        let interest = if self.priority {
            Interest::PRIORITY
        } else {
            Interest::READABLE
        };
        #[expect(
            deprecated,
            reason = "its successor is unsafe for types whose descriptor may change or be closed \
                      while it is registered; an `OwnedFd` that is never taken out does neither"
        )]
        let file = AsyncFd::with_interest(self.file, interest)?;
        Ok(Listening {
            priority: self.priority,
            file,
            _watched: self._watched,
        })
    }
}

/// An alarm in use.
#[derive(Debug)]
pub struct Listening {
    file: AsyncFd<OwnedFd>,
    priority: bool,
    _watched: Option<File>,
}

impl Listening {
    /// Whether the kernel kills only after the alarm.
    pub fn sounds_before(&self) -> bool {
        !self.priority
    }

    /// Makes the next alarm possible. Call it before looking at the counters.
    pub fn rearm(&self) {
        // Neither blocks: a few numbers in memory.
        let mut buffer = [0_u8; 512];
        let _ = if self.priority {
            rustix::io::pread(self.file.as_fd(), &mut buffer, 0)
        } else {
            rustix::io::read(self.file.as_fd(), &mut buffer[..8])
        };
    }

    /// Waits for the next alarm; also returns when the group is gone.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn wait(&self) -> std::io::Result<()> {
        let interest = if self.priority {
            Interest::PRIORITY
        } else {
            Interest::READABLE
        };
        self.file.ready(interest).await?.clear_ready();
        Ok(())
    }
}

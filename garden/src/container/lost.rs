//! The death of a supervisor, or of a container's init.
//!
//! Without its supervisor nobody would learn how a container's processes end, or start new ones in
//! it. So everything in it is killed, and its cgroups and root filesystems go at once, by a teardown
//! of their own; its addresses and ports stay its own. The container itself stays: it is listed, in
//! the state `stopped` and with an event that says why, what needs its processes is refused with
//! [`Error::ContainerLost`], and destroying it frees its handle. As with Guardian, only a destroy
//! takes a handle away from under a client.
//!
//! Called by the follower of a supervisor's events and by a start that does not reach one. What
//! processes left on file as their exit stays true; of others it is told that it is not known.

use std::sync::Arc;
use std::time::Duration;

use super::Container;
use super::groups::Groups;
use crate::depot::Phase;
use crate::error::Error;
use crate::events::EventKind;
use crate::manager::pod_target;

/// How long clients wait for the news while what they look at is being killed.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// Why a container is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Its supervisor died, or cannot be reached.
    Supervisor,
    /// Its init ended. Its supervisor tells how everything else does.
    Init,
    /// An earlier server found that out.
    Known,
}

impl Container {
    /// Whether it is lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Refuses what needs its processes when there can be none.
    ///
    /// # Errors
    /// [`Error::ContainerLost`].
    pub(crate) fn expect_alive(&self) -> Result<(), Error> {
        if self.is_lost() {
            return Err(Error::ContainerLost(self.handle.clone()));
        }
        Ok(())
    }
}

/// Takes a container out of service for good. Once is enough; more often is no fault. One that is
/// being destroyed is left to that.
pub(crate) async fn lose(container: &Arc<Container>, cause: Cause) {
    if container.is_destroying() {
        return;
    }
    if container
        .lost
        .swap(true, std::sync::atomic::Ordering::SeqCst)
    {
        return;
    }
    container.checks.close();
    let (text, kind) = match cause {
        Cause::Supervisor => ("Supervisor died", Some(EventKind::SupervisorDied)),
        Cause::Init => ("Init died", Some(EventKind::InitDied)),
        Cause::Known => ("", None),
    };
    if let Some(kind) = kind {
        tracing::error!(handle = %container.handle, text, "container lost; killing its pod");
        let noted = container.change(|record| {
            record.stopped = true;
            record.events.push(text.to_owned());
            if record.phase == Phase::Created {
                record.phase = Phase::Lost;
            }
        });
        if let Err(error) = noted {
            let error = crate::error::report(&error);
            tracing::error!(handle = %container.handle, error, "that it is lost is not on file");
        }
        container.event(kind, None);
    }
    kill(container).await;
    let services = &container.services;
    let target = pod_target(services, &container.handle, &container.record());
    services.queue().enqueue(target);
}

async fn kill(container: &Arc<Container>) {
    let pod = Arc::clone(container);
    let killed = container
        .services
        .files
        .run(move || Groups::of(&pod).kill(&pod.services.cgroups));
    let failed = match tokio::time::timeout(KILL_PATIENCE, killed).await {
        Ok(Ok(Ok(()))) => return,
        Ok(Ok(Err(error))) => crate::error::report(&error),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it takes too long".to_owned(),
    };
    tracing::error!(handle = %container.handle, error = failed, "cannot kill the pod at once; its teardown will");
}

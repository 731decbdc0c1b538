//! What running a pea needs from its surroundings, declared here so that the laws of order can be
//! tested with fakes.
//!
//! Implemented by the manager. None of these may block its thread: what can hang in the kernel
//! runs on a thread of its own.

use std::fmt;

use crate::teardown::{Queue, Resources, Target, Ticket};

/// The full name of a pea: the same process id in another container is another pea.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeaName {
    /// The handle of its container.
    pub container: String,
    /// Its process id.
    pub process: String,
}

impl fmt::Display for PeaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container, self.process)
    }
}

/// What a pea is made from.
#[derive(Debug, Clone)]
pub struct Order<Image, Spec> {
    /// Its name.
    pub name: PeaName,
    /// What tells it from any other pea of that name, before and after it; also the id of its
    /// root filesystem.
    pub instance: String,
    /// The image of its root filesystem.
    pub image: Image,
    /// The user as given: `name`, `uid`, `uid:gid`, …; empty for root.
    pub user: String,
    /// Everything else, for the launcher.
    pub spec: Spec,
    /// What there will be to take away, named before any of it is made.
    pub resources: Resources,
}

/// Makes root filesystems. (They are destroyed by the stages of the teardown queue.)
pub trait Rootfs: Send + Sync {
    /// An image and how to reach it.
    type Image: Send + Sync + 'static;
    /// A mounted root filesystem with its image's configuration and an fd beneath which users are
    /// looked up. Dropping it must not block, and must not destroy what it stands for.
    type Root: Send + Sync + 'static;
    /// Why it failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Makes the root filesystem `id`, called once per instance and first of all. Whether it
    /// succeeds or not, a teardown of `id` follows.
    fn create(
        &self,
        id: &str,
        image: &Self::Image,
    ) -> impl Future<Output = Result<Self::Root, Self::Error>> + Send;
}

/// Finds users.
pub trait Users: Send + Sync {
    /// See [`Rootfs::Root`].
    type Root: Send + Sync + 'static;
    /// A user as the kernel knows it.
    type User: Send + 'static;
    /// Why it failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Looks the user up in the image's own files. It must not start anything.
    fn resolve(
        &self,
        root: &Self::Root,
        user: &str,
    ) -> impl Future<Output = Result<Self::User, Self::Error>> + Send;
}

/// What a launcher gets.
#[derive(Debug)]
pub struct Launch<Root, User, Spec> {
    /// The pea's name.
    pub name: PeaName,
    /// Its instance.
    pub instance: String,
    /// Its root filesystem. The launcher hands its mount over to whoever needs it and drops it.
    pub root: Root,
    /// Its user.
    pub user: User,
    /// Everything else.
    pub spec: Spec,
}

/// Starts processes.
pub trait Launcher: Send + Sync {
    /// See [`Rootfs::Root`].
    type Root: Send + Sync + 'static;
    /// See [`Users::User`].
    type User: Send + 'static;
    /// What it needs beside them.
    type Spec: Send + 'static;
    /// What it starts.
    type Process: Process;
    /// Why it failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Starts the pea's process. Whatever a failure leaves behind must be named in the resources of
    /// the order: the teardown that follows takes it away.
    fn launch(
        &self,
        launch: Launch<Self::Root, Self::User, Self::Spec>,
    ) -> impl Future<Output = Result<Self::Process, Self::Error>> + Send;
}

/// A running process.
pub trait Process: Send + Sync + 'static {
    /// How it ended.
    type Exit: Clone + Send + Sync + 'static;

    /// Its pid on the host.
    fn pid(&self) -> u32;

    /// Waits for its end. Must lose nothing when it is dropped and called again.
    fn exit(&mut self) -> impl Future<Output = Self::Exit> + Send;

    /// Sends it SIGKILL. Must not wait for anything: it is only the quick way, the first stage of
    /// the teardown sees to it that nothing is left.
    ///
    /// # Errors
    /// Only logged.
    fn kill(&self) -> std::io::Result<()>;
}

/// Takes over what is left of a pea.
pub trait Teardown: Send + Sync {
    /// Puts it on file; nothing of it need happen before this returns. On the path of an exit.
    fn enqueue(&self, target: Target) -> Ticket;

    /// The same, for a caller that will wait for the ticket.
    fn enqueue_direct(&self, target: Target) -> Ticket;
}

impl Teardown for Queue {
    fn enqueue(&self, target: Target) -> Ticket {
        Self::enqueue(self, target)
    }

    fn enqueue_direct(&self, target: Target) -> Ticket {
        Self::enqueue_direct(self, target)
    }
}

/// All of the above in one place, with types that fit.
pub trait Host: Send + Sync + 'static {
    /// Makes root filesystems.
    type Rootfs: Rootfs;
    /// Finds users.
    type Users: Users<Root = RootOf<Self>, Error = ErrorOf<Self>>;
    /// Starts processes.
    type Launcher: Launcher<Root = RootOf<Self>, User = <Self::Users as Users>::User, Error = ErrorOf<Self>>;
    /// Takes over what is left.
    type Teardown: Teardown;

    /// Makes root filesystems.
    fn rootfs(&self) -> &Self::Rootfs;
    /// Finds users.
    fn users(&self) -> &Self::Users;
    /// Starts processes.
    fn launcher(&self) -> &Self::Launcher;
    /// Takes over what is left.
    fn teardown(&self) -> &Self::Teardown;
}

/// The root filesystems of a host.
pub type RootOf<H> = <<H as Host>::Rootfs as Rootfs>::Root;
/// The errors of a host.
pub type ErrorOf<H> = <<H as Host>::Rootfs as Rootfs>::Error;
/// The processes of a host.
pub type ProcessOf<H> = <<H as Host>::Launcher as Launcher>::Process;
/// How the processes of a host end.
pub type ExitOf<H> = <ProcessOf<H> as Process>::Exit;
/// What peas of a host are made from.
pub type OrderOf<H> =
    Order<<<H as Host>::Rootfs as Rootfs>::Image, <<H as Host>::Launcher as Launcher>::Spec>;

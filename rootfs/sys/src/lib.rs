//! The fence around raw system calls.
//!
//! Every `unsafe` block of the project lives in this package, or in the shim where
//! libcontainer's contract asks for it. One call per function, `OwnedFd` and `BorrowedFd` in
//! signatures, and each block says which requirement of the callee it meets. What rustix
//! already offers safely (`fsopen`, `open_tree`, `fsconfig` with descriptors, `openat2`, …) is
//! used directly by the other packages, not wrapped again here.
//!
//! Each wrapper names the first kernel that has its call.

pub mod bpf;
pub mod btrfs;
pub mod fds;
pub mod mount;
pub mod netlink;
pub mod priority;
pub mod quota;
pub mod userns;
pub mod xattr;

//! Garden's built-in network.
//!
//! A container gets an address in a subnet, a veth pair to the subnet's bridge, and rules about
//! what it may reach and which host ports lead to it. [`Network`] does all of it, with the kernel
//! alone: by netlink, without a process, in whole transactions. It knows containers by their
//! [`Lease`] only, and nothing of the manager that keeps these.
//!
//! Pure parts: [`subnets`], [`ports`], [`cidr`], [`dns`] and the rules. Kernel parts: `netlink`
//! carries messages, `links` and `nft` say what is in them, `conntrack` and `forwarding` are the
//! small rest. Everything blocks, for a thread made for such work; a lock is held across a call
//! into the kernel for one subnet's bridge only, never for all.

pub mod cidr;
pub mod cni;
mod conntrack;
pub mod detect;
pub mod dns;
mod error;
pub mod external;
mod forwarding;
mod lease;
mod leaving;
mod links;
mod names;
mod netlink;
mod network;
mod nft;
mod options;
mod plugin;
pub mod ports;
mod reach;
mod rotation;
pub mod rules;
mod sockets;
pub mod subnets;

pub use error::{KernelError, NetworkError};
pub use lease::{Lease, Lease6, MappedPort};
pub use names::{Names, Tag, TagError};
pub use network::{Network, PortRequest, Rejected, Spec, Start, Usage};
pub use nft::Repair;
pub use options::{DenyNetwork, Options};
pub use plugin::PluginError;
pub use rules::{NetOutRule, Protocol};

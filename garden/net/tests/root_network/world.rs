//! A small internet for one test: a host, a machine outside, and containers, each a network
//! namespace of its own. Nothing touches the machine that runs the tests, and all of it is gone
//! when the test's descriptors are closed.
//!
//! ```text
//! outside 192.0.2.2 ──── 192.0.2.1 host ──(bridges)── containers
//!       2001:db8::2      2001:db8::1
//! ```

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use garden_net::{Lease, Network, Options, Spec, Start};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub(crate) const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// How long an answer may take that must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A network namespace, kept by a descriptor.
pub(crate) struct Machine(OwnedFd);

impl Machine {
    pub(crate) fn new() -> Self {
        let made = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap().into()
        });
        let machine = Self(made.join().unwrap());
        machine.ip("link set lo up");
        machine
    }

    /// Runs something with this machine's network.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter).join()).unwrap()
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.command("ip", arguments)
    }

    /// Runs a program that must succeed.
    pub(crate) fn command(&self, program: &str, arguments: &str) -> String {
        let output = self.run(|| {
            Command::new(program)
                .args(arguments.split_whitespace())
                .output()
                .unwrap()
        });
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Answers every connection to a port with the address that it comes from. Ends with the test.
    pub(crate) fn serve(&self, port: u16) {
        self.serve_at((Ipv6Addr::UNSPECIFIED, port));
    }

    pub(crate) fn serve_at(&self, address: impl Into<SocketAddr>) {
        let address = address.into();
        let listener = self.run(|| TcpListener::bind(address).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let peer = stream
                    .peer_addr()
                    .map(|peer| peer.ip().to_canonical().to_string());
                let _ = stream.write_all(peer.unwrap_or_default().as_bytes());
            }
        });
    }

    /// Whom a server sees when this machine connects to it.
    pub(crate) fn dial(
        &self,
        address: impl Into<IpAddr>,
        port: u16,
    ) -> Result<IpAddr, std::io::ErrorKind> {
        self.dial_for(address.into(), port, PATIENCE)
    }

    fn dial_for(
        &self,
        address: IpAddr,
        port: u16,
        patience: Duration,
    ) -> Result<IpAddr, std::io::ErrorKind> {
        self.run(|| {
            let mut stream = TcpStream::connect_timeout(&(address, port).into(), patience)
                .map_err(|error| error.kind())?;
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut peer = String::new();
            stream
                .read_to_string(&mut peer)
                .map_err(|error| error.kind())?;
            Ok(peer.parse().unwrap())
        })
    }
}

/// A host with a machine outside.
pub(crate) struct World {
    pub(crate) host: Machine,
    pub(crate) outside: Machine,
}

/// A container of the world.
pub(crate) struct Container {
    pub(crate) machine: Machine,
    pub(crate) lease: Lease,
}

impl World {
    /// None, with a reason printed, where a test of this kind cannot run.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED {test}: needs root");
            return None;
        }
        if Command::new("ip").arg("-V").output().is_err() {
            println!("SKIPPED {test}: needs the command ip (iproute2)");
            return None;
        }
        let (host, outside) = (Machine::new(), Machine::new());
        let fd = format!("/proc/{}/fd/{}", std::process::id(), outside.0.as_raw_fd());
        host.ip(&format!("link add out type veth peer name in netns {fd}"));
        for (machine, link, v4, v6) in [
            (&host, "out", HOST, HOST6),
            (&outside, "in", OUTSIDE, OUTSIDE6),
        ] {
            machine.ip(&format!("address add {v4}/24 dev {link}"));
            machine.ip(&format!("address add {v6}/64 dev {link} nodad"));
            machine.ip(&format!("link set {link} up"));
        }
        Some(Self { host, outside })
    }

    pub(crate) fn options() -> Options {
        Options::new(HOST)
    }

    pub(crate) fn start(&self, options: Options) -> Network {
        self.start_with(options, Vec::new()).network
    }

    pub(crate) fn start_with(&self, options: Options, known: Vec<Lease>) -> Start {
        self.host.run(|| Network::start(options, known).unwrap())
    }

    /// A container whose connections from outside of itself are answered at port 8080.
    pub(crate) fn container(&self, network: &Network, spec: &Spec) -> Container {
        let machine = Machine::new();
        let handle = "a-handle-of-more-than-28-characters";
        let lease = self
            .host
            .run(|| network.add(handle, machine.fd().as_fd(), spec).unwrap());
        machine.serve(8080);
        Container { machine, lease }
    }

    pub(crate) fn remove(&self, network: &Network, container: &Container) {
        self.host.run(|| network.remove(&container.lease).unwrap());
        assert!(network.settle(PATIENCE));
    }

    /// What there is of interfaces on the host besides those of the world.
    pub(crate) fn links(&self) -> Vec<String> {
        let list = self.host.ip("-o link");
        let names = list.lines().filter_map(|line| line.split(": ").nth(1));
        let names = names.filter_map(|name| name.split('@').next());
        names
            .filter(|name| !["lo", "out"].contains(name))
            .map(str::to_owned)
            .collect()
    }

    /// The ruleset in nft's words, protocols as numbers: not every machine knows their names.
    pub(crate) fn ruleset(&self) -> String {
        self.host.command("nft", "-p list ruleset")
    }
}

/// Whether the second opinion is there.
pub(crate) fn has_nft(test: &str) -> bool {
    let there = Command::new("nft").arg("--version").output().is_ok();
    if !there {
        println!("SKIPPED {test}: needs the command nft (nftables)");
    }
    there
}

pub(crate) fn spec(network: &str) -> Spec {
    Spec {
        network: network.to_owned(),
        ..Spec::default()
    }
}

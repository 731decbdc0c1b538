//! A small internet for one test: a host with its server, and a machine outside, each a network
//! namespace of its own. Nothing touches the network of the machine that runs the tests, and all
//! of it is gone when its descriptors are closed.
//!
//! ```text
//! outside 192.0.2.2 ──── 192.0.2.1 host ──(bridges)── containers
//!       2001:db8::2      2001:db8::1
//! ```

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::server::Server;
use crate::wait::DEADLINE;
use crate::world::{World, skip};

/// The host's address.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The address of the machine outside.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The host's address in IPv6.
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The address of the machine outside in IPv6.
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// How long nothing must come before it counts as never: what is dropped is dropped at once.
const SILENCE: Duration = Duration::from_millis(700);

/// A network namespace, kept by a descriptor. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Machine(Arc<OwnedFd>);

impl Machine {
    /// A new one with its loopback up.
    pub fn new() -> Result<Self> {
        let made = std::thread::spawn(|| -> Result<OwnedFd> {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        });
        let made = made.join().map_err(|_| anyhow!("a panic"))?;
        let machine = Self(Arc::new(made.context("making a network namespace")?));
        machine.ip("link set lo up")?;
        Ok(machine)
    }

    /// The one that a process is in.
    pub fn of(pid: i64) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        let file = File::open(&path).with_context(|| format!("opening {path}"))?;
        Ok(Self(Arc::new(file.into())))
    }

    /// Runs something with this machine's network.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let enter = || {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        };
        let done = std::thread::scope(|scope| scope.spawn(enter).join());
        done.map_err(|_| anyhow!("a panic"))?
    }

    /// Runs `ip`, which must succeed; returns what it said.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        self.command("ip", arguments)
    }

    /// Runs a program that must succeed; returns what it said.
    pub fn command(&self, program: &str, arguments: &str) -> Result<String> {
        self.run(|| {
            let words = arguments.split_whitespace();
            let output = Command::new(program).args(words).output()?;
            let error = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{program} {arguments}: {error}");
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })
    }

    /// Answers every connection to a port with the address that it comes from. Ends with the test.
    pub fn serve(&self, port: u16) -> Result<()> {
        self.serve_at((Ipv6Addr::UNSPECIFIED, port))
    }

    /// The same at one address.
    pub fn serve_at(&self, address: impl Into<SocketAddr>) -> Result<()> {
        let address = address.into();
        let listener = self.run(|| Ok(TcpListener::bind(address)?))?;
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let peer = stream.peer_addr().map(|peer| peer.ip().to_canonical());
                let _ =
                    stream.write_all(peer.map(|ip| ip.to_string()).unwrap_or_default().as_bytes());
            }
        });
        Ok(())
    }

    /// Whom a server sees when this machine connects to it.
    pub fn dial(&self, address: impl Into<IpAddr>, port: u16) -> Result<IpAddr> {
        let address = (address.into(), port);
        self.dial_for(address, DEADLINE)
            .with_context(|| format!("connecting to {} port {port}", address.0))
    }

    /// Nothing must answer: the connection is refused on the way, or its packets go nowhere.
    pub fn expect_no_answer(&self, address: impl Into<IpAddr>, port: u16) -> Result<ErrorKind> {
        let address = (address.into(), port);
        match self.dial_for(address, SILENCE) {
            Ok(seen) => Err(anyhow!("{address:?} answered; it saw {seen}")),
            Err(error) => error
                .downcast_ref::<std::io::Error>()
                .map(std::io::Error::kind)
                .context(format!("connecting to {address:?}: {error:#}")),
        }
    }

    fn dial_for(&self, address: (IpAddr, u16), patience: Duration) -> Result<IpAddr> {
        self.run(|| {
            let mut stream = TcpStream::connect_timeout(&address.into(), patience)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            let mut peer = String::new();
            stream.read_to_string(&mut peer)?;
            Ok(peer.parse()?)
        })
    }

    /// Whether a datagram to a port of another machine gets there.
    pub fn reaches_by_udp(&self, other: &Self, address: IpAddr, port: u16) -> Result<bool> {
        let any: SocketAddr = match address {
            IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let here = SocketAddr::new(any.ip(), port);
        let listener = other.run(|| Ok(UdpSocket::bind(here)?))?;
        let sender = self.run(|| Ok(UdpSocket::bind(any)?))?;
        // A refusal on the way comes as an error of this or of the next send.
        let _ = sender.send_to(b"x", (address, port));
        listener.set_read_timeout(Some(SILENCE))?;
        match listener.recv(&mut [0; 8]) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// A host with a machine outside, and what a test asks of them.
pub struct Internet<'w> {
    world: &'w World,
    /// Where the server lives.
    pub host: Machine,
    /// The rest of the world.
    pub outside: Machine,
}

impl<'w> Internet<'w> {
    /// Makes one; a host without `ip` skips the test.
    pub fn new(world: &'w World) -> Result<Self> {
        if Command::new("ip").arg("-V").output().is_err() {
            return skip("the command ip (iproute2)");
        }
        let (host, outside) = (Machine::new()?, Machine::new()?);
        let fd = format!("/proc/{}/fd/{}", std::process::id(), outside.0.as_raw_fd());
        host.ip(&format!("link add out type veth peer name in netns {fd}"))?;
        for (machine, link, v4, v6) in [
            (&host, "out", HOST, HOST6),
            (&outside, "in", OUTSIDE, OUTSIDE6),
        ] {
            machine.ip(&format!("address add {v4}/24 dev {link}"))?;
            machine.ip(&format!("address add {v6}/64 dev {link} nodad"))?;
            machine.ip(&format!("link set {link} up"))?;
        }
        // The way to everywhere else, by which a server finds its own address.
        host.ip(&format!("route add default via {OUTSIDE}"))?;
        Ok(Self {
            world,
            host,
            outside,
        })
    }

    /// Starts a server on the host, with the built-in network.
    pub fn server(&self, options: &[&str]) -> Result<Server<'w>> {
        let usual = ["--network", "built-in", "--network-tag", "n"];
        let options = [&usual, options].concat();
        Server::start_on(self.world, &self.host, &options)
    }

    /// Makes a container from what a client posts, without the image; its machine answers at port
    /// 8080.
    pub fn container(&self, server: &Server<'_>, spec: &Value) -> Result<Pod> {
        let mut spec = spec.clone();
        spec["image"] = serde_json::json!({ "uri": self.world.images()?.tar("app")? });
        let answer = server.post("/containers", &spec)?;
        let handle = answer["Handle"].as_str().context("no handle")?.to_owned();
        let pod = Pod::find(self.world, server, handle)?;
        pod.machine.serve(8080)?;
        Ok(pod)
    }

    /// Interfaces on the host besides those of the internet.
    pub fn links(&self) -> Result<Vec<String>> {
        let list = self.host.ip("-o link")?;
        let names = list.lines().filter_map(|line| line.split(": ").nth(1));
        let names = names.filter_map(|name| name.split('@').next());
        Ok(names
            .filter(|name| !["lo", "out"].contains(name))
            .map(str::to_owned)
            .collect())
    }

    /// The ruleset in nft's words; none where there is no nft.
    pub fn ruleset(&self) -> Option<String> {
        self.host.command("nft", "-p list ruleset").ok()
    }
}

/// A container of a test.
pub struct Pod {
    /// Its name.
    pub handle: String,
    /// Its network.
    pub machine: Machine,
    /// Its address.
    pub address: IpAddr,
    /// What a client is told of it.
    pub info: Value,
}

impl Pod {
    /// Looks for what a server knows of a container.
    pub fn find(world: &World, server: &Server<'_>, handle: String) -> Result<Self> {
        let info = server.get(&format!("/containers/{handle}/info"))?;
        let record = world
            .runtime_dir()
            .join("containers")
            .join(&handle)
            .join("container.json");
        let record: Value = serde_json::from_slice(&std::fs::read(record)?)?;
        let pid = record["init_pid"].as_i64().context("no pid")?;
        let address = info["ContainerIP"].as_str().unwrap_or_default();
        Ok(Self {
            handle,
            machine: Machine::of(pid)?,
            address: address
                .parse()
                .with_context(|| format!("no address: {info}"))?,
            info,
        })
    }

    /// Its address in IPv6.
    pub fn address6(&self) -> Result<IpAddr> {
        let text = self.info["ContainerIPv6"].as_str().unwrap_or_default();
        text.parse()
            .with_context(|| format!("no IPv6: {}", self.info))
    }

    /// The host port that leads to a port of its.
    pub fn host_port(&self, container: u16) -> Result<u16> {
        let ports = self.info["MappedPorts"].as_array().context("no ports")?;
        let mapped = ports
            .iter()
            .find(|port| port["ContainerPort"] == container)
            .and_then(|port| port["HostPort"].as_u64());
        Ok(u16::try_from(mapped.context("not mapped")?)?)
    }
}

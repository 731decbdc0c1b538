//! How fast bytes go between containers and through mapped ports, beside a plain bridge.
//!
//! `cargo bench -p garden-net --bench throughput [-- ROUNDS]` (as root; needs `ip`). All of it happens
//! in network namespaces of its own. Each figure is the median of rounds of which every second one
//! is the plain bridge's, so that what else the machine does disturbs both alike:
//!
//! - `subnet`: from a container to its neighbour on the same bridge
//! - `routed`: to one on another bridge, through the packet filter; plain: two bridges, no filter
//! - `port`: from a machine outside to a mapped port; plain: straight to the container's address

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use garden_net::{Lease, Network, Options, PortRequest, Spec};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PORT: u16 = 7000;
/// How long each transfer goes on.
const LONG: Duration = Duration::from_millis(400);

fn main() {
    if !rustix::process::geteuid().is_root() || Command::new("ip").arg("-V").output().is_err() {
        eprintln!("SKIPPED throughput: needs root and the command ip (iproute2)");
        return;
    }
    let rounds = std::env::args()
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(15);
    let (garden, plain) = (Garden::new(), Plain::new());
    println!(
        "{:<10}{:>12}{:>12}{:>8}",
        "MB/s", "garden", "plain", "ratio"
    );
    for way in ["subnet", "routed", "port"] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            ours.push(garden.measure(way));
            theirs.push(plain.measure(way));
        }
        let (ours, theirs) = (median(ours), median(theirs));
        println!("{way:<10}{ours:>12.0}{theirs:>12.0}{:>8.3}", ours / theirs);
    }
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// A network namespace with its loopback up.
fn machine() -> OwnedFd {
    let made = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        File::open("/proc/thread-self/ns/net").expect("the network namespace")
    });
    let machine = made.join().expect("a network namespace").into();
    ip(&machine, "link set lo up");
    machine
}

fn within<T: Send>(machine: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    let enter = || {
        move_into_link_name_space(machine.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("entering a network namespace");
        work()
    };
    std::thread::scope(|scope| scope.spawn(enter).join()).expect("the work")
}

fn ip(machine: &OwnedFd, arguments: &str) {
    let run = || {
        Command::new("ip")
            .args(arguments.split_whitespace())
            .output()
    };
    let output = within(machine, run).expect("ip");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {said}");
}

/// Bytes a second in millions from one machine to what listens on another.
fn transfer(from: &OwnedFd, to: &OwnedFd, address: IpAddr, port: u16, listen: u16) -> f64 {
    let listener = within(to, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, listen)));
    let listener = listener.expect("a port");
    let sink = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let (mut buffer, mut count) = (vec![0; 256 * 1024], 0_u64);
        let begun = Instant::now();
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            count += read as u64;
        }
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let speed = count as f64 / begun.elapsed().as_secs_f64() / 1e6;
        speed
    });
    let mut stream = within(from, || TcpStream::connect((address, port))).expect("a connection");
    let block = vec![0; 128 * 1024];
    let begun = Instant::now();
    while begun.elapsed() < LONG {
        stream.write_all(&block).expect("a way");
    }
    drop(stream);
    sink.join().expect("the sink")
}

/// A host, and a machine outside of it.
fn host() -> (OwnedFd, OwnedFd) {
    let (host, outside) = (machine(), machine());
    let fd = format!("/proc/{}/fd/{}", std::process::id(), outside.as_raw_fd());
    ip(
        &host,
        &format!("link add out type veth peer name in netns {fd}"),
    );
    ip(&host, "address add 192.0.2.1/24 dev out");
    ip(&host, "link set out up");
    ip(&outside, "address add 192.0.2.2/24 dev in");
    ip(&outside, "link set in up");
    (host, outside)
}

struct Garden {
    _network: Network,
    _host: OwnedFd,
    outside: OwnedFd,
    /// Two on one bridge, one on another.
    pods: Vec<(OwnedFd, Lease)>,
}

impl Garden {
    fn new() -> Self {
        let (host, outside) = host();
        let start = || Network::start(Options::new(HOST), Vec::new()).expect("a network");
        let network = within(&host, start).network;
        let pod = |subnet: &str| {
            let namespace = machine();
            let spec = Spec {
                network: subnet.to_owned(),
                ports: vec![PortRequest {
                    host: 0,
                    container: PORT.into(),
                }],
                ..Spec::default()
            };
            let add = || {
                network
                    .add("bench", namespace.as_fd(), &spec)
                    .expect("a pod")
            };
            let lease = within(&host, add);
            (namespace, lease)
        };
        let pods = ["10.1.0.0/24", "10.1.0.0/24", ""].map(pod).into();
        Self {
            _network: network,
            _host: host,
            outside,
            pods,
        }
    }

    fn measure(&self, way: &str) -> f64 {
        let [(first, own), (second, near), (_, _)] = &self.pods[..] else {
            unreachable!("three pods");
        };
        let (third, far) = &self.pods[2];
        match way {
            "subnet" => transfer(first, second, near.address.into(), PORT, PORT),
            "routed" => transfer(first, third, far.address.into(), PORT, PORT),
            _ => transfer(&self.outside, first, HOST.into(), own.ports[0].host, PORT),
        }
    }
}

struct Plain {
    _host: OwnedFd,
    outside: OwnedFd,
    pods: Vec<OwnedFd>,
}

const PLAIN: [&str; 3] = ["10.1.0.2", "10.1.0.3", "10.2.0.2"];

impl Plain {
    fn new() -> Self {
        let (host, outside) = host();
        within(&host, || {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
        })
        .expect("routing");
        for (bridge, gateway) in [("br1", "10.1.0.1/24"), ("br2", "10.2.0.1/24")] {
            ip(
                &host,
                &format!("link add {bridge} type bridge mcast_snooping 0"),
            );
            ip(&host, &format!("address add {gateway} dev {bridge}"));
            ip(&host, &format!("link set {bridge} up"));
        }
        ip(&outside, "route add 10.0.0.0/8 via 192.0.2.1");
        let places = PLAIN.into_iter().zip(["br1", "br1", "br2"]).enumerate();
        let pods = places.map(|(number, (address, bridge))| {
            let namespace = machine();
            let fd = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
            let pair = format!("link add v{number} type veth peer name eth0 netns {fd}");
            ip(&host, &pair);
            ip(&host, &format!("link set v{number} master {bridge} up"));
            ip(&namespace, &format!("address add {address}/24 dev eth0"));
            ip(&namespace, "link set eth0 up");
            let gateway = if bridge == "br1" {
                "10.1.0.1"
            } else {
                "10.2.0.1"
            };
            ip(&namespace, &format!("route add default via {gateway}"));
            namespace
        });
        Self {
            pods: pods.collect(),
            _host: host,
            outside,
        }
    }

    fn measure(&self, way: &str) -> f64 {
        let (from, to) = match way {
            "subnet" => (&self.pods[0], 1),
            "routed" => (&self.pods[0], 2),
            _ => (&self.outside, 0),
        };
        let address: Ipv4Addr = PLAIN[to].parse().expect("an address");
        transfer(from, &self.pods[to], address.into(), PORT, PORT)
    }
}

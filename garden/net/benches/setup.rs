//! What connecting and disconnecting a container costs, beside few and beside many others.
//!
//! `cargo bench -p garden-net [-- FEW MANY]` (as root; 10 and 1000 by default). All of it happens in
//! network namespaces of its own. Each figure is a median; "cpu" is the time that the calling
//! thread itself was on a processor, which a busy machine disturbs less. The baseline is the same
//! packet filter's work given to `nft -f`: what a network that runs the program for each container
//! pays at least. It has no links and no connections to care for, so it is the lower bound.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use garden_net::{Lease, NetOutRule, Network, Options, PortRequest, Protocol, Spec};

const ROUNDS: usize = 40;
const RULES: u8 = 20;

fn main() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED setup: needs root");
        return;
    }
    let numbers: Vec<usize> = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let (few, many) = match numbers[..] {
        [few, many] => (few, many),
        _ => (10, 1000),
    };
    let (few, many) = (measure(few), measure(many));
    println!(
        "{:<22}{:>12}{:>12}{:>8}",
        "median, us", few.beside, many.beside, "ratio"
    );
    for ((name, few), (_, many)) in few.figures.iter().zip(&many.figures) {
        let (few, many) = (few.as_secs_f64() * 1e6, many.as_secs_f64() * 1e6);
        println!("{name:<22}{few:>12.0}{many:>12.0}{:>8.2}", many / few);
    }
}

struct Measured {
    beside: usize,
    figures: Vec<(&'static str, Duration)>,
}

/// Measures in a fresh host with `count` containers.
fn measure(count: usize) -> Measured {
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let mut options = Options::new(Ipv4Addr::new(192, 0, 2, 1));
        options.pool = "10.0.0.0/16".parse().expect("a network");
        let network = Network::start(options, Vec::new())
            .expect("a network")
            .network;
        let neighbours: Vec<_> = (0..count).map(|_| connect(&network)).collect();
        let mut figures = garden(&network);
        drop(neighbours);
        figures.extend(baseline(count));
        Measured {
            beside: count,
            figures,
        }
    });
    thread.join().expect("a measurement")
}

fn spec() -> Spec {
    let rule = |number| NetOutRule {
        protocol: Protocol::Tcp,
        networks: vec![([198, 51, 100, number].into(), [198, 51, 100, number].into())],
        ports: vec![(80, 90)],
        ..NetOutRule::default()
    };
    Spec {
        rules: (0..RULES).map(rule).collect(),
        ports: vec![PortRequest::default()],
        ..Spec::default()
    }
}

fn namespace() -> OwnedFd {
    let made = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        File::open("/proc/thread-self/ns/net")
            .expect("the network namespace")
            .into()
    });
    made.join().expect("a network namespace")
}

fn connect(network: &Network) -> (OwnedFd, Lease) {
    let namespace = namespace();
    let lease = network
        .add("bench", namespace.as_fd(), &spec())
        .expect("a container");
    (namespace, lease)
}

fn garden(network: &Network) -> Vec<(&'static str, Duration)> {
    let spec = spec();
    let rule = &spec.rules[..1];
    let mut samples = [const { Vec::new() }; 7];
    // A namespace that goes keeps the kernel busy, which is not what is measured.
    let namespaces: Vec<OwnedFd> = (0..ROUNDS).map(|_| namespace()).collect();
    for namespace in &namespaces {
        let mut lease = None;
        time(&mut samples, 0, || {
            lease = network.add("bench", namespace.as_fd(), &spec).ok()
        });
        let lease = lease.expect("a container");
        time(&mut samples, 2, || {
            drop(network.net_out(&lease, rule).expect("a rule"))
        });
        time(&mut samples, 4, || {
            network.remove(&lease).expect("a removal")
        });
        // Behind everybody's back, together with those of others, in real life.
        let begun = Instant::now();
        assert!(network.settle(Duration::from_secs(60)), "links stay");
        samples[6].push(begun.elapsed());
    }
    let names = [
        "add",
        "add, cpu",
        "net_out",
        "net_out, cpu",
        "remove",
        "remove, cpu",
        "links gone after",
    ];
    names
        .into_iter()
        .zip(samples)
        .map(|(name, samples)| (name, median(samples)))
        .collect()
}

fn time(samples: &mut [Vec<Duration>], at: usize, work: impl FnOnce()) {
    let cpu = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(
            u64::try_from(time.tv_sec).unwrap_or_default(),
            u32::try_from(time.tv_nsec).unwrap_or_default(),
        )
    };
    let (start, start_cpu) = (Instant::now(), cpu());
    work();
    samples[at].push(start.elapsed());
    samples[at + 1].push(cpu().saturating_sub(start_cpu));
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}

/// The same table's worth of rules by the program.
fn baseline(count: usize) -> Vec<(&'static str, Duration)> {
    if Command::new("nft")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        return Vec::new();
    }
    let table = "add table inet baseline
add map inet baseline containers { type ipv4_addr : verdict; }
add chain inet baseline default
add chain inet baseline forward { type filter hook forward priority 0; }
add rule inet baseline forward ip saddr vmap @containers
";
    let everything: String =
        (0..count).fold(table.to_owned(), |text, number| text + &added(number));
    nft(&everything);
    let (mut add, mut remove) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        nft(&added(count));
        add.push(start.elapsed());
        let start = Instant::now();
        let address = address(count);
        nft(&format!(
            "delete element inet baseline containers {{ {address} }}\ndelete chain inet baseline c{count}\n"
        ));
        remove.push(start.elapsed());
    }
    nft("delete table inet baseline\n");
    vec![
        ("nft -f, add", median(add)),
        ("nft -f, remove", median(remove)),
    ]
}

fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a80_0000 + u32::try_from(number).unwrap_or_default())
}

fn added(number: usize) -> String {
    let mut text = format!("add chain inet baseline c{number}\n");
    for rule in 0..RULES {
        text += &format!(
            "add rule inet baseline c{number} ip daddr 198.51.100.{rule} tcp dport 80-90 accept\n"
        );
    }
    text + &format!(
        "add rule inet baseline c{number} goto default\nadd element inet baseline containers {{ {} : goto c{number} }}\n",
        address(number)
    )
}

fn nft(commands: &str) {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nft");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(commands.as_bytes())
        .expect("commands");
    assert!(child.wait().expect("nft").success(), "nft refused");
}

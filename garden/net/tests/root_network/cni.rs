//! Debian's CNI plugins: bridge, host-local, loopback and portmap, in a small internet of their own.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use garden_net::cni::{Cni, Configuration, Container, Port};

use crate::world::{HOST, Machine, World};

/// Where Debian puts them.
const PLUGINS: &str = "/usr/lib/cni";

fn world(test: &str) -> Option<World> {
    let world = World::new(test)?;
    for plugin in ["bridge", "host-local", "loopback", "portmap"] {
        if !Path::new(PLUGINS).join(plugin).exists() {
            println!("SKIPPED {test}: needs {PLUGINS}/{plugin} (containernetworking-plugins)");
            return None;
        }
    }
    if !["/usr/sbin/iptables", "/sbin/iptables"]
        .iter()
        .any(|path| Path::new(path).exists())
    {
        println!("SKIPPED {test}: the plugin portmap needs iptables");
        return None;
    }
    Some(world)
}

fn network(at: &Path, name: &str, text: &str) -> Cni {
    let file = at.join(format!("{name}.conflist"));
    fs::write(&file, text).unwrap();
    Cni {
        configuration: Configuration::load(&file).unwrap(),
        programs: vec![PLUGINS.into()],
        cache: at.join("cache"),
        timeout: Duration::from_secs(60),
    }
}

#[test]
fn a_chain_of_debians_plugins() {
    let Some(world) = world("a_chain_of_debians_plugins") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let bridged = network(
        at,
        "bridged",
        &format!(
            r#"{{"cniVersion":"1.0.0","name":"bridged","plugins":[
            {{"type":"bridge","bridge":"cni-it","isGateway":true,"hairpinMode":true,
              "ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.77.0.0/24"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}},
            {{"type":"portmap","capabilities":{{"portMappings":true}}}}]}}"#,
            at.join("ipam").display()
        ),
    );
    let loopback = network(
        at,
        "lo",
        r#"{"cniVersion":"1.0.0","name":"lo","plugins":[{"type":"loopback"}]}"#,
    );
    let machines = [Machine::new(), Machine::new()];
    let ports = [Port {
        host: 61234,
        container: 8080,
        udp: false,
    }];
    let ids = ["one", "two"];
    let described = |number: usize, interface| Container {
        id: ids[number],
        namespace: Some(machines[number].fd().as_fd()),
        interface,
        ports: if number == 0 { &ports } else { &[] },
        arguments: &[],
    };
    let (one, two) = (described(0, "eth0"), described(1, "eth0"));
    let first = world.host.run(|| bridged.add(&one).unwrap());
    let second = world.host.run(|| {
        loopback.add(&described(1, "lo")).unwrap();
        bridged.add(&two).unwrap()
    });
    let [a, b] = [&first, &second].map(|attachment| attachment.addresses[0].address);
    assert!(a != b && a.to_string().starts_with("10.77.0."), "{a} {b}");
    assert_eq!(first.addresses[0].gateway, Some([10, 77, 0, 1].into()));
    assert_eq!((first.ports.len(), second.ports.len()), (1, 0));
    machines[0].serve(8080);
    assert_eq!(machines[1].dial(a, 8080), Ok(b));
    // From outside, through the mapped port.
    world
        .host
        .run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
    world.outside.dial(HOST, 61234).unwrap();
    world.host.run(|| {
        // Not the one with a port: CHECK of portmap 1.1 wants its rules for IPv6, too.
        bridged.check(&two).unwrap();
        loopback.check(&described(1, "lo")).unwrap();
    });
    // An interface that went is missed; what is left is taken away all the same, also by who has only
    // the id, as after a restart.
    machines[0].ip("link delete eth0");
    world.host.run(|| {
        let missed = bridged.check(&one).unwrap_err().to_string();
        assert!(
            missed.starts_with("the CNI plugin bridge failed at CHECK: "),
            "{missed}"
        );
        bridged.del(&one).unwrap();
        bridged.del(&one).unwrap();
        bridged
            .del(&Container {
                namespace: None,
                ..two
            })
            .unwrap();
        loopback.del(&described(1, "lo")).unwrap();
    });
    assert!(world.outside.dial(HOST, 61234).is_err());
    let rules = world.host.command("iptables-save", "-t nat");
    assert!(!rules.contains("61234"), "{rules}");
    let leases: Vec<_> = fs::read_dir(at.join("ipam/bridged")).unwrap().collect();
    let names = leases.into_iter().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = names
        .filter(|name| name.to_string_lossy().starts_with("10."))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(fs::read_dir(at.join("cache")).unwrap().count(), 0);
}

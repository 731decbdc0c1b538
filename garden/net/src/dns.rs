//! What `/etc/hosts` and `/etc/resolv.conf` of a container say.
//!
//! Pure: the caller reads the host's file and writes the container's. The rules are Guardian's
//! (who answers names, and what is kept of the host's file), so that an image finds what it
//! found before.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A host's name in its own hosts file is cut to this many characters, from the end: a handle may
/// be longer than a name may be (sethostname(2) takes 64 bytes).
const NAME_LENGTH: usize = 49;

/// The name of a container in its hosts file, and its hostname.
#[must_use]
pub fn host_name(handle: &str) -> &str {
    let cut = handle
        .char_indices()
        .rev()
        .nth(NAME_LENGTH - 1)
        .map_or(0, |(at, _)| at);
    handle.get(cut..).unwrap_or(handle)
}

/// The contents of `/etc/hosts`. A container without any address has its loopback.
#[must_use]
pub fn hosts(
    handle: &str,
    address: Option<Ipv4Addr>,
    address6: Option<Ipv6Addr>,
    additional: &[String],
) -> String {
    let name = host_name(handle);
    let mut text = String::from("127.0.0.1 localhost\n");
    let alone = address.is_none() && address6.is_none();
    let address = address.or(alone.then_some(Ipv4Addr::LOCALHOST));
    if address6.is_some() || alone {
        text.push_str("::1 localhost\n");
    }
    for address in address
        .map(IpAddr::V4)
        .into_iter()
        .chain(address6.map(IpAddr::V6))
    {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{address} {name}");
    }
    for entry in additional {
        text.push_str(entry);
        text.push('\n');
    }
    text
}

/// Where a container's name servers come from.
#[derive(Debug, Clone, Copy, Default)]
pub struct Resolver<'a> {
    /// A network plugin's answer; even an empty list is one.
    pub plugin_servers: Option<&'a [String]>,
    /// A network plugin's search domains.
    pub plugin_search: &'a [String],
    /// The operator's, instead of the host's.
    pub servers: &'a [String],
    /// The operator's, behind whichever are used; not behind a plugin's.
    pub additional: &'a [String],
    /// The host's `resolv.conf`.
    pub host: &'a str,
    /// Who answers for a host whose only server is one on its own loopback: the bridge, or with a
    /// network plugin the container itself.
    pub instead_of_loopback: Option<IpAddr>,
}

/// The contents of `/etc/resolv.conf`.
#[must_use]
pub fn resolv_conf(resolver: &Resolver<'_>) -> String {
    let mut lines: Vec<String> = match resolver.plugin_servers {
        Some(servers) => servers
            .iter()
            .map(|server| format!("nameserver {server}"))
            .collect(),
        None => {
            let mut lines = if resolver.servers.is_empty() {
                from_host(resolver.host, resolver.instead_of_loopback)
            } else {
                resolver
                    .servers
                    .iter()
                    .map(|server| format!("nameserver {server}"))
                    .collect()
            };
            lines.extend(
                resolver
                    .additional
                    .iter()
                    .map(|server| format!("nameserver {server}")),
            );
            lines
        }
    };
    if !resolver.plugin_search.is_empty() {
        lines.retain(|line| line.split_whitespace().next() != Some("search"));
        lines.push(format!("search {}", resolver.plugin_search.join(" ")));
    }
    lines
        .iter()
        .fold(String::new(), |text, line| text + line + "\n")
}

fn from_host(host: &str, instead: Option<IpAddr>) -> Vec<String> {
    let is_loopback = |line: &str| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver")
            && words
                .next()
                .and_then(|server| server.parse::<Ipv4Addr>().ok())
                .is_some_and(|server| server.is_loopback())
    };
    let mut lines = host.lines().filter(|line| !line.trim().is_empty());
    if let (Some(only), None, Some(instead)) = (lines.next(), lines.next(), instead)
        && is_loopback(only)
    {
        return vec![format!("nameserver {instead}")];
    }
    host.lines()
        .filter(|line| !is_loopback(line))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: Option<Ipv4Addr> = Some(Ipv4Addr::new(10, 254, 0, 2));
    const BRIDGE: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::new(10, 254, 0, 1)));

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn hosts_names_the_container_by_the_end_of_its_handle() {
        let handle = format!("begin-{}", "x".repeat(49));
        assert_eq!(
            hosts(&handle, V4, None, &[]),
            format!("127.0.0.1 localhost\n10.254.0.2 {}\n", "x".repeat(49))
        );
        assert_eq!(host_name("ä-short"), "ä-short");
        assert_eq!(host_name(&"ä".repeat(60)).chars().count(), 49);
        assert_eq!(host_name(""), "");
    }

    #[test]
    fn without_an_address_the_name_is_the_loopbacks() {
        assert_eq!(
            hosts("h", None, None, &[]),
            "127.0.0.1 localhost\n::1 localhost\n127.0.0.1 h\n"
        );
    }

    #[test]
    fn hosts_with_both_families_and_entries() {
        let v6 = Some("fd00::2".parse().unwrap());
        assert_eq!(
            hosts("h", V4, v6, &texts(&["1.2.3.4 foo", "2.3.4.5 bar"])),
            "127.0.0.1 localhost\n::1 localhost\n10.254.0.2 h\nfd00::2 h\n1.2.3.4 foo\n2.3.4.5 bar\n"
        );
    }

    /// Plugin, operator's servers, additional ones, host's file: every combination.
    #[test]
    fn who_answers_names() {
        let (none, plugin, empty) = (None, Some(texts(&["9.9.9.9"])), Some(Vec::new()));
        let (servers, more) = (texts(&["1.1.1.1", "1.0.0.1"]), texts(&["8.8.8.8"]));
        let host = "nameserver 7.7.7.7\n";
        let own = "nameserver 1.1.1.1\nnameserver 1.0.0.1\n";
        let cases: [(&Option<Vec<String>>, bool, bool, String); 12] = [
            (&none, false, false, host.to_owned()),
            (&none, false, true, format!("{host}nameserver 8.8.8.8\n")),
            (&none, true, false, own.to_owned()),
            (&none, true, true, format!("{own}nameserver 8.8.8.8\n")),
            (&plugin, false, false, "nameserver 9.9.9.9\n".to_owned()),
            (&plugin, false, true, "nameserver 9.9.9.9\n".to_owned()),
            (&plugin, true, false, "nameserver 9.9.9.9\n".to_owned()),
            (&plugin, true, true, "nameserver 9.9.9.9\n".to_owned()),
            (&empty, false, false, String::new()),
            (&empty, false, true, String::new()),
            (&empty, true, false, String::new()),
            (&empty, true, true, String::new()),
        ];
        for (plugin, with_servers, with_more, expected) in cases {
            let resolver = Resolver {
                plugin_servers: plugin.as_deref(),
                servers: if with_servers { &servers } else { &[] },
                additional: if with_more { &more } else { &[] },
                host,
                ..Resolver::default()
            };
            assert_eq!(resolv_conf(&resolver), expected, "{resolver:?}");
        }
    }

    #[test]
    fn a_server_on_the_hosts_loopback_is_out_of_reach() {
        let of_host = |host| {
            resolv_conf(&Resolver {
                host,
                instead_of_loopback: BRIDGE,
                ..Resolver::default()
            })
        };
        assert_eq!(
            of_host("nameserver 127.0.0.53\n"),
            "nameserver 10.254.0.1\n"
        );
        assert_eq!(of_host("nameserver 127.0.0.53"), "nameserver 10.254.0.1\n");
        assert_eq!(
            of_host(
                "search a b\nnameserver 127.0.0.53\noptions edns0\nsortlist 1.2.3.4\nnameserver 7.7.7.7\n"
            ),
            "search a b\noptions edns0\nsortlist 1.2.3.4\nnameserver 7.7.7.7\n"
        );
        assert_eq!(
            of_host("# nameserver 127.0.0.1\nnameserver ::1\n"),
            "# nameserver 127.0.0.1\nnameserver ::1\n"
        );
        assert_eq!(of_host(""), "");
    }

    #[test]
    fn a_plugins_search_domains_replace_the_hosts() {
        let search = texts(&["x.y", "z"]);
        let servers = texts(&["9.9.9.9"]);
        let host = "search a b\nnameserver 7.7.7.7\n";
        let plugin = Resolver {
            plugin_search: &search,
            host,
            ..Resolver::default()
        };
        assert_eq!(resolv_conf(&plugin), "nameserver 7.7.7.7\nsearch x.y z\n");
        let both = Resolver {
            plugin_servers: Some(&servers),
            ..plugin
        };
        assert_eq!(resolv_conf(&both), "nameserver 9.9.9.9\nsearch x.y z\n");
    }
}

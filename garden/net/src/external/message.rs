//! What is written to a plugin and read from it: JSON as Go's encoder makes it of Guardian's types.
//!
//! Members that say nothing are left out, as there. Names in answers are read whatever their case,
//! because Go does, and plugins in other languages have come to rely on it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::Up;
use crate::lease::MappedPort;
use crate::network::PortRequest;
use crate::rules::{NetOutRule, Protocol};

pub(super) fn up(
    pid: u32,
    properties: BTreeMap<String, String>,
    rules: &[NetOutRule],
    ports: &[PortRequest],
) -> Vec<u8> {
    let mut input = Map::new();
    input.insert("Pid".to_owned(), pid.into());
    input.insert("Properties".to_owned(), json!(properties));
    if !rules.is_empty() {
        input.insert("netout_rules".to_owned(), rules.iter().map(rule).collect());
    }
    if !ports.is_empty() {
        let ports = ports
            .iter()
            .map(|port| json!({ "host_port": port.host, "container_port": port.container }));
        input.insert("netin".to_owned(), ports.collect());
    }
    Value::Object(input).to_string().into_bytes()
}

pub(super) fn net_in(host: IpAddr, port: PortRequest, address: IpAddr) -> Vec<u8> {
    let input = json!({
        "HostIP": host,
        "HostPort": port.host,
        "ContainerIP": address,
        "ContainerPort": port.container,
    });
    input.to_string().into_bytes()
}

pub(super) fn net_out(address: IpAddr, one: &NetOutRule) -> Vec<u8> {
    let input = json!({ "container_ip": address, "netout_rule": rule(one) });
    input.to_string().into_bytes()
}

pub(super) fn bulk_net_out(address: IpAddr, rules: &[NetOutRule]) -> Vec<u8> {
    let rules: Vec<_> = rules.iter().map(rule).collect();
    let input = json!({ "container_ip": address, "netout_rules": rules });
    input.to_string().into_bytes()
}

/// A rule without what it does not say.
fn rule(rule: &NetOutRule) -> Value {
    let mut members = Map::new();
    let mut put = |name: &str, value: Value| {
        members.insert(name.to_owned(), value);
    };
    let protocol = number(rule.protocol);
    if protocol != 0 {
        put("protocol", protocol.into());
    }
    if !rule.networks.is_empty() {
        let ranges = rule.networks.iter();
        let ranges = ranges.map(|(start, end)| json!({ "start": start, "end": end }));
        put("networks", ranges.collect());
    }
    if !rule.ports.is_empty() {
        let ranges = rule.ports.iter();
        let ranges = ranges.map(|(start, end)| json!({ "start": start, "end": end }));
        put("ports", ranges.collect());
    }
    if let Some((kind, code)) = rule.icmp {
        let mut control = json!({ "type": kind });
        if let Some(code) = code {
            control["code"] = code.into();
        }
        put("icmps", control);
    }
    if rule.log {
        put("log", true.into());
    }
    Value::Object(members)
}

/// The number of a protocol in Garden's API.
fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::All => 0,
        Protocol::Tcp => 1,
        Protocol::Udp => 2,
        Protocol::Icmp => 3,
        Protocol::Icmp6 => 4,
    }
}

/// The answer to `up`; nothing at all is one, too.
pub(super) fn read_up(stdout: &[u8]) -> Result<Up, String> {
    let mut answer = object(stdout)?;
    let mut up = Up::default();
    if let Some(properties) = take(&mut answer, "properties") {
        let properties: Option<_> = read(properties, "properties")?;
        up.properties = properties.unwrap_or_default();
    }
    if let Some(servers) = take(&mut answer, "dns_servers") {
        up.dns_servers = read(servers, "dns_servers")?;
    }
    if let Some(domains) = take(&mut answer, "search_domains") {
        up.search_domains = read(domains, "search_domains")?;
    }
    Ok(up)
}

/// The answer to `net-in`; what it does not say is as it was asked.
pub(super) fn read_port(stdout: &[u8], asked: PortRequest) -> Result<MappedPort, String> {
    let mut answer = object(stdout)?;
    let mut port = |name, asked| match take(&mut answer, name) {
        None => Ok(asked),
        Some(value) => read::<u32>(value, name),
    };
    let (host, container) = (
        port("host_port", asked.host)?,
        port("container_port", asked.container)?,
    );
    let fits = |name: &str, port: u32| match u16::try_from(port) {
        Ok(port @ 1..) => Ok(port),
        _ => Err(format!("{name} is no port: {port}")),
    };
    Ok(MappedPort {
        host: fits("host_port", host)?,
        container: fits("container_port", container)?,
    })
}

fn object(stdout: &[u8]) -> Result<Map<String, Value>, String> {
    if stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    match serde_json::from_slice(stdout) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(_) => Err("it is no JSON object".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A member by its name, in whatever case; the exact one first.
fn take(members: &mut Map<String, Value>, name: &str) -> Option<Value> {
    if let Some(value) = members.remove(name) {
        return Some(value);
    }
    let key = members.keys().find(|key| key.eq_ignore_ascii_case(name));
    let key = key?.clone();
    members.remove(&key)
}

fn read<T: serde::de::DeserializeOwned>(value: Value, name: &str) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("{name}: {error}"))
}

//! Plugins that are shell scripts, and what they are told.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::plugin::tests::script;
use crate::rules::Protocol;

fn plugin(directory: &Path, text: &str) -> Plugin {
    Plugin {
        path: script(directory, text),
        extra_arguments: vec!["--configFile".into(), "/a b".into()],
        timeout: Duration::from_secs(60),
    }
}

/// Writes down its arguments and its input.
fn writing(directory: &Path, answer: &str) -> Plugin {
    let at = directory.display();
    let text = format!("printf '%s\\n' \"$@\" >{at}/args; cat >{at}/stdin; {answer}");
    plugin(directory, &text)
}

fn read(directory: &Path, name: &str) -> String {
    std::fs::read_to_string(directory.join(name)).unwrap()
}

fn properties(all: &[(&str, &str)]) -> BTreeMap<String, String> {
    let all = all.iter();
    all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn up_tells_and_reports() {
    let directory = tempfile::tempdir().unwrap();
    let answer = r#"echo talk >&2; echo '{"Properties":{"garden.network.container-ip":"10.255.0.7","x":"y"},
        "DNS_Servers":["10.0.0.2"],"search_domains":["a.b"],"more":1}'"#;
    let plugin = writing(directory.path(), answer);
    let all = properties(&[
        ("network.app_id", "7"),
        ("network.", "empty"),
        ("log_config", "{}"),
        ("other", "hidden"),
    ]);
    let container = Container {
        handle: "h",
        pid: 42,
        properties: &all,
    };
    let rule = NetOutRule {
        protocol: Protocol::Tcp,
        networks: vec![([1, 2, 3, 4].into(), [1, 2, 3, 5].into())],
        ports: vec![(80, 81)],
        ..NetOutRule::default()
    };
    let port = PortRequest {
        host: 0,
        container: 8080,
    };
    let up = plugin.up(&container, &[rule], &[port]).unwrap();
    let args = read(directory.path(), "args");
    assert_eq!(args, "--configFile\n/a b\n--action\nup\n--handle\nh\n");
    let told: Value = serde_json::from_str(&read(directory.path(), "stdin")).unwrap();
    let expected = json!({
        "Pid": 42,
        "Properties": { "app_id": "7", "": "empty", "log_config": "{}" },
        "netout_rules": [{ "protocol": 1, "networks": [{ "start": "1.2.3.4", "end": "1.2.3.5" }], "ports": [{ "start": 80, "end": 81 }] }],
        "netin": [{ "host_port": 0, "container_port": 8080 }],
    });
    assert_eq!(told, expected);
    assert_eq!(up.address().unwrap(), Some(IpAddr::from([10, 255, 0, 7])));
    assert_eq!(up.address6().unwrap(), None);
    assert_eq!(up.properties.get("x").map(String::as_str), Some("y"));
    assert_eq!(up.dns_servers, Some(vec![[10, 0, 0, 2].into()]));
    assert_eq!(up.search_domains, Some(vec!["a.b".to_owned()]));
    assert_eq!(up.stderr, "talk");
}

#[test]
fn nothing_said_is_an_answer() {
    let directory = tempfile::tempdir().unwrap();
    let plugin = writing(directory.path(), "echo");
    let none = properties(&[]);
    let container = Container {
        handle: "h",
        pid: 1,
        properties: &none,
    };
    assert_eq!(plugin.up(&container, &[], &[]).unwrap(), Up::default());
    assert_eq!(
        read(directory.path(), "stdin"),
        r#"{"Pid":1,"Properties":{}}"#
    );
    plugin.down("h").unwrap();
    assert_eq!(read(directory.path(), "stdin"), "null");
}

#[test]
fn ports_and_rules() {
    let directory = tempfile::tempdir().unwrap();
    let up = properties(&[(CONTAINER_IP, "10.255.0.7")]);
    let container = Container {
        handle: "h",
        pid: 1,
        properties: &up,
    };
    let host = IpAddr::from([192, 0, 2, 1]);
    let plugin = writing(
        directory.path(),
        r#"echo '{"Host_Port":61001,"container_port":8080}'"#,
    );
    let port = PortRequest {
        host: 0,
        container: 8080,
    };
    let mapped = plugin.net_in(&container, host, port).unwrap();
    assert_eq!((mapped.host, mapped.container), (61001, 8080));
    let told: Value = serde_json::from_str(&read(directory.path(), "stdin")).unwrap();
    let expected = json!({ "HostIP": "192.0.2.1", "HostPort": 0, "ContainerIP": "10.255.0.7", "ContainerPort": 8080 });
    assert_eq!(told, expected);
    let rule = NetOutRule {
        protocol: Protocol::Icmp,
        icmp: Some((8, Some(0))),
        log: true,
        ..NetOutRule::default()
    };
    plugin.net_out(&container, &rule).unwrap();
    let told: Value = serde_json::from_str(&read(directory.path(), "stdin")).unwrap();
    let rule_told = json!({ "protocol": 3, "icmps": { "type": 8, "code": 0 }, "log": true });
    assert_eq!(
        told,
        json!({ "container_ip": "10.255.0.7", "netout_rule": rule_told })
    );
    plugin.bulk_net_out(&container, &[rule]).unwrap();
    let told: Value = serde_json::from_str(&read(directory.path(), "stdin")).unwrap();
    assert_eq!(
        told,
        json!({ "container_ip": "10.255.0.7", "netout_rules": [rule_told] })
    );
    // A port of 0 that the plugin did not fill in is none.
    let silent = writing(directory.path(), "true");
    let error = silent.net_in(&container, host, port).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("unmarshaling result from external networker: ")
    );
    // Without an address no plugin is asked.
    let none = properties(&[]);
    let container = Container {
        properties: &none,
        ..container
    };
    let error = silent.net_in(&container, host, port).unwrap_err();
    assert_eq!(error.to_string(), "cannot find container [h]\n");
}

#[test]
fn failures_have_guardians_words() {
    let directory = tempfile::tempdir().unwrap();
    let none = properties(&[]);
    let container = Container {
        handle: "h",
        pid: 1,
        properties: &none,
    };
    let failing = plugin(directory.path(), "echo it burns >&2; exit 1");
    let error = failing.up(&container, &[], &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "external networker encountered an error running 'up' action: exit status 1: it burns"
    );
    let error = failing.down("h").unwrap_err();
    assert!(
        error
            .to_string()
            .contains("running 'down' action: exit status 1")
    );
    for bad in [
        "{",
        "[]",
        r#"{"properties":3}"#,
        r#"{"dns_servers":["x"]}"#,
        r#"{"properties":{"garden.network.container-ip":"x"}}"#,
    ] {
        let plugin = writing(directory.path(), &format!("echo '{bad}'"));
        let error = plugin.up(&container, &[], &[]).unwrap_err().to_string();
        assert!(
            error.starts_with("unmarshaling result from external networker: "),
            "{error}"
        );
    }
    let hanging = Plugin {
        timeout: Duration::from_millis(200),
        ..plugin(directory.path(), "sleep 1000")
    };
    let error = hanging.down("h").unwrap_err();
    assert!(matches!(
        error,
        ExternalError::Run {
            source: PluginError::Timeout { .. },
            ..
        }
    ));
}

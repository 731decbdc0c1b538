//! Chains of plugins that are shell scripts, and what each is told.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use super::*;

const RESULT: &str = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","mac":"aa:bb","sandbox":"/x"}],
    "ips":[{"address":"10.9.0.2/24","gateway":"10.9.0.1","interface":0},{"address":"fd00::2/64"}],
    "dns":{"nameservers":["10.9.0.1"],"search":["a.b"]}}"#;

/// Plugins `one` and `two`, which write down what they are told and answer with a result.
struct Place {
    directory: tempfile::TempDir,
    namespace: OwnedFd,
    cni: Cni,
}

impl Place {
    fn new(version: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        for (name, answer) in [("one", RESULT), ("two", RESULT)] {
            let log = at.join("log");
            let text = format!(
                "#!/bin/sh\n(echo {name} $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_ARGS; cat; echo) >>{0}\n\
                 test -e {0}.fail-{name}-$CNI_COMMAND && {{ echo '{{\"code\":7,\"msg\":\"no\",\"details\":\"really\"}}'; exit 1; }}\n\
                 test $CNI_COMMAND = ADD && readlink $CNI_NETNS >{0}.ns && cat {1}/{name}.answer\nexit 0\n",
                log.display(),
                at.display()
            );
            // By a child, so that no thread's child holds it open for writing when it is run.
            let path = at.join(name);
            let made = std::process::Command::new("/bin/sh")
                .args(["-c", "printf %s \"$0\" >\"$1\" && chmod 755 \"$1\""])
                .arg(text)
                .arg(&path)
                .status();
            assert!(made.unwrap().success());
            fs::write(at.join(format!("{name}.answer")), answer).unwrap();
        }
        let text = json!({
            "cniVersion": version,
            "name": "net",
            "plugins": [
                { "type": "one", "bridge": "b0" },
                { "type": "two", "capabilities": { "portMappings": true } },
            ],
        });
        let cni = Cni {
            configuration: Configuration::new(text).unwrap(),
            programs: vec!["/nowhere".into(), at.to_owned()],
            cache: at.join("cache"),
            timeout: Duration::from_secs(60),
        };
        Self {
            namespace: fs::File::open("/proc/self/ns/net").unwrap().into(),
            directory,
            cni,
        }
    }

    fn container<'a>(
        &'a self,
        ports: &'a [Port],
        arguments: &'a [(String, String)],
    ) -> Container<'a> {
        Container {
            id: "id-1",
            namespace: Some(self.namespace.as_fd()),
            interface: "eth0",
            ports,
            arguments,
        }
    }

    /// The log since the last look: lines of who was called, and what was read.
    fn calls(&self) -> Vec<(String, Value)> {
        let log = self.directory.path().join("log");
        let text = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(log);
        let lines: Vec<_> = text.lines().collect();
        let pair = |pair: &[&str]| (pair[0].to_owned(), serde_json::from_str(pair[1]).unwrap());
        lines.chunks(2).map(pair).collect()
    }

    fn fail(&self, what: &str, on: bool) {
        let path = self.directory.path().join(format!("log.fail-{what}"));
        if on {
            fs::write(path, "").unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }

    fn cached(&self) -> usize {
        let cached = fs::read_dir(self.directory.path().join("cache"));
        cached.map_or(0, Iterator::count)
    }
}

fn names(calls: &[(String, Value)]) -> Vec<&str> {
    let name = |(call, _): &'_ (String, Value)| call.split(" id-1").next().unwrap_or("").len();
    calls.iter().map(|call| &call.0[..name(call)]).collect()
}

#[test]
fn a_chain_is_told_what_came_before() {
    let place = Place::new("1.0.0");
    let ports = [Port {
        host: 8080,
        container: 80,
        udp: false,
    }];
    let arguments = [("GARDEN_HANDLE".to_owned(), "h".to_owned())];
    let container = place.container(&ports, &arguments);
    let attachment = place.cni.add(&container).unwrap();
    assert_eq!(
        attachment.addresses[0].address,
        std::net::IpAddr::from([10, 9, 0, 2])
    );
    assert_eq!(attachment.addresses[0].gateway, Some([10, 9, 0, 1].into()));
    assert_eq!(
        (attachment.addresses[1].prefix, attachment.addresses.len()),
        (64, 2)
    );
    assert_eq!(attachment.dns.search, ["a.b"]);
    assert_eq!(attachment.interfaces[0].mac, "aa:bb");
    assert_eq!(
        attachment.ports,
        [MappedPort {
            host: 8080,
            container: 80
        }]
    );
    let calls = place.calls();
    assert_eq!(
        calls[0].0,
        "one ADD id-1 eth0 IgnoreUnknown=1;GARDEN_HANDLE=h"
    );
    assert_eq!(
        calls[0].1,
        json!({ "type": "one", "bridge": "b0", "name": "net", "cniVersion": "1.0.0" })
    );
    let result: Value = serde_json::from_str(RESULT).unwrap();
    let mapped = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }]);
    let two = json!({ "type": "two", "name": "net", "cniVersion": "1.0.0", "prevResult": result,
        "runtimeConfig": { "portMappings": mapped } });
    assert_eq!(calls[1].1, two);
    // The namespace can be opened by the path that it is told.
    let told = fs::read_to_string(place.directory.path().join("log.ns")).unwrap();
    assert_eq!(
        Path::new(told.trim()),
        fs::read_link("/proc/self/ns/net").unwrap()
    );
    place.cni.check(&container).unwrap();
    assert_eq!(names(&place.calls()), ["one CHECK", "two CHECK"]);
    // Another server, with another configuration, that knows no more than the id.
    let mut later = place.cni.clone();
    later.configuration.plugins.clear();
    let bare = Container {
        namespace: None,
        ports: &[],
        arguments: &[],
        ..container
    };
    later.del(&bare).unwrap();
    let calls = place.calls();
    assert_eq!(names(&calls), ["two DEL", "one DEL"]);
    assert_eq!(calls[0].1, two);
    assert_eq!(calls[1].1["prevResult"], result);
    assert_eq!(place.cached(), 0);
    // Once more is no fault.
    place.cni.del(&bare).unwrap();
    assert!(place.calls()[0].1.get("prevResult").is_none());
}

#[test]
fn what_fails_is_undone() {
    let place = Place::new("0.4.0");
    let container = place.container(&[], &[]);
    place.fail("two-ADD", true);
    let error = place.cni.add(&container).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the CNI plugin two failed at ADD: no: really"
    );
    assert!(matches!(error, CniError::Refused { code: 7, .. }));
    assert_eq!(
        names(&place.calls()),
        ["one ADD", "two ADD", "two DEL", "one DEL"]
    );
    assert_eq!(place.cached(), 0);
    // What cannot be undone is remembered; the other plugins are run all the same.
    place.fail("two-DEL", true);
    let error = place.cni.add(&container).unwrap_err();
    assert!(matches!(error, CniError::Half { .. }), "{error}");
    assert_eq!((place.calls().len(), place.cached()), (4, 1));
    place.fail("two-DEL", false);
    place.cni.del(&container).unwrap();
    assert_eq!(place.cached(), 0);
    place.fail("two-ADD", false);
    fs::write(
        place.directory.path().join("two.answer"),
        r#"{"ips":[{"address":"10.0.0.1"}]}"#,
    )
    .unwrap();
    let error = place.cni.add(&container).unwrap_err();
    assert!(
        error.to_string().contains("no address with a prefix"),
        "{error}"
    );
    assert_eq!(place.cached(), 0);
}

#[test]
fn before_0_4_there_is_no_check() {
    let place = Place::new("0.3.1");
    let container = place.container(&[], &[]);
    place.cni.add(&container).unwrap();
    place.calls();
    place.cni.check(&container).unwrap();
    assert!(place.calls().is_empty());
    place.cni.del(&container).unwrap();
    assert!(place.calls()[0].1.get("prevResult").is_none());
}

#[test]
fn nothing_is_run_for_a_bad_description() {
    let place = Place::new("1.0.0");
    let good = place.container(&[], &[]);
    let arguments = [("A".to_owned(), "b;C=d".to_owned())];
    for bad in [
        Container { id: "../x", ..good },
        Container { id: "", ..good },
        Container {
            interface: "eth0/x",
            ..good
        },
        Container {
            interface: "sixteen-letters-",
            ..good
        },
        Container {
            namespace: None,
            ..good
        },
        Container {
            arguments: &arguments,
            ..good
        },
    ] {
        assert!(
            matches!(place.cni.add(&bad), Err(CniError::Container { .. })),
            "{bad:?}"
        );
    }
    let mut without = place.cni.clone();
    without.programs.pop();
    let error = without.add(&good).unwrap_err();
    assert!(matches!(error, CniError::Missing { .. }), "{error}");
    assert!(place.calls().is_empty());
    assert_eq!(place.cached(), 0);
}

#[test]
fn configurations() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    assert!(Configuration::first_in(at).is_err());
    let write = |name: &str, text: &str| fs::write(at.join(name), text).unwrap();
    write(
        "20-b.conflist",
        r#"{"cniVersion":"1.0.0","name":"b","plugins":[{"type":"x"}]}"#,
    );
    write(
        "10-a.conf",
        r#"{"cniVersion":"0.4.0","name":"a","type":"x"}"#,
    );
    write("00-not.txt", "");
    assert_eq!(Configuration::first_in(at).unwrap().name(), "a");
    for (text, word) in [
        ("[]", "no JSON object"),
        (r#"{"cniVersion":"9","name":"a","type":"x"}"#, "cniVersion"),
        (r#"{"cniVersion":"1.0.0","name":"../a","type":"x"}"#, "name"),
        (
            r#"{"cniVersion":"1.0.0","name":"a","type":"../../bin/sh"}"#,
            "type",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"a","plugins":[]}"#,
            "no plugins",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"a","plugins":[{}]}"#,
            "type",
        ),
        (r#"{"cniVersion":"1.0.0","name":"a"}"#, "type"),
    ] {
        write("00-x.conf", text);
        let error = Configuration::first_in(at).unwrap_err().to_string();
        assert!(
            error.contains(word) && error.contains("00-x.conf"),
            "{error}"
        );
    }
}

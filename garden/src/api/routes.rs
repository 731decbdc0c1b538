//! Which request is meant: method and path to a [`Route`].
//!
//! Segments are told apart while still escaped, so that `%2F` can be part of a name, and are
//! unescaped once. There is no tolerance for trailing or doubled slashes.

use super::backend::Filters;

const METHODS: [&str; 4] = ["GET", "POST", "PUT", "DELETE"];

/// One of the two outputs of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Stdout,
    Stderr,
}

/// A request that the server knows. Names are as the client gave them, unescaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Ping,
    Capacity,
    List,
    Create,
    BulkInfo,
    BulkMetrics,
    Destroy(String),
    Info(String),
    Stop(String),
    StreamIn(String),
    StreamOut(String),
    BandwidthLimits(String),
    CpuLimits(String),
    DiskLimits(String),
    MemoryLimits(String),
    NetIn(String),
    NetOut(String),
    BulkNetOut(String),
    SetGraceTime(String),
    Properties(String),
    Property(String, String),
    SetProperty(String, String),
    RemoveProperty(String, String),
    Metrics(String),
    // Those that take their connection over.
    Run(String),
    Attach(String, String),
    Output(Side, String),
    // Those of our own.
    Ps,
    Peas(String),
    Logs(String),
    Log(String, String),
    Timeline(String),
    AllLimits(String),
    ChangeLimits(String),
    Usage(String),
    Teardown,
    TeardownWait,
    Pull,
    Events,
    Health(String),
    SetHealth(String),
    RemoveHealth(String),
    RemoveCheck(String, String),
}

/// A request that the server does not know.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// No method has this path.
    Path,
    /// These methods do, separated by `, `.
    Method(String),
}

impl Route {
    pub(super) fn parse(method: &str, path: &str) -> Result<Self, Unknown> {
        let Some(rest) = path.strip_prefix('/') else {
            return Err(Unknown::Path);
        };
        let segments: Vec<&str> = rest.split('/').collect();
        if let Some(route) = find(method, &segments) {
            return Ok(route);
        }
        let has = |other: &&str| find(other, &segments).is_some();
        let allow: Vec<&str> = METHODS.into_iter().filter(has).collect();
        Err(if allow.is_empty() {
            Unknown::Path
        } else {
            Unknown::Method(allow.join(", "))
        })
    }

    /// Whether it takes its connection over, outside HTTP.
    pub(super) fn hijacks(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Attach(..) | Self::Output(..))
    }

    /// The container whose grace time it pauses.
    pub(super) fn touches(&self) -> Option<&str> {
        match self {
            Self::Info(handle)
            | Self::Stop(handle)
            | Self::StreamIn(handle)
            | Self::StreamOut(handle)
            | Self::BandwidthLimits(handle)
            | Self::CpuLimits(handle)
            | Self::DiskLimits(handle)
            | Self::MemoryLimits(handle)
            | Self::NetIn(handle)
            | Self::NetOut(handle)
            | Self::BulkNetOut(handle)
            | Self::SetGraceTime(handle)
            | Self::Properties(handle)
            | Self::Property(handle, _)
            | Self::SetProperty(handle, _)
            | Self::RemoveProperty(handle, _)
            | Self::Metrics(handle)
            | Self::Run(handle)
            | Self::Attach(handle, _) => Some(handle),
            _ => None,
        }
    }

    /// The container that it names, if it names one.
    pub(super) fn handle(&self) -> Option<&str> {
        match self {
            Self::Destroy(handle) => Some(handle),
            other => other.touches(),
        }
    }

    /// Its name in logs, in which names and keys of users have no place.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Capacity => "capacity",
            Self::List => "list",
            Self::Create => "create",
            Self::BulkInfo => "bulk_info",
            Self::BulkMetrics => "bulk_metrics",
            Self::Destroy(_) => "destroy",
            Self::Info(_) => "info",
            Self::Stop(_) => "stop",
            Self::StreamIn(_) => "stream-in",
            Self::StreamOut(_) => "stream-out",
            Self::BandwidthLimits(_) => "current-bandwidth-limits",
            Self::CpuLimits(_) => "current-cpu-limits",
            Self::DiskLimits(_) => "current-disk-limits",
            Self::MemoryLimits(_) => "current-memory-limits",
            Self::NetIn(_) => "net-in",
            Self::NetOut(_) => "net-out",
            Self::BulkNetOut(_) => "bulk-net-out",
            Self::SetGraceTime(_) => "set-grace-time",
            Self::Properties(_) => "get-properties",
            Self::Property(..) => "get-property",
            Self::SetProperty(..) => "set-property",
            Self::RemoveProperty(..) => "remove-property",
            Self::Metrics(_) => "get-metrics",
            Self::Run(_) => "run",
            Self::Attach(..) => "attach",
            Self::Output(..) => "output",
            Self::Ps => "ps",
            Self::Peas(_) => "peas",
            Self::Logs(_) => "logs",
            Self::Log(..) => "log",
            Self::Timeline(_) => "timeline",
            Self::AllLimits(_) => "limits",
            Self::ChangeLimits(_) => "change-limits",
            Self::Usage(_) => "usage",
            Self::Teardown => "teardown",
            Self::TeardownWait => "teardown-wait",
            Self::Pull => "pull",
            Self::Events => "events",
            Self::Health(_) => "health",
            Self::SetHealth(_) => "set-health",
            Self::RemoveHealth(_) => "remove-health",
            Self::RemoveCheck(..) => "remove-check",
        }
    }
}

fn find(method: &str, segments: &[&str]) -> Option<Route> {
    match (method, segments) {
        ("GET", ["ping"]) => Some(Route::Ping),
        ("GET", ["capacity"]) => Some(Route::Capacity),
        ("GET", ["containers"]) => Some(Route::List),
        ("POST", ["containers"]) => Some(Route::Create),
        ("GET", ["containers", "bulk_info"]) => Some(Route::BulkInfo),
        ("GET", ["containers", "bulk_metrics"]) => Some(Route::BulkMetrics),
        (_, ["containers", handle, rest @ ..]) => of_container(method, name(handle)?, rest),
        ("GET", ["garden", "v1", "ps"]) => Some(Route::Ps),
        ("GET", ["garden", "v1", "teardown"]) => Some(Route::Teardown),
        ("POST", ["garden", "v1", "teardown", "wait"]) => Some(Route::TeardownWait),
        ("POST", ["garden", "v1", "pull"]) => Some(Route::Pull),
        ("GET", ["garden", "v1", "events"]) => Some(Route::Events),
        (_, ["garden", "v1", "containers", handle, rest @ ..]) => {
            own_of_container(method, name(handle)?, rest)
        }
        _ => None,
    }
}

fn own_of_container(method: &str, handle: String, rest: &[&str]) -> Option<Route> {
    Some(match (method, rest) {
        ("GET", ["peas"]) => Route::Peas(handle),
        ("GET", ["logs"]) => Route::Logs(handle),
        ("GET", ["logs", process]) => Route::Log(handle, name(process)?),
        ("GET", ["timeline"]) => Route::Timeline(handle),
        ("GET", ["limits"]) => Route::AllLimits(handle),
        ("PUT", ["limits"]) => Route::ChangeLimits(handle),
        ("GET", ["metrics"]) => Route::Usage(handle),
        ("GET", ["health"]) => Route::Health(handle),
        ("PUT", ["health"]) => Route::SetHealth(handle),
        ("DELETE", ["health"]) => Route::RemoveHealth(handle),
        ("DELETE", ["health", check]) => Route::RemoveCheck(handle, name(check)?),
        _ => return None,
    })
}

fn of_container(method: &str, handle: String, rest: &[&str]) -> Option<Route> {
    Some(match (method, rest) {
        ("DELETE", []) => Route::Destroy(handle),
        ("GET", ["info"]) => Route::Info(handle),
        ("PUT", ["stop"]) => Route::Stop(handle),
        ("PUT", ["files"]) => Route::StreamIn(handle),
        ("GET", ["files"]) => Route::StreamOut(handle),
        ("GET", ["limits", "bandwidth"]) => Route::BandwidthLimits(handle),
        ("GET", ["limits", "cpu"]) => Route::CpuLimits(handle),
        ("GET", ["limits", "disk"]) => Route::DiskLimits(handle),
        ("GET", ["limits", "memory"]) => Route::MemoryLimits(handle),
        ("POST", ["net", "in"]) => Route::NetIn(handle),
        ("POST", ["net", "out"]) => Route::NetOut(handle),
        ("POST", ["net", "out", "bulk"]) => Route::BulkNetOut(handle),
        ("PUT", ["grace_time"]) => Route::SetGraceTime(handle),
        ("GET", ["properties"]) => Route::Properties(handle),
        ("GET", ["properties", key]) => Route::Property(handle, name(key)?),
        ("PUT", ["properties", key]) => Route::SetProperty(handle, name(key)?),
        ("DELETE", ["properties", key]) => Route::RemoveProperty(handle, name(key)?),
        ("GET", ["metrics"]) => Route::Metrics(handle),
        ("POST", ["processes"]) => Route::Run(handle),
        ("GET", ["processes", process]) => Route::Attach(handle, name(process)?),
        ("GET", ["processes", _, "attaches", stream, "stdout"]) => {
            Route::Output(Side::Stdout, name(stream)?)
        }
        ("GET", ["processes", _, "attaches", stream, "stderr"]) => {
            Route::Output(Side::Stderr, name(stream)?)
        }
        _ => return None,
    })
}

/// A segment, unescaped. A `+` stays one: the Go client sends it raw for itself.
fn name(segment: &str) -> Option<String> {
    unescape(segment).filter(|name| !name.is_empty())
}

/// Undoes percent-escapes; `None` for a bad one, or for what is not text then.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, tail @ ..] = rest else {
            return None;
        };
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let value = digit(*high)? * 16 + digit(*low)?;
        bytes.push(u8::try_from(value).ok()?);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

/// The parameters of a query: of a repeated one the first, without value the empty one. Pairs
/// that cannot be unescaped are left out.
pub(super) fn query(text: &str) -> Filters {
    let mut parameters = Filters::new();
    let plus = |text: &str| -> Option<String> {
        let spaced = text.replace('+', " ");
        unescape(&spaced)
    };
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let (Some(key), Some(value)) = (plus(key), plus(value)) {
            parameters.entry(key).or_insert(value);
        }
    }
    parameters
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Any route's name, to be sure that none is forgotten: the compiler counts them.
    #[test]
    fn the_description_has_every_route_and_no_other() {
        let text = include_str!("../../../docs/openapi.json");
        let document: serde_json::Value = serde_json::from_str(text).unwrap();
        let mut described = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            let example = path.replace(['{', '}'], "");
            for (method, operation) in operations.as_object().unwrap() {
                let route = Route::parse(&method.to_uppercase(), &example);
                let route = route.unwrap_or_else(|_| panic!("there is no {method} {path}"));
                let hijacks = operation.get("x-hijack").is_some();
                assert_eq!(route.hijacks(), hijacks, "{method} {path}");
                let id = operation["operationId"].as_str().unwrap();
                match route {
                    Route::Output(..) => {}
                    route => assert_eq!(id, route.name(), "{method} {path}"),
                }
                assert!(described.insert(id.to_owned()), "{id} is there twice");
            }
        }
        // Each method of each path that any description could have.
        for path in document["paths"].as_object().unwrap().keys() {
            let example = path.replace(['{', '}'], "");
            for method in METHODS {
                // With DELETE these are handles like any other.
                let known = match (method, example.starts_with("/containers/bulk_")) {
                    ("DELETE", true) => continue,
                    _ => Route::parse(method, &example).is_ok(),
                };
                let told = document["paths"][path].get(method.to_lowercase()).is_some();
                assert_eq!(known, told, "{method} {path}");
            }
        }
    }

    #[test]
    fn segments_are_unescaped_after_they_are_told_apart() {
        let key = |path: &str| match Route::parse("GET", path) {
            Ok(Route::Property(_, key)) => key,
            other => panic!("{path}: {other:?}"),
        };
        assert_eq!(
            key("/containers/h/properties/concourse:exit-status"),
            "concourse:exit-status"
        );
        assert_eq!(key("/containers/h/properties/a%2Fb"), "a/b");
        assert_eq!(key("/containers/h/properties/a%20b;c.d+e"), "a b;c.d+e");
        assert_eq!(key("/containers/h/properties/caf%C3%A9"), "café");
    }

    #[test]
    fn paths_are_exact() {
        for path in [
            "",
            "/",
            "/ping/",
            "//ping",
            "/containers/",
            "/containers//info",
            "/nothing",
            "/containers/h/properties/",
            "/containers/h/properties/%zz",
            "/containers/h/x/y",
        ] {
            assert_eq!(Route::parse("GET", path), Err(Unknown::Path), "{path}");
        }
    }

    #[test]
    fn a_known_path_tells_its_methods() {
        let allow = |path| match Route::parse("PATCH", path) {
            Err(Unknown::Method(allow)) => allow,
            other => panic!("{other:?}"),
        };
        assert_eq!(allow("/containers"), "GET, POST");
        assert_eq!(allow("/containers/h/files"), "GET, PUT");
        assert_eq!(allow("/containers/bulk_info"), "GET, DELETE");
        assert_eq!(
            Route::parse("HEAD", "/ping"),
            Err(Unknown::Method("GET".into()))
        );
    }

    #[test]
    fn outputs_are_found_by_stream_alone() {
        let route = Route::parse("GET", "/containers/h/processes/p/attaches/42/stderr");
        assert_eq!(route, Ok(Route::Output(Side::Stderr, "42".into())));
    }

    #[test]
    fn queries_are_forms() {
        let filters = query("a=&executor%3Aowner=rep&x+y=1%2B1&a=2&flag");
        let pairs: Vec<_> = filters
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(
            pairs,
            [
                ("a", ""),
                ("executor:owner", "rep"),
                ("flag", ""),
                ("x y", "1+1")
            ]
        );
    }
}

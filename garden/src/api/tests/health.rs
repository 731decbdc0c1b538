//! Health checks and events, between our client and our server.

use crate::api::testing::{Harness, soon};
use crate::checks::CheckSpec;
use crate::checks::health::HealthState;
use crate::events::{EventFilter, EventKind};
use crate::model::ContainerSpec;

fn check(name: &str) -> CheckSpec {
    let text = format!(
        r#"{{"name":"{name}","role":"liveness","interval_ms":70,"probe":{{"tcp":{{"port":1}}}}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn checks_go_with_a_create_and_can_be_changed() {
    let server = Harness::start();
    let client = server.client();
    let spec = ContainerSpec {
        handle: Some("h".parse().unwrap()),
        checks: vec![check("a"), check("b")],
        ..ContainerSpec::default()
    };
    let handle = client.create(&spec).await.unwrap();
    let status = client.health(&handle).await.unwrap();
    assert_eq!(status.state, Some(HealthState::Starting));
    let specs: Vec<_> = status.checks.into_iter().map(|check| check.spec).collect();
    assert_eq!(specs, spec.checks);
    client.remove_check(&handle, "a").await.unwrap();
    let left = client.health(&handle).await.unwrap().checks;
    assert_eq!(left[0].spec, check("b"));
    client.set_checks(&handle, Vec::new()).await.unwrap();
    assert_eq!(client.health(&handle).await.unwrap().state, None);
    let unknown = "nobody".parse().unwrap();
    assert!(client.health(&unknown).await.is_err());
}

#[tokio::test]
async fn events_are_lines_and_are_filtered() {
    let server = Harness::start();
    let client = server.client();
    let all = EventFilter::default();
    let mut events = client.events(&all).await.unwrap();
    let first = soon(events.next()).await.unwrap().unwrap();
    assert_eq!(
        (first.kind, first.handle.as_str()),
        (EventKind::Created, "h")
    );
    assert!(soon(events.next()).await.unwrap().is_some());
    assert_eq!(soon(events.next()).await.unwrap(), None);
    let some = EventFilter {
        kinds: vec!["started".into()],
        ..all
    };
    let mut events = client.events(&some).await.unwrap();
    let only = soon(events.next()).await.unwrap().unwrap();
    assert_eq!(only.kind, EventKind::Started);
    assert_eq!(soon(events.next()).await.unwrap(), None);
}

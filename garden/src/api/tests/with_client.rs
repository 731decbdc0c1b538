//! Our client against our server.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncReadExt;

use crate::api::Filters;
use crate::api::testing::{Harness, soon};
use crate::client::{Output, Wanted};
use crate::error::Error;
use crate::model::{
    ContainerSpec, Handle, ImageRef, Limits, NetOutRule, PortMapping, ProcessSpec, Protocol,
    PullProgress, Signal, WindowSize,
};

async fn server() -> (Harness, Handle) {
    let server = Harness::start();
    let spec = ContainerSpec {
        handle: Some("h".parse().unwrap()),
        properties: [("owner".to_owned(), "me & you".to_owned())].into(),
        limits: Limits {
            memory_bytes: Some(64 << 20),
            cpu_shares: Some(5),
            ..Limits::default()
        },
        ..ContainerSpec::default()
    };
    let handle = server.client().create(&spec).await.unwrap();
    (server, handle)
}

fn process(path: &str, args: &[&str]) -> ProcessSpec {
    ProcessSpec {
        path: path.into(),
        args: args.iter().map(ToString::to_string).collect(),
        ..ProcessSpec::default()
    }
}

async fn all(output: Option<Output>) -> Vec<u8> {
    let mut bytes = Vec::new();
    soon(output.unwrap().read_to_end(&mut bytes)).await.unwrap();
    bytes
}

#[tokio::test]
async fn plain_calls_come_back_as_they_went() {
    let (server, handle) = server().await;
    let client = server.client();
    client.ping().await.unwrap();
    assert_eq!(client.capacity().await.unwrap().max_containers, u64::MAX);
    let filters = |value: &str| Filters::from([("owner".to_owned(), value.to_owned())]);
    assert_eq!(
        client.list(&filters("me & you")).await.unwrap(),
        std::slice::from_ref(&handle)
    );
    assert!(client.list(&filters("x")).await.unwrap().is_empty());
    let limits = client.limits(&handle).await.unwrap();
    assert_eq!(
        (limits.memory_bytes, limits.cpu_shares),
        (Some(64 << 20), Some(5))
    );
    for key in ["concourse:exit-status", "a/b c+d%20", "ü"] {
        client.set_property(&handle, key, "v").await.unwrap();
        assert_eq!(client.property(&handle, key).await.unwrap(), "v", "{key}");
        client.remove_property(&handle, key).await.unwrap();
    }
    assert_eq!(
        client.properties(&handle).await.unwrap()["owner"],
        "me & you"
    );
    let mapped = client.net_in(
        &handle,
        PortMapping {
            host_port: 0,
            container_port: 80,
        },
    );
    assert_eq!(mapped.await.unwrap().host_port, 61_001);
    let rule = NetOutRule {
        protocol: Protocol::Tcp,
        networks: vec![("10.0.0.1".parse().unwrap(), "10.0.0.9".parse().unwrap())],
        ports: vec![(1, 2)],
        ..NetOutRule::default()
    };
    client
        .net_out(&handle, std::slice::from_ref(&rule))
        .await
        .unwrap();
    assert_eq!(*server.backend.rules.lock().unwrap(), [rule]);
    let info = client.info(&handle).await.unwrap();
    assert_eq!(info.mapped_ports[0].container_port, 80);
    assert_eq!(info.addresses.container, "10.254.0.2".parse().ok());
    assert_eq!(client.metrics(&handle).await.unwrap().memory_bytes, 7);
    let both = [handle.clone(), "gone".parse().unwrap()];
    let bulk = client.bulk_metrics(&both).await.unwrap();
    assert!(bulk["h"].is_ok());
    assert!(matches!(bulk["gone"], Err(Error::ContainerNotFound(_))));
    assert_eq!(
        client.bulk_info(&both).await.unwrap()["h"]
            .as_ref()
            .unwrap()
            .state,
        "active"
    );
    client
        .set_grace_time(&handle, Some(Duration::from_secs(60)))
        .await
        .unwrap();
    client.stop(&handle, false).await.unwrap();
    assert_eq!(client.ps().await.unwrap().containers[0].state, "stopped");
    assert_eq!(client.teardown().await.unwrap().depth, 3);
    assert_eq!(client.teardown_wait(Duration::ZERO).await.unwrap().depth, 0);
    client.destroy(&handle).await.unwrap();
    assert!(
        matches!(client.destroy(&handle).await, Err(Error::ContainerNotFound(h)) if h == handle)
    );
}

#[tokio::test]
async fn errors_keep_their_kind() {
    let (server, handle) = server().await;
    let client = server.client();
    let again = ContainerSpec {
        handle: Some(handle.clone()),
        ..ContainerSpec::default()
    };
    assert!(matches!(client.create(&again).await, Err(Error::HandleInUse(h)) if h == handle));
    let run = async |path: &str| {
        let spec = process(path, &[]);
        client.run(&handle, &spec, Wanted::NONE).await.unwrap_err()
    };
    assert!(matches!(
        run("frobnicate").await,
        Error::ExecutableNotFound(_)
    ));
    assert!(matches!(run("/etc").await, Error::NotExecutable(_)));
    let attach = client
        .attach(&handle, &"none".parse().unwrap(), Wanted::ALL)
        .await;
    assert!(matches!(attach, Err(Error::ProcessNotFound(_))));
    assert!(matches!(
        client.property(&handle, "none").await,
        Err(Error::Invalid(_))
    ));
    let nowhere = crate::client::Client::new(std::path::Path::new("/nonexistent/garden.sock"));
    let error = nowhere.ping().await.unwrap_err().report();
    assert!(
        error.contains("is it running?") && error.contains("No such file"),
        "{error}"
    );
    assert!(!nowhere.is_there().await && client.is_there().await);
}

#[tokio::test]
async fn a_process_reads_writes_and_ends() {
    let (server, handle) = server().await;
    let client = server.client();
    let mut echo = client
        .run(&handle, &process("echo", &["out", "err"]), Wanted::ALL)
        .await
        .unwrap();
    assert_eq!(all(echo.stdout.take()).await, b"out");
    assert_eq!(all(echo.stderr.take()).await, b"err");
    assert_eq!(soon(echo.wait()).await.unwrap(), 0);
    assert_eq!(echo.wait().await.unwrap(), 0);
    let mut cat = client
        .run(&handle, &process("cat", &[]), Wanted::ALL)
        .await
        .unwrap();
    let every: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let text = "ü".repeat(100_000);
    let input = cat.input();
    let output = cat.stdout.take();
    let feed = async {
        input.write(Bytes::from(every.clone())).await;
        input.write(Bytes::from(text.clone())).await;
        input.close().await;
    };
    let ((), read) = tokio::join!(soon(feed), all(output));
    assert_eq!(read, [&every, text.as_bytes()].concat());
    assert_eq!(soon(cat.wait()).await.unwrap(), 0);
}

#[tokio::test]
async fn signals_sizes_and_attaching_work() {
    let (server, handle) = server().await;
    let client = server.client();
    let spec = ProcessSpec {
        tty: Some(WindowSize {
            columns: 80,
            rows: 24,
        }),
        image: Some(ImageRef {
            uri: "/i".into(),
            ..ImageRef::default()
        }),
        own_limits: Some(Limits::default()),
        ..process("cat", &[])
    };
    let mut first = client.run(&handle, &spec, Wanted::NONE).await.unwrap();
    assert_eq!(client.peas(&handle).await.unwrap()[0].id, first.id);
    assert_eq!(
        server.backend.process("h", first.id.as_str()).spec.tty,
        spec.tty
    );
    let mut second = client
        .attach(&handle, &first.id, Wanted::ALL)
        .await
        .unwrap();
    first
        .input()
        .resize(WindowSize {
            columns: 132,
            rows: 50,
        })
        .await;
    let mut told = [0; 7];
    soon(second.stderr.as_mut().unwrap().read_exact(&mut told))
        .await
        .unwrap();
    assert_eq!(&told, b"132x50\n");
    second.input().signal(Signal::Terminate).await;
    assert_eq!(soon(first.wait()).await.unwrap(), 143);
    assert_eq!(soon(second.wait()).await.unwrap(), 143);
    let mut late = client
        .attach(&handle, &first.id, Wanted::ALL)
        .await
        .unwrap();
    assert_eq!(soon(late.wait()).await.unwrap(), 143);
    assert_eq!(all(late.stdout.take()).await, b"");
}

#[tokio::test]
async fn a_dropped_process_runs_on_and_a_stopped_server_is_noticed() {
    let (server, handle) = server().await;
    let client = server.client();
    let left = client
        .run(&handle, &process("cat", &[]), Wanted::ALL)
        .await
        .unwrap();
    let id = left.id.clone();
    drop(left);
    let mut again = client.attach(&handle, &id, Wanted::ALL).await.unwrap();
    server.stop.cancel();
    let error = soon(again.wait()).await.unwrap_err();
    assert!(
        error.report().contains("lost a process"),
        "{}",
        error.report()
    );
    assert!(again.wait().await.is_err());
    assert!(!server.backend.process("h", id.as_str()).ended());
}

#[tokio::test]
async fn files_travel_both_ways() {
    let (server, handle) = server().await;
    let client = server.client();
    let tar = std::io::Cursor::new(vec![7; 1 << 20]);
    client
        .stream_in(&handle, "alice", "/a dir&", tar)
        .await
        .unwrap();
    let stored = server.backend.files.lock().unwrap().pop().unwrap();
    assert_eq!(stored, ("alice".into(), "/a dir&".into(), vec![7; 1 << 20]));
    let failing = tokio::io::repeat(1).take(8 << 20);
    let error = client
        .stream_in(&handle, "nobody", "/", failing)
        .await
        .unwrap_err();
    assert!(
        error.report().contains("error streaming in"),
        "{}",
        error.report()
    );
    let mut out = client.stream_out(&handle, "", "/some file").await.unwrap();
    let mut text = String::new();
    out.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "/some file");
    let mut broken = client.stream_out(&handle, "", "/broken").await.unwrap();
    assert!(broken.read_to_end(&mut Vec::new()).await.is_err());
}

#[tokio::test]
async fn a_pull_tells_how_far_it_is() {
    let server = Harness::start();
    let image = |uri: &str| ImageRef {
        uri: uri.to_owned(),
        username: Some("me".to_owned()),
        password: Some("secret".to_owned()),
    };
    let mut told = Vec::new();
    let client = server.client();
    let wanted = image("docker:///x");
    let pulled = client.pull(&wanted, |event| told.push(event));
    let pulled = soon(pulled).await.unwrap();
    assert_eq!((pulled.id.as_str(), pulled.bytes), ("me", 14));
    assert_eq!(told[0], PullProgress::Layers { total: 2 });
    assert_eq!(told.len(), 3);
    // Before the first word, and after it: the same errors.
    let error = soon(client.pull(&image("nothing"), |_| {})).await;
    assert!(matches!(error, Err(Error::Invalid(text)) if text == "no such image"));
    let mut told = 0;
    let error = soon(client.pull(&image("broken"), |_| told += 1)).await;
    assert!(matches!(error, Err(Error::Exhausted(text)) if text == "the disk is full"));
    assert_eq!(told, 1);
}

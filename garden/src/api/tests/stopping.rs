//! How a server stops.

use std::time::Duration;

use tokio::net::UnixStream;

use crate::api::Options;
use crate::api::testing::{Harness, soon};

#[tokio::test]
async fn requests_are_finished_and_processes_left_alone() {
    let server = Harness::start();
    server
        .call("POST", "/containers", "{\"handle\":\"h\"}")
        .await;
    let (a, stream) = server.run("{\"id\":\"p\",\"path\":\"cat\"}").await;
    let b = server.output(&stream, "stdout").await;
    let silent = UnixStream::connect(&server.socket).await.unwrap();
    let mut idle = server.send("GET /ping HTTP/1.1\r\nHost: api\r\n\r\n").await;
    idle.head().await;
    server.backend.stops.forget_permits(1_000_000);
    let running =
        server.send("PUT /containers/h/stop HTTP/1.1\r\nHost: api\r\nContent-Length: 2\r\n\r\n{}");
    let mut running = running.await;
    let _begun = soon(server.backend.stopping.acquire()).await.unwrap();
    server.stop.cancel();
    // No last frame, no end of input; the outputs end.
    assert_eq!(a.rest().await, "");
    assert_eq!(b.rest().await, "");
    assert_eq!(idle.rest().await, "{}\n");
    soon(async {
        while server.socket.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(UnixStream::connect(&server.socket).await.is_err());
    assert!(!server.server.is_finished());
    server.backend.stops.add_permits(1);
    assert!(running.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
    let process = server.backend.process("h", "p");
    soon(server.server).await.unwrap();
    assert!(!process.ended());
    drop(silent);
}

#[tokio::test]
async fn a_head_that_does_not_come_in_time_closes_its_connection() {
    let server = Harness::with(Options {
        header_timeout: Some(Duration::from_millis(20)),
        ..Options::default()
    });
    let raw = server.send("GET /pi").await;
    assert_eq!(raw.rest().await, "");
    server
        .call("POST", "/containers", "{\"handle\":\"h\"}")
        .await;
    let (mut a, _) = server.run("{\"path\":\"cat\"}").await;
    let raw = server
        .send("GET /ping HTTP/1.1\r\nHost: api\r\n\r\nGET")
        .await;
    raw.rest().await;
    // The time does not apply to process connections.
    a.write("{\"signal\":0}").await;
    assert!(a.line().await.contains("143"));
}

#[tokio::test]
async fn more_connections_than_allowed_wait() {
    let server = Harness::with(Options {
        max_connections: 1,
        ..Options::default()
    });
    let first = UnixStream::connect(&server.socket).await.unwrap();
    let mut second = server.send("GET /ping HTTP/1.1\r\nHost: api\r\n\r\n").await;
    drop(first);
    assert!(second.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn a_request_that_does_not_end_ends_with_the_patience() {
    let server = Harness::with(Options {
        stop_patience: Some(Duration::from_millis(20)),
        ..Options::default()
    });
    server
        .call("POST", "/containers", "{\"handle\":\"h\"}")
        .await;
    server.backend.stops.forget_permits(1_000_000);
    let running =
        server.send("PUT /containers/h/stop HTTP/1.1\r\nHost: api\r\nContent-Length: 2\r\n\r\n{}");
    let _running = running.await;
    let _begun = soon(server.backend.stopping.acquire()).await.unwrap();
    server.stop.cancel();
    soon(server.server).await.unwrap();
}

//! Process connections, as bytes.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::api::Options;
use crate::api::testing::{CREATED, Harness, post, soon};

async fn server() -> Harness {
    let server = Harness::start();
    server
        .call("POST", "/containers", "{\"handle\":\"h\"}")
        .await;
    server
}

const CAT: &str = "{\"id\":\"7b1e\",\"path\":\"cat\",\"rlimits\":{},\"image\":{}}\n";

#[tokio::test]
async fn the_worked_exchange_holds_to_the_byte() {
    let server = server().await;
    let mut a = server.send(post("/containers/h/processes", CAT)).await;
    assert_eq!(a.head().await, CREATED);
    let first = a.line().await;
    let stream = first
        .strip_prefix("{\"process_id\":\"7b1e\",\"stream_id\":\"")
        .unwrap();
    let stream = stream.strip_suffix("\"}\n").unwrap();
    a.write("{\"process_id\":\"7b1e\",\"source\":0,\"data\":\"café \\u003c3\\n\"}\n")
        .await;
    // Both heads come before any output was asked for or exists.
    let mut b = server.output(stream, "stdout").await;
    let c = server.output(stream, "stderr").await;
    assert_eq!(b.line().await, "café <3\n");
    a.write("{\"process_id\":\"7b1e\",\"signal\":0}\n").await;
    assert_eq!(
        a.line().await,
        "{\"process_id\":\"7b1e\",\"exit_status\":143}\n"
    );
    assert_eq!(a.rest().await, "");
    assert_eq!(b.rest().await, "");
    assert_eq!(c.rest().await, "");
}

#[tokio::test]
async fn a_process_that_cannot_start_is_told_with_a_length_and_a_quiet_close() {
    let server = server().await;
    let request = post("/containers/h/processes", "{\"path\":\"frobnicate\"}");
    let answer = server.send(request).await.rest().await;
    assert_eq!(
        answer,
        "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\n\
         Content-Length: 143\r\n\r\n{\"Type\":\"ExecutableNotFoundError\",\"Message\":\"exec: \
         \\\"frobnicate\\\": executable file not found in $PATH\",\"Handle\":\"\",\
         \"ProcessID\":\"\",\"Binary\":\"\"}\n"
    );
    for (request, status, text) in [
        (post("/containers/h/processes", "{"), "500", "\"Type\":\"\""),
        (
            post("/containers/none/processes", "{}"),
            "404",
            "ContainerNotFoundError",
        ),
        (
            "GET /containers/h/processes/none HTTP/1.1\r\n\r\n".into(),
            "404",
            "\"ProcessID\":\"none\"",
        ),
        (
            "GET /containers/h/processes/a%20b HTTP/1.1\r\n\r\n".into(),
            "404",
            "\"ProcessID\":\"a b\"",
        ),
    ] {
        let answer = server.send(request).await.rest().await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert!(
            answer.contains(text) && answer.contains("\r\nContent-Length: "),
            "{answer}"
        );
        assert!(
            !answer.to_lowercase().contains("connection: close"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn frames_that_come_with_the_request_are_heard() {
    let server = server().await;
    let early = "{\"source\":0,\"data\":\"early\"}{\"process_id\":\"x\",\"source\":0}";
    let mut a = server
        .send(post("/containers/h/processes", CAT) + early)
        .await;
    a.head().await;
    a.line().await;
    assert_eq!(
        a.line().await,
        "{\"process_id\":\"7b1e\",\"exit_status\":0}\n"
    );
    // The same one right behind the head of an attach, in two packets cut at a bad place.
    let (mut first, _) = server.run("{\"id\":\"p2\",\"path\":\"deaf\"}").await;
    let mut attach = server
        .send("GET /containers/h/processes/p2 HTTP/1.1\r\n\r\n{\"sign")
        .await;
    attach.write("al\":1}").await;
    assert!(attach.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
    attach.line().await;
    let exit = "{\"process_id\":\"p2\",\"exit_status\":137}\n";
    assert_eq!(attach.line().await, exit);
    assert_eq!(first.line().await, exit);
}

#[tokio::test]
async fn output_waits_for_a_reader_that_comes_after_the_exit() {
    let server = server().await;
    let (mut a, stream) = server
        .run("{\"path\":\"echo\",\"args\":[\"out\",\"err\"]}")
        .await;
    assert!(a.line().await.contains("\"exit_status\":0}"));
    assert_eq!(a.rest().await, "");
    assert_eq!(server.output(&stream, "stdout").await.rest().await, "out");
    assert_eq!(server.output(&stream, "stdout").await.rest().await, "");
    assert_eq!(server.output(&stream, "stderr").await.rest().await, "err");
    assert_eq!(server.output("unknown", "stdout").await.rest().await, "");
}

#[tokio::test]
async fn a_reader_gets_every_byte_however_slow() {
    let server = server().await;
    let (mut a, stream) = server.run("{\"path\":\"flood\",\"args\":[\"5000\"]}").await;
    let b = server.output(&stream, "stdout").await;
    assert_eq!(b.rest().await.len(), 5000 * 4096);
    assert!(a.line().await.contains("\"exit_status\":0}"));
}

#[tokio::test]
async fn input_that_nobody_reads_destroys_no_exit() {
    let server = server().await;
    let (mut a, _) = server.run("{\"path\":\"exit\",\"args\":[\"0\"]}").await;
    let input = format!("{{\"source\":0,\"data\":\"{}\"}}\n", "x".repeat(1024));
    let _ = a.0.write_all(input.as_bytes()).await;
    assert!(a.line().await.ends_with("\"exit_status\":0}\n"));
}

#[tokio::test]
async fn signals_overtake_input_and_outlive_its_end() {
    let server = server().await;
    let (mut a, _) = server.run("{\"path\":\"deaf\"}").await;
    let input = format!("{{\"source\":0,\"data\":\"{}\"}}", "x".repeat(1 << 20));
    a.write(input).await;
    a.write("{\"source\":0}{}{\"signal\":9}{\"signal\":0}")
        .await;
    assert!(a.line().await.contains("\"exit_status\":143}"));
}

#[tokio::test]
async fn clients_that_leave_detach_in_whatever_way() {
    let server = server().await;
    let (mut a, stream) = server.run(CAT).await;
    let b = server.output(&stream, "stdout").await;
    a.write("{\"source\":0,\"data\":\"last words\"}").await;
    a.0.shutdown().await.unwrap();
    assert_eq!(a.rest().await, "");
    // What was said before was heard, and the outputs of this client end.
    let _ = b.rest().await;
    assert!(!server.backend.process("h", "7b1e").ended());
    let get = "GET /containers/h/processes/7b1e HTTP/1.1\r\nHost: api\r\n\r\n";
    let mut broken = server.send(get).await;
    broken.head().await;
    broken.line().await;
    broken.write("no frame").await;
    assert_eq!(broken.rest().await, "");
    let mut a = server.send(get).await;
    a.head().await;
    let first: serde_json::Value = serde_json::from_str(&a.line().await).unwrap();
    let stream = first["stream_id"].as_str().unwrap();
    let mut b = server.output(stream, "stdout").await;
    a.write("{\"source\":0,\"data\":\"back\\n\"}").await;
    loop {
        // The last words may still have been on their way.
        if b.line().await.ends_with("back\n") {
            break;
        }
    }
    a.write("{\"source\":0}").await;
    assert_eq!(
        a.line().await,
        "{\"process_id\":\"7b1e\",\"exit_status\":0}\n"
    );
}

#[tokio::test]
async fn a_grandchild_holds_back_neither_the_exit_nor_the_end() {
    let server = Harness::with(Options {
        output_linger: Duration::from_millis(10),
        ..Options::default()
    });
    server
        .call("POST", "/containers", "{\"handle\":\"h\"}")
        .await;
    let (mut a, stream) = server.run("{\"path\":\"leave-a-grandchild\"}").await;
    assert!(a.line().await.contains("\"exit_status\":7}"));
    assert_eq!(
        server.output(&stream, "stdout").await.rest().await,
        "before"
    );
    assert_eq!(server.output(&stream, "stderr").await.rest().await, "");
}

#[tokio::test]
async fn a_destroyed_container_answers_its_clients() {
    let server = server().await;
    let (mut a, _) = server.run("{\"path\":\"deaf\"}").await;
    server.call("DELETE", "/containers/h", "").await;
    assert!(a.line().await.contains("\"exit_status\":137}"));
}

#[tokio::test]
async fn large_input_in_one_frame_arrives() {
    let server = server().await;
    let (mut a, stream) = server.run(CAT).await;
    let b = tokio::spawn(server.output(&stream, "stdout").await.rest());
    let input = "ü".repeat(5 << 20);
    a.write(format!(
        "{{\"source\":0,\"data\":\"{input}\"}}{{\"source\":0}}"
    ))
    .await;
    assert!(a.line().await.contains("\"exit_status\":0}"));
    assert_eq!(b.await.unwrap().len(), input.len());
}

#[tokio::test]
async fn a_run_whose_body_never_comes_starts_nothing() {
    let server = server().await;
    let request = "POST /containers/h/processes HTTP/1.1\r\nContent-Length: 90\r\n\r\n{\"path\"";
    let mut raw = server.send(request).await;
    raw.0.shutdown().await.unwrap();
    let mut answer = Vec::new();
    soon(raw.0.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 500 "));
}

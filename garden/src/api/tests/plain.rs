//! The plain routes, as bytes.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::api::Options;
use crate::api::testing::{Harness, soon};

const OK: &str = "HTTP/1.1 200 OK";
const MISSING: &str = "HTTP/1.1 404 Not Found";
const FAILED: &str = "HTTP/1.1 500 Internal Server Error";

fn envelope(kind: &str, message: &str, handle: &str) -> String {
    format!(
        "{{\"Type\":\"{kind}\",\"Message\":\"{message}\",\"Handle\":\"{handle}\",\
         \"ProcessID\":\"\",\"Binary\":\"\"}}\n"
    )
}

fn is(status: &str, body: &str) -> (String, String) {
    (status.to_owned(), body.to_owned())
}

#[tokio::test]
async fn a_create_and_its_duplicate_are_answered_to_the_byte() {
    let server = Harness::start();
    let spec = "{\"handle\":\"demo-app-01\",\"image\":{},\"limits\":{\"bandwidth_limits\":{},\
                \"cpu_limits\":{},\"disk_limits\":{},\"memory_limits\":{},\"pid_limits\":{}}}\n";
    let request = format!(
        "POST /containers HTTP/1.1\r\nHost: api\r\nUser-Agent: Go-http-client/1.1\r\n\
         Content-Length: 137\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n\
         Connection: close\r\n\r\n{spec}"
    );
    let answer = server.send(&request).await.rest().await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for header in [
        "content-type: application/json",
        "content-length: 25",
        "connection: close",
    ] {
        assert!(head.contains(header), "{head}");
    }
    assert_eq!(body, "{\"Handle\":\"demo-app-01\"}\n");
    let answer = server.send(&request).await.rest().await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with(FAILED) && head.contains("content-length: 99"),
        "{head}"
    );
    assert_eq!(
        body,
        envelope("", "Handle 'demo-app-01' already in use", "")
    );
}

#[tokio::test]
async fn success_is_always_a_json_object() {
    let server = Harness::start();
    server
        .call("POST", "/containers", "{\"handle\":\"h\"}")
        .await;
    for (method, target, body, expected) in [
        ("GET", "/ping", "", "{}\n"),
        ("GET", "/containers", "", "{\"Handles\":[\"h\"]}\n"),
        ("GET", "/containers?a=b", "", "{\"Handles\":[]}\n"),
        ("PUT", "/containers/h/stop", "{\"kill\":true}\n", "{}\n"),
        ("PUT", "/containers/h/grace_time", "1500000000\n", "{}\n"),
        ("PUT", "/containers/h/grace_time", "0", "{}\n"),
        ("POST", "/containers/h/net/out", "{}", "{}\n"),
        (
            "POST",
            "/containers/h/net/out/bulk",
            "[{\"protocol\":1}]",
            "{}\n",
        ),
        ("POST", "/containers/h/net/out/bulk", "null", "{}\n"),
        (
            "POST",
            "/containers/h/net/in",
            "{\"handle\":\"h\"}",
            "{\"host_port\":61001,\"container_port\":61001}\n",
        ),
        ("GET", "/containers/h/limits/bandwidth", "", "{}\n"),
        ("GET", "/containers/h/limits/cpu", "", "{}\n"),
        ("GET", "/containers/h/properties", "", "{}\n"),
        (
            "PUT",
            "/containers/h/properties/concourse:exit-status",
            "{\"value\":\"0\"}",
            "{}\n",
        ),
        (
            "GET",
            "/containers/h/properties/concourse:exit-status",
            "",
            "{\"value\":\"0\"}\n",
        ),
        (
            "PUT",
            "/containers/h/properties/a%2Fb",
            "{\"value\":\"slash\"}",
            "{}\n",
        ),
        (
            "GET",
            "/containers/h/properties/a%2Fb",
            "",
            "{\"value\":\"slash\"}\n",
        ),
        (
            "PUT",
            "/containers/h/properties/a%20b",
            "{\"value\":\"space\"}",
            "{}\n",
        ),
        (
            "GET",
            "/containers/h/properties/a+b",
            "",
            "{\"value\":\"space\"}\n",
        ),
        ("DELETE", "/containers/h/properties/never", "", "{}\n"),
        ("GET", "/containers/bulk_info", "", "{}\n"),
        ("GET", "/containers/bulk_metrics?handles=", "", "{}\n"),
        ("DELETE", "/containers/h", "", "{}\n"),
    ] {
        assert_eq!(
            server.call(method, target, body).await,
            is(OK, expected),
            "{method} {target}"
        );
    }
    assert_eq!(server.backend.rules.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn an_unknown_handle_is_told_everywhere_alike() {
    let server = Harness::start();
    for (method, path, body) in [
        ("DELETE", "", ""),
        ("GET", "/info", ""),
        ("PUT", "/stop", "{}"),
        ("PUT", "/files?user=&destination=", ""),
        ("GET", "/files?user=&source=", ""),
        ("GET", "/limits/bandwidth", ""),
        ("GET", "/limits/cpu", ""),
        ("GET", "/limits/disk", ""),
        ("GET", "/limits/memory", ""),
        ("POST", "/net/in", "{}"),
        ("POST", "/net/out", "{}"),
        ("POST", "/net/out/bulk", "[]"),
        ("POST", "/processes", "{}"),
        ("GET", "/processes/p", ""),
        ("PUT", "/grace_time", "1"),
        ("GET", "/properties", ""),
        ("GET", "/properties/k", ""),
        ("PUT", "/properties/k", "{}"),
        ("DELETE", "/properties/k", ""),
        ("GET", "/metrics", ""),
    ] {
        for (escaped, handle) in [("web-1", "web-1"), ("-a%20b", "-a b")] {
            let target = format!("/containers/{escaped}{path}");
            let message = format!("unknown handle: {handle}");
            let expected = envelope("ContainerNotFoundError", &message, handle);
            let answer = server.call(method, &target, body).await;
            assert_eq!(answer, is(MISSING, &expected), "{method} {target}");
        }
    }
}

#[tokio::test]
async fn requests_that_make_no_sense_get_an_envelope() {
    let server = Harness::start();
    server
        .call("POST", "/containers", "{\"handle\":\"h\"}")
        .await;
    let bad = envelope("", "EOF", "");
    assert_eq!(
        server.call("POST", "/containers", "").await,
        is(FAILED, &bad)
    );
    let (status, body) = server.call("PUT", "/containers/h/stop", "{\"kill\":").await;
    assert!(status == FAILED && body.starts_with("{\"Type\":\"\",\"Message\":\"EOF while"));
    let (status, _) = server.call("POST", "/containers", "[]").await;
    assert_eq!(status, FAILED);
    let missing = envelope("", "property does not exist: k", "");
    let answer = server.call("GET", "/containers/h/properties/k", "").await;
    assert_eq!(answer, is(FAILED, &missing));
    let (status, body) = server.call("GET", "/nothing", "").await;
    assert!(
        status == MISSING && body.contains("404 page not found"),
        "{body}"
    );
    let request = "PUT /containers HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n";
    let answer = server.send(request).await.rest().await;
    assert!(
        answer.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"),
        "{answer}"
    );
    assert!(answer.contains("allow: GET, POST\r\n"), "{answer}");
    let misplaced = "GET /ping HTTP/1.1\r\nHost: api\r\n\r\n\
                     GET /containers/h/processes/p HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n";
    let answer = server.send(misplaced).await.rest().await;
    assert!(answer.contains("takes its connection over"), "{answer}");
}

#[tokio::test]
async fn one_bad_handle_fails_no_other_in_bulk() {
    let server = Harness::start();
    server
        .call("POST", "/containers", "{\"handle\":\"demo-app-01\"}")
        .await;
    let target = "/containers/bulk_metrics?handles=demo-app-01%2Cgone%2C-odd";
    let (status, body) = server.call("GET", target, "").await;
    assert_eq!(status, OK);
    let all: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(all.as_object().unwrap().len(), 3);
    let good = &all["demo-app-01"];
    assert!(good["Err"].is_null() && good["Metrics"]["NetworkStat"].is_null());
    assert_eq!(good["Metrics"]["MemoryStat"]["TotalUsageTowardLimit"], 7);
    assert_eq!(good["Metrics"]["MemoryStat"]["total_rss"], 5);
    assert_eq!(good["Metrics"]["MemoryStat"].as_object().unwrap().len(), 32);
    assert_eq!(good["Metrics"]["Age"], 8);
    let gone = envelope("ContainerNotFoundError", "unknown handle: gone", "gone");
    assert_eq!(
        all["gone"]["Err"],
        serde_json::from_str::<serde_json::Value>(&gone).unwrap()
    );
    assert_eq!(all["gone"]["Metrics"]["CPUStat"]["Usage"], 0);
    assert_eq!(all["-odd"]["Err"]["Type"], "ContainerNotFoundError");
    let (_, body) = server
        .call("GET", "/containers/bulk_info?handles=demo-app-01,gone", "")
        .await;
    let all: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(all["demo-app-01"]["Info"]["State"], "active");
    assert_eq!(all["demo-app-01"]["Info"]["ContainerIP"], "10.254.0.2");
    assert_eq!(all["demo-app-01"]["Info"]["HostIP"], "");
    assert_eq!(all["gone"]["Info"]["State"], "");
}

#[tokio::test]
async fn a_second_destroy_is_told_so_in_the_words_that_clients_compare() {
    let server = Harness::start();
    server
        .call("POST", "/containers", "{\"handle\":\"h\"}")
        .await;
    server.backend.destroys.forget_permits(1_000_000);
    let (first, second) = tokio::join!(server.call("DELETE", "/containers/h", ""), async {
        let _begun = soon(server.backend.destroying.acquire()).await.unwrap();
        let second = server.call("DELETE", "/containers/h", "").await;
        server.backend.destroys.add_permits(1);
        second
    });
    assert_eq!(first, is(OK, "{}\n"));
    let text = envelope("", "container already being destroyed", "");
    assert_eq!(second, is(FAILED, &text));
    let gone = envelope("ContainerNotFoundError", "unknown handle: h", "h");
    assert_eq!(
        server.call("DELETE", "/containers/h", "").await,
        is(MISSING, &gone)
    );
}

#[tokio::test]
async fn a_client_that_leaves_cancels_nothing() {
    let server = Harness::start();
    server
        .call("POST", "/containers", "{\"handle\":\"h\"}")
        .await;
    server.backend.destroys.forget_permits(1_000_000);
    let left = server
        .send("DELETE /containers/h HTTP/1.1\r\nHost: api\r\n\r\n")
        .await;
    let _begun = soon(server.backend.destroying.acquire()).await.unwrap();
    drop(left);
    server.backend.destroys.add_permits(1);
    soon(async {
        while server.backend.exists("h") {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_unused_container_is_destroyed_after_its_grace_time() {
    let server = Harness::with(Options {
        default_grace_time: Some(Duration::from_millis(1)),
        ..Options::default()
    });
    server
        .call("POST", "/containers", "{\"handle\":\"h\"}")
        .await;
    soon(async {
        while server.backend.exists("h") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let at_once = "{\"handle\":\"now\",\"grace_time\":-1}";
    server.call("POST", "/containers", at_once).await;
    let for_long = "{\"handle\":\"later\",\"grace_time\":3600000000000}";
    server.call("POST", "/containers", for_long).await;
    soon(async {
        while server.backend.exists("now") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(server.backend.exists("later"));
}

#[tokio::test]
async fn a_panic_takes_nothing_along() {
    let server = Harness::start();
    let (status, body) = server
        .call("POST", "/containers", "{\"handle\":\"panic\"}")
        .await;
    assert!(
        status == FAILED && body.contains("internal error"),
        "{body}"
    );
    assert_eq!(server.call("GET", "/ping", "").await, is(OK, "{}\n"));
}

#[tokio::test]
async fn a_failed_upload_is_told_after_all_was_sent() {
    let server = Harness::start();
    server
        .call("POST", "/containers", "{\"handle\":\"h\"}")
        .await;
    let head = "PUT /containers/h/files?destination=%2Fd&user=nobody HTTP/1.1\r\nHost: api\r\n\
                Content-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut raw = server.send(head).await;
    let piece = vec![b'p'; 0x8000];
    for _ in 0..200 {
        raw.write("8000\r\n").await;
        raw.write(&piece).await;
        raw.write("\r\n").await;
    }
    raw.write("0\r\n\r\n").await;
    assert!(raw.head().await.starts_with(FAILED));
    assert!(raw.line().await.contains("error streaming in"));
}

#[tokio::test]
async fn an_upload_arrives_whole_or_fails() {
    let server = Harness::start();
    server
        .call("POST", "/containers", "{\"handle\":\"h\"}")
        .await;
    let target = "/containers/h/files?destination=%2Fa+dir&user=alice";
    assert_eq!(
        server.call("PUT", target, "tar bytes").await,
        is(OK, "{}\n")
    );
    assert_eq!(server.call("PUT", target, "").await, is(OK, "{}\n"));
    let cut = "PUT /containers/h/files HTTP/1.1\r\nHost: api\r\nContent-Length: 100\r\n\r\nhalf";
    let mut raw = server.send(cut).await;
    raw.0.shutdown().await.unwrap();
    let _ = raw.0.read_to_end(&mut Vec::new()).await;
    let files = server.backend.files.lock().unwrap();
    let expected = |bytes: &[u8]| ("alice".to_owned(), "/a dir".to_owned(), bytes.to_vec());
    assert_eq!(*files, [expected(b"tar bytes"), expected(b"")]);
}

#[tokio::test]
async fn a_broken_download_is_cut_not_ended() {
    let server = Harness::start();
    server
        .call("POST", "/containers", "{\"handle\":\"h\"}")
        .await;
    let get = |source: &str| {
        format!("GET /containers/h/files?user=&source={source} HTTP/1.1\r\nHost: api\r\n\r\n")
    };
    let cut = server.send(get("%2Fbroken")).await.rest().await;
    assert!(cut.starts_with(OK) && cut.contains("transfer-encoding: chunked"));
    assert!(!cut.ends_with("0\r\n\r\n"));
    let (status, body) = server
        .call("GET", "/containers/h/files?source=%2Fmissing", "")
        .await;
    assert!(status == FAILED && body.contains("no such file"), "{body}");
    let (status, body) = server
        .call("GET", "/containers/h/files?source=%2Funreadable", "")
        .await;
    assert!(
        status == FAILED && body.contains("the disk is gone"),
        "{body}"
    );
    let whole = server
        .call("GET", "/containers/h/files?source=%2Ffine", "")
        .await;
    assert_eq!(whole, is(OK, "5\r\n/fine\r\n0\r\n\r\n"));
    let mut early = server.send(get("%2Fendless")).await;
    early.head().await;
    drop(early);
    assert_eq!(server.call("GET", "/ping", "").await, is(OK, "{}\n"));
}

#[tokio::test]
async fn our_own_routes_answer() {
    let server = Harness::start();
    server
        .call("POST", "/containers", "{\"handle\":\"h\"}")
        .await;
    let (pea, _) = server
        .run("{\"id\":\"pea\",\"path\":\"cat\",\"image\":{\"uri\":\"/i\"}}")
        .await;
    let (status, body) = server.call("GET", "/garden/v1/ps", "").await;
    let ps: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, OK);
    assert_eq!(ps["containers"][0]["handle"], "h");
    assert_eq!(ps["containers"][0]["processes"][0]["id"], "pea");
    let (_, body) = server.call("GET", "/garden/v1/containers/h/peas", "").await;
    assert_eq!(
        body,
        "{\"peas\":[{\"id\":\"pea\",\"pid\":1,\"pea\":true,\"path\":\"cat\"}]}\n"
    );
    let (_, body) = server.call("GET", "/garden/v1/teardown", "").await;
    assert!(body.starts_with("{\"depth\":3,"), "{body}");
    let wait = "/garden/v1/teardown/wait?timeout_ms=5";
    let (_, body) = server.call("POST", wait, "").await;
    assert!(body.starts_with("{\"depth\":0,"), "{body}");
    let wait = "/garden/v1/teardown/wait?timeout_ms=soon";
    assert_eq!(server.call("POST", wait, "").await.0, FAILED);
    drop(pea);
}

//! Servers that are busy, slow, or break off.

use super::*;

#[test]
fn a_busy_server_is_asked_again() {
    let pushed = Pushed::new("layer", &[]);
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |request| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(503, ""),
        1 => Reply::new(429, "").with("Retry-After", "0"),
        2 => Reply::new(500, ""),
        _ => pushed.reply(request),
    });
    assert_eq!(pull(&image(&server)).unwrap(), b"layer");
    assert_eq!(server.requests().len(), 6);

    // Nobody waits for an hour, and nobody asks again before.
    let server = Server::start(|_| Reply::new(429, "").with("Retry-After", "3600"));
    let error = registry_error(pull(&image(&server)));
    let hour = Some(Duration::from_secs(3600));
    assert!(matches!(error, RegistryError::Busy { after, status: 429, .. } if after == hour));
    assert_eq!(server.requests().len(), 1);

    // What will not pass is not tried again; what the server says is told.
    let body = r#"{"errors":[{"code":"UNSUPPORTED","message":"not\nhere"}]}"#;
    let server = Server::start(move |_| Reply::new(405, body));
    let error = registry_error(pull(&image(&server)));
    assert!(
        error.to_string().ends_with("status 405: not here"),
        "{error}"
    );
    assert_eq!(server.requests().len(), 1);

    let server = Server::start(|_| Reply::new(500, "{"));
    let error = registry_error(pull(&image(&server)));
    assert!(matches!(error, RegistryError::Status { status: 500, .. }));
    assert_eq!(server.requests().len(), 5);
}

#[test]
fn a_broken_body_goes_on_where_it_was() {
    let pushed = Pushed::new(large(), &[]);
    let (layer, path) = (pushed.layer.clone(), pushed.layer_path());
    let broken = path.clone();
    let tries = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        let reply = pushed.reply(request);
        if request.path != broken {
            return reply;
        }
        match tries.fetch_add(1, Ordering::SeqCst) {
            0 => reply.broken(1_100_000),
            1 => reply.broken(1),
            2 => reply.broken(0),
            _ => reply,
        }
    });
    assert_eq!(pull(&image(&server)).unwrap(), layer);
    let offsets: Vec<_> = (server.requests().iter())
        .filter(|request| request.path == path)
        .map(Request::offset)
        .collect();
    assert_eq!(offsets, [0, 1_100_000, 1_100_001, 1_100_001]);
}

#[test]
fn a_server_without_ranges_begins_again() {
    let pushed = Pushed::new(large(), &[]);
    let layer = pushed.layer.clone();
    let tries = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        if request.path != pushed.layer_path() {
            return pushed.reply(request);
        }
        let reply = Reply::new(200, &*pushed.layer);
        match tries.fetch_add(1, Ordering::SeqCst) {
            0 => reply.broken(1_100_000),
            1 => reply.broken(900_000),
            _ => reply,
        }
    });
    assert_eq!(pull(&image(&server)).unwrap(), layer);
}

#[test]
fn a_body_that_always_breaks_is_given_up() {
    let pushed = Pushed::new(large(), &[]);
    let server = Server::start(move |request| match request.path == pushed.layer_path() {
        true => pushed.reply(request).broken(10),
        false => pushed.reply(request),
    });
    let error = registry_error(pull(&image(&server)));
    assert!(
        matches!(error, RegistryError::Broken { at: 50, .. }),
        "{error:?}"
    );
}

#[test]
fn parts_that_were_not_asked_for_are_refused() {
    let pushed = Pushed::new(large(), &[]);
    let server = Server::start(move |request| {
        if request.path != pushed.layer_path() {
            return pushed.reply(request);
        }
        match request.offset() {
            0 => pushed.reply(request).broken(1000),
            _ => Reply::new(206, &pushed.layer[..2000]).with("Content-Range", "bytes 0-1999/*"),
        }
    });
    let error = registry_error(pull(&image(&server)));
    assert!(
        error
            .to_string()
            .contains("byte 0 was sent where byte 1000"),
        "{error}"
    );
}

#[test]
fn a_layer_of_another_size_is_refused() {
    let lengths: [(&[u8], &str); 3] = [
        // Less, more, and more than was said.
        (b"laye", "4"),
        (b"layer and more", "14"),
        (b"layer", "14"),
    ];
    for (body, length) in lengths {
        let pushed = Pushed::new("layer", &[]);
        let server = Server::start(move |request| match request.path == pushed.layer_path() {
            true => Reply::new(200, body).with("Content-Length", length),
            false => pushed.reply(request),
        });
        let error = pull(&image(&server)).unwrap_err();
        let rule = matches!(
            &error,
            Error::ImageMalformed {
                rule: Rule::Size { .. },
                ..
            }
        );
        assert!(rule, "{error:?}");
    }
    // Without a length, an endless body ends with the first piece that is too much.
    let pushed = Pushed::new("layer", &[]);
    let server = Server::start(move |request| match request.path == pushed.layer_path() {
        true => Reply::new(200, "5\r\nlayer\r\n".repeat(100_000))
            .with("Transfer-Encoding", "chunked")
            .silent(usize::MAX),
        false => pushed.reply(request),
    });
    let error = pull(&image(&server)).unwrap_err();
    let rule = matches!(
        &error,
        Error::ImageMalformed {
            rule: Rule::Size { expected: 5, .. },
            ..
        }
    );
    assert!(rule, "{error:?}");
}

#[test]
fn an_end_that_is_not_the_layers_is_none() {
    let pushed = Pushed::new("layer", &[]);
    let server = Server::start(move |request| match request.path == pushed.layer_path() {
        true => Reply::new(200, "4\r\nlaye\r\n0\r\n\r\n").with("Transfer-Encoding", "chunked"),
        false => pushed.reply(request),
    });
    let error = registry_error(pull(&image(&server)));
    assert!(
        matches!(error, RegistryError::Broken { at: 4, .. }),
        "{error:?}"
    );
}

#[test]
fn a_download_that_moves_on_is_not_given_up() {
    let pushed = Pushed::new(vec![7; 7 << 20], &[]);
    let layer = pushed.layer.clone();
    // More often than anything is tried in vain.
    let server = Server::start(move |request| match request.path == pushed.layer_path() {
        true => pushed.reply(request).broken((1 << 20) + 1),
        false => pushed.reply(request),
    });
    assert!(pull(&image(&server)).unwrap() == layer);
    assert_eq!(server.requests().len(), 2 + 7);
}

#[test]
fn silence_is_not_waited_out() {
    let pushed = Pushed::new(large(), &[]);
    let server = Server::start(move |request| match request.path == pushed.layer_path() {
        true => pushed.reply(request).silent(1000),
        false => pushed.reply(request),
    });
    let policy = RegistryPolicy {
        timeouts: Timeouts {
            idle: Duration::from_millis(100),
            ..Timeouts::default()
        },
        retries: 1,
        ..policy(&[&server])
    };
    let error = registry_error(pull(&image_with(policy, &server.host(), None)));
    assert!(
        matches!(
            error,
            RegistryError::Timeout {
                step: ServerStep::Body,
                ..
            }
        ),
        "{error:?}"
    );
    // It was tried again from where it was.
    assert_eq!(server.requests().last().unwrap().offset(), 1000);
}

#[test]
fn an_unreachable_registry_is_called_so() {
    let (dead, _port) = dead_host();
    for insecure in [vec![], vec![dead.clone()]] {
        let policy = RegistryPolicy {
            insecure,
            ..policy(&[])
        };
        let error = registry_error(image_with(policy, &dead, None).manifest());
        assert!(
            matches!(error, RegistryError::Unreachable { .. }),
            "{error:?}"
        );
    }
}

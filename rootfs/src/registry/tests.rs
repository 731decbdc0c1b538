//! The client against servers that misbehave.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::testing::{Authority, Clients, Reply, Request, Server, dead_host};
use super::*;
use crate::digest::Digest;
use crate::error::{Error, Rule};
use crate::import::fetch::Fetch;
use crate::oci::{Blob, Manifest};
use crate::source::ImageSource;

mod real;

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image with one layer, as a registry has it.
#[derive(Clone)]
struct Pushed {
    layer: Vec<u8>,
    config: String,
    manifest: String,
}

impl Pushed {
    fn new(layer: impl Into<Vec<u8>>, urls: &[String]) -> Self {
        let layer = layer.into();
        let digest = Digest::of(&layer);
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["A=b"]},
            "rootfs": {"type": "layers", "diff_ids": [digest]},
        });
        let config = config.to_string();
        let mut described = json!({"mediaType": LAYER, "digest": digest, "size": layer.len()});
        if !urls.is_empty() {
            described["urls"] = json!(urls);
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(config.as_bytes()),
                "size": config.len(),
            },
            "layers": [described],
        });
        Self {
            layer,
            config,
            manifest: manifest.to_string(),
        }
    }

    fn layer_path(&self) -> String {
        format!("/v2/a/b/blobs/{}", Digest::of(&self.layer))
    }

    /// What a well-behaved registry answers.
    fn reply(&self, request: &Request) -> Reply {
        let config = format!("/v2/a/b/blobs/{}", Digest::of(self.config.as_bytes()));
        let exact = format!("/v2/a/b/manifests/{}", Digest::of(self.manifest.as_bytes()));
        match &*request.path {
            path if path == "/v2/a/b/manifests/v1" || path == exact => {
                Reply::new(200, &*self.manifest).with("Content-Type", OCI)
            }
            path if path == config => Reply::new(200, &*self.config),
            path if path == self.layer_path() => Reply::part(request, &self.layer),
            _ => Reply::new(404, ""),
        }
    }
}

/// No real waiting.
fn policy(insecure: &[&Server]) -> RegistryPolicy {
    RegistryPolicy {
        insecure: insecure.iter().map(|server| server.host()).collect(),
        first_wait: Duration::from_millis(1),
        ..RegistryPolicy::default()
    }
}

fn image_with(policy: RegistryPolicy, host: &str, credentials: Option<&Credentials>) -> Image {
    let text = format!("docker://{host}/a/b:v1");
    let ImageSource::Registry(reference) = ImageSource::parse(&text).unwrap() else {
        panic!("{text} is an image of a registry");
    };
    Client::new(policy).image(&reference, credentials, &text)
}

fn image(server: &Server) -> Image {
    image_with(policy(&[server]), &server.host(), None)
}

fn me() -> Credentials {
    Credentials {
        username: "me".to_owned(),
        password: "secret".to_owned(),
    }
}

/// Reads the only layer of an image.
fn pull(image: &Image) -> Result<Vec<u8>, Error> {
    let manifest = image.manifest()?;
    read(image, &manifest.layers[0])
}

fn read(image: &Image, blob: &Blob) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = image.open(blob)?.read_to_end(&mut bytes);
    match read {
        Ok(_) => Ok(bytes),
        Err(error) => Err(error.downcast::<Error>().unwrap()),
    }
}

fn registry_error<T: std::fmt::Debug>(result: Result<T, Error>) -> RegistryError {
    match result {
        Err(Error::Registry(error)) => error,
        other => panic!("no error of a registry: {other:?}"),
    }
}

/// More than the window, and no number of pieces.
fn large() -> Vec<u8> {
    (0..300_001_u32)
        .flat_map(|n| (n % 251).to_le_bytes())
        .collect()
}

#[test]
fn an_image_is_pulled_whole() {
    let pushed = Pushed::new(large(), &[]);
    let layer = pushed.layer.clone();
    let server = Server::start(move |request| pushed.reply(request));
    let image = image(&server);
    let Manifest { layers, config, .. } = image.manifest().unwrap();
    assert_eq!(config.env, ["A=b"]);
    assert_eq!(read(&image, &layers[0]).unwrap(), layer);
    let first = &server.requests()[0];
    for kind in crate::oci::MANIFESTS.iter().chain(&crate::oci::INDEXES) {
        assert!(first.header("accept").unwrap().contains(kind));
    }
    assert_eq!(first.header("authorization"), None);
    assert_eq!(
        server.requests()[2].header("accept-encoding"),
        Some("identity")
    );
}

#[test]
fn tokens_are_fetched_kept_and_renewed() {
    let pushed = Pushed::new("layer", &[]);
    let path = pushed.layer_path();
    let given = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        let number = given.load(Ordering::SeqCst);
        if request.path.starts_with("/token?") {
            assert!(
                request.path.contains("service=the+registry"),
                "{}",
                request.path
            );
            assert!(request.path.contains("scope=repository%3Aa%2Fb%3Apull"));
            // me:secret
            assert_eq!(request.header("authorization"), Some("Basic bWU6c2VjcmV0"));
            given.fetch_add(1, Ordering::SeqCst);
            let token = json!({"token": format!("t{}", number + 1), "expires_in": 300});
            return Reply::new(200, token.to_string());
        }
        // The first token is not good any more when the layer is asked for.
        let wanted = if request.path == path { 2 } else { 1 };
        let bearer = format!("Bearer t{}", wanted.max(number));
        if number < wanted || request.header("authorization") != Some(&*bearer) {
            let realm = format!("http://{}/token", request.header("host").unwrap());
            let challenge =
                format!("Bearer realm=\"{realm}\",service=\"the registry\",scope=\"other\"");
            return Reply::new(401, "").with("WWW-Authenticate", &challenge);
        }
        pushed.reply(request)
    });
    let image = image_with(policy(&[&server]), &server.host(), Some(&me()));
    assert_eq!(pull(&image).unwrap(), b"layer");
    let tokens = |server: &Server| {
        let paths = server.paths();
        paths
            .iter()
            .filter(|path| path.starts_with("/token"))
            .count()
    };
    assert_eq!(tokens(&server), 2);
    // What is kept is used at once.
    let before = server.requests().len();
    image.manifest().unwrap();
    assert_eq!(tokens(&server), 2);
    assert_eq!(server.requests().len(), before + 2);
}

#[test]
fn refusals_are_told_apart() {
    let answer = |status: u16, token: u16, challenge: &'static str| {
        let server = Server::start(move |request| match &*request.path {
            path if path.starts_with("/token") => Reply::new(token, r#"{"token":"t"}"#),
            _ => {
                let host = request.header("host").unwrap();
                let challenge = challenge.replace("HOST", host);
                Reply::new(status, "").with("WWW-Authenticate", &challenge)
            }
        });
        move |who: Option<&Credentials>| {
            let image = image_with(policy(&[&server]), &server.host(), who);
            let error = registry_error(image.manifest());
            assert!(!format!("{error:?} {error}").contains("secret"));
            (error, server.requests().len())
        }
    };
    let bearer = "Bearer realm=\"http://HOST/token\"";
    let missing = |(error, _): (RegistryError, usize)| {
        let text = "/a/b:v1 does not exist or you do not have permissions to see it";
        assert!(error.to_string().contains(text), "{error}");
        assert!(matches!(error, RegistryError::Missing { .. }));
    };
    let refused = |(error, _): (RegistryError, usize)| {
        assert!(
            matches!(error, RegistryError::Credentials { .. }),
            "{error}"
        );
    };
    missing(answer(404, 200, "")(None));
    missing(answer(403, 200, "")(None));
    missing(answer(401, 200, "")(Some(&me())));
    missing(answer(401, 200, "Basic realm=\"x\"")(None));
    missing(answer(401, 200, bearer)(Some(&me())));
    missing(answer(401, 401, bearer)(None));
    refused(answer(401, 200, "Basic realm=\"x\"")(Some(&me())));
    refused(answer(401, 401, bearer)(Some(&me())));
    // A wrong password is not tried again: that locks accounts. (https is tried first, then one
    // request for the image and one for the token.)
    assert_eq!(answer(401, 401, bearer)(Some(&me())).1, 2);
}

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
fn wrong_documents_are_refused() {
    // Another content than its digest says.
    let pushed = Pushed::new("layer", &[]);
    let server = Server::start(move |request| match request.path.contains("/blobs/") {
        true => Reply::new(200, pushed.config.replace("amd64", "arm64")),
        false => pushed.reply(request),
    });
    let error = pull(&image(&server)).unwrap_err();
    assert!(
        error.to_string().contains("has the digest sha256:"),
        "{error}"
    );

    // What the server itself says about the content of a tag.
    let pushed = Pushed::new("layer", &[]);
    let other = Digest::of(b"other").to_string();
    let server =
        Server::start(move |request| pushed.reply(request).with("Docker-Content-Digest", &other));
    pull(&image(&server)).unwrap_err();

    // More than is ever read, with and without a length that says so.
    for length in [true, false] {
        let server = Server::start(move |_| match length {
            true => Reply::new(200, "{").with("Content-Length", "5000000000"),
            false => Reply::new(200, vec![b' '; 5 << 20]),
        });
        let error = registry_error(pull(&image(&server)));
        assert!(
            error.to_string().contains("longer than 4194304 bytes"),
            "{error}"
        );
    }

    // A page of a proxy.
    let server = Server::start(|_| Reply::new(200, "<html>").with("Content-Type", "text/html"));
    assert!(matches!(
        pull(&image(&server)),
        Err(Error::ImageMalformed { .. })
    ));
}

#[test]
fn credentials_stay_where_they_belong() {
    let pushed = Pushed::new("layer", &[]);
    let layer = pushed.layer.clone();
    let other = Server::start(move |request| match &*request.path {
        // It asks for credentials, too.
        "/denied" => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""),
        _ => Reply::part(request, &layer),
    });
    let store = format!("http://{}/store?signature=hidden", other.other_name());
    let denied = format!("http://{}/denied", other.other_name());
    let number = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        if request.header("authorization").is_none() {
            return Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\"");
        }
        if request.path == pushed.layer_path() {
            return match number.fetch_add(1, Ordering::SeqCst) {
                0 => Reply::redirect(&store),
                _ => Reply::redirect(&denied),
            };
        }
        pushed.reply(request)
    });
    let image = image_with(policy(&[&server]), &server.host(), Some(&me()));
    let manifest = image.manifest().unwrap();
    assert_eq!(read(&image, &manifest.layers[0]).unwrap(), b"layer");
    let error = registry_error(read(&image, &manifest.layers[0]));
    assert!(matches!(error, RegistryError::Missing { .. }), "{error}");
    let requests = other.requests();
    assert_eq!(requests.len(), 2);
    assert!(
        requests
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
}

#[test]
fn redirects_end() {
    for (to, expected) in [
        ("/v2/again", "more than 5 times"),
        ("file:///etc/passwd", "neither http nor https"),
        ("http://", "to nowhere"),
    ] {
        let server = Server::start(move |_| Reply::redirect(to));
        let error = registry_error(pull(&image(&server)));
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn mirrors_come_first_and_may_fail() {
    let pushed = Pushed::new(large(), &[]);
    let (layer, path) = (pushed.layer.clone(), pushed.layer_path());
    let copy = pushed.clone();
    let registry = Server::start(move |request| {
        if request.header("authorization").is_none() {
            return Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\"");
        }
        copy.reply(request)
    });
    // It asks for credentials that are not for it.
    let curious =
        Server::start(|_| Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""));
    // It has the image below a prefix, and breaks in the middle of the layer.
    let mirror = Server::start(move |request| {
        let mut inner = request.clone();
        inner.path = request.path.replacen("/v2/copies/", "/v2/", 1);
        match inner.path == pushed.layer_path() {
            true => pushed.reply(&inner).broken(5000),
            false => pushed.reply(&inner),
        }
    });
    let (dead, _port) = dead_host();
    let mut policy = policy(&[&registry, &curious, &mirror]);
    policy.insecure.push(dead.clone());
    policy.mirrors = BTreeMap::from([(
        registry.host(),
        vec![dead, curious.host(), format!("{}/copies", mirror.host())],
    )]);
    let image = image_with(policy, &registry.host(), Some(&me()));
    assert_eq!(pull(&image).unwrap(), layer);
    assert_eq!(curious.requests().len(), 1);
    // Manifest, configuration, layer; the rest of it is the registry's.
    assert_eq!(mirror.requests().len(), 3);
    let asked = registry.requests();
    let requests = [curious.requests(), mirror.requests()].concat();
    assert!(
        requests
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
    assert!(
        asked
            .iter()
            .all(|request| request.path == path && request.offset() == 5000)
    );
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

#[test]
fn only_what_is_listed_is_insecure() {
    let authority = Authority::new();
    let pushed = Pushed::new("layer", &[]);
    let copy = pushed.clone();
    let server = Server::start_tls(authority.tls(Clients::Anybody), move |request| {
        pushed.reply(request)
    });
    // Nobody here knows the authority.
    for insecure in [
        vec![],
        vec!["127.0.0.1".to_owned()],
        vec![server.other_name()],
    ] {
        let policy = RegistryPolicy {
            insecure,
            ..policy(&[])
        };
        let error = registry_error(image_with(policy, &server.host(), None).manifest());
        assert!(matches!(error, RegistryError::Insecure { .. }), "{error:?}");
    }
    assert!(server.requests().is_empty());
    assert_eq!(pull(&image(&server)).unwrap(), b"layer");

    // Plain http is never tried for what is not listed.
    let plain = Server::start(move |request| copy.reply(request));
    let error = registry_error(image_with(policy(&[]), &plain.host(), None).manifest());
    assert!(
        matches!(error, RegistryError::Unreachable { .. }),
        "{error:?}"
    );
    assert!(plain.requests().is_empty());
}

#[test]
fn https_does_not_lead_to_http() {
    let authority = Authority::new();
    let plain = Server::start(|_| Reply::new(200, "layer"));
    let target = format!("http://{}/", plain.host());
    let server = Server::start_tls(authority.tls(Clients::Anybody), move |_| {
        Reply::redirect(&target)
    });
    let error = registry_error(pull(&image(&server)));
    assert!(error.to_string().contains("from https to http"), "{error}");

    let realm = format!("Bearer realm=\"http://{}/token\"", plain.host());
    let server = Server::start_tls(authority.tls(Clients::Anybody), move |_| {
        Reply::new(401, "").with("WWW-Authenticate", &realm)
    });
    let image = image_with(policy(&[&server]), &server.host(), Some(&me()));
    let error = registry_error(image.manifest());
    assert!(error.to_string().contains("not at an https URL"), "{error}");
    assert!(plain.requests().is_empty());
}

fn write_certificates(directory: &std::path::Path, authority: &Authority, identity: bool) {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join("ca.crt"), &authority.ca).unwrap();
    if identity {
        std::fs::write(directory.join("me.cert"), &authority.client.0).unwrap();
        std::fs::write(directory.join("me.key"), &authority.client.1).unwrap();
    }
}

#[test]
fn a_registry_has_certificates_of_its_own() {
    let authority = Authority::new();
    let pushed = Pushed::new("layer", &[]);
    let server = Server::start_tls(authority.tls(Clients::Certified), move |request| {
        pushed.reply(request)
    });
    let place = tempfile::tempdir().unwrap();
    let policy = || RegistryPolicy {
        host_certificates: vec![place.path().join("none"), place.path().to_owned()],
        ..policy(&[])
    };
    let directory = place.path().join(server.host());
    write_certificates(&directory, &authority, false);
    let error = registry_error(image_with(policy(), &server.host(), None).manifest());
    assert!(
        matches!(error, RegistryError::Unreachable { .. }),
        "{error:?}"
    );
    write_certificates(&directory, &authority, true);
    let image = image_with(policy(), &server.host(), None);
    assert_eq!(pull(&image).unwrap(), b"layer");
    assert!(server.requests().iter().all(|request| request.certified));
    std::fs::remove_file(directory.join("me.key")).unwrap();
    let error = registry_error(image_with(policy(), &server.host(), None).manifest());
    assert!(error.to_string().contains("me.key"), "{error}");
}

#[test]
fn layers_may_lie_elsewhere() {
    let authority = Authority::new();
    // A store of layers that talks to clients with a certificate only, and hands on to another
    // one, which may know the authority but must not see our certificate.
    let other = Server::start_tls(authority.tls(Clients::Asked), |request| {
        Reply::part(request, b"layer")
    });
    let target = format!("https://{}/x?signature=hidden", other.other_name());
    let blobs = Server::start_tls(
        authority.tls(Clients::Certified),
        move |request| match &*request.path {
            "/here" => Reply::new(200, "layer"),
            "/there" => Reply::redirect(&target),
            _ => Reply::new(404, ""),
        },
    );
    let place = tempfile::tempdir().unwrap();
    write_certificates(place.path(), &authority, true);
    for path in ["here", "there"] {
        let urls = [
            "file:///etc/hostname".to_owned(),
            "ftp://127.0.0.1/x".to_owned(),
            format!("https://{}/lost", blobs.host()),
            format!("https://{}/{path}", blobs.host()),
        ];
        let pushed = Pushed::new("layer", &urls);
        let server = Server::start(move |request| match request.path == pushed.layer_path() {
            true => Reply::new(404, ""),
            false => pushed.reply(request),
        });
        let policy = RegistryPolicy {
            layer_certificates: Some(place.path().to_owned()),
            ..policy(&[&server])
        };
        let image = image_with(policy, &server.host(), Some(&me()));
        assert_eq!(pull(&image).unwrap(), b"layer");
    }
    let requests = blobs.requests();
    assert!(requests.iter().all(|request| request.certified));
    assert!(
        requests
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
    assert_eq!(other.requests().len(), 1);
    assert!(!other.requests()[0].certified);
}

#[test]
fn a_url_is_streamed() {
    let body = large();
    let sent = body.clone();
    let server = Server::start(move |request| match request.offset() {
        0 => Reply::part(request, &sent).broken(1_100_000),
        _ => Reply::part(request, &sent),
    });
    let client = Client::new(policy(&[]));
    let open = |url: &str| client.open_url(&Url::parse(url).unwrap());
    let mut bytes = Vec::new();
    let url = format!("http://{}/layer", server.host());
    open(&url).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, body);

    // What an image may not name.
    let places = ["ftp://h/x", "file:///x", "file://h/x", "http://me@h/x", "x"].map(str::to_owned);
    assert!(client.open_urls(&places, None, "image").unwrap().is_none());

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "layer").unwrap();
    let url = Url::from_file_path(file.path()).unwrap();
    let mut text = String::new();
    open(url.as_str())
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "layer");
    assert!(matches!(
        open("file:///nothing/there"),
        Err(Error::ImageNotFound { .. })
    ));
    assert!(matches!(
        open("ftp://h/x"),
        Err(Error::Registry(RegistryError::Protocol { .. }))
    ));
}

#[test]
fn a_reader_that_goes_stops_the_download() {
    let pushed = Pushed::new(vec![7; 3 << 20], &[]);
    let server = Server::start(move |request| pushed.reply(request));
    let image = image(&server);
    let manifest = image.manifest().unwrap();
    let mut body = image.open(&manifest.layers[0]).unwrap();
    body.read_exact(&mut [0; 10]).unwrap();
    drop(body);
    // The thread is free for others, and goes with its last user.
    assert_eq!(read(&image, &manifest.layers[0]).unwrap().len(), 3 << 20);
}

#[test]
fn an_index_is_followed() {
    let pushed = Pushed::new("layer", &[]);
    let index: Value = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": OCI,
            "digest": Digest::of(pushed.manifest.as_bytes()),
            "size": pushed.manifest.len(),
        }],
    });
    let server = Server::start(move |request| match request.path.ends_with("/v1") {
        // A registry that does not know the type.
        true => Reply::new(200, index.to_string()).with("Content-Type", "text/plain"),
        false => pushed.reply(request),
    });
    assert_eq!(pull(&image(&server)).unwrap(), b"layer");
}

#[test]
fn proxies_are_for_other_hosts() {
    const MARK: &str = "GARDEN_TEST_BEHIND_PROXY";
    if std::env::var_os(MARK).is_none() {
        // The environment is the process's, so another one is needed.
        let pushed = Pushed::new("layer", &[]);
        let proxy = Server::start(move |request| {
            let mut inner = request.clone();
            inner.path = request.path.replacen("http://registry.invalid", "", 1);
            pushed.reply(&inner)
        });
        let name = "registry::tests::proxies_are_for_other_hosts";
        let url = format!("http://{}", proxy.host());
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(MARK, "1")
            .env("HTTP_PROXY", &url)
            .env("HTTPS_PROXY", &url)
            .env_remove("NO_PROXY")
            .env_remove("no_proxy")
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success(), "{output}");
        let paths = proxy.paths();
        // A way for https was asked for first.
        assert_eq!(paths[0], "registry.invalid:443");
        assert!(
            paths[1..]
                .iter()
                .all(|path| path.starts_with("http://registry.invalid/v2/"))
        );
        assert_eq!(paths.len(), 4);
        return;
    }
    let policy = RegistryPolicy {
        insecure: vec!["registry.invalid".to_owned()],
        ..policy(&[])
    };
    assert_eq!(
        pull(&image_with(policy, "registry.invalid", None)).unwrap(),
        b"layer"
    );
    let pushed = Pushed::new("near", &[]);
    let server = Server::start(move |request| pushed.reply(request));
    assert_eq!(pull(&image(&server)).unwrap(), b"near");
}

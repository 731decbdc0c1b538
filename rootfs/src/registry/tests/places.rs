//! Where things lie: mirrors, URLs, redirects, behind proxies.

use super::*;

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
        let name = "registry::tests::places::proxies_are_for_other_hosts";
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

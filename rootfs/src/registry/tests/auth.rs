//! Who asks, and who is told.

use super::*;

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

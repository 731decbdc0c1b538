//! Whom to believe that it is the server.

use super::*;

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

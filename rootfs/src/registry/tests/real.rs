//! The client against Debian's docker-registry.

use super::*;

#[path = "../../../tests/support/registry.rs"]
mod support;

use support::Registry;

fn push(registry: &Registry, name: &str, pushed: &Pushed) {
    for blob in [&pushed.layer[..], pushed.config.as_bytes()] {
        registry.blob("a/b", blob, &Digest::of(blob).to_string());
    }
    registry.manifest("a/b", name, &pushed.manifest, OCI);
}

fn remote(registry: &Registry, credentials: Option<&Credentials>) -> Image {
    let policy = RegistryPolicy {
        insecure: vec![registry.host.clone()],
        ..policy(&[])
    };
    image_with(policy, &registry.host, credentials)
}

#[test]
fn passwords_are_asked_for() {
    let Some(registry) = Registry::with_password("passwords_are_asked_for") else {
        return;
    };
    push(&registry, "v1", &Pushed::new("layer", &[]));
    assert_eq!(pull(&remote(&registry, Some(&me()))).unwrap(), b"layer");
    let error = registry_error(pull(&remote(&registry, None)));
    assert!(matches!(error, RegistryError::Missing { .. }), "{error}");
    let wrong = Credentials {
        password: "other".to_owned(),
        ..me()
    };
    let error = registry_error(pull(&remote(&registry, Some(&wrong))));
    assert!(
        matches!(error, RegistryError::Credentials { .. }),
        "{error}"
    );
}

#[test]
fn it_resumes_where_a_proxy_breaks() {
    let Some(registry) = Registry::start("it_resumes_where_a_proxy_breaks") else {
        return;
    };
    let pushed = Pushed::new(large(), &[]);
    push(&registry, "v1", &pushed);
    // A mirror that begins, and the real registry that goes on.
    let copy = pushed.clone();
    let mirror = Server::start(move |request| match request.path == copy.layer_path() {
        true => copy.reply(request).broken(700_000),
        false => copy.reply(request),
    });
    let mut policy = policy(&[&mirror]);
    policy.insecure.push(registry.host.clone());
    policy.mirrors = BTreeMap::from([(registry.host.clone(), vec![mirror.host()])]);
    let image = image_with(policy, &registry.host, None);
    assert_eq!(pull(&image).unwrap(), pushed.layer);
}

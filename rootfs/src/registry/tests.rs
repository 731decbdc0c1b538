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

mod auth;
mod broken;
mod places;
mod real;
mod trust;

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

fn write_certificates(directory: &std::path::Path, authority: &Authority, identity: bool) {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join("ca.crt"), &authority.ca).unwrap();
    if identity {
        std::fs::write(directory.join("me.cert"), &authority.client.0).unwrap();
        std::fs::write(directory.join("me.key"), &authority.client.1).unwrap();
    }
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

//! Images of a real registry, from its socket to the layers in a store.

#![allow(clippy::unwrap_used, reason = "only for tests")]

#[path = "support/registry.rs"]
mod registry;
mod support;

use garden_rootfs::{
    Credentials, Digest, Error, Image, ImageSource, ImportOptions, RegistryError, RegistryPolicy,
    Result, Rule, Store, StoreOptions,
};
use registry::Registry;
use serde_json::{Value, json};
use support::{Layout, Place, Tar, gzip};

const OCI: [&str; 3] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.oci.image.index.v1+json",
];
const DOCKER: [&str; 3] = [
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// A tar, its packed form and what that is called.
type Layer = (Vec<u8>, Vec<u8>, &'static str);

fn tar(name: &str) -> Vec<u8> {
    // Large enough for more than one piece, and no two alike.
    Tar::default().file(name, &name.repeat(100_000)).done()
}

fn layers(docker: bool) -> Vec<Layer> {
    let names = ["plain", "gzip", "zstd"].map(|name| tar(&format!("{name}-{docker}")));
    let [plain, zipped, packed] = names;
    let zstd = zstd::encode_all(&packed[..], 1).unwrap();
    match docker {
        false => vec![
            (
                plain.clone(),
                plain,
                "application/vnd.oci.image.layer.v1.tar",
            ),
            (
                zipped.clone(),
                gzip(&zipped),
                "application/vnd.oci.image.layer.v1.tar+gzip",
            ),
            (packed, zstd, "application/vnd.oci.image.layer.v1.tar+zstd"),
        ],
        true => vec![(
            zipped.clone(),
            gzip(&zipped),
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        )],
    }
}

/// Pushes an image; gives its descriptor.
fn push(registry: &Registry, name: &str, layers: &[Layer], kinds: [&str; 3]) -> Value {
    let mut described = Vec::new();
    let mut diff_ids = Vec::new();
    for (tar, packed, kind) in layers {
        let digest = Digest::of(packed);
        registry.blob("a/b", packed, &digest.to_string());
        described.push(json!({"mediaType": kind, "digest": digest, "size": packed.len()}));
        diff_ids.push(Digest::of(tar));
    }
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string();
    let config_digest = Digest::of(config.as_bytes());
    registry.blob("a/b", config.as_bytes(), &config_digest.to_string());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": kinds[0],
        "config": {"mediaType": kinds[1], "digest": config_digest, "size": config.len()},
        "layers": described,
    });
    let manifest = manifest.to_string();
    let digest = Digest::of(manifest.as_bytes());
    let name = if name.is_empty() {
        &digest.to_string()
    } else {
        name
    };
    registry.manifest("a/b", name, &manifest, kinds[0]);
    json!({"mediaType": kinds[0], "digest": digest, "size": manifest.len()})
}

/// A store that may talk to this registry by http.
fn place(test: &str, registry: &Registry) -> Option<Place> {
    let mut place = Place::new(test)?;
    place.store = None;
    let options = StoreOptions {
        registry: RegistryPolicy {
            insecure: vec![registry.host.clone()],
            ..RegistryPolicy::default()
        },
        ..Place::options(place.dir.path())
    };
    place.store = Some(Store::open(&options).unwrap());
    Some(place)
}

fn import(place: &Place, registry: &Registry, name: &str) -> Result<Image> {
    let source = format!("docker://{}/a/b{name}", registry.host);
    place.store().import(&ImageSource::parse(&source)?)
}

#[test]
fn an_image_is_imported_by_tag_and_digest() {
    let test = "an_image_is_imported_by_tag_and_digest";
    let Some(registry) = Registry::start(test) else {
        return;
    };
    let Some(place) = place(test, &registry) else {
        return;
    };
    let descriptor = push(&registry, "v1", &layers(false), OCI);
    let image = import(&place, &registry, "#v1").unwrap();
    assert_eq!(image.config.env, ["A=b"]);
    assert_eq!(image.layers.len(), 3);
    for (layer, name) in image.layers.iter().zip(["plain", "gzip", "zstd"]) {
        let name = format!("{name}-false");
        let content = std::fs::read_to_string(place.tree(&layer.key).join(&name)).unwrap();
        assert!(content == name.repeat(100_000));
    }
    let exact = format!("@{}", descriptor["digest"].as_str().unwrap());
    let again = import(&place, &registry, &exact).unwrap();
    assert_eq!((again.id, again.layers), (image.id, image.layers));
    place.assert_nothing_left(3);
}

#[test]
fn indexes_are_followed_to_this_machine() {
    let test = "indexes_are_followed_to_this_machine";
    let Some(registry) = Registry::start(test) else {
        return;
    };
    let Some(place) = place(test, &registry) else {
        return;
    };
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    for (kinds, docker) in [(OCI, false), (DOCKER, true)] {
        let foreign = (tar("foreign"), tar("foreign"), layers(docker)[0].2);
        let mut entries = vec![
            push(&registry, "", &[foreign], kinds),
            push(&registry, "", &layers(docker), kinds),
        ];
        entries[0]["platform"] = json!({"os": "linux", "architecture": "s390x"});
        entries[1]["platform"] = json!({"os": "linux", "architecture": architecture});
        let index = json!({"schemaVersion": 2, "mediaType": kinds[2], "manifests": entries});
        registry.manifest("a/b", "many", &index.to_string(), kinds[2]);
        let image = import(&place, &registry, ":many").unwrap();
        assert_eq!(image.id.to_string(), entries[1]["digest"]);
        assert_eq!(image.layers.len(), layers(docker).len());
    }
    place.assert_nothing_left(4);
}

#[test]
fn credentials_are_used_and_kept_secret() {
    let test = "credentials_are_used_and_kept_secret";
    let Some(registry) = Registry::with_password(test) else {
        return;
    };
    let Some(place) = place(test, &registry) else {
        return;
    };
    push(&registry, "v1", &layers(true), DOCKER);
    let source = ImageSource::parse(&format!("docker://{}/a/b:v1", registry.host)).unwrap();
    let import = |password: &str| {
        let credentials = Credentials {
            username: "me".to_owned(),
            password: password.to_owned(),
        };
        let mut options = ImportOptions::default();
        options.credentials = Some(&credentials);
        place.store().import_with(&source, &options)
    };
    let error = import("hunter2").unwrap_err();
    let refused = matches!(error, Error::Registry(RegistryError::Credentials { .. }));
    assert!(
        refused && !format!("{error:?}").contains("hunter2"),
        "{error:?}"
    );
    let error = place.store().import(&source).unwrap_err();
    assert!(
        matches!(error, Error::Registry(RegistryError::Missing { .. })),
        "{error:?}"
    );
    import("secret").unwrap();
    place.assert_nothing_left(1);
}

#[test]
fn a_layer_is_fetched_above_a_preloaded_base() {
    let test = "a_layer_is_fetched_above_a_preloaded_base";
    let Some(registry) = Registry::start(test) else {
        return;
    };
    let Some(place) = place(test, &registry) else {
        return;
    };
    let base = place.path("base.tar");
    let tar = Tar::default()
        .dir("home", 0o755, (0, 0))
        .dir("home/vcap", 0o750, (7, 8));
    std::fs::write(&base, tar.done()).unwrap();
    let app = gzip(&Tar::default().file("app", "content").done());
    let digest = Digest::of(&app);
    registry.blob("a/b", &app, &digest.to_string());
    let file = place.path("app.tgz");
    std::fs::write(&file, &app).unwrap();
    let source = |layer: &str, digest: Digest| {
        let base = base.display();
        let hex = digest.hex();
        ImageSource::parse(&format!(
            "preloaded+layer://{base}?layer={layer}&layer_path=/home/vcap&layer_digest={hex}"
        ))
    };
    let url = format!("http://{}/v2/a/b/blobs/{digest}", registry.host);
    let wrong = source(&url, Digest::of(b"other")).unwrap();
    let error = place.store().import(&wrong).unwrap_err();
    assert!(
        matches!(
            error,
            Error::ImageMalformed {
                rule: Rule::Digest { .. },
                ..
            }
        ),
        "{error:?}"
    );

    let image = place
        .store()
        .import(&source(&url, digest).unwrap())
        .unwrap();
    let tree = place.tree(&image.layers[1].key);
    let content = std::fs::read_to_string(tree.join("home/vcap/app")).unwrap();
    assert_eq!(content, "content");
    // The same by another way: nothing is fetched, so that the registry may be gone.
    drop(registry);
    let local = source(&format!("file://{}", file.display()), digest).unwrap();
    assert_eq!(place.store().import(&local).unwrap().layers, image.layers);
    place.assert_nothing_left(2);
}

#[test]
fn a_layout_may_name_layers_elsewhere() {
    let test = "a_layout_may_name_layers_elsewhere";
    let Some(registry) = Registry::start(test) else {
        return;
    };
    let Some(place) = place(test, &registry) else {
        return;
    };
    let tar = tar("elsewhere");
    let digest = Digest::of(&tar);
    let place_of = |host: &str| format!("http://{host}/v2/a/b/blobs/{digest}");
    let import = |name: &str, urls: &[&str]| {
        let mut layout = Layout::new(place.path(name));
        layout.urls = urls.iter().map(|url| (*url).to_owned()).collect();
        let layout = layout.layer(&tar);
        std::fs::remove_file(layout.path.join("blobs/sha256").join(digest.hex())).unwrap();
        place.store().import(&layout.done())
    };
    let file = place.path("layer.tar");
    std::fs::write(&file, &tar).unwrap();
    // A file of this host is not for an image to name.
    let local = format!("file://{}", file.display());
    let error = import("local", &[&local]).unwrap_err();
    assert!(
        format!("{error:?}").contains("neither http nor https"),
        "{error:?}"
    );
    let error = import("none", &[]).unwrap_err();
    assert!(matches!(error, Error::ImageNotFound { .. }), "{error:?}");
    let (url, missing) = (
        place_of(&registry.host),
        format!("http://{}/x", registry.host),
    );
    let error = import("lost", &[&missing]).unwrap_err();
    assert!(
        matches!(error, Error::Registry(RegistryError::Missing { .. })),
        "{error:?}"
    );
    registry.blob("a/b", &tar, &digest.to_string());
    let image = import("there", &[&local, &missing, &url]).unwrap();
    assert_eq!(image.layers.len(), 1);
    place.assert_nothing_left(1);
}

#[test]
fn guardians_layouts_are_read() {
    let test = "guardians_layouts_are_read";
    let Some(registry) = Registry::start(test) else {
        return;
    };
    let Some(place) = place(test, &registry) else {
        return;
    };
    let base = Tar::default().dir("home", 0o755, (0, 0)).done();
    std::fs::write(place.path("base.tar"), base).unwrap();
    let app = gzip(&Tar::default().file("app", "content").done());
    let digest = Digest::of(&app);
    registry.blob("a/b", &app, &digest.to_string());
    // It says no sizes, the base is a link with an invented digest, and so are the diff ids.
    let invented = Digest::of(b"/base.tar-12345");
    let layout = Layout::new(place.path("layout"));
    let blobs = layout.path.join("blobs/sha256");
    std::os::unix::fs::symlink(place.path("base.tar"), blobs.join(invented.hex())).unwrap();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [invented, digest]},
    });
    let url = format!("http://{}/v2/a/b/blobs/{digest}", registry.host);
    let manifest = json!({
        "schemaVersion": 2,
        "config": {"mediaType": OCI[1], "digest": layout.blob(config.to_string().as_bytes()), "size": 0},
        "layers": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": invented, "size": 0},
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": digest,
                "size": 0,
                "urls": [url],
                "annotations": {"org.cloudfoundry.experimental.image.base-directory": "/home"},
            },
        ],
    });
    let digest = layout.blob(manifest.to_string().as_bytes());
    let entry = json!({"mediaType": OCI[0], "digest": digest, "size": 0});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    std::fs::write(layout.path.join("index.json"), index.to_string()).unwrap();
    let source = ImageSource::parse(&format!("oci://{}", layout.path.display())).unwrap();
    place.store().import(&source).unwrap_err();
    let mut options = ImportOptions::default();
    options.unverified_layouts = true;
    let image = place.store().import_with(&source, &options).unwrap();
    let app = place.tree(&image.layers[1].key).join("home/app");
    assert_eq!(std::fs::read_to_string(app).unwrap(), "content");
    place.assert_nothing_left(2);
}

#[test]
fn what_is_wrong_leaves_nothing() {
    let test = "what_is_wrong_leaves_nothing";
    let Some(registry) = Registry::start(test) else {
        return;
    };
    let Some(place) = place(test, &registry) else {
        return;
    };
    let error = import(&place, &registry, ":missing").unwrap_err();
    assert!(
        matches!(error, Error::Registry(RegistryError::Missing { .. })),
        "{error}"
    );

    // A layer whose bytes are not those of its digest, but as many.
    let layers = layers(false);
    push(&registry, "v1", &layers, OCI);
    let digest = Digest::of(&layers[0].1);
    let file = registry.file(&digest.hex());
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let error = import(&place, &registry, ":v1").unwrap_err();
    let is_digest = matches!(
        &error,
        Error::ImageMalformed { rule: Rule::Digest { expected, .. }, .. } if *expected == digest.to_string()
    );
    assert!(is_digest, "{error:?}");

    // A layer that is gone.
    std::fs::remove_file(&file).unwrap();
    let error = import(&place, &registry, ":v1").unwrap_err();
    assert!(matches!(error, Error::Registry(_)), "{error:?}");

    // None of it has a name in the store, or lies about.
    assert!(place.store().list_images().unwrap().is_empty());
    let left = place.store().list_layers().len();
    place.assert_nothing_left(left);
}

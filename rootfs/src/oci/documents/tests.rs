use std::collections::HashMap;

use serde_json::{Value, json};

use super::*;

const INDEX: &str = INDEXES[0];
const MANIFEST: &str = MANIFESTS[0];

/// Documents in memory.
#[derive(Default)]
struct Memory(HashMap<Digest, Vec<u8>>);

impl Documents for Memory {
    fn image(&self) -> &str {
        "image"
    }

    fn read(&self, _: Kind, digest: Digest, _: u64) -> Result<Vec<u8>> {
        let bytes = self.0.get(&digest).cloned();
        bytes.ok_or_else(|| wrong("image", &digest.to_string(), "it is missing"))
    }
}

impl Memory {
    fn add(&mut self, kind: &str, document: &Value) -> Value {
        let bytes = document.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        let descriptor = json!({"mediaType": kind, "digest": digest, "size": bytes.len()});
        self.0.insert(digest, bytes);
        descriptor
    }

    fn config(&mut self, diff_ids: &[Digest]) -> Value {
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["A=b"], "User": "", "Cmd": null},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        self.add(CONFIGS[0], &config)
    }

    /// A manifest of as many layers.
    fn manifest(&mut self, layers: usize) -> Value {
        let diff_ids = vec![Digest::of(b"tar"); layers];
        let layer = json!({
            "mediaType": LAYERS[1],
            "digest": Digest::of(b"packed"),
            "size": 6,
            "urls": ["https://h/x"],
            "annotations": {BASE_DIRECTORY: "/home/vcap"},
        });
        json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.config(&diff_ids),
            "layers": vec![layer; layers],
        })
    }

    fn index(&mut self, entries: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        self.add(INDEX, &index)
    }

    fn resolve(&self, document: &Value, kind: Option<&str>) -> Result<Manifest> {
        let bytes = document.to_string().into_bytes();
        let start = Document {
            digest: Digest::of(&bytes),
            media_type: kind.map(str::to_owned),
            bytes,
        };
        resolve(self, start)
    }

    fn refuse(&self, document: &Value, kind: Option<&str>, expected: &str) {
        let error = self.resolve(document, kind).unwrap_err();
        let Error::ImageMalformed { rule, .. } = &error else {
            panic!("{error:?}");
        };
        assert!(rule.to_string().contains(expected), "{rule}");
    }
}

#[test]
fn all_of_a_layer_is_carried() {
    let mut memory = Memory::default();
    let document = memory.manifest(2);
    for kind in [Some(MANIFEST), None] {
        let manifest = memory.resolve(&document, kind).unwrap();
        assert_eq!(manifest.config.env, ["A=b"]);
        assert_eq!(manifest.config.user, None);
        let [_, layer] = &manifest.layers[..] else {
            panic!("{manifest:?}");
        };
        assert_eq!(layer.digest, Digest::of(b"packed"));
        assert_eq!(layer.diff_id, Digest::of(b"tar"));
        assert_eq!(layer.size, 6);
        assert_eq!(layer.urls, ["https://h/x"]);
        let directory = layer.base_directory.as_ref().unwrap();
        assert_eq!(directory.bytes(), b"home/vcap");
    }
}

#[test]
fn dockers_second_schema_is_read() {
    let mut memory = Memory::default();
    let diff_id = Digest::of(b"tar");
    let mut config = memory.config(&[diff_id]);
    config["mediaType"] = CONFIGS[1].into();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFESTS[1],
        "config": config,
        "layers": [{"mediaType": LAYERS[7], "digest": Digest::of(b"packed"), "size": 6}],
    });
    let entry = memory.add(MANIFESTS[1], &manifest);
    let list = json!({
        "schemaVersion": 2,
        "mediaType": INDEXES[1],
        "manifests": [entry],
    });
    let found = memory.resolve(&list, Some(INDEXES[1])).unwrap();
    assert_eq!(found.layers.len(), 1);
    assert_eq!(found.digest.to_string(), entry["digest"]);
}

#[test]
fn indexes_are_bounded() {
    let mut memory = Memory::default();
    let manifest = memory.manifest(1);
    let entry = memory.add(MANIFEST, &manifest);
    let inner = memory.index(std::slice::from_ref(&entry));
    let outer = json!({"schemaVersion": 2, "manifests": [inner]});
    memory.resolve(&outer, Some(INDEX)).unwrap();
    let outer = memory.index(&[inner]);
    let outer = json!({"schemaVersion": 2, "manifests": [outer]});
    memory.refuse(&outer, Some(INDEX), "nested deeper than 3");
    let wide = json!({"schemaVersion": 2, "manifests": vec![entry.clone(); WIDTH + 1]});
    memory.refuse(&wide, Some(INDEX), "more than 1024 images");
    let mut foreign = entry;
    foreign["platform"] = json!({"os": "plan9", "architecture": "mips"});
    let index = json!({"schemaVersion": 2, "manifests": [foreign]});
    memory.refuse(&index, Some(INDEX), "no image for this machine, linux/");
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let mut memory = Memory::default();
    let good = memory.manifest(1);
    let entry = memory.add(MANIFEST, &good);
    let with = |key: &str, value: Value| {
        let mut document = good.clone();
        document[key] = value;
        document
    };
    let both = with("manifests", json!([entry]));
    memory.refuse(&both, Some(MANIFEST), "not what its media type says");
    memory.refuse(
        &with("mediaType", INDEX.into()),
        None,
        "not what its media type says",
    );
    memory.refuse(&good, Some(INDEX), "was named as");
    let unnamed = with("mediaType", Value::Null);
    memory.refuse(&unnamed, Some(INDEX), "not what its media type says");
    let untyped = json!({"layers": [], "manifests": []});
    memory.refuse(&untyped, None, "not what its media type says");
    memory.refuse(&json!({}), None, "neither a manifest nor an index");
    memory.refuse(&good, Some("application/vnd.x"), "was named as");
    memory.refuse(
        &unnamed,
        Some("application/vnd.x"),
        "application/vnd.x is not supported",
    );
    // The same entry of an index under another name.
    let mut renamed = entry;
    renamed["mediaType"] = MANIFESTS[1].into();
    let index = json!({"schemaVersion": 2, "manifests": [renamed]});
    memory.refuse(&index, Some(INDEX), "was named as");
}

#[test]
fn the_first_schema_is_explained() {
    let memory = Memory::default();
    let old = json!({"schemaVersion": 1, "fsLayers": [], "history": []});
    for kind in [Some(FIRST_SCHEMA[1]), Some("application/json"), None] {
        memory.refuse(&old, kind, "Docker's first schema");
    }
}

#[test]
fn documents_must_be_what_names_them() {
    let mut memory = Memory::default();
    let good = memory.manifest(1);
    let with = |key: &str, value: Value| {
        let mut document = good.clone();
        document["config"][key] = value;
        document
    };
    let kind = Some(MANIFEST);
    memory.refuse(&with("size", 5.into()), kind, "bytes instead of 5");
    // Nothing is said of it: only its digest counts.
    memory.resolve(&with("size", 0.into()), kind).unwrap();
    let huge = with("size", (DOCUMENT + 1).into());
    memory.refuse(&huge, kind, "more than 4194304 bytes");
    let long = format!("sha512:{}", "a".repeat(128));
    memory.refuse(&with("digest", long.into()), kind, "no digest of the form");
    let chart = "application/vnd.cncf.helm.config.v1+json";
    memory.refuse(&with("mediaType", chart.into()), kind, "an artifact");
    // Bytes that are not those of the digest.
    let digest: Digest = good["config"]["digest"].as_str().unwrap().parse().unwrap();
    let mut bytes = memory.0[&digest].clone();
    bytes[0] = b' ';
    memory.0.insert(digest, bytes);
    memory.refuse(&good, kind, "has the digest");
}

#[test]
fn layers_must_fit_their_configuration() {
    let mut memory = Memory::default();
    let mut more = memory.manifest(2);
    more["config"] = memory.config(&[Digest::of(b"tar")]);
    let kind = Some(MANIFEST);
    memory.refuse(&more, kind, "2 layers, and its configuration names 1");
    let good = memory.manifest(1);
    let with = |key: &str, value: Value| {
        let mut document = good.clone();
        document["layers"][0][key] = value;
        document
    };
    let encrypted = "application/vnd.oci.image.layer.v1.tar+encrypted";
    memory.refuse(
        &with("mediaType", encrypted.into()),
        kind,
        "of a layer is not supported",
    );
    memory.refuse(
        &with("digest", "sha256:../../x".into()),
        kind,
        "not what it should be",
    );
    memory.refuse(
        &with("urls", json!(vec!["http://h"; URLS + 1])),
        kind,
        "more than 16 places",
    );
    for directory in ["../x", "/a/../../b"] {
        let annotations = json!({BASE_DIRECTORY: directory});
        memory.refuse(
            &with("annotations", annotations),
            kind,
            "must not contain '..'",
        );
    }
    let windows = json!({
        "architecture": "amd64",
        "os": "windows",
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    let mut manifest = memory.manifest(0);
    manifest["config"] = memory.add(CONFIGS[1], &windows);
    memory.refuse(&manifest, kind, "an image for windows");
}

#[test]
fn deep_documents_are_refused() {
    let memory = Memory::default();
    let bytes = "[".repeat(100_000).into_bytes();
    let start = Document {
        digest: Digest::of(&bytes),
        media_type: None,
        bytes,
    };
    resolve(&memory, start).unwrap_err();
}

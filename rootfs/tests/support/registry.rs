//! Debian's docker-registry on loopback, with a directory of its own, and a way to push to it:
//! that of the crate `oci-client`, which knows nothing of ours.

#![allow(
    dead_code,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "only for tests, and not every test uses all of it"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use oci_client::Reference;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;

const PROGRAM: &str = "/usr/bin/docker-registry";
/// Of `me` with the password `secret`.
const PASSWORDS: &str = "me:$2y$04$KCrLlSfpgmvktAtP7xkYguWG3KX2N.7z6NMfpOkdm/QAVYcJFchw2\n";
const DEADLINE: Duration = Duration::from_secs(30);

/// A registry of a test; ends, and leaves nothing, when it is dropped.
pub(crate) struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    /// `127.0.0.1:PORT`.
    pub(crate) host: String,
    auth: RegistryAuth,
}

impl Registry {
    /// `None`, with a message, when there is no such program here.
    pub(crate) fn start(test: &str) -> Option<Self> {
        Self::launch(test, false)
    }

    /// The same, for the user `me` with the password `secret` only.
    pub(crate) fn with_password(test: &str) -> Option<Self> {
        Self::launch(test, true)
    }

    fn launch(test: &str, password: bool) -> Option<Self> {
        if !std::path::Path::new(PROGRAM).exists() {
            println!("SKIPPED {test}: {PROGRAM} is not installed");
            return None;
        }
        // It cannot choose a port itself, and a free one may be gone before it has it.
        for _ in 0..10 {
            if let Some(registry) = Self::try_launch(password) {
                return Some(registry);
            }
        }
        panic!("docker-registry found no port in ten tries");
    }

    fn try_launch(password: bool) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        drop(listener);
        let mut config = serde_json::json!({
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": dir.path().join("data")}},
            "http": {"addr": host},
        });
        let mut auth = RegistryAuth::Anonymous;
        if password {
            let file = dir.path().join("passwords");
            std::fs::write(&file, PASSWORDS).unwrap();
            config["auth"] = serde_json::json!({"htpasswd": {"realm": "test", "path": file}});
            auth = RegistryAuth::Basic("me".to_owned(), "secret".to_owned());
        }
        // JSON is YAML.
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config.to_string()).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", PROGRAM, "serve"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut registry = Self {
            child,
            dir,
            host,
            auth,
        };
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if registry.child.try_wait().unwrap().is_some() {
                return None;
            }
            if registry.answers() {
                return Some(registry);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("docker-registry did not answer in time");
    }

    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(&self.host) else {
            return false;
        };
        let request = b"GET /v2/ HTTP/1.0\r\n\r\n";
        let mut head = [0; 8];
        stream.write_all(request).is_ok() && stream.read_exact(&mut head).is_ok()
    }

    /// Pushes a blob.
    pub(crate) fn blob(&self, repository: &str, bytes: &[u8], digest: &str) {
        let reference = self.reference(repository, "none");
        let bytes = bytes.to_vec();
        self.run(async |client| client.push_blob(&reference, bytes, digest).await.map(drop));
    }

    /// Pushes a manifest or an index, by tag or digest.
    pub(crate) fn manifest(&self, repository: &str, name: &str, document: &str, kind: &str) {
        let reference = self.reference(repository, name);
        let (document, kind) = (document.to_owned(), kind.parse().unwrap());
        self.run(async |client| {
            let pushed = client.push_manifest_raw(&reference, document, kind).await;
            pushed.map(drop)
        });
    }

    fn reference(&self, repository: &str, name: &str) -> Reference {
        let (host, repository, name) = (self.host.clone(), repository.to_owned(), name.to_owned());
        match name.contains(':') {
            true => Reference::with_digest(host, repository, name),
            false => Reference::with_tag(host, repository, name),
        }
    }

    fn run(&self, push: impl AsyncFnOnce(&oci_client::Client) -> oci_client::errors::Result<()>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = oci_client::Client::new(ClientConfig {
            protocol: ClientProtocol::Http,
            use_monolithic_push: true,
            ..ClientConfig::default()
        });
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(async {
            client.store_auth_if_needed(&self.host, &self.auth).await;
            push(&client).await.unwrap();
        });
    }

    /// Where it keeps a blob.
    pub(crate) fn file(&self, hex: &str) -> std::path::PathBuf {
        let blobs = "data/docker/registry/v2/blobs/sha256";
        self.dir
            .path()
            .join(blobs)
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! Where a server listens, with real sockets and certificates of the test's own.

use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::api::listen::{Activation, Listen, ListenError, UnixSocket};
use crate::api::testing::{Fake, soon};
use crate::api::{Filters, Options, Server};
use crate::client::{Client, Wanted};
use crate::connection::Address;
use crate::connection::tls::{Files, TlsError};
use crate::model::{ContainerSpec, ProcessSpec};

/// An authority, with files for whoever it vouches for.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Authority {
    fn new(directory: &Path, name: &str) -> Self {
        let directory = directory.join(name);
        std::fs::create_dir(&directory).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(directory.join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, directory }
    }

    fn files(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> Files {
        let mut params =
            CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = Files {
            certificate: self.directory.join(format!("{name}.pem")),
            key: self.directory.join(format!("{name}.key")),
            authorities: self.directory.join("ca.pem"),
        };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    fn server(&self) -> Files {
        self.files("server", ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn client(&self) -> Files {
        self.files("client", ExtendedKeyUsagePurpose::ClientAuth)
    }
}

/// Serves until the token is dropped with its guard.
fn serve(listen: Listen) -> (Vec<SocketAddr>, tokio_util::sync::DropGuard) {
    let listeners = listen.bind().unwrap();
    let addresses = listeners.tcp();
    let stop = CancellationToken::new();
    let server = Server::new(Arc::new(Fake::default()), Options::default());
    tokio::spawn(server.serve(listeners, stop.clone()));
    (addresses, stop.drop_guard())
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn at(address: SocketAddr) -> Address {
    Address::Tcp {
        host: address.ip().to_string(),
        port: address.port(),
    }
}

/// A whole process over whatever the client uses.
async fn process(client: &Client) {
    soon(client.ping()).await.unwrap();
    let created = client.create(&ContainerSpec::default()).await.unwrap();
    let spec = ProcessSpec {
        path: "cat".into(),
        ..ProcessSpec::default()
    };
    let mut process = soon(client.run(&created, &spec, Wanted::ALL))
        .await
        .unwrap();
    let input = process.input();
    input.write("over the wire".into()).await;
    input.close().await;
    let mut said = String::new();
    let stdout = process.stdout.as_mut().unwrap();
    soon(stdout.read_to_string(&mut said)).await.unwrap();
    assert_eq!(said, "over the wire");
    soon(process.wait()).await.unwrap();
    let all = client.list(&Filters::new()).await.unwrap();
    assert_eq!(all, [created]);
}

#[tokio::test]
async fn plain_tcp_stays_on_this_host() {
    let (addresses, _serving) = serve(Listen {
        tcp: vec![loopback()],
        ..Listen::default()
    });
    process(&Client::new(at(addresses[0]))).await;
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[::ffff:192.0.2.1]:0"] {
        let listen = |insecure| Listen {
            tcp: vec![loopback(), address.parse().unwrap()],
            insecure,
            ..Listen::default()
        };
        let refused = listen(false).bind().unwrap_err();
        assert!(matches!(refused, ListenError::Exposed(_)), "{address}");
        assert!(refused.to_string().contains("--tls-cert"), "{refused}");
        if address.starts_with('0') {
            listen(true).bind().unwrap();
        }
    }
    assert!(matches!(
        Listen::default().bind(),
        Err(ListenError::Nowhere)
    ));
}

#[tokio::test]
async fn certificates_on_both_sides() {
    let directory = tempfile::tempdir().unwrap();
    let ours = Authority::new(directory.path(), "ours");
    let others = Authority::new(directory.path(), "others");
    let (addresses, _serving) = serve(Listen {
        tcp: vec!["0.0.0.0:0".parse().unwrap()],
        tls: Some(ours.server().accepting().unwrap()),
        ..Listen::default()
    });
    let port = addresses[0].port();
    let address = |host: &str| Address::Tcp {
        host: host.to_owned(),
        port,
    };
    let with =
        |host: &str, files: Files| Client::new(address(host)).with_tls(files.connecting().unwrap());
    process(&with("127.0.0.1", ours.client())).await;
    soon(with("localhost", ours.client()).ping()).await.unwrap();

    // A certificate of another authority; one for servers only; none; no TLS at all.
    let mut stranger = others.client();
    stranger.authorities = ours.client().authorities;
    soon(with("127.0.0.1", stranger).ping()).await.unwrap_err();
    soon(with("127.0.0.1", ours.server()).ping())
        .await
        .unwrap_err();
    soon(Client::new(address("127.0.0.1")).ping())
        .await
        .unwrap_err();
    // A server that another authority vouches for, or by a name that it does not have.
    let mut trusting = ours.client();
    trusting.authorities = others.client().authorities;
    soon(with("127.0.0.1", trusting).ping()).await.unwrap_err();
    soon(with("127.0.0.2", ours.client()).ping())
        .await
        .unwrap_err();
    // The others are served all the same while one says nothing.
    let _silent = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    soon(with("127.0.0.1", ours.client()).ping()).await.unwrap();
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let ours = Authority::new(directory.path(), "ours");
    let good = ours.server();
    let empty = directory.path().join("empty.pem");
    std::fs::write(&empty, "no certificate\n").unwrap();
    let large = directory.path().join("large.pem");
    std::fs::write(&large, vec![b'x'; (1 << 20) + 1]).unwrap();
    let replaced = |certificate: Option<&Path>, key: Option<&Path>, authorities: Option<&Path>| {
        let or = |wanted: Option<&Path>, good: &Path| wanted.unwrap_or(good).to_owned();
        Files {
            certificate: or(certificate, &good.certificate),
            key: or(key, &good.key),
            authorities: or(authorities, &good.authorities),
        }
    };
    let missing = Path::new("/nonexistent.pem");
    for wrong in [
        replaced(Some(missing), None, None),
        replaced(Some(&empty), None, None),
        replaced(Some(&large), None, None),
        replaced(None, Some(missing), None),
        replaced(None, Some(&empty), None),
        replaced(None, None, Some(missing)),
        replaced(None, None, Some(&empty)),
    ] {
        let (server, client) = (wrong.accepting().err(), wrong.connecting().err());
        for error in [server, client] {
            let error = error.expect("a file that is not right");
            assert!(error.to_string().contains(".pem"), "{error}");
        }
    }
    let other = ours.client();
    let swapped = replaced(None, Some(&other.key), None);
    assert!(matches!(
        swapped.accepting().unwrap_err(),
        TlsError::Pair { .. }
    ));
}

#[tokio::test]
async fn a_socket_has_its_mode_and_replaces_only_what_is_dead() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    std::fs::write(&path, "a plain file").unwrap();
    let first = Listen::at(&path).bind().unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    // Somebody listens there.
    let refused = Listen::at(&path).bind().unwrap_err();
    assert!(matches!(&refused, ListenError::InUse(_)), "{refused}");
    assert!(crate::error::Error::from(refused).is_in_use());
    UnixStream::connect(&path).await.unwrap();
    drop(first);
    assert!(!path.exists());
    // What a killed server leaves.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let wanted = UnixSocket {
        mode: 0o660,
        ..UnixSocket::new(&path)
    };
    let third = Listen {
        unix: Some(wanted),
        ..Listen::default()
    };
    let third = third.bind().unwrap();
    assert_eq!(mode(&path), 0o660);
    // Another takes the name over: it is no longer the third's to remove.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    drop(third);
    assert!(path.exists());
}

#[tokio::test]
async fn nothing_stays_where_one_place_cannot_be_listened_on() {
    let directory = tempfile::tempdir().unwrap();
    let long = directory.path().join("n".repeat(120));
    let error = Listen::at(&long).bind().unwrap_err();
    assert!(matches!(error, ListenError::Unix { .. }), "{error}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let path = directory.path().join("s");
    let both = Listen {
        tcp: vec![taken.local_addr().unwrap()],
        ..Listen::at(&path)
    };
    let error = both.bind().unwrap_err();
    assert!(matches!(error, ListenError::Tcp { .. }), "{error}");
    assert!(!path.exists());
    let owned = UnixSocket {
        owner: Some(u32::MAX - 1),
        ..UnixSocket::new(&path)
    };
    let refused = Listen {
        unix: Some(owned),
        ..Listen::default()
    };
    if rustix::process::geteuid().is_root() {
        refused.bind().unwrap();
    } else {
        refused.bind().unwrap_err();
    }
    assert!(!path.exists());
}

#[tokio::test]
async fn sockets_that_were_there_are_served_beside_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("theirs");
    let theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let activation = Activation {
        socket2me: Some(theirs.as_raw_fd().to_string()),
        ..Activation::default()
    };
    let sockets = activation.sockets(std::process::id()).unwrap();
    let (addresses, _serving) = serve(Listen {
        tcp: vec![loopback()],
        inherited: sockets.into_iter().map(|one| one.socket).collect(),
        ..Listen::at(directory.path().join("ours"))
    });
    for client in [
        Client::new(path.clone()),
        Client::new(directory.path().join("ours")),
        Client::new(at(addresses[0])),
    ] {
        soon(client.ping()).await.unwrap();
    }
    // One that went away in between costs nobody anything.
    let mut cut = UnixStream::connect(&path).await.unwrap();
    cut.write_all(b"GET /pi").await.unwrap();
    drop(cut);
    soon(Client::new(path).ping()).await.unwrap();
}

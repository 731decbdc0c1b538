//! A server that does what a test says: answers late, half, or wrong, with or without TLS.
//!
//! One request per connection, a thread per connection, everything written down. Ends when it is
//! dropped; connections end with their clients.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

/// A request, as it came.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// Path and query.
    pub(super) path: String,
    headers: Vec<(String, String)>,
    /// Whether the client showed a certificate.
    pub(super) certified: bool,
}

/// What is answered.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// After how many bytes of the body it stops, and how.
    stop: Option<(usize, Stop)>,
}

#[derive(Debug, Clone, Copy)]
enum Stop {
    Close,
    Silence,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter();
        all.find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// The first byte that is asked for.
    pub(super) fn offset(&self) -> usize {
        let range = self
            .header("range")
            .and_then(|range| range.strip_prefix("bytes="));
        let first = range.and_then(|range| range.strip_suffix('-'));
        first.map_or(0, |first| first.parse().unwrap())
    }
}

impl Reply {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            stop: None,
        }
    }

    /// The part of a blob that a request asks for.
    pub(super) fn part(request: &Request, blob: &[u8]) -> Self {
        let first = request.offset();
        if request.header("range").is_none() {
            return Self::new(200, blob);
        }
        let range = format!("bytes {first}-{}/{}", blob.len() - 1, blob.len());
        Self::new(206, &blob[first..]).with("Content-Range", &range)
    }

    pub(super) fn redirect(to: &str) -> Self {
        Self::new(307, "").with("Location", to)
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Closes the connection after so many bytes of the body.
    pub(super) fn broken(mut self, after: usize) -> Self {
        self.stop = Some((after, Stop::Close));
        self
    }

    /// Says nothing more after so many bytes of the body.
    pub(super) fn silent(mut self, after: usize) -> Self {
        self.stop = Some((after, Stop::Silence));
        self
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// The server.
pub(super) struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(None, Arc::new(handler))
    }

    /// The same with TLS.
    pub(super) fn start_tls(
        tls: ServerConfig,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen(Some(Arc::new(tls)), Arc::new(handler))
    }

    fn listen(tls: Option<Arc<ServerConfig>>, handler: Arc<Handler>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, stopped) = (Arc::clone(&requests), Arc::clone(&stop));
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (tls, handler, seen) = (tls.clone(), Arc::clone(&handler), Arc::clone(&seen));
                // A client that hangs up is no fault of a test.
                std::thread::spawn(move || {
                    stream.and_then(|stream| serve(stream, tls, &*handler, &seen))
                });
            }
        });
        Self {
            address,
            requests,
            stop,
            acceptor: Some(acceptor),
        }
    }

    /// `127.0.0.1:PORT`.
    pub(super) fn host(&self) -> String {
        self.address.to_string()
    }

    /// The same server by another name: another host to every client.
    pub(super) fn other_name(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    /// What was asked so far.
    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The paths that were asked so far.
    pub(super) fn paths(&self) -> Vec<String> {
        self.requests()
            .into_iter()
            .map(|request| request.path)
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// A host that refuses connections for as long as the socket is kept: it has the port, and does
/// not listen.
pub(super) fn dead_host() -> (String, OwnedFd) {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
    (address.to_string(), socket)
}

fn serve(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    handler: &Handler,
    seen: &Mutex<Vec<Request>>,
) -> io::Result<()> {
    let mut first = [0];
    stream.peek(&mut first)?;
    match tls {
        // A client that tries TLS where there is none.
        None if first[0] == 0x16 => Ok(()),
        None => answer(stream, false, handler, seen),
        Some(tls) => {
            let connection = ServerConnection::new(tls).map_err(io::Error::other)?;
            let mut stream = StreamOwned::new(connection, stream);
            while stream.conn.is_handshaking() {
                stream.conn.complete_io(&mut stream.sock)?;
            }
            let certified = stream.conn.peer_certificates().is_some();
            answer(stream, certified, handler, seen)
        }
    }
}

fn answer(
    stream: impl Read + Write,
    certified: bool,
    handler: &Handler,
    seen: &Mutex<Vec<Request>>,
) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let request = Request {
        path,
        headers,
        certified,
    };
    seen.lock().unwrap().push(request.clone());
    let reply = handler(&request);
    let stream = reader.get_mut();
    let mut head = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", reply.status);
    let framing = ["Content-Length", "Transfer-Encoding"];
    let has_length = (reply.headers.iter()).any(|(name, _)| framing.contains(&&**name));
    if !has_length {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    let (until, stop) = reply.stop.unwrap_or((reply.body.len(), Stop::Close));
    stream.write_all(&reply.body[..until.min(reply.body.len())])?;
    stream.flush()?;
    if let Stop::Silence = stop {
        // Until the client has had enough.
        let _ = stream.read(&mut [0]);
    }
    Ok(())
}

/// What a server wants to know of its clients.
#[derive(Debug, Clone, Copy)]
pub(super) enum Clients {
    Anybody,
    /// Their certificate, if they show one.
    Asked,
    /// It talks to clients of its authority only.
    Certified,
}

/// An authority, a server certified by it for both names of this host, and a client.
pub(super) struct Authority {
    pub(super) ca: String,
    server: (String, String),
    pub(super) client: (String, String),
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let certify = |names: &[&str], usage| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(names).unwrap();
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            (certificate.pem(), key.serialize_pem())
        };
        let names = ["127.0.0.1", "localhost"];
        Self {
            server: certify(&names, ExtendedKeyUsagePurpose::ServerAuth),
            client: certify(&["client"], ExtendedKeyUsagePurpose::ClientAuth),
            ca: issuer.pem(),
        }
    }

    /// What a server needs that treats clients like this.
    pub(super) fn tls(&self, clients: Clients) -> ServerConfig {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let read = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            Clients::Anybody => builder.with_no_client_auth(),
            Clients::Asked | Clients::Certified => {
                let mut roots = RootCertStore::empty();
                roots.add(read(&self.ca)).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = match clients {
                    Clients::Certified => verifier,
                    _ => verifier.allow_unauthenticated(),
                };
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let (certificate, key) = &self.server;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        builder
            .with_single_cert(vec![read(certificate)], key)
            .unwrap()
    }
}

//! A web server of a test: some files, and how often they were asked for.

/// A web server on the loopback with some files: `/0`, `/1` and so on.
pub(crate) struct Web {
    address: std::net::SocketAddr,
    requests: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Web {
    pub(crate) fn start(files: Vec<Vec<u8>>) -> Self {
        use std::sync::atomic::Ordering;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, stop) = Default::default();
        let mut web = Self {
            address,
            requests,
            stop,
            thread: None,
        };
        let (requests, stop) = (web.requests.clone(), web.stop.clone());
        web.thread = Some(std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                requests.fetch_add(1, Ordering::SeqCst);
                // A client that goes away early is none of the server's business.
                let _ = serve(stream.unwrap(), &files);
            }
        }));
        web
    }

    pub(crate) fn url(&self, file: usize) -> String {
        format!("http://{}/{file}", self.address)
    }

    /// How many requests there were.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(std::sync::atomic::Ordering::SeqCst)
    }
}

fn serve(mut stream: std::net::TcpStream, files: &[Vec<u8>]) -> std::io::Result<()> {
    use std::io::{BufRead, BufReader, Write};
    let mut request = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    request.read_line(&mut first)?;
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let file = path.trim_start_matches('/').parse::<usize>().ok();
    let Some(file) = file.and_then(|number| files.get(number)) else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n");
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        file.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(file)
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        // Wakes it up.
        let _ = std::net::TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

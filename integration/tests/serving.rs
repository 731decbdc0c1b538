//! How a server is reached and told of: its socket, sockets that it is given, the service manager, the
//! debug server, its end; and the verbs that work without one.

use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use garden_integration::{DEADLINE, World, check, skip, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A server that was started in a way of the test's own; killed when dropped.
struct Own(Child);

impl Own {
    /// Arguments that belong to the world, then those of the test.
    fn arguments(world: &World, more: &[&str]) -> Vec<String> {
        let store = world.directory().join("store");
        let mut all = vec!["server".to_owned(), "--runtime-dir".to_owned()];
        all.push(world.runtime_dir().display().to_string());
        all.extend(["--store".to_owned(), store.display().to_string()]);
        all.extend(["--tag".to_owned(), world.tag().to_owned()]);
        all.extend(more.iter().map(|&one| one.to_owned()));
        all
    }

    fn start(world: &World, mut command: Command, arguments: &[String]) -> Result<Self> {
        let log = std::fs::File::create(world.directory().join("server.log"))?;
        let command = command.args(arguments).envs(world.marks());
        let command = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(Self(command.spawn().context("starting a server")?))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.0.id().cast_signed()).context("no pid")?;
        Ok(kill_process(pid, signal)?)
    }

    fn ends_well(mut self) -> Result<()> {
        wait_until("the server ends", DEADLINE, || {
            Ok(self.0.try_wait()?.is_some())
        })?;
        let status = self.0.wait()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ping(mut stream: impl std::io::Read + std::io::Write) -> Result<()> {
    let (status, _) = get(&mut stream, "/ping")?;
    ensure!(status == 200, "{status}");
    Ok(())
}

/// Status and whole answer of a request.
fn get(stream: &mut (impl std::io::Read + std::io::Write), target: &str) -> Result<(u16, String)> {
    ask(
        stream,
        &format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    )
}

fn ask(stream: &mut (impl std::io::Read + std::io::Write), request: &str) -> Result<(u16, String)> {
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).context("no answer")?.parse()?;
    Ok((status, answer))
}

fn unix(path: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

#[test]
fn the_socket_has_the_mode_and_the_owner_that_were_asked_for() {
    check(|world| {
        let socket = world.directory().join("s.sock");
        let mut server = world.server()?;
        let mode = || -> Result<u32> { Ok(socket.metadata()?.permissions().mode() & 0o777) };
        ensure!(mode()? == 0o600);
        // Nobody takes the socket of a server that runs.
        let path = socket.display().to_string();
        let other = world.directory().join("other").display().to_string();
        let refused =
            world
                .hosted()
                .run(&["server", "--bind-socket", &path, "--runtime-dir", &other])?;
        refused
            .expect_code(125)?
            .expect_one_line(&["already", &path])?;
        ping(unix(&socket)?)?;
        server.terminate()?;
        ensure!(!socket.exists(), "the socket is still there");
        drop(server);
        let server = world.server_with(&["--socket-mode", "660", "--socket-owner", "0:12"])?;
        ensure!(mode()? == 0o660);
        ensure!(std::os::unix::fs::MetadataExt::gid(&socket.metadata()?) == 12);
        ping(unix(server.socket())?)
    });
}

#[test]
fn sockets_that_others_opened_are_served() {
    check(|world| {
        if Command::new("python3").arg("--version").output().is_err() {
            return skip("python3");
        }
        let helper = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/activate.py");
        let places = ["systemd", "socket2me"].map(|how| (how, world.directory().join(how)));
        let port = world.directory().join("tcp.port");
        for (how, path) in places.into_iter().chain([("systemd", port)]) {
            let mut command = Command::new("python3");
            command
                .arg("-B")
                .arg(&helper)
                .arg(how)
                .arg(&path)
                .arg(world.program());
            let server = Own::start(world, command, &Own::arguments(world, &[]))?;
            if path.extension().is_some() {
                let connect = || -> Result<TcpStream> {
                    let port: u16 = std::fs::read_to_string(&path)?.parse()?;
                    Ok(TcpStream::connect(("127.0.0.1", port))?)
                };
                wait_until("it listens", DEADLINE, || Ok(connect().is_ok()))?;
                ping(connect()?)?;
            } else {
                wait_until("it listens", DEADLINE, || {
                    Ok(UnixStream::connect(&path).is_ok())
                })?;
                ping(unix(&path)?)?;
            }
            server.signal(Signal::TERM)?;
            server.ends_well()?;
        }
        Ok(())
    });
}

#[test]
fn the_service_manager_is_told() {
    check(|world| {
        let path = world.directory().join("notify");
        let manager = UnixDatagram::bind(&path)?;
        manager.set_read_timeout(Some(DEADLINE))?;
        let socket = world.directory().join("s.sock");
        let mut command = Command::new(world.program());
        command.env("NOTIFY_SOCKET", &path);
        let arguments = Own::arguments(world, &["--bind-socket", &socket.display().to_string()]);
        let server = Own::start(world, command, &arguments)?;
        let heard = || -> Result<String> {
            let mut buffer = [0; 512];
            let count = manager.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
        };
        ensure!(heard()?.contains("READY=1"));
        ping(unix(&socket)?)?;
        server.signal(Signal::TERM)?;
        ensure!(heard()?.contains("STOPPING=1"));
        server.ends_well()
    });
}

#[test]
fn tcp_beyond_the_host_wants_certificates() {
    check(|world| {
        let cli = world.hosted();
        for ip in ["0.0.0.0", "192.0.2.7", "::"] {
            let refused = cli.run(&["server", "--bind-ip", ip, "--bind-port", "0"])?;
            refused
                .expect_code(125)?
                .expect_one_line(&["--tls-cert", "--insecure-tcp"])?;
        }
        let half = cli.run(&["server", "--tls-cert", "/x.pem"])?;
        half.expect_code(125)?
            .expect_one_line(&["--tls-key", "--tls-ca"])?;
        Ok(())
    });
}

#[test]
fn a_server_ends_though_clients_are_there_and_containers_run_on() {
    check(|world| {
        let mut server = world.server()?;
        let cli = server.cli();
        let image = world.images()?.tar("base")?;
        cli.output(&["create", "--image", &image, "--name", "lives"])?;
        let silent = unix(server.socket())?;
        let mut half = unix(server.socket())?;
        half.write_all(b"GET /pi")?;
        let attached = cli.start(&["exec", "lives", "--", "sleep", "1000"])?;
        server.terminate()?;
        drop((silent, half, attached));
        server.restart()?;
        ensure!(cli.output(&["ls"])?.contains("lives"));
        cli.output(&["exec", "lives", "--", "true"])?;
        cli.output(&["rm", "lives"])?;
        Ok(())
    });
}

fn debug_address(world: &World) -> Result<(String, u16)> {
    let mut found = None;
    wait_until("the debug server listens", DEADLINE, || {
        let log = world.server_log();
        let places = log.split("status-page").nth(1).unwrap_or_default();
        let port = places.split("tcp://127.0.0.1:").nth(1).unwrap_or_default();
        let digits: String = port.chars().take_while(char::is_ascii_digit).collect();
        found = digits.parse().ok();
        Ok(found.is_some())
    })?;
    Ok(("127.0.0.1".to_owned(), found.context("no port")?))
}

#[test]
fn the_debug_server_tells_what_operators_read() {
    check(|world| {
        let options = ["--debug-bind-ip", "127.0.0.1", "--debug-bind-port", "0"];
        let server = world.server_with(&options)?;
        let cli = server.cli();
        let image = world.images()?.tar("base")?;
        cli.output(&["create", "--image", &image, "--name", "seen"])?;
        cli.run(&["exec", "seen", "--", "true"])?.expect_code(0)?;
        let address = debug_address(world)?;
        let page = |target: &str| -> Result<String> {
            let mut stream = TcpStream::connect(&address)?;
            let (status, answer) = get(&mut stream, target)?;
            ensure!(status == 200, "{target}: {answer}");
            Ok(answer)
        };
        let body = |target: &str| -> Result<Value> {
            let answer = page(target)?;
            let body = answer.split_once("\r\n\r\n").context("no body")?.1;
            Ok(serde_json::from_str(body)?)
        };
        ensure!(body("/healthz")?["status"] == "ok");
        let vars = body("/debug/vars")?;
        for name in [
            "numCPUS",
            "numGoRoutines",
            "loopDevices",
            "backingStores",
            "depotDirs",
        ] {
            ensure!(vars[name].is_u64(), "{vars}");
        }
        ensure!(vars["depotDirs"] == 1, "{vars}");
        let metrics = page("/metrics")?;
        for line in [
            "garden_containers{state=\"active\"} 1",
            "garden_request_seconds_count{route=\"create\"} 1",
            "garden_events_total{event=\"created\"} 1",
            "garden_teardown_depth ",
            "garden_exit_told_seconds_bucket{le=\"+Inf\"} ",
        ] {
            ensure!(metrics.contains(line), "{line} is not in {metrics}");
        }
        ensure!(!metrics.contains("seen"), "a series for each container");
        ensure!(page("/metrics?containers=1")?.contains("handle=\"seen\""));
        let status = body("/status.json")?;
        ensure!(status["containers"][0]["handle"] == "seen", "{status}");
        ensure!(status["last_minute"]["creates"] == 1, "{status}");
        let document = page("/")?;
        ensure!(
            document
                .to_lowercase()
                .contains("content-security-policy: default-src 'none'")
        );

        // The level of the log, and who may not change it.
        let send = |head: &str, level: &str| -> Result<u16> {
            let mut stream = TcpStream::connect(&address)?;
            let length = level.len();
            let request = format!(
                "POST /log-level HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}\
                 Content-Length: {length}\r\n\r\n{level}"
            );
            Ok(ask(&mut stream, &request)?.0)
        };
        ensure!(send("", "debug")? == 200);
        ensure!(page("/log-level")?.contains("debug"));
        cli.output(&["ls"])?;
        ensure!(world.server_log().contains("guardian.ps.finished"));
        ensure!(send("", "chatty")? == 400);
        ensure!(send("Origin: http://evil.example\r\n", "fatal")? == 403);
        ensure!(send("", "info")? == 200);
        // What greps of Guardian's log find.
        let log = world.server_log();
        let created = log
            .lines()
            .find(|line| line.contains("guardian.create.finished"));
        let created: Value = serde_json::from_str(created.context("no such line")?)?;
        ensure!(created["data"]["handle"] == "seen", "{created}");
        ensure!(
            created["level"] == "info" && created["source"] == "guardian",
            "{created}"
        );
        cli.output(&["rm", "seen"])?;
        Ok(())
    });
}

#[test]
fn the_status_page_shows_texts_as_texts() {
    check(|world| {
        let Some(browser) = ["chromium", "chromium-headless-shell"]
            .into_iter()
            .find(|name| Command::new(name).arg("--version").output().is_ok())
        else {
            return skip("chromium");
        };
        let options = ["--debug-bind-ip", "127.0.0.1", "--debug-bind-port", "0"];
        let server = world.server_with(&options)?;
        let cli = server.cli();
        let image = world.images()?.tar("base")?;
        cli.output(&["create", "--image", &image, "--name", "seen"])?;
        // The path of a program is a text that its container chooses.
        let evil = "/bin/<img src=x onerror=alert(1)>";
        let script = format!("printf '#!/bin/sh\\nsleep 1000\\n' > '{evil}'; chmod 755 '{evil}'");
        cli.run(&["exec", "seen", "--", "sh", "-c", &script])?
            .expect_code(0)?;
        let _running = cli.start(&["exec", "seen", "--", evil, "1000"])?;
        let (host, port) = debug_address(world)?;
        let profile: PathBuf = world.directory().join("profile");
        let mut shown = String::new();
        wait_until("the page shows it", DEADLINE, || {
            let output = Command::new(browser)
                .args([
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--virtual-time-budget=3000",
                ])
                .arg(format!("--user-data-dir={}", profile.display()))
                .arg("--dump-dom")
                .arg(format!("http://{host}:{port}/"))
                .envs(world.marks())
                .output()?;
            shown = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok(shown.contains("onerror"))
        })?;
        ensure!(
            shown.contains("seen") && shown.contains("up for"),
            "{shown}"
        );
        ensure!(shown.contains("&lt;img src=x onerror"), "{shown}");
        ensure!(!shown.contains("<img"), "{shown}");
        cli.output(&["rm", "seen"])?;
        Ok(())
    });
}

#[test]
fn setup_and_cleanup_work_without_a_server_and_twice() {
    check(|world| {
        let hosted = world.hosted();
        let run = world.runtime_dir().display().to_string();
        let store = world.directory().join("store").display().to_string();
        let places = [
            "--runtime-dir",
            &run,
            "--store",
            &store,
            "--tag",
            world.tag(),
        ];
        let verb = |verb: &str| hosted.run(&[&[verb], &places[..]].concat());
        verb("setup")?.expect_code(0)?;
        verb("setup")?.expect_code(0)?;
        let mut server = world.server()?;
        ensure!(
            verb("setup")?
                .expect_code(0)?
                .stdout
                .contains("a server runs")
        );
        let image = world.images()?.tar("base")?;
        let cli = server.cli();
        for name in ["one", "two", "three"] {
            cli.output(&["create", "--image", &image, "--name", name])?;
        }
        verb("cleanup")?
            .expect_code(125)?
            .expect_one_line(&["server runs"])?;
        server.kill()?;
        let cleaned = verb("cleanup")?;
        ensure!(
            cleaned.expect_code(0)?.stdout.contains("3 containers"),
            "{cleaned:?}"
        );
        ensure!(
            verb("cleanup")?
                .expect_code(0)?
                .stdout
                .contains("0 containers")
        );
        server.restart()?;
        ensure!(!cli.output(&["ls"])?.contains("one"));
        Ok(())
    });
}

#[test]
fn a_server_may_destroy_what_the_last_one_left() {
    check(|world| {
        let mut server = world.server_with(&["--destroy-containers-on-startup"])?;
        let image = world.images()?.tar("base")?;
        let cli = server.cli();
        cli.output(&["create", "--image", &image, "--name", "old"])?;
        server.kill()?;
        server.restart()?;
        ensure!(!cli.output(&["ls"])?.contains("old"));
        cli.output(&["create", "--image", &image, "--name", "old"])?;
        cli.output(&["rm", "old"])?;
        Ok(())
    });
}

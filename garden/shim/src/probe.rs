//! Looks from inside the pod's network whether something answers: the built-in health checks.
//!
//! Runs in a forked child that joins the pod's network namespace by descriptor and then gives up
//! every privilege. It needs no image and no program of the container. What it hears comes from
//! whatever listens there, so it reads no more than a status line, bounded in length and time, and
//! it must never block: every wait has the one deadline.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use garden_wire::{HttpProbe, Probe};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType};
use rustix::thread::LinkNameSpaceType;

use crate::failure::{Result, Step as _, other};
use crate::worker::Report;
use crate::{record, sys};

/// The unprivileged user and group that the child becomes.
const NOBODY: u32 = 65_534;
/// Where the status line of an answer must have ended.
const LONGEST_LINE: usize = 512;
/// What is read and thrown away after the answer is known, so that its sender is not cut off.
const DRAIN: usize = 64 * 1024;
/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_millis(200);

/// Does the work, reports, and ends the process.
pub(crate) fn main(probe: &Probe, namespaces: &[(String, OwnedFd)], report: BorrowedFd<'_>) -> ! {
    let deadline = Instant::now() + Duration::from_millis(probe.timeout_ms);
    let mut socket = None;
    let message = match enter(namespaces) {
        Ok(()) => {
            let found = look(probe, deadline, &mut socket);
            let passed = found.is_ok();
            let (Ok(message) | Err(message)) = found;
            Report::Probed {
                passed,
                message,
                at_ns: record::now_ns(),
            }
        }
        Err(failure) => Report::Failed(failure),
    };
    let sent = garden_wire::send(report, &message, &[]);
    if let Some(socket) = socket {
        drain(&socket);
    }
    sys::exit(i32::from(sent.is_err()))
}

fn enter(namespaces: &[(String, OwnedFd)]) -> Result<()> {
    let network = namespaces
        .iter()
        .find(|(name, _)| name == "network")
        .map(|(_, fd)| fd.as_fd())
        .ok_or_else(|| other("the container's init is gone"))?;
    rustix::thread::move_into_link_name_space(network, Some(LinkNameSpaceType::Network))
        .step("cannot join the network namespace")?;
    rustix::thread::set_thread_groups(&[]).step("cannot drop the groups")?;
    let gid = rustix::fs::Gid::from_raw(NOBODY);
    rustix::thread::set_thread_res_gid(gid, gid, gid).step("cannot take the group")?;
    // With the last of root's ids all capabilities go.
    let uid = rustix::fs::Uid::from_raw(NOBODY);
    rustix::thread::set_thread_res_uid(uid, uid, uid).step("cannot take the user")
}

/// Connects and, if asked to, speaks HTTP. Either way the text is for a person.
fn look(
    probe: &Probe,
    deadline: Instant,
    kept: &mut Option<OwnedFd>,
) -> std::result::Result<String, String> {
    let mut refused = Vec::new();
    for address in &probe.addresses {
        match connect(*address, deadline) {
            Ok(socket) => {
                let Some(http) = &probe.http else {
                    return Ok(format!("{address} accepts connections"));
                };
                let status = ask(&socket, http, deadline);
                *kept = Some(socket);
                return match status {
                    Ok(status) if (http.lowest..=http.highest).contains(&status) => {
                        Ok(format!("{address} answers with status {status}"))
                    }
                    Ok(status) => Err(format!(
                        "{address} answers with status {status}, not {} to {}",
                        http.lowest, http.highest
                    )),
                    Err(why) => Err(format!("{address} {why}")),
                };
            }
            Err(Errno::TIMEDOUT) => refused.push(format!("{address} does not answer")),
            Err(errno) => {
                let why = std::io::Error::from(errno);
                refused.push(format!("cannot connect to {address}: {why}"));
            }
        }
    }
    Err(refused.join("; "))
}

fn connect(address: SocketAddr, deadline: Instant) -> rustix::io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => return Ok(socket),
        Err(Errno::INPROGRESS) => {}
        Err(errno) => return Err(errno),
    }
    wait(&socket, PollFlags::OUT, deadline)?;
    rustix::net::sockopt::socket_error(&socket)??;
    Ok(socket)
}

/// Waits until the socket is ready; `TIMEDOUT` when the deadline comes first.
fn wait(socket: &OwnedFd, what: PollFlags, deadline: Instant) -> rustix::io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Errno::TIMEDOUT);
        }
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match rustix::event::poll(&mut [PollFd::new(socket, what)], Some(&left)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}

/// Sends the request and reads the status of its answer.
fn ask(
    socket: &OwnedFd,
    http: &HttpProbe,
    deadline: Instant,
) -> std::result::Result<u16, &'static str> {
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: garden-health/1\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n",
        http.path, http.host
    );
    let mut rest = request.as_bytes();
    while !rest.is_empty() {
        match rustix::net::send(socket, rest, SendFlags::NOSIGNAL) {
            Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(socket, PollFlags::OUT, deadline)
                .map_err(|_| "does not take the request in time")?,
            Err(_) => return Err("closes the connection before the request is sent"),
        }
    }
    let mut head = [0_u8; LONGEST_LINE];
    let mut length = 0;
    loop {
        let space = head.get_mut(length..).unwrap_or_default();
        if space.is_empty() {
            return Err("does not answer with HTTP");
        }
        match rustix::net::recv(socket, space, RecvFlags::empty()) {
            Ok((_, 0)) => return Err("closes the connection without an answer"),
            Ok((_, count)) => length += count,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => {
                wait(socket, PollFlags::IN, deadline).map_err(|_| "does not answer in time")?;
                continue;
            }
            Err(_) => return Err("closes the connection without an answer"),
        }
        let line = head.get(..length).unwrap_or_default();
        if let Some(status) = status(line)? {
            return Ok(status);
        }
    }
}

/// The status of an answer by its beginning; `None` while that is too short to tell.
fn status(head: &[u8]) -> std::result::Result<Option<u16>, &'static str> {
    const STRANGE: &str = "does not answer with HTTP";
    let expected = b"HTTP/1.";
    let common = head.len().min(expected.len());
    if head.get(..common) != expected.get(..common) {
        return Err(STRANGE);
    }
    let Some(line) = head
        .iter()
        .position(|byte| *byte == b'\n')
        .and_then(|end| head.get(expected.len()..end))
    else {
        return Ok(None);
    };
    match line {
        [b'0'..=b'9', b' ', rest @ ..] => {
            let (digits, after) = rest.split_at_checked(3).ok_or(STRANGE)?;
            if !digits.iter().all(u8::is_ascii_digit) || !matches!(after, [] | [b' ' | b'\r', ..]) {
                return Err(STRANGE);
            }
            let value = |sum: u16, digit: &u8| sum * 10 + u16::from(digit - b'0');
            Ok(Some(digits.iter().fold(0, value)))
        }
        _ => Err(STRANGE),
    }
}

/// Takes what is still sent, for a moment: closing with bytes unread would reset the connection,
/// and the one at the other end would log an error for every check.
fn drain(socket: &OwnedFd) {
    let _ = rustix::net::shutdown(socket, Shutdown::Write);
    let deadline = Instant::now() + DRAIN_TIME;
    let mut buffer = [0_u8; 4096];
    let mut taken = 0;
    while taken < DRAIN && wait(socket, PollFlags::IN, deadline).is_ok() {
        match rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((_, 0)) => return,
            Ok((_, count)) => taken += count,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_known_from_a_whole_line() {
        assert_eq!(status(b""), Ok(None));
        assert_eq!(status(b"HTTP/1.1 20"), Ok(None));
        assert_eq!(status(b"HTTP/1.1 200 OK"), Ok(None));
        assert_eq!(status(b"HTTP/1.1 200 OK\r\nX: y"), Ok(Some(200)));
        assert_eq!(status(b"HTTP/1.0 503\r\n"), Ok(Some(503)));
        assert_eq!(status(b"HTTP/1.0 404\n"), Ok(Some(404)));
    }

    #[test]
    fn what_is_no_http_is_refused_at_its_first_byte() {
        for strange in [
            &b"S"[..],
            b"HTTP/2 200\r\n",
            b"HTTP/1.1 2x0 OK\r\n",
            b"HTTP/1.1 2000 OK\r\n",
            b"HTTP/1.1 20\r\n",
            b"HTTP/1.1\r\n",
            b"HTTP/1. 200\r\n",
            b"\0\0\0\0",
        ] {
            assert!(status(strange).is_err(), "{strange:?}");
        }
    }
}

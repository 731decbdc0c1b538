//! Talking to the kernel by netlink: links, addresses and routes, the packet filter, connections.
//!
//! [`message`] writes and reads messages and attributes, [`Socket`] carries them. Everything
//! blocks, and the kernel answers each request before the call that sends it returns, so nothing
//! waits for long; a deadline is set all the same. A socket belongs to the network namespace of
//! the thread that opened it, for ever and for every thread that uses it.
//!
//! Our own, in place of the `netlink-packet-*` packages: the packet filter has no such package, and
//! what it needs of messages is all that links and addresses need as well.

pub(crate) mod message;

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use message::{Message, Reader, flags};

/// What a dump's part may have at most: the kernel fills up to 32 KiB.
const RECEIVE_SIZE: usize = 64 * 1024;
/// What one send may have at most: a transaction of 50 000 rules. Only root may go beyond the
/// host's bound, and memory is used for what is sent only.
const SEND_SIZE: usize = 64 * 1024 * 1024;
/// No answer by then means that the kernel lost it.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often a dump begins again when the kernel says that it changed meanwhile.
const DUMP_ATTEMPTS: u32 = 16;

/// The type of an answer that ends a dump, and of one that is an error or an acknowledgement.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLMSGERR_ATTR_MSG`: the refusal in words.
const ERROR_TEXT: u16 = 1;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// The kernel refused one of the messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Which of the messages; none for the transaction or the socket as a whole.
    pub(crate) index: Option<usize>,
    /// Why, as a number.
    pub(crate) errno: Errno,
    /// Why, in the kernel's words.
    pub(crate) text: Option<String>,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self {
            index: None,
            errno,
            text: None,
        }
    }
}

/// An answer that is data.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Header of the family and attributes.
    pub(crate) payload: Vec<u8>,
}

/// A socket of one protocol in one network namespace.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
    /// Messages sent so far: what an operation costs, independent of the machine.
    pub(crate) sent: u64,
}

impl Socket {
    /// For links, addresses and routes of the calling thread's network namespace.
    pub(crate) fn route() -> rustix::io::Result<Self> {
        Self::open(None)
    }

    /// For the packet filter and connections of the calling thread's network namespace.
    pub(crate) fn netfilter() -> rustix::io::Result<Self> {
        Self::open(Some(NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> rustix::io::Result<Self> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        garden_sys::netlink::explain_errors(&fd)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        // Without the right to it the host's bound holds, which is enough for a single container.
        let _ = set_socket_send_buffer_size_force(&fd, SEND_SIZE);
        set_socket_timeout(&fd, Timeout::Recv, Some(DEADLINE))?;
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; RECEIVE_SIZE],
            sent: 0,
        })
    }

    /// Sends requests that are independent of each other, in one go, and waits for every answer.
    /// All are tried; the first refusal is returned.
    pub(crate) fn execute(&mut self, messages: &[Message]) -> Result<Vec<Reply>, Refusal> {
        let first = self.send(
            messages
                .iter()
                .map(|message| (message, message.flags | flags::ACK)),
        )?;
        let mut outstanding = messages.len();
        let mut refusal = None;
        let mut replies = Vec::new();
        while outstanding > 0 {
            self.receive(first, |sequence, answer| match answer {
                Answer::Data(payload) => replies.push(Reply {
                    payload: payload.to_vec(),
                }),
                Answer::Result(Ok(())) => outstanding = outstanding.saturating_sub(1),
                Answer::Result(Err((errno, text))) => {
                    outstanding = outstanding.saturating_sub(1);
                    let index =
                        Some(usize::try_from(sequence.wrapping_sub(first)).unwrap_or_default());
                    refusal.get_or_insert(Refusal { index, errno, text });
                }
                Answer::Done | Answer::Interrupted => {}
            })?;
        }
        refusal.map_or(Ok(replies), Err)
    }

    /// Asks for everything of a kind, and hands each on. Begins again if it changed meanwhile, so
    /// that something may be handed on twice.
    pub(crate) fn dump(
        &mut self,
        message: &Message,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Refusal> {
        for _ in 0..DUMP_ATTEMPTS {
            let first = self.send(std::iter::once((message, message.flags | flags::DUMP)))?;
            let (mut done, mut interrupted) = (None, false);
            while done.is_none() {
                self.receive(first, |_, answer| match answer {
                    Answer::Data(payload) => each(payload),
                    Answer::Done | Answer::Result(Ok(())) => done = Some(Ok(())),
                    Answer::Interrupted => interrupted = true,
                    Answer::Result(Err((errno, text))) => {
                        done = Some(Err(Refusal {
                            index: None,
                            errno,
                            text,
                        }));
                    }
                })?;
            }
            match done {
                Some(Err(refusal)) if refusal.errno != Errno::INTR => return Err(refusal),
                Some(Ok(())) if !interrupted => return Ok(()),
                _ => {}
            }
        }
        Err(Errno::BUSY.into())
    }

    /// Sends messages as one transaction of a netfilter subsystem: all of them happen, or none.
    /// Returns every refusal, in order, so that the caller can tell which step it was.
    pub(crate) fn transact(
        &mut self,
        subsystem: u16,
        messages: &[Message],
    ) -> Result<(), Vec<Refusal>> {
        let Some(last) = messages.len().checked_sub(1) else {
            return Ok(());
        };
        let edge = |kind| {
            let mut message = Message::new(kind, 0, &[0, 0]);
            message.body.extend_from_slice(&subsystem.to_be_bytes());
            message
        };
        let (begin, end) = (edge(BATCH_BEGIN), edge(BATCH_END));
        let inner = messages.iter().enumerate().map(|(index, message)| {
            // One acknowledgement is enough: the kernel sends it after the verdict over all, and
            // refusals come unasked, before it.
            let ack = if index == last { flags::ACK } else { 0 };
            (message, message.flags | ack)
        });
        let framed = std::iter::once((&begin, begin.flags))
            .chain(inner)
            .chain(std::iter::once((&end, end.flags)));
        let first = self.send(framed).map_err(|errno| vec![errno.into()])?;
        let mut refusals = Vec::new();
        let mut complete = false;
        while !complete {
            self.receive(first, |sequence, answer| {
                let index = sequence
                    .wrapping_sub(first)
                    .checked_sub(1)
                    .and_then(|index| usize::try_from(index).ok());
                let Answer::Result(result) = answer else {
                    return;
                };
                // A refusal of the opening is one of everything; there may be nothing behind it.
                complete |= index.is_none_or(|index| index >= last);
                if let Err((errno, text)) = result {
                    refusals.push(Refusal { index, errno, text });
                }
            })
            .map_err(|errno| vec![errno.into()])?;
        }
        if refusals.is_empty() {
            Ok(())
        } else {
            Err(refusals)
        }
    }

    /// Sends messages in one packet; returns the number of the first, the others follow.
    fn send<'a>(
        &mut self,
        messages: impl Iterator<Item = (&'a Message, u16)>,
    ) -> Result<u32, Errno> {
        let first = self.sequence.wrapping_add(1);
        let mut packet = Vec::new();
        for (message, flags) in messages {
            self.sequence = self.sequence.wrapping_add(1);
            self.sent += 1;
            message.write(&mut packet, flags, self.sequence)?;
        }
        loop {
            match rustix::net::send(&self.fd, &packet, SendFlags::empty()) {
                Ok(_) => return Ok(first),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Receives one packet and hands on what in it answers the messages from `first` on. What is
    /// left of an earlier request that failed half-way is older, and dropped.
    fn receive(&mut self, first: u32, mut each: impl FnMut(u32, Answer<'_>)) -> Result<(), Errno> {
        let length = loop {
            match rustix::net::recv(&self.fd, self.buffer.as_mut_slice(), RecvFlags::TRUNC) {
                Ok((_, length)) => break length,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(Errno::TIMEDOUT),
                Err(errno) => return Err(errno),
            }
        };
        let mut rest = self.buffer.get(..length).ok_or(Errno::MSGSIZE)?;
        while let Some(received) = message::split(&mut rest) {
            if received.sequence.wrapping_sub(first) > u32::MAX / 2 {
                continue;
            }
            if received.flags & flags::DUMP_INTERRUPTED != 0 {
                each(received.sequence, Answer::Interrupted);
            }
            let answer = match received.kind {
                ERROR | DONE => result(&received),
                _ => Answer::Data(received.payload),
            };
            each(received.sequence, answer);
        }
        Ok(())
    }
}

/// What a received message means.
enum Answer<'a> {
    Data(&'a [u8]),
    Result(Result<(), (Errno, Option<String>)>),
    Interrupted,
    Done,
}

/// Reads an error, an acknowledgement (an error of 0) or the end of a dump.
fn result<'a>(received: &message::Received<'_>) -> Answer<'a> {
    let code = received
        .payload
        .first_chunk::<4>()
        .map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if code == 0 {
        return if received.kind == DONE {
            Answer::Done
        } else {
            Answer::Result(Ok(()))
        };
    }
    let errno = Errno::from_raw_os_error(code.saturating_neg());
    // Behind the code an error repeats the header of the request (16 bytes, NETLINK_CAP_ACK).
    let skip = if received.kind == DONE { 4 } else { 20 };
    let text = (received.flags & flags::ACK_TLVS != 0)
        .then(|| received.payload.get(skip..))
        .flatten()
        .and_then(|attributes| Reader(attributes).find(|(kind, _)| *kind == ERROR_TEXT))
        .map(|(_, text)| message::text(text));
    Answer::Result(Err((errno, text)))
}

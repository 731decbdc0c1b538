//! The frames of a process connection: JSON objects, one after the other, both ways.
//!
//! What a client sends is "the next JSON value", however it is cut into packets or padded, not
//! lines. The decoder finds the end of each object without reading any byte twice, so one large
//! frame costs no more than many small ones.

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::wire::WireTty;
use super::{base64, partial};
use crate::model::{Exit, Signal, WindowSize};
use crate::process::Control;

/// The largest frame that is not handed on piece by piece. Go clients send a whole in-memory input
/// as one frame, which is; only by hand could somebody write its `data` first.
const MAX_FRAME: usize = 64 << 20;

/// How much of a frame may wait for its end before what has arrived of its input is handed on.
const PARTIAL: usize = 1 << 20;

/// The largest piece of input handed on at once.
const PIECE: usize = 64 << 10;

/// Any frame; members that are absent are not meant.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Frame {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) process_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stream_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<String>,
    /// Our own: input that need not be text. Only between our client and our server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) signal: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tty: Option<WireTty>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exit_status: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// Bytes that are no frames: the connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame that is not a JSON object")]
    NotObject,
    #[error("a frame of more than {MAX_FRAME} bytes")]
    TooLong,
    #[error("a frame that cannot be read")]
    Json(#[from] serde_json::Error),
}

impl Frame {
    /// The first of a connection.
    pub(super) fn first(process: &str, stream: &str) -> Self {
        Self {
            process_id: Some(process.to_owned()),
            stream_id: Some(stream.to_owned()),
            ..Self::default()
        }
    }

    /// The last of a connection.
    pub(super) fn exit(process: &str, exit: Exit) -> Self {
        Self {
            process_id: Some(process.to_owned()),
            exit_status: Some(exit.code),
            ..Self::default()
        }
    }

    /// The last of a connection whose process was lost.
    pub(super) fn failure(process: &str, text: &str) -> Self {
        Self {
            process_id: Some(process.to_owned()),
            error: Some(text.to_owned()),
            ..Self::default()
        }
    }

    /// Its bytes. Serializing plain text and numbers cannot fail; were it to, nothing is sent.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        super::wire::encode(self).unwrap_or_default()
    }

    /// What the user wants. Frames that mean nothing are ignored.
    pub(super) fn wishes(self) -> Vec<Control> {
        if let Some(tty) = self.tty {
            let size = tty.window_size.map(WindowSize::from);
            return size.map(Control::Resize).into_iter().collect();
        }
        if self.source.is_some() {
            let input = match (self.data, self.base64) {
                (Some(text), _) => Bytes::from(text),
                (None, Some(text)) => match base64::decode(&text) {
                    Some(bytes) => Bytes::from(bytes),
                    None => return Vec::new(),
                },
                (None, None) => return vec![Control::CloseStdin],
            };
            return pieces(input);
        }
        match self.signal {
            Some(0) => vec![Control::Signal(Signal::Terminate)],
            Some(1) => vec![Control::Signal(Signal::Kill)],
            _ => Vec::new(),
        }
    }
}

fn pieces(mut input: Bytes) -> Vec<Control> {
    let mut pieces = Vec::with_capacity(input.len().div_ceil(PIECE));
    while !input.is_empty() {
        pieces.push(Control::Stdin(input.split_to(input.len().min(PIECE))));
    }
    pieces
}

/// Finds frames in what arrives.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: BytesMut,
    /// Bytes of `buffer` that were looked at.
    seen: usize,
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The length from which on it is worth looking for input to hand on.
    look_again: usize,
}

impl Decoder {
    /// Starts with what came along with the request.
    pub(crate) fn new(early: BytesMut) -> Self {
        Self {
            buffer: early,
            ..Self::default()
        }
    }

    /// Where to put what arrives.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next whole frame, if it has arrived.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            let blank = |byte: &u8| byte.is_ascii_whitespace();
            if self.depth == 0 && self.seen == 0 {
                let padding = self.buffer.iter().take_while(|byte| blank(byte)).count();
                self.buffer.advance(padding);
                match self.buffer.first() {
                    None => return Ok(None),
                    Some(b'{') => {}
                    Some(_) if b"null".starts_with(&self.buffer) && self.buffer.len() < 4 => {
                        return Ok(None);
                    }
                    // A frame to Go, though an empty one.
                    Some(_) if self.buffer.starts_with(b"null") => {
                        self.buffer.advance(4);
                        continue;
                    }
                    Some(_) => return Err(FrameError::NotObject),
                }
            }
            let Some(end) = self.end() else {
                return match self.buffer.len() {
                    ..=PARTIAL => Ok(None),
                    length => match self.part() {
                        Some(frame) => Ok(Some(frame)),
                        None if length > MAX_FRAME => Err(FrameError::TooLong),
                        None => Ok(None),
                    },
                };
            };
            let object = self.buffer.split_to(end);
            self.seen = 0;
            // Go reads bytes that are no UTF-8 as replacement characters.
            return Ok(Some(match serde_json::from_slice(&object) {
                Err(_) if std::str::from_utf8(&object).is_err() => {
                    serde_json::from_str(&String::from_utf8_lossy(&object))?
                }
                other => other?,
            }));
        }
    }

    /// A frame with as much of its input as has arrived; what comes belongs to the rest of it.
    fn part(&mut self) -> Option<Frame> {
        // Looking again at each packet of what cannot be cut would take time without bound.
        if self.buffer.len() < self.look_again {
            return None;
        }
        let Some(cut) = partial::take(&mut self.buffer) else {
            self.look_again = self.buffer.len() * 2;
            return None;
        };
        self.look_again = 0;
        self.buffer = cut.rest;
        self.seen = self.buffer.len();
        Some(Frame {
            source: Some(0),
            data: Some(cut.text),
            ..Frame::default()
        })
    }

    /// Looks on; the length of the object when its end was seen.
    fn end(&mut self) -> Option<usize> {
        for (offset, byte) in self.buffer[self.seen..].iter().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            if self.depth == 0 {
                return Some(self.seen + offset + 1);
            }
        }
        self.seen = self.buffer.len();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_all(bytes: &[u8], packet: usize) -> Vec<Control> {
        let mut decoder = Decoder::default();
        let mut wishes = Vec::new();
        for part in bytes.chunks(packet) {
            decoder.buffer().extend_from_slice(part);
            while let Some(frame) = decoder.next().unwrap() {
                wishes.extend(frame.wishes());
            }
        }
        assert!(decoder.buffer().iter().all(u8::is_ascii_whitespace));
        wishes
    }

    #[test]
    fn frames_are_values_not_lines() {
        let bytes = concat!(
            " \n{\"process_id\":\"p\",\"source\":0,\"data\":\"hi }{ \\\" \\\\\"}",
            "{\"process_id\":\"p\",\"signal\":0} null \n\n {}",
            "{\n\"process_id\":\"p\",\"tty\":{\"window_size\":{\"columns\":80,\"rows\":24}}}",
            "{\"process_id\":\"p\",\"tty\":{}}{\"signal\":7}{\"source\":2,\"data\":\"\"}",
            "{\"signal\":1,\"extra\":[{}]}{\"process_id\":\"p\",\"source\":0,\"data\":null}\n",
        );
        let size = WindowSize {
            columns: 80,
            rows: 24,
        };
        for packet in [1, 2, 3, 7, 1000] {
            assert_eq!(
                decode_all(bytes.as_bytes(), packet),
                [
                    Control::Stdin("hi }{ \" \\".into()),
                    Control::Signal(Signal::Terminate),
                    Control::Resize(size),
                    Control::Signal(Signal::Kill),
                    Control::CloseStdin,
                ]
            );
        }
    }

    #[test]
    fn a_large_input_is_one_frame_and_many_pieces() {
        let input = "x".repeat(3 * PIECE + 1);
        let frame = format!("{{\"source\":0,\"data\":\"{input}\"}}");
        let wishes = decode_all(frame.as_bytes(), 32 << 10);
        assert_eq!(wishes.len(), 4);
    }

    #[test]
    fn a_frame_of_any_size_takes_little_memory() {
        let mut decoder = Decoder::default();
        decoder
            .buffer()
            .extend_from_slice(b"{\"process_id\":\"p\",\"source\":0,\"data\":\"");
        let packet = "0123456789é\\n".repeat(1 << 12);
        let packets = 2 * MAX_FRAME / packet.len();
        let (mut bytes, mut most) = (0, 0);
        let mut count = |decoder: &mut Decoder, most: &mut usize| {
            while let Some(frame) = decoder.next().unwrap() {
                for wish in frame.wishes() {
                    match wish {
                        Control::Stdin(piece) => bytes += piece.len(),
                        other => panic!("{other:?}"),
                    }
                }
            }
            *most = (*most).max(decoder.buffer().len());
        };
        for _ in 0..packets {
            decoder.buffer().extend_from_slice(packet.as_bytes());
            count(&mut decoder, &mut most);
        }
        decoder.buffer().extend_from_slice(b"end\"}");
        count(&mut decoder, &mut most);
        assert_eq!(bytes, packets * "0123456789é\n".len() * (1 << 12) + 3);
        assert!(most <= PARTIAL + packet.len(), "{most}");
        // What is not input has an end.
        let mut decoder = Decoder::new(BytesMut::from(&b"{\"process_id\":\""[..]));
        let refused = loop {
            decoder.buffer().extend_from_slice(packet.as_bytes());
            match decoder.next() {
                Ok(None) => {}
                other => break other,
            }
        };
        assert!(matches!(refused, Err(FrameError::TooLong)));
    }

    #[test]
    fn binary_input_of_our_client_arrives() {
        let frame = Frame {
            source: Some(0),
            base64: Some(base64::encode(&[0, 255, 128])),
            ..Frame::default()
        };
        let wishes = decode_all(&frame.bytes(), 5);
        assert_eq!(wishes, [Control::Stdin(Bytes::from_static(&[0, 255, 128]))]);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in ["x", "1", "[]", "{\"source\":}", "{]", "nulx"] {
            let mut decoder = Decoder::new(BytesMut::from(bytes));
            assert!(decoder.next().is_err(), "{bytes}");
        }
        let mut decoder = Decoder::new(BytesMut::from(&b"{\"source\":0,\"data\":\"\xff\"}"[..]));
        let wishes = decoder.next().unwrap().unwrap().wishes();
        assert_eq!(wishes, [Control::Stdin("\u{fffd}".into())]);
    }

    #[test]
    fn exits_are_written_as_go_writes_them() {
        let exit = Exit {
            code: 0,
            out_of_memory: false,
        };
        assert_eq!(
            Frame::exit("7b1e", exit).bytes(),
            b"{\"process_id\":\"7b1e\",\"exit_status\":0}\n"
        );
        assert_eq!(
            Frame::first("7b1e", "42").bytes(),
            b"{\"process_id\":\"7b1e\",\"stream_id\":\"42\"}\n"
        );
    }
}

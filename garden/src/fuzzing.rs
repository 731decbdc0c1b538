//! What the fuzz targets call (`rootfs/fuzz`, `ci/fuzz`): the parts that read foreign bytes, with what
//! must hold for any of them. Only built with the feature `fuzzing`, and for tests.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::api::frames::{Decoder, Frame};
use crate::api::head::read_head;
use crate::api::partial;

/// The beginning of a connection: what it is for does not depend on how it is cut into packets, and no
/// byte after its head is lost.
pub fn head(bytes: &[u8]) {
    let (&cut, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    let whole = first_head(bytes, bytes.len().max(1));
    let cut = first_head(bytes, usize::from(cut).max(1));
    assert_eq!(whole, cut);
    let (head, rest) = whole;
    assert!(bytes.ends_with(&rest));
    if head.is_none() {
        assert_eq!(rest, bytes, "another parser is to see all of it");
    }
}

/// What the head is, and all that comes after it.
fn first_head(bytes: &[u8], packet: usize) -> (Option<String>, Vec<u8>) {
    let mut stream = Packets { bytes, packet };
    let mut buffer = BytesMut::new();
    let head = now(read_head(&mut stream, &mut buffer)).unwrap_or_default();
    let mut rest = buffer.to_vec();
    rest.extend_from_slice(stream.bytes);
    let Some(head) = head else {
        return (None, rest);
    };
    let shown = format!("{head:?}");
    // A body that is cut off is an error, and nothing else.
    if let Ok(body) = now(head.read_body(&mut stream, &mut buffer)) {
        assert_eq!(&rest[..body.len()], &body[..]);
    }
    (Some(shown), rest)
}

/// The frames of a process: the same whether they come in one packet or many; and what is handed on is
/// not more than what came.
pub fn frames(bytes: &[u8]) {
    let (&cut, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    let whole = decoded(bytes, bytes.len().max(1));
    assert_eq!(whole, decoded(bytes, usize::from(cut).max(1)));
    partly(bytes);
    for frame in &whole.0 {
        // A byte that is no text becomes a character of three.
        let length = frame.data.as_ref().map_or(0, String::len);
        assert!(length <= 3 * bytes.len());
    }
}

/// Input that is handed on before its frame is whole is what the whole frame would have said.
fn partly(bytes: &[u8]) {
    let mut arrived = BytesMut::from(bytes);
    let Some(cut) = partial::take(&mut arrived) else {
        return;
    };
    let closed = |frame: &[u8]| {
        decoded(&[frame, b"\"}"].concat(), usize::MAX)
            .0
            .into_iter()
            .next()
    };
    if let (Ok(_), Some(whole)) = (std::str::from_utf8(bytes), closed(bytes)) {
        let rest = closed(&cut.rest)
            .and_then(|frame| frame.data)
            .unwrap_or_default();
        assert_eq!(whole.data, Some(cut.text + &rest));
    }
}

/// The frames, and whether the rest was refused.
fn decoded(bytes: &[u8], packet: usize) -> (Vec<Frame>, bool) {
    let mut decoder = Decoder::new(BytesMut::new());
    let mut frames = Vec::new();
    for piece in bytes.chunks(packet) {
        decoder.buffer().extend_from_slice(piece);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}

/// The result of what never has to wait.
fn now<T>(work: impl Future<Output = T>) -> T {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(work).poll(&mut context) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("it waits for something"),
    }
}

/// A stream whose bytes come in packets of one size; what is written to it is dropped.
struct Packets<'a> {
    bytes: &'a [u8],
    packet: usize,
}

impl AsyncRead for Packets<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.bytes.len().min(self.packet).min(buf.remaining());
        let (piece, rest) = self.bytes.split_at(length);
        buf.put_slice(piece);
        self.bytes = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Packets<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Pieces that heads and frames are made of, so that whole ones come up.
    fn pieces() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => prop::sample::select(vec![
                "POST /containers/h/processes HTTP/1.1\r\n", "GET /ping HTTP/1.1\r\n",
                "Host: api\r\n", "Content-Length: 5\r\n", "Expect: 100-continue\r\n", "\r\n",
                "{", "}", "\"", "\\", "{\"source\":0,\"data\":\"", "\"signal\":1", "null", " ",
                "{\"process_id\":\"p\",\"tty\":{\"window_size\":{}}}", "é", "[", "]", ",",
            ]).prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..8),
        ];
        prop::collection::vec(piece, 0..12).prop_map(|all| all.concat())
    }

    proptest! {
        #[test]
        fn heads_are_what_they_are(cut in any::<u8>(), bytes in pieces()) {
            super::head(&[vec![cut], bytes].concat());
        }

        #[test]
        fn frames_are_what_they_are(cut in any::<u8>(), bytes in pieces()) {
            super::frames(&[vec![cut], bytes].concat());
        }
    }
}

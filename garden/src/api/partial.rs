//! Input that is handed on before its frame is whole.
//!
//! Go's client sends a whole in-memory input as one frame, of any size. Holding all of it would let
//! one client take all memory, so the decoder asks here for what can be taken out of a frame whose
//! `data` has not ended: the text so far. What stays is a smaller frame with the rest of it.

use bytes::{Buf, BytesMut};

/// A piece of `data` that was cut out of a frame.
pub(crate) struct Cut {
    /// The text.
    pub(crate) text: String,
    /// The frame without it.
    pub(crate) rest: BytesMut,
}

/// Takes the text so far out of a frame of input that has not ended. `None` when it is no frame of
/// input, or what has arrived of it is not its `data`.
pub(crate) fn take(frame: &mut BytesMut) -> Option<Cut> {
    let start = data_start(frame)?;
    let content = &frame[start..];
    let length = whole(content);
    let text = unescaped(&content[..length])?;
    let mut rest = frame.split_to(start);
    frame.advance(length);
    rest.extend_from_slice(frame);
    frame.clear();
    Some(Cut { text, rest })
}

/// Where the text of `data` begins, if the frame is one of input and ends within that text.
fn data_start(frame: &[u8]) -> Option<usize> {
    let mut at = skip_blank(frame, 0);
    at = expect(frame, at, b'{')?;
    let mut input = false;
    loop {
        let key_start = expect(frame, skip_blank(frame, at), b'"')?;
        let key_end = string_end(frame, key_start)?;
        let key = &frame[key_start..key_end];
        at = expect(frame, skip_blank(frame, key_end + 1), b':')?;
        at = skip_blank(frame, at);
        match frame.get(at)? {
            b'"' => match string_end(frame, at + 1) {
                Some(end) => at = end + 1,
                None => return (input && key == b"data").then_some(at + 1),
            },
            // No frame of input has members with members of their own.
            b'{' | b'[' => return None,
            _ => {
                let end = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b',' | b'}');
                let length = frame[at..].iter().position(end)?;
                input |= key == b"source" && &frame[at..at + length] != b"null";
                at += length;
            }
        }
        at = expect(frame, skip_blank(frame, at), b',')?;
    }
}

fn skip_blank(frame: &[u8], at: usize) -> usize {
    let rest = frame.get(at..).unwrap_or_default();
    at + rest
        .iter()
        .take_while(|byte| byte.is_ascii_whitespace())
        .count()
}

fn expect(frame: &[u8], at: usize, byte: u8) -> Option<usize> {
    (frame.get(at) == Some(&byte)).then_some(at + 1)
}

/// Where a string ends that begins before `at`.
fn string_end(frame: &[u8], at: usize) -> Option<usize> {
    let mut escaped = false;
    for (offset, byte) in frame.get(at..)?.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at + offset),
            _ => {}
        }
    }
    None
}

/// How much of a string's content can be read by itself: all but an escape, a pair of escapes, or a
/// character that its end has cut.
fn whole(content: &[u8]) -> usize {
    let mut at = 0;
    let mut safe = 0;
    while let Some(byte) = content.get(at) {
        let length = match byte {
            b'\\' if content.get(at + 1) == Some(&b'u') => {
                // The first half of a pair means nothing without the second.
                let high = matches!(content.get(at + 2..at + 4), Some([b'd' | b'D', c])
                    if matches!(c, b'8' | b'9' | b'a' | b'b' | b'A' | b'B'));
                if high { 12 } else { 6 }
            }
            b'\\' => 2,
            0x00..=0x7f => 1,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        at += length;
        if at <= content.len() {
            safe = at;
        }
    }
    safe
}

/// Text out of a piece of a JSON string, read as Go does: what is no UTF-8 becomes U+FFFD.
fn unescaped(content: &[u8]) -> Option<String> {
    let mut quoted = Vec::with_capacity(content.len() + 2);
    quoted.push(b'"');
    quoted.extend_from_slice(content);
    quoted.push(b'"');
    let text = serde_json::from_slice(&quoted);
    text.or_else(|_| serde_json::from_str(&String::from_utf8_lossy(&quoted)))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(frame: &str) -> Option<(String, String)> {
        let cut = take(&mut BytesMut::from(frame))?;
        Some((cut.text, String::from_utf8_lossy(&cut.rest).into_owned()))
    }

    #[test]
    fn what_has_arrived_is_taken() {
        let rest = "{\"process_id\":\"p\",\"source\":0,\"data\":\"";
        for (content, text, left) in [
            ("abc", "abc", ""),
            ("abc\\", "abc", "\\"),
            ("a\\n\\\"b", "a\n\"b", ""),
            ("a\\u00", "a", "\\u00"),
            ("a\\u00e9", "aé", ""),
            ("\\ud83d\\ude", "", "\\ud83d\\ude"),
            ("\\ud83d\\ude00x", "😀x", ""),
            ("é", "é", ""),
        ] {
            let frame = format!("{rest}{content}");
            assert_eq!(
                cut(&frame),
                Some((text.to_owned(), format!("{rest}{left}"))),
                "{content}"
            );
        }
        let mut half = BytesMut::from(format!("{rest}x").as_bytes());
        half.extend_from_slice(&[0xc3]);
        let half = take(&mut half).unwrap();
        assert_eq!(half.text, "x");
        assert_eq!(half.rest.last(), Some(&0xc3));
    }

    #[test]
    fn only_input_whose_data_is_arriving() {
        for frame in [
            "{\"data\":\"abc",
            "{\"source\":null,\"data\":\"abc",
            "{\"source\":0,\"base64\":\"abc",
            "{\"source\":0,\"data\":\"abc\"",
            "{\"source\":0,\"data\":\"abc\"}",
            "{\"tty\":{},\"source\":0,\"data\":\"abc",
            "{\"source\":0,\"da",
            "{\"source\":0",
            "{ ",
            "",
            "[\"source\"",
        ] {
            assert!(cut(frame).is_none(), "{frame}");
        }
        assert!(cut(" { \"source\" : 2 , \"data\" : \"x").is_some());
    }
}

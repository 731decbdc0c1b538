//! Netlink messages and attributes, written and read (netlink(7)).
//!
//! Pure. What is read comes from the kernel, and is not trusted to be well formed all the same:
//! nothing here indexes, everything ends early.

use rustix::io::Errno;

/// Flags of a message (`NLM_F_…`).
pub(crate) mod flags {
    pub(crate) const REQUEST: u16 = 0x1;
    pub(crate) const ACK: u16 = 0x4;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const EXCLUSIVE: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
    /// Of answers.
    pub(crate) const DUMP_INTERRUPTED: u16 = 0x10;
    pub(crate) const ACK_TLVS: u16 = 0x200;
}

const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that are flags.
const TYPE_MASK: u16 = 0x3fff;

/// A request without its header.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    /// Header of the family and attributes.
    pub(crate) body: Vec<u8>,
    /// An attribute grew beyond what its length can say: the message must not be sent.
    overflown: bool,
}

impl Message {
    /// A request whose family has this header; `NLM_F_REQUEST` is added to the flags.
    pub(crate) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        Self {
            kind,
            flags: flags | flags::REQUEST,
            body: header.to_vec(),
            overflown: false,
        }
    }

    /// Appends the message to a packet.
    pub(crate) fn write(
        &self,
        packet: &mut Vec<u8>,
        flags: u16,
        sequence: u32,
    ) -> Result<(), Errno> {
        let length = u32::try_from(HEADER + self.body.len()).map_err(|_| Errno::MSGSIZE)?;
        if self.overflown {
            return Err(Errno::MSGSIZE);
        }
        packet.extend_from_slice(&length.to_ne_bytes());
        packet.extend_from_slice(&self.kind.to_ne_bytes());
        packet.extend_from_slice(&flags.to_ne_bytes());
        packet.extend_from_slice(&sequence.to_ne_bytes());
        packet.extend_from_slice(&0u32.to_ne_bytes());
        packet.extend_from_slice(&self.body);
        pad(packet);
        Ok(())
    }

    /// Adds an attribute.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let start = self.open(kind);
        self.body.extend_from_slice(value);
        self.close(start);
        self
    }

    /// Adds a text with the zero at its end that the kernel wants.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let start = self.open(kind);
        self.body.extend_from_slice(value.as_bytes());
        self.body.push(0);
        self.close(start);
        self
    }

    /// Adds a number in this machine's order, as links and routes have it.
    pub(crate) fn native(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds a number in the network's order, as netfilter has it.
    pub(crate) fn big(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds an attribute made of attributes.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.open(kind | NESTED);
        fill(self);
        self.close(start);
        self
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.body.len();
        self.body.extend_from_slice(&[0, 0]);
        self.body.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        match (
            u16::try_from(self.body.len() - start),
            self.body.get_mut(start..start + 2),
        ) {
            (Ok(length), Some(place)) => place.copy_from_slice(&length.to_ne_bytes()),
            _ => self.overflown = true,
        }
        pad(&mut self.body);
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A received message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// Takes the next message off a packet; none at the end, and where it is no message.
pub(crate) fn split<'a>(packet: &mut &'a [u8]) -> Option<Received<'a>> {
    let length = usize::try_from(u32_at(packet, 0)?).ok()?;
    let received = Received {
        kind: u16_at(packet, 4)?,
        flags: u16_at(packet, 6)?,
        sequence: u32_at(packet, 8)?,
        payload: packet.get(HEADER..length)?,
    };
    *packet = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(received)
}

/// Reads attributes one after the other; ends where there is no further one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    /// The attributes behind a family's header.
    pub(crate) fn behind(payload: &'a [u8], header: usize) -> Self {
        Self(payload.get(header..).unwrap_or_default())
    }

    /// The value of one attribute.
    pub(crate) fn get(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find(|(found, _)| *found == kind)
            .map(|(_, value)| value)
    }

    /// The attributes within one attribute; none if there is no such one.
    pub(crate) fn inner(self, kind: u16) -> Self {
        Self(self.get(kind).unwrap_or_default())
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// A text of the kernel, up to its zero.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// A number in this machine's order.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_ne_bytes(*bytes))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut message = Message::new(7, flags::CREATE, &[1, 0, 0, 0]);
        message.text(1, "abc").nest(2, |inner| {
            inner.big(3, 5).native(4, 6);
        });
        let mut packet = Vec::new();
        message.write(&mut packet, message.flags, 9).unwrap();
        message.write(&mut packet, message.flags, 10).unwrap();
        let mut rest = packet.as_slice();
        let first = split(&mut rest).unwrap();
        assert_eq!(
            (first.kind, first.flags, first.sequence),
            (7, flags::CREATE | flags::REQUEST, 9)
        );
        let attributes = Reader::behind(first.payload, 4);
        assert_eq!(text(attributes.get(1).unwrap()), "abc");
        assert_eq!(attributes.inner(2).get(3), Some(&5u32.to_be_bytes()[..]));
        assert_eq!(u32_at(attributes.inner(2).get(4).unwrap(), 0), Some(6));
        assert!(attributes.get(9).is_none());
        assert_eq!(split(&mut rest).unwrap().sequence, 10);
        assert!(split(&mut rest).is_none());
    }

    #[test]
    fn an_attribute_that_is_too_long_is_never_sent() {
        let mut message = Message::new(7, 0, &[]);
        message.nest(1, |inner| {
            inner.bytes(2, &[0; 40_000]).bytes(2, &[0; 40_000]);
        });
        assert_eq!(message.write(&mut Vec::new(), 0, 1), Err(Errno::MSGSIZE));
    }

    proptest! {
        #[test]
        fn any_bytes_come_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = bytes.as_slice();
            let mut count = 0;
            while let Some(received) = split(&mut rest) {
                count += 1 + Reader(received.payload).count();
            }
            prop_assert!(count <= bytes.len());
        }
    }
}

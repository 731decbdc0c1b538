//! Expressions of the packet filter: what a rule is made of.
//!
//! A rule of the kernel is a small program: values are loaded into registers, compared or looked
//! up, and a verdict ends it. [`Program`] appends one expression after the other; each method
//! documents itself by the statement of nft(8) that it stands for. Registers are the sixteen of
//! 32 bits; a value takes as many as it needs, and a key of several parts is loaded side by side.
//!
//! Pure. The numbers are those of `linux/netfilter/nf_tables.h`.

use crate::netlink::message::Message;

/// Attribute types that several expressions share.
const LIST_ELEMENT: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// Where a loaded value goes, counted in 32-bit registers.
pub(super) fn register(index: u32) -> u32 {
    8 + index
}

/// The register of verdicts.
const VERDICT: u32 = 0;

/// What the kernel knows of a packet besides its bytes.
#[derive(Clone, Copy)]
pub(super) enum Meta {
    InterfaceIn = 6,
    InterfaceOut = 7,
    Family = 15,
    Protocol = 16,
}

/// Whose header an offset counts from.
#[derive(Clone, Copy)]
pub(super) enum Base {
    Network = 1,
    Transport = 2,
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// `NFPROTO_…`, as `meta nfproto` and NAT have it.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    /// Bytes of an address.
    pub(super) fn length(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    fn source(self) -> u32 {
        match self {
            Self::V4 => 12,
            Self::V6 => 8,
        }
    }

    fn destination(self) -> u32 {
        match self {
            Self::V4 => 16,
            Self::V6 => 24,
        }
    }
}

/// How a rule ends.
#[derive(Clone, Copy)]
pub(super) enum Verdict<'a> {
    Drop,
    Accept,
    Jump(&'a str),
    Goto(&'a str),
}

/// A set that is looked into: by name, and by number within the transaction that makes it.
#[derive(Clone, Copy)]
pub(super) struct SetRef<'a> {
    pub(super) name: &'a str,
    pub(super) id: Option<u32>,
}

impl<'a> From<&'a str> for SetRef<'a> {
    fn from(name: &'a str) -> Self {
        Self { name, id: None }
    }
}

/// The expressions of a rule, written into its message.
pub(super) struct Program<'a>(pub(super) &'a mut Message);

impl Program<'_> {
    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Message)) -> &mut Self {
        self.0.nest(LIST_ELEMENT, |expression| {
            expression.text(1, name).nest(2, fill);
        });
        self
    }

    /// Loads what the kernel knows.
    pub(super) fn meta(&mut self, key: Meta, to: u32) -> &mut Self {
        self.expression("meta", |data| {
            data.big(1, register(to)).big(2, key as u32);
        })
    }

    /// Loads bytes of the packet.
    pub(super) fn payload(&mut self, base: Base, offset: u32, length: u32, to: u32) -> &mut Self {
        self.expression("payload", |data| {
            data.big(1, register(to))
                .big(2, base as u32)
                .big(3, offset)
                .big(4, length);
        })
    }

    fn compare(&mut self, from: u32, operation: u32, value: &[u8]) -> &mut Self {
        self.expression("cmp", |data| {
            data.big(1, register(from))
                .big(2, operation)
                .nest(3, |inner| {
                    inner.bytes(DATA_VALUE, value);
                });
        })
    }

    /// Goes on if a register has this value.
    pub(super) fn equals(&mut self, from: u32, value: &[u8]) -> &mut Self {
        self.compare(from, EQUAL, value)
    }

    /// Goes on if a register is between two values, both included.
    pub(super) fn between(&mut self, from: u32, start: &[u8], end: &[u8]) -> &mut Self {
        if start == end {
            return self.equals(from, start);
        }
        self.expression("range", |data| {
            data.big(1, register(from)).big(2, EQUAL);
            for (kind, value) in [(3, start), (4, end)] {
                data.nest(kind, |inner| {
                    inner.bytes(DATA_VALUE, value);
                });
            }
        })
    }

    /// Keeps the bits of a mask.
    pub(super) fn mask(&mut self, at: u32, mask: &[u8]) -> &mut Self {
        self.expression("bitwise", |data| {
            let length = u32::try_from(mask.len()).unwrap_or_default();
            data.big(1, register(at))
                .big(2, register(at))
                .big(3, length);
            for (kind, value) in [(4, mask), (5, &vec![0; mask.len()])] {
                data.nest(kind, |inner| {
                    inner.bytes(DATA_VALUE, value);
                });
            }
        })
    }

    /// `@set`: goes on if the key is in the set.
    pub(super) fn is_in(&mut self, from: u32, set: SetRef<'_>) -> &mut Self {
        self.lookup(from, set, None, false)
    }

    /// `!= @set`: goes on if it is not.
    pub(super) fn is_not_in(&mut self, from: u32, set: SetRef<'_>) -> &mut Self {
        self.lookup(from, set, None, true)
    }

    /// `map @set`: loads what the map has for the key; ends the rule if it has nothing.
    pub(super) fn map(&mut self, from: u32, set: SetRef<'_>, to: u32) -> &mut Self {
        self.lookup(from, set, Some(register(to)), false)
    }

    /// `vmap @set`: does what the map says for the key; ends the rule if it says nothing.
    pub(super) fn verdict_map(&mut self, from: u32, set: SetRef<'_>) -> &mut Self {
        self.lookup(from, set, Some(VERDICT), false)
    }

    fn lookup(&mut self, from: u32, set: SetRef<'_>, to: Option<u32>, inverted: bool) -> &mut Self {
        self.expression("lookup", |data| {
            data.text(1, set.name).big(2, register(from));
            if let Some(to) = to {
                data.big(3, to);
            }
            if let Some(id) = set.id {
                data.big(4, id);
            }
            if inverted {
                data.big(5, 1);
            }
        })
    }

    /// Ends the rule with a verdict.
    pub(super) fn verdict(&mut self, verdict: Verdict<'_>) -> &mut Self {
        self.expression("immediate", |data| {
            data.big(1, VERDICT)
                .nest(2, |inner| write_verdict(inner, verdict));
        })
    }

    /// `counter`.
    pub(super) fn counter(&mut self) -> &mut Self {
        self.expression("counter", |data| {
            data.bytes(1, &0u64.to_be_bytes())
                .bytes(2, &0u64.to_be_bytes());
        })
    }

    /// `log prefix`, as a warning in the kernel's log.
    pub(super) fn log(&mut self, prefix: &str) -> &mut Self {
        self.expression("log", |data| {
            data.text(2, prefix);
        })
    }

    /// `reject with icmpx`.
    pub(super) fn reject(&mut self, why: Reject) -> &mut Self {
        self.expression("reject", |data| {
            data.big(1, 2).bytes(2, &[why as u8]);
        })
    }

    /// `masquerade`.
    pub(super) fn masquerade(&mut self) -> &mut Self {
        self.expression("masq", |_| {})
    }

    /// `dnat to` the address and the port in two registers.
    pub(super) fn dnat(&mut self, family: Family, address: u32, port: u32) -> &mut Self {
        self.expression("nat", |data| {
            data.big(1, 1)
                .big(2, u32::from(family.number()))
                .big(3, register(address))
                .big(5, register(port));
        })
    }

    /// `ct state established,related`.
    pub(super) fn is_established(&mut self) -> &mut Self {
        // Bits of the connection's state, as in nf_conntrack_common.h.
        self.connection(0, 2 | 4)
    }

    /// `ct status dnat`.
    pub(super) fn was_redirected(&mut self) -> &mut Self {
        self.connection(2, 1 << 5)
    }

    fn connection(&mut self, key: u32, bits: u32) -> &mut Self {
        self.expression("ct", |data| {
            data.big(1, register(0)).big(2, key);
        })
        .mask(0, &bits.to_ne_bytes())
        .compare(0, NOT_EQUAL, &[0; 4])
    }

    /// `meta nfproto`: only packets of this family go on.
    pub(super) fn family(&mut self, family: Family) -> &mut Self {
        self.meta(Meta::Family, 0).equals(0, &[family.number()])
    }

    /// `meta l4proto`: only packets of this protocol go on.
    pub(super) fn protocol(&mut self, number: u8) -> &mut Self {
        self.meta(Meta::Protocol, 0).equals(0, &[number])
    }

    /// Loads the address that a packet comes from.
    pub(super) fn source(&mut self, family: Family, to: u32) -> &mut Self {
        self.payload(Base::Network, family.source(), family.length(), to)
    }

    /// Loads the address that a packet goes to.
    pub(super) fn destination(&mut self, family: Family, to: u32) -> &mut Self {
        self.payload(Base::Network, family.destination(), family.length(), to)
    }

    /// Loads the port that a packet goes to.
    pub(super) fn destination_port(&mut self, to: u32) -> &mut Self {
        self.payload(Base::Transport, 2, 2, to)
    }

    /// Loads an interface and the source beside it: the key by which a container's own packets
    /// are known.
    pub(super) fn home(&mut self, family: Family, interface: Meta) -> &mut Self {
        // A name takes 16 bytes: four registers.
        self.family(family).meta(interface, 0).source(family, 4)
    }
}

/// What the sender of a rejected packet is told, in either family's words.
#[derive(Clone, Copy)]
pub(super) enum Reject {
    PortUnreachable = 1,
    AdministrativelyProhibited = 3,
}

/// Writes a verdict into the data of an expression or an element.
pub(super) fn write_verdict(data: &mut Message, verdict: Verdict<'_>) {
    data.nest(DATA_VERDICT, |inner| match verdict {
        Verdict::Drop => {
            inner.big(1, 0);
        }
        Verdict::Accept => {
            inner.big(1, 1);
        }
        Verdict::Jump(chain) => {
            inner.bytes(1, &(-3i32).to_be_bytes()).text(2, chain);
        }
        Verdict::Goto(chain) => {
            inner.bytes(1, &(-4i32).to_be_bytes()).text(2, chain);
        }
    });
}

/// Writes a plain value into the data of an element.
pub(super) fn write_value(data: &mut Message, value: &[u8]) {
    data.bytes(DATA_VALUE, value);
}

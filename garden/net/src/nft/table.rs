//! Messages that make and unmake the things of one table: chains, rules, sets, elements.
//!
//! Pure: a [`Table`] knows its name only. Messages are collected in a [`Changes`], which is what one
//! transaction carries, each with a name for its step, so that a refusal can be told.

use super::expr::{Program, Verdict, write_value, write_verdict};
use crate::netlink::message::{Message, flags};

/// `NFNL_SUBSYS_NFTABLES`.
pub(super) const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET`: one table for both families.
const INET: u8 = 1;

/// Elements in one message: an attribute's length has 16 bits, and an element at most 100 bytes.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// Kinds of messages (`NFT_MSG_…`).
pub(super) mod kind {
    pub(in super::super) const NEW_TABLE: u8 = 0;
    pub(in super::super) const DELETE_TABLE: u8 = 2;
    pub(in super::super) const NEW_CHAIN: u8 = 3;
    pub(in super::super) const GET_CHAIN: u8 = 4;
    pub(in super::super) const DELETE_CHAIN: u8 = 5;
    pub(in super::super) const NEW_RULE: u8 = 6;
    pub(in super::super) const GET_RULE: u8 = 7;
    pub(in super::super) const DELETE_RULE: u8 = 8;
    pub(in super::super) const NEW_SET: u8 = 9;
    pub(in super::super) const NEW_ELEMENTS: u8 = 12;
    pub(in super::super) const GET_ELEMENTS: u8 = 13;
    pub(in super::super) const DELETE_ELEMENTS: u8 = 14;
    pub(in super::super) const GET_SET: u8 = 10;
    pub(in super::super) const DELETE_SET: u8 = 11;
}

/// Flags of a set (`NFT_SET_…`).
pub(super) mod set_flags {
    pub(in super::super) const ANONYMOUS: u32 = 1;
    pub(in super::super) const CONSTANT: u32 = 2;
    pub(in super::super) const INTERVAL: u32 = 4;
    pub(in super::super) const MAP: u32 = 8;
    /// Of the key's parts each may be a range.
    pub(in super::super) const CONCATENATION: u32 = 0x80;
}

/// Types of data, by which nft(8) knows how to print a set.
pub(super) mod data_type {
    pub(in super::super) const IPV4: u32 = 7;
    pub(in super::super) const IPV6: u32 = 8;
    pub(in super::super) const PROTOCOL: u32 = 12;
    pub(in super::super) const SERVICE: u32 = 13;
    pub(in super::super) const INTERFACE: u32 = 41;
    pub(in super::super) const VERDICT: u32 = 0xffff_ff00;

    /// A key or value made of two.
    pub(in super::super) const fn pair(first: u32, second: u32) -> u32 {
        first << 6 | second
    }
}

/// How a set is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct SetKind {
    pub(super) flags: u32,
    pub(super) key_type: u32,
    /// Bytes of each part of the key.
    pub(super) parts: &'static [u32],
    /// Type and bytes of what a map maps to.
    pub(super) data: Option<(u32, u32)>,
}

impl SetKind {
    /// Bytes of a key: each part of several fills whole registers.
    fn key_length(&self) -> u32 {
        match self.parts {
            [only] => *only,
            several => several.iter().map(|part| part.next_multiple_of(4)).sum(),
        }
    }
}

/// A set's element.
#[derive(Debug, Clone)]
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    pub(super) value: Value,
}

/// What an element holds besides its key.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Nothing,
    /// The end of an interval, which no longer belongs to it.
    End,
    /// The last key of a range of keys.
    Until(Vec<u8>),
    Data(Vec<u8>),
    Jump(String),
}

/// Where a base chain listens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hook {
    /// `filter` or `nat`.
    pub(super) kind: &'static str,
    /// `NF_INET_…`.
    pub(super) number: u32,
    pub(super) priority: i32,
}

/// The messages of a transaction.
#[derive(Debug, Default, Clone)]
pub(super) struct Changes {
    pub(super) messages: Vec<Message>,
    steps: Vec<String>,
    sets: u32,
}

impl Changes {
    /// The step that a message is.
    pub(super) fn step(&self, index: Option<usize>) -> &str {
        index
            .and_then(|index| self.steps.get(index))
            .map_or("change the packet filter", String::as_str)
    }

    /// Leaves out messages.
    pub(super) fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        let mut index = 0..;
        self.messages.retain(|_| index.next().is_some_and(&keep));
        let mut index = 0..;
        self.steps.retain(|_| index.next().is_some_and(&keep));
    }

    fn push(&mut self, step: String, message: Message) {
        self.steps.push(step);
        self.messages.push(message);
    }

    fn next_set(&mut self) -> u32 {
        self.sets += 1;
        self.sets
    }
}

/// The table of one instance.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) name: String,
}

impl Table {
    /// A message about the table's things, with the table's name in attribute 1.
    pub(super) fn message(&self, kind: u8, flags: u16) -> Message {
        let mut message = Message::new(SUBSYSTEM << 8 | u16::from(kind), flags, &[INET, 0, 0, 0]);
        message.text(1, &self.name);
        message
    }

    pub(super) fn create(&self, changes: &mut Changes) {
        let message = self.message(kind::NEW_TABLE, flags::CREATE);
        changes.push(format!("make the table {}", self.name), message);
    }

    pub(super) fn delete(&self, changes: &mut Changes) {
        let message = self.message(kind::DELETE_TABLE, 0);
        changes.push(format!("remove the table {}", self.name), message);
    }

    /// A chain; with a hook it may be there already.
    pub(super) fn chain(
        &self,
        changes: &mut Changes,
        name: &str,
        hook: Option<Hook>,
        comment: Option<&str>,
        exclusive: bool,
    ) {
        let flags = if exclusive {
            flags::CREATE | flags::EXCLUSIVE
        } else {
            flags::CREATE
        };
        let mut message = self.message(kind::NEW_CHAIN, flags);
        message.text(3, name);
        if let Some(hook) = hook {
            message
                .nest(4, |inner| {
                    inner
                        .big(1, hook.number)
                        .bytes(2, &hook.priority.to_be_bytes());
                })
                .text(7, hook.kind);
        }
        if let Some(comment) = comment {
            // libnftables's own form: a type, a length, a text with its zero.
            let mut cut: String = comment.chars().take(60).collect();
            cut.push('\0');
            let mut data = vec![0, u8::try_from(cut.len()).unwrap_or(u8::MAX)];
            data.extend_from_slice(cut.as_bytes());
            message.bytes(12, &data);
        }
        changes.push(format!("make the chain {name}"), message);
    }

    pub(super) fn delete_chain(&self, changes: &mut Changes, name: &str) {
        let mut message = self.message(kind::DELETE_CHAIN, 0);
        message.text(3, name);
        changes.push(format!("remove the chain {name}"), message);
    }

    /// Removes all rules of a chain.
    pub(super) fn flush_chain(&self, changes: &mut Changes, name: &str) {
        let mut message = self.message(kind::DELETE_RULE, 0);
        message.text(2, name);
        changes.push(format!("empty the chain {name}"), message);
    }

    /// Adds a rule at the end of a chain.
    pub(super) fn rule(
        &self,
        changes: &mut Changes,
        chain: &str,
        fill: impl FnOnce(&mut Program<'_>),
    ) {
        self.write_rule(changes, chain, flags::APPEND, fill);
    }

    /// Adds a rule in front of all others of a chain.
    pub(super) fn rule_in_front(
        &self,
        changes: &mut Changes,
        chain: &str,
        fill: impl FnOnce(&mut Program<'_>),
    ) {
        self.write_rule(changes, chain, 0, fill);
    }

    fn write_rule(
        &self,
        changes: &mut Changes,
        chain: &str,
        place: u16,
        fill: impl FnOnce(&mut Program<'_>),
    ) {
        let mut message = self.message(kind::NEW_RULE, flags::CREATE | place);
        message
            .text(2, chain)
            .nest(4, |expressions| fill(&mut Program(expressions)));
        changes.push(format!("add a rule to the chain {chain}"), message);
    }

    pub(super) fn set(&self, changes: &mut Changes, name: &str, set: &SetKind) {
        let id = changes.next_set();
        self.write_set(changes, name, id, set);
    }

    /// A set without a name, for one rule of this transaction; it goes when the rule goes.
    pub(super) fn anonymous_set(
        &self,
        changes: &mut Changes,
        key_type: u32,
        parts: &'static [u32],
        elements: &[Element],
    ) -> u32 {
        let id = changes.next_set();
        let set = SetKind {
            flags: set_flags::ANONYMOUS | set_flags::CONSTANT | set_flags::INTERVAL,
            key_type,
            parts,
            data: None,
        };
        self.write_set(changes, ANONYMOUS_NAME, id, &set);
        self.write_elements(
            changes,
            kind::NEW_ELEMENTS,
            (ANONYMOUS_NAME, Some(id)),
            elements,
        );
        id
    }

    fn write_set(&self, changes: &mut Changes, name: &str, id: u32, set: &SetKind) {
        let mut message = self.message(kind::NEW_SET, flags::CREATE);
        message
            .text(2, name)
            .big(3, set.flags)
            .big(4, set.key_type)
            .big(5, set.key_length());
        if let Some((data_type, length)) = set.data {
            message.big(6, data_type);
            if length > 0 {
                message.big(7, length);
            }
        }
        if set.flags & set_flags::CONCATENATION != 0 {
            message.nest(9, |description| {
                description.nest(2, |parts| {
                    for part in set.parts {
                        parts.nest(1, |field| {
                            field.big(1, *part);
                        });
                    }
                });
            });
        }
        message.big(10, id);
        if set.key_type == data_type::INTERFACE {
            // For nft(8): keys are in this machine's order (`NFTNL_UDATA_SET_KEYBYTEORDER`), or it
            // prints no name.
            message.bytes(13, &[&[0, 4][..], &1u32.to_ne_bytes()].concat());
        }
        changes.push(format!("make the set {name}"), message);
    }

    pub(super) fn add(&self, changes: &mut Changes, set: &str, elements: &[Element]) {
        self.write_elements(changes, kind::NEW_ELEMENTS, (set, None), elements);
    }

    pub(super) fn remove(&self, changes: &mut Changes, set: &str, elements: &[Element]) {
        self.write_elements(changes, kind::DELETE_ELEMENTS, (set, None), elements);
    }

    pub(super) fn delete_set(&self, changes: &mut Changes, name: &str) {
        let mut message = self.message(kind::DELETE_SET, 0);
        message.text(2, name);
        changes.push(format!("remove the set {name}"), message);
    }

    /// Removes all elements of a set.
    pub(super) fn flush_set(&self, changes: &mut Changes, set: &str) {
        let mut message = self.message(kind::DELETE_ELEMENTS, 0);
        message.text(2, set);
        changes.push(format!("empty the set {set}"), message);
    }

    fn write_elements(
        &self,
        changes: &mut Changes,
        kind: u8,
        set: (&str, Option<u32>),
        elements: &[Element],
    ) {
        let (name, id) = set;
        let (flags, verb) = match kind {
            kind::NEW_ELEMENTS => (flags::CREATE, "add to"),
            _ => (0, "remove from"),
        };
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let mut message = self.message(kind, flags);
            message.text(2, name);
            if let Some(id) = id {
                message.big(4, id);
            }
            message.nest(3, |list| {
                for element in chunk {
                    list.nest(1, |inner| write_element(inner, element));
                }
            });
            changes.push(format!("{verb} the set {name}"), message);
        }
    }
}

/// What a set without a name is called until the kernel numbers it.
pub(super) const ANONYMOUS_NAME: &str = "__set%d";

fn write_element(message: &mut Message, element: &Element) {
    message.nest(1, |key| write_value(key, &element.key));
    match &element.value {
        Value::Nothing => {}
        Value::End => {
            message.big(3, 1);
        }
        Value::Data(bytes) => {
            message.nest(2, |data| write_value(data, bytes));
        }
        Value::Until(last) => {
            message.nest(10, |key| write_value(key, last));
        }
        Value::Jump(chain) => {
            message.nest(2, |data| write_verdict(data, Verdict::Jump(chain)));
        }
    }
}

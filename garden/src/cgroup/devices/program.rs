//! The program by which cgroup v2 restricts devices, made of rules.
//!
//! Called by the module above, which has it loaded. Pure: rules in, instructions out. The kernel
//! gives the program what is asked for (a kind, numbers, some of read, write, make) and refuses
//! unless it answers 1. The rules are asked from the last to the first; what is undecided yet stays
//! in one register, so that each permission is decided by the last rule that names it:
//!
//! ```text
//! the rule is not about this device ─▶ next rule
//! it denies something undecided     ─▶ refuse
//! it allows                         ─▶ that is decided; nothing left: allow
//! no rule left                      ─▶ refuse
//! ```
//!
//! There is nothing to loop over, so the kernel's verifier is done after one pass.
//! Source: `struct bpf_cgroup_dev_ctx` in linux/bpf.h.

use garden_sys::bpf::Instruction;

use crate::devices::{DeviceKind, DeviceRule};

const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const UNDECIDED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xb4;
const JUMP: u8 = 0x05;
const JUMP_IF_ANY: u8 = 0x45;
const JUMP_UNEQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Bytes into what the kernel gives.
const AT_MAJOR: i16 = 4;
const AT_MINOR: i16 = 8;
/// The kind is in the lower half of its first word, what is wanted in the upper one.
const KIND_BITS: i32 = 0xffff;
const ACCESS_SHIFT: i32 = 16;

fn load(register: u8, offset: i16) -> Instruction {
    Instruction {
        code: LOAD_WORD,
        registers: register | CONTEXT << 4,
        offset,
        immediate: 0,
    }
}

fn with(code: u8, register: u8, immediate: i32) -> Instruction {
    jump(code, register, immediate, 0)
}

fn jump(code: u8, register: u8, immediate: i32, offset: i16) -> Instruction {
    Instruction {
        code,
        registers: register,
        offset,
        immediate,
    }
}

fn answer(value: i32) -> [Instruction; 2] {
    [with(MOVE, ANSWER, value), with(EXIT, 0, 0)]
}

/// The program for these rules; what they do not mention is refused.
pub(super) fn assemble(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        load(KIND, 0),
        with(AND, KIND, KIND_BITS),
        load(UNDECIDED, 0),
        with(SHIFT_RIGHT, UNDECIDED, ACCESS_SHIFT),
        load(MAJOR, AT_MAJOR),
        load(MINOR, AT_MINOR),
    ];
    for rule in rules.iter().rev() {
        add(&mut program, rule);
    }
    program.extend(answer(0));
    program
}

/// One rule: what it must be about, then what follows.
fn add(program: &mut Vec<Instruction>, rule: &DeviceRule) {
    let access = i32::from(rule.access.bits());
    let mut consequence = Vec::with_capacity(4);
    if rule.allow {
        consequence.push(with(AND, UNDECIDED, !access));
        consequence.push(jump(JUMP_UNEQUAL, UNDECIDED, 0, 2));
        consequence.extend(answer(1));
    } else {
        consequence.push(jump(JUMP_IF_ANY, UNDECIDED, access, 1));
        consequence.push(jump(JUMP, 0, 0, 2));
        consequence.extend(answer(0));
    }
    let kind = match rule.kind {
        DeviceKind::All => None,
        DeviceKind::Block => Some(1),
        DeviceKind::Character => Some(2),
    };
    // The kernel's numbers have 20 bits at most.
    let number = |number: Option<u32>| number.and_then(|number| i32::try_from(number).ok());
    let conditions: Vec<(u8, i32)> = [
        (KIND, kind),
        (MAJOR, number(rule.major)),
        (MINOR, number(rule.minor)),
    ]
    .into_iter()
    .filter_map(|(register, value)| Some((register, value?)))
    .collect();
    let mut left = conditions.len() + consequence.len();
    for (register, value) in conditions {
        left -= 1;
        // At most six instructions are jumped over.
        let over = i16::try_from(left).unwrap_or(i16::MAX);
        program.push(jump(JUMP_UNEQUAL, register, value, over));
    }
    program.extend(consequence);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Access;

    /// Does what the kernel would do.
    fn run(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_u32; 6];
        let mut at = 0_usize;
        loop {
            let Instruction {
                code,
                registers: both,
                offset,
                immediate,
            } = program[at];
            let register = usize::from(both & 15);
            let value = immediate.cast_unsigned();
            let mut goes = false;
            match code {
                LOAD_WORD => {
                    assert_eq!(both >> 4, CONTEXT);
                    registers[register] = context[usize::try_from(offset).unwrap() / 4];
                }
                AND => registers[register] &= value,
                SHIFT_RIGHT => registers[register] >>= value,
                MOVE => registers[register] = value,
                JUMP => goes = true,
                JUMP_IF_ANY => goes = registers[register] & value != 0,
                JUMP_UNEQUAL => goes = registers[register] != value,
                EXIT => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
            // Only forwards: so it ends.
            at += 1 + if goes {
                usize::try_from(offset).unwrap()
            } else {
                0
            };
        }
    }

    /// What rules mean, said in another way.
    fn model(rules: &[DeviceRule], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let is_about = |rule: &&DeviceRule| {
            let of_kind = match rule.kind {
                DeviceKind::All => true,
                DeviceKind::Block => kind == 1,
                DeviceKind::Character => kind == 2,
            };
            of_kind
                && rule.major.is_none_or(|own| own == major)
                && rule.minor.is_none_or(|own| own == minor)
        };
        let mut held = 0;
        let mut about = 0;
        for rule in rules.iter().filter(is_about) {
            about += usize::from(rule.allow);
            let bits = u32::from(rule.access.bits());
            held = if rule.allow {
                held | bits
            } else {
                held & !bits
            };
        }
        // Nothing wanted (a look at the node): whoever may do anything with it, or could once.
        if access == 0 {
            about > 0
        } else {
            access & !held == 0
        }
    }

    fn parsed(rules: &[&str]) -> Vec<DeviceRule> {
        rules.iter().map(|rule| rule.parse().unwrap()).collect()
    }

    #[test]
    fn later_rules_win_permission_by_permission() {
        let program = assemble(&parsed(&["a", "deny c 1:* w", "c 1:3 w"]));
        let character = |access, minor| run(&program, 2, access, 1, minor);
        assert!(character(2, 5) && character(6, 3) && !character(4, 5));
        // Reading and writing at once is more than one of them.
        assert!(!character(6, 5));
        assert!(run(&program, 1, 7, 1, 5), "a block device");
        assert!(
            !run(&assemble(&[]), 2, 2, 1, 3),
            "nothing is allowed by no rule"
        );
        let split = assemble(&parsed(&["c 1:3 r", "c *:3 w"]));
        assert!(run(&split, 2, 6, 1, 3), "two rules together");
    }

    /// Every pair, and every third one behind them, of rules that differ in all that rules may
    /// differ in, for every question about a few devices.
    #[test]
    fn programs_say_what_rules_mean() {
        let mut rules = Vec::new();
        for kind in [DeviceKind::All, DeviceKind::Character, DeviceKind::Block] {
            for (major, minor) in [(None, None), (Some(1), None), (Some(1), Some(3))] {
                if kind == DeviceKind::All && major.is_some() {
                    continue;
                }
                for access in [Access::ALL, Access::READ, Access::READ.with(Access::WRITE)] {
                    for allow in [true, false] {
                        rules.push(DeviceRule {
                            allow,
                            kind,
                            major,
                            minor,
                            access,
                        });
                    }
                }
            }
        }
        for first in &rules {
            for second in &rules {
                for third in rules.iter().step_by(5) {
                    let list = [*first, *second, *third];
                    let program = assemble(&list);
                    for question in 0..64 {
                        let (kind, access) = (1 + question % 2, question / 8);
                        let (major, minor) = (1 + question / 2 % 2, 3 + question / 4 % 2);
                        assert_eq!(
                            run(&program, kind, access, major, minor),
                            model(&list, kind, access, major, minor),
                            "{list:?}: {kind} {access} {major}:{minor}"
                        );
                    }
                }
            }
        }
    }
}

//! The seccomp program: compiled once by the zygote, loaded by every unprivileged process.
//!
//! The policy is the field's default profile (`profile.rs`): what it lists is allowed, a few
//! calls only with certain arguments; what is known and dangerous answers `EPERM`; what the
//! profile has never heard of answers `ENOSYS`, so that a C library which probes for a newer
//! call falls back instead of failing.

mod profile;

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};

use crate::failure::{Result, Step as _, other};

/// A compiled program.
pub(crate) type Program = Vec<libc::sock_filter>;

/// Compiles the default profile for this machine. Takes milliseconds: do it once.
pub(crate) fn compile() -> Result<Program> {
    let filter = build().step("cannot compile the seccomp profile")?;
    let bytes = export(&filter)?;
    bytes
        .chunks_exact(8)
        .map(|chunk| match *chunk {
            [c0, c1, jt, jf, k0, k1, k2, k3] => Ok(libc::sock_filter {
                code: u16::from_ne_bytes([c0, c1]),
                jt,
                jf,
                k: u32::from_ne_bytes([k0, k1, k2, k3]),
            }),
            _ => Err(other("the compiled seccomp program has an odd length")),
        })
        .collect()
}

fn build() -> std::result::Result<ScmpFilterContext, libseccomp::error::SeccompError> {
    let denied = ScmpAction::Errno(libc::EPERM);
    let unknown = ScmpAction::Errno(libc::ENOSYS);
    let mut filter = ScmpFilterContext::new(unknown)?;
    if cfg!(target_arch = "x86_64") {
        filter.add_arch(ScmpArch::X86)?;
    }
    // x32 among them, which hardly a kernel has: a third of the program for nothing.
    filter.set_act_badarch(unknown)?;
    // A binary tree over the call numbers instead of a list: every system call of every
    // unprivileged process runs through this program.
    filter.set_ctl_optimize(2)?;
    for name in profile::ALLOWED {
        if let Some(call) = resolve(name) {
            filter.add_rule(ScmpAction::Allow, call)?;
        }
    }
    for number in profile::ALLOWED_BY_NUMBER {
        filter.add_rule(ScmpAction::Allow, ScmpSyscall::from_raw_syscall(*number))?;
    }
    for name in profile::DENIED {
        if let Some(call) = resolve(name) {
            filter.add_rule(denied, call)?;
        }
    }
    for value in profile::PERSONALITIES {
        let exactly = ScmpArgCompare::new(0, ScmpCompareOp::Equal, *value);
        if let Some(call) = resolve("personality") {
            filter.add_rule_conditional(ScmpAction::Allow, call, &[exactly])?;
        }
    }
    if let Some(clone) = resolve("clone") {
        let flags = ScmpCompareOp::MaskedEqual(profile::CLONE_NAMESPACES);
        let without = ScmpArgCompare::new(0, flags, 0);
        filter.add_rule_conditional(ScmpAction::Allow, clone, &[without])?;
        for bit in single_bits(profile::CLONE_NAMESPACES) {
            let with = ScmpArgCompare::new(0, ScmpCompareOp::MaskedEqual(bit), bit);
            filter.add_rule_conditional(denied, clone, &[with])?;
        }
    }
    if let Some(socket) = resolve("socket") {
        let vsock = ScmpArgCompare::new(0, ScmpCompareOp::NotEqual, libc::AF_VSOCK as u64);
        filter.add_rule_conditional(ScmpAction::Allow, socket, &[vsock])?;
    }
    Ok(filter)
}

fn single_bits(mask: u64) -> impl Iterator<Item = u64> {
    (0..u64::BITS)
        .map(|shift| 1_u64 << shift)
        .filter(move |bit| mask & bit != 0)
}

/// A name this libseccomp does not know is no call of this machine, or newer than the library:
/// the latter are listed by number as well.
fn resolve(name: &str) -> Option<ScmpSyscall> {
    ScmpSyscall::from_name(name).ok()
}

fn export(filter: &ScmpFilterContext) -> Result<Vec<u8>> {
    use std::io::{Read as _, Seek as _};
    let file = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC)
        .step("cannot make a memory file for the seccomp program")?;
    let mut file = std::fs::File::from(file);
    filter
        .export_bpf(&file)
        .step("cannot export the seccomp program")?;
    file.rewind().step("cannot read the seccomp program back")?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)
        .step("cannot read the seccomp program back")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_compiles_to_a_loadable_size() {
        let program = compile().unwrap();
        assert!(
            program.len() > 100 && program.len() < 4096,
            "{}",
            program.len()
        );
    }

    #[test]
    fn no_call_is_both_allowed_and_denied() {
        for name in profile::DENIED {
            assert!(!profile::ALLOWED.contains(name), "{name}");
        }
    }
}

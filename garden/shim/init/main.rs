//! The init of every container: reaps what is orphaned in it, and does nothing else.
//!
//! Built by the shim's build script without the standard library, so that a pod's first process
//! costs a few pages, and run by the shim from a sealed memory file, so that it needs no place in
//! the container's root filesystem. It is killed, never asked to end: as pid 1 it ignores every
//! signal that it has no handler for.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

// The kernel enters with the stack pointer aligned and no return address; a Rust function
// expects to have been called.
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "call {main}", "ud2", main = sym main);

const SYS_RT_SIGPROCMASK: usize = 14;
const SYS_WAIT4: usize = 61;
const SYS_RT_SIGTIMEDWAIT: usize = 128;

const SIG_BLOCK: usize = 0;
const SIGCHLD_BIT: u64 = 1 << (17 - 1);
const ANY_CHILD: usize = usize::MAX;
const SIGSET_BYTES: usize = 8;

fn syscall4(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the three calls made here take integers, null, or a pointer to a u64 that outlives
    // the call; none of them writes to memory of ours.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    result
}

extern "C" fn main() -> ! {
    let sigchld = SIGCHLD_BIT;
    let set = &raw const sigchld as usize;
    // Blocked, so that a child which ends between the two calls below is not missed: its signal
    // stays pending until it is waited for.
    syscall4(SYS_RT_SIGPROCMASK, SIG_BLOCK, set, 0, SIGSET_BYTES);
    loop {
        if syscall4(SYS_WAIT4, ANY_CHILD, 0, 0, 0) < 0 {
            syscall4(SYS_RT_SIGTIMEDWAIT, set, 0, 0, SIGSET_BYTES);
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

//! Builds what the escape tests run inside containers (`attacker/main.rs`), static, so that it needs
//! nothing of an image. It cannot be an ordinary target: those are linked as the host's programs are.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=attacker/main.rs");
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let rustc = std::env::var_os("RUSTC").expect("cargo sets RUSTC");
    let status = Command::new(rustc)
        .args(["--edition", "2024", "--crate-type", "bin"])
        .args(["--crate-name", "attacker"])
        .args(["-C", "panic=abort", "-C", "opt-level=s"])
        .args(["-C", "strip=symbols", "-C", "target-feature=+crt-static"])
        .arg("-o")
        .arg(out.join("attacker"))
        .arg("attacker/main.rs")
        .status()
        .expect("cannot start rustc to build the attacker");
    assert!(
        status.success(),
        "cannot build the attacker: see the compiler's messages above"
    );
}

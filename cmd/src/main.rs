//! The garden command.
fn main() {}

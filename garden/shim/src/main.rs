//! The pod supervisor.
fn main() {}

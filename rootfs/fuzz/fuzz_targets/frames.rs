//! Any bytes as the frames of a process's connection.

#![no_main]

use garden::fuzzing::frames;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| frames(bytes));

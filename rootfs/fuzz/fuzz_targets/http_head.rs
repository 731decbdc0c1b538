//! Any bytes as the beginning of a connection to the API.

#![no_main]

use garden::fuzzing::head;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| head(bytes));

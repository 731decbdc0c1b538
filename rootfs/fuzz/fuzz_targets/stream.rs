//! Any bytes as a blob: what is decompressed is bounded, and the digests are right.

#![no_main]

use garden_rootfs::fuzzing::stream;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| stream(bytes));

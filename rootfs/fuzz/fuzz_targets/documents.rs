//! Any bytes as the documents of an image: nothing panics, nothing is followed without bounds.

#![no_main]

use garden_rootfs::fuzzing::documents;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| documents(bytes));

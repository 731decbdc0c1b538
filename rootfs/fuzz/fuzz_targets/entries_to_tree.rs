//! Any bytes as a list of entries: nothing outside changes, nothing panics, and what is there is listed.

#![no_main]

use std::sync::LazyLock;

use garden_rootfs::fuzzing::Ground;
use libfuzzer_sys::fuzz_target;

static GROUND: LazyLock<Option<Ground>> = LazyLock::new(Ground::new);

fuzz_target!(|bytes: &[u8]| GROUND.as_ref().expect("needs root").entries(bytes));

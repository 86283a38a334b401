//! What a hub answers: its list of files, and where it redirects to.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| loader::fuzzing::hub(data));

//! The index of a sharded checkpoint.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| loader::fuzzing::safetensors_index(data));

//! A whole GGUF file: header, metadata as a config, tokenizer, chat template, and every tensor it claims to have.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| loader::fuzzing::gguf(data));

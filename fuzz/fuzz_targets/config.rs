//! config.json: from any JSON to a model's spec, its position encodings and its memory, or one error.
#![no_main]

use attn_core::position::{PositionConfig, build};
use attn_eval::encoding::describe;
use attn_models::families;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(json) = serde_json::from_slice(data) else { return };
    let Ok(spec) = families::spec(&json) else { return };
    let stacks = std::iter::once(&spec.stack).chain(&spec.encoder);
    for stack in stacks {
        let mut seen: Vec<&PositionConfig> = vec![&stack.embedding.position];
        for layer in &stack.layers {
            if !seen.contains(&layer.attention.position()) {
                seen.push(layer.attention.position());
            }
        }
        for config in seen {
            for length in [1, 4096, 1 << 20] {
                let _ = describe(config, length);
            }
            let _ = build(config, None);
        }
    }
});

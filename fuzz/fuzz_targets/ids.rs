//! Ids: rows of token ids as `attn logits` reads them, and names of models as every command does.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/attn-cli/src/ids.rs"]
mod ids;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(rows) = ids::parse(text) {
        assert!(rows.count() > 0 && rows.count() * rows.width == rows.ids.len());
    }
    if let Ok(loader::ModelRef::Hub(id)) = loader::ModelRef::parse(text) {
        // These become folders of the cache and parts of an address, so they must not lead out of either.
        for part in [Some(id.repo.as_str()), id.revision.as_deref(), id.file.as_deref()].into_iter().flatten() {
            assert!(!part.is_empty() && !part.starts_with('/') && part.split('/').all(|p| p != ".."), "{text:?}");
        }
    }
});

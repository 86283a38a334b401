//! A tokenizer.json: read, and used to encode a text and decode it again, in bounded memory, whatever it contains.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;

const TEXT: &str = "It is a truth, universally acknowledged: 1234 d\u{f6}gs\u{2581}and\n\n  \u{4e00}\u{1f980} <|end|> the end";

fuzz_target!(|data: &[u8]| {
    let Ok(tokenizer) = loader::Tokenizer::from_json(Path::new("tokenizer.json"), data) else { return };
    let Ok(ids) = tokenizer.encode(TEXT, true) else { return };
    // A text has the same ids every time, so that a measurement can be repeated.
    assert_eq!(tokenizer.encode(TEXT, true).expect("what is tokenised once is tokenised again"), ids);
    let _ = tokenizer.begins_with();
    let _ = tokenizer.decode(&ids, false);
    let mut stream = tokenizer.stream(true);
    let _ = ids.iter().try_for_each(|&id| stream.push(id).map(drop));
    let _ = stream.finish();
});

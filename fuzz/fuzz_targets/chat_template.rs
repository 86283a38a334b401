//! A chat template: parsed and rendered, in bounded time and memory, whatever it contains.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let template = loader::ChatTemplate::new(source);
    let messages = [("system", "Be kind."), ("user", "Hello, \"you\"\n"), ("assistant", " Yes? "), ("user", "é")];
    let _ = template.render(&messages, true, "<s>", "</s>");
});

use super::*;
use serde_json::{Value, json};
use std::path::Path;

fn embedded() -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tokenizer.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn parse(value: &Value) -> Tokenizer {
    Tokenizer::parse(value.to_string().as_bytes()).unwrap()
}

/// A vocabulary of words with a space before them, letters and bytes, as SentencePiece makes one; `pre` puts the space in front
/// of a text.
fn sentence_piece(pre: Value) -> Tokenizer {
    let mut tokens: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    tokens.extend(('a'..='z').chain(['\u{2581}', '.']).map(String::from));
    tokens.extend(["\u{2581}t", "he", "\u{2581}the"].map(String::from));
    let vocab: serde_json::Map<String, Value> =
        tokens.into_iter().zip(0..).map(|(t, id)| (t, Value::from(id))).collect();
    parse(&json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": pre, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["\u{2581}", "t"], ["h", "e"], ["\u{2581}t", "he"]],
            "byte_fallback": true, "fuse_unk": true, "unk_token": null, "dropout": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "ignore_merges": false},
    }))
}

/// The text of every stretch between two ends, which together are the text.
fn pieces<'a>(tokenizer: &Tokenizer, text: &'a str) -> Vec<&'a str> {
    let ids = tokenizer.encode(text, false).unwrap();
    let ends = tokenizer.ends(&ids, text).unwrap();
    assert_eq!(ends.len(), ids.len());
    let mut from = 0;
    let pieces: Vec<&str> = ends
        .into_iter()
        .flatten()
        .map(|end| {
            let piece = &text[from..end];
            from = end;
            piece
        })
        .collect();
    assert_eq!(from, text.len(), "{pieces:?}");
    pieces
}

#[test]
fn tokens_end_where_their_text_does() {
    let tokenizer = parse(&embedded());
    for text in
        ["It was a truth, universally\n\n  acknowledged", " a", "", "caf\u{e9} \u{1f600}\u{1f3fd} \u{4e00}\u{4e8c}x"]
    {
        let ids = tokenizer.encode(text, false).unwrap();
        let (ends, pieces) = (tokenizer.ends(&ids, text).unwrap(), pieces(&tokenizer, text));
        // A token between two ends is the whole piece.
        let mut after = true;
        for ((&id, end), at) in ids.iter().zip(&ends).zip(0..) {
            if let Some(end) = end.filter(|_| after) {
                let own = tokenizer.decode(&[id], false).unwrap();
                // The first has a space before it that is none of the text.
                let own = if at == 0 { own.trim_start() } else { &own };
                assert!(text[..end].ends_with(own), "{text:?}, token {at}");
            }
            after = end.is_some();
        }
        assert!(pieces.len() <= ids.len());
    }
    // Bytes of one character end together.
    let ids = tokenizer.encode("\u{1f600}", false).unwrap();
    let ends = tokenizer.ends(&ids, "\u{1f600}").unwrap();
    let open = ends[..ids.len() - 1].iter().all(|end| end.is_none_or(|end| end == 0));
    assert!(ids.len() > 1 && open && ends[ids.len() - 1] == Some(4), "{ends:?}");
}

#[test]
fn a_space_put_before_a_text_belongs_to_none_of_its_bytes() {
    let metaspace = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
    let tokenizer = sentence_piece(metaspace);
    assert_eq!(pieces(&tokenizer, "the the"), ["the", " the"]);
    assert_eq!(pieces(&tokenizer, " the cat.")[..2], [" the", " "]);
    assert_eq!(pieces(&tokenizer, "the  the"), ["the", " ", " the"]);
    // A character in bytes.
    assert_eq!(pieces(&tokenizer, "the\u{e9}\n the"), ["the", "\u{e9}", "\n", " the"]);
}

#[test]
fn a_replacement_character_of_the_text_is_one() {
    let tokenizer = parse(&embedded());
    let text = "a\u{fffd}b \u{fffd}\u{fffd} c";
    assert_eq!(pieces(&tokenizer, text).concat(), text);
}

#[test]
fn a_tokenizer_that_loses_text_is_refused_with_the_place() {
    let mut lower = embedded();
    lower["normalizer"] = json!({"type": "Lowercase"});
    let tokenizer = parse(&lower);
    let text = "all small. And One";
    let ids = tokenizer.encode(text, false).unwrap();
    let error = tokenizer.ends(&ids, text).unwrap_err().to_string();
    assert!(error.contains("from byte 10 on, \" And One\" becomes \" and"), "{error}");
    // What is lost without a character that is no text, and what is none at all.
    let mut folded = embedded();
    folded["normalizer"] = json!({"type": "Replace", "pattern": {"String": "  "}, "content": " "});
    let tokenizer = parse(&folded);
    let ids = tokenizer.encode("one  two", false).unwrap();
    assert!(tokenizer.ends(&ids, "one  two").unwrap_err().to_string().contains("from byte 3 on"));
}

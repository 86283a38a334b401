//! A text in pieces is the text at once: for every kind of tokenizer, at every place where a random text may be cut.

use super::*;
use crate::splits::all_splits;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::Path;

/// What texts are made of: what the expressions of pre-tokenizers treat differently, and much that can be cut.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        8 => "[a-zA-Z]{1,6}",
        6 => Just(" ".to_string()),
        3 => "[a-z] [a-z]",
        2 => "[ \\n\\r\\t\u{a0}\u{3000}]{1,4}",
        2 => "[0-9]{1,5}",
        2 => "[.,!?'\"/|\\[\\]()_-]{1,3}",
        1 => "'(s|t|re|ve|m|ll|d|S|LL)",
        1 => "[\u{e0}-\u{ff}\u{130}\u{df}\u{fb01}\u{ff21}]{1,3}",
        1 => "[\u{300}-\u{304}\u{200d}\u{feff}\u{0}\u{ad}]{1,2}",
        4 => "[\u{4e00}-\u{4e05}\u{3042}\u{304b}\u{304c}\u{30a2}]{1,4}",
        3 => "[\u{3002}\u{ff0c}\u{3001}\u{ff01}\u{300d}\u{2026}\u{ff61}]",
        3 => "[\u{ac00}-\u{ac05}\u{434}\u{439}\u{44f}\u{3b1}\u{3c2}\u{5d0}\u{627}\u{915}\u{93f}\u{e01}\u{e31}]{1,4}",
        2 => "[.,\u{3002}\u{201d}]?\n",
        1 => "[\u{1f600}\u{1f1e6}\u{1f3fd}]{1,2}",
        1 => Just("<|end|>".to_string()),
        1 => Just("[MASK] ".to_string()),
        1 => Just("\u{2581}".to_string()),
    ];
    prop::collection::vec(part, 1..40).prop_map(|parts| parts.concat())
}

/// A byte-level vocabulary with these pre-tokenizers.
fn byte_level(pre: Value, normalizer: Value) -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    tokenizer["pre_tokenizer"] = pre;
    tokenizer["normalizer"] = normalizer;
    tokenizer
}

/// A vocabulary of SentencePiece's kind: letters, bytes, and some words with a space before them.
fn sentence_piece(pre: Value, normalizer: Value) -> Value {
    let mut tokens: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    tokens.extend(('a'..='z').chain('A'..='Z').chain('\u{4e00}'..='\u{4e03}').map(String::from));
    tokens.extend(['\u{2581}', '.', ' ', '\u{3002}', '\u{3042}'].map(String::from));
    let merges = [
        ("\u{2581}", "t"),
        ("h", "e"),
        ("\u{2581}t", "he"),
        ("a", "n"),
        ("an", "d"),
        ("\u{2581}", "\u{2581}"),
        ("e", "e"),
        ("\u{4e00}", "\u{4e01}"),
        ("\u{2581}", "\u{4e00}"),
        ("\u{4e02}", "\u{3002}"),
    ];
    tokens.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    let vocab: serde_json::Map<String, Value> =
        tokens.into_iter().zip(0..).map(|(t, id)| (t, Value::from(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 400, "content": "<|end|>", "single_word": false, "lstrip": true, "rstrip": false, "normalized": false, "special": true}],
        "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges.map(|(a, b)| json!([a, b])), "byte_fallback": true, "fuse_unk": true,
            "unk_token": null, "dropout": null, "continuing_subword_prefix": null, "end_of_word_suffix": null, "ignore_merges": false},
    })
}

fn word_piece(pre: Value, normalizer: Value) -> Value {
    let mut vocab = serde_json::Map::new();
    for token in ["[UNK]".to_string(), "[MASK]".to_string()]
        .into_iter()
        .chain(('a'..='z').flat_map(|c| [c.to_string(), format!("##{c}")]))
    {
        vocab.insert(token, Value::from(vocab.len()));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 1, "content": "[MASK]", "single_word": false, "lstrip": true, "rstrip": true, "normalized": false, "special": true}],
        "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": null, "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 20, "vocab": vocab},
    })
}

fn unigram(pre: Value, normalizer: Value) -> Value {
    let mut vocab = vec![json!(["<unk>", 0.0])];
    let words = ["\u{2581}", "\u{2581}the", "\u{2581}a", "he", "an", "ee"].map(String::from);
    vocab.extend(('a'..='z').map(String::from).chain(words).zip(1..).map(|(t, i)| json!([t, -f64::from(i) / 3.0])));
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": null, "decoder": null,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false},
    })
}

fn sequence(key: &str, parts: &[Value]) -> Value {
    json!({"type": "Sequence", key: parts})
}

fn metaspace(scheme: &str) -> Value {
    json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": true})
}

/// Every listed kind of part, by name.
fn kinds() -> Vec<(String, Value)> {
    let level = |regex: bool, space: bool| json!({"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": regex});
    let split = |regex: &str, behavior: &str, invert: bool| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert});
    let mut kinds = vec![];
    for (name, regexes) in all_splits() {
        let mut steps: Vec<Value> = regexes.iter().map(|regex| split(regex, "Isolated", false)).collect();
        steps.push(level(false, false));
        kinds.push((format!("pre {name}"), byte_level(sequence("pretokenizers", &steps), Value::Null)));
    }
    let gpt2 = all_splits().into_iter().find(|(name, _)| *name == "gpt-2").unwrap().1[0];
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let runs = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "});
    let prepend = json!({"type": "Prepend", "prepend": "\u{2581}"});
    let bert = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true});
    let space = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    let strip = json!({"type": "Strip", "strip_left": true, "strip_right": true});
    let of = |kind: &str| json!({"type": kind});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let punctuation = json!({"type": "Punctuation", "behavior": "Contiguous"});
    let more = [
        (
            "removed inverted",
            byte_level(sequence("pretokenizers", &[split(gpt2, "Removed", true), level(false, false)]), Value::Null),
        ),
        // Without words, where no token reaches from one to the next.
        ("no words", byte_level(level(false, false), Value::Null)),
        ("gpt2", byte_level(level(true, false), Value::Null)),
        ("gpt2 with a space before", byte_level(level(true, true), of("NFC"))),
        ("starcoder", byte_level(sequence("pretokenizers", &[digits.clone(), level(true, false)]), Value::Null)),
        ("falcon", byte_level(sequence("pretokenizers", &[punctuation, level(true, false), digits]), of("NFKC"))),
        ("llama 2", sentence_piece(Value::Null, sequence("normalizers", &[prepend, replace.clone()]))),
        ("mistral", sentence_piece(metaspace("first"), Value::Null)),
        ("metaspace always", sentence_piece(metaspace("always"), of("NFKD"))),
        ("metaspace never", sentence_piece(metaspace("never"), of("Lowercase"))),
        ("gemma", sentence_piece(space, replace)),
        ("whitespace", word_piece(of("Whitespace"), of("Lowercase"))),
        ("whitespace split", word_piece(of("WhitespaceSplit"), of("StripAccents"))),
        ("bert", word_piece(of("BertPreTokenizer"), bert)),
        ("t5", unigram(metaspace("always"), sequence("normalizers", &[of("Nmt"), of("NFKC"), strip, runs]))),
    ];
    kinds.extend(more.map(|(name, tokenizer)| (name.to_string(), tokenizer)));
    kinds
}

fn tokenizers() -> Vec<(String, Tokenizer)> {
    let read = |(name, json): (String, Value)| {
        let tokenizer = Tokenizer::parse(json.to_string().as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, tokenizer)
    };
    kinds().into_iter().map(read).collect()
}

/// The ids of a text in pieces as short as they get.
fn in_pieces(tokenizer: &Tokenizer, text: &str) -> (Vec<u32>, Option<usize>) {
    let mut encoder = TextEncoder { piece: 3, ..tokenizer.text_encoder(usize::MAX) };
    for c in text.chars() {
        encoder.push(c.encode_utf8(&mut [0; 4])).unwrap();
    }
    encoder.finish().unwrap()
}

#[test]
fn pieces_are_the_whole_for_every_kind_of_part() {
    let all = tokenizers();
    for (name, tokenizer) in &all {
        assert!(tokenizer.cuts().any(), "{name} is not taken in pieces");
    }
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(text in text())| {
        for (name, tokenizer) in &all {
            let whole = tokenizer.raw(&text, false).unwrap();
            let mut end = text.len();
            while let Some(at) = tokenizer.cuts().last(&tokenizer.inner, &text[..end], 0) {
                let mut two = tokenizer.raw(&text[..at], false).unwrap();
                let rest = tokenizer.encode_after(text[..at].chars().last(), &text[at..]).unwrap();
                two.extend(rest.unwrap_or_default());
                prop_assert_eq!(&two, &whole, "{} at {} of {:?}", name, at, text);
                end = at;
            }
            prop_assert_eq!(in_pieces(tokenizer, &text), (whole.clone(), Some(whole.len())), "{}: {:?}", name, text);
        }
    });
}

/// Writing without spaces is cut too: at its stops where words end there, between characters that no token joins, or at the
/// ends of its lines.
#[test]
fn texts_of_every_script_are_cut() {
    let chinese = "\u{4e2d}\u{6587}\u{6ca1}\u{6709}\u{7a7a}\u{683c}\u{3002}\u{5b57}\u{548c}\u{5b57}\u{ff0c}";
    let japanese = "\u{65e5}\u{672c}\u{8a9e}\u{306b}\u{306f}\u{3001}\u{7a7a}\u{767d}\u{304c}\u{306a}\u{3044}\u{3002}";
    let korean = "\u{d55c}\u{ad6d}\u{c5b4}\u{c5d0}\u{b294} \u{ac00}\u{ac00} \u{c788}\u{b2e4}. ";
    let russian = "\u{43d}\u{430} \u{440}\u{443}\u{441}\u{441}\u{43a}\u{43e}\u{43c} ";
    // What these see across: bytes without words, and words that only spaces end.
    let whole = ["no words", "whitespace split", "t5"];
    for (name, tokenizer) in tokenizers() {
        for text in [chinese, japanese, korean, russian] {
            let spaceless = !text.contains(' ');
            let line = if spaceless && whole.contains(&name.as_str()) { "\n" } else { "" };
            let text = format!("{text}{line}").repeat(60);
            let mut encoder = TextEncoder { piece: 90, longest: Some(600), ..tokenizer.text_encoder(usize::MAX) };
            match encoder.push(&text) {
                Ok(()) => assert_eq!(encoder.finish().unwrap().0, tokenizer.raw(&text, false).unwrap(), "{name}"),
                Err(error) => assert!(name == "no words", "{name}: {text:.40}: {error}"),
            }
        }
    }
}

#[test]
fn parts_that_are_not_known_keep_a_text_whole() {
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let regex =
        |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let letters = json!({"type": "Replace", "pattern": {"String": "n th"}, "content": "x"});
    let mut token = byte_level(
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
        Value::Null,
    );
    token["added_tokens"].as_array_mut().unwrap().push(
        json!({"id": 1024, "content": "in the", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false}),
    );
    for json in [
        byte_level(sequence("pretokenizers", &[regex(r"\w+ \w+"), level.clone()]), Value::Null),
        byte_level(json!({"type": "FixedLength", "length": 5}), Value::Null),
        sentence_piece(Value::Null, letters),
        unigram(Value::Null, Value::Null),
        token,
    ] {
        let tokenizer = Tokenizer::parse(json.to_string().as_bytes()).unwrap();
        let text = "it is in the end one and the same ".repeat(20);
        assert_eq!(tokenizer.cuts().last(&tokenizer.inner, &text, 0), None, "{}", json["pre_tokenizer"]);
        assert_eq!(in_pieces(&tokenizer, &text).0, tokenizer.raw(&text, false).unwrap());
        let mut short = TextEncoder { piece: 3, longest: Some(100), ..tokenizer.text_encoder(usize::MAX) };
        assert!(short.push(&text.repeat(300)).unwrap_err().to_string().contains("can't be cut"));
    }
}

#[test]
fn no_more_is_tokenised_than_is_wanted() {
    let (_, tokenizer) = tokenizers().into_iter().find(|(name, _)| name == "gpt2").unwrap();
    let text = "It was a truth universally acknowledged. ".repeat(2000);
    let whole = tokenizer.raw(&text, false).unwrap();
    for most in [0, 1, 77, whole.len() - 1, whole.len(), whole.len() + 1] {
        let mut encoder = TextEncoder { piece: 1000, ..tokenizer.text_encoder(most) };
        encoder.push(&text).unwrap();
        assert!(encoder.ids.len() <= most + PART);
        let (ids, all) = encoder.finish().unwrap();
        assert_eq!(ids, whole[..most.min(whole.len())], "{most}");
        assert!(all.is_none_or(|all| all == whole.len()) && (all.is_none() || most > 77), "{most}: {all:?}");
    }
    // Long enough that it goes in pieces by itself, with what begins and ends it.
    let long = text.repeat(5);
    assert_eq!(tokenizer.encode(&long, false).unwrap(), tokenizer.raw(&long, false).unwrap());
    assert_eq!(tokenizer.encode(&long, true).unwrap(), tokenizer.raw(&long, true).unwrap());
}

#[test]
fn dropout_is_switched_off_and_said() {
    let mut json = sentence_piece(metaspace("first"), Value::Null);
    json["model"]["dropout"] = 0.5.into();
    let tokenizer = Tokenizer::parse(json.to_string().as_bytes()).unwrap();
    assert!(tokenizer.warnings[0].contains("dropout 0.5"), "{:?}", tokenizer.warnings);
    let text = "and the and the and the and the";
    let ids = tokenizer.encode(text, false).unwrap();
    assert!((0..50).all(|_| tokenizer.encode(text, false).unwrap() == ids));
    json["model"]["dropout"] = 0.0.into();
    let certain = Tokenizer::parse(json.to_string().as_bytes()).unwrap();
    assert!(certain.warnings.is_empty());
    assert_eq!(certain.encode(text, false).unwrap(), ids);
}

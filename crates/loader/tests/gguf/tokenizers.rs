//! Tokenizers and chat templates inside a file.

use crate::common::*;
use crate::{open, open_bytes};
use candle_core::{DType, Device};
use serde_json::Value;
use std::path::Path;

#[test]
fn a_broken_chat_template_is_in_the_way_of_none_but_who_renders_it() {
    let mut g = tiny_llama();
    g.set("tokenizer.chat_template", "{% if %}");
    let checkpoint = open_bytes(&g.bytes()).unwrap();
    let err = checkpoint.render_chat(&[("user", "x")], true).unwrap_err().to_string();
    assert!(err.contains("model.gguf") && err.contains("syntax error"), "{err}");
}

#[test]
fn byte_level_tokenizer_equals_tokenizer_json() {
    let json =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../attn-cli/models/tiny-austen/tokenizer.json"));
    let json = json.unwrap();
    let value: Value = serde_json::from_slice(&json).unwrap();
    let mut tokens = vec![String::new(); 1024];
    for (token, id) in value["model"]["vocab"].as_object().unwrap() {
        tokens[id.as_u64().unwrap() as usize] = token.clone();
    }
    let merge = |m: &Value| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap());
    let merges = value["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    let mut g = tiny_llama();
    g.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.pre", "gpt-2");
    g.set("tokenizer.ggml.tokens", Meta::Strs(tokens)).set("tokenizer.ggml.merges", Meta::Strs(merges));
    g.set("tokenizer.ggml.token_type", Meta::I32s((0..1024).map(|i| if i == 0 { 3 } else { 1 }).collect()));
    g.set("tokenizer.ggml.bos_token_id", Meta::U32(0)).set("tokenizer.ggml.eos_token_id", Meta::U32(0));
    g.set("tokenizer.chat_template", "{{ eos_token }}{{ messages[0].content }}");
    g.tensors[0].1 = Data::f32(&[1024, 8], &[0.0; 8192]);
    let c = open_bytes(&g.bytes()).unwrap();
    let tok = c.require_tokenizer().unwrap();
    let want = loader::Tokenizer::from_json(Path::new("tokenizer.json"), &json).unwrap();
    for text in ["", "She was glad.", "  naïve\n\n 🙂 1815<|endoftext|>'s  \u{a0}x", "日本語"] {
        let ids = want.encode(text, false).unwrap();
        assert_eq!(tok.encode(text, false).unwrap(), ids, "{text}");
        assert_eq!(tok.decode(&ids, false).unwrap(), text);
    }
    assert_eq!((tok.add_bos, c.generation.bos_id, c.generation.eos_ids.as_slice()), (Some(false), Some(0), &[0][..]));
    assert_eq!(c.render_chat(&[("user", "hi")], true).unwrap(), "<|endoftext|>hi");

    for (key, value, want) in [
        ("tokenizer.ggml.pre", Meta::from("martian"), "martian"),
        ("tokenizer.ggml.merges", Meta::Strs(vec!["nospace".into()]), "not a pair"),
        ("tokenizer.ggml.merges", Meta::Strs(vec!["qqqq zzzz".into()]), "tokenizer"),
        ("tokenizer.ggml.merges", Meta::U32(1), "tokenizer.ggml.merges"),
        ("tokenizer.ggml.tokens", Meta::Strs(vec!["a".into(), "a".into()]), "token"),
        ("tokenizer.ggml.token_type", Meta::I32s(vec![1]), "1024"),
        ("tokenizer.ggml.bos_token_id", Meta::U32(5000), "5000"),
    ] {
        let mut g = g.clone();
        g.set(key, value);
        let err = no_tokenizer(&g.bytes());
        assert!(err.contains(want), "{key}: {err}");
    }
    g.remove("tokenizer.ggml.pre");
    let c = open_bytes(&g.bytes()).unwrap();
    assert!(c.warnings[0].contains("tokenizer.ggml.pre"), "{:?}", c.warnings);
}

/// A file whose tokenizer cannot be used opens all the same, because not every command needs it; asking for it is an error.
fn no_tokenizer(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let c = open(&path).unwrap();
    assert!(c.weights.load("model.embed_tokens.weight", DType::F32, &Device::Cpu).is_ok());
    let err = c.require_tokenizer().unwrap_err().to_string();
    assert!(err.contains("model.gguf") && !err.contains('\n'), "{err}");
    err
}

#[test]
fn a_tokenizer_of_another_kind_is_missed_only_by_those_who_need_it() {
    for (model, want) in [("bert", "bert"), ("gpt2", "tokenizer.ggml.tokens")] {
        let mut g = tiny_llama();
        g.set("tokenizer.ggml.model", model);
        assert!(no_tokenizer(&g.bytes()).contains(want), "{model}");
    }
}

#[test]
fn sentencepiece_falls_back_to_bytes() {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    let pieces = ["▁", "h", "e", "l", "o", "▁h", "el", "lo", "▁he", "ello", "▁hello", "ll"];
    tokens.extend(pieces.map(String::from));
    let scores = (0..259).map(|_| 0.0).chain((0..pieces.len()).map(|i| -(i as f32))).collect();
    let types = [2, 3, 3].into_iter().chain([6; 256]).chain([1; 12]).collect();
    let n = tokens.len();
    let mut g = tiny_llama();
    g.set("tokenizer.ggml.model", "llama").set("tokenizer.ggml.tokens", Meta::Strs(tokens));
    g.set("tokenizer.ggml.scores", Meta::F32s(scores)).set("tokenizer.ggml.token_type", Meta::I32s(types));
    g.tensors[0].1 = Data::f32(&[n, 8], &vec![0.0; n * 8]);
    let c = open_bytes(&g.bytes()).unwrap();
    let tok = c.require_tokenizer().unwrap();
    assert_eq!((tok.bos_id, tok.eos_ids.as_slice(), tok.add_bos), (Some(1), &[2][..], Some(true)));
    let ids = tok.encode("hello é", true).unwrap();
    let texts: Vec<String> = ids.iter().map(|&id| tok.token(id).unwrap()).collect();
    assert_eq!(texts, ["<s>", "▁hello", "▁", "<0xC3>", "<0xA9>"]);
    assert_eq!(tok.decode(&ids, true).unwrap(), "hello é");
    let mut stream = tok.stream(true);
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces.concat() + &stream.finish().unwrap(), "hello é");
    g.set("tokenizer.ggml.scores", Meta::F32s(vec![0.0]));
    assert!(no_tokenizer(&g.bytes()).contains("tokenizer.ggml.scores"));
}

//! Files with very many parts: numbers beyond those of any published file are refused by name, and numbers that are
//! allowed are read quickly. A step that takes time with the square of a number shows here as a test that does not end.
#![allow(missing_docs)]

mod common;

use common::*;
use loader::Checkpoint;
use serde_json::json;
use std::path::Path;

fn open(path: &Path) -> Result<Checkpoint, loader::LoadError> {
    Checkpoint::open(path.to_str().unwrap(), &offline())
}

#[test]
fn more_special_tokens_than_any_vocabulary_has_are_refused() {
    for (count, kind) in [(200_000, 3), (40_000, 4)] {
        let mut g = tiny_llama();
        let tokens: Vec<String> = (0..count).map(|i| format!("<|{i}|>")).collect();
        g.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.tokens", Meta::Strs(tokens));
        g.set("tokenizer.ggml.token_type", Meta::I32s(vec![kind; count]))
            .set("tokenizer.ggml.merges", Meta::Strs(vec![]));
        g.tensors[0].1 = Data::f32(&[count, 8], &vec![0.0; count * 8]);
        let dir = tempfile::tempdir().unwrap();
        let found = open(&g.write(dir.path())).unwrap();
        let error = found.require_tokenizer().unwrap_err().to_string();
        assert!(error.contains(&format!("{count} tokens are special; at most 32768")), "{error}");
    }
    let added = |id: usize| json!({"id": id, "content": format!("<|{id}|>"), "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let json = |count: usize| {
        let tokens: Vec<_> = (0..count).map(added).collect();
        json!({"added_tokens": tokens, "model": {"type": "BPE", "vocab": {}, "merges": []}}).to_string()
    };
    let read = |count| loader::Tokenizer::from_json(Path::new("tokenizer.json"), json(count).as_bytes());
    assert!(read(32_769).unwrap_err().to_string().contains("32769 tokens are matched whole"));
    assert_eq!(read(8000).unwrap().encode("<|7|><|7999|>", false).unwrap(), [7, 7999]);
}

#[test]
fn thousands_of_shards_are_one_checkpoint() {
    const SHARDS: usize = 4000;
    let dir = folder(&[]);
    let name = |i: usize| format!("model-{i:05}-of-{SHARDS:05}.safetensors");
    let mut map = serde_json::Map::new();
    for i in 0..SHARDS {
        let header = json!({format!("t{i}"): {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}});
        std::fs::write(dir.path().join(name(i)), safetensors(&header, &(i as f32).to_le_bytes())).unwrap();
        map.insert(format!("t{i}"), json!(name(i)));
    }
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(index, json!({"weight_map": map}).to_string()).unwrap();
    let found = open(dir.path()).unwrap();
    assert_eq!((found.weights.names().len(), found.origin.files.len()), (SHARDS, SHARDS + 2));
    let last = found.weights.load("t3999", candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    assert_eq!(values(&last), [3999.0]);
}

#[test]
fn thousands_of_parts_of_a_gguf_file_are_one_checkpoint() {
    let whole = tiny_llama();
    let dir = tempfile::tempdir().unwrap();
    let parts = 4000;
    let name = |i: usize| dir.path().join(format!("m-{i:05}-of-{parts:05}.gguf"));
    for i in 0..parts {
        let first = i == 0;
        let mut part = Gguf {
            meta: if first { whole.meta.clone() } else { vec![] },
            tensors: if first { whole.tensors.clone() } else { vec![] },
        };
        part.set("split.no", Meta::Raw(2, (i as u16).to_le_bytes().to_vec()));
        part.set("split.count", Meta::Raw(2, (parts as u16).to_le_bytes().to_vec()));
        std::fs::write(name(i + 1), part.bytes()).unwrap();
    }
    let found = open(&name(parts)).unwrap();
    assert_eq!(found.origin.files.len(), parts);
    std::fs::remove_file(name(1234)).unwrap();
    assert!(open(&name(1)).unwrap_err().to_string().contains("m-01234-of-04000.gguf"));
    // A name with a number of parts that no model has is read as an ordinary name.
    let claims = dir.path().join("m-00001-of-09999.gguf");
    std::fs::copy(name(1), &claims).unwrap();
    assert!(open(&claims).unwrap_err().to_string().contains("split.count"));
}

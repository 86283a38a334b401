//! Folders and embedded bytes, good and bad.
#![allow(missing_docs)]

mod common;

use candle_core::{DType, Device};
use common::*;
use loader::{Checkpoint, LoadError, SafetensorsSource};
use serde_json::json;
use std::path::Path;

fn open(dir: &Path) -> Result<Checkpoint, LoadError> {
    Checkpoint::open(dir.to_str().unwrap(), &offline())
}

/// The error of opening a folder whose model.safetensors has these bytes.
fn refused(bytes: &[u8]) -> String {
    let dir = folder(&[("model.safetensors", bytes)]);
    let mut options = offline();
    let mapped = Checkpoint::open(dir.path().to_str().unwrap(), &options).unwrap_err().to_string();
    options.mmap = false;
    let read = Checkpoint::open(dir.path().to_str().unwrap(), &options).unwrap_err().to_string();
    assert_eq!(mapped, read);
    assert!(mapped.contains("model.safetensors"), "the file is not named: {mapped}");
    assert!(!mapped.contains('\n'), "more than one line: {mapped}");
    mapped
}

#[test]
fn a_folder_opens_mapped_and_read() {
    let dir = folder(&[("model.safetensors", &two_tensors())]);
    for mmap in [true, false] {
        let mut options = offline();
        options.mmap = mmap;
        let c = Checkpoint::open(dir.path().to_str().unwrap(), &options).unwrap();
        assert_eq!(c.weights.names(), ["a", "b"]);
        assert_eq!(c.weights.shape("a").unwrap().dims(), [2, 2]);
        assert_eq!(c.weights.dtype("b"), Some(DType::F32));
        let a = c.weights.load("a", DType::BF16, &Device::Cpu).unwrap();
        assert_eq!((a.dtype(), values(&a)), (DType::BF16, vec![0., 1., 2., 3.]));
        assert_eq!(values(&c.weights.load("b", DType::F32, &Device::Cpu).unwrap()), [4., 5., 6.]);
        let err = c.weights.load("c", DType::F32, &Device::Cpu).unwrap_err().to_string();
        assert!(err.contains("model.safetensors") && err.contains("tensor c"), "{err}");
        let sizes: Vec<_> = c.origin.files.iter().map(|f| (f.name.as_str(), f.size)).collect();
        assert_eq!(sizes, [("model.safetensors", two_tensors().len() as u64), ("config.json", 40)]);
        let digest = c.origin.files[1].sha256().unwrap();
        assert_eq!(digest.len(), 64);
        assert!(c.require_tokenizer().unwrap_err().to_string().contains("tokenizer.json"));
        assert!(c.render_chat(&[("user", "x")], true).is_err());
    }
}

/// Three tensors are read into one or, if their dtypes differ, stacked afterwards.
#[test]
fn rows_of_several_tensors() {
    let row = |dtype: &str, a: u64, b: u64| json!({"dtype": dtype, "shape": [(b - a) / 12, 3], "data_offsets": [a, b]});
    let data: Vec<u8> = (0..18).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let narrow = json!({"dtype": "BF16", "shape": [2, 3], "data_offsets": [36, 48]});
    let file = |c: serde_json::Value, data: &[u8]| {
        let header = json!({"a": row("F32", 0, 24), "b": row("F32", 24, 36), "c": c}).to_string();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
    };
    let (same, mixed) = (file(row("F32", 36, 72), &data), file(narrow, &data[..48]));
    for (file, rows) in [(same, 6), (mixed, 5)] {
        let dir = folder(&[("model.safetensors", &file)]);
        let weights = open(dir.path()).unwrap().weights;
        for (names, rows) in [(&["c", "a", "b"][..], rows), (&["b"], 1)] {
            for dtype in [DType::F32, DType::BF16] {
                let got = weights.load_rows(names, dtype, &Device::Cpu).unwrap();
                let want = attn_models::load_then_stack(weights.as_ref(), names, dtype, &Device::Cpu).unwrap();
                assert_eq!((got.dims(), got.dtype()), (&[rows, 3][..], dtype));
                assert_eq!(values(&got), values(&want), "{names:?}");
            }
        }
        assert!(weights.load_rows(&[], DType::F32, &Device::Cpu).is_err());
        let err = weights.load_rows(&["a", "z"], DType::F32, &Device::Cpu).unwrap_err().to_string();
        assert!(err.contains("tensor z"), "{err}");
    }
}

#[test]
fn every_float_dtype_becomes_every_other() {
    let xs: Vec<f32> = (0..5000).map(|i| ((i * 37) % 1001) as f32 / 64.0 - 7.5).collect();
    let all = |f: fn(f32) -> Vec<u8>| xs.iter().flat_map(|&x| f(x)).collect::<Vec<u8>>();
    let bf16 = |x: f32| half::bf16::from_f32(x).to_le_bytes().to_vec();
    let f16 = |x: f32| half::f16::from_f32(x).to_le_bytes().to_vec();
    for (dtype, bytes, round) in [
        ("F64", all(|x| f64::from(x).to_le_bytes().to_vec()), (|x| x) as fn(f32) -> f32),
        ("F32", all(|x| x.to_le_bytes().to_vec()), |x| x),
        ("BF16", all(bf16), |x| half::bf16::from_f32(x).to_f32()),
        ("F16", all(f16), |x| half::f16::from_f32(x).to_f32()),
    ] {
        // A single byte first, so that nothing is aligned.
        let n = bytes.len();
        let header = json!({
            "odd": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "x": {"dtype": dtype, "shape": [5000], "data_offsets": [1, n + 1]},
        });
        let source =
            SafetensorsSource::from_bytes("x", safetensors(&header, &[vec![7], bytes].concat()).into()).unwrap();
        use attn_models::TensorSource;
        for (target, again) in [
            (DType::F32, (|x| x) as fn(f32) -> f32),
            (DType::BF16, |x| half::bf16::from_f32(x).to_f32()),
            (DType::F16, |x| half::f16::from_f32(x).to_f32()),
            (DType::F64, |x| x),
        ] {
            let t = source.load("x", target, &Device::Cpu).unwrap();
            let want: Vec<f32> = xs.iter().map(|&x| again(round(x))).collect();
            assert_eq!((t.dtype(), values(&t)), (target, want), "{dtype} to {target:?}");
        }
        let odd = source.load("odd", DType::U8, &Device::Cpu).unwrap();
        assert_eq!(odd.to_vec1::<u8>().unwrap(), [7]);
    }
}

#[test]
fn shards_equal_one_file() {
    let whole = open(&golden("llama")).unwrap();
    let tensors = golden_tensors("llama");
    let dir = folder(&[]);
    let (mut map, names) = (serde_json::Map::new(), tensors.keys().cloned().collect::<Vec<_>>());
    for (i, names) in names.chunks(names.len().div_ceil(3)).enumerate() {
        let shard = format!("model-0000{}-of-00003.safetensors", i + 1);
        let held = names.iter().map(|n| (n.clone(), tensors[n].clone())).collect();
        candle_core::safetensors::save(&held, dir.path().join(&shard)).unwrap();
        map.extend(names.iter().map(|n| (n.clone(), json!(shard))));
    }
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    let sharded = open(dir.path()).unwrap();
    assert_eq!(sharded.weights.names(), whole.weights.names());
    for name in whole.weights.names() {
        let [a, b] = [&whole, &sharded].map(|c| values(&c.weights.load(&name, DType::F32, &Device::Cpu).unwrap()));
        assert_eq!(a, b, "{name}");
    }
    assert_eq!(sharded.origin.files.len(), 5);

    // Tensors that the index does not list are part of the checkpoint all the same.
    let mut fewer = map.clone();
    let left_out = names.first().unwrap();
    fewer.remove(left_out);
    std::fs::write(&index, json!({"weight_map": fewer}).to_string()).unwrap();
    assert_eq!(open(dir.path()).unwrap().weights.names(), whole.weights.names());
    // But two shards may not have the same tensor.
    let second = dir.path().join("model-00002-of-00003.safetensors");
    let kept = std::fs::read(&second).unwrap();
    let mut held = candle_core::safetensors::load(&second, &Device::Cpu).unwrap();
    held.insert(left_out.clone(), tensors[left_out].clone());
    candle_core::safetensors::save(&held, &second).unwrap();
    let err = open(dir.path()).unwrap_err().to_string();
    assert!(err.contains(left_out.as_str()) && err.contains("in two shards"), "{err}");
    std::fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    assert_eq!(open(dir.path()).unwrap().weights.names(), whole.weights.names());
    std::fs::write(&second, kept).unwrap();

    // The index names a tensor that the shard does not have.
    let first = map.values().next().unwrap().clone();
    map.insert("model.extra".to_string(), first.clone());
    std::fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    let err = open(dir.path()).unwrap_err().to_string();
    assert!(err.contains("model.extra") && err.contains(first.as_str().unwrap()), "{err}");
    // The index names a shard that does not exist.
    map.insert("model.extra".to_string(), json!("model-9.safetensors"));
    std::fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    let err = open(dir.path()).unwrap_err().to_string();
    assert!(err.contains("model-9.safetensors is missing") && err.contains("model.extra"), "{err}");
}

#[test]
fn indexes_that_lie() {
    for (index, want) in [
        (r#"{"weight_map": {"a": "../secret.safetensors"}}"#, "outside the folder"),
        (r#"{"weight_map": {"a": "/etc/passwd"}}"#, "outside the folder"),
        (r#"{"weight_map": {"a": "x\\..\\y"}}"#, "outside the folder"),
        (r#"{"weight_map": {"a": ""}}"#, "outside the folder"),
        (r#"{"weight_map": {}}"#, "empty"),
        (r#"{"weight_map": {"a": "x", "a": "y"}}"#, "twice"),
        (r#"{"weight_map": ["a"]}"#, "not a valid index"),
        ("{", "not a valid index"),
    ] {
        let dir = folder(&[("model.safetensors.index.json", index.as_bytes())]);
        let err = open(dir.path()).unwrap_err().to_string();
        assert!(err.contains(want) && err.contains("index.json"), "{index}: {err}");
    }
}

#[test]
fn safetensors_headers_that_lie() {
    let good = two_tensors();
    let one = |dtype: &str, shape: serde_json::Value, offsets: [u64; 2]| {
        json!({"weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).to_string()
    };
    let with = |header: String, data: usize| refused(&safetensors_text(&header, &vec![0; data]));
    assert!(refused(b"").contains("0 bytes long"));
    assert!(refused(&u64::MAX.to_le_bytes()).contains("header of"));
    assert!(refused(&[&(1u64 << 40).to_le_bytes()[..], &good[8..]].concat()).contains("the format allows"));
    assert!(refused(&[&5000u64.to_le_bytes()[..], &good[8..]].concat()).contains("truncated"));
    assert!(refused(&safetensors_text("[1, 2]", &[])).contains("malformed"));
    assert!(refused(&safetensors_text("\u{0}\u{1}", &[])).contains("malformed"));
    assert!(refused(&safetensors_text(&"[".repeat(100_000), &[])).contains("malformed"));
    assert!(refused(&good[..good.len() - 1]).contains("tensor b"));
    assert!(refused(&[&good[..], &[0]].concat()).contains("follow the last tensor"));
    for (header, data, want) in [
        (one("F32", json!([2]), [0, 4]), 4, "takes 8 bytes"),
        (one("F32", json!([1]), [4, 0]), 4, "takes 4 bytes"),
        (one("F32", json!([1]), [4, 8]), 8, "hole"),
        (one("F32", json!([1u64 << 40, 1u64 << 40]), [0, 4]), 4, "overflows"),
        (one("F64", json!([u64::MAX]), [0, 8]), 8, "overflows"),
        (one("F4", json!([3]), [0, 1]), 1, "overflows"),
        (one("Q9", json!([1]), [0, 4]), 4, "unknown dtype"),
        (one("F32", json!(vec![1; 17]), [0, 4]), 4, "17 dimensions"),
        (one("F32", json!([1]), [u64::MAX - 4, u64::MAX]), 4, "ends at byte"),
    ] {
        let err = with(header, data);
        assert!(err.contains("tensor weight") && err.contains(want), "{err}");
    }
    assert!(with(one("F32", json!([-1]), [0, 4]), 4).contains("malformed"));
    let twice =
        r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    assert!(with(twice.to_string(), 2).contains("named twice"));
    let overlap =
        r#"{"v":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"w":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#;
    assert!(with(overlap.to_string(), 3).contains("overlaps"));
}

#[test]
fn eight_bit_floats_are_refused_by_name() {
    let header = json!({"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}});
    let dir = folder(&[("model.safetensors", &safetensors(&header, &[0; 4]))]);
    let c = open(dir.path()).unwrap();
    let err = c.weights.load("w", DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert!(err.contains("tensor w") && err.contains("F8_E4M3") && err.contains("BF16"), "{err}");
}

#[test]
fn folders_without_usable_weights() {
    let err = open(folder(&[]).path()).unwrap_err().to_string();
    assert!(err.contains("no weights"), "{err}");
    let err = open(folder(&[("pytorch_model.bin", b"")]).path()).unwrap_err();
    assert!(matches!(err, LoadError::PickledWeights { .. }), "{err}");
    assert!(err.to_string().contains("safe_serialization"));
    let err = open(folder(&[("x.Q4_0.gguf", b"")]).path()).unwrap_err().to_string();
    assert!(err.contains("x.Q4_0.gguf"), "{err}");
    let err = open(folder(&[("other.safetensors", b"")]).path()).unwrap_err().to_string();
    assert!(err.contains("other.safetensors"), "{err}");
    let empty = tempfile::tempdir().unwrap();
    let err = open(empty.path()).unwrap_err().to_string();
    assert!(err.contains("config.json is missing"), "{err}");
    let file = empty.path().join("model.safetensors");
    std::fs::write(&file, two_tensors()).unwrap();
    let err = open(&file).unwrap_err().to_string();
    assert!(err.contains("give the folder"), "{err}");
}

#[test]
fn json_beside_the_weights() {
    let weights = two_tensors();
    for (name, bytes, want) in [
        ("config.json", &b"{"[..], "not valid JSON"),
        ("config.json", b"[]", "expected a JSON object"),
        ("config.json", br#"{"eos_token_id": "x"}"#, "eos_token_id"),
        ("config.json", br#"{"eos_token_id": -5}"#, "eos_token_id"),
        ("generation_config.json", br#"{"eos_token_id": [1, 4294967296]}"#, "eos_token_id"),
        ("tokenizer.json", b"{}", "tokenizer"),
        ("tokenizer_config.json", b"nope", "not valid JSON"),
        ("tokenizer_config.json", br#"{"chat_template": "{% if %}"}"#, "chat template"),
        ("chat_template.jinja", b"{% if %}", "chat template"),
        ("chat_template.jinja", b"\xff\xfe", "UTF-8"),
    ] {
        let dir = folder(&[("model.safetensors", &weights), (name, bytes)]);
        let used = |c: Checkpoint| {
            c.tokenizer()?;
            c.render_chat(&[("user", "x")], true).map(drop)
        };
        let err = open(dir.path()).and_then(used).unwrap_err().to_string();
        assert!(err.contains(want) && err.contains(name) && !err.contains('\n'), "{name}: {err}");
    }
}

#[test]
fn ends_of_text_and_templates() {
    let tokenizer =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../attn-cli/models/tiny-austen/tokenizer.json"));
    let tokenizer = tokenizer.unwrap();
    let config = json!({
        "add_bos_token": true, "bos_token": {"content": "b"}, "eos_token": "e",
        "chat_template": [{"name": "tool", "template": "no"}, {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"}],
    });
    let dir = folder(&[
        ("model.safetensors", &two_tensors()),
        ("tokenizer.json", &tokenizer),
        ("tokenizer_config.json", config.to_string().as_bytes()),
        ("generation_config.json", br#"{"eos_token_id": [3, 5], "bos_token_id": 2}"#),
        ("config.json", br#"{"vocab_size": 1024, "eos_token_id": 7}"#),
    ]);
    let c = open(dir.path()).unwrap();
    assert_eq!((c.generation.bos_id, c.generation.eos_ids.as_slice()), (Some(2), &[3, 5][..]));
    let tok = c.require_tokenizer().unwrap();
    let (bos, eos) = (tok.id("b").unwrap(), tok.id("e").unwrap());
    assert_eq!((tok.bos_id, tok.eos_ids.as_slice()), (Some(bos), &[eos][..]));
    let plain = tok.encode("She was glad.", false).unwrap();
    assert_eq!(tok.encode("She was glad.", true).unwrap(), [vec![bos], plain].concat());
    assert_eq!(c.render_chat(&[("user", "-")], true).unwrap(), "b-e");

    // A tokenizer with more tokens than the model has embeddings is refused where it matters.
    let small = folder(&[("model.safetensors", &two_tensors()), ("tokenizer.json", &tokenizer)]);
    let err = open(small.path()).unwrap().require_tokenizer().unwrap().encode("She was glad.", false).unwrap_err();
    assert!(matches!(err, LoadError::TokenOutOfVocabulary { vocab_size: 8, .. }), "{err}");
}

const CONFIG: &[u8] = include_bytes!("../../attn-cli/models/tiny-austen/config.json");
const WEIGHTS: &[u8] = include_bytes!("../../attn-cli/models/tiny-austen/model.safetensors");
const TOKENIZER: &[u8] = include_bytes!("../../attn-cli/models/tiny-austen/tokenizer.json");

#[test]
fn embedded_equals_the_folder() {
    let embedded = Checkpoint::from_bytes(CONFIG, WEIGHTS, Some(TOKENIZER)).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../attn-cli/models/tiny-austen");
    let folder = open(&path).unwrap();
    assert_eq!(embedded.config, folder.config);
    assert_eq!(embedded.weights.names(), folder.weights.names());
    for name in folder.weights.names() {
        let [a, b] = [&embedded, &folder].map(|c| values(&c.weights.load(&name, DType::F32, &Device::Cpu).unwrap()));
        assert_eq!(a, b, "{name}");
    }
    let digest = |c: &Checkpoint, name: &str| {
        c.origin.files.iter().find(|f| f.name == name).map(|f| f.sha256().unwrap()).unwrap()
    };
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert_eq!(digest(&embedded, name), digest(&folder, name));
    }
    assert!(Checkpoint::from_bytes(b"1", WEIGHTS, None).is_err());
    assert!(Checkpoint::from_bytes(CONFIG, &WEIGHTS[..1000], None).is_err());
    assert!(Checkpoint::from_bytes(CONFIG, WEIGHTS, Some(b"{")).is_err());
}

#[test]
fn streaming_equals_decoding_at_once() {
    let c = Checkpoint::from_bytes(CONFIG, WEIGHTS, Some(TOKENIZER)).unwrap();
    let tok = c.require_tokenizer().unwrap();
    let text = "Anne — \u{201c}naïve\u{201d} 🙂 said 日本 so.\n\n  Yes! \u{1F469}\u{200D}\u{1F467}";
    let ids = tok.encode(text, false).unwrap();
    assert_eq!(tok.decode(&ids, false).unwrap(), text);
    let mut stream = tok.stream(false);
    let mut out = String::new();
    for &id in &ids {
        let piece = stream.push(id).unwrap();
        assert!(!piece.contains('\u{FFFD}'), "an incomplete character came out: {piece:?}");
        out += &piece;
    }
    out += &stream.finish().unwrap();
    assert_eq!(out, text);
    // If the ids end within a character, a replacement character comes at the end.
    let cut = tok.encode("🙂", false).unwrap();
    let mut stream = tok.stream(false);
    assert_eq!(stream.push(cut[0]).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{FFFD}");
    // Bytes that never become a character are not held back for ever.
    let mut stream = tok.stream(false);
    let shown: String = (0..20).map(|_| stream.push(cut[0]).unwrap()).collect();
    assert!(!shown.is_empty());
}

/// Each of these makes the tokenizers crate panic, the last one only when a text is tokenised.
#[test]
fn tokenizers_that_panic_are_errors() {
    let good: serde_json::Value = serde_json::from_slice(TOKENIZER).unwrap();
    for (part, value) in [
        ("decoder", json!({"type": "Strip"})),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
        (
            "model",
            json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "continuing_subword_prefix": "toolong"}),
        ),
    ] {
        let mut bad = good.clone();
        bad[part] = value;
        let err = loader::Tokenizer::from_json(Path::new("x/tokenizer.json"), bad.to_string().as_bytes()).unwrap_err();
        assert!(err.to_string().contains("x/tokenizer.json") && !err.to_string().contains('\n'), "{part}: {err}");
    }
    let mut bad = good.clone();
    bad["post_processor"] = json!({"type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [{"SpecialToken": {"id": "zz", "type_id": 0}}]});
    let tok = loader::Tokenizer::from_json(Path::new("tokenizer.json"), bad.to_string().as_bytes());
    if let Ok(tok) = tok {
        assert!(tok.encode("hello", true).is_err());
    }
}

/// A mapped file that shrinks kills the process, which cannot be caught; a file that is read instead gives an error.
#[test]
fn a_file_that_shrinks_is_an_error_without_a_map() {
    let dir = folder(&[("model.safetensors", &two_tensors())]);
    let mut options = offline();
    options.mmap = false;
    let c = Checkpoint::open(dir.path().to_str().unwrap(), &options).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("model.safetensors")).unwrap();
    file.set_len(two_tensors().len() as u64 - 8).unwrap();
    assert_eq!(values(&c.weights.load("a", DType::F32, &Device::Cpu).unwrap()), [0., 1., 2., 3.]);
    let err = c.weights.load("b", DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert!(err.contains("model.safetensors") && err.contains("can't read"), "{err}");
}

/// The whole path of a hostile folder: a shard by an absolute link is followed, as the cache's own links are, but what
/// it points to still has to be weights.
#[cfg(unix)]
#[test]
fn a_link_to_something_else_is_refused_as_what_it_is() {
    for target in ["/dev/zero", "/etc/hostname", "."] {
        let dir = folder(&[]);
        std::os::unix::fs::symlink(target, dir.path().join("model.safetensors")).unwrap();
        let err = open(dir.path()).unwrap_err().to_string();
        assert!(err.contains("model.safetensors") && !err.contains('\n'), "{target}: {err}");
    }
}

/// Every file that a folder may have, replaced by something that waits, has no end, is not a file, or leads nowhere.
#[cfg(unix)]
#[test]
fn what_is_no_file_is_an_error_that_names_it() {
    let names = [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "chat_template.jinja",
        "chat_template.json",
    ];
    for name in names {
        for kind in ["fifo", "socket", "folder", "endless", "nowhere", "circle"] {
            let weights = two_tensors();
            let dir = folder(&[("model.safetensors", &weights), ("tokenizer.json", b"{}")]);
            let path = dir.path().join(name);
            let _ = std::fs::remove_file(&path);
            if name.ends_with("index.json") {
                std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
            }
            let link = |target: &str| std::os::unix::fs::symlink(target, &path).unwrap();
            match kind {
                "fifo" => assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success()),
                "socket" => drop(std::os::unix::net::UnixListener::bind(&path).unwrap()),
                "folder" => std::fs::create_dir(&path).unwrap(),
                "endless" => link("/dev/zero"),
                "nowhere" => link("not/there"),
                _ => link(name),
            }
            let err = open(dir.path()).unwrap_err().to_string();
            assert!(err.contains(&format!("{name}: can't open")), "{name} as {kind}: {err}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert!(open(&path).unwrap_err().to_string().contains("not a regular file"));
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("gone.gguf", &path).unwrap();
    assert!(matches!(open(&path), Err(LoadError::NotFound { .. })));
}

#[cfg(unix)]
#[test]
fn links_are_followed_as_in_the_cache() {
    let dir = folder(&[("blob", &two_tensors())]);
    std::os::unix::fs::symlink("blob", dir.path().join("model.safetensors")).unwrap();
    assert_eq!(open(dir.path()).unwrap().weights.names().len(), 2);
    std::fs::remove_file(dir.path().join("blob")).unwrap();
    assert!(open(dir.path()).is_err());
}

/// A name, a dtype, a shape and bytes.
type Stored<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>);

/// A folder with a config and tensors of these dtypes and shapes, whose bytes follow each other.
fn scaled(config: &serde_json::Value, tensors: &[Stored]) -> tempfile::TempDir {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert((*name).to_string(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend_from_slice(bytes);
    }
    let dir = folder(&[("model.safetensors", &safetensors(&header.into(), &data))]);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// DeepSeek's FP8: 3 x 5 numbers under scales of blocks of 2 x 2.
#[test]
fn eight_bit_weights_are_read_with_their_scales() {
    let config = json!({"model_type": "llama", "quantization_config":
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [2, 2], "activation_scheme": "dynamic"}});
    // 0x38 is 1, 0xc0 is -2.
    let codes: Vec<u8> = (0..15).map(|i| if i % 2 == 0 { 0x38 } else { 0xc0 }).collect();
    let scales: Vec<u8> = (1..=6u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let good: [Stored; 3] = [
        ("w.weight", "F8_E4M3", &[3, 5], codes.clone()),
        ("w.weight_scale_inv", "F32", &[2, 3], scales.clone()),
        ("norm.weight", "F32", &[1], 1f32.to_le_bytes().to_vec()),
    ];
    let c = open(scaled(&config, &good).path()).unwrap();
    assert_eq!(c.weights.names(), ["norm.weight", "w.weight"]);
    assert_eq!(c.config.get("quantization_config"), None);
    assert!(c.quantization.as_deref().is_some_and(|q| q.contains("FP8") && q.contains("2 x 2")));
    let want: Vec<f32> =
        (0..15).map(|i| (if i % 2 == 0 { 1.0 } else { -2.0 }) * (1 + i / 5 / 2 * 3 + i % 5 / 2) as f32).collect();
    assert_eq!(values(&c.weights.load("w.weight", DType::F32, &Device::Cpu).unwrap()), want);
    let error = |tensors: &[Stored]| open(scaled(&config, tensors).path()).unwrap_err().to_string();
    assert!(error(&good[..1]).contains("w.weight_scale_inv is missing"));
    let short: [Stored; 2] = [good[0].clone(), ("w.weight_scale_inv", "F32", &[2, 2], scales[..16].to_vec())];
    assert!(error(&short).contains("asks for [2, 3]"), "{}", error(&short));
    // If the config does not announce them, they are refused by name.
    let c = open(scaled(&json!({"model_type": "llama"}), &good).path()).unwrap();
    let err = c.weights.load("w.weight", DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert!(err.contains("w.weight") && err.contains("F8_E4M3"), "{err}");
}

/// gpt-oss's experts: two of 2 rows and 32 columns, the low four bits first.
#[test]
fn four_bit_experts_are_read_with_their_exponents() {
    let config = json!({"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}});
    // Codes 2 and 13: 1 and -3.
    let blocks = vec![0xd2; 2 * 2 * 16];
    let good: [Stored; 2] = [
        ("e.down_proj_blocks", "U8", &[2, 2, 1, 16], blocks),
        ("e.down_proj_scales", "U8", &[2, 2, 1], vec![127, 128, 126, 127]),
    ];
    let c = open(scaled(&config, &good).path()).unwrap();
    assert_eq!(c.weights.names(), ["e.down_proj"]);
    let got = c.weights.load("e.down_proj", DType::F32, &Device::Cpu).unwrap();
    assert_eq!((got.dims(), c.weights.shape("e.down_proj").unwrap().dims()), (&[2, 32, 2][..], &[2, 32, 2][..]));
    let want = [[1.0, 2.0], [-3.0, -6.0]].concat().repeat(16);
    let second = [[0.5, 1.0], [-1.5, -3.0]].concat().repeat(16);
    assert_eq!(values(&got), [want, second].concat());
    let bad: [Stored; 2] = [good[0].clone(), ("e.down_proj_scales", "U8", &[2, 1, 2], vec![127; 4])];
    let err = open(scaled(&config, &bad).path()).unwrap_err().to_string();
    assert!(err.contains("e.down_proj_blocks") && err.contains("fit together"), "{err}");
}

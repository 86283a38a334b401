//! Files whose headers, metadata or tables are wrong, and keys that no code reads.

use crate::common::*;
use crate::{open, open_bytes};
use loader::Checkpoint;

/// The error of opening these bytes, which has to name the file and be one line.
fn refused(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let err = open(&path).unwrap_err().to_string();
    assert!(err.contains("model.gguf") && !err.contains('\n'), "{err}");
    err
}

fn refused_with(edit: impl Fn(&mut Gguf)) -> String {
    let mut g = tiny_llama();
    edit(&mut g);
    refused(&g.bytes())
}

#[test]
fn containers_that_lie() {
    let good = tiny_llama().bytes();
    assert!(open_bytes(&good).is_ok());
    for n in (0..good.len().min(700)).step_by(3) {
        refused(&good[..n]);
    }
    assert!(refused(&good[..good.len() - 1]).contains("truncated"));
    let patched = |at: usize, bytes: &[u8]| {
        let mut out = good.clone();
        out[at..at + bytes.len()].copy_from_slice(bytes);
        refused(&out)
    };
    assert!(patched(0, b"GGML").contains("GGUF header"));
    assert!(patched(4, &1u32.to_le_bytes()).contains("version"));
    assert!(patched(4, &3u32.to_be_bytes()).contains("big-endian"));
    assert!(patched(8, &u64::MAX.to_le_bytes()).contains("tensors"));
    assert!(patched(16, &u64::MAX.to_le_bytes()).contains("metadata keys"));
    assert!(patched(24, &u64::MAX.to_le_bytes()).contains("metadata key"));
    assert!(patched(24, &(1u64 << 20).to_le_bytes()).contains("truncated"));
    // One bit of every byte: an error or a file that opens, never a panic.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    for at in 0..good.len().min(700) {
        let mut out = good.clone();
        out[at] ^= 1 << (at * 5 % 8);
        std::fs::write(&path, out).unwrap();
        let _ = open(&path);
    }
}

#[test]
fn metadata_that_lies() {
    let array = |tag: u32, len: u64| [tag.to_le_bytes().to_vec(), len.to_le_bytes().to_vec()].concat();
    for (key, value, want) in [
        ("general.architecture", Meta::from("mamba"), "mamba"),
        ("general.architecture", Meta::U32(1), "general.architecture"),
        ("general.alignment", Meta::U32(0), "power of two"),
        ("general.alignment", Meta::U32(33), "power of two"),
        ("general.alignment", Meta::U32(1 << 31), "power of two"),
        ("split.count", Meta::U32(4), "several files"),
        ("x", Meta::Raw(99, vec![]), "unknown type 99"),
        ("x", Meta::Raw(7, vec![2]), "not a boolean"),
        ("x", Meta::Raw(9, array(4, u64::MAX)), "elements"),
        ("x", Meta::Raw(9, array(8, 1 << 40)), "elements"),
        ("x", Meta::Raw(9, array(9, 1)), "array of arrays"),
        ("x", Meta::Raw(9, array(77, 1)), "unknown type 77"),
        ("x", Meta::Raw(8, [2u64.to_le_bytes().to_vec(), vec![0xff, 0xfe]].concat()), "UTF-8"),
        ("llama.block_count", Meta::U32(0), "layers"),
        ("llama.block_count", Meta::U32(u32::MAX), "layers"),
        ("llama.block_count", Meta::from("two"), "llama.block_count"),
        ("llama.attention.head_count", Meta::U32(0), "heads"),
        ("llama.attention.head_count", Meta::U32(3), "heads"),
        ("llama.attention.head_count_kv", Meta::U32(0), "heads"),
        ("llama.attention.head_count", Meta::I32s(vec![1, 2]), "layer to layer"),
        ("llama.attention.value_length", Meta::U32(3), "key length"),
        ("llama.rope.dimension_count", Meta::U32(5), "dimensions"),
        ("llama.rope.freq_base", Meta::F32(f32::NAN), "finite"),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(f32::INFINITY), "finite"),
        ("llama.expert_count", Meta::U32(8), "not known to this program"),
        ("llama.attention.clamp_kqv", Meta::F32(8.0), "llama.attention.clamp_kqv"),
        ("llama.attn_logit_softcapping", Meta::F32(30.0), "not known to this program"),
        ("clever.trick", Meta::U32(1), "clever.trick"),
    ] {
        let mut g = tiny_llama();
        g.set(key, value);
        let err = open_bytes(&g.bytes()).unwrap_err().to_string();
        assert!(err.contains(want) && !err.contains('\n'), "{key}: {err}");
    }
    assert!(refused_with(|g| _ = g.remove("general.architecture")).contains("general.architecture"));
    assert!(refused_with(|g| _ = g.remove("llama.context_length")).contains("llama.context_length"));
    assert!(refused_with(|g| g.meta.push(("llama.block_count".into(), Meta::U32(1)))).contains("twice"));
}

#[test]
fn tables_that_lie() {
    let tensor = |dims: &[u64], tag: u32, len: usize, offset: Option<u64>| {
        let data = Data { dims: dims.to_vec(), tag, bytes: vec![0; len], offset };
        refused_with(|g| _ = g.tensor("weight", data.clone()))
    };
    for (err, want) in [
        (tensor(&[], 0, 4, None), "0 dimensions"),
        (tensor(&[1; 5], 0, 4, None), "5 dimensions"),
        (tensor(&[u64::MAX, 2], 0, 4, None), "overflows"),
        (tensor(&[1 << 31, 1 << 31], 0, 4, None), "overflows"),
        (tensor(&[1 << 40], 0, 4, None), "truncated"),
        (tensor(&[2, 31], 8, 68, None), "blocks of 32"),
        (tensor(&[4], 0, 16, Some(u64::MAX - 31)), "truncated"),
        (tensor(&[4], 0, 16, Some(1)), "alignment"),
        (tensor(&[4], 0, 16, Some(0)), "overlaps"),
        (tensor(&[256], 21, 110, None), "IQ3_S"),
        (tensor(&[1 << 62, 0], 0, 0, None), "no numbers"),
        (tensor(&[1 << 34, 0, 4], 0, 0, None), "no numbers"),
        (tensor(&[1 << 34, 4], 0, 16, None), "truncated"),
        (tensor(&[4], 0, 16, None), "no llama model"),
        (tensor(&[256], 4, 136, None), "type 4"),
    ] {
        assert!(err.contains("weight") && err.contains(want), "{want}: {err}");
    }
    let twice = refused_with(|g| _ = g.tensor("token_embd.weight", Data::f32(&[8, 8], &[0.0; 64])));
    assert!(twice.contains("twice"), "{twice}");
    let none = refused_with(|g| g.tensors.clear());
    assert!(none.contains("token_embd.weight"), "{none}");
    let odd = refused_with(|g| _ = g.tensor("blk.0.attn_q.weight", Data::f32(&[7, 8], &[0.0; 56])));
    assert!(odd.contains("blk.0.attn_q.weight") && odd.contains("heads"), "{odd}");
}

#[test]
fn what_nothing_reads_is_passed_over_only_when_told_to() {
    let mut g = tiny_llama();
    g.set("llama.final_logit_softcapping", Meta::F32(30.0)).set("general.name", "x").set("llama.pooling_type", "y");
    g.set("llama.expert_count", Meta::U32(0));
    g.tensor("blk.0.attn_sinks.weight", Data::f32(&[2], &[0.0; 2]));
    let dir = tempfile::tempdir().unwrap();
    let path = g.write(dir.path());
    assert!(open(&path).unwrap_err().to_string().contains("llama.final_logit_softcapping"));
    let mut options = offline();
    options.unknown_keys = attn_models::config::UnknownKeys::Collect;
    let c = Checkpoint::open(path.to_str().unwrap(), &options).unwrap();
    let [keys, tensors] = c.warnings.as_slice() else { panic!("{:?}", c.warnings) };
    assert!(keys.ends_with(": llama.final_logit_softcapping") && tensors.ends_with(": blk.0.attn_sinks.weight"));
}

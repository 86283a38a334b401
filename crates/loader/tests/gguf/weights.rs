//! Tensors and configs of golden checkpoints, written as llama.cpp would and read back.

use crate::common::*;
use crate::open;
use attn_models::TensorSource;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use loader::Checkpoint;
use serde_json::Value;

/// What llama.cpp's converter does to Llama's q and k: `(h, 2, d/2)` to `(h, d/2, 2)`.
fn interleave(t: &Tensor, heads: usize) -> Tensor {
    let n = t.dims()[0];
    let rest: usize = t.dims()[1..].iter().product();
    let split = t.reshape((heads, 2, n / heads / 2, rest)).unwrap();
    split.transpose(1, 2).unwrap().contiguous().unwrap().reshape(t.shape()).unwrap()
}

/// Names and values as llama.cpp's converter makes them, written down independently of the loader's table.
fn convert(arch: &str, name: &str, t: &Tensor, heads: usize, kv: usize) -> (String, Tensor) {
    let parts: Vec<&str> = name.split('.').collect();
    let layer = parts.iter().position(|p| *p == "layers" || *p == "h").map(|i| parts[i + 1]);
    let rest = layer.map(|l| name.split_once(&format!(".{l}.")).unwrap().1).unwrap_or(name);
    let (stem, suffix) = rest.rsplit_once('.').unwrap();
    let norm = match (arch, stem) {
        ("gemma3", "post_attention_layernorm") => "post_attention_norm",
        ("gemma3", "pre_feedforward_layernorm") => "ffn_norm",
        ("gemma3", "post_feedforward_layernorm") => "post_ffw_norm",
        (_, "post_attention_layernorm" | "ln_2") => "ffn_norm",
        (_, "input_layernorm" | "ln_1") => "attn_norm",
        (_, "self_attn.q_norm") => "attn_q_norm",
        (_, "self_attn.k_norm") => "attn_k_norm",
        _ => "",
    };
    let stem = match stem {
        _ if !norm.is_empty() => norm,
        "model.embed_tokens" | "transformer.wte" | "transformer.word_embeddings" => "token_embd",
        "transformer.word_embeddings_layernorm" => "token_embd_norm",
        "transformer.wpe" => "position_embd",
        "model.norm" | "transformer.ln_f" => "output_norm",
        "lm_head" => "output",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" | "attn.c_proj" | "self_attention.dense" => "attn_output",
        "self_attn.qkv_proj" | "attn.c_attn" | "self_attention.query_key_value" => "attn_qkv",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" | "mlp.gate_up_proj" | "mlp.c_fc" | "mlp.dense_h_to_4h" => "ffn_up",
        "mlp.down_proj" | "mlp.c_proj" | "mlp.dense_4h_to_h" => "ffn_down",
        other => panic!("{other}"),
    };
    let t = match (arch, stem) {
        ("llama", "attn_q") => interleave(t, heads),
        ("llama", "attn_k") => interleave(t, kv),
        ("gemma3", s) if s.ends_with("norm") => (t + 1.0).unwrap(),
        ("gpt2", "attn_qkv" | "attn_output" | "ffn_up" | "ffn_down") if suffix == "weight" => t.t().unwrap(),
        ("bloom", "attn_qkv") => {
            let rest: usize = t.dims()[1..].iter().product();
            let split = t.reshape((heads, 3, t.dims()[0] / heads / 3, rest)).unwrap();
            split.transpose(0, 1).unwrap().contiguous().unwrap().reshape(t.shape()).unwrap()
        }
        _ => t.clone(),
    };
    let prefix = layer.map_or(String::new(), |l| format!("blk.{l}."));
    (format!("{prefix}{stem}.{suffix}"), t.contiguous().unwrap())
}

/// The metadata that the converter writes for a golden config.
fn metadata(g: &mut Gguf, arch: &str, config: &Value) {
    g.set("general.architecture", arch);
    let get = |keys: &[&str]| keys.iter().find_map(|k| config.get(k)?.as_u64()).map(|v| v as u32);
    let heads = get(&["num_attention_heads", "n_head"]).unwrap();
    let mut int = |key: &str, value: Option<u32>| {
        if let Some(v) = value {
            g.set(&format!("{arch}.{key}"), Meta::U32(v));
        }
    };
    int("block_count", get(&["num_hidden_layers", "n_layer"]));
    int("embedding_length", get(&["hidden_size", "n_embd"]));
    int("feed_forward_length", get(&["intermediate_size"]).or(Some(128)));
    int("context_length", get(&["max_position_embeddings", "n_positions", "seq_length"]).or(Some(32)));
    int("attention.head_count", Some(heads));
    let kv = if ["gpt2", "bloom"].contains(&arch) { Some(heads) } else { get(&["num_key_value_heads"]) };
    int("attention.head_count_kv", kv);
    int("attention.key_length", get(&["head_dim"]));
    int("attention.value_length", get(&["head_dim"]));
    if ["gemma3", "phi3"].contains(&arch) {
        int("attention.sliding_window", get(&["sliding_window"]));
    }
    let eps = if ["gpt2", "bloom"].contains(&arch) { "epsilon" } else { "rms_epsilon" };
    g.set(&format!("{arch}.attention.layer_norm_{eps}"), Meta::F32(1e-6));
    let rope = &config["rope_parameters"];
    let rope = rope.get("full_attention").unwrap_or(rope);
    if let Some(theta) = rope["rope_theta"].as_f64() {
        g.set(&format!("{arch}.rope.freq_base"), Meta::F32(theta as f32));
    }
}

fn as_gguf(arch: &str, name: &str) -> Gguf {
    let config = golden_config(name);
    let mut g = Gguf::default();
    metadata(&mut g, arch, &config);
    let count = |keys: [&str; 2]| keys.iter().find_map(|k| config.get(k)?.as_u64()).unwrap() as usize;
    let heads = count(["num_attention_heads", "n_head"]);
    let kv = config.get("num_key_value_heads").and_then(Value::as_u64).map_or(heads, |k| k as usize);
    for (name, t) in golden_tensors(name) {
        let (name, t) = convert(arch, &name, &t, heads, kv);
        g.tensor(&name, Data::f32(t.dims(), &values(&t)));
    }
    g
}

#[test]
fn golden_checkpoints_come_back_as_they_were() {
    for (arch, name) in [
        ("llama", "llama"),
        ("llama", "llama-head-dim"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
        ("gemma3", "gemma3"),
        ("phi3", "phi3-longrope"),
        ("gpt2", "gpt2"),
        ("bloom", "bloom"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = as_gguf(arch, name).write(dir.path());
        let want = golden_tensors(name);
        for mmap in [true, false] {
            let mut options = offline();
            options.mmap = mmap;
            let c = Checkpoint::open(path.to_str().unwrap(), &options).unwrap();
            assert_eq!(c.weights.names(), want.keys().cloned().collect::<Vec<_>>(), "{name}");
            for (tensor, t) in &want {
                let got = c.weights.load(tensor, DType::F32, &Device::Cpu).unwrap();
                assert_eq!(c.weights.shape(tensor).unwrap(), *t.shape(), "{name} {tensor}");
                assert_eq!(got.shape(), t.shape(), "{name} {tensor}");
                // Adding and taking away one rounds; everything else is exact.
                let exact = arch != "gemma3";
                let same = |a: f32, b: f32| a == b || !exact && (a - b).abs() < 2e-7;
                let equal = values(&got).iter().zip(values(t)).all(|(a, b)| same(*a, b));
                assert!(equal, "{name} {tensor}");
            }
            let config = golden_config(name);
            for key in [
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "head_dim",
                "n_embd",
                "n_head",
                "n_layer",
                "intermediate_size",
                "vocab_size",
                "tie_word_embeddings",
                "layer_types",
                "sliding_window",
            ] {
                if let (Some(a), Some(b)) = (c.config.get(key), config.get(key).filter(|v| !v.is_null()))
                    && (key, arch) != ("layer_types", "gemma3")
                {
                    assert_eq!(a, b, "{name} {key}");
                }
            }
        }
    }
}

#[test]
fn quantised_rows_are_put_back_exactly() {
    let (rows, cols, heads) = (64, 64, 4);
    let values_in: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0).collect();
    let original = Tensor::from_vec(values_in, (rows, cols), &Device::Cpu).unwrap();
    for (dtype, tag) in [(GgmlDType::Q8_0, 8), (GgmlDType::Q4_1, 3), (GgmlDType::F16, 1), (GgmlDType::BF16, 30)] {
        let want = QTensor::quantize(&original, dtype).unwrap();
        let stored = QTensor::quantize(&interleave(&original, heads), dtype).unwrap();
        let mut g = tiny_llama();
        g.set("llama.embedding_length", Meta::U32(64)).set("llama.attention.head_count", Meta::U32(heads as u32));
        let bytes = stored.data().unwrap().into_owned();
        let data = Data { dims: vec![rows as u64, cols as u64], tag, bytes, offset: None };
        g.tensor("blk.0.attn_q.weight", data);
        let dir = tempfile::tempdir().unwrap();
        let path = g.write(dir.path());
        let name = "model.layers.0.self_attn.q_proj.weight";
        let c = open(&path).unwrap();
        let got = c.weights.load(name, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(values(&got), values(&want.dequantize(&Device::Cpu).unwrap()), "{dtype:?}");
        assert!(c.weights.quantized(name, &Device::Cpu).unwrap().is_none());
        let mut options = offline();
        options.keep_quantized = true;
        let c = Checkpoint::open(path.to_str().unwrap(), &options).unwrap();
        match c.weights.quantized(name, &Device::Cpu).unwrap() {
            Some(q) => assert_eq!(q.data().unwrap(), want.data().unwrap(), "{dtype:?}"),
            None => assert!(tag == 1 || tag == 30),
        }
    }
}

/// A source that counts how often a tensor's data is read.
struct Counting {
    inner: std::sync::Arc<dyn TensorSource>,
    reads: std::sync::Mutex<std::collections::BTreeMap<String, usize>>,
}

impl Counting {
    fn count(&self, name: &str) {
        *self.reads.lock().unwrap().entry(name.to_string()).or_default() += 1;
    }
}

impl TensorSource for Counting {
    fn shape(&self, name: &str) -> Option<candle_core::Shape> {
        self.inner.shape(name)
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        self.inner.dtype(name)
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.count(name);
        self.inner.load(name, dtype, device)
    }

    fn quantized(&self, name: &str, device: &Device) -> candle_core::Result<Option<attn_models::Blocks>> {
        let tensor = self.inner.quantized(name, device)?;
        assert_eq!(tensor.is_some(), self.inner.block_format(name).is_some(), "{name}");
        if tensor.is_some() {
            self.count(name);
        }
        Ok(tensor)
    }

    fn block_format(&self, name: &str) -> Option<attn_models::BlockFormat> {
        self.inner.block_format(name)
    }

    fn names(&self) -> Vec<String> {
        self.inner.names()
    }
}

#[test]
fn blocks_that_stay_quantised_are_read_once() {
    let mut g = tiny_llama();
    let (width, inner) = (32usize, 64usize);
    g.set("llama.embedding_length", Meta::U32(32)).set("llama.feed_forward_length", Meta::U32(64));
    g.tensors.clear();
    let q8 = |rows: usize, columns: usize| Data {
        dims: vec![rows as u64, columns as u64],
        tag: 8,
        bytes: vec![0; rows * columns / 32 * 34],
        offset: None,
    };
    g.tensor("token_embd.weight", q8(8, width));
    for (name, rows, columns) in [
        ("attn_q", width, width),
        ("attn_k", width / 2, width),
        ("attn_v", width / 2, width),
        ("attn_output", width, width),
        ("ffn_gate", inner, width),
        ("ffn_up", inner, width),
        ("ffn_down", width, inner),
    ] {
        g.tensor(&format!("blk.0.{name}.weight"), q8(rows, columns));
    }
    for name in ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"] {
        g.tensor(&format!("{name}.weight"), Data::f32(&[width], &vec![1.0; width]));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = g.write(dir.path());
    for keep_quantized in [true, false] {
        let mut options = offline();
        options.keep_quantized = keep_quantized;
        let c = Checkpoint::open(path.to_str().unwrap(), &options).unwrap();
        assert_eq!(c.weights.block_format("model.layers.0.mlp.up_proj.weight").is_some(), keep_quantized);
        assert_eq!(c.weights.block_format("model.norm.weight"), None);
        assert_eq!(c.weights.block_format("no such tensor"), None);
        let counting = std::sync::Arc::new(Counting { inner: c.weights, reads: Default::default() });
        attn_models::Model::load(&c.config, counting.clone(), &attn_models::Options::default()).unwrap();
        let reads = counting.reads.lock().unwrap();
        assert_eq!(reads.len(), counting.names().len());
        assert!(reads.values().all(|&n| n == 1), "{reads:?}");
    }
}

#[test]
fn rope_scaling_is_translated() {
    let config = |edit: &dyn Fn(&mut Gguf)| {
        let mut g = tiny_llama();
        edit(&mut g);
        let dir = tempfile::tempdir().unwrap();
        open(&g.write(dir.path())).map(|c| c.config)
    };
    let c = config(&|_| {}).unwrap();
    assert_eq!(c["rope_parameters"], serde_json::json!({"rope_type": "default", "rope_theta": 10000.0}));
    assert_eq!((&c["rms_norm_eps"], &c["tie_word_embeddings"]), (&Value::from(1e-5), &Value::from(true)));
    let c = config(&|g| {
        g.set("llama.rope.scaling.type", "yarn").set("llama.rope.scaling.factor", Meta::F32(4.0));
        g.set("llama.rope.scaling.original_context_length", Meta::U32(8));
        g.set("llama.rope.scaling.yarn_beta_fast", Meta::F32(24.0));
        g.set("llama.rope.scaling.yarn_attn_factor", Meta::F32(1.5));
    });
    let want = serde_json::json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8,
        "beta_fast": 24.0, "attention_factor": 1.5, "rope_theta": 10000.0});
    assert_eq!(c.unwrap()["rope_parameters"], want);
    // A factor without a type is linear, under the old name of the key too.
    for key in ["llama.rope.scale_linear", "llama.rope.scaling.factor"] {
        let c = config(&|g| _ = g.set(key, Meta::F32(2.0))).unwrap();
        let want = serde_json::json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0});
        assert_eq!(c["rope_parameters"], want, "{key}");
    }
    // attn_factor multiplies what the type has, and what has none.
    let yarn = |g: &mut Gguf| {
        g.set("llama.rope.scaling.type", "yarn").set("llama.rope.scaling.factor", Meta::F32(4.0));
        g.set("llama.rope.scaling.attn_factor", Meta::F32(2.0));
    };
    let c = config(&|g| yarn(g)).unwrap();
    let factor = c["rope_parameters"]["attention_factor"].as_f64().unwrap();
    assert!((factor - 2.0 * (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12, "{factor}");
    let c = config(&|g| _ = g.set("llama.rope.scaling.attn_factor", Meta::F32(1.5))).unwrap();
    let rope = &c["rope_parameters"];
    assert_eq!((&rope["attention_factor"], &rope["long_factor"]), (&1.5.into(), &serde_json::json!([1.0, 1.0])));
    // A multiplier of the logarithm is DeepSeek's mscale_all_dim.
    let c = config(&|g| {
        yarn(g);
        g.set("llama.rope.scaling.attn_factor", Meta::F32(1.0));
        g.set("llama.rope.scaling.yarn_log_multiplier", Meta::F32(0.5));
    });
    let rope = c.unwrap()["rope_parameters"].clone();
    assert_eq!((&rope["mscale"], &rope["mscale_all_dim"]), (&1.0.into(), &0.5.into()));
    assert_eq!(rope.get("attention_factor"), None);
    // Without extrapolation YaRN is linear.
    let extrapolation = |x: f32| {
        config(&|g| {
            g.set("llama.rope.scaling.type", "yarn").set("llama.rope.scaling.factor", Meta::F32(4.0));
            g.set("llama.rope.scaling.yarn_ext_factor", Meta::F32(x));
        })
    };
    assert_eq!(extrapolation(0.0).unwrap()["rope_parameters"]["rope_type"], "linear");
    assert_eq!(extrapolation(-1.0).unwrap()["rope_parameters"]["rope_type"], "yarn");
    assert!(extrapolation(0.5).unwrap_err().to_string().contains("yarn_ext_factor"));
    let c = config(&|g| _ = g.set("llama.rope.scaling.type", "none").set("llama.rope.scaling.factor", Meta::F32(4.0)));
    assert_eq!(c.unwrap()["rope_parameters"]["rope_type"], "default");
    let c = config(&|g| {
        g.set("llama.rope.scaling.original_context_length", Meta::U32(8));
        g.tensor("rope_factors_long.weight", Data::f32(&[2], &[4.0, 5.0]));
        g.tensor("rope_factors_short.weight", Data::f32(&[2], &[1.0, 1.5]));
    });
    let want = serde_json::json!({"rope_type": "longrope", "original_max_position_embeddings": 8, "rope_theta": 10000.0,
        "attention_factor": 1.0, "long_factor": [4.0, 5.0], "short_factor": [1.0, 1.5]});
    assert_eq!(c.unwrap()["rope_parameters"], want);
    // Divisors that no scaling of Llama 3 gives, times the factor beside them, with the context stated.
    let c = config(&|g| {
        g.set("llama.rope.scaling.original_context_length", Meta::U32(16));
        g.set("llama.rope.scaling.factor", Meta::F32(2.0));
        g.tensor("rope_freqs.weight", Data::f32(&[2], &[3.0, 2.0]));
    });
    let rope = &c.unwrap()["rope_parameters"];
    assert_eq!((&rope["short_factor"], &rope["long_factor"]), (&serde_json::json!([6.0, 4.0]), &rope["short_factor"]));
    assert_eq!(rope["original_max_position_embeddings"], 16);
    let err = config(&|g| _ = g.tensor("rope_freqs.weight", Data::f32(&[2], &[1.0, 0.0]))).unwrap_err().to_string();
    assert!(err.contains("rope_freqs.weight"), "{err}");
    let err = config(&|g| _ = g.set("llama.rope.scaling.type", "magic")).unwrap_err().to_string();
    assert!(err.contains("llama.rope.scaling.type") && err.contains("magic"), "{err}");
    let err = config(&|g| _ = g.tensor("rope_freqs.weight", Data::f32(&[3], &[1.0; 3]))).unwrap_err().to_string();
    assert!(err.contains("rope_freqs.weight"), "{err}");
}

/// A golden file cut into parts as llama.cpp's gguf-split does: the metadata in the first, tensors in each.
#[test]
fn parts_are_read_together_whichever_is_given() {
    let whole = as_gguf("llama", "llama");
    let dir = tempfile::tempdir().unwrap();
    let names = [1, 2, 3].map(|i| format!("m-{i:05}-of-00003.gguf"));
    let chunks: Vec<_> = whole.tensors.chunks(whole.tensors.len().div_ceil(3)).collect();
    let write = |i: usize, no: u32, count: u32| {
        let mut part = Gguf { meta: if i == 0 { whole.meta.clone() } else { vec![] }, tensors: chunks[i].to_vec() };
        part.set("split.no", Meta::Raw(2, (no as u16).to_le_bytes().to_vec()));
        part.set("split.count", Meta::Raw(2, (count as u16).to_le_bytes().to_vec()));
        part.set("split.tensors.count", Meta::U32(whole.tensors.len() as u32));
        std::fs::write(dir.path().join(&names[i]), part.bytes()).unwrap();
    };
    (0..3).for_each(|i| write(i, i as u32, 3));
    let want = golden_tensors("llama");
    for name in &names {
        let c = open(&dir.path().join(name)).unwrap();
        assert_eq!(c.weights.names(), want.keys().cloned().collect::<Vec<_>>());
        assert_eq!(c.origin.files.len(), 3);
        for (tensor, t) in &want {
            let got = c.weights.load(tensor, DType::F32, &Device::Cpu).unwrap();
            assert_eq!(values(&got), values(t), "{tensor}");
        }
    }
    let refused = || open(&dir.path().join(&names[0])).unwrap_err().to_string();
    write(1, 2, 3);
    assert!(refused().contains("split.no"), "{}", refused());
    write(1, 1, 4);
    assert!(refused().contains("split.count"), "{}", refused());
    std::fs::remove_file(dir.path().join(&names[1])).unwrap();
    assert!(refused().contains(&names[1]), "{}", refused());
}

#[test]
fn formats_that_candle_does_not_know_are_widened() {
    // 32 codes of 1 under an exponent of 128: 0.5 * 2.
    let mut g = tiny_llama();
    g.set("llama.embedding_length", Meta::U32(32));
    g.tensors.clear();
    let bytes = [[128u8].as_slice(), &[0x11; 16]].concat().repeat(8);
    g.tensor("token_embd.weight", Data { dims: vec![8, 32], tag: 39, bytes, offset: None });
    let dir = tempfile::tempdir().unwrap();
    let mut options = offline();
    options.keep_quantized = true;
    let c = Checkpoint::open(g.write(dir.path()).to_str().unwrap(), &options).unwrap();
    let name = "model.embed_tokens.weight";
    let blocks = c.weights.quantized(name, &Device::Cpu).unwrap().expect("a format that stays in its blocks");
    assert_eq!(blocks.format(), attn_models::BlockFormat::Mxfp4);
    assert_eq!(values(&blocks.dequantize().unwrap()), [1.0; 256]);
    assert_eq!(values(&c.weights.load(name, DType::F32, &Device::Cpu).unwrap()), [1.0; 256]);
    assert_eq!(c.quantization.as_deref(), Some("MXFP4"));
}

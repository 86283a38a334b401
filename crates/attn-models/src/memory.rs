//! How much memory a run takes, worked out from the spec before anything is allocated.
//!
//! An allocation that fails aborts the program, and one that the system grants but can't back gets it killed later, so
//! long prompts have to be refused beforehand. The cache is counted exactly. Activations are counted as the tensors
//! that one block holds at its peak, rounded up where a kernel may copy: `tests/memory.rs` compares the estimate with
//! what the allocator sees, for every family.

use crate::Architecture;
use crate::TensorSource;
use crate::spec::{
    AttentionSpec, GateSpec, GateUpSpec, LatentSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec, MultiHeadSpec,
    PlainActivation, StackSpec,
};
use attn_core::{CacheType, CacheTypes, PositionConfig};
use candle_core::DType;

/// The sizes of a run that decide how much memory it takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Workload {
    /// Sequences side by side.
    pub rows: usize,
    /// Tokens of each that pass through the layers at once.
    pub pass: usize,
    /// Tokens of each that the cache has room for; 0 without a cache.
    pub cached: usize,
    /// Tokens of each that an encoder reads, for encoder-decoder models.
    pub encoded: usize,
    /// Tokens, of all rows together, whose logits are held at once.
    pub logits: usize,
}

/// The memory that a run takes besides the weights, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Keys and values, those of an encoded prompt included.
    pub cache: u64,
    /// Hidden states and what a block makes of them.
    pub activations: u64,
    /// Logits.
    pub logits: u64,
}

impl Memory {
    /// The sum of all parts, in bytes.
    pub fn total(&self) -> u64 {
        self.cache.saturating_add(self.activations).saturating_add(self.logits)
    }
}

/// Bytes of the weights of `source` in `dtype`, or in the blocks that they stay in.
pub fn weight_bytes(source: &dyn TensorSource, dtype: DType) -> u64 {
    let bytes = |name: &String| {
        let count = source.shape(name).map_or(0, |shape| shape.elem_count() as u64);
        match source.block_format(name) {
            Some(blocks) => (count / blocks.block_size() as u64).saturating_mul(blocks.type_size() as u64),
            None => count.saturating_mul(dtype.size_in_bytes() as u64),
        }
    };
    source.names().iter().map(bytes).fold(0, u64::saturating_add)
}

impl ModelSpec {
    /// Bytes of keys and values that one token adds to the cache of a model that computes in `dtype`, all layers together;
    /// layers with a window stop growing when it is full. An encoder has none.
    pub fn cache_bytes_per_token(&self, dtype: DType, types: CacheTypes) -> u64 {
        if self.architecture == Architecture::Encoder {
            return 0;
        }
        let bytes = self.stack.layers.iter().map(|layer| cached_bytes(&layer.attention, dtype, types));
        bytes.fold(0, u64::saturating_add)
    }

    /// What `work` takes in `dtype` with caches of these types, on the CPU.
    pub fn memory(&self, work: &Workload, dtype: DType, types: CacheTypes) -> Memory {
        let size = dtype.size_in_bytes() as u64;
        let rows = work.rows as u64;
        let layers = &self.stack.layers;
        let cached = layers.iter().map(|layer| {
            let slots = if work.cached == 0 { 0 } else { slots(&layer.attention, work.cached as u64) };
            slots.saturating_mul(cached_bytes(&layer.attention, dtype, types))
        });
        let memory = layers
            .iter()
            .filter_map(|layer| layer.cross.as_ref())
            .map(|c| 2 * lanes(c.attention.kv_heads, c.attention.head_dim) * size)
            .map(|bytes| (work.encoded as u64).saturating_mul(bytes));
        let cache = cached.chain(memory).fold(0, u64::saturating_add);
        let pass = activations(self, &self.stack, work.pass.max(1) as u64, work.cached as u64, size);
        let encode = self.encoder.as_ref().map_or(0, |e| activations(self, e, work.encoded as u64, 0, size));
        Memory {
            cache: cache.saturating_mul(rows),
            activations: pass.max(encode).saturating_mul(rows),
            logits: self.logits_bytes(work.logits as u64, size),
        }
    }

    /// Logits in the model's dtype and in f32, and what scoring or scaling makes of them.
    fn logits_bytes(&self, tokens: u64, size: u64) -> u64 {
        let copies = match &self.head {
            None => return 0,
            Some(head) => 2 + u64::from(head.scale != 1.0) + 2 * u64::from(head.softcap.is_some()),
        };
        tokens.saturating_mul(self.vocab_size as u64).saturating_mul(size + 4 * copies)
    }
}

fn lanes(heads: usize, width: usize) -> u64 {
    (heads as u64).saturating_mul(width as u64)
}

/// Numbers of a token's latent and of the key beside it.
fn latent_lanes(a: &LatentSpec) -> usize {
    a.kv_lora_rank + a.qk_rope_head_dim
}

/// Bytes that one token adds to a layer's cache.
fn cached_bytes(attention: &AttentionSpec, dtype: DType, types: CacheTypes) -> u64 {
    let row = |kind: Option<CacheType>, width: usize| match kind {
        Some(kind) => kind.row_bytes(width) as u64,
        None => (width * dtype.size_in_bytes()) as u64,
    };
    match attention {
        AttentionSpec::MultiHead(a) if a.source.is_some() => 0,
        AttentionSpec::MultiHead(a) => {
            let copies = match &a.position {
                PositionConfig::Extended(config) => config.method.map_or(1, |method| method.copies()),
                _ => 1,
            };
            let head = (copies as u64).saturating_mul(row(types.k, a.head_dim)) + row(types.v, a.head_dim);
            head.saturating_mul(a.kv_heads as u64)
        }
        AttentionSpec::Latent(a) => row(types.k, latent_lanes(a)),
    }
}

/// Tokens that a layer's cache makes room for when `tokens` are expected: a window keeps twice its length.
fn slots(attention: &AttentionSpec, tokens: u64) -> u64 {
    let AttentionSpec::MultiHead(a) = attention else { return tokens };
    a.mask.reach().map_or(tokens, |window| 2 * window as u64)
}

/// Bytes of the widest block's peak for `pass` tokens of one row, over `cached` keys.
fn activations(spec: &ModelSpec, stack: &StackSpec, pass: u64, cached: u64, size: u64) -> u64 {
    let hidden = spec.hidden_size as u64;
    let keys = pass.max(cached);
    let block = |layer: &LayerSpec| {
        let attention = match &layer.attention {
            AttentionSpec::MultiHead(a) => multi_head(a).saturating_mul(pass),
            AttentionSpec::Latent(a) => {
                // Queries, and every head's keys and values written out, each once more while they are joined.
                let (q, v) = (lanes(a.heads, a.qk_nope_head_dim + a.qk_rope_head_dim), lanes(a.heads, a.v_head_dim));
                let queries = (4 * q + 3 * v + a.q_lora_rank.unwrap_or(0) as u64).saturating_mul(pass);
                queries.saturating_add((3 * q + 2 * v + 2 * latent_lanes(a) as u64).saturating_mul(keys))
            }
        };
        let mlp = mlp(&layer.mlp, hidden).saturating_mul(pass);
        let beside = layer.beside.as_ref().map_or(0, |beside| moe(&beside.moe, hidden) + 2 * hidden);
        let mlp = mlp.saturating_add(beside.saturating_mul(pass));
        let cross = layer.cross.as_ref().map_or(0, |cross| multi_head(&cross.attention).saturating_mul(pass));
        attention.max(mlp).max(cross)
    };
    let widest = stack.layers.iter().map(block).max().unwrap_or(0);
    // Inputs of every layer, and what they are made of.
    let inputs = stack.per_layer.as_ref().map_or(0, |inputs| 5 * lanes(stack.layers.len(), inputs.width));
    let widest = widest.saturating_add(inputs.saturating_mul(pass));
    // The residual, its norm, the branches that join it; norms of half-precision models run in f32.
    let residual = (6 * hidden).saturating_mul(size).saturating_add(if size < 4 { 8 * hidden } else { 0 });
    // Rotary tables: cosine and sine of every lane pair, for as many encodings as layers may differ in.
    let tables = 4 * stack.layers.iter().map(|layer| rotary_lanes(&layer.attention)).max().unwrap_or(0);
    let per_token = residual.saturating_add(4 * tables);
    widest.saturating_mul(size).saturating_add(per_token.saturating_mul(keys.max(1)))
}

fn rotary_lanes(attention: &AttentionSpec) -> u64 {
    match attention {
        AttentionSpec::MultiHead(a) => a.head_dim as u64,
        AttentionSpec::Latent(a) => a.qk_rope_head_dim as u64,
    }
}

/// Numbers per token at the peak of an attention layer: the projections, queries and keys once more normed and rotated,
/// contiguous copies for the kernel, its output before and after the heads are joined.
fn multi_head(a: &MultiHeadSpec) -> u64 {
    let (q, kv) = (lanes(a.heads, a.head_dim), 2 * lanes(a.kv_heads, a.head_dim));
    let norms = if a.qk_norm.is_some() { 2 * q + kv } else { 0 } + if a.v_norm.is_some() { kv } else { 0 };
    5 * q + 3 * kv + norms
}

/// Numbers per token at the peak of a feed-forward network.
fn mlp(spec: &MlpSpec, hidden: u64) -> u64 {
    match spec {
        MlpSpec::Gated { gate_up, gate, .. } => {
            let both = match gate_up {
                GateUpSpec::Separate { gate, up } => gate.out_dim as u64 + up.out_dim as u64,
                GateUpSpec::Fused(both) => both.out_dim as u64,
            };
            gated(*gate, both / 2)
        }
        MlpSpec::Plain { up, activation: PlainActivation::Fixed(_), .. } => 4 * up.out_dim as u64,
        // xIELU's parts are held side by side in f32.
        MlpSpec::Plain { up, activation: PlainActivation::Xielu { .. }, .. } => 14 * up.out_dim as u64,
        MlpSpec::Moe(experts) => moe(experts, hidden),
    }
}

/// At worst every token goes to the same expert; all of them keep their weighted outputs.
fn moe(moe: &MoeSpec, hidden: u64) -> u64 {
    let expert = gated(moe.gate, moe.intermediate_size as u64) + 3 * hidden;
    let shared = moe.shared.as_ref().map_or(0, |shared| mlp(&shared.mlp, hidden));
    expert.max(shared) + 2 * hidden + 4 * moe.experts as u64
}

/// Gate and up of this width, what is made of them, their product.
fn gated(gate: GateSpec, width: u64) -> u64 {
    match gate {
        GateSpec::Activation(_) => 5 * width,
        GateSpec::ClampedSwiglu { .. } => 8 * width,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families;
    use serde_json::{Value, json};

    fn llama(extra: &[(&str, Value)]) -> ModelSpec {
        let mut config = json!({"model_type": "mistral", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "sliding_window": null});
        for (key, value) in extra {
            config[key] = value.clone();
        }
        families::spec(&config).unwrap()
    }

    const AS_IT_IS: CacheTypes = CacheTypes { k: None, v: None };

    fn generating(tokens: usize) -> Workload {
        Workload { rows: 1, pass: tokens, cached: tokens, encoded: 0, logits: 1 }
    }

    #[test]
    fn the_cache_by_hand() {
        let full = llama(&[]);
        // Three layers, keys and values, two heads of 16.
        assert_eq!(full.cache_bytes_per_token(DType::F32, AS_IT_IS), 3 * 2 * 2 * 16 * 4);
        assert_eq!(full.memory(&generating(1000), DType::BF16, AS_IT_IS).cache, 1000 * 3 * 2 * 2 * 16 * 2);
        let batch = Workload { rows: 5, ..generating(1000) };
        let cache = |work: &Workload| full.memory(work, DType::F32, AS_IT_IS).cache;
        assert_eq!(cache(&batch), 5 * cache(&generating(1000)));
        assert_eq!(cache(&Workload { cached: 0, ..generating(1000) }), 0);
    }

    /// Keys of one type, values of another: 34 bytes, and 18, for every 32 numbers.
    #[test]
    fn blocks_are_counted_by_hand() {
        let wide = llama(&[("head_dim", json!(64))]);
        let types = |k, v| CacheTypes { k: Some(k), v: Some(v) };
        let bytes = |types| wide.cache_bytes_per_token(DType::F32, types);
        assert_eq!(bytes(types(CacheType::Q8_0, CacheType::Q4_0)), 3 * 2 * (2 * 34 + 2 * 18));
        assert_eq!(bytes(types(CacheType::F16, CacheType::F32)), 3 * 2 * (64 * 2 + 64 * 4));
        assert_eq!(bytes(CacheTypes { k: None, v: Some(CacheType::BF16) }), 3 * 2 * (64 * 4 + 64 * 2));
    }

    #[test]
    fn a_window_caps_its_layers() {
        let windowed = llama(&[("sliding_window", json!(32))]);
        let at = |tokens| windowed.memory(&generating(tokens), DType::F32, AS_IT_IS).cache;
        assert_eq!((at(1000), at(100_000)), (2 * 32 * 3 * 2 * 2 * 16 * 4, at(1000)));
    }

    #[test]
    fn latent_attention_caches_the_latent() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/deepseek-v3/config.json");
        let config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let number = |key: &str| config[key].as_u64().unwrap();
        let spec = families::spec(&config).unwrap();
        let lanes = number("kv_lora_rank") + number("qk_rope_head_dim");
        assert_eq!(spec.cache_bytes_per_token(DType::F32, AS_IT_IS), number("num_hidden_layers") * lanes * 4);
    }

    #[test]
    fn more_tokens_never_take_less_and_absurd_numbers_do_not_overflow() {
        let spec = llama(&[]);
        let mut last = 0;
        for tokens in [0, 1, 2, 1000, 1 << 20, 1 << 40, usize::MAX >> 1, usize::MAX] {
            let all = Workload { rows: 3, pass: tokens, cached: tokens, encoded: tokens, logits: tokens };
            let total = spec.memory(&all, DType::F32, AS_IT_IS).total();
            assert!(total >= last && total > 0, "{tokens}");
            last = total;
        }
        assert_eq!(last, u64::MAX);
    }
}

//! One file per family: how its `config.json` reads and what its tensors are called. Adding one touches its own file
//! and one line of [`FAMILIES`].

mod apertus;
mod arcee;
mod bart;
mod bert;
mod bloom;
mod codegen;
mod cohere;
mod cohere2;
mod decoder;
mod deepseek;
mod dense;
mod dots1;
mod ernie;
mod exaone4;
mod experts;
mod falcon;
mod gemma;
mod gemma4;
mod glm;
mod gpt2;
mod gpt_bigcode;
mod gpt_neo;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod granite;
mod helium;
mod hunyuan;
mod llama;
mod llama4;
mod ministral3;
mod mixtral;
mod modernbert;
mod mpt;
mod nemotron;
mod olmo;
mod olmo2;
mod opt;
mod persimmon;
mod phi;
mod phi3;
mod qwen;
mod qwen_moe;
mod roformer;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;
mod t5;
mod xglm;

use crate::Architecture;
use crate::activation::Activation;
use crate::config::{Config, MAX_LISTED, UnknownKeys};
use crate::spec::{
    EmbeddingSpec, GateSpec, GateUpSpec, HeadBias, HeadSpec, LayerSpec, LinearSpec, MlpSpec, ModelSpec, MultiHeadSpec,
    NormSpec, PlainActivation, QkvSpec, StackSpec, Wiring,
};
use attn_core::position::rope::scaling::FreqFactors;
use attn_core::position::{NopeConfig, PositionConfig, RopeConfig, RopeDefaults};
use candle_core::{Result, bail};
use serde_json::Value;

/// Reads a `config.json` of any family that is known.
///
/// # Errors
/// An unknown `model_type`, by name; a key that is missing, wrong, or not understood.
pub fn spec(json: &Value) -> Result<ModelSpec> {
    Ok(spec_with(json, UnknownKeys::Refuse)?.0)
}

/// [`spec`] under a rule for unknown keys; those that were passed over come with the spec.
///
/// # Errors
/// As [`spec`].
pub fn spec_with(json: &Value, unknown: UnknownKeys) -> Result<(ModelSpec, Vec<String>)> {
    let config = Config::new(json)?.with_unknown(unknown);
    let Some(model_type) = config.text_opt("model_type")? else { bail!("config.json: model_type is missing") };
    // Text models inside multimodal checkpoints have a config of their own.
    if matches!(model_type, "gemma3" | "gemma4" | "llama4" | "mistral3")
        && let Some(text) = json.get("text_config")
    {
        let (spec, unknown) = spec_with(text, unknown)?;
        return Ok((multimodal(spec)?, unknown.iter().map(|key| format!("text_config.{key}")).collect()));
    }
    let Some((_, read)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
        bail!(
            "config.json: model_type {model_type} is not supported; known: {}",
            known().collect::<Vec<_>>().join(", ")
        )
    };
    let spec = read(&config)?;
    config.finish()?;
    Ok((spec, config.unknown_keys()))
}

/// Turns a config into a spec.
type Read = fn(&Config) -> Result<ModelSpec>;

/// The families by `model_type`.
const FAMILIES: &[(&str, Read)] = &[
    ("apertus", apertus::spec),
    ("arcee", arcee::spec),
    ("attn_decoder", decoder::spec),
    ("bart", bart::bart),
    ("bert", bert::bert),
    ("bloom", bloom::spec),
    ("camembert", bert::roberta),
    ("codegen", codegen::spec),
    ("cohere", cohere::spec),
    ("cohere2", cohere2::spec),
    ("deepseek_v2", deepseek::v2),
    ("deepseek_v3", deepseek::v3),
    ("distilbert", bert::distilbert),
    ("dots1", dots1::spec),
    ("electra", bert::electra),
    ("ernie4_5", ernie::dense),
    ("ernie4_5_moe", ernie::moe),
    ("exaone4", exaone4::spec),
    ("falcon", falcon::spec),
    ("gemma", gemma::gemma),
    ("gemma2", gemma::gemma2),
    ("gemma3", gemma::gemma3),
    ("gemma3_text", gemma::gemma3),
    ("gemma4_text", gemma4::spec),
    ("glm", glm::glm),
    ("glm4", glm::glm4),
    ("glm4_moe", glm::moe),
    ("gpt2", gpt2::spec),
    ("gpt_bigcode", gpt_bigcode::spec),
    ("gpt_neo", gpt_neo::spec),
    ("gpt_neox", gpt_neox::spec),
    ("gpt_oss", gpt_oss::spec),
    ("gptj", gptj::spec),
    ("granite", granite::spec),
    ("granitemoe", granite::moe),
    ("helium", helium::spec),
    ("hunyuan_v1_dense", hunyuan::spec),
    ("llama", llama::llama),
    ("llama4_text", llama4::spec),
    ("minimax_m2", mixtral::minimax_m2),
    ("ministral3", ministral3::spec),
    ("mistral", llama::mistral),
    ("mixtral", mixtral::mixtral),
    ("modernbert", modernbert::spec),
    ("mpt", mpt::spec),
    ("nemotron", nemotron::spec),
    ("olmo", olmo::olmo),
    ("olmo2", olmo2::spec),
    ("olmo3", olmo::olmo3),
    ("olmoe", olmo::olmoe),
    ("opt", opt::spec),
    ("pegasus", bart::pegasus),
    ("persimmon", persimmon::spec),
    ("phi", phi::spec),
    ("phi3", phi3::spec),
    ("phimoe", mixtral::phimoe),
    ("qwen2", qwen::qwen2),
    ("qwen2_moe", qwen_moe::qwen2),
    ("qwen3", qwen::qwen3),
    ("qwen3_moe", qwen_moe::qwen3),
    ("RefinedWeb", falcon::spec),
    ("RefinedWebModel", falcon::spec),
    ("roberta", bert::roberta),
    ("roformer", roformer::spec),
    ("seed_oss", seed_oss::spec),
    ("smollm3", smollm3::spec),
    ("stablelm", stablelm::spec),
    ("starcoder2", starcoder2::spec),
    ("t5", t5::spec),
    ("vaultgemma", gemma::vaultgemma),
    ("xglm", xglm::spec),
    ("xlm-roberta", bert::roberta),
];

/// The `model_type`s that [`spec`] reads.
pub fn known() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

fn multimodal(mut spec: ModelSpec) -> Result<ModelSpec> {
    spec.prefixes = ["model.language_model.", "language_model.model.", "model."].map(String::from).to_vec();
    let others = ["vision_", "multi_modal_projector", "embed_vision", "embed_audio", "audio_tower"];
    spec.unused.extend(others.map(String::from));
    Ok(spec)
}

/// What nearly every decoder's config says.
struct Common {
    vocab_size: usize,
    hidden_size: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    max_positions: usize,
}

impl Common {
    /// Reads the keys of Llama-style configs, in any of the older spellings that `attribute_map`s know.
    fn read(c: &Config) -> Result<Self> {
        let mut common = Self::read_mha(c)?;
        common.kv_heads = c.size_opt("num_key_value_heads")?.unwrap_or(common.heads);
        if c.size_opt("head_dim")?.is_some() {
            common.head_dim = c.listed(&["head_dim"])?;
        } else if !common.hidden_size.is_multiple_of(common.heads) {
            bail!("config.json: hidden_size {} does not divide among {} heads", common.hidden_size, common.heads)
        }
        if !common.heads.is_multiple_of(common.kv_heads) {
            let Self { heads, kv_heads, .. } = common;
            bail!("config.json: num_attention_heads {heads} does not divide among num_key_value_heads {kv_heads}")
        }
        Ok(common)
    }

    /// As [`read`](Self::read), for families whose transformers code knows neither grouped heads nor a head width nor an
    /// `intermediate_size`: it ignores these keys if they are there, and so do we.
    fn read_mha(c: &Config) -> Result<Self> {
        c.mark(&["intermediate_size", "num_key_value_heads", "head_dim"]);
        let hidden_size = c.size(&["hidden_size", "n_embd", "n_embed", "d_model"])?;
        let heads = c.listed(&["num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"])?;
        if hidden_size / heads > MAX_LISTED {
            bail!("config.json: hidden_size {hidden_size} among {heads} heads is past any model")
        }
        Ok(Self {
            vocab_size: c.size(&["vocab_size"])?,
            hidden_size,
            layers: c.listed(&["num_hidden_layers", "n_layer", "n_layers", "num_layers"])?,
            heads,
            kv_heads: heads,
            head_dim: hidden_size / heads,
            max_positions: c.size(&["max_position_embeddings", "n_positions", "max_seq_len"]).unwrap_or(2048),
        })
    }

    /// Refuses heads that do not fill the hidden size, for families that have no `head_dim`.
    fn divided(self) -> Result<Self> {
        match self.head_dim * self.heads == self.hidden_size {
            true => Ok(self),
            false => bail!("config.json: hidden size {} does not divide among {} heads", self.hidden_size, self.heads),
        }
    }

    /// Separate projections under `self_attn.`, causal, with the given position encoding.
    fn attention(&self, bias: bool, position: PositionConfig) -> MultiHeadSpec {
        let (hidden, d) = (self.hidden_size, self.head_dim);
        let linear = |name: &str, heads| LinearSpec::new(&format!("self_attn.{name}"), hidden, heads * d).bias(bias);
        let qkv = QkvSpec::Separate {
            q: linear("q_proj", self.heads),
            k: linear("k_proj", self.kv_heads),
            v: linear("v_proj", self.kv_heads),
        };
        let out = LinearSpec::new("self_attn.o_proj", self.heads * d, hidden).bias(bias);
        MultiHeadSpec::new(self.heads, self.kv_heads, d, qkv, out, position)
    }

    /// `mlp.gate_proj`, `mlp.up_proj`, `mlp.down_proj`.
    fn gated_mlp(&self, intermediate: usize, bias: bool, activation: Activation) -> MlpSpec {
        gated("mlp.", self.hidden_size, intermediate, bias, activation)
    }

    /// `model.embed_tokens`, `model.layers.N.`, `model.norm`, `lm_head`.
    fn decoder(&self, family: &str, layers: Vec<LayerSpec>, final_norm: NormSpec, tied: bool) -> ModelSpec {
        ModelSpec {
            family: family.into(),
            architecture: Architecture::Decoder,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            trained_context: Some(trained_context(&layers).unwrap_or(self.max_positions)),
            stack: StackSpec::new(embedding("embed_tokens.weight", self.hidden_size), layers, Some(final_norm)),
            encoder: None,
            head: Some(head(tied, "lm_head")),
            prefixes: vec!["model.".into(), String::new()],
            unused: if tied { vec!["lm_head.weight".into()] } else { Vec::new() },
        }
    }
}

/// The context a rotary scaling was given for, if a layer has one.
fn trained_context(layers: &[LayerSpec]) -> Option<usize> {
    layers.iter().find_map(|layer| match layer.attention.position() {
        PositionConfig::Rope(rope) => Some(rope.original_context()),
        _ => None,
    })
}

fn gated(prefix: &str, hidden: usize, intermediate: usize, bias: bool, activation: Activation) -> MlpSpec {
    let linear = |name: &str, i, o| LinearSpec::new(&format!("{prefix}{name}"), i, o).bias(bias);
    MlpSpec::Gated {
        gate_up: GateUpSpec::Separate {
            gate: linear("gate_proj", hidden, intermediate),
            up: linear("up_proj", hidden, intermediate),
        },
        down: linear("down_proj", intermediate, hidden),
        gate: GateSpec::Activation(activation),
    }
}

fn plain(up: LinearSpec, down: LinearSpec, activation: Activation) -> MlpSpec {
    MlpSpec::Plain { up, down, activation: PlainActivation::Fixed(activation) }
}

fn embedding(name: &str, width: usize) -> EmbeddingSpec {
    EmbeddingSpec {
        tokens: name.into(),
        width,
        projection: None,
        scale: 1.0,
        position: nope(),
        position_table: None,
        token_types: None,
        norm: None,
    }
}

fn head(tied: bool, name: &str) -> HeadSpec {
    HeadSpec {
        projection: None,
        name: (!tied).then(|| name.into()),
        or_tied: false,
        bias: None,
        scale: 1.0,
        softcap: None,
    }
}

/// A bias on the logits that has to be there.
fn head_bias(name: &str, vocab: usize) -> HeadBias {
    HeadBias { name: name.into(), shape: vec![vocab], optional: false }
}

fn nope() -> PositionConfig {
    PositionConfig::Nope(NopeConfig::default())
}

/// A block with a norm before attention and one before the feed-forward.
fn pre_norm(prefix: String, attention: MultiHeadSpec, mlp: MlpSpec, norms: [NormSpec; 2]) -> LayerSpec {
    LayerSpec::new(prefix, attention, mlp, Wiring::pre_norm(norms))
}

/// The names of Llama's two norms.
const LLAMA_NORMS: [&str; 2] = ["input_layernorm", "post_attention_layernorm"];

/// `config`'s activation.
fn activation(c: &Config, key: &'static str, default: &'static str) -> Result<Activation> {
    crate::activation::parse(key, c.text_opt(key)?.unwrap_or(default))
}

/// Keys that the rotary encoding is read from.
const ROPE_KEYS: &[&str] = &[
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "rotary_emb_base",
    "rotary_pct",
    "rope_pct",
    "rope_freq_factors",
];

/// The rotary encoding of a config; `None` layers have NoPE.
fn rope(c: &Config, layer_type: Option<&str>, defaults: &RopeDefaults) -> Result<PositionConfig> {
    c.mark(ROPE_KEYS);
    rope_in(c, c.root(), layer_type, defaults)
}

/// The rotary encoding with another dictionary in place of the config's, for families that read it in a way of their own.
fn rope_of(c: &Config, layer_type: Option<&str>, defaults: &RopeDefaults, dictionary: Value) -> Result<PositionConfig> {
    c.mark(ROPE_KEYS);
    let mut root = c.root().clone();
    if let Some(map) = root.as_object_mut() {
        map.remove("rope_scaling");
        map.insert("rope_parameters".into(), dictionary);
    }
    rope_in(c, &root, layer_type, defaults)
}

/// The rotary encoding of layers of the type `kind` in families whose types have a dictionary each: that under
/// `rope_parameters`, else the older `rope_scaling` if it is theirs, else none. As in transformers, what lies beside the
/// dictionaries has no effect.
fn rope_by_type(c: &Config, kind: &str, theta: f64, scaled: bool, defaults: &RopeDefaults) -> Result<PositionConfig> {
    let own = rope_dictionary(c, "rope_parameters").and_then(|d| d.get(kind)?.as_object());
    let older = if scaled { rope_dictionary(c, "rope_scaling") } else { None };
    let mut dictionary = own.or(older).cloned().unwrap_or_default();
    dictionary.entry("rope_theta").or_insert_with(|| theta.into());
    rope_of(c, None, defaults, dictionary.into())
}

/// The dictionary under `key`, unless it is absent, null or empty.
fn rope_dictionary<'a>(c: &Config<'a>, key: &str) -> Option<&'a serde_json::Map<String, Value>> {
    c.root().get(key)?.as_object().filter(|d| !d.is_empty())
}

fn rope_in(c: &Config, root: &Value, layer_type: Option<&str>, defaults: &RopeDefaults) -> Result<PositionConfig> {
    let found = RopeConfig::from_hf(root, layer_type, defaults)
        .map_err(|e| candle_core::Error::Msg(format!("config.json: {e}")))?;
    let Some(mut config) = found else { return Ok(nope()) };
    if let Some(factors) = c.list("rope_freq_factors", 0, serde_json::Value::as_f64)? {
        // A GGUF file's rope_freqs.weight: Llama 3's and LongRoPE's scaling, worked out beforehand.
        if !config.scaling.is_none() {
            bail!("config.json: rope_freq_factors beside rope type {}", config.scaling.name())
        }
        config.scaling = FreqFactors { factors }.into();
        config.validate()?;
    }
    Ok(PositionConfig::Rope(config))
}

/// Full-width, half-split rotation.
fn llama_rope(c: &Config, head_dim: usize) -> Result<PositionConfig> {
    rope(c, None, &RopeDefaults::new(head_dim))
}

/// The kind of every layer, `full_attention` if the config doesn't say.
fn layer_types(c: &Config, layers: usize, default: impl Fn(usize) -> &'static str) -> Result<Vec<String>> {
    let known = |v: &Value| v.as_str().map(String::from);
    let types = c.list("layer_types", layers, known)?;
    let types = types.unwrap_or_else(|| (0..layers).map(|i| default(i).to_string()).collect());
    match types.iter().find(|t| !["full_attention", "sliding_attention", "chunked_attention"].contains(&t.as_str())) {
        Some(other) => bail!("config.json: layer_types: unknown kind {other}"),
        None => Ok(types),
    }
}

/// The window of a layer of the given kind.
fn window(kind: &str, sliding_window: Option<usize>) -> Result<Option<usize>> {
    match (kind, sliding_window) {
        ("sliding_attention", None) => {
            bail!("config.json: sliding_window is missing, but layer_types has sliding layers")
        }
        ("sliding_attention", window) => Ok(window),
        ("full_attention", _) => Ok(None),
        (other, _) => bail!("config.json: layer_types: {other} is not supported here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn llama(extra: &[(&str, Value)]) -> Result<ModelSpec> {
        let mut config = json!({"model_type": "llama", "vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 16});
        for (key, value) in extra {
            config[key] = value.clone();
        }
        spec(&config)
    }

    #[test]
    fn frequency_factors_of_a_gguf_file_take_effect() {
        let spec = llama(&[("rope_freq_factors", json!([1.0, 2.0, 4.0, 8.0]))]).unwrap();
        let PositionConfig::Rope(rope) = spec.stack.layers[0].attention.position() else { panic!("no rope") };
        let plain = RopeConfig { scaling: Default::default(), ..rope.clone() };
        let (scaled, plain) = (rope.frequencies(1).inv_freq, plain.frequencies(1).inv_freq);
        let factors: Vec<f64> = plain.iter().zip(&scaled).map(|(p, s)| (p / s).round()).collect();
        assert_eq!(factors, [1.0, 2.0, 4.0, 8.0]);
        assert!(llama(&[("rope_freq_factors", json!([1.0]))]).is_err(), "a list of the wrong length");
        let both = [
            ("rope_freq_factors", json!([1.0, 2.0, 4.0, 8.0])),
            ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
        ];
        assert!(llama(&both).unwrap_err().to_string().contains("rope_freq_factors"));
    }

    #[test]
    fn refuses_by_name() {
        let error = |extra: &[(&str, Value)]| llama(extra).unwrap_err().to_string();
        assert!(error(&[("model_type", json!("mamba"))]).contains("model_type mamba is not supported"));
        assert!(error(&[("num_key_value_heads", json!(3))]).contains("num_key_value_heads 3"));
        assert!(error(&[("hidden_act", json!("maxout"))]).contains("unknown activation `maxout`"));
        assert!(error(&[("num_hidden_layers", json!(0))]).contains("num_hidden_layers"));
        assert!(error(&[("rope_scaling", json!({"type": "magic", "factor": 2.0}))]).contains("magic"));
        assert!(error(&[("quantization_config", json!({"bits": 4}))]).contains("quantization_config"));
    }
}

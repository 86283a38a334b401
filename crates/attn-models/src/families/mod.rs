//! One file per family: how its `config.json` reads and what its tensors are called. Adding one touches its own file
//! and one line of `FAMILIES`.

mod apertus;
mod arcee;
mod bart;
mod bert;
mod bloom;
pub(crate) mod classes;
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
mod sketch;
mod smollm3;
mod stablelm;
mod starcoder2;
mod t5;
mod xglm;

pub use decoder::ENCODINGS;
pub use sketch::{Positions, positions};

use crate::Architecture;
use crate::activation::Activation;
use crate::config::{Config, MAX_LISTED, Notes, UnknownKeys};
use crate::spec::{
    AttentionSpec, EmbeddingSpec, GateSpec, GateUpSpec, HeadBias, HeadSpec, LayerSpec, LinearSpec, MlpSpec, ModelSpec,
    MultiHeadSpec, NormSpec, PlainActivation, QkvSpec, StackSpec, Wiring,
};
use attn_core::Mask;
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

/// [`spec`] under a rule for unknown keys; what is worth knowing of the config comes with the spec.
///
/// # Errors
/// As [`spec`].
pub fn spec_with(json: &Value, unknown: UnknownKeys) -> Result<(ModelSpec, Notes)> {
    let config = Config::new(json)?.with_unknown(unknown);
    let Some(model_type) = config.text_opt("model_type")? else { bail!("config.json: model_type is missing") };
    // Text models inside multimodal checkpoints have a config of their own.
    if matches!(model_type, "gemma3" | "gemma4" | "llama4" | "mistral3")
        && let Some(text) = json.get("text_config")
    {
        let (spec, notes) = spec_with(text, unknown)?;
        let inside = |lines: Vec<String>| lines.into_iter().map(|line| format!("text_config.{line}")).collect();
        let notes = Notes { unknown: inside(notes.unknown), ignored: inside(notes.ignored) };
        return Ok((multimodal(spec)?, notes));
    }
    let config = config.with_class(match model_type {
        "gemma3" => "gemma3_text",
        "RefinedWeb" | "RefinedWebModel" => "falcon",
        "camembert" | "xlm-roberta" => "roberta",
        other => other,
    });
    let Some((_, read)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
        bail!(
            "config.json: model_type {model_type} is not supported; known: {}",
            known().collect::<Vec<_>>().join(", ")
        )
    };
    let spec = read(&config)?;
    check_bidirectional(&config, &spec)?;
    config.finish()?;
    Ok((spec, config.notes()))
}

/// Refuses `is_causal: false` where it means more than a mask without a future.
fn check_bidirectional(c: &Config, spec: &ModelSpec) -> Result<()> {
    if c.flag("is_causal", true)? {
        return Ok(());
    }
    if spec.head.is_some() {
        bail!("config.json: is_causal = false is not supported for {}", spec.family)
    }
    for layer in &spec.stack.layers {
        let plain = match &layer.attention {
            AttentionSpec::MultiHead(a) => {
                !a.mask.causal
                    && (a.mask.window, a.mask.chunk) == (None, None)
                    && !matches!(a.position, PositionConfig::Alibi(_) | PositionConfig::T5(_))
            }
            AttentionSpec::Latent(_) => false,
        };
        if !plain {
            bail!("config.json: is_causal = false is not supported for {} with these layers", spec.family)
        }
    }
    Ok(())
}

/// How the weights of a checkpoint are quantised, if its config says that they are.
pub fn quantization(json: &Value) -> Option<&Value> {
    let keys = ["quantization_config", "compression_config"];
    let places = [Some(json), json.get("text_config")];
    let found = places.into_iter().flatten().flat_map(|place| keys.iter().filter_map(|key| place.get(*key)));
    found.into_iter().find(|value| !value.is_null())
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
    /// False for a decoder turned into an encoder (`is_causal: false`): every token sees all others.
    causal: bool,
}

impl Common {
    /// Reads the keys of Llama-style configs, in any of the older spellings that `attribute_map`s know.
    fn read(c: &Config) -> Result<Self> {
        let mut common = Self::read_mha(c)?;
        common.kv_heads = c.size_opt("num_key_value_heads")?.unwrap_or(common.heads);
        if !c.says("num_key_value_heads") && !common.heads.is_multiple_of(common.kv_heads) {
            // The class's number is for its own number of heads.
            common.kv_heads = common.heads;
        }
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
            causal: c.flag("is_causal", true)?,
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
        let mask = if self.causal { Mask::causal() } else { Mask::bidirectional() };
        MultiHeadSpec { mask, ..MultiHeadSpec::new(self.heads, self.kv_heads, d, qkv, out, position) }
    }

    /// `mlp.gate_proj`, `mlp.up_proj`, `mlp.down_proj`.
    fn gated_mlp(&self, intermediate: usize, bias: bool, activation: Activation) -> MlpSpec {
        gated("mlp.", self.hidden_size, intermediate, bias, activation)
    }

    /// `model.embed_tokens`, `model.layers.N.`, `model.norm`, `lm_head`.
    fn decoder(&self, family: &str, layers: Vec<LayerSpec>, final_norm: NormSpec, tied: bool) -> ModelSpec {
        // Without a future to predict there are hidden states to use, and no logits.
        let (architecture, head) = match self.causal {
            true => (Architecture::Decoder, Some(head(tied, "lm_head"))),
            false => (Architecture::Encoder, None),
        };
        let unused = tied || !self.causal;
        ModelSpec {
            family: family.into(),
            architecture,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            trained_context: Some(trained_context(&layers).unwrap_or(self.max_positions)),
            stack: StackSpec::new(embedding("embed_tokens.weight", self.hidden_size), layers, Some(final_norm)),
            encoder: None,
            head,
            prefixes: vec!["model.".into(), String::new()],
            unused: if unused { vec!["lm_head.weight".into()] } else { Vec::new() },
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
/// `rope_parameters`, with the keys of the older `rope_scaling` put over it if that is theirs. As in transformers, what
/// lies beside the dictionaries has no effect.
fn rope_by_type(c: &Config, kind: &str, theta: f64, scaled: bool, defaults: &RopeDefaults) -> Result<PositionConfig> {
    let own = rope_dictionary(c, "rope_parameters").and_then(|d| d.get(kind)?.as_object());
    let mut dictionary = own.cloned().unwrap_or_default();
    dictionary.extend(rope_dictionary(c, "rope_scaling").filter(|_| scaled).cloned().unwrap_or_default());
    dictionary.entry("rope_theta").or_insert_with(|| theta.into());
    rope_of(c, None, defaults, dictionary.into())
}

/// The dictionary under `key`, unless it is absent, null or empty.
fn rope_dictionary<'a>(c: &Config<'a>, key: &str) -> Option<&'a serde_json::Map<String, Value>> {
    c.root().get(key)?.as_object().filter(|d| !d.is_empty())
}

fn rope_in(c: &Config, root: &Value, layer_type: Option<&str>, defaults: &RopeDefaults) -> Result<PositionConfig> {
    let reading = RopeConfig::read_hf(root, layer_type, &of_class(c, defaults))
        .map_err(|e| candle_core::Error::Msg(format!("config.json: {e}")))?;
    reading.unknown.iter().try_for_each(|key| c.unknown_key(key))?;
    reading.ignored.iter().for_each(|line| c.ignored_key(line));
    let Some(mut config) = reading.config else { return Ok(nope()) };
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

/// What the family's class says of its rotary encoding, where `defaults` are those that nearly all families share.
fn of_class(c: &Config, defaults: &RopeDefaults) -> RopeDefaults {
    let mut defaults = defaults.clone();
    let usual = RopeDefaults::new(defaults.head_dim);
    let number = |key: &str| c.class_default(key).and_then(Value::as_f64);
    if let Some(theta) = number("rope_theta").filter(|_| defaults.theta == usual.theta) {
        defaults.theta = theta;
    }
    if let Some(share) = number("partial_rotary_factor").filter(|_| defaults.partial_rotary_factor == 1.0) {
        defaults.partial_rotary_factor = share;
    }
    let size = |key: &str| number(key).map(|n| n as usize);
    defaults.max_position_embeddings = defaults.max_position_embeddings.or(size("max_position_embeddings"));
    defaults.original_max_position_embeddings = size("original_max_position_embeddings");
    defaults.parameters = c.class_default("rope_parameters").and_then(Value::as_object).cloned();
    defaults
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
    fn absent_keys_have_the_values_of_the_family() {
        let of = |model_type: &str| spec(&json!({"model_type": model_type})).expect(model_type);
        let rope = |model: &ModelSpec| match model.stack.layers[0].attention.position() {
            PositionConfig::Rope(rope) => rope.clone(),
            other => panic!("{other:?}"),
        };
        let (llama, mistral) = (of("llama"), of("mistral"));
        assert_eq!((llama.vocab_size, llama.stack.layers.len(), llama.trained_context), (32000, 32, Some(2048)));
        let AttentionSpec::MultiHead(attention) = &mistral.stack.layers[0].attention else { panic!("latent") };
        assert_eq!((attention.heads, attention.kv_heads, attention.mask.window), (32, 8, Some(4096)));
        assert_eq!(mistral.trained_context, Some(131_072));
        for (model_type, theta, context) in
            [("cohere", 5e5, 8192), ("smollm3", 2e6, 32768), ("llama4_text", 5e5, 131_072), ("gemma", 1e4, 8192)]
        {
            let model = of(model_type);
            assert_eq!((rope(&model).theta, model.trained_context), (theta, Some(context)), "{model_type}");
        }
        assert_eq!((rope(&of("phi")).rotary_dim, rope(&of("stablelm")).rotary_dim), (32, 20));
        assert_eq!((rope(&of("gpt_neox")).rotary_dim, rope(&of("gptj")).rotary_dim), (24, 64));
        // Null is no window where an absent key is one.
        let none = spec(&json!({"model_type": "mistral", "sliding_window": null})).unwrap();
        let AttentionSpec::MultiHead(attention) = &none.stack.layers[0].attention else { panic!("latent") };
        assert_eq!(attention.mask.window, None);
        // Our own family has no class: what is missing is missing.
        let ours = spec(&json!({"model_type": "attn_decoder", "hidden_size": 8})).unwrap_err().to_string();
        assert!(ours.contains("is missing"), "{ours}");
    }

    #[test]
    fn a_decoder_without_causality_is_an_encoder() {
        let encoder = llama(&[("is_causal", json!(false))]).unwrap();
        assert_eq!((encoder.architecture, encoder.head.is_none()), (Architecture::Encoder, true));
        let AttentionSpec::MultiHead(attention) = &encoder.stack.layers[0].attention else { panic!("latent") };
        assert!(!attention.mask.causal);
        for value in [json!(true), Value::Null] {
            assert_eq!(llama(&[("is_causal", value)]).unwrap().architecture, Architecture::Decoder);
        }
    }

    #[test]
    fn keys_of_a_rope_dictionary_are_refused_or_noted() {
        let read = |dict: Value, unknown| {
            let json = json!({"model_type": "llama", "rope_scaling": dict});
            spec_with(&json, unknown).map(|(_, notes)| notes)
        };
        let yarn = read(json!({"type": "yarn", "factor": 4.0, "attn_factor": 0.9}), UnknownKeys::Refuse).unwrap();
        assert!(yarn.unknown.is_empty() && yarn.ignored[0].contains("attn_factor"), "{yarn:?}");
        let zeta = json!({"type": "yarn", "factor": 4.0, "zeta": 0.9});
        assert!(read(zeta.clone(), UnknownKeys::Refuse).unwrap_err().to_string().contains("--allow-unknown"));
        assert!(read(zeta, UnknownKeys::Collect).unwrap().unknown[0].contains("zeta"));
    }

    #[test]
    fn refuses_by_name() {
        let error = |extra: &[(&str, Value)]| llama(extra).unwrap_err().to_string();
        assert!(error(&[("model_type", json!("mamba"))]).contains("model_type mamba is not supported"));
        assert!(error(&[("num_key_value_heads", json!(3))]).contains("num_key_value_heads 3"));
        assert!(error(&[("hidden_act", json!("maxout"))]).contains("unknown activation `maxout`"));
        assert!(error(&[("num_hidden_layers", json!(0))]).contains("num_hidden_layers"));
        assert!(error(&[("rope_scaling", json!({"type": "magic", "factor": 2.0}))]).contains("magic"));
        assert!(error(&[("is_causal", json!(false)), ("model_type", json!("bloom"))]).contains("is_causal"));
        assert!(error(&[("sliding_window", json!(8))]).contains("sliding_window"));
        assert!(error(&[("rope_scaling", json!({"type": "linear", "factor": 2.0, "zeta": 1}))]).contains("zeta"));
    }
}

//! BART and Pegasus: encoder and decoder with absolute positions, BART with norms after each branch and on the
//! embeddings, Pegasus with norms before and sinusoids.

use super::parts::{activation, embedding, nope, plain};
use crate::Architecture;
use crate::activation::Activation;
use crate::config::Config;
use crate::spec::{
    CrossSpec, HeadBias, HeadSpec, LayerSpec, LinearSpec, ModelSpec, MultiHeadSpec, NormSpec, QkvSpec, StackSpec,
    TableSpec, Wiring,
};
use attn_core::Mask;
use attn_core::position::{LearnedConfig, PositionConfig};
use candle_core::{Result, bail};
use serde_json::Value;

/// Where the two differ.
struct Kind {
    family: &'static str,
    /// Norms after each branch and on the embeddings, rather than before each branch and after the last layer.
    post_norm: bool,
    /// The row of position 0.
    offset: usize,
    /// The table may be left out: it holds sinusoids.
    sinusoids: bool,
}

struct Seq2Seq {
    kind: Kind,
    hidden: usize,
    act: Activation,
    scale: f64,
    rows: usize,
}

pub(super) fn bart(c: &Config) -> Result<ModelSpec> {
    spec(c, Kind { family: "bart", post_norm: true, offset: 2, sinusoids: false })
}

pub(super) fn pegasus(c: &Config) -> Result<ModelSpec> {
    spec(c, Kind { family: "pegasus", post_norm: false, offset: 0, sinusoids: true })
}

fn spec(c: &Config, kind: Kind) -> Result<ModelSpec> {
    let family = kind.family;
    let hidden = c.size_opt("d_model")?.unwrap_or(1024);
    let positions = c.size_opt("max_position_embeddings")?.unwrap_or(1024);
    let scale = if c.flag("scale_embedding", false)? { (hidden as f64).sqrt() } else { 1.0 };
    let act = activation(c, "activation_function", "gelu")?;
    c.only("is_decoder", &Value::Bool(false))?;
    c.flag("tie_word_embeddings", true)?;
    c.mark(&["init_std", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop"]);
    // What fairseq called the choices that the two families have made; transformers reads none of it.
    c.mark(&[
        "add_bias_logits",
        "add_final_layer_norm",
        "extra_pos_embeddings",
        "force_bos_token_to_be_generated",
        "hidden_size",
        "normalize_before",
        "normalize_embedding",
        "num_attention_heads",
        "num_hidden_layers",
        "replacing_rate",
        "save_step",
        "static_position_embeddings",
        "student_decoder_layers",
        "student_encoder_layers",
    ]);
    let model = Seq2Seq { hidden, act, scale, rows: positions + kind.offset, kind };
    let vocab_size = c.size_opt("vocab_size")?.unwrap_or(50_265);
    Ok(ModelSpec {
        family: family.into(),
        architecture: Architecture::EncoderDecoder,
        vocab_size,
        hidden_size: hidden,
        trained_context: Some(positions),
        stack: model.stack(c, "decoder")?,
        encoder: Some(model.stack(c, "encoder")?),
        head: Some(HeadSpec {
            projection: None,
            name: Some("lm_head".into()),
            or_tied: true,
            bias: Some(HeadBias { name: "final_logits_bias".into(), shape: vec![1, vocab_size], optional: true }),
            scale: 1.0,
            softcap: None,
        }),
        prefixes: vec!["model.".into(), String::new()],
        unused: ["encoder.embed_tokens", "decoder.embed_tokens"].map(String::from).to_vec(),
    })
}

impl Seq2Seq {
    fn norm(&self, name: &str) -> NormSpec {
        NormSpec::layer(name, self.hidden, 1e-5)
    }

    fn stack(&self, c: &Config, side: &str) -> Result<StackSpec> {
        let key = |name: &str| format!("{side}_{name}");
        let count = |name: &str, default| c.size_opt(&key(name))?.map_or(Ok(default), |_| c.listed(&[&key(name)]));
        let (layers, heads) = (count("layers", 12)?, count("attention_heads", 16)?);
        let inner = c.size_opt(&key("ffn_dim"))?.unwrap_or(4096);
        if !self.hidden.is_multiple_of(heads) {
            bail!("config.json: d_model {} is not divisible by {side}_attention_heads {heads}", self.hidden)
        }
        let layer = |i: usize| self.layer(format!("{side}.layers.{i}."), side == "decoder", heads, inner);
        let mut embedding = embedding("shared.weight", self.hidden);
        embedding.scale = self.scale;
        let Kind { offset, sinusoids, post_norm, .. } = self.kind;
        embedding.position = PositionConfig::Learned(LearnedConfig { rows: self.rows, hidden: self.hidden, offset });
        let table = TableSpec::new(&format!("{side}.embed_positions.weight"));
        embedding.position_table = Some(if sinusoids { table.or_sinusoids() } else { table });
        embedding.norm = post_norm.then(|| self.norm(&format!("{side}.layernorm_embedding")));
        let final_norm = (!post_norm).then(|| self.norm(&format!("{side}.layer_norm")));
        Ok(StackSpec::new(embedding, (0..layers).map(layer).collect(), final_norm))
    }

    fn attention(&self, name: &str, heads: usize, mask: Mask) -> MultiHeadSpec {
        let linear = |part: &str| LinearSpec::new(&format!("{name}.{part}"), self.hidden, self.hidden).bias(true);
        let qkv = QkvSpec::Separate { q: linear("q_proj"), k: linear("k_proj"), v: linear("v_proj") };
        MultiHeadSpec::new(heads, heads, self.hidden / heads, qkv, linear("out_proj"), nope()).with_mask(mask)
    }

    fn layer(&self, prefix: String, decoder: bool, heads: usize, inner: usize) -> LayerSpec {
        let linear = |name: &str, i, o| LinearSpec::new(name, i, o).bias(true);
        let mask = if decoder { Mask::causal() } else { Mask::bidirectional() };
        let cross = decoder.then(|| CrossSpec {
            attention: self.attention("encoder_attn", heads, Mask::bidirectional()),
            norm: self.norm("encoder_attn_layer_norm"),
            norm_after: self.kind.post_norm,
        });
        let norms = ["self_attn_layer_norm", "final_layer_norm"].map(|name| self.norm(name));
        let mlp = plain(linear("fc1", self.hidden, inner), linear("fc2", inner, self.hidden), self.act);
        let wiring = if self.kind.post_norm { Wiring::post_norm(norms) } else { Wiring::pre_norm(norms) };
        LayerSpec { cross, ..LayerSpec::new(prefix, self.attention("self_attn", heads, mask), mlp, wiring) }
    }
}

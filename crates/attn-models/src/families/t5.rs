//! T5 and its 1.1 and Flan variants: encoder and decoder with relative position buckets, no score scale, gated or plain
//! feed-forward.

use super::parts::{embedding, plain};
use crate::Architecture;
use crate::config::Config;
use crate::spec::{
    CrossSpec, GateSpec, GateUpSpec, HeadSpec, LayerSpec, LinearSpec, MlpSpec, ModelSpec, MultiHeadSpec, NormSpec,
    QkvSpec, StackSpec, TableSpec, Wiring,
};
use attn_core::Mask;
use attn_core::position::{PositionConfig, T5Config};
use candle_core::Result;
use serde_json::Value;

struct T5 {
    hidden: usize,
    d_kv: usize,
    d_ff: usize,
    heads: usize,
    buckets: usize,
    max_distance: usize,
    eps: f64,
    projection: String,
}

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let t5 = T5 {
        hidden: c.size(&["d_model"])?,
        d_kv: c.size_opt("d_kv")?.map_or(Ok(64), |_| c.listed(&["d_kv"]))?,
        d_ff: c.size(&["d_ff"])?,
        heads: c.listed(&["num_heads"])?,
        buckets: c.size_opt("relative_attention_num_buckets")?.unwrap_or(32),
        max_distance: c.size_opt("relative_attention_max_distance")?.unwrap_or(128),
        eps: c.eps("layer_norm_epsilon", 1e-6)?,
        projection: c.text_or("feed_forward_proj", "relu")?.to_string(),
    };
    c.only("is_decoder", &Value::Bool(false))?;
    c.mark(&["dense_act_fn", "is_gated_act", "output_past", "n_positions"]);
    let layers = c.listed(&["num_layers"])?;
    let decoder_layers = c.size_opt("num_decoder_layers")?.map_or(Ok(layers), |_| c.listed(&["num_decoder_layers"]))?;
    let tied = c.flag("tie_word_embeddings", true)?;
    // T5 1.0 scales its tied outputs, 1.1 says `tie_word_embeddings: false`; transformers 5 writes the flag out.
    let scaled = c.flag("scale_decoder_outputs", tied)?;
    Ok(ModelSpec {
        family: "t5".into(),
        architecture: Architecture::EncoderDecoder,
        vocab_size: c.size(&["vocab_size"])?,
        hidden_size: t5.hidden,
        trained_context: None,
        stack: t5.stack("decoder", decoder_layers)?,
        encoder: Some(t5.stack("encoder", layers)?),
        head: Some(HeadSpec {
            name: Some("lm_head".into()),
            or_tied: true,
            projection: None,
            bias: None,
            scale: if scaled { (t5.hidden as f64).powf(-0.5) } else { 1.0 },
            softcap: None,
        }),
        prefixes: vec![String::new()],
        unused: ["encoder.embed_tokens", "decoder.embed_tokens"].map(String::from).to_vec(),
    })
}

impl T5 {
    fn stack(&self, name: &str, layers: usize) -> Result<StackSpec> {
        let layers = (0..layers).map(|i| self.layer(format!("{name}.block.{i}."), name == "decoder"));
        let table = format!("{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        let layers = layers.collect::<Result<_>>()?;
        let norm = NormSpec::rms(&format!("{name}.final_layer_norm"), self.hidden, self.eps);
        let stack = StackSpec::new(embedding("shared.weight", self.hidden), layers, Some(norm));
        Ok(StackSpec { layer_table: Some(TableSpec::new(&table)), ..stack })
    }

    fn attention(&self, prefix: &str, mask: Mask, position: PositionConfig) -> MultiHeadSpec {
        let inner = self.heads * self.d_kv;
        let linear = |name: &str, i, o| LinearSpec::new(&format!("{prefix}{name}"), i, o);
        let project = |name| linear(name, self.hidden, inner);
        let qkv = QkvSpec::Separate { q: project("q"), k: project("k"), v: project("v") };
        let out = linear("o", inner, self.hidden);
        let spec = MultiHeadSpec::new(self.heads, self.heads, self.d_kv, qkv, out, position).with_mask(mask);
        MultiHeadSpec { scale: 1.0, overridable: false, ..spec }
    }

    /// `feed_forward_proj` is `relu`, or `gated-` and an activation; `gated-gelu` means the tanh approximation.
    fn mlp(&self, prefix: &str) -> Result<MlpSpec> {
        let linear = |name: &str, i, o| LinearSpec::new(&format!("{prefix}{name}"), i, o);
        let (up, down) = (|name: &str| linear(name, self.hidden, self.d_ff), linear("wo", self.d_ff, self.hidden));
        let key = "feed_forward_proj";
        Ok(match self.projection.strip_prefix("gated-") {
            None => plain(up("wi"), down, crate::activation::parse(key, &self.projection)?),
            Some(name) => MlpSpec::Gated {
                gate_up: GateUpSpec::Separate { gate: up("wi_0"), up: up("wi_1") },
                down,
                gate: GateSpec::Activation(crate::activation::parse(
                    key,
                    if name == "gelu" { "gelu_new" } else { name },
                )?),
            },
        })
    }

    fn layer(&self, prefix: String, decoder: bool) -> Result<LayerSpec> {
        let norm = |name: String| NormSpec::rms(&name, self.hidden, self.eps);
        let bias = T5Config {
            heads: self.heads,
            buckets: self.buckets,
            max_distance: self.max_distance,
            bidirectional: !decoder,
        };
        let mask = if decoder { Mask::causal() } else { Mask::bidirectional() };
        let cross = decoder.then(|| {
            let attention = self.attention("layer.1.EncDecAttention.", Mask::bidirectional(), super::parts::nope());
            CrossSpec { attention, norm: norm("layer.1.layer_norm".into()), norm_after: false }
        });
        let last = if decoder { 2 } else { 1 };
        let attention = self.attention("layer.0.SelfAttention.", mask, PositionConfig::T5(bias));
        let mlp = self.mlp(&format!("layer.{last}.DenseReluDense."))?;
        let norms = [norm("layer.0.layer_norm".into()), norm(format!("layer.{last}.layer_norm"))];
        Ok(LayerSpec { cross, ..LayerSpec::new(prefix, attention, mlp, Wiring::pre_norm(norms)) })
    }
}

//! BERT: an encoder with learned absolute positions and norms after every residual.

use super::{Common, activation, plain};
use crate::Architecture;
use crate::config::Config;
use crate::spec::{
    AttentionSpec, EmbeddingSpec, LayerSpec, LinearSpec, ModelSpec, NormSpec, QkvSpec, StackSpec, Wiring,
};
use attn_core::Mask;
use attn_core::position::{LearnedConfig, PositionConfig};
use candle_core::Result;
use serde_json::Value;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read_mha(c)?.divided()?;
    let hidden = common.hidden_size;
    let intermediate = c.size(&["intermediate_size"])?;
    let eps = c.eps("layer_norm_eps", 1e-12)?;
    let act = activation(c, "hidden_act", "gelu")?;
    let types = c.size_opt("type_vocab_size")?.unwrap_or(2);
    c.only("is_decoder", &Value::Bool(false))?;
    c.only("add_cross_attention", &Value::Bool(false))?;
    c.only("position_embedding_type", &Value::from("absolute"))?;
    c.mark(&["tie_word_embeddings"]);
    let rows = common.max_positions;
    let norm = |name: &str| NormSpec::layer(name, hidden, eps);
    let linear = |name: &str, i, o| LinearSpec::new(name, i, o).bias(true);
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(true, super::nope());
        let project = |name: &str| linear(&format!("attention.self.{name}"), hidden, hidden);
        attention.qkv = QkvSpec::Separate { q: project("query"), k: project("key"), v: project("value") };
        attention.out = linear("attention.output.dense", hidden, hidden);
        attention.mask = Mask::bidirectional();
        let up = linear("intermediate.dense", hidden, intermediate);
        LayerSpec {
            prefix: format!("encoder.layer.{i}."),
            attention: AttentionSpec::MultiHead(attention),
            cross: None,
            mlp: plain(up, linear("output.dense", intermediate, hidden), act),
            wiring: Wiring {
                attention_out_norm: Some(norm("attention.output.LayerNorm")),
                mlp_out_norm: Some(norm("output.LayerNorm")),
                ..Wiring::default()
            },
        }
    });
    Ok(ModelSpec {
        family: "bert".into(),
        architecture: Architecture::Encoder,
        vocab_size: common.vocab_size,
        hidden_size: hidden,
        trained_context: Some(rows),
        stack: StackSpec {
            embedding: EmbeddingSpec {
                tokens: "embeddings.word_embeddings.weight".into(),
                scale: 1.0,
                position: PositionConfig::Learned(LearnedConfig { rows, hidden, offset: 0 }),
                position_table: Some("embeddings.position_embeddings.weight".into()),
                token_types: Some(("embeddings.token_type_embeddings.weight".into(), types)),
                norm: Some(norm("embeddings.LayerNorm")),
            },
            layers: layers.collect(),
            final_norm: None,
            relative_table: None,
        },
        encoder: None,
        head: None,
        prefixes: vec![String::new(), "bert.".into()],
        unused: ["pooler.", "cls."].map(String::from).to_vec(),
    })
}

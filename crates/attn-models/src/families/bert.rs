//! BERT and its relatives, encoders with norms after every residual: RoBERTa (positions start past the padding's), ELECTRA
//! (embeddings may be narrower than the residual stream), DistilBERT (no segments, other names).

use super::dense::{Defaults, Dense};
use super::parts::{embedding, plain};
use crate::Architecture;
use crate::config::Config;
use crate::spec::{
    LayerSpec, LinearSpec, ModelSpec, MultiHeadSpec, NormSpec, ProjectionPlace, QkvSpec, StackSpec, TableSpec, Wiring,
};
use attn_core::Mask;
use attn_core::position::{LearnedConfig, PositionConfig};
use candle_core::{Result, bail};
use serde_json::Value;

pub(super) const BERT: Defaults = Defaults {
    vocab_size: 30_522,
    hidden_size: 768,
    intermediate_size: 3072,
    num_hidden_layers: 12,
    num_attention_heads: 12,
    plain_heads: true,
    max_position_embeddings: 512,
    eps: ("layer_norm_eps", 1e-12),
    hidden_act: "gelu",
    tie_word_embeddings: true,
    ..Defaults::LLAMA
};

const ROBERTA: Defaults = Defaults { vocab_size: 50_265, ..BERT };

const ELECTRA: Defaults = Defaults { hidden_size: 256, intermediate_size: 1024, num_attention_heads: 4, ..BERT };

pub(super) fn bert(c: &Config) -> Result<ModelSpec> {
    let encoder = Encoder::read(c, "bert", &BERT)?;
    let width = encoder.dense.common.hidden_size;
    encoder.spec(c, width, Some(0))
}

pub(super) fn roberta(c: &Config) -> Result<ModelSpec> {
    let encoder = Encoder::read(c, "roberta", &ROBERTA)?;
    let padding = c.count_or("pad_token_id", 1)?;
    if padding >= encoder.dense.common.max_positions {
        bail!("config.json: pad_token_id {padding} leaves no position of max_position_embeddings")
    }
    let width = encoder.dense.common.hidden_size;
    encoder.spec(c, width, Some(padding + 1))
}

pub(super) fn electra(c: &Config) -> Result<ModelSpec> {
    let encoder = Encoder::read(c, "electra", &ELECTRA)?;
    let width = c.size_opt("embedding_size")?.unwrap_or(128);
    c.mark(&["summary_last_dropout"]);
    encoder.spec(c, width, Some(0))
}

/// An encoder in BERT's layout.
pub(super) struct Encoder {
    pub(super) dense: Dense,
    family: &'static str,
}

impl Encoder {
    pub(super) fn read(c: &Config, family: &'static str, defaults: &Defaults) -> Result<Self> {
        c.only("is_decoder", &Value::Bool(false))?;
        c.only("add_cross_attention", &Value::Bool(false))?;
        c.only("position_embedding_type", &Value::from("absolute"))?;
        Ok(Self { dense: Dense::read(c, defaults)?, family })
    }

    /// The whole encoder with embeddings of `width`, and learned positions from row `offset` on if it has them.
    pub(super) fn spec(&self, c: &Config, width: usize, offset: Option<usize>) -> Result<ModelSpec> {
        let common = &self.dense.common;
        let (hidden, rows) = (common.hidden_size, common.max_positions);
        let types = c.size_opt("type_vocab_size")?.unwrap_or(2);
        let mut embedding = embedding("embeddings.word_embeddings.weight", width);
        embedding.token_types = Some(("embeddings.token_type_embeddings.weight".into(), types));
        embedding.norm = Some(NormSpec::layer("embeddings.LayerNorm", width, self.dense.eps));
        if let Some(offset) = offset {
            embedding.position = PositionConfig::Learned(LearnedConfig { rows, hidden: width, offset });
            embedding.position_table = Some(TableSpec::new("embeddings.position_embeddings.weight"));
        }
        if width != hidden {
            let projection = LinearSpec::new("embeddings_project", width, hidden).bias(true);
            embedding.projection = Some((projection, ProjectionPlace::AfterNorm));
        }
        Ok(ModelSpec {
            family: self.family.into(),
            architecture: Architecture::Encoder,
            vocab_size: common.vocab_size,
            hidden_size: hidden,
            trained_context: Some(rows - offset.unwrap_or(0)),
            stack: StackSpec::new(embedding, (0..common.layers).map(|i| self.layer(i)).collect(), None),
            encoder: None,
            head: None,
            prefixes: vec![String::new(), format!("{}.", self.family)],
            unused: HEADS.map(String::from).to_vec(),
        })
    }

    fn layer(&self, i: usize) -> LayerSpec {
        let (hidden, inner) = (self.dense.common.hidden_size, self.dense.intermediate_size);
        let linear = |name: &str, i, o| LinearSpec::new(name, i, o).bias(true);
        let project = |name: &str| linear(&format!("attention.self.{name}"), hidden, hidden);
        let qkv = QkvSpec::Separate { q: project("query"), k: project("key"), v: project("value") };
        let out = linear("attention.output.dense", hidden, hidden);
        let up = linear("intermediate.dense", hidden, inner);
        let mlp = plain(up, linear("output.dense", inner, hidden), self.dense.act);
        let norms = ["attention.output.LayerNorm", "output.LayerNorm"].map(|name| self.dense.layer_norm(name));
        let attention = bidirectional(&self.dense, qkv, out);
        LayerSpec::new(format!("encoder.layer.{i}."), attention, mlp, Wiring::post_norm(norms))
    }
}

/// What sits on top of an encoder: poolers, heads for training and for tasks.
const HEADS: [&str; 8] = [
    "pooler.",
    "cls.",
    "lm_head.",
    "classifier.",
    "qa_outputs.",
    "discriminator_predictions.",
    "generator_predictions.",
    "generator_lm_head.",
];

fn bidirectional(dense: &Dense, qkv: QkvSpec, out: LinearSpec) -> MultiHeadSpec {
    let (heads, d) = (dense.common.heads, dense.common.head_dim);
    MultiHeadSpec::new(heads, heads, d, qkv, out, super::parts::nope()).with_mask(Mask::bidirectional())
}

pub(super) fn distilbert(c: &Config) -> Result<ModelSpec> {
    let given = |keys: &[&str]| keys.iter().any(|key| c.get(key).is_some());
    let size = |keys: &[&str], default| if given(keys) { c.size(keys) } else { Ok(default) };
    let count = |keys: &[&str], default| if given(keys) { c.listed(keys) } else { Ok(default) };
    let sizes = Defaults {
        hidden_size: size(&["dim", "hidden_size"], 768)?,
        intermediate_size: size(&["hidden_dim"], 3072)?,
        num_hidden_layers: count(&["n_layers", "num_hidden_layers"], 6)?,
        num_attention_heads: count(&["n_heads", "num_attention_heads"], 12)?,
        eps: ("", 1e-12),
        ..BERT
    };
    let dense = Dense::read_with(c, &sizes, super::parts::activation(c, "activation", "gelu")?)?;
    // The table is in the checkpoint, whichever way it came about.
    c.mark(&["sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout"]);
    let (hidden, inner, rows) = (dense.common.hidden_size, dense.intermediate_size, dense.common.max_positions);
    let linear = |name: &str, i, o| LinearSpec::new(name, i, o).bias(true);
    let layers = dense.layers(|i| {
        let project = |name: &str| linear(&format!("attention.{name}"), hidden, hidden);
        let qkv = QkvSpec::Separate { q: project("q_lin"), k: project("k_lin"), v: project("v_lin") };
        let mlp = plain(linear("ffn.lin1", hidden, inner), linear("ffn.lin2", inner, hidden), dense.act);
        let norms = ["sa_layer_norm", "output_layer_norm"].map(|name| dense.layer_norm(name));
        let attention = bidirectional(&dense, qkv, project("out_lin"));
        Ok(LayerSpec::new(format!("transformer.layer.{i}."), attention, mlp, Wiring::post_norm(norms)))
    })?;
    let mut embedding = embedding("embeddings.word_embeddings.weight", hidden);
    embedding.position = PositionConfig::Learned(LearnedConfig { rows, hidden, offset: 0 });
    embedding.position_table = Some(TableSpec::new("embeddings.position_embeddings.weight"));
    embedding.norm = Some(dense.layer_norm("embeddings.LayerNorm"));
    Ok(ModelSpec {
        family: "distilbert".into(),
        architecture: Architecture::Encoder,
        vocab_size: dense.common.vocab_size,
        hidden_size: hidden,
        trained_context: Some(rows),
        stack: StackSpec::new(embedding, layers, None),
        encoder: None,
        head: None,
        prefixes: vec![String::new(), "distilbert.".into()],
        unused: ["vocab_", "pre_classifier.", "classifier.", "qa_outputs."].map(String::from).to_vec(),
    })
}

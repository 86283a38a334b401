//! DeepSeek V3: latent attention, YaRN with its temperature in the score scale, and experts chosen by sigmoid scores
//! within groups.

use super::{Common, activation, gated, rope};
use crate::config::{Config, MAX_LISTED};
use crate::spec::{
    AttentionSpec, ExpertNames, LatentSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec, NormSpec, Routing, Wiring,
};
use attn_core::position::{Layout, RopeDefaults};
use candle_core::{Result, bail};
use serde_json::json;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    c.mark(&["head_dim", "qk_head_dim"]); // derived from the two below
    let mut common = Common::read(c)?;
    common.head_dim = c.size_opt("qk_rope_head_dim")?.unwrap_or(64);
    let hidden = common.hidden_size;
    let eps = c.eps("rms_norm_eps", 1e-6)?;
    let layout = if c.flag("rope_interleave", true)? { Layout::Interleaved } else { Layout::Half };
    let attention = LatentSpec {
        heads: common.heads,
        q_lora_rank: c.size_opt("q_lora_rank")?,
        kv_lora_rank: c.size(&["kv_lora_rank"])?,
        qk_nope_head_dim: c.size(&["qk_nope_head_dim"])?,
        qk_rope_head_dim: common.head_dim,
        v_head_dim: c.size(&["v_head_dim"])?,
        bias: c.flag("attention_bias", false)?,
        position: rope(c, None, &RopeDefaults { layout, ..RopeDefaults::new(common.head_dim) })?,
    };
    let mlps = Mlps::read(c, hidden)?;
    let norm = |name: &str| NormSpec::rms(name, hidden, eps);
    let layers = (0..common.layers).map(|i| LayerSpec {
        prefix: format!("layers.{i}."),
        attention: AttentionSpec::Latent(attention.clone()),
        cross: None,
        mlp: mlps.layer(i),
        wiring: Wiring {
            attention_norm: Some(norm("input_layernorm")),
            mlp_norm: Some(norm("post_attention_layernorm")),
            ..Wiring::default()
        },
    });
    let tied = c.flag("tie_word_embeddings", false)?;
    let mut spec = common.decoder("deepseek_v3", layers.collect(), norm("norm"), tied);
    // Layers past the last predict further tokens in training.
    spec.unused.push(format!("layers.{}.", common.layers));
    Ok(spec)
}

struct Mlps {
    dense: MlpSpec,
    moe: MoeSpec,
    dense_layers: usize,
}

impl Mlps {
    fn read(c: &Config, hidden: usize) -> Result<Self> {
        c.only("scoring_func", &json!("sigmoid"))?;
        c.only("topk_method", &json!("noaux_tc"))?;
        c.only("moe_layer_freq", &json!(1))?;
        c.mark(&["num_mtp_layers", "num_nextn_predict_layers"]);
        let act = activation(c, "hidden_act", "silu")?;
        let intermediate = c.size(&["intermediate_size"])?;
        let moe_intermediate = c.size(&["moe_intermediate_size"])?;
        let experts = c.listed(&["n_routed_experts", "num_local_experts"])?;
        let (groups, top_groups) = (c.size_opt("n_group")?.unwrap_or(1), c.size_opt("topk_group")?.unwrap_or(1));
        let top_k = c.size(&["num_experts_per_tok"])?;
        if !experts.is_multiple_of(groups) || top_groups > groups || top_k > experts / groups * top_groups {
            bail!(
                "config.json: n_routed_experts {experts}, n_group {groups}, topk_group {top_groups} and \
                 num_experts_per_tok {top_k} do not fit together"
            )
        }
        let shared = c.count_or("n_shared_experts", 1)?;
        if shared > MAX_LISTED {
            bail!("config.json: n_shared_experts = {shared} is past any model")
        }
        let shared = (shared > 0).then(|| gated("mlp.shared_experts.", hidden, moe_intermediate * shared, false, act));
        let moe = MoeSpec {
            router: "mlp.gate".into(),
            routing: Routing::GroupedSigmoid {
                groups,
                top_groups,
                normalise: c.flag("norm_topk_prob", true)?,
                scale: c.number_or("routed_scaling_factor", 2.5)?,
                correction: "mlp.gate.e_score_correction_bias".into(),
            },
            experts,
            top_k,
            hidden_size: hidden,
            intermediate_size: moe_intermediate,
            names: ExpertNames::Separate { prefix: "mlp.experts.".into() },
            activation: act,
            shared,
        };
        let dense = gated("mlp.", hidden, intermediate, false, act);
        Ok(Self { dense, moe, dense_layers: c.count_or("first_k_dense_replace", 3)? })
    }

    fn layer(&self, i: usize) -> MlpSpec {
        if i < self.dense_layers { self.dense.clone() } else { MlpSpec::Moe(Box::new(self.moe.clone())) }
    }
}

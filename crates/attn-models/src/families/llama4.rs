//! Llama 4's text model (iRoPE): interleaved rotation and chunked attention on most layers; the others have no position
//! encoding but a temperature that grows with the position; experts on every n-th layer.

use super::parts::{Common, LLAMA_NORMS, activation, gated, layer_types, pre_norm};
use super::rotary::rope;
use super::smollm3::rope_layers;
use crate::config::Config;
use crate::spec::{
    ExpertWeights, GateSpec, LinearSpec, MlpSpec, ModelSpec, MoeSpec, NormSpec, RouterScores, Routing, SharedSpec,
};
use attn_core::position::{Layout, NopeConfig, PositionConfig, RopeDefaults, Temperature};
use attn_core::{NormKind, QkNormPlace};
use candle_core::{Result, bail};

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read(c)?;
    let hidden = common.hidden_size;
    let eps = c.eps("rms_norm_eps", 1e-5)?;
    let bias = c.flag("attention_bias", false)?;
    let qk_norm = c.flag("use_qk_norm", true)?;
    let rotates = rope_layers(c, common.layers)?;
    let default = |i: usize| if rotates[i] { "chunked_attention" } else { "full_attention" };
    let kinds = layer_types(c, common.layers, default)?;
    let chunk = c.size_opt("attention_chunk_size")?;
    let rope = rope(c, None, &RopeDefaults { layout: Layout::Interleaved, ..RopeDefaults::new(common.head_dim) })?;
    let tempered = c.flag("attn_temperature_tuning", true)?;
    let temperature =
        Temperature::llama4(c.positive_opt("floor_scale")?.unwrap_or(8192.0), c.number_or("attn_scale", 0.1)?);
    let nope = PositionConfig::Nope(NopeConfig { temperature: tempered.then_some(temperature) });
    let mlps = Mlps::read(c, &common)?;
    let norm = |name: &str| NormSpec::rms(name, hidden, eps);
    let layer = |i: usize| {
        let mut attention = common.attention(bias, if rotates[i] { rope.clone() } else { nope.clone() });
        if qk_norm && rotates[i] {
            let norm = NormSpec { name: None, kind: NormKind::Rms, ..norm("") };
            attention.qk_norm = Some((norm.clone(), norm, QkNormPlace::AfterRotation));
        }
        attention.mask = match (kinds[i].as_str(), chunk) {
            ("full_attention", _) => attention.mask,
            ("chunked_attention", Some(chunk)) => attention.mask.with_chunk(Some(chunk)),
            (kind, _) => bail!("config.json: layer_types: {kind} needs attention_chunk_size"),
        };
        Ok(pre_norm(format!("layers.{i}."), attention, mlps.layer(i), LLAMA_NORMS.map(norm)))
    };
    let layers = (0..common.layers).map(layer).collect::<Result<Vec<_>>>()?;
    Ok(common.decoder("llama4_text", layers, norm("norm"), c.flag("tie_word_embeddings", false)?))
}

struct Mlps {
    dense: MlpSpec,
    moe: MlpSpec,
    moe_layers: Vec<usize>,
}

impl Mlps {
    fn read(c: &Config, common: &Common) -> Result<Self> {
        let act = activation(c, "hidden_act", "silu")?;
        let hidden = common.hidden_size;
        let intermediate = c.size(&["intermediate_size"])?;
        let dense_intermediate = c.size_opt("intermediate_size_mlp")?.unwrap_or(16384);
        let (experts, top_k) = (c.listed(&["num_local_experts"])?, c.size_opt("num_experts_per_tok")?.unwrap_or(1));
        if top_k > experts {
            bail!("config.json: num_experts_per_tok {top_k} is more than num_local_experts {experts}")
        }
        let step = c.size_opt("interleave_moe_layer_step")?.unwrap_or(1);
        let listed = c.list("moe_layers", 0, |v| v.as_u64().map(|n| n as usize))?;
        let moe = MoeSpec {
            router: LinearSpec::new("feed_forward.router", hidden, experts),
            router_norm: None,
            routing: Routing { scores: RouterScores::Sigmoid, weighs_input: true, ..Routing::softmax(false) },
            experts,
            top_k,
            hidden_size: hidden,
            intermediate_size: intermediate,
            weights: ExpertWeights::Stacked {
                gate_up: "feed_forward.experts.gate_up_proj".into(),
                down: "feed_forward.experts.down_proj".into(),
                transposed: true,
                interleaved: false,
                biases: None,
            },
            gate: GateSpec::Activation(act),
            shared: Some(SharedSpec {
                mlp: gated("feed_forward.shared_expert.", hidden, intermediate, false, act),
                gate: None,
            }),
        };
        Ok(Self {
            dense: gated("feed_forward.", hidden, dense_intermediate, false, act),
            moe: MlpSpec::Moe(Box::new(moe)),
            moe_layers: listed.unwrap_or_else(|| (step - 1..common.layers).step_by(step).collect()),
        })
    }

    fn layer(&self, i: usize) -> MlpSpec {
        if self.moe_layers.contains(&i) { self.moe.clone() } else { self.dense.clone() }
    }
}

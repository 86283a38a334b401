//! What configs say about mixtures of experts, under the names of each family.

use super::dense::Dense;
use super::parts::gated;
use crate::config::{Config, MAX_LISTED};
use crate::spec::{
    ExpertWeights, GateSpec, GroupLimit, GroupScore, LinearSpec, MlpSpec, MoeSpec, RouterScores, Routing, SharedSpec,
};
use candle_core::{Result, bail};

/// How many experts there are and how many a token chooses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Experts {
    pub(super) count: usize,
    pub(super) top_k: usize,
}

impl Experts {
    /// Reads both under either of two spellings.
    pub(super) fn read(
        c: &Config,
        names: [&str; 2],
        default: usize,
        top_names: [&str; 2],
        default_top: usize,
    ) -> Result<Self> {
        let any = |names: &[&str]| names.iter().any(|name| c.get(name).is_some());
        let count = if any(&names) { c.listed(&names)? } else { default };
        let top_k = if any(&top_names) { c.size(&top_names)? } else { default_top };
        if top_k > count {
            bail!("config.json: {} {top_k} is more than {} {count}", top_names[0], names[0])
        }
        Ok(Self { count, top_k })
    }

    /// The mixture itself, with experts of width `inner`.
    pub(super) fn moe(
        &self,
        dense: &Dense,
        router: &str,
        routing: Routing,
        inner: usize,
        weights: ExpertWeights,
    ) -> MlpSpec {
        let hidden_size = dense.common.hidden_size;
        MlpSpec::Moe(Box::new(MoeSpec {
            router: LinearSpec::new(router, hidden_size, self.count),
            router_norm: None,
            routing,
            experts: self.count,
            top_k: self.top_k,
            hidden_size,
            intermediate_size: inner,
            weights,
            gate: GateSpec::Activation(dense.act),
            shared: None,
        }))
    }

    /// The groups that a choice is limited to, if a config has any.
    fn groups(&self, c: &Config, by: GroupScore, default: Option<[usize; 2]>) -> Result<Option<GroupLimit>> {
        let groups = c.size_opt("n_group")?.or(default.map(|d| d[0]));
        let kept = c.size_opt("topk_group")?.or(default.map(|d| d[1]));
        let (Some(groups), Some(kept)) = (groups, kept) else {
            bail!("config.json: n_group and topk_group are missing")
        };
        let Self { count, top_k } = *self;
        if !count.is_multiple_of(groups) || kept > groups || top_k > count / groups * kept {
            bail!(
                "config.json: n_routed_experts {count}, n_group {groups}, topk_group {kept} and num_experts_per_tok \
                 {top_k} do not fit together"
            )
        }
        Ok((kept < groups).then_some(GroupLimit { groups, kept, by }))
    }
}

/// The width inside an expert.
pub(super) fn width(c: &Config, key: &str, default: usize) -> Result<usize> {
    Ok(c.size_opt(key)?.unwrap_or(default))
}

/// A number of experts that may be none.
pub(super) fn count(c: &Config, key: &str, default: usize) -> Result<usize> {
    match c.count_or(key, default)? {
        n if n > MAX_LISTED => bail!("config.json: {key} = {n} is more than any model has"),
        n => Ok(n),
    }
}

/// The same mixture with an expert that every token passes through.
pub(super) fn with_shared(moe: MlpSpec, mlp: MlpSpec) -> MlpSpec {
    match moe {
        MlpSpec::Moe(mut moe) => {
            moe.shared = Some(SharedSpec { mlp, gate: None });
            MlpSpec::Moe(moe)
        }
        other => other,
    }
}

/// DeepSeek's layout, which GLM 4.5 and dots.llm1 share: dense layers first, then experts under `mlp.experts.` chosen at
/// `mlp.gate`, beside experts that every token passes through under `mlp.shared_experts.`.
pub(super) struct DeepSeek {
    dense: MlpSpec,
    moe: MlpSpec,
    dense_layers: usize,
}

/// What a family's configuration class holds about its experts.
pub(super) struct DeepSeekDefaults {
    pub(super) n_routed_experts: Option<usize>,
    pub(super) num_experts_per_tok: Option<usize>,
    pub(super) n_shared_experts: Option<usize>,
    pub(super) first_k_dense_replace: usize,
    pub(super) moe_intermediate_size: usize,
    pub(super) routed_scaling_factor: f64,
    /// `n_group` and `topk_group`; `None`: they have to be given where the choice is limited.
    pub(super) groups: Option<[usize; 2]>,
}

impl DeepSeek {
    /// The router of DeepSeek V3: sigmoid scores, a learned correction for the choice, groups by their two best.
    pub(super) fn sigmoid(c: &Config, dense: &Dense, defaults: &DeepSeekDefaults, normalise: bool) -> Result<Self> {
        let experts = Self::experts(c, defaults)?;
        let normalise = c.flag("norm_topk_prob", normalise)?;
        let routing = Routing {
            scores: RouterScores::Sigmoid,
            correction: Some(("mlp.gate.e_score_correction_bias".into(), vec![experts.count])),
            groups: experts.groups(c, GroupScore::BestTwo, defaults.groups)?,
            normalise: normalise.then_some(1e-20),
            scale: c.number_or("routed_scaling_factor", defaults.routed_scaling_factor)?,
            ..Routing::softmax(false)
        };
        Self::read(c, dense, defaults, experts, routing)
    }

    /// The router of DeepSeek V2: a softmax whose weights are not normalised, with groups by their best if asked for.
    pub(super) fn softmax(c: &Config, dense: &Dense, defaults: &DeepSeekDefaults) -> Result<Self> {
        let experts = Self::experts(c, defaults)?;
        let groups = match c.text_or("topk_method", "greedy")? {
            "greedy" => {
                c.mark(&["n_group", "topk_group"]);
                None
            }
            "group_limited_greedy" => experts.groups(c, GroupScore::Best, defaults.groups)?,
            other => bail!("config.json: topk_method {other} is not supported, only greedy and group_limited_greedy"),
        };
        let scale = c.number_or("routed_scaling_factor", defaults.routed_scaling_factor)?;
        Self::read(c, dense, defaults, experts, Routing { groups, scale, ..Routing::softmax(false) })
    }

    fn experts(c: &Config, defaults: &DeepSeekDefaults) -> Result<Experts> {
        let need = |default: Option<usize>, keys: [&str; 2]| match default {
            Some(n) => Ok(n),
            None => c.size(&keys),
        };
        let (names, top_names) = (["n_routed_experts", "num_local_experts"], ["num_experts_per_tok"; 2]);
        let (count, top_k) = (need(defaults.n_routed_experts, names)?, need(defaults.num_experts_per_tok, top_names)?);
        Experts::read(c, names, count, top_names, top_k)
    }

    fn read(
        c: &Config,
        dense: &Dense,
        defaults: &DeepSeekDefaults,
        experts: Experts,
        routing: Routing,
    ) -> Result<Self> {
        let inner = width(c, "moe_intermediate_size", defaults.moe_intermediate_size)?;
        let shared = match defaults.n_shared_experts {
            Some(default) => count(c, "n_shared_experts", default)?,
            None => c.listed(&["n_shared_experts"])?,
        };
        let mut moe = experts.moe(dense, "mlp.gate", routing, inner, ExpertWeights::separate("mlp.experts."));
        if shared > 0 {
            let hidden = dense.common.hidden_size;
            moe = with_shared(moe, gated("mlp.shared_experts.", hidden, inner * shared, false, dense.act));
        }
        let dense_layers = c.count_or("first_k_dense_replace", defaults.first_k_dense_replace)?;
        Ok(Self { dense: dense.gated_mlp(false), moe, dense_layers })
    }

    /// The feed-forward network of layer `i`.
    pub(super) fn layer(&self, i: usize) -> MlpSpec {
        if i < self.dense_layers { self.dense.clone() } else { self.moe.clone() }
    }
}

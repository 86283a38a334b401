//! [`AttentionParts`]: what a layer is assembled from, and the check that it fits the configuration.

use super::AttentionConfig;
use crate::{GateWidth, Linear, Norm};
use candle_core::{Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

/// Queries, keys and values: three products, or one over their rows stacked in that order.
#[derive(Debug, Clone)]
pub enum Projections {
    /// A product each.
    Separate {
        /// `(heads * head_dim, hidden_size)`
        q: Linear,
        /// `(kv_heads * head_dim, hidden_size)`
        k: Linear,
        /// `(kv_heads * v_head_dim, hidden_size)`
        v: Linear,
    },
    /// One product with `(heads * head_dim + kv_heads * (head_dim + v_head_dim), hidden_size)`.
    Fused(Linear),
    /// Queries alone, `(heads * head_dim, hidden_size)`: a layer that reads the keys and values of another one (Gemma
    /// 3n, Gemma 4), see [`KeyValues`](crate::KeyValues).
    Queries(Linear),
}

/// What a norm on queries and keys sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum QkNormPlace {
    /// Each head of `(b, t, h, d)`, before rotation: Qwen 3, Gemma 3, StableLM.
    #[default]
    Heads,
    /// All heads as one vector `(b, t, h * d)`, before rotation: OLMo 2.
    Whole,
    /// Each head, after rotation: Llama 4.
    AfterRotation,
}

/// The weights of a layer. Take those of a layer with [`parts`](crate::MultiHeadAttention::parts), replace some (a
/// [`Linear`] may hold any module) and build a layer anew.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AttentionParts {
    /// Queries, keys and values.
    pub projections: Projections,
    /// The output projection, `(hidden_size, heads * v_head_dim)`.
    pub out: Linear,
    /// Norm on the queries.
    pub q_norm: Option<Norm>,
    /// Norm on the keys.
    pub k_norm: Option<Norm>,
    /// What the norms on queries and keys see and when.
    pub qk_norm_place: QkNormPlace,
    /// Norm on each value head of `(b, t, h_kv, dv)`.
    pub v_norm: Option<Norm>,
    /// `(heads,)`: a logit per head in the softmax's denominator.
    pub sinks: Option<Tensor>,
    /// From the layer's input to the logits of a gate on what the heads give: `(heads * v_head_dim, hidden_size)`, or
    /// `(heads, hidden_size)` for one gate per head.
    pub output_gate: Option<Linear>,
}

impl AttentionParts {
    /// The projections, without norms and other parts.
    pub fn new(projections: Projections, out: Linear) -> Self {
        Self {
            projections,
            out,
            q_norm: None,
            k_norm: None,
            qk_norm_place: QkNormPlace::default(),
            v_norm: None,
            sinks: None,
            output_gate: None,
        }
    }

    /// With norms on queries and keys.
    #[must_use]
    pub fn with_qk_norm(mut self, q: Option<Norm>, k: Option<Norm>, place: QkNormPlace) -> Self {
        (self.q_norm, self.k_norm, self.qk_norm_place) = (q, k, place);
        self
    }

    /// With a norm on the values.
    #[must_use]
    pub fn with_v_norm(mut self, norm: Option<Norm>) -> Self {
        self.v_norm = norm;
        self
    }

    /// With sinks, see [`AttentionParts::sinks`].
    #[must_use]
    pub fn with_sinks(mut self, sinks: Option<Tensor>) -> Self {
        self.sinks = sinks;
        self
    }

    /// With an output gate, see [`AttentionParts::output_gate`].
    #[must_use]
    pub fn with_output_gate(mut self, gate: Option<Linear>) -> Self {
        self.output_gate = gate;
        self
    }

    /// Reads `q_proj`, `k_proj`, `v_proj`, `o_proj` and what else `config` asks for: `q_norm`, `k_norm`, `sinks`,
    /// `gate_proj`. In a fresh `VarMap` they start as candle-nn's layers do, sinks at 0.
    pub(super) fn load(config: &AttentionConfig, vb: &VarBuilder) -> Result<Self> {
        let (hidden, heads, kv_heads) = (config.hidden_size, config.heads, config.kv_heads);
        let (d, dv) = (config.head_dim(), config.v_head_dim());
        let linear = |name: &str, rows: usize| Linear::load(hidden, rows, config.qkv_bias, &vb.pp(name));
        let projections = Projections::Separate {
            q: linear("q_proj", heads * d)?,
            k: linear("k_proj", kv_heads * d)?,
            v: linear("v_proj", kv_heads * dv)?,
        };
        let mut parts = Self::new(projections, Linear::load(heads * dv, hidden, config.out_bias, &vb.pp("o_proj"))?);
        if let Some(eps) = config.qk_norm_eps {
            let norm = |name: &str| Norm::rms(d, eps, &vb.pp(name)).map(Some);
            parts = parts.with_qk_norm(norm("q_norm")?, norm("k_norm")?, QkNormPlace::Heads);
        }
        parts.v_norm = config.v_norm_eps.map(|eps| Norm::new(crate::NormKind::Rms, None, None, eps));
        if config.sinks {
            parts.sinks = Some(vb.get_with_hints(heads, "sinks", Init::Const(0.0))?);
        }
        if let Some(width) = config.output_gate {
            let rows = match width {
                GateWidth::Lanes => heads * dv,
                GateWidth::Heads => heads,
            };
            parts.output_gate = Some(Linear::load(hidden, rows, false, &vb.pp("gate_proj"))?);
        }
        Ok(parts)
    }

    /// An error that names the first part that doesn't fit `config`.
    pub(super) fn check(&self, config: &AttentionConfig) -> Result<()> {
        let (hidden, heads, kv_heads) = (config.hidden_size, config.heads, config.kv_heads);
        let (d, dv) = (config.head_dim(), config.v_head_dim());
        let fits = |name: &str, linear: &Linear, rows: usize, columns: usize| match (linear.out_dim(), linear.in_dim())
        {
            (o, i) if (o, i) == (rows, columns) => Ok(()),
            (o, i) => bail!(
                "attention: {name} is ({o}, {i}), {heads} heads on {kv_heads} kv heads of {d} and {dv} lanes ask for ({rows}, {columns})"
            ),
        };
        match &self.projections {
            Projections::Separate { q, k, v } => {
                fits("the query projection", q, heads * d, hidden)?;
                fits("the key projection", k, kv_heads * d, hidden)?;
                fits("the value projection", v, kv_heads * dv, hidden)?;
            }
            Projections::Fused(qkv) => {
                fits("the fused projection", qkv, heads * d + kv_heads * (d + dv), hidden)?;
            }
            Projections::Queries(q) => fits("the query projection", q, heads * d, hidden)?,
        }
        fits("the output projection", &self.out, hidden, heads * dv)?;
        if let Some(gate) = &self.output_gate {
            let rows = if gate.out_dim() == heads { heads } else { heads * dv };
            fits("the output gate", gate, rows, hidden)?;
        }
        if let Some(sinks) = &self.sinks
            && sinks.dims() != [heads]
        {
            bail!("attention: sinks of shape {:?} for {heads} heads", sinks.dims())
        }
        let whole = |heads: usize| match self.qk_norm_place {
            QkNormPlace::Whole => vec![heads * d],
            QkNormPlace::Heads | QkNormPlace::AfterRotation => vec![heads, d],
        };
        let norms = [
            ("query", &self.q_norm, whole(heads)),
            ("key", &self.k_norm, whole(kv_heads)),
            ("value", &self.v_norm, vec![kv_heads, dv]),
        ];
        for (name, norm, seen) in norms {
            if let Some(norm) = norm
                && !norm.fits(&seen)
            {
                bail!("attention: the {name} norm's weight {:?} does not fit {seen:?}", norm.weight().map(Tensor::dims))
            }
        }
        Ok(())
    }
}

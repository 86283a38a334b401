//! Feed-forward networks as data: plain, gated, and mixtures of experts.

use super::{LinearSpec, NormSpec};
use crate::activation::Activation;

/// A feed-forward network.
#[derive(Debug, Clone, PartialEq)]
pub enum MlpSpec {
    /// `down(act(gate x) * up x)`
    Gated {
        /// Gate and up: two tensors, or one with gate's rows first.
        gate_up: GateUpSpec,
        /// Back to the hidden size.
        down: LinearSpec,
        /// What becomes of gate and up.
        gate: GateSpec,
    },
    /// `down(act(up x))`
    Plain {
        /// To the intermediate size.
        up: LinearSpec,
        /// Back to the hidden size.
        down: LinearSpec,
        /// Between them.
        activation: PlainActivation,
    },
    /// A router and experts.
    Moe(Box<MoeSpec>),
}

/// The first half of a gated network.
#[derive(Debug, Clone, PartialEq)]
pub enum GateUpSpec {
    /// One tensor each.
    Separate {
        /// Gate.
        gate: LinearSpec,
        /// Up.
        up: LinearSpec,
    },
    /// One tensor, gate's rows first.
    Fused(LinearSpec),
}

/// How a gate acts on what passes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GateSpec {
    /// `act(gate) * up`
    Activation(Activation),
    /// gpt-oss: `gate * sigmoid(alpha * gate) * (up + 1)`, gate clamped from above and up on both sides.
    ClampedSwiglu {
        /// Steepness of the sigmoid.
        alpha: f64,
        /// Where the two are clamped.
        limit: f64,
    },
}

/// The activation of a network without a gate.
#[derive(Debug, Clone, PartialEq)]
pub enum PlainActivation {
    /// One without parameters.
    Fixed(Activation),
    /// xIELU (arXiv:2411.13010), whose two slopes are learned: tensors `alpha_p` and `alpha_n` under this prefix, and
    /// `beta` and `eps` if the checkpoint has them.
    Xielu {
        /// Up to the names, with the dot.
        prefix: String,
    },
}

/// A mixture of experts.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeSpec {
    /// To the experts' logits, one row per expert.
    pub router: LinearSpec,
    /// On what the router sees.
    pub router_norm: Option<RouterNorm>,
    /// How tokens choose.
    pub routing: Routing,
    /// Number of experts.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Width of the input and output.
    pub hidden_size: usize,
    /// Width inside an expert.
    pub intermediate_size: usize,
    /// Where the experts' weights are.
    pub weights: ExpertWeights,
    /// Each expert's gate.
    pub gate: GateSpec,
    /// An expert that every token passes through.
    pub shared: Option<SharedSpec>,
}

/// An RMS norm on what a router sees (Gemma 4).
#[derive(Debug, Clone, PartialEq)]
pub struct RouterNorm {
    /// The tensor of its weight, `(hidden,)`.
    pub weight: String,
    /// Multiplies the weight.
    pub factor: f64,
    /// Inside the square root.
    pub eps: f64,
}

/// Experts beside a block's feed-forward network (Gemma 4). Both start from the residual, each with norms of its own; the
/// router sees the residual itself.
#[derive(Debug, Clone, PartialEq)]
pub struct BesideSpec {
    /// On the residual, for the experts.
    pub norm: NormSpec,
    /// The experts.
    pub moe: MoeSpec,
    /// On what the experts give.
    pub post_norm: NormSpec,
    /// On what the network beside them gives.
    pub mlp_post_norm: NormSpec,
}

/// An expert that every token passes through.
#[derive(Debug, Clone, PartialEq)]
pub struct SharedSpec {
    /// The expert.
    pub mlp: MlpSpec,
    /// `sigmoid(gate x)`, one number per token, multiplies its output (Qwen 2 MoE).
    pub gate: Option<LinearSpec>,
}

/// How tokens choose experts and what their outputs weigh: scores from the router's logits, a choice of `top_k`, weights
/// from the scores of the chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// From logits to scores.
    pub scores: RouterScores,
    /// Name and shape of a learned correction of the scores, which is used only to choose experts.
    pub correction: Option<(String, Vec<usize>)>,
    /// Only experts of the best groups may be chosen.
    pub groups: Option<GroupLimit>,
    /// Divides the weights of the chosen by their sum, or by this number if the sum is smaller.
    pub normalise: Option<f64>,
    /// Multiplies the weights.
    pub scale: f64,
    /// The tensor, `(experts,)`, that multiplies the weight of each expert (Gemma 4).
    pub expert_scales: Option<String>,
    /// The weights multiply an expert's input rather than its output (Llama 4).
    pub weighs_input: bool,
}

impl Routing {
    /// The softmax over all experts; with `normalise` the weights of the chosen sum to one, which is the same as a softmax
    /// over the chosen logits.
    pub fn softmax(normalise: bool) -> Self {
        Self {
            scores: RouterScores::Softmax,
            correction: None,
            groups: None,
            normalise: normalise.then_some(0.0),
            scale: 1.0,
            expert_scales: None,
            weighs_input: false,
        }
    }
}

/// From a router's logits to scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RouterScores {
    /// Over all experts.
    Softmax,
    /// Of each expert on its own.
    Sigmoid,
    /// SparseMixer (arXiv:2310.00811, Phi 3.5 MoE): the experts are chosen one after the other; each weighs as in a softmax
    /// over those left whose logits are within `2 * jitter` of the largest, relative to their size.
    SparseMixer {
        /// The config's `router_jitter_noise`.
        jitter: f64,
    },
}

/// A limit on the groups of experts that a token may choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupLimit {
    /// Groups the experts are divided into.
    pub groups: usize,
    /// Groups kept.
    pub kept: usize,
    /// What a group's score is.
    pub by: GroupScore,
}

/// The score of a group of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupScore {
    /// Its best expert's (DeepSeek V2).
    Best,
    /// The sum of its two best experts' (DeepSeek V3).
    BestTwo,
}

/// Where experts' weights are.
#[derive(Debug, Clone, PartialEq)]
pub enum ExpertWeights {
    /// Tensors of their own: `{prefix}{i}.{name}.weight` for gate, up and down.
    Separate {
        /// Up to the expert's number.
        prefix: String,
        /// Gate, up, down.
        names: [&'static str; 3],
        /// Each has a bias.
        bias: bool,
    },
    /// Two tensors for all experts, gate and up in one.
    Stacked {
        /// `(e, 2 * inter, hidden)`, or `(e, hidden, 2 * inter)` if transposed.
        gate_up: String,
        /// `(e, hidden, inter)`, or `(e, inter, hidden)` if transposed.
        down: String,
        /// Inputs come before outputs (Llama 4, gpt-oss).
        transposed: bool,
        /// Gate and up alternate, rather than gate coming first (gpt-oss).
        interleaved: bool,
        /// Biases of the two, `(e, out)`.
        biases: Option<[String; 2]>,
    },
}

impl ExpertWeights {
    /// `{prefix}{i}.gate_proj.weight` and so on.
    pub fn separate(prefix: &str) -> Self {
        Self::Separate { prefix: prefix.into(), names: ["gate_proj", "up_proj", "down_proj"], bias: false }
    }
}

//! A new model: its config in Hugging Face's spelling, and its initial weights.
//!
//! All encodings share Llama's block, so that what differs between two trained models is the encoding alone. With rotary
//! positions the checkpoint is a plain `llama`, which transformers and llama.cpp load; the others are `attn_decoder`.

use crate::error::{Error, Result};
use attn_core::position::{LearnedTensor, learned_tensors};
use attn_eval::rng::Rng;
use attn_models::families::ENCODINGS;
use attn_models::spec::AttentionSpec;
use candle_core::{Device, Tensor};
use candle_nn::{Init, init::NormalOrUniform};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::{fmt, str::FromStr};

/// An encoding that a model can be trained with: one of [`ENCODINGS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position(&'static str);

impl Position {
    /// Rotated queries and keys.
    pub const ROPE: Self = Self("rope");

    /// All encodings.
    pub fn all() -> impl Iterator<Item = Self> {
        ENCODINGS.into_iter().map(Self)
    }

    /// The name, as configs spell it.
    pub fn name(self) -> &'static str {
        self.0
    }

    /// Whether queries and keys are rotated.
    fn rotates(self) -> bool {
        ["rope", "rope-sinks", "xpos", "learned-frequencies", "ssmax"].contains(&self.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || format!("known: {}", ENCODINGS.join(", "));
        Self::all().find(|position| position.0 == name).ok_or_else(known)
    }
}

/// The dimensions of a new model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The position encoding.
    pub position: Position,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// The context that it is trained at, in tokens.
    pub context: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward network.
    pub intermediate: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
}

impl Shape {
    fn check(&self) -> Result<()> {
        let Self { hidden, heads, kv_heads, .. } = *self;
        let reason = if heads == 0 || kv_heads == 0 || self.layers == 0 {
            "heads, kv heads and layers have to be at least 1".to_string()
        } else if !hidden.is_multiple_of(heads) {
            format!("hidden size {hidden} is not a multiple of {heads} heads")
        } else if !heads.is_multiple_of(kv_heads) {
            format!("{heads} heads are not a multiple of {kv_heads} kv heads")
        } else if self.position.rotates() && !(hidden / heads).is_multiple_of(2) {
            format!("heads of odd width {} can't be rotated, as {} does", hidden / heads, self.position)
        } else {
            return Ok(());
        };
        Err(Error::Setting { reason })
    }

    /// The model's `config.json`.
    ///
    /// # Errors
    /// The hidden size is not a multiple of the heads, or the heads of the kv heads; a head has an odd width.
    pub fn config(&self) -> Result<Value> {
        self.check()?;
        let rope = self.position == Position::ROPE;
        let mut config = json!({
            "architectures": [if rope { "LlamaForCausalLM" } else { "AttnDecoder" }],
            "model_type": if rope { "llama" } else { "attn_decoder" },
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden / self.heads,
            "hidden_act": "silu",
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": true,
            "bos_token_id": 0,
            "eos_token_id": 0,
        });
        if self.position.rotates() {
            config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 10000.0});
            config["rope_theta"] = json!(10000.0);
        }
        if !rope {
            config["position_encoding"] = json!(self.position.name());
        }
        match self.position.name() {
            "t5" => {
                config["relative_attention_num_buckets"] = json!(32);
                config["relative_attention_max_distance"] = json!(128);
            }
            // Training has to reach every distance that is learned, so the largest is half the context.
            "shaw" => config["shaw_max_distance"] = json!((self.context / 2).max(1)),
            "cope" => config["cope_positions"] = json!(64),
            "fire" => config["fire_units"] = json!(32),
            "sandwich" => config["sandwich_width"] = json!(128),
            _ => {}
        }
        Ok(config)
    }

    /// Names and shapes of the tensors, with their initial values.
    fn tensors(&self) -> Result<Vec<(String, Vec<usize>, Init)>> {
        const STD: f64 = 0.02;
        let normal = |stdev| Init::Randn { mean: 0.0, stdev };
        // As in GPT-2, the projections that add to the residual stream start smaller in deeper models.
        let joins = normal(STD / (2.0 * self.layers as f64).sqrt());
        let (h, d, std) = (self.hidden, self.hidden / self.heads, normal(STD));
        let position = self.position.name();
        // The sinusoidal model multiplies its embeddings by sqrt(hidden), so they start smaller.
        let embedding = if position == "sinusoidal" { normal((h as f64).powf(-0.5)) } else { std };
        let mut all = vec![
            ("model.embed_tokens.weight".to_string(), vec![self.vocab, h], embedding),
            ("model.norm.weight".to_string(), vec![h], Init::Const(1.0)),
        ];
        for i in 0..self.layers {
            let mut add = |name: &str, shape: [usize; 2], init| {
                all.push((format!("model.layers.{i}.{name}.weight"), shape.to_vec(), init));
            };
            add("self_attn.q_proj", [self.heads * d, h], std);
            add("self_attn.k_proj", [self.kv_heads * d, h], std);
            add("self_attn.v_proj", [self.kv_heads * d, h], std);
            add("self_attn.o_proj", [h, self.heads * d], joins);
            add("mlp.gate_proj", [self.intermediate, h], std);
            add("mlp.up_proj", [self.intermediate, h], std);
            add("mlp.down_proj", [h, self.intermediate], joins);
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                all.push((format!("model.layers.{i}.{norm}.weight"), vec![h], Init::Const(1.0)));
            }
        }
        // What an encoding learns comes last, so that the random numbers of the weights above do not depend on it.
        match position {
            "learned" => all.push(("model.embed_positions.weight".into(), vec![self.context, h], std)),
            "t5" => all.push(("model.relative_attention_bias.weight".into(), vec![32, self.heads], std)),
            _ => {}
        }
        for (i, layer) in attn_models::families::spec(&self.config()?)?.stack.layers.iter().enumerate() {
            let AttentionSpec::MultiHead(attention) = &layer.attention else { continue };
            if attention.sinks.is_some() {
                all.push((format!("model.layers.{i}.self_attn.sinks"), vec![self.heads], Init::Const(0.0)));
            }
            if let Some(prefix) = &attention.position_prefix {
                for LearnedTensor { name, shape, init } in learned_tensors(&attention.position)? {
                    all.push((format!("model.layers.{i}.{prefix}{name}"), shape.into_dims(), init));
                }
            }
        }
        Ok(all)
    }

    /// The initial weights in f32, drawn from `seed`: normal with GPT-2's standard deviations, norms at one, and what an encoding
    /// learns as its [`LearnedTensor`]s say.
    ///
    /// # Errors
    /// As [`config`](Self::config).
    pub fn weights(&self, seed: u64) -> Result<BTreeMap<String, Tensor>> {
        self.check()?;
        let mut rng = Rng::new(seed);
        let mut tensor = |(name, shape, init): (String, Vec<usize>, Init)| {
            let data =
                (0..shape.iter().product()).map(|_| draw(&mut rng, init, &shape)).collect::<Result<Vec<f32>>>()?;
            Ok((name, Tensor::from_vec(data, shape, &Device::Cpu)?))
        };
        self.tensors()?.into_iter().map(&mut tensor).collect()
    }
}

/// One initial number of a tensor of `shape`.
fn draw(rng: &mut Rng, init: Init, shape: &[usize]) -> Result<f32> {
    Ok(match init {
        Init::Const(value) => value,
        Init::Randn { mean, stdev } => mean + stdev * normal(rng),
        Init::Uniform { lo, up } => lo + (up - lo) * rng.unit(),
        Init::Kaiming { dist, fan, non_linearity } => {
            let stdev = non_linearity.gain() / (fan.for_shape(&shape.into()) as f64).sqrt();
            match dist {
                NormalOrUniform::Normal => stdev * normal(rng),
                NormalOrUniform::Uniform => 3f64.sqrt() * stdev * (2.0 * rng.unit() - 1.0),
            }
        }
    } as f32)
}

/// The config of a Llama checkpoint without its rotation, everything else as it is. DroPE (Gelberg et al. 2025,
/// arXiv:2512.12167) trains such a model for some more steps.
///
/// # Errors
/// A checkpoint of another family: their blocks are not Llama's.
pub fn without_positions(config: &Value) -> Result<Value> {
    let mut config = config.clone();
    let model_type = config["model_type"].as_str().unwrap_or_default();
    if !["llama", "attn_decoder"].contains(&model_type) {
        let reason = format!(
            "positions can be dropped only from checkpoints of the types llama and attn_decoder, but this one is of \
             {model_type}"
        );
        return Err(Error::Setting { reason });
    }
    if let Some(keys) = config.as_object_mut() {
        for key in ["rope_theta", "rope_scaling", "rope_parameters", "xpos_scale_base"] {
            keys.remove(key);
        }
        keys.insert("model_type".into(), json!("attn_decoder"));
        keys.insert("architectures".into(), json!(["AttnDecoder"]));
        keys.insert("position_encoding".into(), json!("none"));
    }
    Ok(config)
}

/// A draw from the standard normal distribution (Box and Muller 1958).
fn normal(rng: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.unit()).ln()).sqrt();
    radius * (2.0 * std::f64::consts::PI * rng.unit()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use attn_models::{Model, Options, RopeLength, Session};
    use std::{collections::HashMap, sync::Arc};

    fn small(position: Position) -> Shape {
        Shape { position, vocab: 300, context: 32, hidden: 24, intermediate: 40, layers: 2, heads: 6, kv_heads: 2 }
    }

    /// The model takes exactly these tensors: it refuses missing and unused ones.
    #[test]
    fn every_encoding_loads_and_starts_near_uniform() {
        for position in Position::all() {
            let shape = small(position);
            let weights: HashMap<String, Tensor> = shape.weights(1).unwrap().into_iter().collect();
            let model = Model::load(&shape.config().unwrap(), Arc::new(weights), &Options::default()).unwrap();
            let ids = Tensor::arange(0u32, 32, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let nll = model.nll(&ids, 32).unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
            assert!((nll - 300f32.ln()).abs() < 1.0, "{position}: {nll}");
            assert_eq!(position.to_string().parse(), Ok(position));
            // Whatever the encoding learns, the other weights start with the same numbers. Sinusoidal embeddings are larger.
            let own = shape.weights(1).unwrap();
            let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let other = |name: &str| name != "model.embed_tokens.weight" || position.name() != "sinusoidal";
            for (name, rope) in small(Position::ROPE).weights(1).unwrap().iter().filter(|(name, _)| other(name)) {
                assert_eq!(flat(&own[name]), flat(rope), "{position}: {name}");
            }
        }
    }

    /// Reading a text in parts gives the logits of one prefill, whatever an encoding keeps beside the keys and however it counts
    /// positions.
    #[test]
    fn every_encoding_decodes_as_it_prefills() {
        for position in Position::all() {
            let shape = small(position);
            let mut weights: HashMap<String, Tensor> = shape.weights(1).unwrap().into_iter().collect();
            // Numbers that start at zero would have no effect.
            for (name, tensor) in weights.iter_mut().filter(|(name, _)| name.contains("self_attn")) {
                let noise = Tensor::randn(0f32, 0.3, tensor.shape(), &Device::Cpu).unwrap();
                *tensor = (&*tensor + noise).unwrap_or_else(|e| panic!("{name}: {e}"));
            }
            let model = Model::load(&shape.config().unwrap(), Arc::new(weights), &Options::default()).unwrap();
            let ids = Tensor::from_iter((0..30u32).map(|i| i * 7 % 300), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let whole = model.logits(&ids, 30).unwrap();
            let mut session = Session::new(&model, RopeLength::Declared(30), None).unwrap();
            let mut start = 0;
            for n in [4, 1, 1, 11, 1, 1, 1, 10] {
                let logits = session.feed_all(&ids.narrow(1, start, n).unwrap()).unwrap();
                let off = (logits - whole.narrow(1, start, n).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
                let off = off.to_scalar::<f32>().unwrap();
                assert!(off < 2e-4, "{position}: {n} tokens from {start} differ by {off:e}");
                start += n;
            }
        }
    }

    #[test]
    fn a_rotation_is_dropped_from_llamas_alone() {
        let config = small(Position::ROPE).config().unwrap();
        let dropped = without_positions(&config).unwrap();
        let weights: HashMap<String, Tensor> = small(Position::ROPE).weights(1).unwrap().into_iter().collect();
        let model = Model::load(&dropped, Arc::new(weights), &Options::default()).unwrap();
        assert!(model.spec().stack.encodings().iter().all(|group| group.config.rope().is_none()));
        let qwen = without_positions(&json!({"model_type": "qwen2"})).unwrap_err().to_string();
        assert!(qwen.contains("qwen2"), "{qwen}");
    }

    #[test]
    fn draws_are_normal_and_repeat() {
        let mut rng = Rng::new(3);
        let draws: Vec<f64> = (0..20_000).map(|_| normal(&mut rng)).collect();
        let mean = draws.iter().sum::<f64>() / 20_000.0;
        let var = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.05, "{mean} {var}");
        let flat =
            |seed| small(Position::ROPE).weights(seed).unwrap()["model.embed_tokens.weight"].to_vec2::<f32>().unwrap();
        assert_eq!(flat(7), flat(7));
        assert_ne!(flat(7), flat(8));
    }

    #[test]
    fn heads_that_do_not_divide_are_refused() {
        assert!(Shape { heads: 5, ..small(Position::ROPE) }.config().is_err());
        assert!(Shape { kv_heads: 4, ..small(Position::ROPE) }.weights(0).is_err());
        // Heads of width 5.
        let odd = |position: &str| Shape { hidden: 10, heads: 2, kv_heads: 1, ..small(position.parse().unwrap()) };
        let refused = odd("xpos").config().unwrap_err().to_string();
        assert!(refused.contains("odd width 5") && refused.contains("xpos"), "{refused}");
        assert!(odd("alibi").weights(0).is_ok());
    }
}

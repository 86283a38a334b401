//! A new model: its config in Hugging Face's spelling, and its first weights.
//!
//! All encodings share Llama's block, so that what differs between two trained models is the encoding alone. With rotary
//! positions the checkpoint is a plain `llama`, which transformers and llama.cpp load; the others are `attn_decoder`.

use anyhow::{Result, ensure};
use attn_eval::rng::Rng;
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::{fmt, str::FromStr};

/// The encodings that a model can be trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Fixed sinusoids on the embeddings.
    Sinusoidal,
    /// A learned table on the embeddings.
    Learned,
    /// T5's learned bias by bucketed distance.
    T5,
    /// A linear bias.
    Alibi,
    /// Rotated queries and keys.
    Rope,
    /// None.
    None,
}

impl Position {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Sinusoidal, Self::Learned, Self::T5, Self::Alibi, Self::Rope, Self::None];
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sinusoidal => "sinusoidal",
            Self::Learned => "learned",
            Self::T5 => "t5",
            Self::Alibi => "alibi",
            Self::Rope => "rope",
            Self::None => "none",
        })
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|p| p.to_string() == name)
            .ok_or_else(|| "known: sinusoidal, learned, t5, alibi, rope, none".into())
    }
}

/// The dimensions of a new model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Position encoding.
    pub position: Position,
    /// Vocabulary.
    pub vocab: usize,
    /// Context it is trained at.
    pub context: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward network.
    pub intermediate: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
}

impl Shape {
    fn check(&self) -> Result<()> {
        let Self { hidden, heads, kv_heads, .. } = *self;
        ensure!(heads > 0 && kv_heads > 0 && self.layers > 0, "heads, kv heads and layers have to be at least 1");
        ensure!(hidden.is_multiple_of(heads), "hidden size {hidden} does not divide among {heads} heads");
        ensure!(heads.is_multiple_of(kv_heads), "{heads} heads do not divide among {kv_heads} kv heads");
        ensure!((hidden / heads).is_multiple_of(2), "heads of odd width {} can't be rotated", hidden / heads);
        Ok(())
    }

    /// The `config.json`.
    ///
    /// # Errors
    /// Heads that don't divide.
    pub fn config(&self) -> Result<Value> {
        self.check()?;
        let rope = self.position == Position::Rope;
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
        if rope {
            config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 10000.0});
            config["rope_theta"] = json!(10000.0);
        } else {
            config["position_encoding"] = json!(self.position.to_string());
        }
        if self.position == Position::T5 {
            config["relative_attention_num_buckets"] = json!(32);
            config["relative_attention_max_distance"] = json!(128);
        }
        Ok(config)
    }

    /// Names and shapes of the tensors, with the standard deviation they start from; `None` starts at one.
    fn tensors(&self) -> Vec<(String, Vec<usize>, Option<f64>)> {
        const STD: f64 = 0.02;
        // GPT-2: what joins the residual stream starts smaller the more there is of it.
        let joins = STD / (2.0 * self.layers as f64).sqrt();
        let (h, d) = (self.hidden, self.hidden / self.heads);
        // The sinusoidal model scales its embeddings by sqrt(hidden).
        let embedding = if self.position == Position::Sinusoidal { (h as f64).powf(-0.5) } else { STD };
        let mut all = vec![
            ("model.embed_tokens.weight".to_string(), vec![self.vocab, h], Some(embedding)),
            ("model.norm.weight".to_string(), vec![h], None),
        ];
        match self.position {
            Position::Learned => {
                all.push(("model.embed_positions.weight".into(), vec![self.context, h], Some(STD)));
            }
            Position::T5 => {
                all.push(("model.relative_attention_bias.weight".into(), vec![32, self.heads], Some(STD)));
            }
            _ => {}
        }
        for i in 0..self.layers {
            let mut add = |name: &str, shape: [usize; 2], std| {
                all.push((format!("model.layers.{i}.{name}.weight"), shape.to_vec(), Some(std)));
            };
            add("self_attn.q_proj", [self.heads * d, h], STD);
            add("self_attn.k_proj", [self.kv_heads * d, h], STD);
            add("self_attn.v_proj", [self.kv_heads * d, h], STD);
            add("self_attn.o_proj", [h, self.heads * d], joins);
            add("mlp.gate_proj", [self.intermediate, h], STD);
            add("mlp.up_proj", [self.intermediate, h], STD);
            add("mlp.down_proj", [h, self.intermediate], joins);
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                all.push((format!("model.layers.{i}.{norm}.weight"), vec![h], None));
            }
        }
        all
    }

    /// The first weights, drawn from `seed`: normal with GPT-2's deviations, norms at one.
    ///
    /// # Errors
    /// Heads that don't divide.
    pub fn weights(&self, seed: u64) -> Result<BTreeMap<String, Tensor>> {
        self.check()?;
        let mut rng = Rng::new(seed);
        let mut tensor = |(name, shape, std): (String, Vec<usize>, Option<f64>)| {
            let n = shape.iter().product();
            let data: Vec<f32> = match std {
                Some(std) => (0..n).map(|_| (normal(&mut rng) * std) as f32).collect(),
                None => vec![1.0; n],
            };
            Ok((name, Tensor::from_vec(data, shape, &Device::Cpu)?))
        };
        self.tensors().into_iter().map(&mut tensor).collect()
    }
}

/// A draw from the standard normal distribution (Box and Muller 1958).
fn normal(rng: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.unit()).ln()).sqrt();
    radius * (2.0 * std::f64::consts::PI * rng.unit()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use attn_models::{Model, Options};
    use std::{collections::HashMap, sync::Arc};

    fn small(position: Position) -> Shape {
        Shape { position, vocab: 300, context: 32, hidden: 24, intermediate: 40, layers: 2, heads: 6, kv_heads: 2 }
    }

    /// The model takes exactly these tensors: it refuses missing and unused ones.
    #[test]
    fn every_encoding_loads_and_starts_near_uniform() {
        for position in Position::ALL {
            let shape = small(position);
            let weights: HashMap<String, Tensor> = shape.weights(1).unwrap().into_iter().collect();
            let model = Model::load(&shape.config().unwrap(), Arc::new(weights), &Options::default()).unwrap();
            let ids = Tensor::arange(0u32, 32, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let nll = model.nll(&ids, 32).unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
            assert!((nll - 300f32.ln()).abs() < 1.0, "{position}: {nll}");
            assert_eq!(position.to_string().parse(), Ok(position));
        }
    }

    #[test]
    fn draws_are_normal_and_repeat() {
        let mut rng = Rng::new(3);
        let draws: Vec<f64> = (0..20_000).map(|_| normal(&mut rng)).collect();
        let mean = draws.iter().sum::<f64>() / 20_000.0;
        let var = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.05, "{mean} {var}");
        let flat =
            |seed| small(Position::Rope).weights(seed).unwrap()["model.embed_tokens.weight"].to_vec2::<f32>().unwrap();
        assert_eq!(flat(7), flat(7));
        assert_ne!(flat(7), flat(8));
    }

    #[test]
    fn heads_that_do_not_divide_are_refused() {
        assert!(Shape { heads: 5, ..small(Position::Rope) }.config().is_err());
        assert!(Shape { kv_heads: 4, ..small(Position::Rope) }.weights(0).is_err());
    }
}

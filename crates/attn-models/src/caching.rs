//! In which types the caches of a model can be stored.

use crate::Architecture;
use crate::spec::{AttentionSpec, ModelSpec};
use attn_core::{CacheType, CacheTypes};
use candle_core::{DType, Device, Result, bail};

impl ModelSpec {
    /// The names of the types in which a model that computes in `dtype` stores keys and values. Values that are made
    /// from the keys' latent are stored as the latent is.
    pub fn stored_as(&self, dtype: DType, types: CacheTypes) -> [&'static str; 2] {
        let latent = self.stack.layers.iter().any(|layer| matches!(layer.attention, AttentionSpec::Latent(_)));
        let name = |kind: Option<CacheType>| kind.map_or(dtype.as_str(), CacheType::name);
        [name(types.k), name(if latent { types.k } else { types.v })]
    }

    /// An error unless caches of these types can be filled by the model on this device.
    ///
    /// # Errors
    /// A model without a cache, heads that are not a whole number of blocks, values of another type than the keys where
    /// both are made from one latent, blocks on another device than the CPU.
    pub fn check_cache_types(&self, types: CacheTypes, device: &Device) -> Result<()> {
        let asked = [types.k, types.v].into_iter().flatten();
        let Some(one) = asked.clone().next() else { return Ok(()) };
        if self.architecture == Architecture::Encoder {
            bail!("cache type {one}: {} is an encoder and has no cache", self.family)
        }
        if let Some(blocks) = asked.clone().find(|kind| kind.dtype().is_none())
            && !device.is_cpu()
        {
            bail!("cache type {blocks}: quantised blocks work only on the CPU: use f32, f16 or bf16 on other devices")
        }
        for layer in &self.stack.layers {
            match &layer.attention {
                AttentionSpec::MultiHead(a) => {
                    asked.clone().try_for_each(|kind| kind.check("a head_dim", a.head_dim))?;
                }
                AttentionSpec::Latent(a) => {
                    if types.v.is_some() && types.v != types.k {
                        bail!(
                            "cache type {one}: {} keeps one latent that keys and values are both made from: they have one \
                             type",
                            self.family
                        )
                    }
                    one.check("a kv_lora_rank", a.kv_lora_rank)?;
                    one.check("a qk_rope_head_dim", a.qk_rope_head_dim)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families;
    use serde_json::json;

    fn refusal(extra: &[(&str, serde_json::Value)], types: CacheTypes) -> String {
        let mut config = json!({"model_type": "llama", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128});
        for (key, value) in extra {
            config[key] = value.clone();
        }
        let spec = families::spec(&config).unwrap();
        spec.check_cache_types(types, &Device::Cpu).err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let blocks = CacheTypes { k: None, v: Some(CacheType::Q4_0) };
        let message = refusal(&[("head_dim", json!(80))], blocks);
        assert!(message.contains("q4_0") && message.contains("head_dim of 80"), "{message}");
        assert_eq!(refusal(&[("head_dim", json!(96))], blocks), "");
        assert_eq!(refusal(&[("head_dim", json!(80))], CacheTypes::both(CacheType::F16)), "");

        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/deepseek-v3/config.json");
        let config: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let latent = families::spec(&config).unwrap();
        let refused = |types| latent.check_cache_types(types, &Device::Cpu).err().map(|e| e.to_string());
        assert!(refused(blocks).is_some_and(|message| message.contains("one latent")));
        assert_eq!(refused(CacheTypes::both(CacheType::BF16)), None);
        assert_eq!(refused(CacheTypes { k: Some(CacheType::F16), v: None }), None);
    }
}

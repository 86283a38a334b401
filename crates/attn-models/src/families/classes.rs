//! What transformers' configuration classes say about a key that a `config.json` leaves out, and which keys they look
//! at. The facts are in `classes.json`, which `scripts/reference/class_facts.py` writes.

use serde_json::{Map, Value};
use std::sync::LazyLock;

/// The configuration class of a model type.
#[derive(Debug)]
pub(crate) struct Class {
    defaults: &'static Map<String, Value>,
    reads: Vec<&'static str>,
}

static FILE: LazyLock<Map<String, Value>> =
    LazyLock::new(|| serde_json::from_str(include_str!("classes.json")).unwrap_or_default());

impl Class {
    /// The configuration class of a model type, if `classes.json` has it.
    pub(crate) fn of(model_type: &str) -> Option<Self> {
        let facts = FILE.get(model_type)?;
        Some(Self { defaults: facts.get("defaults")?.as_object()?, reads: names(facts).collect() })
    }

    /// The value of a key that a config leaves out.
    pub(crate) fn default(&self, key: &str) -> Option<&'static Value> {
        self.defaults.get(key)
    }

    /// Whether the class or the model's code looks at the key.
    pub(crate) fn reads(&self, key: &str) -> bool {
        self.defaults.contains_key(key) || self.reads.contains(&key)
    }

    /// Whether a config with `value` for the key means the same as one without the key: the class has that value by
    /// default, or does not read a key that other classes read.
    pub(crate) fn passes(&self, key: &str, value: &Value) -> bool {
        match self.default(key) {
            Some(default) => value == default,
            None if self.reads(key) => value.is_null(),
            None => is_known(key),
        }
    }
}

/// The keys that a class looks at beside those with a default.
fn names(facts: &'static Value) -> impl Iterator<Item = &'static str> {
    facts["reads"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Whether any class looks at the key.
fn is_known(key: &str) -> bool {
    let reads = |facts: &'static Value| facts["defaults"].get(key).is_some() || names(facts).any(|name| name == key);
    FILE.values().any(reads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_class_says_what_a_config_may_leave_out() {
        assert!(FILE.len() > 60, "{}", FILE.len());
        for model_type in FILE.keys() {
            let class = Class::of(model_type).unwrap();
            assert!(class.reads("vocab_size"), "{model_type}");
        }
        let default = |model_type: &str, key: &str| Class::of(model_type).unwrap().default(key).cloned();
        assert_eq!(default("cohere", "rope_theta"), Some(json!(5e5)));
        assert_eq!(default("mistral", "sliding_window"), Some(json!(4096)));
        assert_eq!(default("llama", "rope_theta"), None, "10000 is the default of them all");
        assert!(Class::of("unheard_of").is_none());
    }

    #[test]
    fn a_key_passes_if_it_says_what_its_absence_says() {
        let llama = Class::of("llama").unwrap();
        assert!(llama.passes("sliding_window", &Value::Null) && !llama.passes("sliding_window", &json!(false)));
        assert!(!llama.passes("is_causal", &json!(false)) && llama.passes("is_causal", &Value::Null));
        assert!(llama.passes("attention_bias", &json!(false)) && !llama.passes("attention_bias", &json!(true)));
        // Falcon's, MPT's: transformers' Llama doesn't look at them.
        assert!(llama.passes("activation", &json!("swiglu")) && llama.passes("norm_type", &json!(7)));
        assert!(!llama.passes("clever_trick", &json!(false)), "no class knows it");
    }
}

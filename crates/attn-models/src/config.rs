//! Reading `config.json`: typed access that names the key in every error and refuses what it does not understand.
//!
//! A key that nobody reads may well change the result, and a result that is wrong but looks fine is the worst outcome.
//! So [`Config::finish`] refuses every key that was neither read nor is known to be harmless, unless whoever runs the
//! model has said that unknown keys may be passed over ([`UnknownKeys::Collect`]).

use candle_core::{Result, bail};
use serde_json::{Map, Value};
use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

/// Keys that never change what a forward pass computes.
const HARMLESS: &[&str] = &[
    "model_type",
    "architectures",
    "auto_map",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "transformers.js_config",
    "use_cache",
    "initializer_range",
    "initializer_factor",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "return_dict_in_generate",
    "output_scores",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "cls_token_id",
    "mask_token_id",
    "unk_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "tokenizer_class",
    "task_specific_params",
    "finetuning_task",
    "pretraining_tp",
    "attention_dropout",
    "hidden_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "dropout",
    "dropout_rate",
    "attention_probs_dropout_prob",
    "hidden_dropout_prob",
    "classifier_dropout",
    "summary_type",
    "summary_use_proj",
    "summary_activation",
    "summary_proj_to_labels",
    "summary_first_dropout",
    "gradient_checkpointing",
    "prefix",
    "license",
    "language",
    "datasets",
    "unsloth_version",
    "unsloth_fixed",
    "unsloth_processed",
    "max_length",
    "min_length",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "num_beams",
    "early_stopping",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "length_penalty",
    "output_past",
    "n_ctx",
    "keys_to_ignore_at_inference",
    "router_aux_loss_coef",
    "output_router_logits",
    "router_jitter_noise",
    "aux_loss_alpha",
    "seq_aux",
    "ep_size",
    "num_nextn_predict_layers",
    "max_window_layers",
    "is_llama_config",
    "rope_interleaved_docs",
    "use_bfloat16",
    "torchscript",
    "tf_legacy_loss",
    "remove_invalid_values",
    "pruned_heads",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
    "diversity_penalty",
    "num_beam_groups",
    "num_return_sequences",
    "encoder_no_repeat_ngram_size",
    "typical_p",
    "seq_length",
    "attn_implementation",
];

/// More layers, heads, lanes of a head or experts than any model has.
pub const MAX_LISTED: usize = 1 << 16;

/// What becomes of keys that nobody reads and that are not known to be harmless.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UnknownKeys {
    /// They are an error that names the first.
    #[default]
    Refuse,
    /// They are passed over and collected, for a warning.
    Collect,
}

/// A `config.json` and a record of what was read.
#[derive(Debug)]
pub struct Config<'a> {
    map: &'a Map<String, Value>,
    root: &'a Value,
    path: String,
    used: RefCell<BTreeSet<String>>,
    unknown: UnknownKeys,
    collected: Rc<RefCell<Vec<String>>>,
}

impl<'a> Config<'a> {
    /// Wraps the parsed JSON.
    ///
    /// # Errors
    /// JSON that is not an object.
    pub fn new(root: &'a Value) -> Result<Self> {
        match root.as_object() {
            Some(map) => Ok(Self {
                map,
                root,
                path: String::new(),
                used: RefCell::default(),
                unknown: UnknownKeys::default(),
                collected: Rc::default(),
            }),
            None => bail!("config.json: not a JSON object"),
        }
    }

    /// With another rule for unknown keys, here and in the objects inside.
    #[must_use]
    pub fn with_unknown(mut self, unknown: UnknownKeys) -> Self {
        self.unknown = unknown;
        self
    }

    /// The unknown keys that were passed over so far, with their paths.
    pub fn unknown_keys(&self) -> Vec<String> {
        self.collected.borrow().clone()
    }

    /// The whole document, for parsers with keys of their own.
    pub fn root(&self) -> &'a Value {
        self.root
    }

    /// An object inside, whose keys are read and finished on their own.
    pub fn child(&self, key: &str) -> Result<Option<Config<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(value @ Value::Object(map)) => {
                let path = format!("{}{key}.", self.path);
                let (unknown, collected) = (self.unknown, self.collected.clone());
                Ok(Some(Config { map, root: value, path, used: RefCell::default(), unknown, collected }))
            }
            Some(other) => bail!("config.json: {}{key} must be an object, not {other}", self.path),
        }
    }

    /// Marks keys as understood elsewhere.
    pub fn mark(&self, keys: &[&str]) {
        self.used.borrow_mut().extend(keys.iter().map(|k| (*k).to_string()));
    }

    /// The value of `key`; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.mark(&[key]);
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// True if `key` is there and null, which in some families asks for something else than an absent key.
    pub fn is_null(&self, key: &str) -> bool {
        self.mark(&[key]);
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// A positive integer; the default if absent, `None` if null.
    pub fn size_or_null(&self, key: &str, default: Option<usize>) -> Result<Option<usize>> {
        Ok(self.size_opt(key)?.or(default.filter(|_| !self.is_null(key))))
    }

    /// A number above 0; the default if absent, `None` if null.
    pub fn positive_or_null(&self, key: &str, default: Option<f64>) -> Result<Option<f64>> {
        Ok(self.positive_opt(key)?.or(default.filter(|_| !self.is_null(key))))
    }

    fn wrong<T>(&self, key: &str, kind: &str, value: &Value) -> Result<T> {
        let text: String = value.to_string().chars().take(60).collect();
        bail!("config.json: {}{key} must be {kind}, not {text}", self.path)
    }

    fn missing<T>(&self, key: &str) -> Result<T> {
        bail!("config.json: {}{key} is missing", self.path)
    }

    /// A positive integer, if there.
    pub fn size_opt(&self, key: &str) -> Result<Option<usize>> {
        /// No dimension of a real model comes near; larger values only overflow further on.
        const MAX: u64 = 1 << 31;
        match self.get(key) {
            None => Ok(None),
            Some(v) => match v.as_u64() {
                Some(n) if (1..=MAX).contains(&n) => Ok(Some(n as usize)),
                _ => self.wrong(key, "a positive integer below 2^31", v),
            },
        }
    }

    /// A number of things that a spec lists one by one, such as layers or heads: at most [`MAX_LISTED`], so that an
    /// absurd one is refused before it is allocated.
    pub fn listed(&self, keys: &[&str]) -> Result<usize> {
        match self.size(keys)? {
            n if n > MAX_LISTED => {
                let key = keys.iter().find(|key| self.get(key).is_some()).unwrap_or(&keys[0]);
                bail!("config.json: {}{key} = {n} is past any model; at most {MAX_LISTED}", self.path)
            }
            n => Ok(n),
        }
    }

    /// A positive integer under the first of `keys` that is there.
    pub fn size(&self, keys: &[&str]) -> Result<usize> {
        let mut found = None;
        for key in keys {
            if let Some(n) = self.size_opt(key)?
                && *found.get_or_insert(n) != n
            {
                bail!("config.json: {} contradict each other", keys.join(", "))
            }
        }
        found.map_or_else(|| self.missing(keys[0]), Ok)
    }

    /// A non-negative integer or the default.
    pub fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v
                .as_u64()
                .filter(|n| *n < 1 << 31)
                .map_or_else(|| self.wrong(key, "a non-negative integer", v), |n| Ok(n as usize)),
        }
    }

    /// A finite number, if there.
    pub fn number_opt(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => match v.as_f64().filter(|x| x.is_finite()) {
                Some(x) => Ok(Some(x)),
                None => self.wrong(key, "a number", v),
            },
        }
    }

    /// A finite number or the default.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.number_opt(key)?.unwrap_or(default))
    }

    /// A number above 0, if there.
    pub fn positive_opt(&self, key: &str) -> Result<Option<f64>> {
        match self.number_opt(key)? {
            Some(x) if x <= 0.0 => bail!("config.json: {}{key} must be above 0, not {x}", self.path),
            x => Ok(x),
        }
    }

    /// A norm's epsilon.
    pub fn eps(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.positive_opt(key)?.unwrap_or(default))
    }

    /// A boolean or the default.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(v) => self.wrong(key, "true or false", v),
        }
    }

    /// A string, if there.
    pub fn text_opt(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(v) => self.wrong(key, "a string", v),
        }
    }

    /// A string or the default.
    pub fn text_or(&self, key: &str, default: &'a str) -> Result<&'a str> {
        Ok(self.text_opt(key)?.unwrap_or(default))
    }

    /// A list of `len` values, each read by `read`, if there.
    pub fn list<T>(&self, key: &str, len: usize, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<Vec<T>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_array().map(|l| l.iter().map(&read).collect::<Option<Vec<T>>>()) {
            Some(Some(list)) if list.len() >= len => Ok(Some(list)),
            _ => self.wrong(key, &format!("a list of {len} valid values"), value),
        }
    }

    /// Refuses `key` unless it is absent or equal to `value`: for options that would change the result.
    pub fn only(&self, key: &str, value: &Value) -> Result<()> {
        match self.get(key) {
            Some(v) if v != value && v.as_f64().is_none_or(|x| Some(x) != value.as_f64()) => {
                bail!("config.json: {}{key} = {v} is not supported, only {value}", self.path)
            }
            _ => Ok(()),
        }
    }

    /// Refuses or collects every key that was not read and is not known to be harmless.
    pub fn finish(&self) -> Result<()> {
        let used = self.used.borrow();
        for (key, value) in self.map {
            let empty = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(a) => a.is_empty(),
                Value::Object(o) => o.is_empty(),
                Value::String(s) => s.is_empty(),
                _ => false,
            };
            let private = key.starts_with('_') && key != "_sliding_window_pattern";
            if empty || private || used.contains(key) || HARMLESS.contains(&key.as_str()) {
                continue;
            }
            let key = format!("{}{key}", self.path);
            match self.unknown {
                UnknownKeys::Collect => self.collected.borrow_mut().push(key),
                UnknownKeys::Refuse => bail!(
                    "config.json: unknown key {key} may change the result; if it does not, remove it from the file or \
                     pass --allow-unknown-config-keys"
                ),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error<T>(result: Result<T>) -> String {
        result.err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn names_the_key_in_every_error() {
        let json = json!({"a": -1, "b": "x", "n": 0, "c": {"d": 1.5}, "huge": 1e30});
        let config = Config::new(&json).unwrap();
        assert!(error(config.size(&["a"])).contains("a must be a positive integer"));
        assert!(error(config.size(&["n"])).contains("n must be"));
        assert!(error(config.size(&["huge"])).contains("huge must be"));
        assert!(error(config.size(&["zz"])).contains("zz is missing"));
        assert!(error(config.flag("b", true)).contains("b must be true or false"));
        let child = config.child("c").unwrap().unwrap();
        assert!(error(child.size(&["d"])).contains("c.d must be"));
        assert!(error(child.child("d")).contains("c.d must be an object"));
    }

    #[test]
    fn refuses_what_was_not_read() {
        let json = json!({"vocab_size": 3, "clever_trick": 2, "off": false, "none": null, "use_cache": true, "_x": 1});
        let config = Config::new(&json).unwrap();
        config.size(&["vocab_size"]).unwrap();
        assert!(error(config.finish()).contains("unknown key clever_trick"));
        config.mark(&["clever_trick"]);
        config.finish().unwrap();
    }

    #[test]
    fn collects_what_was_not_read_if_told_to() {
        let json = json!({"vocab_size": 3, "clever_trick": 2, "inner": {"other_trick": [1], "read": 1}});
        let config = Config::new(&json).unwrap().with_unknown(UnknownKeys::Collect);
        config.size(&["vocab_size"]).unwrap();
        let inner = config.child("inner").unwrap().unwrap();
        inner.size(&["read"]).unwrap();
        inner.finish().unwrap();
        config.finish().unwrap();
        assert_eq!(config.unknown_keys(), ["inner.other_trick", "clever_trick"]);
    }

    #[test]
    fn contradicting_spellings_are_refused() {
        let json = json!({"n_head": 4, "num_attention_heads": 8});
        assert!(error(Config::new(&json).unwrap().size(&["n_head", "num_attention_heads"])).contains("contradict"));
    }
}

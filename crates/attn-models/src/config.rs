//! Reading `config.json`: typed access that names the key in every error and refuses what it does not understand.
//!
//! A key that no code reads may well change the result, and a result that is wrong but looks fine is the worst outcome.
//! So [`Config::finish`] refuses every key that was neither read nor is known to change nothing, unless the user who
//! runs the model has allowed unknown keys ([`UnknownKeys::Collect`]).
//!
//! An absent key has the value that transformers' configuration class of the family gives it. A key that is null has no
//! value. For Mistral, `sliding_window: null` means no window, and without the key the window is 4096.

use crate::families::classes::Class;
use candle_core::{Result, bail};
use serde_json::{Map, Value};
use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

/// Keys that never change what a forward pass computes, beside those that say so by their endings.
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
    "tokenizer_class",
    "task_specific_params",
    "finetuning_task",
    "pretraining_tp",
    "dropout_rate",
    "summary_type",
    "summary_use_proj",
    "summary_activation",
    "summary_proj_to_labels",
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
    "rope_interleaved",
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
    "attn_implementation",
    "experts_implementation",
    // Weights are read as they are stored; their format is the loader's concern.
    "quantization_config",
    "compression_config",
    // The cache, generation and tokenization.
    "cache_implementation",
    "model_max_length",
    "tokenizer_model_max_length",
    "max_sequence_length",
    "max_new_tokens",
    "renormalize_logits",
    "use_flash_attention",
    "use_flash_attention_2",
    "use_flash_attn",
    "use_sdpa",
    // Training, conversion, and notes of those who published a file.
    "neftune_noise_alpha",
    "layerdrop",
    "init_std",
    "name_or_path",
    "base_model",
    "full_attn_mod",
    "interpolate_factor",
    "ff_factor",
    "use_mrope",
    "use_cache_kernel",
    "rotary",
    "for_llm_compressor",
    "seq_length",
    "tie_encoder_decoder",
    "cross_attention_hidden_size",
    "position_embedding_type",
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "initial_context_length",
    "experts_per_token",
    "kv_channels",
    "mlp_type",
    "order_of_interleaved_layers",
    "layer_switch",
    "use_embedding_sharding",
    "use_gated_activation",
    "use_parallel_block",
    "use_parallel_embedding",
];

/// More layers, heads, lanes of a head or experts than any model has.
pub const MAX_LISTED: usize = 1 << 16;

/// What becomes of keys that no code reads and that are not known to be harmless.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UnknownKeys {
    /// They are an error that names the first.
    #[default]
    Refuse,
    /// They are passed over and collected, for a warning.
    Collect,
}

/// Notes on a config for the user who runs the model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// Unknown keys that were passed over, with their paths: the result may be wrong.
    pub unknown: Vec<String>,
    /// A line about each key that does nothing, as in transformers, though its author may have meant it to.
    pub ignored: Vec<String>,
}

/// A `config.json` and a record of what was read.
#[derive(Debug)]
pub struct Config<'a> {
    map: &'a Map<String, Value>,
    root: &'a Value,
    class: Option<Class>,
    path: String,
    used: RefCell<BTreeSet<String>>,
    unknown: UnknownKeys,
    notes: Rc<RefCell<Notes>>,
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
                class: None,
                path: String::new(),
                used: RefCell::default(),
                unknown: UnknownKeys::default(),
                notes: Rc::default(),
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

    /// With the defaults of transformers' configuration class of this model type, if it has one.
    #[must_use]
    pub fn with_class(mut self, model_type: &str) -> Self {
        self.class = Class::of(model_type);
        self
    }

    /// What is worth knowing of the keys read so far.
    pub fn notes(&self) -> Notes {
        self.notes.borrow().clone()
    }

    /// Refuses an unknown key or notes that it was passed over, as the rule says.
    pub(crate) fn unknown_key(&self, key: &str) -> Result<()> {
        let key = format!("{}{key}", self.path);
        match self.unknown {
            UnknownKeys::Refuse => bail!(
                "config.json: unknown key {key} may change the result; if it does not, remove it from the file or \
                 pass --allow-unknown-config-keys"
            ),
            UnknownKeys::Collect => push_new(&mut self.notes.borrow_mut().unknown, &key),
        }
        Ok(())
    }

    /// Notes a key that does nothing.
    pub(crate) fn ignored_key(&self, what: &str) {
        push_new(&mut self.notes.borrow_mut().ignored, what);
    }

    /// The class's value of a key, whatever the config says.
    pub(crate) fn class_default(&self, key: &str) -> Option<&'static Value> {
        self.class.as_ref()?.default(key)
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
                let (unknown, notes) = (self.unknown, self.notes.clone());
                Ok(Some(Config { map, root: value, class: None, path, used: RefCell::default(), unknown, notes }))
            }
            Some(other) => bail!("config.json: {}{key} must be an object, not {other}", self.path),
        }
    }

    /// Marks keys as understood elsewhere.
    pub fn mark(&self, keys: &[&str]) {
        self.used.borrow_mut().extend(keys.iter().map(|k| (*k).to_string()));
    }

    /// The value of `key`: the class's if it is absent, none if it is null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.mark(&[key]);
        self.map.get(key).or(self.class_default(key)).filter(|v| !v.is_null())
    }

    /// Whether the config itself has a value for the key.
    pub fn says(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|v| !v.is_null())
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
                bail!("config.json: {}{key} = {n} is more than any model has; at most {MAX_LISTED}", self.path)
            }
            n => Ok(n),
        }
    }

    /// A positive integer under the first of `keys` that is there. The class has it under one of them.
    pub fn size(&self, keys: &[&str]) -> Result<usize> {
        self.mark(keys);
        let mut found = None;
        let said = keys.iter().any(|key| self.says(key));
        for key in keys.iter().filter(|key| !said || self.says(key)) {
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

    /// Refuses or notes every key that was not read, unless it is known to change nothing: it is harmless in any model,
    /// has the value that its absence means, or is one that transformers' class of the family does not read.
    pub fn finish(&self) -> Result<()> {
        let used = self.used.borrow();
        for (key, value) in self.map {
            let private = key.starts_with('_') && key != "_sliding_window_pattern";
            let passes = match &self.class {
                Some(class) => class.passes(key, value),
                None => value.is_null(),
            };
            if passes || private || used.contains(key) || is_harmless(key) {
                continue;
            }
            self.unknown_key(key)?;
        }
        Ok(())
    }
}

/// Whether a key never changes what a forward pass computes.
fn is_harmless(key: &str) -> bool {
    let of_training = ["dropout", "dropout_prob", "_pdrop"].iter().any(|end| key.ends_with(end));
    let of_tokens = key.ends_with("_token_id") || key.ends_with("_token_index");
    of_training || of_tokens || HARMLESS.contains(&key)
}

fn push_new(lines: &mut Vec<String>, line: &str) {
    if !lines.iter().any(|known| known == line) {
        lines.push(line.to_string());
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
        let json = json!({"vocab_size": 3, "clever_trick": 2, "none": null, "use_cache": true, "_x": 1});
        let config = Config::new(&json).unwrap();
        config.size(&["vocab_size"]).unwrap();
        assert!(error(config.finish()).contains("unknown key clever_trick"));
        config.mark(&["clever_trick"]);
        config.finish().unwrap();
        // Empty values and false count as given.
        for empty in [json!(false), json!([]), json!({}), json!("")] {
            let json = json!({"clever_trick": empty});
            assert!(error(Config::new(&json).unwrap().finish()).contains("clever_trick"), "{empty}");
        }
    }

    #[test]
    fn what_a_class_says_counts_where_the_config_says_nothing() {
        let json = json!({"hidden_size": 64, "sliding_window": null});
        let config = Config::new(&json).unwrap().with_class("mistral");
        assert_eq!(config.size(&["hidden_size", "n_embd"]).unwrap(), 64);
        assert_eq!((config.size(&["vocab_size"]).unwrap(), config.size_opt("sliding_window").unwrap()), (32000, None));
        assert_eq!(config.size_opt("num_key_value_heads").unwrap(), Some(8));
        // An alias says it as well as the class's own name.
        let json = json!({"hidden_size": 64});
        let config = Config::new(&json).unwrap().with_class("gptj");
        assert_eq!(config.size(&["hidden_size", "n_embd"]).unwrap(), 64);
        assert_eq!(config.size(&["num_hidden_layers", "n_layer"]).unwrap(), 28);
        assert_eq!(Config::new(&json).unwrap().with_class("mistral").size_opt("sliding_window").unwrap(), Some(4096));
    }

    #[test]
    fn keys_that_a_class_does_not_look_at_pass() {
        let finish = |json: serde_json::Value| error(Config::new(&json).unwrap().with_class("llama").finish());
        for key in ["activation", "alibi", "n_layer", "rotary_pct", "cache_implementation", "quantization_config"] {
            assert_eq!(finish(json!({key: "anything"})), "", "{key}");
        }
        assert_eq!(finish(json!({"attention_bias": false, "layer_types": null})), "");
        for (key, value) in [("is_causal", json!(false)), ("layer_types", json!([])), ("per_layer_config", json!({}))] {
            assert!(finish(json!({key: value})).contains(&format!("unknown key {key} ")), "{key}");
        }
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
        assert_eq!(config.notes().unknown, ["inner.other_trick", "clever_trick"]);
    }

    #[test]
    fn contradicting_spellings_are_refused() {
        let json = json!({"n_head": 4, "num_attention_heads": 8});
        assert!(error(Config::new(&json).unwrap().size(&["n_head", "num_attention_heads"])).contains("contradict"));
    }
}

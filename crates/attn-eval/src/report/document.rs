//! A comparison as JSON: the figures, and everything that is needed to judge and repeat them.
//!
//! The schema is `docs/compare.schema.json`. Keys may be added to it; existing ones are not removed or renamed.

use super::{retrieval_headline, retrieval_verdict, verdict};
use crate::Skipped;
use crate::compare::Results;
use crate::error::{Result, ensure, error};
use crate::metrics::MetricSettings;
use crate::perplexity::checked_sum;
use crate::retrieval::Retrieval;
use crate::search::Search;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The value of the key `format`.
const FORMAT: &str = "attn-compare/1";

/// A comparison as one JSON document.
#[derive(Debug, Serialize)]
pub struct Document<'a> {
    format: &'static str,
    model: &'a str,
    text: String,
    verdict: Vec<String>,
    #[serde(flatten)]
    about: &'a About,
    #[serde(flatten)]
    results: &'a Results,
    #[serde(skip_serializing_if = "Option::is_none")]
    search: Option<&'a Search>,
}

impl<'a> Document<'a> {
    /// The document of these results.
    pub fn new(about: &'a About, results: &'a Results) -> Self {
        let names: Vec<&str> = about.texts.iter().map(|text| text.name.as_str()).collect();
        let said = verdict(results, about.one_factor(), about.trained_context());
        let (model, verdict) =
            (about.checkpoint.name.as_str(), [vec![said.headline], said.lines, said.lengths].concat());
        Self { format: FORMAT, model, text: names.join(", "), verdict, about, results, search: None }
    }

    /// The same with the search from which the results come, if there was one.
    #[must_use]
    pub fn with_search(self, search: Option<&'a Search>) -> Self {
        Self { search, ..self }
    }
}

/// A grid of retrieval trials as one JSON document.
#[derive(Debug, Serialize)]
pub struct RetrievalDocument<'a> {
    format: &'static str,
    model: &'a str,
    verdict: Vec<String>,
    #[serde(flatten)]
    about: &'a About,
    retrieval: &'a Retrieval,
}

impl<'a> RetrievalDocument<'a> {
    /// The document of these results.
    pub fn new(about: &'a About, retrieval: &'a Retrieval) -> Self {
        let mut verdict = vec![retrieval_headline(retrieval, about.trained_context())];
        verdict.extend(retrieval_verdict(retrieval));
        Self { format: "attn-retrieval/1", model: &about.checkpoint.name, verdict, about, retrieval }
    }
}

/// Reads back what a [`Document`] was made from.
///
/// # Errors
/// It is not JSON, not a comparison in the layout that this version reads, refers to texts that it doesn't list, or holds figures
/// that no measurement can give.
pub fn read_document(json: &str) -> Result<(About, Results)> {
    let document = parsed(json)?;
    let format = document.get("format").and_then(Value::as_str).unwrap_or("none");
    ensure!(format == FORMAT, Document, "it is not a comparison of attn: its format is {format}, not {FORMAT}");
    let (about, mut results): (About, Results) = (part(&document)?, part(&document)?);
    about.check_texts(results.by_text.iter().map(|part| part.text))?;
    results.check(&about)?;
    // The recommendation is computed from the figures again; only the options of programs can't be.
    let applied = results.recommendation.take().map(|found| found.applied);
    results.recommend(&about);
    if let Some(found) = &mut results.recommendation {
        found.applied = applied.unwrap_or_default();
    }
    Ok((about, results))
}

/// Parses a document as JSON.
pub(super) fn parsed(json: &str) -> Result<Value> {
    serde_json::from_str(json).map_err(|error| error!(Document, "it is not JSON: {error}"))
}

/// Reads a part of a document.
pub(super) fn part<'a, T: Deserialize<'a>>(document: &'a Value) -> Result<T> {
    T::deserialize(document).map_err(|error| error!(Document, "{error}"))
}

/// What was compared, on which texts, and with which programs and machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// The command line, program first.
    pub command: Vec<String>,
    /// When it began, in seconds since 1970.
    pub started: u64,
    /// Versions of the programs that measured.
    pub versions: Versions,
    /// The model; of several models the first.
    pub checkpoint: CheckpointInfo,
    /// All models, if there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelInfo>,
    /// The texts.
    pub texts: Vec<TextInfo>,
    /// The settings.
    pub settings: Settings,
    /// The machines that measured; there can be several after runs were merged.
    pub machines: Vec<Machine>,
}

/// Versions of the programs that measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The version of attn.
    pub attn: String,
    /// The version of Candle.
    pub candle: String,
}

/// A model and the files it was read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointInfo {
    /// What reports call it, with its revision.
    pub name: String,
    /// The hub's commit, for a model from the hub.
    pub revision: Option<String>,
    /// SHA-256 of its file, in hexadecimal; if there are several, of the lines `sha256  name` in the order of `files`.
    pub sha256: String,
    /// The files.
    pub files: Vec<FileInfo>,
    /// The family.
    pub family: String,
    /// Number of weights.
    pub parameters: usize,
    /// The context it was trained for, as far as the checkpoint says.
    pub trained_context: Option<usize>,
    /// The type of the checkpoint's own scaling.
    pub rope_type: String,
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// SHA-256 of its contents, in hexadecimal.
    pub sha256: String,
}

/// A text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextInfo {
    /// What reports call it.
    pub name: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Size of the file in bytes.
    pub bytes: usize,
    /// Documents in it: 1 unless the file is JSON Lines.
    pub documents: usize,
    /// Tokens in it; absent if only those that are used were counted.
    pub tokens: Option<usize>,
    /// Tokens used, from its beginning, as the first model's tokenizer counts them.
    pub used: usize,
    /// Bytes used, from its beginning, if several models are compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<usize>,
}

/// One of several models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The model.
    #[serde(flatten)]
    pub checkpoint: CheckpointInfo,
    /// The modes it was measured under.
    pub modes: Vec<String>,
    /// The token before every window, if there is one.
    pub bos: Option<u32>,
    /// Tokens used of each text.
    pub used: Vec<usize>,
}

/// What decides the figures besides the model and the texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The modes.
    pub modes: Vec<String>,
    /// Tokens per window.
    pub contexts: Vec<usize>,
    /// The scalings' factor; absent: the context divided by the trained context.
    pub factor: Option<f64>,
    /// Tokens from one window's start to the next; absent: windows side by side.
    pub stride: Option<usize>,
    /// The token before every window, if there is one.
    pub bos: Option<u32>,
    /// How that was chosen: `auto` (as the tokenizer does), `on` or `off`; absent in documents of versions without this choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos_choice: Option<String>,
    /// The length that length-dependent scalings resolve for; absent: the window's.
    pub length: Option<usize>,
    /// Seed of the bootstrap.
    pub seed: u64,
    /// Rotary settings that hold for every mode.
    pub rope: RopeSettings,
    /// The data type of the computation.
    pub dtype: String,
    /// `cpu`, `cuda` or `metal`.
    pub device: String,
    /// Whether a GGUF file's weights stay quantised.
    pub keep_quantized: bool,
    /// The type in which the cache stores keys; absent: `dtype`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_type_k: Option<String>,
    /// The type in which the cache stores values; absent: `dtype`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_type_v: Option<String>,
    /// Metrics beside perplexity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricSettings>,
    /// Whether the usable length of each mode was searched by bisection.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub usable: bool,
    /// Lengths whose perplexity could not be measured, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
    /// Settings of retrieval, if it is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrieval: Option<RetrievalSettings>,
}

/// A line for people that says which token was put before every window, and why.
pub fn bos_line(bos: Option<u32>, choice: &str) -> String {
    let what = bos.map_or("none".to_string(), |id| format!("id {id} before each"));
    match choice {
        "auto" => format!("{what}, following the tokenizer"),
        choice => format!("{what} (--bos {choice})"),
    }
}

impl Settings {
    /// [`bos_line`] of these settings.
    pub fn bos_line(&self) -> String {
        let given = if self.bos.is_some() { "on" } else { "off" };
        bos_line(self.bos, self.bos_choice.as_deref().unwrap_or(given))
    }
}

/// Rotary settings that hold for every mode.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RopeSettings {
    /// Replaces the checkpoint's base.
    pub theta: Option<f64>,
    /// Replaces the trained context.
    pub original_context: Option<usize>,
    /// Further keys of the scaling.
    pub params: BTreeMap<String, String>,
}

/// Settings of retrieval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetrievalSettings {
    /// The tasks.
    pub tasks: Vec<String>,
    /// The text in which things are hidden; absent: the repeated sentences of the passkey paper.
    pub haystack: Option<TextInfo>,
    /// The depths of what is asked for, from 0 (the beginning) to 1 (the end), in tasks that hide it at one depth.
    pub depths: Vec<f64>,
    /// Trials per depth; tasks without depths have as many trials as the others have at all depths together.
    pub trials: usize,
    /// What could not be measured, and why.
    pub skipped: Vec<Skipped>,
}

/// Where a run took place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Operating system.
    pub os: String,
    /// Instruction set.
    pub arch: String,
    /// The processor, if the system says.
    pub cpu: Option<String>,
    /// Number of cores that may be used.
    pub cores: usize,
    /// Number of threads of the computation.
    pub threads: usize,
}

impl About {
    /// Refuses texts of impossible length, and parts that belong to none of the texts. `parts` are the parts' text indices.
    pub(crate) fn check_texts(&self, parts: impl IntoIterator<Item = usize>) -> Result<()> {
        let used = checked_sum(self.texts.iter().map(|text| text.used));
        ensure!(used.is_some(), Impossible, "its texts are longer than any text can be");
        let there_are = self.texts.len();
        for (part, text) in parts.into_iter().enumerate() {
            ensure!(text < there_are, Impossible, "part {part} of it is of text {text}, and there are {there_are}");
        }
        Ok(())
    }

    /// Whether a mode has the same factor at all lengths, and so is a setting that a model can be served with.
    pub fn one_factor(&self) -> bool {
        self.settings.factor.is_some()
    }

    /// The context the model was trained for, as the settings have it, else as the checkpoint says.
    pub fn trained_context(&self) -> Option<usize> {
        self.settings.rope.original_context.or(self.checkpoint.trained_context)
    }

    /// Everything that decides the figures, by the name under which a user sets it. Two runs may be merged if and only if
    /// these are equal.
    pub fn identity(&self) -> BTreeMap<String, Value> {
        let Settings {
            modes,
            contexts,
            factor,
            stride,
            bos,
            bos_choice: _,
            length,
            seed,
            rope,
            dtype,
            device,
            keep_quantized,
            cache_type_k,
            cache_type_v,
            metrics,
            usable,
            skipped: _,
            retrieval,
        } = &self.settings;
        let models: Vec<Value> = self
            .models
            .iter()
            .map(|m| json!({"sha256": m.checkpoint.sha256, "modes": m.modes, "bos": m.bos, "tokens": m.used}))
            .collect();
        let texts: Vec<Value> =
            self.texts.iter().map(|t| json!({"name": t.name, "sha256": t.sha256, "tokens": t.used})).collect();
        // Only as many digits as are unchanged after reading them back.
        let number = |x: Option<f64>| json!(x.map(|x| format!("{x:.12e}").parse::<f64>().unwrap_or(x)));
        let entries = [
            ("version", json!(self.versions)),
            ("model", json!(self.checkpoint.sha256)),
            ("--text", json!(texts)),
            ("--modes", json!(modes)),
            ("--contexts", json!(contexts)),
            ("--factor", number(*factor)),
            ("--stride", json!(stride)),
            ("--bos", json!(bos)),
            ("--rope-length", json!(length)),
            ("--seed", json!(seed)),
            ("--rope-theta", number(rope.theta)),
            ("--rope-original-context", json!(rope.original_context)),
            ("--rope-param", json!(rope.params)),
            ("--dtype", json!(dtype)),
            ("--device", json!(device)),
            ("--keep-quantized", json!(keep_quantized)),
        ];
        let mut identity: BTreeMap<String, Value> = entries.map(|(name, value)| (name.to_string(), value)).into();
        if !models.is_empty() {
            identity.insert("model".into(), json!(models));
        }
        for (name, kind) in [("--cache-type-k", cache_type_k), ("--cache-type-v", cache_type_v)] {
            identity.extend(kind.as_ref().map(|kind| (name.to_string(), json!(kind))));
        }
        if let Some(metrics) = metrics {
            identity.insert("--metrics".into(), json!(metrics));
        }
        if *usable {
            identity.insert("--usable".into(), json!(usable));
        }
        if let Some(RetrievalSettings { tasks, haystack, depths, trials, skipped: _ }) = retrieval {
            let depths: Vec<Value> = depths.iter().map(|&depth| number(Some(depth))).collect();
            let haystack = haystack.as_ref().map(|text| json!({"name": text.name, "sha256": text.sha256}));
            let more = [
                ("--tasks", json!(tasks)),
                ("--haystack", json!(haystack)),
                ("--depths", json!(depths)),
                ("--trials", json!(trials)),
            ];
            identity.extend(more.map(|(name, value)| (name.to_string(), value)));
        }
        identity
    }
}

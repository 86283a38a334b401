//! The values of options: how they are parsed, and the errors for other values.

use attn_core::CacheType;
use attn_core::position::extend::{LOG_N, METHODS, Setting};
use attn_core::position::rope::scaling;
use attn_eval::compare::{Factor, Mode};
use attn_eval::metrics::MetricName;
use attn_eval::protocol::Protocol;
use attn_eval::report::RetrievalMetric;
use attn_eval::retrieval::{TASKS, Task};
use candle_core::DType;
use clap::ValueEnum;

/// `--dtype`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    F32,
    Bf16,
    F16,
}

impl Precision {
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

/// What `attn completions` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompletionFormat {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
    // A manual page in roff.
    Man,
}

/// `--bos`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BosChoice {
    // As the tokenizer does.
    Auto,
    On,
    Off,
}

impl BosChoice {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// `--device`, not yet opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceName {
    Cpu,
    Cuda(usize),
    Metal,
}

/// `--protocol`: another program's way to take perplexity, or this one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProtocolChoice(pub(crate) Option<Protocol>);

impl ProtocolChoice {
    /// The name of this program's own.
    pub(crate) const OWN: &'static str = "all";

    fn name(self) -> &'static str {
        self.0.map_or(Self::OWN, Protocol::name)
    }
}

impl serde::Serialize for ProtocolChoice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// `--n-predict`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Predict {
    AtMost(usize),
    /// Until the model ends the text or its context is full.
    ToTheEnd,
}

/// `--rope-length`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LengthPolicy {
    Declared,
    Exact,
    Fixed(usize),
}

pub(crate) fn parse_retrieval_metric(text: &str) -> Result<RetrievalMetric, String> {
    text.parse()
}

pub(crate) fn parse_metric(text: &str) -> Result<MetricName, String> {
    text.parse()
}

pub(crate) fn parse_protocol(text: &str) -> Result<ProtocolChoice, String> {
    if text == ProtocolChoice::OWN {
        return Ok(ProtocolChoice(None));
    }
    text.parse().map(|found| ProtocolChoice(Some(found))).map_err(|known: String| format!("{known}, all"))
}

pub(crate) fn parse_device(text: &str) -> Result<DeviceName, String> {
    match text.split_once(':') {
        None if text == "cpu" => Ok(DeviceName::Cpu),
        None if text == "cuda" => Ok(DeviceName::Cuda(0)),
        None if text == "metal" => Ok(DeviceName::Metal),
        Some(("cuda", index)) => index.parse().map(DeviceName::Cuda).map_err(|_| "N in cuda:N must be a number".into()),
        _ => Err("known: cpu, cuda, cuda:N, metal".into()),
    }
}

/// What `--rope-scaling` takes.
pub(crate) fn scaling_help() -> String {
    let schemes = scaling::named().map(|scheme| scheme.called());
    let methods: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
    format!(
        "Scaling ({}), method ({}) or {LOG_N}; + joins several, as in yarn+log-n",
        schemes.collect::<Vec<_>>().join(", "),
        methods.join(", ")
    )
}

pub(crate) fn parse_cache_type(text: &str) -> Result<CacheType, String> {
    text.parse()
}

pub(crate) fn parse_scaling(text: &str) -> Result<Setting, String> {
    text.parse().map_err(|e: String| e.replacen("unknown", "unknown scaling or method", 1))
}

/// The modes that one name stands for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Modes(pub(crate) Vec<Mode>);

pub(crate) fn parse_modes(text: &str) -> Result<Modes, String> {
    Mode::named(text).map(Modes)
}

/// The retrieval tasks that one name stands for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tasks(pub(crate) Vec<&'static Task>);

pub(crate) fn parse_tasks(text: &str) -> Result<Tasks, String> {
    Task::named(text).map(Tasks)
}

/// What `attn retrieval --tasks` takes.
pub(crate) fn tasks_help() -> String {
    let names: Vec<&str> = TASKS.iter().map(|task| task.name).collect();
    let usual: Vec<&str> = Task::defaults().iter().map(|task| task.name).collect();
    format!(
        "Tasks: {}, or all; RULER's names work too [default: {}; for attn passkey: passkey]",
        names.join(", "),
        usual.join(",")
    )
}

/// What `attn compare` measures.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Measured {
    Perplexity,
    Retrieval(Tasks),
}

pub(crate) fn parse_measured(text: &str) -> Result<Measured, String> {
    match text.to_ascii_lowercase().as_str() {
        "ppl" | "perplexity" => Ok(Measured::Perplexity),
        name => parse_tasks(name).map(Measured::Retrieval).map_err(|known| format!("{known}, ppl")),
    }
}

pub(crate) fn parse_positive(text: &str) -> Result<usize, String> {
    match parse_count(text) {
        Ok(0) => Err("it has to be at least 1".into()),
        other => other,
    }
}

/// A number of tokens or other things: 4096, or 4k, k standing for 1024.
pub(crate) fn parse_count(text: &str) -> Result<usize, String> {
    let (digits, times) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1024),
        None => (text, 1),
    };
    let number = digits.parse::<usize>().map(|n| n.saturating_mul(times));
    match number {
        // Nothing holds more tokens, and sums of a few such numbers don't overflow.
        Ok(n) if n > u32::MAX as usize => Err(format!("it can be at most {}", u32::MAX)),
        Ok(n) => Ok(n),
        Err(_) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            Err(format!("it can be at most {}", u32::MAX))
        }
        Err(_) => Err("it has to be a whole number".into()),
    }
}

/// How many tokens to generate; -1 stands for no limit of one's own, as in llama.cpp.
pub(crate) fn parse_predict(text: &str) -> Result<Predict, String> {
    if text == "-1" { Ok(Predict::ToTheEnd) } else { parse_count(text).map(Predict::AtMost) }
}

pub(crate) fn parse_number(text: &str, ok: impl Fn(f64) -> bool, range: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() && ok(x) => Ok(x),
        Ok(_) => Err(format!("it has to be {range}")),
        Err(_) => Err("it has to be a number".into()),
    }
}

pub(crate) fn parse_positive_number(text: &str) -> Result<f64, String> {
    parse_number(text, |x| x > 0.0, "above 0")
}

pub(crate) fn parse_factor(text: &str) -> Result<f64, String> {
    parse_number(text, |x| x >= 1.0, "at least 1")
}

pub(crate) fn parse_mode_factor(text: &str) -> Result<Factor, String> {
    match text {
        "longest" => Ok(Factor::Longest),
        "auto" => Ok(Factor::Auto),
        number => {
            parse_factor(number).map(Factor::Fixed).map_err(|e| format!("expected longest, auto or a number; {e}"))
        }
    }
}

pub(crate) fn parse_temperature(text: &str) -> Result<f64, String> {
    parse_number(text, |x| x >= 0.0, "at least 0")
}

pub(crate) fn parse_probability(text: &str) -> Result<f64, String> {
    parse_number(text, |x| x > 0.0 && x <= 1.0, "above 0 and at most 1")
}

pub(crate) fn parse_probability_or_zero(text: &str) -> Result<f64, String> {
    parse_number(text, |x| (0.0..=1.0).contains(&x), "from 0 to 1")
}

pub(crate) fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_string(), value.to_string())),
        _ => Err("it must have the form key=value".into()),
    }
}

pub(crate) fn parse_length(text: &str) -> Result<LengthPolicy, String> {
    match text {
        "declared" => Ok(LengthPolicy::Declared),
        "exact" => Ok(LengthPolicy::Exact),
        number => match parse_positive(number) {
            Ok(n) => Ok(LengthPolicy::Fixed(n)),
            Err(error) => Err(format!("expected declared, exact or a number; {error}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_names_of_modes_are_one_list() {
        let modes = ["positions", "yarn+window:window=32"].map(|text| parse_modes(text).unwrap());
        assert_eq!(modes.map(|modes| modes.0.len()), [10, 1]);
    }
}

//! Groups of options that several commands share, as structs that their arguments contain.

use crate::output::{check_writable, usage};
use crate::parse::{
    BosChoice, DeviceName, LengthPolicy, Precision, parse_cache_type, parse_device, parse_factor, parse_length,
    parse_metric, parse_pair, parse_positive, parse_positive_number, parse_probability_or_zero, parse_scaling,
    scaling_help,
};
use anyhow::Result;
use attn_core::position::extend::Setting;
use attn_core::{CacheType, CacheTypes, PositionOverride, RopeOverride};
use attn_eval::compare::Mode;
use attn_eval::metrics::MetricName;
use attn_eval::run::Shard;
use candle_core::DType;
use clap::Args;
use std::ffi::OsString;
use std::path::PathBuf;

/// Which model, and how to load it.
#[derive(Debug, Clone, PartialEq, Args)]
pub(crate) struct ModelArgs {
    /// Hub id, folder, .gguf file, or a model inside this program: tiny-austen, tiny-rope, tiny-alibi,
    /// tiny-t5, tiny-sinusoidal, tiny-learned, tiny-nope [default: tiny-austen]
    #[arg(help_heading = None::<&'static str>)]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) rope: RopeArgs,
}

/// What keys and values are stored as.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Loading")]
pub(crate) struct CacheArgs {
    /// Store the keys as f32, f16, bf16, q8_0 or q4_0; short form: -ctk [default: as --dtype]
    #[arg(long, value_name = "TYPE", value_parser = parse_cache_type)]
    pub(crate) cache_type_k: Option<CacheType>,
    /// Store the values as f32, f16, bf16, q8_0 or q4_0; short form: -ctv [default: as --dtype]
    #[arg(long, value_name = "TYPE", value_parser = parse_cache_type)]
    pub(crate) cache_type_v: Option<CacheType>,
}

impl CacheArgs {
    /// The types that these flags name.
    pub(crate) fn types(&self) -> CacheTypes {
        CacheTypes { k: self.cache_type_k, v: self.cache_type_v }
    }

    /// Refuses them for a command that runs no model.
    ///
    /// # Errors
    /// One of them is there.
    pub(crate) fn refuse(&self, command: &str) -> Result<()> {
        match (self.cache_type_k, self.cache_type_v) {
            (None, None) => Ok(()),
            (Some(_), _) => {
                usage(format!("--cache-type-k: attn {command} doesn't run the model, so there is no cache"))
            }
            (None, Some(_)) => {
                usage(format!("--cache-type-v: attn {command} doesn't run the model, so there is no cache"))
            }
        }
    }
}

/// A command line's words with llama.cpp's short names spelled out, up to a `--`: clap knows short names of one letter alone.
pub(crate) fn spelled_out(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut options = true;
    let word = |word: OsString| {
        options &= word != "--";
        match word.to_str() {
            Some("-ctk") if options => "--cache-type-k".into(),
            Some("-ctv") if options => "--cache-type-v".into(),
            _ => word,
        }
    };
    words.into_iter().map(word).collect()
}

/// How weights are loaded and where they live.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Loading")]
pub(crate) struct LoadArgs {
    /// Data type of the computation [default: f32]
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<Precision>,
    /// Device to compute on: cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "cpu", value_parser = parse_device)]
    pub(crate) device: DeviceName,
    /// Number of threads [default: one per core]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) threads: Option<usize>,
    /// Keep the weights of a GGUF file quantised instead of expanding them to --dtype
    #[arg(long)]
    pub(crate) keep_quantized: bool,
    /// Read the weights into memory instead of mapping the file
    #[arg(long)]
    pub(crate) no_mmap: bool,
    /// Use only files that are on this machine, never the network
    #[arg(long)]
    pub(crate) offline: bool,
    /// Ignore unknown config keys, with a warning: the result may be wrong
    #[arg(long)]
    pub(crate) allow_unknown_config_keys: bool,
    /// Run even if the estimate says that the memory is too small
    #[arg(long)]
    pub(crate) no_memory_check: bool,
}

impl LoadArgs {
    /// The data type that the model computes in.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype.unwrap_or(Precision::F32).dtype()
    }
}

/// What replaces the checkpoint's own position scaling.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Position scaling")]
pub(crate) struct RopeArgs {
    #[arg(long, value_name = "TYPE", value_parser = parse_scaling, help = scaling_help())]
    pub(crate) rope_scaling: Option<Setting>,
    /// Wanted context divided by the trained context
    #[arg(long, value_name = "S", allow_negative_numbers = true, value_parser = parse_factor)]
    pub(crate) rope_factor: Option<f64>,
    /// Base of the rotary frequencies
    #[arg(long, value_name = "THETA", allow_negative_numbers = true, value_parser = parse_positive_number)]
    pub(crate) rope_theta: Option<f64>,
    /// Context that the model was trained for [default: from its config]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) rope_original_context: Option<usize>,
    /// Another parameter of the scaling or method, such as beta_fast=16; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub(crate) rope_param: Vec<(String, String)>,
    /// Length for which dynamic and longrope choose frequencies: declared (the final length, known at the
    /// start), exact (the current length) or a number [default: declared]
    #[arg(long, value_name = "LENGTH", value_parser = parse_length)]
    pub(crate) rope_length: Option<LengthPolicy>,
}

impl RopeArgs {
    /// The override these flags spell.
    ///
    /// # Errors
    /// A number that the method doesn't take.
    pub(crate) fn to_override(&self) -> Result<PositionOverride> {
        let setting = self.rope_scaling.unwrap_or_default();
        let mut extend = setting.extend;
        for (key, value) in self.rope_param.iter().filter(|(key, _)| setting.extend.takes(key)) {
            extend = extend.with_param(key, value)?;
        }
        let rope = RopeOverride {
            scaling: setting.scheme.map(|scheme| scheme.called().to_string()),
            factor: self.rope_factor,
            theta: self.rope_theta,
            original_context: self.rope_original_context,
            params: self.rope_param.iter().filter(|(key, _)| !setting.extend.takes(key)).cloned().collect(),
        };
        Ok(PositionOverride { rope, extend })
    }
}

/// How a text is read and cut.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Text")]
pub(crate) struct TextArgs {
    /// Key that holds the text in each line of a .jsonl file
    #[arg(long, value_name = "KEY", default_value = "text")]
    pub(crate) text_field: String,
    /// Tokens from the start of one window to the start of the next [default: the context]
    #[arg(long, value_name = "S", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) stride: Option<usize>,
    /// Use only the first M tokens of the text
    #[arg(long, value_name = "M", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) max_tokens: Option<usize>,
    /// Begin every window with the BOS token; auto: only if the tokenizer does so
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = BosChoice::Auto)]
    pub(crate) bos: BosChoice,
}

/// The help of `--modes`.
pub(crate) fn modes_help(shown: &str) -> String {
    let defaults: Vec<String> = Mode::defaults().iter().map(Mode::to_string).collect();
    format!(
        "Scalings and methods, {shown}. + joins a scaling, a method and log-n (yarn+log-n); colons set a method's \
         numbers (rerope:window=128); all, frequencies and positions name groups [default: {}]",
        defaults.join(",")
    )
}

/// What things are hidden in, and where.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Retrieval")]
pub(crate) struct TrialArgs {
    /// Text to hide things in: UTF-8 file, .jsonl file, or - [default: the first --text, else the passkey paper's sentences]
    #[arg(long, value_name = "FILE")]
    pub(crate) haystack: Option<PathBuf>,
    /// Places of the hidden thing in the text, from 0 (beginning) to 1 (end); one row each
    #[arg(long, value_name = "D,..", value_delimiter = ',', default_value = "0,0.25,0.5,0.75,1", allow_negative_numbers = true, value_parser = parse_probability_or_zero)]
    pub(crate) depths: Vec<f64>,
    /// Trials per depth; tasks without depths get the same total
    #[arg(long, value_name = "N", default_value_t = 5, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) trials: usize,
}

/// What is measured beside perplexity.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Metrics")]
pub(crate) struct MetricArgs {
    /// Metrics: ppl (perplexity), longppl (perplexity of the tokens that need distant text), kl (divergence from the model
    /// as it is within its trained context)
    #[arg(long, alias = "metric", value_name = "NAME,..", value_delimiter = ',', default_value = "ppl", value_parser = parse_metric)]
    pub(crate) metrics: Vec<MetricName>,
    /// LongPPL: minimum number of tokens in the short context [default: half the trained context, at most 4096]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) trunc_len: Option<usize>,
    /// LongPPL: number of tokens that share one short context [default: a quarter of --trunc-len]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) sliding_window: Option<usize>,
}

impl MetricArgs {
    /// Refuses options of a metric that is not taken.
    ///
    /// # Errors
    /// Such options are given; the error names them.
    pub(crate) fn check(&self, objective: MetricName) -> Result<()> {
        let longppl = self.takes(MetricName::LongPpl) || objective == MetricName::LongPpl;
        if (self.trunc_len.is_some() || self.sliding_window.is_some()) && !longppl {
            return usage("--trunc-len and --sliding-window are for LongPPL: add --metrics longppl");
        }
        Ok(())
    }

    /// Whether this one is among them.
    pub(crate) fn takes(&self, metric: MetricName) -> bool {
        self.metrics.contains(&metric)
    }
}

/// A run that may be interrupted, or measured in parts.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Long runs")]
pub(crate) struct RunArgs {
    /// Append every finished measurement to this file, and continue from what it already holds
    #[arg(long, value_name = "FILE")]
    pub(crate) run: Option<PathBuf>,
    /// Measure only part I of N; attn merge joins the parts
    #[arg(long, value_name = "I/N", requires = "run")]
    pub(crate) shard: Option<Shard>,
}

/// How a comparison is shown.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    #[command(flatten)]
    pub(crate) report: ReportArgs,
    /// Write a line chart as SVG
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}

/// How measurements of any kind are shown.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct ReportArgs {
    /// Print the result as one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    /// Write the figures as CSV
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// Write an HTML page with verdict, tables and charts; it needs no network
    #[arg(long, value_name = "FILE.html")]
    pub(crate) html: Option<PathBuf>,
}

impl ReportArgs {
    /// What can be known to be wrong before anything is measured.
    ///
    /// # Errors
    /// A path that can't be written.
    pub(crate) fn check(&self) -> Result<()> {
        check_files(self.csv.iter().chain(&self.html))
    }
}

/// Refuses files that can't be written, and one that would be written twice.
///
/// # Errors
/// Names the first such file and says why it is refused.
pub(crate) fn check_files<'a>(files: impl Iterator<Item = &'a PathBuf>) -> Result<()> {
    let mut seen: Vec<&PathBuf> = vec![];
    for file in files {
        check_writable(file)?;
        if seen.contains(&file) {
            return usage(format!(
                "two outputs have the same file {}, and the second would replace the first: name two files",
                file.display()
            ));
        }
        seen.push(file);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    /// The options of a line.
    fn rope(line: &str) -> RopeArgs {
        #[derive(Parser)]
        #[command(no_binary_name = true)]
        struct Line {
            #[command(flatten)]
            rope: RopeArgs,
        }
        Line::try_parse_from(line.split(' ')).unwrap().rope
    }

    #[test]
    fn rope_flags_become_one_override() {
        let line = "--rope-scaling ntk_by_parts --rope-factor 2 --rope-param beta_fast=16";
        let change = rope(line).to_override().unwrap();
        assert!(change.extend.is_none());
        let rope = change.rope;
        assert_eq!(rope.scaling.as_deref(), Some("ntk-by-parts"));
        assert_eq!((rope.factor, rope.theta, rope.original_context), (Some(2.0), None, None));
        assert_eq!(rope.params, [("beta_fast".to_string(), "16".to_string())]);
    }

    #[test]
    fn a_methods_numbers_come_with_its_name_or_as_parameters() {
        let line = "--rope-scaling yarn+rerope+log-n --rope-factor 2 --rope-param window=64 --rope-param beta_fast=16";
        let change = rope(line).to_override().unwrap();
        assert_eq!(change.rope.scaling.as_deref(), Some("yarn"));
        assert_eq!(change.rope.params, [("beta_fast".to_string(), "16".to_string())]);
        assert_eq!(change.extend.method.map(|method| method.name), Some("rerope"));
        assert_eq!((change.extend.params[0], change.extend.log_n), (Some(("window", 64.0)), true));
    }
}

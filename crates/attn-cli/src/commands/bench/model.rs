//! `attn bench model`: tokens per second of a whole model, seconds to load it, and memory.

use super::args::ModelBenchArgs;
use super::times::{Times, peak_rss_bytes};
use crate::model::{self, Opened};
use crate::output::{print, print_json, usage};
use anyhow::{Result, ensure};
use attn_core::profile::{Op, Profile, record_on};
use attn_models::memory::Workload;
use attn_models::{Architecture, RopeLength, Session};
use candle_core::{Device, Tensor};
use serde::Serialize;
use std::time::Instant;

/// The result, as it is printed.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    dtype: &'static str,
    keep_quantized: bool,
    threads: usize,
    batch: usize,
    depth: usize,
    runs: usize,
    parameters: usize,
    load_seconds: f64,
    /// From opening the files to the logits after the first prompt; absent where --depth comes before it.
    first_token_seconds: Option<f64>,
    prompt: Option<Speed>,
    generate: Option<Speed>,
    /// Keys and values that the cache had room for at the end.
    kv_bytes: usize,
    cache_type_k: &'static str,
    cache_type_v: &'static str,
    kv_bytes_per_token: u64,
    peak_rss_bytes: Option<u64>,
}

/// The speed of one kind of work, all sequences of the batch together.
#[derive(Debug, Serialize)]
struct Speed {
    /// Per sequence and run.
    tokens: usize,
    tokens_per_second: f64,
    best_tokens_per_second: f64,
    /// Where the time of one more run went, with --profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<Vec<Row>>,
}

impl Speed {
    fn new(tokens: usize, batch: usize, times: &Times) -> Self {
        let per_second = |seconds: f64| (tokens * batch) as f64 / seconds.max(1e-9);
        Self {
            tokens,
            tokens_per_second: per_second(times.median()),
            best_tokens_per_second: per_second(times.best()),
            profile: None,
        }
    }
}

/// Where a profile is to be put, if one is wanted.
type Wanted<'a> = Option<&'a mut Option<Vec<Row>>>;

/// The share of an operation.
#[derive(Debug, Serialize)]
struct Row {
    operation: &'static str,
    calls: usize,
    ms: f64,
    /// Of the run.
    share: f64,
}

impl Row {
    /// Every operation that ran, the largest first, and the rest of the time; they add up to the run's.
    fn all(profile: &Profile) -> Vec<Self> {
        let total = profile.total().as_secs_f64().max(1e-9);
        let row = |op: Op| {
            let seconds = profile.time(op).as_secs_f64();
            Self { operation: op.name(), calls: profile.calls(op), ms: seconds * 1e3, share: seconds / total }
        };
        let mut rows: Vec<Self> = Op::ALL.into_iter().map(row).filter(|row| row.ms > 0.0).collect();
        rows.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        rows
    }
}

/// Runs the command.
///
/// # Errors
/// The model can't be loaded, is no decoder, or has no room for so many tokens.
pub(super) fn run(args: &ModelBenchArgs) -> Result<()> {
    if args.prompt == 0 && args.generate == 0 {
        return usage("there is nothing to measure: --prompt and --generate are both 0");
    }
    let started = Instant::now();
    let opened = model::open(&args.model)?;
    let load_seconds = started.elapsed().as_secs_f64();
    let report = bench(args, &opened, started, load_seconds)?;
    if args.json { print_json(&report) } else { print(&summary(&report)) }
}

fn bench(args: &ModelBenchArgs, opened: &Opened, started: Instant, load_seconds: f64) -> Result<Report> {
    let decoder = opened.model.architecture() == Architecture::Decoder;
    ensure!(decoder, "{} is not a decoder: there is no next token to time", opened.name);
    let tokens = args.depth.saturating_add(args.prompt.max(args.generate));
    opened.check_memory(tokens, |tokens| {
        let pass = args.depth.max(args.prompt).min(tokens);
        Workload { rows: args.batch, pass, cached: tokens, encoded: 0, logits: args.batch }
    })?;
    let mut runner = Runner::new(args, opened);
    let mut first_token_seconds = None;
    let prompt = measure(args.prompt, args, |wanted| {
        let seconds = runner.prompt(args.prompt, wanted)?;
        if args.depth == 0 {
            first_token_seconds.get_or_insert_with(|| started.elapsed().as_secs_f64());
        }
        Ok(seconds)
    })?;
    let (spec, dtype, types) = (opened.model.spec(), opened.model.dtype(), opened.model.cache_types());
    let [cache_type_k, cache_type_v] = spec.stored_as(dtype, types);
    let generate = measure(args.generate, args, |wanted| runner.generate(args.generate, wanted))?;
    Ok(Report {
        model: opened.name.clone(),
        dtype: opened.model.dtype().as_str(),
        keep_quantized: args.model.load.keep_quantized,
        threads: rayon::current_num_threads(),
        batch: args.batch,
        depth: args.depth,
        runs: args.runs,
        parameters: opened.model.parameters(),
        load_seconds,
        first_token_seconds,
        prompt,
        generate,
        kv_bytes: runner.session.as_ref().map_or(0, Session::cache_bytes),
        cache_type_k,
        cache_type_v,
        kv_bytes_per_token: spec.cache_bytes_per_token(dtype, types),
        peak_rss_bytes: peak_rss_bytes(),
    })
}

/// The speed of `work`, which says how many seconds it took; `None` if there are no tokens to it.
fn measure(
    tokens: usize,
    args: &ModelBenchArgs,
    mut work: impl FnMut(Wanted<'_>) -> Result<f64>,
) -> Result<Option<Speed>> {
    if tokens == 0 {
        return Ok(None);
    }
    work(None)?;
    let seconds = (0..args.runs).map(|_| work(None)).collect::<Result<Vec<_>>>()?;
    let mut speed = Speed::new(tokens, args.batch, &Times::new(seconds));
    if args.profile {
        work(Some(&mut speed.profile))?;
    }
    Ok(Some(speed))
}

/// Brings the cache back to its depth before every measurement.
struct Runner<'a> {
    opened: &'a Opened,
    batch: usize,
    depth: usize,
    length: RopeLength,
    session: Option<Session>,
}

impl<'a> Runner<'a> {
    fn new(args: &ModelBenchArgs, opened: &'a Opened) -> Self {
        let declared = args.depth + args.prompt.max(args.generate);
        let length = model::session_length(args.model.rope.rope_length, declared);
        Self { opened, batch: args.batch, depth: args.depth, length, session: None }
    }

    /// A session with `depth` tokens in it: the last one rewound, or a new one if a window has dropped tokens that
    /// rewinding would need.
    fn session(&mut self) -> Result<&mut Session> {
        let rewound = self.session.take().and_then(|mut session| session.truncate(self.depth).ok().map(|()| session));
        let session = match rewound {
            Some(session) => session,
            None => {
                let mut session = Session::new(&self.opened.model, self.length, None)?;
                if self.depth > 0 {
                    session.feed(&ids(self.opened, self.batch, 0, self.depth)?)?;
                }
                session
            }
        };
        Ok(self.session.insert(session))
    }

    /// Seconds for a prompt in one pass, to the logits after its last token.
    fn prompt(&mut self, tokens: usize, wanted: Wanted<'_>) -> Result<f64> {
        let ids = ids(self.opened, self.batch, self.depth, tokens)?;
        let device = self.opened.model.device();
        let session = self.session()?;
        timed(device, wanted, || finish(&session.feed(&ids)?))
    }

    /// Seconds for tokens fed one at a time, each to its logits.
    fn generate(&mut self, tokens: usize, wanted: Wanted<'_>) -> Result<f64> {
        let at = |i| ids(self.opened, self.batch, self.depth + i, 1);
        let all = (0..tokens).map(at).collect::<Result<Vec<_>>>()?;
        let device = self.opened.model.device();
        let session = self.session()?;
        timed(device, wanted, || all.iter().try_for_each(|ids| finish(&session.feed(ids)?)))
    }
}

/// Seconds that the work takes, and its profile if that is wanted.
fn timed(device: &Device, wanted: Wanted<'_>, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    match wanted {
        None => work()?,
        Some(rows) => {
            let (done, profile) = record_on(device, work);
            done?;
            *rows = Some(Row::all(&profile));
        }
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Waits for the device.
fn finish(logits: &Tensor) -> Result<()> {
    Ok(logits.device().synchronize()?)
}

/// Arbitrary ids `(batch, tokens)` for the positions from `start` on; rows differ.
fn ids(opened: &Opened, batch: usize, start: usize, tokens: usize) -> Result<Tensor> {
    let vocab = opened.model.vocab_size();
    let rows = (0..batch).flat_map(|row| (start..start + tokens).map(move |i| (i * 7919 + row * 104_729 + 13) % vocab));
    let ids: Vec<u32> = rows.map(|id| id as u32).collect();
    Ok(Tensor::from_vec(ids, (batch, tokens), opened.model.device())?)
}

/// A profile as lines; nothing for none.
fn table(rows: &[Row]) -> String {
    let line = |name: &str, calls: usize, ms: f64, share: f64| {
        format!("  {name:<13}{calls:>7} {ms:>10.2} ms {:>4.0} %\n", share * 100.0)
    };
    if rows.is_empty() {
        return String::new();
    }
    let mut out: String = rows.iter().map(|row| line(row.operation, row.calls, row.ms, row.share)).collect();
    let sum = |of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>();
    out.push_str(&line("total", rows.iter().map(|row| row.calls).sum(), sum(|row| row.ms), sum(|row| row.share)));
    out
}

fn summary(r: &Report) -> String {
    let quantized = if r.keep_quantized { ", weights kept quantised" } else { "" };
    let mut out = format!("model       {}, {}{quantized}, {} threads\n", r.model, r.dtype, r.threads);
    out.push_str(&format!("load        {:.2} s", r.load_seconds));
    if let (Some(first), Some(prompt)) = (r.first_token_seconds, &r.prompt) {
        out.push_str(&format!("; first token of a prompt of {} after {first:.2} s", prompt.tokens));
    }
    out.push('\n');
    let batch = if r.batch > 1 { format!(" in each of {} sequences", r.batch) } else { String::new() };
    let depth = if r.depth > 0 { format!(" after {} in the cache", r.depth) } else { String::new() };
    for (name, speed) in [("prompt", &r.prompt), ("generate", &r.generate)] {
        if let Some(speed) = speed {
            let Speed { tokens, tokens_per_second: median, best_tokens_per_second: best, profile } = speed;
            let what = format!("{tokens} tokens{batch}{depth}");
            out.push_str(&format!("{name:<11} {median:.1} tokens/s ({what}; best {best:.1})\n"));
            out.push_str(&table(profile.as_deref().unwrap_or_default()));
        }
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    out.push_str(&format!(
        "cache       {:.1} MiB, {} bytes per token, keys in {}, values in {}\n",
        mib(r.kv_bytes as u64),
        r.kv_bytes_per_token,
        r.cache_type_k,
        r.cache_type_v
    ));
    if let Some(peak) = r.peak_rss_bytes {
        out.push_str(&format!("memory      {:.0} MiB at its peak, mapped files included\n", mib(peak)));
    }
    out
}

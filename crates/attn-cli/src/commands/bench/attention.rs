//! `attn bench attention`: one call on random numbers, checked against the reference before it is timed.

use super::args::{AttentionArgs, BiasName, Rival};
use super::methods::{self, Part};
use super::times::Times;
use crate::model;
use crate::output::{print, print_json, usage};
use crate::parse::DeviceName;
use anyhow::{Context, Result, ensure};
use attn_core::attention::{KernelOptions, KernelPath, KeyNorms, attend_with, reference};
use attn_core::{AttendArgs, Curve, Mask, ScoreBias, attend_lse, machine};
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::attention::{AttnMask, flash_attn};
use serde::Serialize;
use std::hint::black_box;
use std::sync::Arc;

/// Larger calls are refused rather than tried.
const LARGEST: usize = 1 << 35;
/// Scores that the check may hold at once, over all heads.
const CHECKED_SCORES: usize = 1 << 24;

/// The result, as it is printed.
#[derive(Debug, Serialize)]
struct Report {
    dtype: &'static str,
    batch: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    seq: usize,
    decode: bool,
    bias: String,
    sinks: bool,
    method: Option<String>,
    window: Option<usize>,
    backward: bool,
    learned: bool,
    /// The instruction set, on the CPU.
    path: Option<String>,
    threads: usize,
    runs: usize,
    /// Largest difference from the reference over its largest value, at a length of `checked_at`.
    error: f32,
    checked_at: usize,
    median_ms: f64,
    min_ms: f64,
    gflops: f64,
    /// f32 multiply-adds with the same vectors and threads.
    peak_gflops: Option<f64>,
    /// Keys and values over the time, when decoding.
    gb_per_s: Option<f64>,
    /// Reads of memory by as many threads.
    bandwidth_gb_per_s: Option<f64>,
    /// Candle's `flash_attn` on the same call.
    candle_ms: Option<f64>,
    /// The plain call, in turn with this one.
    plain_ms: Option<f64>,
    /// How many times as fast as that the call is: `plain_ms / median_ms`.
    of_plain: Option<f64>,
}

/// Runs the command.
///
/// # Errors
/// Heads that don't fit each other, a path or device that isn't there, a call that does not fit into memory, or a
/// result that differs from the reference's.
pub(super) fn run(args: &AttentionArgs) -> Result<()> {
    refuse(args)?;
    model::set_threads(args.threads)?;
    let device = model::device(args.device)?;
    let report = bench(args, &device)?;
    if args.json { print_json(&report) } else { print(&summary(&report)) }
}

fn refuse(args: &AttentionArgs) -> Result<()> {
    let AttentionArgs { heads, kv_heads, seq, .. } = *args;
    if !heads.is_multiple_of(kv_heads) {
        return usage(format!("--heads {heads} is not a multiple of --kv-heads {kv_heads}"));
    }
    let plain = args.bias == BiasName::None && args.window.is_none() && !args.backward && !args.sinks;
    let plain = plain && args.method.is_none();
    if args.against == Some(Rival::Candle) && !plain {
        return usage("--against candle works only for plain causal calls, without bias, window or gradients");
    }
    if args.device != DeviceName::Cpu {
        if args.against == Some(Rival::Candle) {
            return usage("--against candle works only on the CPU");
        }
        if let Some(path) = args.path {
            return usage(format!("--path {path} works only on the CPU"));
        }
    }
    let queries = if args.decode { 1 } else { seq };
    let product = |factors: &[usize]| factors.iter().try_fold(4usize, |all, &n| all.checked_mul(n));
    let sizes = [
        product(&[args.batch, heads, queries, args.head_dim, 2]),
        product(&[args.batch, kv_heads, seq, args.head_dim, 2]),
        if args.bias == BiasName::Dense { product(&[heads, queries, seq]) } else { Some(0) },
    ];
    if !sizes.into_iter().all(|size| size.is_some_and(|size| size <= LARGEST)) {
        return usage("a call of this size fits into no memory: lower --seq, --batch or --heads");
    }
    Ok(())
}

/// One call, ready to run.
struct Call {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    args: AttendArgs,
    options: KernelOptions,
    parts: Vec<Part>,
}

impl Call {
    fn new(a: &AttentionArgs, seq: usize, device: &Device) -> Result<Self> {
        let queries = if a.decode { 1 } else { seq };
        let random = |h: usize, t: usize| -> Result<Tensor> {
            let x = Tensor::randn(0f32, 1f32, (a.batch, h, t, a.head_dim), device)?;
            Ok(x.to_dtype(a.dtype.dtype())?)
        };
        let (q, k, v) = (random(a.heads, queries)?, random(a.kv_heads, seq)?, random(a.kv_heads, seq)?);
        let bias = match a.bias {
            BiasName::None => ScoreBias::None,
            BiasName::Alibi => {
                let slope = |i: usize| (-8.0 * (i + 1) as f32 / a.heads as f32).exp2();
                ScoreBias::Linear { slopes: Tensor::from_iter((0..a.heads).map(slope), device)? }
            }
            BiasName::Relative => {
                let table = Tensor::randn(0f32, 1f32, (a.heads, 2 * seq), device)?;
                ScoreBias::Relative { table, first: -(seq as i64) }
            }
            BiasName::Keys => {
                let of = |t: usize| Tensor::randn(0f32, 1f32, (a.batch, a.heads, t), device);
                ScoreBias::Keys { queries: of(queries)?, keys: of(seq)? }
            }
            BiasName::Bank => {
                let rows = Tensor::randn(0f32, 1f32, (a.batch, a.heads, queries, 3), device)?;
                let bank = Tensor::randn(0f32, 1f32, (a.heads, 3, seq), device)?;
                ScoreBias::RowBank { rows, bank, first: 1 - seq as i64 }
            }
            BiasName::Curve => ScoreBias::Curve(curve(a.heads, queries, seq, device)?),
            BiasName::Dense => ScoreBias::Dense(Tensor::randn(0f32, 1f32, (1, a.heads, queries, seq), device)?),
        };
        let sinks = if a.sinks { Some(Tensor::randn(0f32, 1f32, a.heads, device)?) } else { None };
        let mask = Mask::causal().with_window(a.window);
        let mut args = AttendArgs::causal(a.head_dim, queries, seq)?.with_bias(bias).with_mask(mask);
        args.scores = args.scores.with_sinks(sinks);
        // A cache keeps them as it grows, so they are no part of the call.
        let norms = a.decode && a.bias == BiasName::Alibi && device.is_cpu();
        let key_norms = if norms { Some(Arc::new(KeyNorms::new(&k)?)) } else { None };
        let parts = a.method.map(|method| methods::parts(method, seq, (&q, &k), &args)).transpose()?;
        let options = KernelOptions { path: a.path, key_norms };
        Ok(Self { q, k, v, args, options, parts: parts.unwrap_or_default() })
    }

    fn forward(&self) -> Result<Tensor> {
        match self.parts.is_empty() {
            true => Ok(attend_with(&self.q, &self.k, &self.v, &self.args, &self.options)?),
            false => methods::joined(&self.parts, &self.v, attend_lse),
        }
    }

    /// The output, and with `backward` the gradients for a gradient of ones: of q, k and v and, if `learned`, of the bias and
    /// the sinks.
    fn results(&self, a: &AttentionArgs, attend: &Kernel<'_>) -> Result<Vec<Tensor>> {
        if !a.backward {
            return Ok(vec![attend(&self.q, &self.k, &self.v, &self.args)?]);
        }
        let mut vars =
            [&self.q, &self.k, &self.v].map(Var::from_tensor).into_iter().collect::<candle_core::Result<Vec<_>>>()?;
        let mut args = self.args.clone();
        if a.learned {
            (args, vars) = learned(args, vars)?;
        }
        let out = attend(vars[0].as_tensor(), vars[1].as_tensor(), vars[2].as_tensor(), &args)?;
        // Row by row first: Candle gives a whole sum to one block of a GPU.
        let mut grads = out.sum(D::Minus1)?.sum_all()?.backward()?;
        let mut results = vec![out.detach()];
        for (i, var) in vars.iter().enumerate() {
            results.push(grads.remove(var.as_tensor()).with_context(|| format!("no gradient reached tensor {i}"))?);
        }
        Ok(results)
    }

    fn timed(&self, a: &AttentionArgs, device: &Device) -> Result<()> {
        match a.backward {
            true => {
                black_box(self.results(a, &|q, k, v, args| Ok(attend_with(q, k, v, args, &self.options)?))?);
            }
            false => {
                black_box(self.forward()?);
            }
        }
        Ok(device.synchronize()?)
    }

    /// How far the results are from the reference's, relative to the largest value of each.
    fn error(&self, a: &AttentionArgs) -> Result<f32> {
        let (ours, theirs) = if self.parts.is_empty() {
            let ours = self.results(a, &|q, k, v, args| Ok(attend_with(q, k, v, args, &self.options)?))?;
            (ours, self.results(a, &|q, k, v, args| Ok(reference::attend(q, k, v, args)?))?)
        } else {
            (vec![self.forward()?], vec![methods::joined(&self.parts, &self.v, reference::attend_lse)?])
        };
        let largest = |x: &Tensor| -> Result<f32> { Ok(x.abs()?.max_all()?.to_scalar()?) };
        let most = theirs.iter().map(|x| largest(&x.to_dtype(DType::F32)?)).collect::<Result<Vec<_>>>()?;
        // A gradient that is nearly zero is the rounding of others that are not.
        let floor = most.iter().copied().fold(0f32, f32::max) * 1e-3;
        let mut worst = 0f32;
        for ((ours, theirs), most) in ours.iter().zip(&theirs).zip(most) {
            let (ours, theirs) = (ours.to_dtype(DType::F32)?, theirs.to_dtype(DType::F32)?);
            let error = largest(&(ours - &theirs)?)? / most.max(floor);
            ensure!(error.is_finite(), "the result is not a number");
            worst = worst.max(error);
        }
        Ok(worst)
    }

    /// Pairs of query and key that the mask leaves, per head and sequence.
    fn pairs(&self) -> usize {
        let (queries, keys) = (self.q.dims()[2], self.k.dims()[2]);
        (0..queries).map(|q| self.args.mask.visible(0, self.args.q_start + q, 0..keys).len()).sum()
    }

    /// Candle's kernel on the same numbers, in its layout `(b, t, h, d)`.
    fn candle(&self, runs: usize) -> Result<Times> {
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|x| x.transpose(1, 2).and_then(|x| x.contiguous()));
        let (q, k, v) = (q?, k?, v?);
        let scale = self.args.scores.scale as f32;
        Times::measure(runs, || {
            let mask = AttnMask::Causal { kv_offset: self.args.q_start };
            black_box(match q.dtype() {
                DType::BF16 => flash_attn::<half::bf16>(&q, &k, &v, scale, mask, None, None)?,
                DType::F16 => flash_attn::<half::f16>(&q, &k, &v, scale, mask, None, None)?,
                _ => flash_attn::<f32>(&q, &k, &v, scale, mask, None, None)?,
            });
            Ok(())
        })
    }
}

/// Attention of q, k and v.
type Kernel<'a> = dyn Fn(&Tensor, &Tensor, &Tensor, &AttendArgs) -> Result<Tensor> + 'a;

/// A curve of 32 hidden units, as FIRE's.
fn curve(heads: usize, queries: usize, seq: usize, device: &Device) -> Result<Curve> {
    let noise = |shape: &[usize]| Tensor::randn(0f32, 1f32, shape, device);
    let log = |x: usize| (0.1 * x as f32 + 1.0).ln();
    let row = |i: usize| 1.0 / log((seq - queries + i).max(seq / 4));
    Ok(Curve {
        distances: Tensor::from_iter((0..seq).map(log), device)?,
        rows: Tensor::from_iter((0..queries).map(row), device)?.unsqueeze(0)?,
        hidden_weight: noise(&[32])?,
        hidden_bias: noise(&[32])?,
        out_weight: noise(&[heads, 32])?,
        out_bias: noise(&[heads])?,
    })
}

/// The arguments with variables in the place of what the bias and the sinks are made of.
fn learned(mut args: AttendArgs, mut vars: Vec<Var>) -> Result<(AttendArgs, Vec<Var>)> {
    let mut var = |x: &Tensor| -> Result<Tensor> {
        vars.push(Var::from_tensor(x)?);
        Ok(vars[vars.len() - 1].as_tensor().clone())
    };
    args.scores.bias = match &args.scores.bias {
        ScoreBias::Linear { slopes } => ScoreBias::Linear { slopes: var(slopes)? },
        ScoreBias::Relative { table, first } => ScoreBias::Relative { table: var(table)?, first: *first },
        ScoreBias::Keys { queries, keys } => ScoreBias::Keys { queries: var(queries)?, keys: var(keys)? },
        ScoreBias::RowBank { rows, bank, first } => {
            ScoreBias::RowBank { rows: var(rows)?, bank: var(bank)?, first: *first }
        }
        ScoreBias::Curve(c) => ScoreBias::Curve(Curve {
            hidden_weight: var(&c.hidden_weight)?,
            hidden_bias: var(&c.hidden_bias)?,
            out_weight: var(&c.out_weight)?,
            out_bias: var(&c.out_bias)?,
            ..c.clone()
        }),
        other => other.clone(),
    };
    args.scores.sinks = args.scores.sinks.as_ref().map(var).transpose()?;
    Ok((args, vars))
}

/// Checks, then times.
fn bench(args: &AttentionArgs, device: &Device) -> Result<Report> {
    let queries = |seq: usize| if args.decode { 1 } else { seq };
    let fits = |seq: usize| args.batch * args.heads * queries(seq) * seq <= CHECKED_SCORES;
    let checked_at = (0..).map(|halvings| args.seq >> halvings).find(|&seq| seq <= 1 || fits(seq)).unwrap_or(1).max(1);
    let error = Call::new(args, checked_at, device)?.error(args)?;
    let tolerance = if args.dtype.dtype() == DType::F32 { 2e-5 } else { 2e-2 } * if args.backward { 2.0 } else { 1.0 };
    ensure!(error <= tolerance, "the result is off by {error:e} at {checked_at} tokens");

    let call = Call::new(args, args.seq, device)?;
    let (times, plain) = match args.against {
        Some(Rival::Plain) => {
            let plain_args = AttentionArgs {
                bias: BiasName::None,
                sinks: false,
                method: None,
                learned: false,
                window: None,
                ..args.clone()
            };
            let plain = Call::new(&plain_args, args.seq, device)?;
            let other = || plain.timed(&plain_args, device);
            let (times, other) = Times::measure_two(args.runs, || call.timed(args, device), other)?;
            (times, Some(other))
        }
        _ => (Times::measure(args.runs, || call.timed(args, device))?, None),
    };
    let candle = match args.against {
        Some(Rival::Candle) => Some(call.candle(args.runs.min(3))?),
        _ => None,
    };

    let path = if device.is_cpu() { Some(KernelPath::choose(args.path)?) } else { None };
    // Two products forward; five backward, the scores among them once more.
    let passes = if args.backward { 3.5 } else { 1.0 };
    let flops = call.pairs() as f64 * (4 * args.head_dim * args.heads * args.batch) as f64 * passes;
    let bytes = 2 * call.k.elem_count() * call.k.dtype().size_in_bytes();
    Ok(Report {
        dtype: call.q.dtype().as_str(),
        batch: args.batch,
        heads: args.heads,
        kv_heads: args.kv_heads,
        head_dim: args.head_dim,
        seq: args.seq,
        decode: args.decode,
        bias: format!("{:?}", args.bias).to_lowercase(),
        sinks: args.sinks,
        method: args.method.map(|method| format!("{method:?}").to_lowercase()),
        window: args.window,
        backward: args.backward,
        learned: args.learned,
        path: path.map(|path| path.to_string()),
        threads: rayon::current_num_threads(),
        runs: args.runs,
        error,
        checked_at,
        median_ms: times.median() * 1e3,
        min_ms: times.best() * 1e3,
        gflops: flops / times.median() / 1e9,
        peak_gflops: path.map(machine::fma_peak).transpose()?,
        gb_per_s: args.decode.then(|| bytes as f64 / times.median() / 1e9),
        bandwidth_gb_per_s: if args.decode && device.is_cpu() { Some(machine::read_bandwidth()?) } else { None },
        candle_ms: candle.map(|times| times.median() * 1e3),
        of_plain: plain.as_ref().map(|plain| plain.median() / times.median()),
        plain_ms: plain.map(|times| times.median() * 1e3),
    })
}

fn summary(r: &Report) -> String {
    let mut out = format!("reference  agrees to {:.1e} of the largest value, at {} tokens\n", r.error, r.checked_at);
    out.push_str(&format!("time       {:.3} ms, median of {} (best {:.3})\n", r.median_ms, r.runs, r.min_ms));
    out.push_str(&format!("speed      {:.1} GFLOP/s", r.gflops));
    if let (Some(peak), Some(path)) = (r.peak_gflops, &r.path) {
        let share = 100.0 * r.gflops / peak;
        out.push_str(&format!(", {share:.0} % of {peak:.1} ({path} f32 multiply-adds, {} threads)", r.threads));
    }
    out.push('\n');
    if let Some(speed) = r.gb_per_s {
        out.push_str(&format!("           {speed:.1} GB/s of keys and values"));
        if let Some(limit) = r.bandwidth_gb_per_s {
            out.push_str(&format!(", {:.0} % of {limit:.1} (reads of memory)", 100.0 * speed / limit));
        }
        out.push('\n');
    }
    if let (Some(ms), Some(share)) = (r.plain_ms, r.of_plain) {
        out.push_str(&format!("plain      {ms:.3} ms; the call above is {share:.2} times as fast\n"));
    }
    if let Some(ms) = r.candle_ms {
        out.push_str(&format!("candle     {ms:.3} ms, {:.1} times as long\n", ms / r.median_ms));
    }
    out
}

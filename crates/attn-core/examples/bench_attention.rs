//! Times one attention call, after checking its result against the reference kernel.
//!
//! ```text
//! cargo run --release -p attn-core --example bench_attention -- --heads 9 --kv-heads 3 --head-dim 64 --seq 4096
//! ```

use anyhow::{Context, Result, bail, ensure};
use attn_core::{
    AttendArgs, Mask, ScoreBias,
    attention::{KernelOptions, KernelPath, KeyNorms, attend_with, reference},
};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::attention::{AttnMask, flash_attn};
use std::{hint::black_box, sync::Arc, time::Instant};

/// What to time.
#[derive(Debug, Clone)]
struct Config {
    dtype: DType,
    batch: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    seq: usize,
    decode: bool,
    bias: String,
    window: Option<usize>,
    backward: bool,
    path: Option<KernelPath>,
    against_candle: bool,
    runs: usize,
    json: bool,
}

/// What came of it.
#[derive(Debug, serde::Serialize)]
struct Report {
    error: f32,
    checked_at: usize,
    median_ms: f64,
    min_ms: f64,
    gflops: f64,
    candle_ms: Option<f64>,
}

const USAGE: &str = "bench_attention [--dtype f32|bf16|f16] [--batch N] [--heads N] [--kv-heads N] [--head-dim N] \
[--seq N] [--decode] [--bias none|alibi|relative|dense] [--window W] [--backward] [--path avx512|avx2|neon|portable] \
[--against candle] [--runs N] [--json]";

impl Config {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut c = Self {
            dtype: DType::F32,
            batch: 1,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            seq: 4096,
            decode: false,
            bias: "none".into(),
            window: None,
            backward: false,
            path: None,
            against_candle: false,
            runs: 7,
            json: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} wants a value\n{USAGE}"));
            match word.as_str() {
                "--dtype" => {
                    c.dtype = match value()?.as_str() {
                        "f32" => DType::F32,
                        "bf16" => DType::BF16,
                        "f16" => DType::F16,
                        other => bail!("unknown dtype {other}"),
                    }
                }
                "--batch" => c.batch = value()?.parse()?,
                "--heads" => c.heads = value()?.parse()?,
                "--kv-heads" => c.kv_heads = value()?.parse()?,
                "--head-dim" => c.head_dim = value()?.parse()?,
                "--seq" => c.seq = value()?.parse()?,
                "--decode" => c.decode = true,
                "--bias" => c.bias = value()?,
                "--window" => c.window = Some(value()?.parse()?),
                "--backward" => c.backward = true,
                "--path" => c.path = Some(value()?.parse().map_err(anyhow::Error::msg)?),
                "--against" => {
                    ensure!(value()? == "candle", "--against knows only candle");
                    c.against_candle = true;
                }
                "--runs" => c.runs = value()?.parse()?,
                "--json" => c.json = true,
                _ => bail!("unknown option {word}\n{USAGE}"),
            }
        }
        ensure!(c.runs > 0 && c.seq > 0, "nothing to run");
        Ok(c)
    }
}

/// One call, ready to run.
struct Call {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    args: AttendArgs,
    options: KernelOptions,
}

impl Call {
    fn new(c: &Config, seq: usize) -> Result<Self> {
        let tq = if c.decode { 1 } else { seq };
        // Laid out as a projection leaves it: the heads of a token side by side.
        let random = |h: usize, t: usize| -> Result<Tensor> {
            let x = Tensor::randn(0f32, 1f32, (c.batch, t, h, c.head_dim), &Device::Cpu)?;
            Ok(x.transpose(1, 2)?.contiguous()?.to_dtype(c.dtype)?)
        };
        let (q, k, v) = (random(c.heads, tq)?, random(c.kv_heads, seq)?, random(c.kv_heads, seq)?);
        let bias = match c.bias.as_str() {
            "none" => ScoreBias::None,
            "alibi" => {
                let slope = |i: usize| (-8.0 * (i + 1) as f32 / c.heads as f32).exp2();
                ScoreBias::Linear { slopes: Tensor::from_iter((0..c.heads).map(slope), &Device::Cpu)? }
            }
            "relative" => {
                let table = Tensor::randn(0f32, 1f32, (c.heads, 2 * seq), &Device::Cpu)?;
                ScoreBias::Relative { table, first: -(seq as i64) }
            }
            "dense" => ScoreBias::Dense(Tensor::randn(0f32, 1f32, (1, c.heads, tq, seq), &Device::Cpu)?),
            other => bail!("unknown bias {other}"),
        };
        let mask = Mask::causal().with_window(c.window);
        let args = AttendArgs { bias, mask, ..AttendArgs::causal(c.head_dim, tq, seq) };
        let key_norms = if c.decode && c.bias == "alibi" { Some(Arc::new(KeyNorms::new(&k)?)) } else { None };
        Ok(Self { q, k, v, args, options: KernelOptions { path: c.path, key_norms } })
    }

    fn forward(&self) -> Result<Tensor> {
        Ok(attend_with(&self.q, &self.k, &self.v, &self.args, &self.options)?)
    }

    /// How far the result is from the reference, relative to the largest value.
    fn error(&self) -> Result<f32> {
        let ours = self.forward()?.to_dtype(DType::F32)?;
        let theirs = reference::attend(&self.q, &self.k, &self.v, &self.args)?.to_dtype(DType::F32)?;
        let scale = theirs.abs()?.max_all()?.to_scalar::<f32>()?;
        Ok((ours - theirs)?.abs()?.max_all()?.to_scalar::<f32>()? / scale)
    }

    fn candle(&self, dtype: DType) -> Result<Tensor> {
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|x| x.transpose(1, 2).and_then(|x| x.contiguous()));
        let (q, k, v) = (q?, k?, v?);
        let (scale, mask) = (self.args.scale as f32, AttnMask::Causal { kv_offset: self.args.q_start });
        Ok(match dtype {
            DType::F32 => flash_attn::<f32>(&q, &k, &v, scale, mask, None, None)?,
            DType::BF16 => flash_attn::<half::bf16>(&q, &k, &v, scale, mask, None, None)?,
            _ => flash_attn::<half::f16>(&q, &k, &v, scale, mask, None, None)?,
        })
    }
}

/// Milliseconds of each run, sorted, after one that isn't counted.
fn time(runs: usize, mut f: impl FnMut() -> Result<Tensor>) -> Result<Vec<f64>> {
    f()?;
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let start = Instant::now();
        black_box(f()?);
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Checks, then times.
fn bench(c: &Config) -> Result<Report> {
    let checked_at = c.seq.min(if c.decode { 32768 } else { 1024 });
    let error = Call::new(c, checked_at)?.error()?;
    let tolerance = if c.dtype == DType::F32 { 2e-5 } else { 2e-2 };
    ensure!(error <= tolerance, "the result is off by {error:e} at {checked_at} tokens");
    let call = Call::new(c, c.seq)?;
    let times = if c.backward {
        let vars = [&call.q, &call.k, &call.v].map(Var::from_tensor);
        let [q, k, v] = vars;
        let (q, k, v) = (q?, k?, v?);
        time(c.runs, || {
            let out = attend_with(q.as_tensor(), k.as_tensor(), v.as_tensor(), &call.args, &call.options)?;
            let grads = out.sum_all()?.backward()?;
            Ok(grads.get(q.as_tensor()).context("no gradient for q")?.clone())
        })?
    } else {
        time(c.runs, || call.forward())?
    };
    let candle = if c.against_candle { Some(time(c.runs.min(3), || call.candle(c.dtype))?) } else { None };
    let pairs = if c.decode { c.seq as f64 } else { (c.seq * c.seq) as f64 / 2.0 };
    let flops = pairs * (4 * c.head_dim * c.heads * c.batch) as f64 * if c.backward { 3.5 } else { 1.0 };
    let median_ms = times[times.len() / 2];
    Ok(Report {
        error,
        checked_at,
        median_ms,
        min_ms: times[0],
        gflops: flops / median_ms / 1e6,
        candle_ms: candle.map(|times| times[times.len() / 2]),
    })
}

fn main() -> Result<()> {
    let config = Config::parse(std::env::args().skip(1))?;
    let report = bench(&config)?;
    if config.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    println!("agrees with the reference at {} tokens to {:.1e}", report.checked_at, report.error);
    println!("{:.3} ms (best {:.3}), {:.1} GFLOP/s", report.median_ms, report.min_ms, report.gflops);
    if let Some(ms) = report.candle_ms {
        println!("candle's flash_attn {ms:.3} ms: {:.1} times as long", ms / report.median_ms);
    }
    Ok(())
}

//! Tokens per second of a stock candle-transformers Llama, which `scripts/benchmarks/bench_peers.py` compares with
//! `attn bench model`.
//!
//! ```text
//! cargo run --release -p integration --example bench_candle -- FOLDER f32|bf16 PROMPT GENERATE DEPTH RUNS
//! cargo run --release -p integration --example bench_candle -- FILE.gguf quantized PROMPT GENERATE DEPTH RUNS
//! ```
//!
//! Prints the best of the runs as one line of JSON; the first run of each kind isn't counted.

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor, quantized::gguf_file};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, quantized_llama};
use std::{path::Path, time::Instant};

enum Model {
    Dense { model: llama::Llama, config: llama::Config, dtype: DType, cache: llama::Cache },
    Quantized(quantized_llama::ModelWeights),
}

impl Model {
    fn load(path: &Path, dtype: &str) -> Result<Self> {
        let device = Device::Cpu;
        let dtype = match dtype {
            "f32" => DType::F32,
            "bf16" => DType::BF16,
            "quantized" => {
                let mut file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
                let content = gguf_file::Content::read(&mut file)?;
                return Ok(Self::Quantized(quantized_llama::ModelWeights::from_gguf(content, &mut file, &device)?));
            }
            other => bail!("unknown dtype {other}"),
        };
        let config = std::fs::read_to_string(path.join("config.json")).with_context(|| path.display().to_string())?;
        let config = serde_json::from_str::<llama::LlamaConfig>(&config)?.into_config(false);
        let weights = std::fs::read(path.join("model.safetensors"))?;
        let model = llama::Llama::load(VarBuilder::from_buffered_safetensors(weights, dtype, &device)?, &config)?;
        let cache = llama::Cache::new(true, dtype, &config, &device)?;
        Ok(Self::Dense { model, config, dtype, cache })
    }

    /// Feeds tokens behind `start` others; 0 begins anew.
    fn feed(&mut self, start: usize, tokens: usize) -> Result<Tensor> {
        let ids = Tensor::from_iter((start..start + tokens).map(|i| (i * 7919 + 13) as u32 % 32_000), &Device::Cpu)?;
        let ids = ids.unsqueeze(0)?;
        match self {
            Self::Dense { model, config, dtype, cache } => {
                if start == 0 {
                    *cache = llama::Cache::new(true, *dtype, config, &Device::Cpu)?;
                }
                Ok(model.forward(&ids, start, cache)?)
            }
            Self::Quantized(model) => Ok(model.forward(&ids, start)?),
        }
    }
}

fn best(runs: usize, tokens: usize, mut run: impl FnMut() -> Result<f64>) -> Result<Option<f64>> {
    if tokens == 0 {
        return Ok(None);
    }
    run()?;
    let seconds = (0..runs).map(|_| run()).collect::<Result<Vec<_>>>()?;
    Ok(Some(tokens as f64 / seconds.into_iter().fold(f64::INFINITY, f64::min)))
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [path, dtype, numbers @ ..] = words.as_slice() else { bail!("arguments: see the top of the source") };
    let numbers = numbers.iter().map(|n| n.parse()).collect::<std::result::Result<Vec<usize>, _>>()?;
    let &[prompt, generate, depth, runs] = numbers.as_slice() else { bail!("arguments: see the top of the source") };
    let mut model = Model::load(Path::new(path), dtype)?;
    let prompt = best(runs, prompt, || {
        let start = Instant::now();
        model.feed(0, prompt)?;
        Ok(start.elapsed().as_secs_f64())
    })?;
    let generate = best(runs, generate, || {
        // At least one token, because the models can't begin in the middle.
        let depth = depth.max(1);
        model.feed(0, depth)?;
        let start = Instant::now();
        for i in 0..generate {
            model.feed(depth + i, 1)?;
        }
        Ok(start.elapsed().as_secs_f64())
    })?;
    println!("{}", serde_json::json!({ "prompt": prompt, "generate": generate }));
    Ok(())
}

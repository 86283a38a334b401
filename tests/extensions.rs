//! Context extension without training: every method on the golden llama, against logits from its definition.

mod common;

use attn_core::position::extend::{
    DualChunkConfig, ExtendConfig, LeakyReRopeConfig, LmInfiniteConfig, ReRopeConfig, SelfExtendConfig,
    StreamingConfig, StringShiftConfig,
};
use attn_core::position::{Rope, Temperature};
use attn_core::{PositionEncoding, Positions, RopeConfig};
use candle_core::{DType, Device, Result, Tensor};
use common::llama::Llama;
use std::sync::Arc;

const TRAINED: usize = 32;

fn rope() -> RopeConfig {
    RopeConfig::new(8, 10_000.0)
}

fn check(file: &str, method: Option<ExtendConfig>, temperature: Option<Temperature>) -> Result<()> {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/golden");
    let expected = candle_core::safetensors::load(format!("{golden}/extensions/{file}.safetensors"), &Device::Cpu)?;
    let encoding: Arc<dyn PositionEncoding> = match method {
        Some(method) => method.build(rope())?,
        None => Arc::new(Rope::new(rope())?),
    };
    let model = Llama::load(format!("{golden}/models/llama").as_ref(), encoding, temperature)?;
    let ids = expected["input_ids"].to_dtype(DType::U32)?;
    let t = ids.dim(1)?;
    for block in [t, 7, 1] {
        let mut caches = model.new_caches(t);
        let mut logits = vec![];
        for at in (0..t).step_by(block) {
            let n = block.min(t - at);
            logits.push(model.forward(&ids.narrow(1, at, n)?, &Positions::new(at..at + n), &mut caches)?);
        }
        let off = common::difference(&Tensor::cat(&logits, 1)?, &expected["logits"]);
        assert!(off < 1e-3, "{file} in blocks of {block}: off by {off:e}");
    }
    Ok(())
}

#[test]
fn plain() -> Result<()> {
    check("none", None, None)
}

#[test]
fn self_extend() -> Result<()> {
    let method = |group, window| Some(ExtendConfig::SelfExtend(SelfExtendConfig { group, window }));
    check("self-extend-group2-window8", method(2, 8), None)?;
    check("self-extend-group5-window10", method(5, 10), None)
}

#[test]
fn rerope() -> Result<()> {
    check("rerope-window9", Some(ExtendConfig::ReRope(ReRopeConfig { window: 9 })), None)?;
    let leaky = ExtendConfig::LeakyReRope(LeakyReRopeConfig { window: 7, factor: 3.0 });
    check("leaky-rerope-window7-factor3", Some(leaky), None)
}

#[test]
fn dual_chunk() -> Result<()> {
    let method = ExtendConfig::DualChunk(DualChunkConfig { chunk: 12, local: 3 });
    check("dual-chunk-chunk12-local3", Some(method), None)?;
    check("dual-chunk", Some(ExtendConfig::new("dual-chunk", TRAINED, 1000)?), None)
}

#[test]
fn string() -> Result<()> {
    let method = ExtendConfig::StringShift(StringShiftConfig { shift: 11, local: 4 });
    check("string-shift11-local4", Some(method), None)
}

#[test]
fn windows_with_first_keys() -> Result<()> {
    let method = ExtendConfig::LmInfinite(LmInfiniteConfig { first: 3, window: 10 });
    check("lm-infinite-sinks3-window10", Some(method), None)?;
    let method = ExtendConfig::Streaming(StreamingConfig { first: 3, window: 10 });
    check("streaming-sinks3-window10", Some(method), None)
}

#[test]
fn log_n() -> Result<()> {
    check("log-n", None, Some(Temperature::LogN { trained_context: TRAINED }))
}

//! Caches of every type in whole models: they take the memory that is estimated, tokens one at a time give the same as
//! a prompt in one pass, and scoring goes through them.

mod common;

use attn_core::{CacheType, CacheTypes};
use attn_models::memory::Workload;
use attn_models::spec::MlpSpec;
use attn_models::{Architecture, Model, Options, RopeLength, Session};
use candle_core::{DType, Device, Tensor};
use loader::{Checkpoint, LoadOptions};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

const TOKENS: usize = 24;

/// The golden models and the embedded ones, whose heads are whole blocks.
fn folders() -> Vec<PathBuf> {
    let read = |folder: PathBuf| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let embedded = read(common::root().join("../../../crates/attn-cli/models")).filter(|path| path.is_dir());
    let mut all: Vec<_> = read(common::root()).chain(embedded).collect();
    all.sort();
    all
}

fn open(folder: &Path) -> Model {
    let options = LoadOptions { quiet: true, ..LoadOptions::default() };
    let checkpoint = Checkpoint::open(&folder.to_string_lossy(), &options).unwrap();
    Model::load(&checkpoint.config, checkpoint.weights, &Options::default()).unwrap()
}

fn ids(model: &Model) -> Tensor {
    let ids = (0..TOKENS).map(|i| (i * 7919 % model.vocab_size()) as u32).collect::<Vec<_>>();
    Tensor::from_vec(ids, (1, TOKENS), &Device::Cpu).unwrap()
}

fn session(model: &Model) -> Session {
    Session::new(model, RopeLength::Declared(TOKENS), None).unwrap()
}

fn all_types() -> Vec<CacheTypes> {
    let mixed =
        [(CacheType::F16, CacheType::BF16), (CacheType::Q8_0, CacheType::F16), (CacheType::Q8_0, CacheType::Q4_0)];
    let mixed = mixed.map(|(k, v)| CacheTypes { k: Some(k), v: Some(v) });
    CacheType::ALL.map(CacheTypes::both).into_iter().chain(mixed).collect()
}

/// The largest error that rounding may cause, relative to the largest logit. It is twice the error of one rounding, because a
/// number between two codes may become either of them when sums are added up in another order.
fn tolerance(types: CacheTypes) -> f32 {
    let of = |kind: CacheType| match kind {
        CacheType::F32 => 1e-4,
        CacheType::F16 => 5e-3,
        CacheType::BF16 => 3e-2,
        CacheType::Q8_0 => 3e-2,
        _ => 0.3,
    };
    [types.k, types.v].into_iter().flatten().map(of).fold(0.0, f32::max)
}

#[test]
fn every_decoder_runs_with_every_type_that_fits_it_and_refuses_the_others_by_name() {
    let (mut ran, mut refused, mut wrong) = (0, 0, vec![]);
    for folder in folders() {
        let plain = open(&folder);
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        for types in all_types() {
            let model = match plain.with_cache_types(types) {
                Ok(model) => model,
                Err(error) => {
                    assert!(error.to_string().contains("cache type"), "{name}, {types:?}: {error}");
                    refused += 1;
                    continue;
                }
            };
            if model.architecture() == Architecture::Decoder {
                if catch_unwind(AssertUnwindSafe(|| check(&name, &plain, &model, types))).is_err() {
                    wrong.push(format!("{name}, {types:?}"));
                }
                ran += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(ran > 100 && refused > 10, "{ran} ran, {refused} were refused");
}

fn check(name: &str, plain: &Model, model: &Model, types: CacheTypes) {
    let ids = ids(model);
    let mut once = session(model);
    let whole = once.feed_all(&ids).unwrap();
    let work = Workload { rows: 1, pass: TOKENS, cached: TOKENS, ..Workload::default() };
    let estimate = model.spec().memory(&work, model.dtype(), types).cache;
    // The estimate of a layer with a window is twice the window, even if the text is shorter.
    assert!(once.cache_bytes() as u64 <= estimate, "{name}, {types:?}: {} bytes", once.cache_bytes());
    let unbounded = model.spec().cache_bytes_per_token(model.dtype(), types) * TOKENS as u64;
    if estimate == unbounded {
        assert_eq!(once.cache_bytes() as u64, estimate, "{name}, {types:?}");
    }

    let mut steps = session(model);
    let blocks = [7, 1, 1, 1, 6, 8].into_iter().scan(0, |at, n| {
        *at += n;
        Some((*at - n, n))
    });
    let parts: Vec<_> = blocks.map(|(at, n)| steps.feed_all(&ids.narrow(1, at, n).unwrap()).unwrap()).collect();
    let largest = whole.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let off = common::difference(&whole, &Tensor::cat(&parts, 1).unwrap()) / largest;
    assert!(off <= tolerance(types), "{name}, {types:?}: decoding is {off:e} off the prompt");

    // Scoring a whole window goes through a cache too, and so rounds in the same way.
    let scored = model.logits(&ids, TOKENS).unwrap();
    assert_eq!(common::difference(&scored, &whole), 0.0, "{name}, {types:?}: scored otherwise than generated");
    let exact = plain.logits(&ids, TOKENS).unwrap();
    let off = common::difference(&scored, &exact) / largest;
    if types == CacheTypes::both(CacheType::F32) {
        assert_eq!(off, 0.0, "{name}: f32 in a cache of f32");
    } else {
        // A small difference may make a router choose another expert for a token.
        let little = off <= 2.0 * tolerance(types) || has_experts(plain);
        assert!(off > 0.0 && little, "{name}, {types:?}: {off:e} off the exact result");
    }
}

fn has_experts(model: &Model) -> bool {
    model.spec().stack.layers.iter().any(|layer| matches!(layer.mlp, MlpSpec::Moe(_)))
}

#[test]
fn a_model_in_bf16_loses_nothing_in_wider_caches() {
    let folder = common::root().join("../../../crates/attn-cli/models/tiny-austen");
    let options = LoadOptions { quiet: true, ..LoadOptions::default() };
    let checkpoint = Checkpoint::open(&folder.to_string_lossy(), &options).unwrap();
    let options = Options { dtype: DType::BF16, ..Options::default() };
    let plain = Model::load(&checkpoint.config, checkpoint.weights, &options).unwrap();
    let ids = ids(&plain);
    let exact = session(&plain).feed_all(&ids).unwrap();
    for kind in [CacheType::F32, CacheType::F16] {
        let wide = session(&plain.with_cache_types(CacheTypes::both(kind)).unwrap()).feed_all(&ids).unwrap();
        let largest = exact.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        // f16 loses only numbers that are smaller than its smallest.
        assert!(common::difference(&wide, &exact) <= 1e-2 * largest, "{kind}");
    }
}

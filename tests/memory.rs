//! Compares the estimated memory of a run with what the allocator sees, for every family.
//!
//! There is only one test in this file, because the allocator counts for the whole process.

mod common;

use attn_models::memory::Workload;
use attn_models::{Architecture, Model, Options, RopeLength, Session};
use candle_core::{DType, Device, Tensor};
use loader::{Checkpoint, LoadOptions};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The system's allocator, with a count of the bytes that are allocated.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grown(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(live, Relaxed);
}

// SAFETY: every call is passed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller promises what the system's allocator requires.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that were live during `run`, beyond those before it.
fn peak<T>(run: impl FnOnce() -> T) -> u64 {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = run();
    let peak = PEAK.load(Relaxed).saturating_sub(before) as u64;
    drop(result);
    peak
}

fn ids(model: &Model, tokens: usize) -> Tensor {
    let ids = (0..tokens).map(|i| (i * 7919 % model.vocab_size()) as u32).collect::<Vec<_>>();
    Tensor::from_vec(ids, (1, tokens), &Device::Cpu).unwrap()
}

/// Estimated and measured bytes of a prompt fed into a fresh session, and of a window scored in one pass.
fn both(model: &Model, tokens: usize) -> Vec<(&'static str, u64, u64)> {
    let ids = ids(model, tokens);
    let estimate = |work: &Workload| model.spec().memory(work, model.dtype(), model.cache_types()).total();
    let one = Workload { rows: 1, pass: tokens, ..Workload::default() };
    match model.architecture() {
        Architecture::Encoder => {
            let measured = peak(|| model.hidden(&ids, tokens, None).unwrap());
            vec![("hidden", estimate(&one), measured)]
        }
        Architecture::EncoderDecoder => {
            let work = Workload { pass: 1, cached: 8, encoded: tokens, logits: 1, ..one };
            let measured = peak(|| {
                let mut session = Session::new(model, RopeLength::Declared(8), None).unwrap();
                session.encode(&ids, None).unwrap();
                session.feed(&ids.narrow(1, 0, 1).unwrap()).unwrap()
            });
            vec![("encode", estimate(&work), measured)]
        }
        Architecture::Decoder => {
            let prefill = peak(|| {
                let mut session = Session::new(model, RopeLength::Declared(tokens + 100), None).unwrap();
                (session.feed(&ids).unwrap(), session)
            });
            let nll = peak(|| model.nll(&ids, tokens).unwrap());
            let cached = Workload { cached: tokens + 100, logits: 1, ..one };
            vec![
                ("prefill", estimate(&cached), prefill),
                ("nll", estimate(&Workload { logits: tokens.min(model.logits_at_once()), ..one }), nll),
            ]
        }
    }
}

fn open(folder: &std::path::Path, dtype: DType) -> Model {
    let options = LoadOptions { quiet: true, ..LoadOptions::default() };
    let checkpoint = Checkpoint::open(&folder.to_string_lossy(), &options).unwrap();
    Model::load(&checkpoint.config, checkpoint.weights, &Options { dtype, ..Options::default() }).unwrap()
}

#[test]
fn estimates_cover_what_is_allocated_and_are_not_far_off() {
    /// Bytes that a run may allocate at any length, for the working memory of threads and products.
    const FIXED: u64 = 4 << 20;
    let mut models: Vec<_> = std::fs::read_dir(common::root()).unwrap().map(|entry| entry.unwrap().path()).collect();
    models.push(common::root().join("../../../crates/attn-cli/models/tiny-austen"));
    models.sort();
    let mut wrong = Vec::new();
    for folder in models {
        for dtype in [DType::F32, DType::BF16] {
            let model = open(&folder, dtype);
            let tokens = model.max_context().unwrap_or(3000).min(3000);
            // The first call starts threads and grows tables, which should not be measured.
            both(&model, tokens.min(50));
            for (what, estimate, measured) in both(&model, tokens) {
                let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let ratio = estimate as f64 / measured as f64;
                println!("{name:20} {dtype:?} {what:8} {tokens:5} {estimate:>11} {measured:>11} {ratio:.2}");
                let short = estimate + FIXED < measured;
                // At short contexts the fixed part hides the cost of a token.
                let far = tokens >= 1000 && estimate > 4 * measured + FIXED;
                if short || far {
                    wrong.push(format!("{name} {dtype:?} {what}: {estimate} estimated, {measured} allocated"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

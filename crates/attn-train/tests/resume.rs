//! A run that stops and resumes is the run that did not stop, bit for bit.

use attn_eval::perplexity::{ScoreOptions, score};
use attn_eval::windows::WindowOptions;
use attn_train::adamw::AdamW;
use attn_train::checkpoint::Log;
use attn_train::shape::{Position, Shape};
use attn_train::{Error, Settings, Step, Trainer, bpe};
use std::path::Path;

const TEXT: &str = include_str!("../../attn-cli/models/sample.txt");

fn shape(position: Position) -> Shape {
    Shape { position, vocab: 320, context: 24, hidden: 32, intermediate: 48, layers: 2, heads: 4, kv_heads: 2 }
}

fn settings(shape: &Shape, dtype: &str) -> Settings {
    Settings {
        seed: 5,
        steps: 8,
        batch: 3,
        accumulate: 2,
        context: shape.context,
        learning_rate: 1e-2,
        warmup: 2,
        clip: 1.0,
        adamw: AdamW::default(),
        dtype: dtype.into(),
        data: String::new(),
        config: shape.config().unwrap(),
        allow_unknown_config_keys: false,
    }
}

fn trainer(position: Position, dtype: &str) -> (Trainer, String) {
    let tokenizer = bpe::train([TEXT].into_iter(), 320, u64::MAX).unwrap();
    let ids = tokenizer.encode(TEXT, false).unwrap().get_ids().to_vec();
    let shape = shape(position);
    let trainer = Trainer::new(settings(&shape, dtype), shape.weights(5).unwrap(), ids).unwrap();
    (trainer, tokenizer.to_string(false).unwrap())
}

fn run(trainer: &mut Trainer, until: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    while trainer.done() < until {
        steps.push(trainer.step().unwrap());
    }
    steps
}

fn losses(steps: &[Step]) -> Vec<(f64, f64)> {
    steps.iter().map(|s| (s.loss, s.grad_norm)).collect()
}

/// Shards, and the order in which they are added, are the same for every number of threads, so every bit of the result is too.
#[test]
fn threads_change_nothing() {
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| losses(&run(&mut trainer(Position::ROPE, "f32").0, 3)))
    };
    let one = on(1);
    assert!([2, 3, 5, 16].map(on).iter().all(|other| *other == one));
}

#[test]
fn every_encoding_learns_and_every_weight_has_a_gradient() {
    for position in Position::all() {
        // `step` fails if a weight, the tables of positions included, got no gradient.
        let steps = run(&mut trainer(position, "f32").0, 8);
        assert!(steps[7].loss < steps[0].loss - 0.3, "{position}: {:?}", losses(&steps));
    }
}

/// The loss on held-out text is that of the evaluation, and measuring it changes nothing of the run.
#[test]
fn held_out_text_is_measured_as_the_evaluation_does() {
    let (mut measured, _) = trainer(Position::ROPE, "f32");
    let held_out: Vec<u32> = (0..100).map(|i| i * 7 % 320).collect();
    let mut steps = run(&mut measured, 2);
    let loss = measured.held_out_loss(&held_out).unwrap();
    let windows = WindowOptions { context: 24, stride: None, bos: None };
    let options = ScoreOptions { windows, length: None };
    let scores = score(&measured.model().unwrap(), &held_out[..96], &options, &mut |_| ()).unwrap();
    let (sum, tokens) = scores.windows.iter().fold((0.0, 0), |(sum, n), w| (sum + w.sum, n + w.tokens));
    assert!((loss - sum / tokens as f64).abs() < 1e-6 && tokens == 4 * 23, "{loss}, {sum} of {tokens}");
    steps.extend(run(&mut measured, 4));
    assert_eq!(losses(&steps), losses(&run(&mut trainer(Position::ROPE, "f32").0, 4)));
    assert!(measured.held_out_loss(&held_out[..23]).unwrap_err().to_string().contains("23 tokens"));
}

#[test]
fn bf16_follows_f32() {
    let (full, half) = (run(&mut trainer(Position::ROPE, "f32").0, 8), run(&mut trainer(Position::ROPE, "bf16").0, 8));
    for (a, b) in full.iter().zip(&half) {
        assert!((a.loss - b.loss).abs() < 0.05, "{} and {}", a.loss, b.loss);
    }
}

#[test]
fn resuming_gives_bit_equal_losses_and_weights() {
    let out = tempfile::tempdir().unwrap();
    let (mut whole, tokenizer) = trainer("t5".parse().unwrap(), "f32");
    let expected = losses(&run(&mut whole, 8));

    let (mut first, _) = trainer("t5".parse().unwrap(), "f32");
    run(&mut first, 3);
    first.save(out.path(), &tokenizer).unwrap();
    run(&mut first, 5);
    first.save(out.path(), &tokenizer).unwrap();
    run(&mut first, 6); // This step is not saved.

    let (mut second, _) = trainer("t5".parse().unwrap(), "f32");
    assert!(second.resume(out.path()).unwrap());
    assert_eq!(second.done(), 5);
    assert_eq!(losses(&run(&mut second, 8)), expected[5..]);
    let model = |t: &Trainer, name: &str| {
        let folder = out.path().join(name);
        t.export(&folder, &tokenizer, candle_core::DType::F32).unwrap();
        std::fs::read(folder.join("model.safetensors")).unwrap()
    };
    let tensors = |bytes: &[u8]| {
        let all = candle_core::safetensors::load_buffer(bytes, &candle_core::Device::Cpu).unwrap();
        let mut all: Vec<_> =
            all.into_iter().map(|(name, t)| (name, t.flatten_all().unwrap().to_vec1::<f32>().unwrap())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    assert_eq!(tensors(&model(&whole, "a")), tensors(&model(&second, "b")));
}

#[test]
fn other_settings_are_refused_by_name_and_partial_checkpoints_ignored() {
    let out = tempfile::tempdir().unwrap();
    let (mut first, tokenizer) = trainer(Position::ROPE, "f32");
    assert!(!first.resume(out.path()).unwrap(), "nothing to resume");
    run(&mut first, 1);
    first.save(out.path(), &tokenizer).unwrap();
    std::fs::create_dir(out.path().join(".checkpoint-0000009.partial")).unwrap();

    let (mut other, _) = trainer("alibi".parse().unwrap(), "f32");
    let error = other.resume(out.path()).unwrap_err();
    assert!(matches!(&error, Error::OtherSettings { setting, .. } if setting == "config"), "{error}");
    assert!(error.to_string().contains("another config"), "{error}");
    let (mut same, _) = trainer(Position::ROPE, "f32");
    assert!(same.resume(out.path()).unwrap());
    assert_eq!(same.done(), 1);
}

#[test]
fn old_checkpoints_go_and_the_log_forgets_lost_steps() {
    let out = tempfile::tempdir().unwrap();
    let (mut trainer, tokenizer) = trainer("none".parse().unwrap(), "f32");
    let mut log = Log::open(out.path(), 0).unwrap();
    for _ in 0..4 {
        log.add(&trainer.step().unwrap()).unwrap();
        trainer.save(out.path(), &tokenizer).unwrap();
    }
    let there = |n: usize| Path::exists(&out.path().join(format!("checkpoint-{n:07}")));
    assert_eq!([1, 2, 3, 4].map(there), [false, false, true, true]);
    std::fs::write(out.path().join("train.jsonl"), {
        let mut text = std::fs::read_to_string(out.path().join("train.jsonl")).unwrap();
        text.push_str("{\"step\": 5, \"lo");
        text
    })
    .unwrap();
    assert_eq!(Log::open(out.path(), 3).unwrap().steps().len(), 3);
}

/// A bit that flipped in any file of a checkpoint is found, and the tensor or file named.
#[test]
fn a_damaged_checkpoint_is_refused_by_tensor() {
    let out = tempfile::tempdir().unwrap();
    let (mut trainer_, tokenizer) = trainer(Position::ROPE, "f32");
    run(&mut trainer_, 1);
    let folder = trainer_.save(out.path(), &tokenizer).unwrap();
    for (file, part) in
        [("model.safetensors", "tensor "), ("optimizer.safetensors", "tensor "), ("trainer.json", "trainer.json")]
    {
        let path = folder.join(file);
        let whole = std::fs::read(&path).unwrap();
        // The last bytes of a file of tensors are numbers; of trainer.json, the settings.
        for at in [whole.len() - 3, whole.len() - 20, whole.len() / 2, whole.len() / 3] {
            let mut flipped = whole.clone();
            flipped[at] ^= 4;
            std::fs::write(&path, flipped).unwrap();
            let error = trainer(Position::ROPE, "f32").0.resume(out.path()).unwrap_err();
            let named = match &error {
                Error::Damaged { path, .. } | Error::Checkpoint { path, .. } => path == &folder.join(file),
                _ => false,
            };
            assert!(named && error.to_string().contains(part), "{file} at {at}: {error}");
        }
        std::fs::write(&path, whole).unwrap();
    }
    assert!(trainer(Position::ROPE, "f32").0.resume(out.path()).unwrap());
}

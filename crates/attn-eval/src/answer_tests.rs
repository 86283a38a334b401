use super::*;
use attn_core::{PositionOverride, RopeOverride};
use attn_models::Options;
use candle_core::DType;
use loader::{Checkpoint, LoadOptions};
use std::path::Path;

fn open(options: &Options) -> (Model, Tokenizer) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-austen");
    let checkpoint =
        Checkpoint::open(&folder.to_string_lossy(), &LoadOptions { quiet: true, ..Default::default() }).unwrap();
    let model = Model::load(&checkpoint.config, checkpoint.weights.clone(), options).unwrap();
    (model, checkpoint.require_tokenizer().unwrap().clone())
}

/// Log-probability and greediness by the logits of the whole sequence at once.
fn by_logits(model: &Model, context: &[u32], continuation: &[u32]) -> (f64, bool) {
    let all = [context, continuation].concat();
    let ids = Tensor::new(&all[..all.len() - 1], model.device()).unwrap().unsqueeze(0).unwrap();
    let logits = model.logits(&ids, all.len() - 1).unwrap().squeeze(0).unwrap().to_dtype(DType::F64).unwrap();
    let rows: Vec<Vec<f64>> = logits.to_vec2().unwrap();
    let (mut sum, mut greedy) = (0.0, true);
    for (row, &wanted) in rows[context.len() - 1..].iter().zip(continuation) {
        let total: f64 = row.iter().map(|x| x.exp()).sum();
        sum += row[wanted as usize] - total.ln();
        greedy &= row.iter().all(|x| *x <= row[wanted as usize]);
    }
    (sum, greedy)
}

#[test]
fn likelihoods_are_those_of_the_logits_whatever_was_asked_before() {
    let (model, tokenizer) = open(&Options::default());
    let encode = |text: &str| tokenizer.encode(text, false).unwrap();
    let context = encode("It is a truth universally acknowledged, that a single man in possession of");
    let mut answerer = Answerer::new(&model, 256, None).unwrap();
    let mut greedy = 0;
    let best =
        model.logits(&Tensor::new(context.as_slice(), model.device()).unwrap().unsqueeze(0).unwrap(), 256).unwrap();
    let best: Vec<f32> = best.squeeze(0).unwrap().get(context.len() - 1).unwrap().to_vec1().unwrap();
    let best = (0..best.len()).max_by(|&a, &b| best[a].total_cmp(&best[b])).unwrap() as u32;
    for continuation in [encode(" a good fortune"), encode(" want"), vec![best], encode(" a good wife, and a house")] {
        // After that a shorter context, and one that differs from the middle on.
        for context in [&context[..], &context[..7], &[&context[..4], &continuation[..]].concat()] {
            let found = answerer.likelihood(context, &continuation).unwrap();
            let (logprob, is_greedy) = by_logits(&model, context, &continuation);
            assert!((found.logprob - logprob).abs() < 1e-4, "{} {logprob}", found.logprob);
            assert_eq!((found.is_greedy, found.tokens, found.left_out), (is_greedy, continuation.len(), 0));
            greedy += usize::from(is_greedy);
        }
    }
    assert!(greedy > 0, "the most likely token is among them");
    // What does not fit is left out at the beginning.
    let mut short = Answerer::new(&model, 8, None).unwrap();
    let continuation = encode(" a good");
    let found = short.likelihood(&context, &continuation).unwrap();
    let kept = &context[context.len() - (9 - continuation.len())..];
    assert_eq!(found.left_out, context.len() - kept.len());
    assert!((found.logprob - by_logits(&model, kept, &continuation).0).abs() < 1e-4);
    let refused = |found: Result<Likelihood>, part: &str| {
        let error = found.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(short.likelihood(&[], &continuation), "nothing before");
    refused(short.likelihood(&context, &[]), "no tokens");
    refused(short.likelihood(&context, &context), "the model reads 8");
}

/// Frequencies that depend on the length are those of each sequence, and nothing is kept from another one.
#[test]
fn a_dynamic_scaling_answers_as_it_would_alone() {
    let (plain, tokenizer) = open(&Options::default());
    let (scaling, factor, original_context) = (Some("dynamic".to_string()), Some(4.0), Some(8));
    let rope = RopeOverride { scaling, factor, original_context, ..RopeOverride::default() };
    let model = plain.with_positions(&PositionOverride { rope, ..PositionOverride::default() }).unwrap();
    let encode = |text: &str| tokenizer.encode(text, false).unwrap();
    let context = encode("It is a truth universally acknowledged, that a single man in possession of");
    let mut answerer = Answerer::new(&model, 64, None).unwrap();
    for continuation in [encode(" a good fortune must be"), encode(" a good")] {
        let found = answerer.likelihood(&context, &continuation).unwrap();
        assert!((found.logprob - by_logits(&model, &context, &continuation).0).abs() < 1e-4);
    }
    let declared = Answerer::new(&model, 64, Some(64)).unwrap().likelihood(&context, &encode(" a good")).unwrap();
    let own = answerer.likelihood(&context, &encode(" a good")).unwrap();
    assert!((declared.logprob - own.logprob).abs() > 1e-3);
}

#[test]
fn continuations_end_where_they_are_told_to() {
    let (model, tokenizer) = open(&Options::default());
    let prompt = tokenizer.encode("She was not", false).unwrap();
    let mut answerer = Answerer::new(&model, 64, None).unwrap();
    let mut ask = |prompt: &[u32], most, ends: &[u32], stop: &[&str]| {
        let stop: Vec<String> = stop.iter().map(ToString::to_string).collect();
        answerer.continuation(&tokenizer, prompt, most, (ends, &stop), SampleOptions::default())
    };
    let whole = ask(&prompt, 24, &[], &[]).unwrap();
    assert_eq!((whole.tokens, whole.stopped, whole.left_out), (24, false, 0));
    let word = whole.text.split_whitespace().nth(3).unwrap().to_string();
    let cut = ask(&prompt, 24, &[], &["never said", &word]).unwrap();
    assert_eq!(cut.text, whole.text[..whole.text.find(&word).unwrap()]);
    assert!(cut.stopped && cut.tokens < 24);
    // Every token ends this one.
    let every: Vec<u32> = (0..tokenizer.vocab_size() as u32).collect();
    let ended = ask(&prompt, 24, &every, &[]).unwrap();
    assert!(ended.stopped && ended.tokens == 1 && ended.text.is_empty(), "{ended:?}");
    // The same request gives the same answer after others.
    assert_eq!(ask(&prompt, 24, &[], &[]).unwrap(), whole);
    let long: Vec<u32> = prompt.iter().cycle().take(100).copied().collect();
    assert_eq!(ask(&long, 24, &[], &[]).unwrap().left_out, 100 + 24 - 64);
    assert!(ask(&prompt, 64, &[], &[]).unwrap_err().to_string().contains("leave no room"));
    assert!(ask(&[], 4, &[], &[]).unwrap_err().to_string().contains("empty"));
}

#[test]
fn a_text_is_split_as_the_harness_does() {
    let (_, tokenizer) = open(&Options::default());
    let encode = |text: &str, special: bool| -> Result<Vec<u32>> { Ok(tokenizer.encode(text, special)?) };
    let ids = |text: &str| tokenizer.encode(text, false).unwrap();
    // Spaces at the end of the context go over to the continuation.
    for (context, continuation) in [("She was", " not"), ("She was ", "not"), ("She was \n", "not")] {
        let (before, after) = split(context, continuation, None, encode).unwrap();
        assert_eq!(before, ids("She was"));
        assert_eq!([before, after].concat(), ids(&format!("{context}{continuation}")));
    }
    assert_eq!(split("", "not", Some(3), encode).unwrap(), (vec![3], ids("not")));
    let first = ids("not")[0];
    assert_eq!(split("", "not", Some(first), encode).unwrap(), (vec![first], ids("not")[1..].to_vec()));
    assert!(split("", "not", None, encode).unwrap_err().to_string().contains("BOS or EOS"));
}

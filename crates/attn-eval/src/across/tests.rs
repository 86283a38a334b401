use super::*;
use crate::perplexity::{ScoreOptions, score};
use crate::windows::WindowOptions;
use candle_core::{D, DType, Tensor};
use loader::{Checkpoint, LoadOptions, Tokenizer};

fn open(name: &str) -> (Model, Tokenizer) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name);
    let options = LoadOptions { quiet: true, ..Default::default() };
    let checkpoint = Checkpoint::open(&folder.to_string_lossy(), &options).unwrap();
    let model = Model::load(&checkpoint.config, checkpoint.weights.clone(), &Default::default()).unwrap();
    (model, checkpoint.require_tokenizer().unwrap().clone())
}

fn text() -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/sample.txt");
    let text = std::fs::read_to_string(path).unwrap().replace('"', "\u{201c}");
    text.chars().take(6000).collect()
}

fn plan(contexts: &[usize], modes: &[&str]) -> Plan {
    Plan::new(contexts.to_vec(), modes.iter().map(|mode| mode.parse().unwrap()).collect())
}

fn encoded(tokenizer: &Tokenizer, text: &str, bos: Option<u32>) -> Encoded {
    let ids = tokenizer.encode(text, false).unwrap();
    let ends = tokenizer.ends(&ids, text).unwrap();
    Encoded { ids, ends, bos }
}

/// With one tokenizer, windows are those that the models have alone, and bits per byte are nats per token times a constant.
#[test]
fn models_of_one_tokenizer_come_to_what_each_comes_to_alone() {
    let (text, plan) = (text(), plan(&[64], &["checkpoint"]));
    let models = ["tiny-rope", "tiny-alibi", "tiny-nope"].map(open);
    let texts: Vec<Encoded> = models.iter().map(|(_, tokenizer)| encoded(tokenizer, &text, None)).collect();
    let passages = Passages::cut(&texts, 64, None).unwrap();
    for (index, (model, _)) in models.iter().enumerate() {
        let (specs, skipped) = cells(model, (index, "m"), 1, &plan, &|_| Ok(())).unwrap();
        assert!(specs.len() == 1 && skipped.is_empty());
        let found = measure(model, &plan, &specs[0], &texts[index].ids, &passages, &mut |_| ()).unwrap();
        let options = ScoreOptions { windows: WindowOptions { context: 64, stride: None, bos: None }, length: None };
        let alone = score(model, &texts[index].ids, &options, &mut |_| ()).unwrap();
        assert_eq!(found.windows, alone.windows);
        let bytes: usize = found.bytes.iter().sum();
        let per_byte = mean(&found.by_bytes()) * bytes as f64;
        let per_token = mean(&alone.windows) * alone.windows.iter().map(|w| w.tokens).sum::<usize>() as f64;
        assert!((per_byte / per_token - 1.0).abs() < 1e-12);
    }
}

/// Bytes up to the end of every token, by decoding all tokens up to it.
fn ends_by_decoding(tokenizer: &Tokenizer, ids: &[u32], text: &str) -> Vec<usize> {
    let end = |n: usize| {
        let said = tokenizer.decode(&ids[..n], false).unwrap();
        // The tokenizer puts a space before the text.
        let said = said.strip_prefix(' ').unwrap_or(&said);
        if text.starts_with(said) { said.len() } else { usize::MAX }
    };
    (1..=ids.len()).map(end).collect()
}

/// The same figures for two tokenizers, computed in another way: places by decoding prefixes, windows one place at a time, and
/// likelihoods from the logits of every window by itself.
#[test]
fn models_of_two_tokenizers_come_to_the_bits_worked_out_anew() {
    let text = text();
    let models = ["tiny-austen", "tiny-alibi"].map(open);
    let bos = [Some(0), None];
    let texts: Vec<Encoded> =
        models.iter().zip(bos).map(|((_, tokenizer), bos)| encoded(tokenizer, &text, bos)).collect();
    assert_ne!(texts[0].ids.len(), texts[1].ids.len());
    let (context, plan) = (48, plan(&[48], &["checkpoint"]));
    let passages = Passages::cut(&texts, context, None).unwrap();

    let ends: Vec<Vec<usize>> =
        models.iter().zip(&texts).map(|((_, t), encoded)| ends_by_decoding(t, &encoded.ids, &text)).collect();
    let counts = |end: usize| -> Option<[usize; 2]> {
        let count = |m: usize| if end == 0 { Some(0) } else { Some(ends[m].iter().position(|&e| e == end)? + 1) };
        Some([count(0)?, count(1)?])
    };
    let places: Vec<(usize, [usize; 2])> = (0..=text.len()).filter_map(|end| Some((end, counts(end)?))).collect();
    let mut start = 0;
    let mut sums = [vec![], vec![]];
    let mut scored = vec![];
    loop {
        let fits = |&end: &usize| (0..2).all(|m| places[end].1[m] - places[start].1[m] <= context - [1, 0][m]);
        let end = (start..places.len()).take_while(|end| fits(end)).last().unwrap();
        if end == places.len() - 1 {
            break;
        }
        for (m, (model, _)) in models.iter().enumerate() {
            let lead: Vec<u32> = bos[m].into_iter().collect();
            let (from, to) = (places[start].1[m], places[end].1[m]);
            let row = [&lead[..], &texts[m].ids[from..to]].concat();
            let ids = Tensor::new(row.as_slice(), model.device()).unwrap().unsqueeze(0).unwrap();
            let logits = model.logits(&ids, context).unwrap().to_dtype(DType::F64).unwrap().squeeze(0).unwrap();
            let logs = logits.broadcast_sub(&logits.log_sum_exp(D::Minus1).unwrap().unsqueeze(1).unwrap()).unwrap();
            let logs: Vec<Vec<f64>> = logs.to_vec2().unwrap();
            let first = places[start + 1].1[m] - from + lead.len();
            sums[m].push((first..row.len()).map(|p| -logs[p - 1][row[p] as usize]).sum::<f64>());
        }
        scored.push(places[start + 1].0..places[end].0);
        start = end;
    }
    assert!(scored.len() > 10);
    assert_eq!(passages.scored, scored);
    // Some windows of both are shorter than the context, and none is longer.
    let lengths: Vec<usize> = passages.windows[1].windows().iter().map(|window| window.text.len()).collect();
    assert!(lengths.iter().any(|&n| n < context) && lengths.iter().all(|&n| n <= context));
    for (m, (model, _)) in models.iter().enumerate() {
        let plan = Plan { bos: bos[m], ..plan.clone() };
        let (specs, _) = cells(model, (m, "m"), 1, &plan, &|_| Ok(())).unwrap();
        let found = measure(model, &plan, &specs[0], &texts[m].ids, &passages, &mut |_| ()).unwrap();
        let bytes: usize = scored.iter().map(std::ops::Range::len).sum();
        let bits = sums[m].iter().sum::<f64>() / bytes as f64 / std::f64::consts::LN_2;
        assert!((mean(&found.by_bytes()) * BITS / bits - 1.0).abs() < 1e-6);
        for (window, sum) in found.windows.iter().zip(&sums[m]) {
            assert!((window.sum / sum - 1.0).abs() < 1e-5, "{} {sum}", window.sum);
        }
    }
}

#[test]
fn modes_that_a_model_does_not_take_are_left_out_by_name() {
    let (rope, _) = open("tiny-rope");
    let (alibi, _) = open("tiny-alibi");
    let asked = plan(&[512], &["checkpoint", "none", "yarn"]);
    assert_eq!(modes_of(&rope, &asked).unwrap().0, asked.modes);
    let (takes, others) = modes_of(&alibi, &asked).unwrap();
    // `none` applies to a model without rotation too.
    assert_eq!((takes.len(), others.len()), (2, 1));
    assert!(others[0].contains("yarn") && others[0].contains("rotary"), "{others:?}");
    let error = modes_of(&alibi, &plan(&[512], &["yarn"])).unwrap_err().to_string();
    assert!(error.contains("none of the modes") && error.contains("add checkpoint"), "{error}");
    // Two scalings of the trained length are one computation.
    let within = plan(&[64], &["none", "yarn"]);
    let (specs, _) = cells(&rope, (0, "rope"), 2, &within, &|_| Ok(())).unwrap();
    assert_eq!(specs.len(), 4);
    assert!(!specs[1].is_measured() && specs[1].is_twin_of(&specs[0]) && !specs[1].is_twin_of(&specs[2]));
    // A context with no room for it is skipped, with the model's name.
    let full = |context: usize| if context > 64 { Err("no memory".to_string()) } else { Ok(()) };
    let (specs, skipped) = cells(&rope, (0, "rope"), 1, &plan(&[64, 128], &["none"]), &full).unwrap();
    assert_eq!((specs.len(), skipped[0].context, skipped[0].task.as_deref()), (1, 128, Some("rope")));
}

#[test]
fn measurements_that_can_not_be_are_refused_and_other_bytes_are_not_compared() {
    let about = crate::report::tests_of_models();
    let spec = ModelSpec {
        model: 1,
        row: "b, none".into(),
        text: 0,
        context: 256,
        mode: "none".into(),
        factor: 1.0,
        same_as: None,
    };
    let window = WindowNll { sum: 100.0, squares: 1.0, tokens: 100, ..WindowNll::default() };
    let good = PassageScores { windows: vec![window; 8], bytes: vec![500; 8], seconds: 1.0 };
    spec.check(&good, &about).unwrap();
    type Edit = fn(&mut PassageScores);
    let edits: [Edit; 6] = [
        |s| s.bytes.truncate(7),
        |s| s.bytes[0] = 501,
        |s| s.bytes[0] = 0,
        |s| s.windows[0].tokens = 257,
        |s| s.windows[0].sum = f64::NAN,
        |s| s.windows.iter_mut().for_each(|w| w.tokens = 120),
    ];
    for (index, edit) in edits.into_iter().enumerate() {
        let mut bad = good.clone();
        edit(&mut bad);
        assert!(spec.check(&bad, &about).is_err(), "{index}");
    }
    assert!(ModelSpec { model: 2, ..spec.clone() }.check(&good, &about).is_err());
    let first = ModelSpec { model: 0, row: "a, none".into(), ..spec.clone() };
    let other = PassageScores { bytes: vec![499; 8], ..good.clone() };
    let specs = [first, spec];
    let error = summarise(&specs, &[Some(good.clone()), Some(other)], &about).unwrap_err().to_string();
    assert!(error.contains("other bytes"), "{error}");
    let error = summarise(&specs, &[Some(good), None], &about).unwrap_err().to_string();
    assert!(error.contains("b, none at 256 has not been measured"), "{error}");
}

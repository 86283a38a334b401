//! Left-padded prompts of different lengths give what each gives alone, for every kind of position encoding.

mod common;

use attn_models::{Model, RopeLength, Session};
use candle_core::{Device, IndexOp, Tensor};
use common::{difference, ids_of, load};

const NEW: usize = 12;

fn greedy(session: &mut Session, prompt: &Tensor) -> (Tensor, Vec<Vec<u32>>) {
    let mut logits = session.feed(prompt).unwrap();
    let (first, mut steps) = (logits.clone(), Vec::new());
    for _ in 0..NEW {
        let next = Model::greedy(&logits).unwrap();
        steps.push(next.flatten_all().unwrap().to_vec1().unwrap());
        logits = session.feed(&next).unwrap();
    }
    (first, steps)
}

fn check(name: &str) {
    let golden = load(name).unwrap();
    let ids = ids_of(&golden, "input_ids").i(0).unwrap();
    let lengths = [14, 9, 14, 3];
    let (width, total) = (14, 14 + NEW);
    let rows = lengths.iter().enumerate().map(|(row, &n)| {
        let real = ids.narrow(0, 2 * row, n).unwrap();
        let padding = Tensor::zeros(width - n, real.dtype(), &Device::Cpu).unwrap();
        Tensor::cat(&[&padding, &real], 0).unwrap()
    });
    let batch = Tensor::stack(&rows.collect::<Vec<_>>(), 0).unwrap();
    let pads = lengths.iter().map(|n| width - n).collect();
    let mut session = Session::new(&golden.model, RopeLength::Declared(total), Some(pads)).unwrap();
    let (batched, tokens) = greedy(&mut session, &batch);
    for (row, &n) in lengths.iter().enumerate() {
        let alone = ids.narrow(0, 2 * row, n).unwrap().unsqueeze(0).unwrap();
        let mut session = Session::new(&golden.model, RopeLength::Declared(total), None).unwrap();
        let (first, single) = greedy(&mut session, &alone);
        let diff = difference(&batched.narrow(0, row, 1).unwrap(), &first);
        assert!(diff < 1e-4, "{name}: row {row} differs by {diff}");
        let batched: Vec<u32> = tokens.iter().map(|step| step[row]).collect();
        assert_eq!(batched, single.concat(), "{name}: row {row}");
    }
}

#[test]
fn rope() {
    ["llama", "llama-dynamic", "llama-yarn", "phi", "gptj-interleaved", "mistral-window"].into_iter().for_each(check);
}

#[test]
fn linear_bias() {
    ["bloom", "bloom-6-heads", "mpt", "falcon-alibi"].into_iter().for_each(check);
}

#[test]
fn learned() {
    check("gpt2");
}

#[test]
fn no_position_and_temperature() {
    ["smollm3-nope", "llama4-irope"].into_iter().for_each(check);
}

#[test]
fn latent() {
    check("deepseek-v3");
}

/// T5's relative bias: the encoder's prompts are padded on the right, the decoder starts alike in every row.
#[test]
fn relative_bias() {
    let golden = load("t5").unwrap();
    let ids = ids_of(&golden, "input_ids").i(0).unwrap();
    let lengths = [24, 11, 5];
    let rows = lengths.map(|n| {
        let padding = Tensor::zeros(24 - n, ids.dtype(), &Device::Cpu).unwrap();
        Tensor::cat(&[&ids.narrow(0, 0, n).unwrap(), &padding], 0).unwrap()
    });
    let start = Tensor::zeros((3, 1), ids.dtype(), &Device::Cpu).unwrap();
    let mut session = Session::new(&golden.model, RopeLength::Exact, None).unwrap();
    session.encode(&Tensor::stack(&rows, 0).unwrap(), Some(lengths.to_vec())).unwrap();
    let (batched, tokens) = greedy(&mut session, &start);
    for (row, n) in lengths.into_iter().enumerate() {
        let mut session = Session::new(&golden.model, RopeLength::Exact, None).unwrap();
        session.encode(&ids.narrow(0, 0, n).unwrap().unsqueeze(0).unwrap(), None).unwrap();
        let (first, single) = greedy(&mut session, &start.narrow(0, 0, 1).unwrap());
        let diff = difference(&batched.narrow(0, row, 1).unwrap(), &first);
        assert!(diff < 1e-4, "row {row} differs by {diff}");
        assert_eq!(tokens.iter().map(|step| step[row]).collect::<Vec<_>>(), single.concat(), "row {row}");
    }
}

/// BERT's padding is on the right and hidden from every query.
#[test]
fn encoder() {
    let golden = load("bert").unwrap();
    let ids = ids_of(&golden, "input_ids").narrow(0, 0, 1).unwrap();
    let padded = golden.model.hidden(&ids, 24, Some(vec![10].into())).unwrap();
    let alone = golden.model.hidden(&ids.narrow(1, 0, 10).unwrap(), 10, None).unwrap();
    let diff = difference(&padded.narrow(1, 0, 10).unwrap(), &alone);
    assert!(diff < 1e-4, "differs by {diff}");
}

/// A session that went back to an earlier token continues as one that never went further.
#[test]
fn a_rewound_session_is_as_good_as_a_new_one() {
    for (name, length) in [("llama", RopeLength::Declared(24)), ("llama-dynamic", RopeLength::Exact)] {
        let golden = load(name).unwrap();
        let ids = ids_of(&golden, "input_ids").narrow(0, 0, 1).unwrap();
        let feed =
            |session: &mut Session, from: usize, n: usize| session.feed(&ids.narrow(1, from, n).unwrap()).unwrap();
        let mut session = Session::new(&golden.model, length, None).unwrap();
        feed(&mut session, 0, 9);
        feed(&mut session, 3, 12);
        session.truncate(9).unwrap();
        assert_eq!(session.len(), 9);
        let rewound = feed(&mut session, 9, 11);
        let mut new = Session::new(&golden.model, length, None).unwrap();
        let difference = difference(&rewound, &feed(&mut new, 0, 20));
        assert!(difference < 1e-4, "{name}: differs by {difference}");
        session.truncate(0).unwrap();
        assert!(session.is_empty());
        feed(&mut session, 5, 2);
    }
}

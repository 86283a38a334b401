use super::*;
use crate::perplexity::Label;
use crate::stats::mean;

/// A "model" under which the token with id `i` costs `i` nats, whatever comes before.
fn by_id(batch: &[Vec<u32>], n: usize, _: usize) -> candle_core::Result<Vec<Vec<f32>>> {
    Ok(batch.iter().map(|row| row[row.len() - n..].iter().map(|&id| id as f32).collect()).collect())
}

fn passes(protocol: Protocol, len: usize, context: usize, stride: usize, first: Option<u32>) -> Vec<Pass> {
    protocol.passes(len, context, stride, first).unwrap()
}

/// The ids of each pass and how many of them are scored, on a text whose token `i` has the id `i`.
fn shown(passes: &[Pass], len: u32) -> Vec<(Vec<u32>, usize)> {
    let tokens: Vec<u32> = (0..len).collect();
    passes.iter().map(|pass| (pass.ids(&tokens), pass.scored)).collect()
}

/// llama.cpp, tools/perplexity: with `first = n_ctx / 2`, the `n_ctx - 1 - first` logits from there on are each compared with the
/// token after them; a BOS token replaces the first token of a window.
#[test]
fn llama_cpp_scores_the_second_half_and_replaces_the_first_token_by_bos() {
    let plain = passes(Protocol::LlamaCpp, 13, 6, 6, None);
    assert_eq!(shown(&plain, 13), [(vec![0, 1, 2, 3, 4, 5], 2), (vec![6, 7, 8, 9, 10, 11], 2)]);
    let with_bos = passes(Protocol::LlamaCpp, 13, 6, 6, Some(99));
    assert_eq!(shown(&with_bos, 13), [(vec![99, 1, 2, 3, 4, 5], 2), (vec![99, 7, 8, 9, 10, 11], 2)]);
    assert!(with_bos.iter().all(|pass| pass.length == 6 && pass.counts == 2));
    let odd = passes(Protocol::LlamaCpp, 7, 7, 7, None);
    assert_eq!(shown(&odd, 7), [((0..7).collect(), 3)]);
}

/// The recipe by hand: windows 0..4, 2..6, 4..8, 6..9, of which 4, 2, 2 and 1 tokens are new. The first window loses its first
/// token to the shift; the others score all their new tokens, and count for one less.
#[test]
fn the_strided_recipe_is_off_by_one_as_it_is() {
    let found = passes(Protocol::Stride, 9, 4, 2, None);
    assert_eq!(shown(&found, 9), [(vec![0, 1, 2, 3], 3), (vec![2, 3, 4, 5], 2), (vec![4, 5, 6, 7], 2)]);
    assert_eq!(found.iter().map(|pass| pass.counts).collect::<Vec<_>>(), [3, 1, 1]);
    let tokens: Vec<u32> = (0..9).collect();
    let scores = score_passes_with(&mut by_id, &tokens, &found, &mut |_| ()).unwrap();
    // Means 2, 4.5 and 6.5, of which the first weighs three times as much.
    assert!((mean(&scores.windows) - (3.0 * 2.0 + 4.5 + 6.5) / 5.0).abs() < 1e-12);
    // Side by side, every window loses its first token, and a last window of one token scores none.
    let disjoint = passes(Protocol::Stride, 9, 4, 4, None);
    assert_eq!(shown(&disjoint, 9), [(vec![0, 1, 2, 3], 3), (vec![4, 5, 6, 7], 3)]);
    // The last window may be shorter than the others, depending on the stride.
    let short = passes(Protocol::Stride, 10, 4, 3, None);
    assert_eq!(short.last().map(|pass| (pass.text.clone(), pass.scored, pass.length)), Some((6..10, 3, 4)));
    let shorter = passes(Protocol::Stride, 9, 4, 3, None);
    assert_eq!(shorter.last().map(|pass| (pass.text.clone(), pass.scored, pass.length)), Some((6..9, 2, 3)));
}

/// The windows of `get_rolling_token_windows` with one token of context, after `make_disjoint_window`.
#[test]
fn lm_eval_scores_every_token_once_and_fills_the_last_window_with_context() {
    let found = passes(Protocol::LmEval, 10, 4, 4, Some(99));
    let wanted = [(vec![99, 0, 1, 2, 3], 4), (vec![3, 4, 5, 6, 7], 4), (vec![5, 6, 7, 8, 9], 2)];
    assert_eq!(shown(&found, 10), wanted);
    assert!(found.iter().all(|pass| pass.length == 4));
    assert_eq!(shown(&passes(Protocol::LmEval, 3, 4, 4, Some(99)), 3), [(vec![99, 0, 1, 2], 3)]);
    assert!(passes(Protocol::LmEval, 0, 4, 4, Some(99)).is_empty());
    for (len, context) in [(1, 2), (2, 2), (3, 2), (64, 7), (65, 16)] {
        let scored: usize = passes(Protocol::LmEval, len, context, context, Some(0)).iter().map(|p| p.scored).sum();
        assert_eq!(scored, len);
    }
}

#[test]
fn passes_of_other_lengths_are_not_batched_together() {
    let tokens: Vec<u32> = (0..500).map(|i| i % 5).collect();
    for protocol in Protocol::ALL {
        let all = passes(protocol, 500, 16, if protocol == Protocol::Stride { 6 } else { 16 }, Some(1));
        let mut read = 0;
        let mut alike = |batch: &[Vec<u32>], n: usize, length: usize| {
            assert!(batch.iter().all(|row| row.len() == batch[0].len()) && n < batch[0].len() && length <= 16);
            by_id(batch, n, length)
        };
        let scores = score_passes_with(&mut alike, &tokens, &all, &mut |n| read += n).unwrap();
        assert_eq!(scores.windows.len(), all.len());
        assert_eq!(read, all.iter().map(Pass::len).sum::<usize>());
        let cell = scores.cell(&Label { mode: "none".into(), factor: 1.0, context: 16, stride: 6, seed: 0 });
        assert!(cell.nll > 1.5 && cell.nll < 2.5, "{protocol}: {}", cell.nll);
    }
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let refused = |protocol: Protocol, len, context, stride, first| {
        protocol.passes(len, context, stride, first).unwrap_err().to_string()
    };
    assert!(refused(Protocol::LlamaCpp, 10, 16, 16, None).contains("too few"));
    assert!(refused(Protocol::LlamaCpp, 10, 2, 2, None).contains("at least 3"));
    assert!(refused(Protocol::Stride, 10, 4, 5, None).contains("skips text"));
    assert!(refused(Protocol::Stride, 10, 4, 0, None).contains("never gets on"));
    assert!(refused(Protocol::Stride, 1, 4, 4, None).contains("none to score"));
    assert!(refused(Protocol::LmEval, 10, 4, 4, None).contains("BOS or EOS"));
    assert!(refused(Protocol::LmEval, 10, 1, 1, Some(0)).contains("at least 2"));
    assert!("llama".parse::<Protocol>().unwrap_err().contains("lm-eval"));
}

/// The count is that of Python's `len(re.split(r"\s+", text))`.
#[test]
fn words_are_counted_as_python_splits_them() {
    for (text, words) in
        [("", 1), ("one", 1), ("one two", 2), (" one  two\n", 4), ("a\u{a0}b\u{3000}c\u{1f}d", 4), ("a\u{200b}b", 1)]
    {
        assert_eq!(Size::of(text), Size { bytes: text.len(), words }, "{text:?}");
    }
    let mut parts = SizeCounter::default();
    ["a ", " b", "", "\n", "c"].iter().for_each(|part| parts.push(part));
    assert_eq!(parts.size(), Size::of("a  b\nc"));
    assert_eq!(Size::of("a b").and(Size::of("c")), Size { bytes: 4, words: 3 });
}

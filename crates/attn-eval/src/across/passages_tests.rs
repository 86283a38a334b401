// A list of one range is meant here, not a list of the numbers in the range.
#![allow(clippy::single_range_in_vec_init)]

use super::*;
use crate::windows::WindowOptions;

/// A text whose tokens have the given numbers of bytes; a token of 0 bytes ends within a character, which the next one completes.
fn encoded(lengths: &[usize], bos: Option<u32>) -> Encoded {
    let mut at = 0;
    let ends = lengths.iter().map(|&length| {
        at += length;
        (length > 0).then_some(at)
    });
    Encoded { ids: (0..lengths.len() as u32).collect(), ends: ends.collect(), bos }
}

fn texts(windows: &Windows) -> Vec<Range<usize>> {
    windows.windows().iter().map(|window| window.text.clone()).collect()
}

fn scored(windows: &Windows) -> Vec<Range<usize>> {
    windows.windows().iter().map(|window| window.scored.clone()).collect()
}

#[test]
fn one_tokenizer_has_the_windows_it_has_alone() {
    for (len, context, stride, bos) in [
        (11, 4, None, None),
        (12, 4, None, None),
        (9, 4, None, Some(7)),
        (20, 5, Some(4), None),
        (20, 5, Some(3), None),
        (21, 5, Some(1), None),
        (5, 5, Some(2), None),
        (97, 16, Some(7), None),
        (97, 16, Some(7), Some(1)),
        (97, 16, Some(15), Some(1)),
        (96, 16, Some(16), None),
    ] {
        let text = encoded(&vec![3; len], bos);
        let alone = Windows::new(len, &WindowOptions { context, stride, bos }).unwrap();
        let passages = Passages::cut(&[text.clone(), text], context, stride).unwrap();
        for windows in &passages.windows {
            assert_eq!(windows.windows(), alone.windows(), "{len} {context} {stride:?} {bos:?}");
            assert_eq!(windows.work(), alone.work());
        }
        let bytes: Vec<usize> = alone.windows().iter().map(|window| window.scored.len() * 3).collect();
        assert_eq!(passages.bytes(), bytes);
    }
}

/// Two tokenizers by hand:
///
/// ```text
/// bytes   0 1 2 3 4 5 6 7 8 9 10 11 12
/// first   |   |   |   |   |   |     |
/// second  |     | | |     |         |
/// ```
///
/// Both end at 4, 8 and 12.
#[test]
fn windows_are_the_same_bytes_for_every_model() {
    let (a, b) = (encoded(&[2, 2, 2, 2, 2, 2], None), encoded(&[3, 1, 1, 3, 4], None));
    let passages = Passages::cut(&[a.clone(), b.clone()], 4, None).unwrap();
    // 0..8 are four tokens of each, of which the first four bytes are not scored; 8..12 are not full.
    assert_eq!(passages.scored, [4..8]);
    assert_eq!((texts(&passages.windows[0]), scored(&passages.windows[0])), (vec![0..4], vec![2..4]));
    assert_eq!((texts(&passages.windows[1]), scored(&passages.windows[1])), (vec![0..4], vec![2..4]));
    // The BOS of the second takes one of its tokens: 0..4 scores nothing of the first, and 4..12 are four and three.
    let begun = Encoded { bos: Some(9), ..b.clone() };
    let passages = Passages::cut(&[a.clone(), begun.clone()], 4, None).unwrap();
    assert_eq!((passages.scored, texts(&passages.windows[1])), (vec![8..12], vec![2..5]));
    let passages = Passages::cut(&[a.clone(), begun.clone()], 5, None).unwrap();
    assert_eq!(passages.scored, [4..8]);
    assert_eq!(passages.windows[1].ids(&passages.windows[1].windows()[0], &begun.ids), [9, 0, 1, 2, 3]);
    assert_eq!(passages.windows[1].positions(&passages.windows[1].windows()[0]), 3..5);
    // With a BOS each, everything is scored, window by window.
    let both = [Encoded { bos: Some(8), ..a.clone() }, begun];
    let passages = Passages::cut(&both, 3, None).unwrap();
    assert_eq!(passages.scored, [0..4, 4..8, 8..12]);
    assert_eq!(scored(&passages.windows[0]), [0..2, 2..4, 4..6]);
    assert_eq!(scored(&passages.windows[1]), [0..2, 2..4, 4..5]);
    assert_eq!(common_bytes(&both), 12);
    // A stride: the second begins at 4 and scores what the first did not.
    let passages = Passages::cut(&[a, b], 4, Some(2)).unwrap();
    assert_eq!(passages.scored, [4..8, 8..12]);
    assert_eq!(texts(&passages.windows[1]), [0..4, 2..5]);
}

#[test]
fn ends_within_a_character_are_no_places() {
    let (a, b) = (encoded(&[1, 0, 0, 4, 1, 1, 1], None), encoded(&[1, 4, 1, 1, 1], None));
    let passages = Passages::cut(&[a, b], 4, None).unwrap();
    // 0..5 are four tokens of the first, 5..8 three.
    assert_eq!((passages.scored.clone(), passages.bytes()), (vec![1..5], vec![4]));
    assert_eq!(texts(&passages.windows[1]), [0..2]);
}

#[test]
fn what_cannot_be_cut_is_refused_with_its_numbers() {
    let (a, b) = (encoded(&[2; 6], None), encoded(&[12], None));
    let refused = |texts: &[Encoded], context, stride| Passages::cut(texts, context, stride).unwrap_err().to_string();
    let nothing = refused(&[a.clone(), b], 4, None);
    assert!(nothing.contains("from byte 0 on") && nothing.contains("4 tokens"), "{nothing}");
    assert!(refused(&[a.clone(), a.clone()], 1, None).contains("at least 2"));
    assert!(refused(&[a.clone(), a.clone()], 4, Some(5)).contains("skip"));
    assert!(refused(&[a.clone(), a.clone()], 4, Some(0)).contains("stride of 0"));
    let short = encoded(&[3, 1, 1, 3, 4], None);
    let stuck = refused(&[a.clone(), short], 4, Some(1));
    assert!(stuck.contains("longer stride"), "{stuck}");
    assert!(refused(&[a.clone(), a], 7, None).contains("12 bytes"));
}

use super::*;
use crate::perplexity::Metric;
use crate::stats::Interval;
use std::path::Path;

fn tokenizer() -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tokenizer.json");
    Tokenizer::from_json(&path, &std::fs::read(&path).unwrap()).unwrap()
}

#[test]
fn every_state_but_the_last_comes_from_one_pass_with_context_enough() {
    assert_eq!(passes_within(9, 9), [(0..8, 8)]);
    assert_eq!(passes_within(9, 8), [(0..8, 8)]);
    assert_eq!(
        passes_within(20, 8),
        [(0..8, 8), (2..10, 2), (4..12, 2), (6..14, 2), (8..16, 2), (10..18, 2), (11..19, 1)]
    );
    for (t, longest) in [(2, 1), (2, 2), (50, 3), (100, 64), (64, 100)] {
        let passes = passes_within(t, longest.min(t));
        assert_eq!(passes.iter().map(|(_, new)| new).sum::<usize>(), t - 1, "{t} {longest}");
        let mut done = 0;
        for (input, new) in passes {
            done += new;
            assert!(input.end == done && input.len() <= longest && input.len() >= new, "{t} {longest}: {input:?}");
        }
    }
}

/// Offsets as transformers' fast tokenizers give them: a token with some bytes of a character has the whole character.
#[test]
fn tokens_that_share_a_character_overlap() {
    let tokenizer = tokenizer();
    let text = "It was \u{201c}caf\u{e9}\u{201d} \u{1f980} ok";
    let ids = tokenizer.encode(text, false).unwrap();
    let found = spans(&tokenizer, &ids).unwrap();
    let offsets = tokenizer.inner().encode_char_offsets(text, false).unwrap();
    let wanted: Vec<Range<usize>> = offsets.get_offsets().iter().map(|&(start, end)| start..end).collect();
    // The tokenizer may trim the space before a word, which belongs to no other token.
    for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        let trimmed = wanted.start == found.start || wanted.start == found.start + 1;
        assert!(trimmed && wanted.end == found.end, "token {i} of {ids:?}: {found:?} not {wanted:?}");
    }
    assert!(found.windows(2).any(|pair| pair[1].start < pair[0].end), "none of these characters is cut: {found:?}");
    assert_eq!(found.last().unwrap().end, text.chars().count());
}

/// The expected tokens follow from `merge_intervals` and `cal_overlap` of the package.
#[test]
fn a_key_token_stands_for_its_characters() {
    let plain: Vec<Range<usize>> = (0..6).map(|i| 2 * i..2 * i + 2).collect();
    assert_eq!(as_text(&plain, &[1, 2, 5]), [1, 2, 5]);
    assert_eq!(as_text(&plain, &[]), [0usize; 0]);
    // Tokens 1 to 3 are the bytes of one character.
    let shared = [0..2, 2..3, 2..3, 2..3, 3..5];
    assert_eq!(as_text(&shared, &[2]), [1, 2, 3]);
    assert_eq!(as_text(&shared, &[1, 3]), [1, 2, 3]);
    // Token 1 ends within a character that token 2 ends; a token is found where all of its characters are.
    let across = [0..2, 2..4, 3..6, 6..7];
    assert_eq!(as_text(&across, &[1]), [1]);
    assert_eq!(as_text(&across, &[2]), [2]);
    assert_eq!(as_text(&across, &[1, 2]), [1, 2]);
    assert_eq!(as_text(&[0..2, 2..4, 3..4, 4..6], &[1]), [1, 2]);
}

#[test]
fn a_metric_is_of_the_tokens_that_count() {
    let window = |numbers: &[f32]| sums(numbers.iter().copied());
    let windows = [window(&[1.0, 2.0]), window(&[]), window(&[3.0])];
    let longppl = Metric::longppl(&windows, 0);
    assert_eq!((longppl.value, longppl.interval, longppl.tokens), (Some(2f64.exp()), None, 3));
    assert_eq!(Metric::kl(&windows, 0).value, Some(2.0));
    let none = Metric::longppl(&[window(&[]), window(&[])], 0);
    assert_eq!((none.value, none.interval, none.tokens), (None, None, 0));
    let many: Vec<WindowNll> = (0..8).map(|i| window(&[1.0 + i as f32 / 10.0])).collect();
    let Metric { value, interval: Some(Interval { low, high }), .. } = Metric::longppl(&many, 0) else { panic!() };
    assert!(low < value.unwrap() && value.unwrap() < high && low > 1f64.exp(), "{low} {value:?} {high}");
    assert_eq!(Metric::longppl(&[window(&[1000.0])], 0).value, None, "more than a number can say");
}

#[test]
fn the_packages_numbers_where_a_model_has_room_for_them() {
    let of = |trained| {
        let KeyTokens { trunc_len, sliding_window, alpha, beta } = KeyTokens::for_trained(trained);
        assert_eq!((alpha, beta), (2.0, -2.0));
        (trunc_len, sliding_window)
    };
    assert_eq!([of(None), of(Some(131_072)), of(Some(8192))], [(4096, 1024); 3]);
    assert_eq!([of(Some(256)), of(Some(1))], [(128, 32), (1, 1)]);
    assert_eq!("longppl".parse(), Ok(MetricName::LongPpl));
    assert!("lppl".parse::<MetricName>().unwrap_err().contains("longppl"));
}

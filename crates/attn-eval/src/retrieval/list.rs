//! The numbered list of words of the task common-words, as long as a context has room for.

use super::words::shuffle;
use crate::error::{Result, ensure};
use crate::rng::Rng;
use loader::Tokenizer;

/// How often a common word is in a list that is long enough for that (as in RULER).
const MOST: usize = 30;
/// How many times as often a common word is in the list as another word.
const TIMES: usize = 10;
/// Words of the shortest list in which common words stand out.
const SHORTEST: usize = 40;

/// Exactly `count` tokens of numbered words, in an order that `order` decides. The last word may be cut.
pub(super) fn numbered(
    common: &[&str],
    others: &[&str],
    mut order: Rng,
    count: usize,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>> {
    let entry = |number: usize, word: &str| tokenizer.encode(&format!(" {number}. {word}"), false);
    let mut sample = 0;
    for word in others {
        sample += entry(100, word)?.len();
    }
    let room = count * others.len() / sample.max(1);
    ensure!(room >= SHORTEST, Setting, "there is room for {room} words, but {SHORTEST} are needed");
    let mut words = Vec::with_capacity(room);
    let often = often(room, common.len(), others.len());
    common.iter().for_each(|word| words.extend(std::iter::repeat_n(*word, often)));
    let seldom = (often / TIMES).max(1);
    let rest = others.iter().flat_map(|word| std::iter::repeat_n(*word, seldom)).cycle();
    words.extend(rest.clone().take(room.saturating_sub(words.len())));
    let more = rest.skip(room.saturating_sub(common.len() * often));
    shuffle(&mut words, &mut order);
    let mut ids = Vec::with_capacity(count);
    for (index, word) in words.into_iter().chain(more).enumerate() {
        if ids.len() >= count {
            break;
        }
        ids.extend(entry(index + 1, word)?);
    }
    ids.truncate(count);
    Ok(ids)
}

/// How often each common word is in a list of `room` words. The common words are half of a short list. In a list so long that the
/// other words have to be repeated to fill it, a common word is there ten times as often as another one.
fn often(room: usize, common: usize, others: usize) -> usize {
    let often = MOST.min(room / (2 * common));
    let seldom = (often / TIMES).max(1);
    if room - common * often <= others * seldom { often } else { room * TIMES / (common * TIMES + others) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_words_stand_out_in_lists_of_any_length() {
        for (room, wanted) in [(40, 2), (100, 5), (600, 30), (1800, 30), (6000, 98), (100_000, 1639)] {
            let often = often(room, 10, 510);
            assert_eq!(often, wanted, "{room}");
            let each = (room - 10 * often) as f64 / 510.0;
            assert!(often as f64 >= 2.0 * each.max(1.0), "{room}: {often} against {each}");
        }
    }
}

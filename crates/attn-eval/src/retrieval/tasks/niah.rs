//! What RULER's needle-in-a-haystack tasks have in common: special magic numbers that belong to keys.

use super::{Body, Draft};
use crate::rng::Rng;

/// Digits of a number.
pub(super) const DIGITS: u32 = 7;

/// The largest number of tokens of an answer with `numbers` numbers: at most one per digit, what stands between the numbers, and a
/// few words before the first.
pub(super) const fn room(numbers: usize) -> usize {
    numbers * (DIGITS as usize + 2) + 4
}

/// The sentence that says that a number belongs to a key.
pub(super) fn needle(key: &str, number: &str) -> String {
    format!(" One of the special magic numbers for {key} is: {number}.")
}

/// A trial that asks for the numbers of `key`, with these sentences hidden.
pub(super) fn draft(key: &str, numbers: Vec<String>, mut hidden: Vec<(f64, String)>) -> Draft {
    hidden.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (some, it) = if hidden.len() == 1 {
        ("A special magic number is", "number")
    } else {
        ("Some special magic numbers are", "numbers")
    };
    let opening = format!(
        "{some} hidden within the following text. Make sure to memorize it. I will quiz you about the {it} afterwards.\n"
    );
    let asked = if numbers.len() == 1 { "number" } else { "numbers" };
    let (ask, are) = if numbers.len() == 1 { ("What is the", "is") } else { ("What are all the", "are") };
    let question = format!(
        "\n{ask} special magic {asked} for {key} mentioned in the provided text? The special magic {asked} for {key} \
         mentioned in the provided text {are}"
    );
    Draft { opening, body: Body::Hidden(hidden), question, answer: format!(" {}", numbers.join(", ")), wanted: numbers }
}

/// A random depth.
pub(super) fn anywhere(rng: &mut Rng) -> f64 {
    rng.unit()
}

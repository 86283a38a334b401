//! The pass key of Mohtashami and Jaggi (2023): a number of five digits is hidden, and asked for.

use super::{Body, Draft, Task};
use crate::retrieval::words::numbers;
use crate::rng::Rng;

/// Digits of a key.
const DIGITS: u32 = 5;

pub(super) static TASK: Task = Task {
    name: "passkey",
    ruler: None,
    summary: "A number of five digits is hidden in the text and asked for at its end (Mohtashami and Jaggi 2023).",
    placed: true,
    wanted: 1,
    // One or two tokens for spaces, at most one per digit, and one that ends the number.
    room: DIGITS as usize + 3,
    draft,
};

const OPENING: &str = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I \
                       will quiz you about the important information there.\n";

fn draft(rng: &mut Rng, depth: f64) -> Draft {
    let wanted = numbers(1, DIGITS, rng);
    let key = &wanted[0];
    let needle = format!("\nThe pass key is {key}. Remember it. {key} is the pass key.\n");
    Draft {
        opening: OPENING.to_string(),
        body: Body::Hidden(vec![(depth, needle)]),
        question: "\nWhat is the pass key? The pass key is".to_string(),
        answer: format!(" {key}"),
        wanted,
    }
}

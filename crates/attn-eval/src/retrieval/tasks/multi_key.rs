//! One number among others that belong to other keys (RULER's multi-key needle): finding something that looks like a number
//! is not enough.

use super::{Draft, Task, niah};
use crate::retrieval::words::{keys, numbers};
use crate::rng::Rng;

/// Number of keys, the one asked for included.
const KEYS: usize = 4;

pub(super) static TASK: Task = Task {
    name: "multi-key",
    ruler: Some("niah-multikey"),
    summary: "Four numbers belong to four keys; one key is given and its number asked for (RULER's multi-key needle).",
    placed: true,
    wanted: 1,
    room: niah::room(1),
    draft,
};

fn draft(rng: &mut Rng, depth: f64) -> Draft {
    let (keys, mut numbers) = (keys(KEYS, rng), numbers(KEYS, niah::DIGITS, rng));
    let mut hidden = vec![(depth, niah::needle(&keys[0], &numbers[0]))];
    for (key, number) in keys.iter().zip(&numbers).skip(1) {
        hidden.push((niah::anywhere(rng), niah::needle(key, number)));
    }
    numbers.truncate(1);
    niah::draft(&keys[0], numbers, hidden)
}

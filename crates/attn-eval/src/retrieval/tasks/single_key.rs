//! One number that belongs to one key (RULER's single needle).

use super::{Draft, Task, niah};
use crate::retrieval::words::{keys, numbers};
use crate::rng::Rng;

pub(super) static TASK: Task = Task {
    name: "single-key",
    ruler: Some("niah-single"),
    summary: "A number of seven digits belongs to a key; the key is given and its number asked for (RULER's single needle).",
    placed: true,
    wanted: 1,
    room: niah::room(1),
    draft,
};

fn draft(rng: &mut Rng, depth: f64) -> Draft {
    let (keys, numbers) = (keys(1, rng), numbers(1, niah::DIGITS, rng));
    let needle = niah::needle(&keys[0], &numbers[0]);
    niah::draft(&keys[0], numbers, vec![(depth, needle)])
}

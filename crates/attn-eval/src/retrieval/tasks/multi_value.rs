//! Several numbers that belong to one key (RULER's multi-value needle): all of them have to be found.

use super::{Draft, Task, niah};
use crate::retrieval::words::{keys, numbers};
use crate::rng::Rng;

/// Number of values of the key.
const VALUES: usize = 4;

pub(super) static TASK: Task = Task {
    name: "multi-value",
    ruler: Some("niah-multivalue"),
    summary: "Four numbers belong to one key; all four are asked for (RULER's multi-value needle).",
    placed: false,
    wanted: VALUES,
    room: niah::room(VALUES),
    draft,
};

fn draft(rng: &mut Rng, _: f64) -> Draft {
    let (keys, numbers) = (keys(1, rng), numbers(VALUES, niah::DIGITS, rng));
    let mut depths: Vec<f64> = numbers.iter().map(|_| niah::anywhere(rng)).collect();
    // The right answer has the numbers in the order of the text.
    depths.sort_by(f64::total_cmp);
    let hidden = depths.into_iter().zip(&numbers).map(|(depth, number)| (depth, niah::needle(&keys[0], number)));
    niah::draft(&keys[0], numbers.clone(), hidden.collect())
}

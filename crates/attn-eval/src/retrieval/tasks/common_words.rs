//! The ten most common words of a long list (RULER's common words): nothing is hidden; the answer depends on the whole context.

use super::{Body, Draft, Task};
use crate::retrieval::words::shuffled;
use crate::rng::Rng;

/// Number of words asked for.
const COMMON: usize = 10;

pub(super) static TASK: Task = Task {
    name: "common-words",
    ruler: Some("cwe"),
    summary: "In a long numbered list ten words occur ten times as often as the others; these ten are asked for (RULER's \
              common words).",
    placed: false,
    wanted: COMMON,
    // Up to seven tokens per word: two or three of the word itself, and a number, a comma and spaces.
    room: COMMON * 7,
    draft,
};

fn draft(rng: &mut Rng, _: f64) -> Draft {
    let mut words = shuffled(rng);
    let others = words.split_off(COMMON);
    let order = Rng::new(rng.next_u64());
    Draft {
        opening:
            "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones \
                  that appear most often.\n"
                .to_string(),
        question: format!(
            "\nQuestion: What are the {COMMON} most common words in the above list? Answer: The top {COMMON} words that \
             appear most often in the list are:"
        ),
        answer: format!(" {}", words.join(", ")),
        wanted: words.iter().map(ToString::to_string).collect(),
        body: Body::Words { common: words, others, order },
    }
}

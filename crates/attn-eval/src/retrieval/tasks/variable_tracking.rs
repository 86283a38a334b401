//! A chain of variables, each assigned from the one before (RULER's variable tracking): facts that stand far apart have to be
//! combined.

use super::{Body, Draft, Task, niah};
use crate::retrieval::words::numbers;
use crate::rng::Rng;

/// Variables of the chain: the first and RULER's four hops.
const VARIABLES: usize = 5;
/// Letters of a variable's name.
const LETTERS: usize = 5;

pub(super) static TASK: Task = Task {
    name: "variable-tracking",
    ruler: Some("vt"),
    summary: "A value is assigned to a variable, this variable to another and so on; all five variables with the value are \
              asked for (RULER's variable tracking).",
    placed: false,
    wanted: VARIABLES,
    // At most one token per letter, what stands between names, and a few words.
    room: VARIABLES * (LETTERS + 2) + 8,
    draft,
};

/// Different random names that consist of capital letters.
fn names(rng: &mut Rng) -> Vec<String> {
    let mut names: Vec<String> = vec![];
    while names.len() < VARIABLES {
        let name: String = (0..LETTERS).map(|_| char::from(b'A' + rng.below(26) as u8)).collect();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn draft(rng: &mut Rng, _: f64) -> Draft {
    let (names, values) = (names(rng), numbers(1, 5, rng));
    let value = &values[0];
    let mut depths: Vec<f64> = names.iter().map(|_| niah::anywhere(rng)).collect();
    depths.sort_by(f64::total_cmp);
    let assigned = std::iter::once(value.clone()).chain(names.iter().map(|name| format!("VAR {name}")));
    let lines = names.iter().zip(assigned).map(|(name, from)| format!("\nVAR {name} = {from}\n"));
    let opening =
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n".to_string();
    let question = format!(
        "\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: According to the \
         chain(s) of variable assignment in the text above, {VARIABLES} variables are assigned the value {value}, they are:"
    );
    Draft {
        opening,
        body: Body::Hidden(depths.into_iter().zip(lines).collect()),
        question,
        answer: format!(" {}", names.join(", ")),
        wanted: names,
    }
}

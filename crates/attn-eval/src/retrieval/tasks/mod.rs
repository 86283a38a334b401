//! The tasks, one file each. A task is a [`Task`] in [`TASKS`]: what it hides, what it asks, and what counts as an answer.
//!
//! All but the pass key follow RULER (Hsieh et al. 2024) with its default numbers of keys, values and hops. The worked example
//! that RULER puts before variable tracking and common words is left out, so that short contexts have room for the text.

mod common_words;
mod multi_key;
mod multi_value;
mod niah;
mod passkey;
mod single_key;
mod variable_tracking;

use crate::rng::Rng;
use std::fmt;

/// Every task.
pub static TASKS: [&Task; 6] = [
    &passkey::TASK,
    &single_key::TASK,
    &multi_key::TASK,
    &multi_value::TASK,
    &variable_tracking::TASK,
    &common_words::TASK,
];

/// Tasks that the name `retrieval` stands for: one thing to find, one among others like it, and several things.
const DEFAULTS: [&str; 3] = ["passkey", "multi-key", "multi-value"];

/// A retrieval task.
pub struct Task {
    /// Its name.
    pub name: &'static str,
    /// RULER's name for it.
    pub ruler: Option<&'static str>,
    /// What it asks for, in a sentence.
    pub summary: &'static str,
    /// Whether what is asked for stands at one depth; otherwise it is spread over the whole context.
    pub placed: bool,
    /// Number of things asked for in a trial.
    pub wanted: usize,
    /// The largest number of tokens of an answer.
    pub(super) room: usize,
    /// Makes a trial with what is asked for at a depth from 0 to 1.
    pub(super) draft: fn(&mut Rng, f64) -> Draft,
}

/// The text of a trial.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    /// What stands before the body.
    pub(super) opening: String,
    pub(super) body: Body,
    /// What stands after it; the model answers next.
    pub(super) question: String,
    /// The right answer.
    pub(super) answer: String,
    /// What is looked for in the answer.
    pub(super) wanted: Vec<String>,
}

/// What fills a context.
#[derive(Debug, Clone)]
pub(super) enum Body {
    /// A haystack with these sentences in it, each at a depth from 0 to 1; in the order of their depths.
    Hidden(Vec<(f64, String)>),
    /// A numbered list of words, in which `common` ones are more frequent than `others`, and the generator of its order.
    Words { common: Vec<&'static str>, others: Vec<&'static str>, order: Rng },
}

impl Task {
    /// The tasks that a name stands for: a task's own or RULER's name, `retrieval` for a few, `all` for every one.
    ///
    /// # Errors
    /// No task has this name; the error lists the names that exist.
    pub fn named(text: &str) -> Result<Vec<&'static Self>, String> {
        let name = text.to_ascii_lowercase().replace('_', "-");
        match name.as_str() {
            "all" => Ok(TASKS.to_vec()),
            "retrieval" => Ok(Self::defaults()),
            name => match TASKS.iter().find(|task| task.name == name || task.ruler == Some(name)) {
                Some(task) => Ok(vec![task]),
                None => {
                    let known: Vec<&str> = TASKS.iter().map(|task| task.name).collect();
                    Err(format!("known: {}, retrieval for {}, all", known.join(", "), DEFAULTS.join(" and ")))
                }
            },
        }
    }

    /// The tasks that `retrieval` stands for.
    pub fn defaults() -> Vec<&'static Self> {
        TASKS.iter().copied().filter(|task| DEFAULTS.contains(&task.name)).collect()
    }

    /// How many of the things asked for an answer contains. If one number is asked for, it has to be exactly the first number in
    /// the answer; otherwise words and numbers count wherever they stand in the answer, once each.
    pub(super) fn found(&self, answer: &str, wanted: &[String]) -> usize {
        if let [number] = wanted {
            return usize::from(first_number(answer) == Some(number.as_str()));
        }
        let has = |wanted: &&String| pieces(answer).any(|piece| piece.eq_ignore_ascii_case(wanted));
        wanted.iter().filter(has).count()
    }

    /// Whether no further text can change what the answer contains.
    pub(super) fn ended(&self, answer: &str, wanted: &[String]) -> bool {
        // The answer may end within a word or a number.
        match wanted {
            [_] => first_number(answer.trim_end_matches(|c: char| c.is_ascii_digit())).is_some(),
            wanted => {
                let whole = answer.trim_end_matches(char::is_alphanumeric);
                self.found(whole, wanted) == wanted.len() || answer.trim_start().contains('\n')
            }
        }
    }
}

/// The first digits of a text.
fn first_number(text: &str) -> Option<&str> {
    text.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty())
}

/// The words and numbers of a text.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|piece| !piece.is_empty())
}

impl PartialEq for Task {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_are_known_by_either_spelling() {
        for task in TASKS {
            assert_eq!(Task::named(task.name).unwrap(), [task]);
            assert_eq!(Task::named(&task.name.replace('-', "_").to_uppercase()).unwrap(), [task]);
            assert!(task.ruler.is_none_or(|name| Task::named(name).unwrap() == [task]));
        }
        assert_eq!((Task::named("all").unwrap().len(), Task::named("retrieval").unwrap().len()), (6, 3));
        let error = Task::named("needle").unwrap_err();
        assert!(error.contains("single-key") && error.contains("all"), "{error}");
    }

    #[test]
    fn one_number_counts_only_if_it_is_the_first_and_exact() {
        let task = &passkey::TASK;
        let found = |answer: &str| task.found(answer, &wanted(&["12345"]));
        assert_eq!([" 12345. Remember", "12345is", ": 12345 and 99999"].map(found), [1, 1, 1]);
        assert_eq!([" 123456", " 1234", " 99999, no, 12345", " 1 2345", ""].map(found), [0; 5]);
        let ended = |answer: &str| task.ended(answer, &wanted(&["12345"]));
        assert!(ended(" 12345.") && ended(" 1 2") && !ended(" 12345") && !ended(" the") && !ended(""));
    }

    #[test]
    fn several_things_count_once_each_wherever_they_stand() {
        let task = &multi_value::TASK;
        let all = wanted(&["11", "22", "33"]);
        assert_eq!(
            [" 22, 11 and 33.", " 11, 11, 11", " 113322", " 33"].map(|answer| task.found(answer, &all)),
            [3, 1, 0, 1]
        );
        assert!(task.ended(" 22, 11, 33.", &all) && task.ended(" 22\n", &all));
        assert!(!task.ended(" 22, 11, 33", &all), "it may go on to 334");
        let words = wanted(&["apple", "ABCDE"]);
        assert_eq!(common_words::TASK.found("1. Apple 2. abcde", &words), 2);
    }

    /// Every trial has its answer in its text, and other trials have others.
    #[test]
    fn drafts_hide_what_they_ask_for() {
        for task in TASKS {
            let draft = (task.draft)(&mut Rng::new(5), 0.25);
            assert_eq!(draft.wanted.len(), task.wanted, "{task:?}");
            assert_eq!(task.found(&draft.answer, &draft.wanted), task.wanted, "{task:?}");
            let hidden = match &draft.body {
                Body::Hidden(needles) => {
                    assert!(needles.is_sorted_by(|a, b| a.0 <= b.0), "{task:?}");
                    let text: Vec<&str> = needles.iter().map(|(_, text)| text.as_str()).collect();
                    text.join(" ")
                }
                Body::Words { common, .. } => common.join(" "),
            };
            for wanted in &draft.wanted {
                assert!(pieces(&hidden).any(|piece| piece == wanted), "{task:?}: {wanted} in {hidden}");
                assert!(pieces(&draft.question).all(|piece| piece != wanted), "{task:?}");
            }
            let other = (task.draft)(&mut Rng::new(6), 0.25);
            assert_ne!(draft.wanted, other.wanted);
            assert_eq!((task.draft)(&mut Rng::new(5), 0.25).wanted, draft.wanted);
        }
    }
}

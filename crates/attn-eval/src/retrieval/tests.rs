use super::*;
use crate::compare::{Factor, Mode, Plan};
use loader::Tokenizer;
use std::path::Path;

fn tokenizer_json() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tokenizer.json")).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_json(Path::new("tokenizer.json"), &tokenizer_json()).unwrap()
}

fn plan(tokenizer: &Tokenizer, haystack: Haystack) -> RetrievalPlan<'_> {
    RetrievalPlan {
        plan: Plan { factor: Factor::Fixed(2.0), seed: 7, ..Plan::new(vec![512], vec![Mode::none()]) },
        tasks: TASKS.to_vec(),
        depths: vec![0.0, 0.5, 1.0],
        trials: 2,
        haystack,
        tokenizer,
    }
}

fn task(name: &str) -> &'static Task {
    Task::named(name).unwrap()[0]
}

#[test]
fn a_passkey_prompt_is_the_papers_fills_its_context_and_has_the_key_at_its_depth() {
    let tokenizer = tokenizer();
    let plan = plan(&tokenizer, Haystack::paper(&tokenizer).unwrap());
    let grid = Grid::of(&plan);
    for (depth, share) in [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)] {
        let trial = grid.trial(task("passkey"), 512, Some(depth), 0).unwrap();
        assert_eq!(trial.prompt.len(), 512 - 8);
        let text = tokenizer.decode(&trial.prompt, false).unwrap();
        let key = &trial.wanted[0];
        assert!(key.len() == 5 && tokenizer.decode(&trial.answer, false).unwrap().trim() == key, "{key}");
        let needle = format!("The pass key is {key}. Remember it. {key} is the pass key.");
        let at = text.find(&needle).unwrap_or_else(|| panic!("{text}"));
        let opening = "will quiz you about the important information there.\n";
        assert!(text.trim_start().starts_with("There is an important info"), "{text}");
        assert!(text.ends_with("What is the pass key? The pass key is"), "{text}");
        assert!(text.contains("The grass is green. The sky is blue. The sun is yellow. Here we go. There and back"));
        let before = at - text.find(opening).unwrap() - opening.len();
        let after = text.rfind("\nWhat is").unwrap() - at - needle.len();
        let found = before as f64 / (before + after) as f64;
        assert!((found - share).abs() < 0.06, "{found} for {share}");
    }
}

#[test]
fn every_task_fills_its_context_exactly_and_hides_what_it_asks_for() {
    let tokenizer = tokenizer();
    let plan = plan(&tokenizer, Haystack::paper(&tokenizer).unwrap());
    let grid = Grid::of(&plan);
    for task in TASKS {
        for context in [700, 1024, 3001] {
            let trial = grid.trial(task, context, Some(0.5), 1).unwrap();
            assert_eq!(trial.prompt.len(), context - task.room, "{task:?} at {context}");
            assert!((1..=task.room).contains(&trial.answer.len()), "{task:?}");
            let text = tokenizer.decode(&trial.prompt, false).unwrap();
            // Beside a second word, which the text does not have, a number counts wherever it stands.
            assert_eq!(task.found(&text, &[vec!["x".into()], trial.wanted].concat()), task.wanted, "{task:?}: {text}");
        }
    }
}

#[test]
fn common_words_are_ten_times_as_common() {
    let tokenizer = tokenizer();
    let plan = plan(&tokenizer, Haystack::paper(&tokenizer).unwrap());
    let trial = Grid::of(&plan).trial(task("cwe"), 6000, None, 0).unwrap();
    let text = tokenizer.decode(&trial.prompt, false).unwrap();
    let list = &text[text.find("most often.").unwrap()..text.find("Question").unwrap()];
    let words: Vec<&str> = list.split(|c: char| !c.is_ascii_lowercase()).filter(|word| word.len() > 1).collect();
    let count = |word: &str| words.iter().filter(|other| **other == word).count();
    let seldom = words.iter().filter(|word| !trial.wanted.iter().any(|wanted| wanted == *word)).map(|word| count(word));
    let (most, least) = (seldom.max().unwrap(), trial.wanted.iter().map(|word| count(word)).min().unwrap());
    assert!(least >= 25 && most <= 6, "{least} against {most}");
    assert!(list.contains(" 1. ") && list.contains(" 250. "), "{list}");
}

#[test]
fn trials_differ_and_repeat_with_their_seed() {
    let tokenizer = tokenizer();
    let words: String = (0..2000).map(|i| format!("Sentence number {i} of many. ")).collect();
    let plan = plan(&tokenizer, Haystack::text("t", &words, &tokenizer).unwrap());
    let grid = Grid::of(&plan);
    let of = |context, depth, number| grid.trial(task("passkey"), context, Some(depth), number).unwrap();
    let first = of(512, 0.5, 0);
    assert_eq!(first, of(512, 0.5, 0));
    let others = [of(512, 0.5, 1), of(512, 0.0, 0), of(640, 0.5, 0)];
    assert!(others.iter().all(|other| other.wanted != first.wanted));
    // A haystack's passage is one piece of it, from the beginning of a sentence.
    let text = tokenizer.decode(&first.prompt, false).unwrap();
    let number =
        |text: &str| text.split("number ").nth(1).unwrap().split(' ').next().unwrap().parse::<usize>().unwrap();
    let passage = number(&text);
    assert!(text.contains(&format!("Sentence number {} of many.", (passage + 1) % 2000)), "{text}");
}

#[test]
fn tokenizers_and_contexts_that_leave_no_room_are_errors() {
    let mut json: serde_json::Value = serde_json::from_slice(&tokenizer_json()).unwrap();
    json["normalizer"] = serde_json::json!({"type": "Replace", "pattern": {"Regex": "[\\s\\S]"}, "content": ""});
    let nothing = Tokenizer::from_json(Path::new("tokenizer.json"), json.to_string().as_bytes()).unwrap();
    let error = Haystack::paper(&nothing).unwrap_err().to_string();
    assert!(error.contains("no tokens"), "{error}");
    let tokenizer = tokenizer();
    let short = plan(&tokenizer, Haystack::paper(&tokenizer).unwrap());
    let refused = |plan: &RetrievalPlan, name: &str, context: usize, part: &str| {
        let error = Grid::of(plan).trial(task(name), context, Some(0.5), 0).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(&short, "passkey", 60, "a context of 60 is too short");
    refused(&short, "common-words", 300, "40 are needed");
    let text = plan(&tokenizer, Haystack::text("novel.txt", "It was short. Too short.", &tokenizer).unwrap());
    refused(&text, "single-key", 512, "novel.txt has");
}

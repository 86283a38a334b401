use super::*;
use std::path::Path;

const TOKENIZER: &[u8] = include_bytes!("../../../models/tiny-austen/tokenizer.json");

fn tokenizer() -> Tokenizer {
    Tokenizer::from_json(Path::new("tokenizer.json"), TOKENIZER).unwrap()
}

fn plan(tokenizer: &Tokenizer, haystack: Haystack) -> PasskeyPlan<'_> {
    PasskeyPlan {
        plan: Plan {
            contexts: vec![512],
            modes: vec![Mode::none()],
            factor: crate::compare::Factor::Fixed(2.0),
            stride: None,
            bos: None,
            rope: attn_core::RopeOverride::default(),
            length: None,
            seed: 7,
        },
        depths: vec![0.0, 0.5, 1.0],
        trials: 2,
        haystack,
        tokenizer,
    }
}

fn grid<'a>(plan: &'a PasskeyPlan<'a>) -> Retrieval<'a> {
    let encode = |text: &str| plan.tokenizer.encode(text, false).unwrap();
    Retrieval { plan, task: encode(TASK), question: encode(QUESTION), specs: vec![], jobs: vec![] }
}

#[test]
fn a_prompt_is_the_papers_fills_its_context_and_has_the_key_at_its_depth() {
    let tokenizer = tokenizer();
    let plan = plan(&tokenizer, Haystack::paper(&tokenizer).unwrap());
    let grid = grid(&plan);
    for (depth, share) in [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)] {
        let (prompt, key) = grid.trial(512, depth, 0).unwrap();
        assert_eq!(prompt.len(), 512 - 8);
        let text = tokenizer.decode(&prompt, false).unwrap();
        assert!((10_000..100_000).contains(&key));
        let needle = format!("The pass key is {key}. Remember it. {key} is the pass key.");
        let at = text.find(&needle).unwrap_or_else(|| panic!("{text}"));
        assert!(text.trim_start().starts_with("There is an important info"), "{text}");
        assert!(text.ends_with("What is the pass key? The pass key is"), "{text}");
        assert!(text.contains("The grass is green. The sky is blue. The sun is yellow. Here we go. There and back"));
        let (before, after) = (at - TASK.len(), text.len() - QUESTION.len() - at - needle.len());
        let found = before as f64 / (before + after) as f64;
        assert!((found - share).abs() < 0.06, "{found} for {share}");
    }
}

#[test]
fn trials_differ_and_repeat_with_their_seed() {
    let tokenizer = tokenizer();
    let words: String = (0..2000).map(|i| format!("Sentence number {i} of many. ")).collect();
    let plan = plan(&tokenizer, Haystack::text("t", &words, &tokenizer).unwrap());
    let grid = grid(&plan);
    let first = grid.trial(512, 0.5, 0).unwrap();
    assert_eq!(first, grid.trial(512, 0.5, 0).unwrap());
    let others = [grid.trial(512, 0.5, 1).unwrap(), grid.trial(512, 0.0, 0).unwrap(), grid.trial(640, 0.5, 0).unwrap()];
    assert!(others.iter().all(|other| other.1 != first.1));
    // A haystack's passage is one piece of it, from the beginning of a sentence.
    let text = tokenizer.decode(&first.0, false).unwrap();
    let number =
        |text: &str| text.split("number ").nth(1).unwrap().split(' ').next().unwrap().parse::<usize>().unwrap();
    let passage = number(&text);
    assert!(text.contains(&format!("Sentence number {} of many.", (passage + 1) % 2000)), "{text}");
}

#[test]
fn an_answer_counts_only_if_it_is_the_key_exactly() {
    assert!(is_key(" 12345. Remember", 12345) && is_key("12345", 12345));
    assert!(!is_key(" 123456", 12345) && !is_key(" 1234", 12345) && !is_key(" the 12345", 12345) && !is_key("", 12345));
}

#[test]
fn cells_are_summed_up_and_twins_filled_in() {
    let spec = |mode: &str, same_as: Option<&str>| PasskeySpec {
        context: 512,
        depth: 0.5,
        mode: mode.into(),
        factor: 1.0,
        same_as: same_as.map(Into::into),
    };
    let specs = [spec("none", None), spec("yarn", Some("none"))];
    let scores = Some(PasskeyScores { trials: 3, correct: 2, seconds: 1.5 });
    let passkey = summarise("essay", 0, 3, &specs, &[scores, None]).unwrap();
    assert_eq!((passkey.cells[1].correct, passkey.cells[1].seconds), (2, 0.0));
    assert_eq!(passkey.modes, ["none", "yarn"]);
    assert!(summarise("essay", 0, 3, &specs, &[None, None]).is_err());
}

#[test]
fn tokenizers_and_contexts_that_leave_no_room_are_errors() {
    let mut json: serde_json::Value = serde_json::from_slice(TOKENIZER).unwrap();
    json["normalizer"] = serde_json::json!({"type": "Replace", "pattern": {"Regex": "[\\s\\S]"}, "content": ""});
    let nothing = Tokenizer::from_json(Path::new("tokenizer.json"), json.to_string().as_bytes()).unwrap();
    let error = Haystack::paper(&nothing).unwrap_err().to_string();
    assert!(error.contains("no tokens"), "{error}");
    let tokenizer = tokenizer();
    let plan = plan(&tokenizer, Haystack::paper(&tokenizer).unwrap());
    let error = grid(&plan).trial(60, 0.5, 0).unwrap_err().to_string();
    assert!(error.contains("a context of 60 is too short"), "{error}");
}

/// Against statsmodels' proportion_confint(method="wilson").
#[test]
fn intervals_are_wilsons() {
    for (correct, trials, low, high) in
        [(0, 10, 0.0, 0.277_533), (5, 10, 0.236_593, 0.763_407), (25, 25, 0.866_808, 1.0), (1, 3, 0.061_492, 0.792_340)]
    {
        let interval = Share { correct, trials }.interval();
        assert!((interval.low - low).abs() < 1e-6 && (interval.high - high).abs() < 1e-6, "{interval:?}");
    }
}

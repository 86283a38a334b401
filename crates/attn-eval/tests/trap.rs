//! Perplexity alone can mislead about a scaling (Men et al. 2024, Base of RoPE Bounds Context Length): under a larger base the
//! perplexity stays as it was although retrieval fails.
//!
//! The model's weights are set by hand. Its first layer copies each token's two predecessors to it. In its second layer a token
//! attends to the places where the pair of its predecessor and itself stood before, and predicts what followed there: an induction
//! head. The score of a key has a second part that depends on distance, in a pair of dimensions that turns by half a radian over
//! the 256 tokens of the trained context. It hardly changes the scores of near keys; but once that pair has turned further, a far
//! key gets a lower score than any near one. So a text that repeats itself within 24 tokens is predicted equally well at any
//! length and under any scaling, while what stands far back is found only if the scaling slows that pair down by the factor by
//! which the text is longer. YaRN does, since the pair's wavelength is past the trained length. A larger base (ntk) slows it down
//! by less.
#![allow(missing_docs)]

use attn_eval::Error;
use attn_eval::compare::{Answer, Comparison, Lab, LabScores, Plan, Results, Text, lengths_between, sum_up};
use attn_eval::report::{
    About, CheckpointInfo, RetrievalSettings, RopeSettings, Settings, TableStyle, Versions, csv, html, table, verdict,
};
use attn_eval::retrieval::{Grid, Haystack, RetrievalPlan, Task};
use attn_eval::rng::Rng;
use attn_eval::run::to_measure;
use attn_models::{Model, Options};
use candle_core::{Device, Tensor};
use loader::Tokenizer;
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Numbers that stand for a token.
const CODE: usize = 32;
const HIDDEN: usize = 160;
const HEAD: usize = 128;
const PAIRS: usize = HEAD / 2;
const THETA: f64 = 7e10;
const TRAINED: usize = 256;
const LONGEST: usize = 2048;
/// The number of pairs that distinguish neighbours; the pair of the distance score; the first of the pairs that hardly turn.
const LOCAL: usize = 16;
const SLOW: usize = 16;
const STILL: usize = 32;
/// The strengths of the scores of the first layer, of matching pairs of tokens and of the distance; and that of the logits.
const NEIGHBOUR: f64 = 20.0;
const MATCH: f64 = 50.0;
const DISTANCE: f64 = 60.0;
const SURE: f64 = 8.0;
/// Number of different words of the text.
const WORDS: usize = 40;

/// A word of the text.
fn of_text(number: usize) -> String {
    let letter = |n: usize| char::from(b'a' + n as u8);
    format!("q{}{}", letter(number / 10), letter(number % 10))
}

fn words() -> Vec<String> {
    let prompts = "There is an important info hidden inside a lot of irrelevant text . Find it and memorize them I will quiz \
                   you about the information there The grass green sky blue sun yellow Here we go There back again What \
                   pass key ? Remember It 0 1 2 3 4 5 6 7 8 9";
    let mut all: Vec<String> = vec![];
    for word in prompts.split(' ').map(str::to_string).chain((0..WORDS).map(of_text)) {
        if !all.contains(&word) {
            all.push(word);
        }
    }
    all
}

fn tokenizer(words: &[String]) -> Tokenizer {
    let vocab: HashMap<&str, usize> = words.iter().enumerate().map(|(id, word)| (word.as_str(), id)).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Whitespace"}, {"type": "Digits", "individual_digits": true}]},
        "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "."},
    });
    Tokenizer::from_json(Path::new("tokenizer.json"), json.to_string().as_bytes()).unwrap()
}

/// A vector of length 1 for every token: of 200 random draws the one whose vectors are least similar.
fn codes(tokens: usize) -> Vec<Vec<f64>> {
    let draw = |seed: u64| -> Vec<Vec<f64>> {
        let mut rng = Rng::new(seed);
        let mut sign = || if rng.below(2) == 0 { 1.0 } else { -1.0 };
        (0..tokens).map(|_| (0..CODE).map(|_| sign() / (CODE as f64).sqrt()).collect()).collect()
    };
    let alike = |codes: &[Vec<f64>]| {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let pairs = codes.iter().enumerate().flat_map(|(i, a)| codes[..i].iter().map(move |b| dot(a, b).abs()));
        pairs.fold(0.0, f64::max)
    };
    (0..200).map(draw).min_by(|a, b| alike(a).total_cmp(&alike(b))).unwrap()
}

/// A matrix of zeros in which numbers can be set, in the layout of checkpoints: a row per output.
struct Matrix {
    rows: usize,
    columns: usize,
    data: Vec<f32>,
}

impl Matrix {
    fn new(rows: usize, columns: usize) -> Self {
        Self { rows, columns, data: vec![0.0; rows * columns] }
    }

    fn set(&mut self, row: usize, column: usize, value: f64) {
        self.data[row * self.columns + column] = value as f32;
    }

    fn tensor(self) -> Tensor {
        Tensor::from_vec(self.data, (self.rows, self.columns), &Device::Cpu).unwrap()
    }
}

/// The places in the residual stream of a token's own code, of the codes of the two tokens before it, of the code of the next token,
/// and of a constant.
const OWN: usize = 0;
const BEFORE: [usize; 2] = [32, 64];
const NEXT: usize = 96;
const ONE: usize = 128;

fn model(words: &[String]) -> Model {
    let codes = codes(words.len());
    let frequency = |pair: usize| THETA.powf(-(pair as f64) / PAIRS as f64);
    // The norms of the layers' inputs are known: a code and the constant, then two codes more, then the code of the next token.
    let scale = |norm: f64| norm / (HIDDEN as f64).sqrt();
    let (first, second, last) = (scale(2f64.sqrt()), scale(2.0), scale(5f64.sqrt()));
    let strength = (HEAD as f64).sqrt();
    let mut weights: HashMap<String, Tensor> = HashMap::new();

    let mut embedding = Matrix::new(words.len(), HIDDEN);
    let mut head = Matrix::new(words.len(), HIDDEN);
    for (token, code) in codes.iter().enumerate() {
        for (j, value) in code.iter().enumerate() {
            embedding.set(token, OWN + j, *value);
            head.set(token, NEXT + j, SURE * value * last);
        }
        embedding.set(token, ONE, 1.0);
    }
    weights.insert("model.embed_tokens.weight".into(), embedding.tensor());
    weights.insert("lm_head.weight".into(), head.tensor());
    let ones = || Tensor::ones(HIDDEN, candle_core::DType::F32, &Device::Cpu).unwrap();
    weights.insert("model.norm.weight".into(), ones());

    for layer in 0..2 {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let [mut q, mut k, mut v] = [(); 3].map(|()| Matrix::new(2 * HEAD, HIDDEN));
        let mut o = Matrix::new(HIDDEN, 2 * HEAD);
        if layer == 0 {
            for (index, before) in BEFORE.into_iter().enumerate() {
                let at = index * HEAD;
                for pair in 0..LOCAL {
                    // The key `index + 1` tokens back gets the largest score.
                    let turned = (index + 1) as f64 * frequency(pair);
                    q.set(at + pair, ONE, NEIGHBOUR * strength * turned.cos() * first);
                    q.set(at + pair + PAIRS, ONE, -NEIGHBOUR * strength * turned.sin() * first);
                    k.set(at + pair, ONE, first);
                }
                for j in 0..CODE {
                    v.set(at + j, OWN + j, first);
                    o.set(before + j, at + j, 1.0);
                }
            }
        } else {
            for j in 0..CODE {
                // A key matches if the two tokens before it are this token and the one before.
                q.set(STILL + j, OWN + j, MATCH * strength * second);
                k.set(STILL + j, BEFORE[0] + j, second);
                q.set(STILL + PAIRS + j, BEFORE[0] + j, MATCH * strength * second);
                k.set(STILL + PAIRS + j, BEFORE[1] + j, second);
                v.set(j, OWN + j, second);
                o.set(NEXT + j, j, 1.0);
            }
            q.set(SLOW, ONE, DISTANCE * strength * second);
            k.set(SLOW, ONE, second);
        }
        for (part, matrix) in [("q_proj", q), ("k_proj", k), ("v_proj", v), ("o_proj", o)] {
            weights.insert(name(&format!("self_attn.{part}")), matrix.tensor());
        }
        for (part, rows, columns) in [("gate_proj", 16, HIDDEN), ("up_proj", 16, HIDDEN), ("down_proj", HIDDEN, 16)] {
            weights.insert(name(&format!("mlp.{part}")), Matrix::new(rows, columns).tensor());
        }
        weights.insert(name("input_layernorm"), ones());
        weights.insert(name("post_attention_layernorm"), ones());
    }
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": words.len(), "hidden_size": HIDDEN,
        "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "head_dim": HEAD, "hidden_act": "silu", "max_position_embeddings": TRAINED, "rms_norm_eps": 1e-9,
        "tie_word_embeddings": false, "rope_theta": THETA,
    });
    Model::load(&config, Arc::new(weights), &Options::default()).unwrap()
}

/// A text of phrases of 12 words, each of which occurs twice in a row.
fn text(tokenizer: &Tokenizer, tokens: usize) -> Text {
    let mut rng = Rng::new(5);
    let mut phrase = || (0..12).map(|_| of_text(rng.below(WORDS))).collect::<Vec<_>>();
    let mut all = vec![];
    while all.len() < tokens {
        let phrase = phrase();
        all.extend(phrase.clone());
        all.extend(phrase);
    }
    Text { name: "phrases".into(), tokens: tokenizer.encode(&all[..tokens].join(" "), false).unwrap() }
}

fn about(plan: &Plan, trials: usize, depths: Vec<f64>) -> About {
    let settings = Settings {
        modes: plan.modes.iter().map(ToString::to_string).collect(),
        contexts: plan.contexts.clone(),
        factor: Some(LONGEST as f64 / TRAINED as f64),
        stride: None,
        bos: None,
        bos_choice: None,
        length: None,
        seed: plan.seed,
        rope: RopeSettings::default(),
        dtype: "f32".into(),
        device: "cpu".into(),
        keep_quantized: false,
        cache_type_k: None,
        cache_type_v: None,
        usable: true,
        skipped: vec![],
        metrics: None,
        retrieval: Some(RetrievalSettings {
            tasks: vec!["passkey".into()],
            haystack: None,
            depths,
            trials,
            skipped: vec![],
        }),
    };
    About {
        command: vec![],
        started: 0,
        versions: Versions { attn: String::new(), candle: String::new() },
        checkpoint: CheckpointInfo {
            name: "by hand".into(),
            revision: None,
            sha256: String::new(),
            files: vec![],
            family: "llama".into(),
            parameters: 0,
            trained_context: Some(TRAINED),
            rope_type: "none".into(),
        },
        models: vec![],
        texts: vec![],
        settings,
        machines: vec![],
    }
}

/// The results of a comparison with bisection.
fn measured(model: &Model, tokenizer: &Tokenizer) -> (About, Results) {
    let contexts = vec![TRAINED, LONGEST];
    let modes = ["none", "ntk", "yarn"].map(|mode| mode.parse().unwrap()).to_vec();
    let plan = Plan { between: lengths_between(TRAINED, &contexts), ..Plan::new(contexts, modes) };
    let depths = vec![0.0, 0.25, 0.5, 0.75, 1.0];
    let texts = [text(tokenizer, 4 * LONGEST)];
    let about = about(&plan, 3, depths.clone());
    let haystack = Haystack::paper(tokenizer).unwrap();
    let tasks = Task::named("passkey").unwrap();
    let trials = RetrievalPlan { plan: plan.clone(), tasks, depths, trials: 3, haystack, tokenizer };
    let grid = Grid::new(model, &trials, &|_| Ok(())).unwrap();
    let lab = Lab::new(Comparison::new(model, &texts, &plan, &|_| Ok(())).unwrap(), Some(grid));
    let mut scores: Vec<Option<LabScores>> = vec![None; lab.specs().len()];
    let mut wanted: Vec<usize> = to_measure(lab.specs()).collect();
    while !wanted.is_empty() {
        let mut done = |index: usize, measured: LabScores| {
            scores[index] = Some(measured);
            Ok::<_, Error>(())
        };
        lab.run(&wanted, &mut |_| (), &mut done).unwrap();
        wanted = lab.next(&scores, &about).unwrap();
    }
    let results = sum_up(lab.specs(), &scores, &about).unwrap();
    (about, results)
}

#[test]
fn a_larger_base_that_keeps_perplexity_and_loses_retrieval_is_said_to_do_so() {
    let words = words();
    let (model, tokenizer) = (model(&words), tokenizer(&words));
    let (about, results) = measured(&model, &tokenizer);
    let retrieval = results.retrieval.as_ref().unwrap();
    assert!(
        retrieval.able().next().is_some(),
        "{:?} {:?}",
        retrieval.totals,
        verdict(&results, true, Some(TRAINED)).lengths
    );
    let share = |mode: &str, context: usize| retrieval.pooled(mode, context).unwrap().value();
    let perplexity = |mode: &str, context: usize| {
        results.cells.iter().find(|cell| cell.mode == mode && cell.context == context).unwrap().perplexity
    };
    let figures: Vec<String> = ["none", "ntk", "yarn"]
        .map(|mode| {
            [TRAINED, LONGEST].map(|n| format!("{mode} {n}: {} {}", perplexity(mode, n), share(mode, n))).join(", ")
        })
        .to_vec();

    // Perplexity shows nothing: under the larger base it is that of the trained length.
    let usable = |mode: &str| results.recommendation.as_ref().unwrap().usable.iter().find(|u| u.mode == mode).unwrap();
    assert_eq!(usable("ntk").perplexity, Some(LONGEST), "{figures:?}");
    assert!(perplexity("ntk", LONGEST) < 1.05 * perplexity("none", TRAINED), "{figures:?}");
    // Retrieval shows it.
    assert!(share("none", TRAINED) > 0.8 && share("yarn", LONGEST) > 0.8, "{figures:?}");
    assert!(share("ntk", LONGEST) < 0.6 && share("none", LONGEST) < 0.6, "{figures:?}");
    let carried: Vec<String> = ["none", "ntk", "yarn"].map(|mode| format!("{:?}", usable(mode))).to_vec();
    let reach = |mode: &str| {
        usable(mode).retrieval.as_ref().and_then(|r| r.length).unwrap_or_else(|| panic!("{figures:?} {carried:?}"))
    };
    assert!(reach("none") <= reach("ntk") && reach("ntk") < LONGEST && reach("yarn") == LONGEST, "{figures:?}");
    assert_eq!((reach("ntk") - TRAINED) % ((LONGEST - TRAINED) / 16), 0, "found by bisection");

    // The verdict weighs both, and says that the larger base loses what perplexity does not show.
    let found = results.recommendation.as_ref().unwrap();
    assert_eq!((found.answer, found.mode.as_str()), (Answer::Use, "yarn"), "{figures:?}");
    let said = verdict(&results, true, Some(TRAINED));
    let wanted = "Beyond the trained length of 256 tokens, use yarn at factor 8";
    assert!(
        said.headline.starts_with(wanted) && said.headline.contains("of what is hidden in 2048"),
        "{}",
        said.headline
    );
    let line = said.lines.iter().find(|line| line.starts_with("Perplexity does not show that retrieval fails under"));
    let trap = format!("ntk (predicts well to 2048 tokens, finds to {})", reach("ntk"));
    assert!(line.is_some_and(|line| line.contains(&trap)), "{:?}", said.lines);

    // The table, the page and the CSV show it too.
    let shown = table(&results.cells, &found.usable, TableStyle { width: 100, color: false });
    let row = shown.lines().find(|line| line.starts_with("ntk")).unwrap();
    assert!(row.contains("2048+") && row.ends_with(&reach("ntk").to_string()), "{shown}");
    let page = html::comparison(&about, &results, None).unwrap();
    assert!(
        page.contains("usable to, by retrieval") && page.contains("that retrieval fails under"),
        "the page says so"
    );
    assert!(csv(&results).contains("ntk,2048,"), "{}", csv(&results));

    // By perplexity alone nothing of this is seen.
    let alone = Results { retrieval: None, recommendation: None, ..results.clone() };
    let said = verdict(&alone, true, Some(TRAINED));
    assert!(!said.headline.contains("use yarn"), "{}", said.headline);
}

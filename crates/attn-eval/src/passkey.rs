//! Retrieval: can the model still find what stood far back? A flat perplexity does not say so (RULER, Hsieh et al. 2024).
//!
//! The task is that of Mohtashami and Jaggi (2023): a number is hidden in irrelevant text, and the model is asked for it
//! at the end. The irrelevant text is the paper's few sentences over and over, or, as in the needle-in-a-haystack test,
//! any text of the user's. A cell is a context and a depth: where in the text the number stands. Every trial has its own
//! number, and with a haystack its own passage; they depend on the seed, the context and the depth but not on the mode,
//! so modes are compared on the same trials. An answer counts if the first number in it is exactly the one asked for.

use crate::compare::{Mode, Plan, Progress, check_params, cost, variants};
use crate::report::About;
use crate::rng::Rng;
use crate::run::Measurable;
use crate::stats::Interval;
use anyhow::{Context, Result, ensure};
use attn_models::{Model, RopeLength, Session};
use candle_core::Tensor;
use loader::Tokenizer;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Digits of a key.
pub const DIGITS: usize = 5;
/// Tokens that an answer may take: a space or two, each digit by itself at worst, and what ends them.
const ANSWER: usize = DIGITS + 3;

const TASK: &str = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I \
                    will quiz you about the important information there.\n";
const FILLER: &str = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";
const QUESTION: &str = "\nWhat is the pass key? The pass key is";

fn needle(key: u64) -> String {
    format!("\nThe pass key is {key}. Remember it. {key} is the pass key.\n")
}

/// What the key is hidden in, in sentences.
#[derive(Debug, Clone)]
pub struct Haystack {
    /// What reports call it.
    pub name: String,
    sentences: Vec<Vec<u32>>,
    /// Whether it may be repeated to fill a context.
    repeats: bool,
}

impl Haystack {
    /// The paper's sentences.
    ///
    /// # Errors
    /// They can't be tokenised, or come to nothing.
    pub fn paper(tokenizer: &Tokenizer) -> Result<Self> {
        // Twice, so that the first sentence too is met with a space before it.
        let sentences = sentences(&FILLER.repeat(2), tokenizer)?;
        let second = sentences.get(5..10).context("the tokenizer makes no tokens of the paper's sentences")?;
        Ok(Self { name: "essay".to_string(), sentences: second.to_vec(), repeats: true })
    }

    /// A text of the user's.
    ///
    /// # Errors
    /// It can't be tokenised.
    pub fn text(name: &str, text: &str, tokenizer: &Tokenizer) -> Result<Self> {
        Ok(Self { name: name.to_string(), sentences: sentences(text, tokenizer)?, repeats: false })
    }

    /// Tokens in it.
    pub fn tokens(&self) -> usize {
        self.sentences.iter().map(Vec::len).sum()
    }

    /// `count` tokens from sentence `first` on, with the needle after the sentence that ends closest to `depth`.
    fn around(&self, needle: &[u32], first: usize, count: usize, depth: f64) -> Vec<u32> {
        let mut filler = vec![];
        // Where a needle may stand: before the first sentence, or after any.
        let mut breaks = vec![0];
        for sentence in self.sentences.iter().cycle().skip(first) {
            filler.extend_from_slice(sentence);
            if filler.len() >= count {
                break;
            }
            breaks.push(filler.len());
        }
        filler.truncate(count);
        breaks.push(count);
        let wanted = depth * count as f64;
        let distance = |at: &usize| (*at as f64 - wanted).abs();
        let at = breaks.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0);
        filler.splice(at..at, needle.iter().copied());
        filler
    }
}

/// Cuts a text after full stops, question and exclamation marks; spaces go to what follows.
fn sentences(text: &str, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
    let mut parts = vec![];
    let mut start = 0;
    let mut ended = false;
    for (at, c) in text.char_indices() {
        if ended && c.is_whitespace() {
            parts.push(&text[start..at]);
            start = at;
        }
        ended = matches!(c, '.' | '!' | '?');
    }
    parts.push(&text[start..]);
    let encoded: Result<Vec<Vec<u32>>, _> = parts.into_iter().map(|part| tokenizer.encode(part, false)).collect();
    Ok(encoded?.into_iter().filter(|ids| !ids.is_empty()).collect())
}

/// A grid of trials.
#[derive(Debug)]
pub struct PasskeyPlan<'a> {
    /// Contexts, modes and their scalings, the seed; a stride has no meaning here.
    pub plan: Plan,
    /// Where the key stands, 0 the beginning and 1 the end.
    pub depths: Vec<f64>,
    /// Trials per cell.
    pub trials: usize,
    /// What the key is hidden in.
    pub haystack: Haystack,
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
}

/// One cell to be measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PasskeySpec {
    /// Tokens of prompt and answer.
    pub context: usize,
    /// Where the key stands.
    #[serde(with = "crate::exact")]
    pub depth: f64,
    /// The name of the scaling.
    pub mode: String,
    /// Its factor.
    #[serde(with = "crate::exact")]
    pub factor: f64,
    /// The mode whose measurement serves this one too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
}

/// What came out of a cell's trials.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PasskeyScores {
    /// Trials.
    pub trials: usize,
    /// Those whose answer was exactly the key.
    pub correct: usize,
    /// Wall-clock time.
    pub seconds: f64,
}

impl Measurable for PasskeySpec {
    const KIND: &str = "passkey";
    type Scores = PasskeyScores;

    fn context(&self) -> usize {
        self.context
    }

    fn mode(&self) -> &str {
        &self.mode
    }

    fn text(&self) -> Option<usize> {
        None
    }

    fn is_measured(&self) -> bool {
        self.same_as.is_none()
    }

    fn agree(a: &PasskeyScores, b: &PasskeyScores) -> bool {
        (a.trials, a.correct) == (b.trials, b.correct)
    }

    fn figure(scores: &PasskeyScores) -> String {
        format!("{} of {} found", scores.correct, scores.trials)
    }

    fn check(&self, scores: &PasskeyScores, about: &About) -> Result<()> {
        let PasskeyScores { trials, correct, .. } = *scores;
        let planned = about.settings.passkey.as_ref().context("the settings say nothing of retrieval")?.trials;
        ensure!(trials == planned, "{trials} trials, not {planned}");
        ensure!(correct <= trials, "{correct} of {trials} trials right");
        Ok(())
    }
}

/// A grid ready to run.
#[derive(Debug)]
pub struct Retrieval<'a> {
    plan: &'a PasskeyPlan<'a>,
    task: Vec<u32>,
    question: Vec<u32>,
    specs: Vec<PasskeySpec>,
    jobs: Vec<(Mode, Model, f64)>,
}

impl<'a> Retrieval<'a> {
    /// Lists the cells: context by context, mode by mode, depth by depth.
    ///
    /// # Errors
    /// Nothing to measure, a context too short for the task or too long for the haystack, a mode the model can't take.
    pub fn new(model: &Model, plan: &'a PasskeyPlan<'a>) -> Result<Self> {
        let something = !plan.plan.modes.is_empty() && !plan.plan.contexts.is_empty() && !plan.depths.is_empty();
        ensure!(something && plan.trials > 0, "there is nothing to measure");
        check_params(&plan.plan)?;
        let encode = |text: &str| plan.tokenizer.encode(text, false);
        let mut task: Vec<u32> = plan.plan.bos.into_iter().collect();
        task.extend(encode(TASK)?);
        let mut grid = Self { plan, task, question: encode(QUESTION)?, specs: vec![], jobs: vec![] };
        for &context in &plan.plan.contexts {
            grid.add(model, context)?;
        }
        Ok(grid)
    }

    fn add(&mut self, model: &Model, context: usize) -> Result<()> {
        let longest = self.plan.tokenizer.encode(&needle(99_999), false)?.len();
        let fixed = self.task.len() + longest + self.question.len() + ANSWER;
        ensure!(context > fixed, "a context of {context} is too short: the task itself takes {fixed} tokens");
        let (has, needs) = (self.plan.haystack.tokens(), context - fixed);
        let haystack = &self.plan.haystack;
        ensure!(has > 0, "{} has no text to hide a key in", haystack.name);
        let enough = haystack.repeats || has >= needs;
        ensure!(enough, "{} has {has} tokens, a context of {context} takes {needs} of them", haystack.name);
        for variant in variants(model, &self.plan.plan, context)? {
            for &depth in &self.plan.depths {
                self.specs.push(PasskeySpec {
                    context,
                    depth,
                    mode: variant.mode.to_string(),
                    factor: variant.factor,
                    same_as: variant.same_as.map(|mode| mode.to_string()),
                });
                let work = cost(&variant.model, context) * (context * self.plan.trials) as f64;
                self.jobs.push((variant.mode, variant.model.clone(), work));
            }
        }
        Ok(())
    }

    /// The cells.
    pub fn specs(&self) -> &[PasskeySpec] {
        &self.specs
    }

    /// Measures the cells of these indices in turn and hands each measurement to `done` as soon as it is there.
    ///
    /// # Errors
    /// The model fails; whatever `done` fails with.
    pub fn run(
        &self,
        indices: &[usize],
        progress: &mut dyn FnMut(Progress),
        done: &mut dyn FnMut(usize, PasskeyScores) -> Result<()>,
    ) -> Result<()> {
        let total = indices.iter().map(|&index| self.jobs[index].2 as usize).sum();
        let mut before = 0;
        for &index in indices {
            let (mode, model, work) = &self.jobs[index];
            let spec = &self.specs[index];
            let started = Instant::now();
            let mut scores = PasskeyScores { trials: self.plan.trials, correct: 0, seconds: 0.0 };
            for trial in 0..self.plan.trials {
                let part = (work * trial as f64 / self.plan.trials as f64) as usize;
                progress(Progress { mode: *mode, context: spec.context, done: before + part, total });
                let (prompt, key) = self.trial(spec.context, spec.depth, trial)?;
                let answer = self.ask(model, &prompt, spec.context).with_context(|| format!("mode {mode}"))?;
                scores.correct += usize::from(is_key(&answer, key));
            }
            scores.seconds = started.elapsed().as_secs_f64();
            done(index, scores)?;
            before += *work as usize;
        }
        Ok(())
    }

    /// The prompt of a trial, `context` tokens less the room for the answer, and the key.
    fn trial(&self, context: usize, depth: f64, trial: usize) -> Result<(Vec<u32>, u64)> {
        let mut rng = Rng::new(self.plan.plan.seed);
        for part in [context as u64, depth.to_bits(), trial as u64] {
            rng = Rng::new(rng.next_u64() ^ part);
        }
        let smallest = 10usize.pow(DIGITS as u32 - 1);
        let key = (smallest + rng.below(9 * smallest)) as u64;
        let haystack = &self.plan.haystack;
        let first = if haystack.repeats { 0 } else { rng.below(haystack.sentences.len()) };
        let needle = self.plan.tokenizer.encode(&needle(key), false)?;
        // Keys may differ in their number of tokens.
        let fixed = self.task.len() + needle.len() + self.question.len() + ANSWER;
        let short = || format!("a context of {context} is too short: the task with the key {key} takes {fixed} tokens");
        let count = context.checked_sub(fixed).with_context(short)?;
        let middle = haystack.around(&needle, first, count, depth);
        Ok(([&self.task[..], &middle, &self.question].concat(), key))
    }

    /// What the model goes on with, greedily.
    fn ask(&self, model: &Model, prompt: &[u32], context: usize) -> Result<String> {
        let length = RopeLength::Declared(self.plan.plan.length.unwrap_or(context));
        let mut session = Session::new(model, length, None)?;
        let mut ids = vec![];
        let mut next = prompt.to_vec();
        for _ in 0..ANSWER {
            let logits = session.feed(&Tensor::new(next.as_slice(), model.device())?.unsqueeze(0)?)?;
            let token = Model::greedy(&logits)?.flatten_all()?.to_vec1::<u32>()?[0];
            ids.push(token);
            next = vec![token];
            let answer = self.plan.tokenizer.decode(&ids, false)?;
            if answer.trim_start().contains(|c: char| !c.is_ascii_digit()) {
                break;
            }
        }
        Ok(self.plan.tokenizer.decode(&ids, false)?)
    }
}

/// Whether the answer begins with the key and no further digit.
fn is_key(answer: &str, key: u64) -> bool {
    let digits: String = answer.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits == key.to_string()
}

/// What a grid of trials found.
#[derive(Debug, Clone, Serialize)]
pub struct Passkey {
    /// What the key was hidden in.
    pub haystack: String,
    /// Digits of the key.
    pub digits: usize,
    /// Seed of the trials.
    pub seed: u64,
    /// Trials per cell.
    pub trials: usize,
    /// Tokens of prompt and answer.
    pub contexts: Vec<usize>,
    /// Where the key stood.
    pub depths: Vec<f64>,
    /// The scalings.
    pub modes: Vec<String>,
    /// The cells.
    pub cells: Vec<PasskeyCell>,
}

impl Passkey {
    /// What a mode found at a context: at one depth, or at all of them. `None` if it was not asked there.
    pub fn share(&self, mode: &str, context: usize, depth: Option<f64>) -> Option<Share> {
        let asked = |cell: &&PasskeyCell| {
            cell.mode == mode && cell.context == context && depth.is_none_or(|depth| cell.depth == depth)
        };
        let cells = self.cells.iter().filter(asked);
        let sum = cells.fold(Share { correct: 0, trials: 0 }, |sum, cell| Share {
            correct: sum.correct + cell.correct,
            trials: sum.trials + cell.trials,
        });
        (sum.trials > 0).then_some(sum)
    }
}

/// Trials answered right, of at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Those answered with exactly the key.
    pub correct: usize,
    /// All.
    pub trials: usize,
}

impl Share {
    /// From 0 to 1.
    pub fn value(self) -> f64 {
        self.correct as f64 / self.trials as f64
    }

    /// The 95 % interval of the probability to be right (Wilson's score interval, which holds for few trials and for
    /// shares of 0 and 1 too).
    pub fn interval(self) -> Interval {
        const Z2: f64 = 1.959_963_985 * 1.959_963_985;
        let (n, p) = (self.trials as f64, self.value());
        let middle = (p + Z2 / (2.0 * n)) / (1.0 + Z2 / n);
        let half = (Z2 * (p * (1.0 - p) / n + Z2 / (4.0 * n * n))).sqrt() / (1.0 + Z2 / n);
        Interval { low: (middle - half).max(0.0), high: (middle + half).min(1.0) }
    }
}

/// A cell of the grid.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PasskeyCell {
    /// The scaling.
    pub mode: String,
    /// Tokens of prompt and answer.
    pub context: usize,
    /// Where the key stood.
    pub depth: f64,
    /// The scaling's factor.
    pub factor: f64,
    /// Trials.
    pub trials: usize,
    /// Those answered with exactly the key.
    pub correct: usize,
    /// Wall-clock time.
    pub seconds: f64,
    /// The mode whose figures these are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
}

/// Sums up measurements, one per cell in the order of the specs; those that are measured as another may be absent.
///
/// # Errors
/// A measurement is missing.
pub fn summarise(
    haystack: &str,
    seed: u64,
    trials: usize,
    specs: &[PasskeySpec],
    scores: &[Option<PasskeyScores>],
) -> Result<Passkey> {
    let cell = |spec: &PasskeySpec| {
        let mode = spec.same_as.as_ref().unwrap_or(&spec.mode);
        let source = specs.iter().position(|other| {
            (other.context, other.depth, &other.mode) == (spec.context, spec.depth, mode) && other.same_as.is_none()
        });
        let measured = source.and_then(|index| scores.get(index)?.as_ref());
        let PasskeyScores { trials, correct, seconds } =
            measured.with_context(|| format!("{} at {} has not been measured", spec.mode, spec.context))?.clone();
        Ok(PasskeyCell {
            mode: spec.mode.clone(),
            context: spec.context,
            depth: spec.depth,
            factor: spec.factor,
            trials,
            correct,
            seconds: if spec.same_as.is_some() { 0.0 } else { seconds },
            same_as: spec.same_as.clone(),
        })
    };
    let cells: Result<Vec<PasskeyCell>> = specs.iter().map(cell).collect();
    Ok(Passkey {
        haystack: haystack.to_string(),
        digits: DIGITS,
        seed,
        trials,
        contexts: unique(specs.iter().map(|spec| spec.context)),
        depths: unique(specs.iter().map(|spec| spec.depth)),
        modes: unique(specs.iter().map(|spec| spec.mode.clone())),
        cells: cells?,
    })
}

fn unique<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    items.fold(vec![], |mut kept, item| {
        if !kept.contains(&item) {
            kept.push(item);
        }
        kept
    })
}

#[cfg(test)]
#[path = "passkey_tests.rs"]
mod tests;

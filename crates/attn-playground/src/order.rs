//! Attention is blind to order: one head over two sentences, with and without positions.
//!
//! Words get vectors drawn from a generator that is seeded with their letters, so the same word is the same vector in
//! either sentence and on every machine; queries, keys and values are fixed random projections of them. That is an
//! untrained model, and the point holds for any weights.

use anyhow::{Result, ensure};
use attn_core::position::{Context, NopeConfig, PositionConfig, RopeConfig, SinusoidalConfig, build, build_embedding};
use attn_core::{AttendArgs, Mask, Positions, Scores, attend_weights};
use attn_eval::rng::Rng;
use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::{Value, json};

/// Width of the words' vectors and of the one head.
const WIDTH: usize = 32;
/// Words that fit into the drawing.
const MOST_WORDS: usize = 12;
/// Sharpens the scores of random projections, which by themselves are about 1, so that weights can be told apart.
const SHARPNESS: f64 = 1.5;
/// Results closer than this are the same except for the rounding of f64.
const SAME: f64 = 1e-9;

/// How the head learns where words stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Encoding {
    /// Not at all.
    None,
    /// Not at all, but each word sees only itself and those before it.
    Causal,
    /// Sinusoids added to the vectors.
    Sinusoidal,
    /// Queries and keys rotated.
    Rope,
}

/// Two sentences under one encoding.
#[derive(Debug, Deserialize)]
pub(crate) struct Order {
    sentences: [String; 2],
    encoding: Encoding,
}

/// A sentence after the head.
struct Attended {
    words: Vec<String>,
    /// The weights of attention, a row for each word.
    weights: Vec<Vec<f64>>,
    outputs: Vec<Vec<f64>>,
}

impl Order {
    pub(crate) fn answer(&self) -> Result<Value> {
        let [first, second] = [self.attend(&self.sentences[0])?, self.attend(&self.sentences[1])?];
        let shared = shared(&first.words, &second.words);
        let shared: Vec<Value> = shared
            .into_iter()
            .map(|(i, j)| {
                let difference = largest_difference(&first.outputs[i], &second.outputs[j]);
                json!({
                    "word": first.words[i], "rows": [i, j], "difference": difference, "same": difference < SAME,
                })
            })
            .collect();
        let same = shared.iter().filter(|word| word["same"] == true).count();
        Ok(json!({
            "words": [first.words, second.words], "weights": [first.weights, second.weights],
            "shared": shared, "same": same,
        }))
    }

    fn attend(&self, sentence: &str) -> Result<Attended> {
        let words: Vec<String> = sentence.split_whitespace().map(String::from).collect();
        ensure!(!words.is_empty(), "a sentence needs at least one word");
        ensure!(words.len() <= MOST_WORDS, "{} words are too many for the drawing: {MOST_WORDS} fit", words.len());
        let data: Vec<f64> = words.iter().flat_map(|word| vector(word)).collect();
        let xs = Tensor::from_vec(data, (1, words.len(), WIDTH), &Device::Cpu)?;
        let positions = Positions::new(0..words.len());
        let (added, placed, mask) = match self.encoding {
            Encoding::None => (PositionConfig::Nope(NopeConfig::default()), None, Mask::bidirectional()),
            Encoding::Causal => (PositionConfig::Nope(NopeConfig::default()), None, Mask::causal()),
            Encoding::Sinusoidal => {
                (PositionConfig::Sinusoidal(SinusoidalConfig::new(WIDTH)), None, Mask::bidirectional())
            }
            Encoding::Rope => {
                let rope = PositionConfig::Rope(RopeConfig::new(WIDTH, 10_000.0));
                (PositionConfig::Nope(NopeConfig::default()), Some(rope), Mask::bidirectional())
            }
        };
        let xs = match build_embedding(&added, None)? {
            Some(encoding) => encoding.embed(&xs, &positions)?,
            None => xs,
        };
        let project = |name: &str| -> Result<Tensor> { Ok(xs.broadcast_matmul(&projection(name)?)?.unsqueeze(1)?) };
        let (mut q, mut k, v) = (project("query")?, project("key")?, project("value")?);
        if let Some(rope) = placed {
            let (encoding, at) = (build(&rope, None)?, Context::new(&positions));
            (q, k) = (encoding.queries(&q, &at)?, encoding.keys(&k, &at)?);
        }
        let scores = Scores::new(SHARPNESS * (WIDTH as f64).powf(-0.5));
        let (out, weights) = attend_weights(&q, &k, &v, &AttendArgs::new(scores).with_mask(mask))?;
        let rows = |x: Tensor| -> Result<Vec<Vec<f64>>> { Ok(x.squeeze(0)?.squeeze(0)?.to_vec2()?) };
        Ok(Attended { words, weights: rows(weights)?, outputs: rows(out)? })
    }
}

/// The words that both sentences have, as pairs of their numbers: the first "the" of one is matched with the first of the
/// other.
fn shared(first: &[String], second: &[String]) -> Vec<(usize, usize)> {
    let mut free: Vec<bool> = vec![true; second.len()];
    let mut pairs = vec![];
    for (i, word) in first.iter().enumerate() {
        if let Some(j) = (0..second.len()).find(|&j| free[j] && same_word(word, &second[j])) {
            free[j] = false;
            pairs.push((i, j));
        }
    }
    pairs
}

fn same_word(a: &str, b: &str) -> bool {
    a.to_lowercase() == b.to_lowercase()
}

/// The vector of a word, capitals or not.
fn vector(word: &str) -> Vec<f64> {
    uniform(&word.to_lowercase(), WIDTH, 1.0)
}

/// A fixed projection `(WIDTH, WIDTH)` that keeps the size of vectors.
fn projection(name: &str) -> Result<Tensor> {
    let data = uniform(name, WIDTH * WIDTH, (WIDTH as f64).powf(-0.5));
    Ok(Tensor::from_vec(data, (WIDTH, WIDTH), &Device::Cpu)?)
}

/// `n` numbers of mean 0 and this standard deviation, the same for the same name everywhere.
fn uniform(name: &str, n: usize, deviation: f64) -> Vec<f64> {
    // FNV-1a: a seed that depends on every byte.
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut rng = Rng::new(seed);
    (0..n).map(|_| (2.0 * rng.unit() - 1.0) * 3f64.sqrt() * deviation).collect()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(encoding: Encoding, first: &str, second: &str) -> Value {
        Order { sentences: [first.to_string(), second.to_string()], encoding }.answer().unwrap()
    }

    fn rows(answer: &Value, sentence: usize) -> Vec<Vec<f64>> {
        serde_json::from_value(answer["weights"][sentence].clone()).unwrap()
    }

    #[test]
    fn without_positions_a_word_takes_the_same_from_the_same_words_in_any_order() {
        let answer = of(Encoding::None, "the dog bites a man", "A man bites the dog");
        assert_eq!((answer["same"].as_u64(), answer["shared"].as_array().unwrap().len()), (Some(5), 5));
        // Row by row, too: "dog" is word 1 of the first and 4 of the second; so are the columns moved.
        let (first, second) = (rows(&answer, 0), rows(&answer, 1));
        for (i, j) in [(0, 3), (1, 4), (2, 2), (3, 0), (4, 1)] {
            for (k, l) in [(0, 3), (1, 4), (2, 2), (3, 0), (4, 1)] {
                assert!((first[i][k] - second[j][l]).abs() < 1e-12);
            }
            assert!((first[i].iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn with_positions_or_a_causal_mask_order_counts() {
        for encoding in [Encoding::Causal, Encoding::Sinusoidal, Encoding::Rope] {
            let answer = of(encoding, "dog bites man", "man bites dog");
            assert_eq!(answer["same"], 0, "{encoding:?}");
            let same = of(encoding, "dog bites man", "dog bites man");
            assert_eq!(same["same"], 3, "{encoding:?}");
        }
    }

    #[test]
    fn other_words_are_other_sentences() {
        let answer = of(Encoding::None, "dog bites man", "dog bites cat");
        assert_eq!((answer["same"].as_u64(), answer["shared"].as_array().unwrap().len()), (Some(0), 2));
    }

    #[test]
    fn sentences_that_cannot_be_drawn_are_refused() {
        let refused = |first: &str| {
            let order = Order { sentences: [first.to_string(), "a".to_string()], encoding: Encoding::None };
            order.answer().unwrap_err().to_string()
        };
        assert!(refused("  ").contains("at least one word"));
        assert!(refused(&"a ".repeat(13)).contains("13 words"));
    }
}

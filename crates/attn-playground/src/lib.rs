//! The figures of the playground, the lessons on position encodings that `attn playground` shows in a browser.
//!
//! Every number on the page is computed here, by the project's own crates; the page draws. It asks in JSON and is
//! answered in JSON ([`Playground::answer`]), in a browser and natively: `wasm` has the few functions that a
//! browser calls, and the tests compare the answers with those of the `attn` command.
//!
//! | scene | asks |
//! |---|---|
//! | order does not matter to attention | `order` |
//! | penalties by distance | `alibi`, `t5`, `t5-learned` |
//! | rotation | `rotation` |
//! | many speeds | `speeds` |
//! | past the trained length | `modes`, `stretch`, `score` |
//! | generation | `generate` |
//! | a config of one's own | `config` |

mod bias;
mod config;
mod models;
mod order;
mod rotation;
mod speeds;
mod stretch;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
mod wasm;

use anyhow::{Context, Result, ensure};
use attn_eval::report::palette;
use models::Models;
use serde::Deserialize;
use serde_json::{Value, json};

/// What the page asks.
#[derive(Debug, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
enum Question {
    Palette,
    Order(order::Order),
    Alibi(bias::Alibi),
    T5(bias::T5),
    T5Learned,
    Rotation(rotation::Rotation),
    Speeds(speeds::Speeds),
    Modes,
    Stretch(stretch::Stretch),
    Load(models::Load),
    Score(models::Score),
    Generate(models::Generate),
    Config(config::OwnConfig),
}

/// A function that gets partial results while an answer is computed: likelihoods and pieces of text.
pub type Emit<'a> = dyn FnMut(&Value) + 'a;

/// Answers the questions of the page from the models and files that it was given.
#[derive(Debug, Default)]
pub struct Playground {
    models: Models,
    /// Files that were given and not yet used.
    files: Vec<Vec<u8>>,
}

impl Playground {
    /// Gives a file for the next question, `load`: a config, weights, a tokenizer, in this order.
    pub fn give(&mut self, file: Vec<u8>) {
        self.files.push(file);
    }

    /// Answers a question in JSON. `emit` gets what can be shown before the answer is complete.
    ///
    /// # Errors
    /// A malformed question, numbers that make no sense, a model that was not loaded.
    pub fn answer(&mut self, question: &str, emit: &mut Emit) -> Result<Value> {
        let question = serde_json::from_str(question).context("this is no question")?;
        let files = std::mem::take(&mut self.files);
        match question {
            Question::Palette => Ok(colors()),
            Question::Order(order) => order.answer(),
            Question::Alibi(alibi) => alibi.answer(),
            Question::T5(t5) => t5.answer(),
            Question::T5Learned => bias::learned(self.models.checkpoint("tiny-t5")?),
            Question::Rotation(rotation) => rotation.answer(),
            Question::Speeds(speeds) => speeds.answer(),
            Question::Modes => Ok(stretch::modes()),
            Question::Stretch(stretch) => stretch.answer(),
            Question::Load(load) => {
                let files: Result<[Vec<u8>; 3], _> = files.try_into();
                let files = files.map_err(|files| anyhow::anyhow!("a model is three files, not {}", files.len()))?;
                self.models.load(load, files)
            }
            Question::Score(score) => score.answer(&self.models, emit),
            Question::Generate(generate) => generate.answer(&self.models, emit),
            Question::Config(config) => config.answer(),
        }
    }
}

/// The project's colours and dashes, and the modes in the order of their colours.
fn colors() -> Value {
    json!({ "light": palette::LIGHT, "dark": palette::DARK, "dashes": palette::DASHES, "order": palette::order([]) })
}

/// An error unless a number of a question lies in a range that can be computed and drawn.
fn within(what: &str, value: f64, range: std::ops::RangeInclusive<f64>) -> Result<()> {
    ensure!(range.contains(&value), "{what} has to be from {} to {}, not {value}", range.start(), range.end());
    Ok(())
}

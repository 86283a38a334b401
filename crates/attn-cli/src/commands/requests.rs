//! `attn requests`: answers to requests on stdin, one JSON document a line, from one model that stays loaded.
//!
//! A harness for language models needs three things of a model, and this command answers them: how likely a continuation is
//! after a context, how likely a text is, and how a prompt continues. Texts are tokenised as lm-evaluation-harness does it, so that
//! the figures are the same. A faulty request is answered with its error, and the next one is read.

use crate::measure::scoring::prefix;
use crate::model::{self, Opened};
use crate::options::ModelArgs;
use crate::output::print;
use crate::parse::{BosChoice, parse_positive};
use crate::positions;
use anyhow::{Context, Result, bail, ensure};
use attn_eval::answer::{Answerer, Likelihood, split};
use attn_eval::one_line;
use attn_eval::sample::SampleOptions;
use attn_models::memory::Workload;
use clap::Args;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::io::{BufRead, stdin};

/// Tokens of a sequence at most where nothing says what the model was trained for.
const DEFAULT_LENGTH: usize = 2048;

/// `attn requests`
#[derive(Debug, Args)]
#[command(after_help = "\
Each request is a JSON object on one line. Its answer is a line with the same id, or {\"id\", \"error\"}:
  {\"id\": 1, \"type\": \"loglikelihood\", \"context\": \"..\", \"continuation\": \"..\"}
      {\"id\": 1, \"logprob\": -3.2, \"is_greedy\": false, \"tokens\": 2, \"left_out\": 0}
  {\"id\": 2, \"type\": \"loglikelihood_rolling\", \"text\": \"..\"}
      {\"id\": 2, \"logprob\": -812.4, \"tokens\": 240}
  {\"id\": 3, \"type\": \"generate\", \"prompt\": \"..\", \"max_tokens\": 32, \"stop\": [\"\\n\"]}
      {\"id\": 3, \"text\": \"..\", \"tokens\": 12, \"stopped\": true, \"left_out\": 0}
      optional: temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed

left_out counts the first tokens, which did not fit into --max-length. Without a temperature generation is \
greedy. The first line printed, before any request, describes the model.

Examples:
  echo '{\"type\": \"generate\", \"prompt\": \"It was\", \"max_tokens\": 8}' | attn requests
  attn requests MODEL --rope-scaling yarn --rope-factor 2 < requests.jsonl")]
pub(crate) struct RequestsArgs {
    /// Maximum tokens of a sequence, prompt and new tokens together [default: the trained context]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_positive)]
    max_length: Option<usize>,
    /// Begin texts with the BOS token; auto: only if the tokenizer does so
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = BosChoice::Auto)]
    bos: BosChoice,
    #[command(flatten)]
    model: ModelArgs,
}

/// What a request asks for, beside its id.
enum Request {
    Loglikelihood(Pair),
    Rolling(Rolling),
    Generate(Generate),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    context: String,
    continuation: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rolling {
    text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Generate {
    prompt: String,
    max_tokens: usize,
    #[serde(default)]
    stop: Vec<String>,
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    repeat_penalty: Option<f64>,
    repeat_last_n: Option<usize>,
    seed: Option<u64>,
}

impl Request {
    /// # Errors
    /// No such type, or keys that it does not have, or lacks.
    fn read(mut object: Map<String, Value>) -> Result<Self> {
        fn of<T: DeserializeOwned>(object: Map<String, Value>) -> Result<T> {
            Ok(serde_json::from_value(Value::Object(object))?)
        }
        let kind = object.remove("type").context("the request has no type")?;
        match kind.as_str() {
            Some("loglikelihood") => Ok(Self::Loglikelihood(of(object)?)),
            Some("loglikelihood_rolling") => Ok(Self::Rolling(of(object)?)),
            Some("generate") => Ok(Self::Generate(of(object)?)),
            _ => bail!("unknown type {kind}; known: loglikelihood, loglikelihood_rolling, generate"),
        }
    }
}

impl Generate {
    fn sampling(&self) -> Result<SampleOptions> {
        let usual = SampleOptions::default();
        let sampling = SampleOptions {
            temperature: self.temperature.unwrap_or(usual.temperature),
            top_k: self.top_k.filter(|&k| k > 0),
            top_p: self.top_p.unwrap_or(usual.top_p),
            min_p: self.min_p.unwrap_or(usual.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(usual.repeat_penalty),
            repeat_last_n: self.repeat_last_n.unwrap_or(usual.repeat_last_n),
            seed: self.seed.unwrap_or(usual.seed),
        };
        let share = |x: f64| (0.0..=1.0).contains(&x);
        ensure!(sampling.temperature.is_finite() && sampling.temperature >= 0.0, "temperature must be at least 0");
        ensure!(share(sampling.top_p) && sampling.top_p > 0.0, "top_p must be above 0 and at most 1");
        ensure!(share(sampling.min_p), "min_p must be from 0 to 1");
        ensure!(sampling.repeat_penalty.is_finite() && sampling.repeat_penalty > 0.0, "repeat_penalty must be above 0");
        Ok(sampling)
    }
}

/// Runs the command.
///
/// # Errors
/// The model can't be loaded or answers no requests, stdin can't be read, or stdout is closed.
pub(crate) fn run(args: &RequestsArgs) -> Result<()> {
    let opened = model::open(&args.model)?;
    let most = args.max_length.or(opened.model.trained_context()).unwrap_or(DEFAULT_LENGTH);
    let length = model::window_length(args.model.rope.rope_length);
    let mut answerer = Answerer::new(&opened.model, most, length)?;
    opened.check_memory(most, |n| {
        let logits = opened.model.logits_at_once().min(n);
        Workload { rows: 1, pass: n, cached: n, encoded: 0, logits }
    })?;
    opened.bos(args.bos)?;
    hello(args, &opened, most)?;
    let mut stdin = stdin().lock();
    let mut line = vec![];
    for number in 1usize.. {
        line.clear();
        if stdin.read_until(b'\n', &mut line).context("can't read stdin")? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let (id, answer) = answered(&line, args, &opened, &mut answerer);
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                // If there is no id, the number of the line says which request it was.
                let place = if id.is_null() { format!("line {number}: ") } else { String::new() };
                json!({"error": format!("{place}{}", one_line(error.as_ref()))})
            }
        };
        answer["id"] = id;
        print(&format!("{answer}\n"))?;
    }
    Ok(())
}

/// Says what model it is.
fn hello(args: &RequestsArgs, opened: &Opened, max_length: usize) -> Result<()> {
    let (scaling, factor) = positions::scaling(&opened.model);
    let hello = json!({
        "format": "attn-requests/1", "attn": env!("CARGO_PKG_VERSION"), "model": opened.name, "max_length": max_length,
        "trained_context": opened.model.trained_context(), "scaling": scaling, "factor": factor,
        "vocab_size": opened.model.vocab_size(), "bos": opened.bos(args.bos)?, "prefix": prefix(opened)?,
        "eos": opened.checkpoint.generation.eos_ids,
    });
    print(&format!("{hello}\n"))
}

/// The id of a request, null without one, and its answer.
fn answered(line: &[u8], args: &RequestsArgs, opened: &Opened, answerer: &mut Answerer) -> (Value, Result<Value>) {
    let mut object = match serde_json::from_slice(line) {
        Ok(Value::Object(object)) => object,
        Ok(_) => return (Value::Null, Err(anyhow::anyhow!("a request must be a JSON object"))),
        Err(error) => return (Value::Null, Err(anyhow::anyhow!("it is not JSON: {error}"))),
    };
    let id = object.remove("id").unwrap_or_default();
    (id, Request::read(object).and_then(|request| answer(&request, args, opened, answerer)))
}

fn answer(request: &Request, args: &RequestsArgs, opened: &Opened, answerer: &mut Answerer) -> Result<Value> {
    let tokenizer = opened.tokenizer()?;
    let encode = |text: &str, special: bool| -> Result<Vec<u32>> {
        Ok(match args.bos {
            _ if !special => tokenizer.encode(text, false)?,
            BosChoice::Auto => tokenizer.encode(text, true)?,
            BosChoice::On => tokenizer.encode_with_bos(text, true)?,
            BosChoice::Off => tokenizer.encode_with_bos(text, false)?,
        })
    };
    match request {
        Request::Loglikelihood(Pair { context, continuation }) => {
            let (context, continuation) = split(context, continuation, prefix(opened)?, encode)?;
            let Likelihood { logprob, is_greedy, tokens, left_out } = answerer.likelihood(&context, &continuation)?;
            Ok(json!({"logprob": logprob, "is_greedy": is_greedy, "tokens": tokens, "left_out": left_out}))
        }
        Request::Rolling(Rolling { text }) => {
            let found = answerer.rolling(&encode(text, true)?, prefix(opened)?)?;
            Ok(json!({"logprob": found.logprob, "tokens": found.tokens}))
        }
        Request::Generate(asked) => {
            let (prompt, ends) = (encode(&asked.prompt, true)?, &opened.checkpoint.generation.eos_ids);
            let sampling = asked.sampling()?;
            let found = answerer.continuation(tokenizer, &prompt, asked.max_tokens, (ends, &asked.stop), sampling)?;
            Ok(json!({
                "text": found.text, "tokens": found.tokens, "stopped": found.stopped, "left_out": found.left_out,
            }))
        }
    }
}

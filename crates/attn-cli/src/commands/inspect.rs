//! `attn inspect`: what a model is made of.

use crate::model::{self, Opened};
use crate::options::ModelArgs;
use crate::output::{print_json, print_text};
use anyhow::Result;
use attn_eval::encoding::describe;
use attn_eval::report::ranges;
use attn_models::Architecture;
use attn_models::encodings::{EncodingGroup, Place};
use attn_models::spec::{AttentionSpec, ModelSpec, StackSpec};
use clap::Args;
use serde_json::{Map, Value, json};

/// `attn inspect`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  attn inspect
  attn inspect MODEL --rope-scaling yarn --rope-factor 4 --json")]
pub(crate) struct InspectArgs {
    /// Print the result as one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// Runs the command.
///
/// # Errors
/// The model can't be loaded.
pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let opened = model::open(&args.model)?;
    let facts = facts(&opened, model::window_length(args.model.rope.rope_length))?;
    if args.json { print_json(&facts) } else { print_text(&summary(&facts)) }
}

/// All facts, as the JSON document.
fn facts(opened: &Opened, length: Option<usize>) -> Result<Value> {
    let (model, spec) = (&opened.model, opened.model.spec());
    let length = length.or(model.trained_context()).unwrap_or(1);
    let [k, v] = spec.stored_as(model.dtype(), model.cache_types());
    let mut facts = json!({
        "model": opened.name,
        "revision": opened.checkpoint.origin.commit,
        "family": spec.family,
        "architecture": architecture(spec),
        "parameters": model.parameters(),
        "dtype": format!("{:?}", model.dtype()).to_lowercase(),
        "stored_dtypes": stored_dtypes(opened),
        "quantization": opened.checkpoint.quantization,
        "layers": spec.stack.layers.len(),
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "trained_context": model.trained_context(),
        "max_context": model.max_context(),
        "kv_bytes_per_token": spec.cache_bytes_per_token(model.dtype(), model.cache_types()),
        "cache_type_k": k,
        "cache_type_v": v,
        "position": groups(&spec.stack, length)?,
    });
    if let (Some(facts), Some(first)) = (facts.as_object_mut(), spec.stack.layers.first()) {
        heads(facts, &first.attention);
        if let Some(encoder) = &spec.encoder {
            facts.insert("encoder_layers".into(), json!(encoder.layers.len()));
            facts.insert("encoder_position".into(), Value::Array(groups(encoder, length)?));
        }
    }
    Ok(facts)
}

fn architecture(spec: &ModelSpec) -> &'static str {
    match spec.architecture {
        Architecture::Decoder => "decoder",
        Architecture::Encoder => "encoder",
        Architecture::EncoderDecoder => "encoder-decoder",
    }
}

fn stored_dtypes(opened: &Opened) -> Vec<String> {
    let weights = &opened.checkpoint.weights;
    let name = |tensor: &String| match weights.dtype(tensor) {
        Some(dtype) => format!("{dtype:?}").to_lowercase(),
        None => "quantized".to_string(),
    };
    let mut names: Vec<String> = weights.names().iter().map(name).collect();
    names.sort();
    names.dedup();
    names
}

fn heads(facts: &mut Map<String, Value>, attention: &AttentionSpec) {
    let numbers = match attention {
        AttentionSpec::MultiHead(a) => vec![("heads", a.heads), ("kv_heads", a.kv_heads), ("head_dim", a.head_dim)],
        AttentionSpec::Latent(a) => vec![
            ("heads", a.heads),
            ("kv_lora_rank", a.kv_lora_rank),
            ("qk_nope_head_dim", a.qk_nope_head_dim),
            ("qk_rope_head_dim", a.qk_rope_head_dim),
            ("v_head_dim", a.v_head_dim),
        ],
    };
    facts.extend(numbers.into_iter().map(|(key, number)| (key.to_string(), json!(number))));
}

/// The encodings, each once with the layers that use it.
fn groups(stack: &StackSpec, length: usize) -> Result<Vec<Value>> {
    stack.encodings().iter().map(|group| group_facts(group, length)).collect()
}

fn group_facts(group: &EncodingGroup, length: usize) -> Result<Value> {
    let on = match group.place {
        Place::Embeddings => "embeddings",
        Place::Attention => "attention",
    };
    let mut value = json!({ "layers": group.layers, "on": on });
    let described = serde_json::to_value(describe(group.config, length))?;
    if let (Some(value), Value::Object(described)) = (value.as_object_mut(), described) {
        value.extend(described);
        value.extend(group.window.map(|w| ("sliding_window".to_string(), json!(w))));
        value.extend(group.chunk.map(|c| ("chunk".to_string(), json!(c))));
    }
    Ok(value)
}

/// The facts for a person.
fn summary(facts: &Value) -> String {
    let text = |key: &str| match &facts[key] {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    };
    let mut out = String::new();
    let mut row = |name: &str, value: String| out.push_str(&format!("{name:<13}{value}\n"));
    row("model", text("model"));
    row("architecture", format!("{} {}", text("family"), text("architecture")));
    row("parameters", grouped(facts["parameters"].as_u64().unwrap_or(0)));
    row("dtype", format!("{}, stored as {}", text("dtype"), text("stored_dtypes")));
    if !facts["quantization"].is_null() {
        row("quantised", text("quantization"));
    }
    row("layers", format!("{} of width {}", text("layers"), text("hidden_size")));
    match facts.get("kv_heads") {
        Some(kv) => row("heads", format!("{}, {kv} for keys and values, width {}", text("heads"), text("head_dim"))),
        None => row("heads", format!("{} over a latent of width {}", text("heads"), text("kv_lora_rank"))),
    }
    row("vocabulary", text("vocab_size"));
    if !facts["trained_context"].is_null() {
        row("context", format!("trained to {}", text("trained_context")));
    }
    if !facts["max_context"].is_null() {
        row("", format!("at most {}", text("max_context")));
    }
    if facts["architecture"] != "encoder" {
        let (k, v) = (text("cache_type_k"), text("cache_type_v"));
        row("cache", format!("{} bytes per token, keys in {k}, values in {v}", text("kv_bytes_per_token")));
    }
    for (title, key) in [("position", "position"), ("encoder", "encoder_position")] {
        for group in facts[key].as_array().into_iter().flatten() {
            out.push_str(&position(title, group));
        }
    }
    out.push_str("\nattn explain shows what the encoding does: wavelengths, scalings, decay, bias\n");
    out
}

fn position(title: &str, group: &Value) -> String {
    let layers = group["layers"].as_array().into_iter().flatten().filter_map(Value::as_u64);
    let layers: Vec<usize> = layers.map(|layer| layer as usize).collect();
    let place = format!("layers {}", ranges(&layers));
    let place = if group["on"] == "embeddings" { format!("on the embeddings, {place}") } else { place };
    let mut out = format!("\n{title:<13}{place}\n");
    const FIRST: [&str; 6] = ["kind", "rope_type", "factor", "theta", "attention_factor", "length"];
    const ELSEWHERE: [&str; 5] = ["layers", "on", "inv_freq", "wavelengths", "slopes"];
    let mut rows: Vec<_> = group.as_object().into_iter().flatten().collect();
    rows.retain(|(key, _)| !ELSEWHERE.contains(&key.as_str()));
    rows.sort_by_key(|(key, _)| FIRST.iter().position(|first| first == key).unwrap_or(FIRST.len()));
    for (key, value) in rows {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
        out.push_str(&format!("  {key} {value}\n"));
    }
    out
}

/// A number with its digits in threes.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let first = digits.len() % 3;
    let (head, tail) = digits.split_at(first);
    let mut parts: Vec<&str> = if head.is_empty() { vec![] } else { vec![head] };
    parts.extend(tail.as_bytes().chunks(3).filter_map(|chunk| std::str::from_utf8(chunk).ok()));
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_read_well() {
        assert_eq!(
            [grouped(0), grouped(999), grouped(1000), grouped(134_515_008)],
            ["0", "999", "1 000", "134 515 008"]
        );
    }
}

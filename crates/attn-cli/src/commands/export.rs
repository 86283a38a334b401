//! `attn export`: a checkpoint with another position scaling in its config, and the equivalent options of programs that
//! serve models.

use crate::embedded::Embedded;
use crate::model;
use crate::options::ModelArgs;
use crate::output::{print_json, print_text, usage, write_file, write_folder};
use crate::parse::parse_positive;
use crate::ropes::{Ropes, text_config};
use anyhow::{Context, Result, bail};
use attn_core::position::extend::LOG_N;
use attn_core::position::{PositionConfig, PositionOverride};
use attn_models::config::UnknownKeys;
use attn_models::families;
use attn_models::spec::ModelSpec;
use clap::Args;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// `attn export`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  attn export MODEL --rope-scaling yarn --rope-factor 2 --out model-16k
  attn export MODEL --rope-theta 500000  # only print options for serving

config.json gets the scaling in the spelling of transformers 5 (rope_parameters) and of transformers 4 \
(rope_scaling, rope_theta). Weights and tokenizer are copied.")]
pub(crate) struct ExportArgs {
    /// Folder to write [default: none; only print the options for other programs]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Link to the weights instead of copying them
    #[arg(long, requires = "out")]
    pub(crate) link: bool,
    /// Context to serve [default: the trained context times the factor]
    #[arg(short, long, alias = "ctx-size", value_name = "N", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) context: Option<usize>,
    /// Print the result as one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// Runs the command.
///
/// # Errors
/// The model has no rotary encoding, its config can't express the scaling, or the folder can't be written.
pub(crate) fn run(args: &ExportArgs) -> Result<()> {
    args.model.cache.refuse("export")?;
    let (checkpoint, name) = model::checkpoint(args.model.model.as_deref(), &args.model.load)?;
    let change = args.model.rope.to_override()?;
    refuse(&change)?;
    let own = model::spec(&checkpoint.config, &name, &args.model.load)?;
    let wanted = own.with_positions(&change).with_context(|| format!("can't read {name}"))?;
    let ropes = Ropes::of(&wanted, &name)?;
    let context = if change.is_none() { ropes.main().max_position_embeddings } else { ropes.main().extended_context() };
    let parameters = ropes.parameters(&checkpoint.config)?;
    let config = new_config(&checkpoint.config, &ropes, &parameters, context)?;
    check(&config, &wanted, model::unknown_keys(&args.model.load))?;
    let mut files = vec![];
    if let Some(out) = &args.out {
        files = write(args, out, &config, &checkpoint.origin)?;
    }
    let served = args.out.as_ref().map_or_else(|| served_name(args), |out| out.display().to_string());
    let length = args.context.unwrap_or(context);
    let vllm = ropes.vllm(&config, &served, length);
    let llama_cpp = ropes.llama_cpp(length);
    if args.json {
        let folder = args.out.as_ref().map(|out| out.display().to_string());
        return print_json(&json!({
            "model": name, "out": folder, "files": files, "rope_parameters": parameters,
            "max_position_embeddings": context, "vllm": vllm, "llama_cpp": llama_cpp,
        }));
    }
    let mut text = String::new();
    if let Some(out) = &args.out {
        text.push_str(&format!("{}: {}\n\n", out.display(), files.join(", ")));
    }
    let parameters = serde_json::to_string(&parameters)?;
    text.push_str(&format!("rope_parameters (transformers 5)\n  {parameters}\n\n"));
    for (title, lines) in [("vLLM", &vllm), ("llama.cpp", &llama_cpp)] {
        text.push_str(&format!("{title}\n  {}\n\n", lines.replace('\n', "\n  ")));
    }
    print_text(&text[..text.len() - 1])
}

/// Refuses changes that no config can express.
fn refuse(change: &PositionOverride) -> Result<()> {
    let log_n = change.extend.log_n.then_some(LOG_N);
    let Some(name) = change.extend.method.map(|method| method.name).or(log_n) else { return Ok(()) };
    let elsewhere = match name {
        "self-extend" => ", or in llama.cpp with --grp-attn-n and --grp-attn-w if its version has them",
        _ => "",
    };
    bail!("config.json can't express {name}: use it in this program or its library{elsewhere}")
}

fn served_name(args: &ExportArgs) -> String {
    args.model.model.clone().unwrap_or_else(|| "MODEL".to_string())
}

/// The config with `parameters` in transformers' new spelling and its old one.
fn new_config(config: &Value, ropes: &Ropes, parameters: &Map<String, Value>, context: usize) -> Result<Value> {
    let mut config = config.clone();
    let place = if text_config(&config).is_some() { &mut config["text_config"] } else { &mut config };
    let Some(top) = place.as_object_mut() else { bail!("config.json is not a JSON object") };
    let main = ropes.main().to_hf()?;
    let theta = main["rope_theta"].clone();
    let neox = top.get("model_type").is_some_and(|kind| kind == "gpt_neox");
    // With a `rope_scaling` beside it, GPT-NeoX's class takes the base only from this key, in transformers 5 too.
    if neox || top.contains_key("rotary_emb_base") {
        top.insert("rotary_emb_base".into(), theta.clone());
    }
    top.insert("rope_theta".into(), theta);
    // Gemma 3's local layers have a base of their own in transformers 4, and no scaling.
    if let Some(local) = parameters.get("sliding_attention").and_then(|local| local.get("rope_theta")) {
        top.insert("rope_local_base_freq".into(), local.clone());
    }
    // transformers 4 keeps the share beside the dictionary.
    if let Some(share) = main.get("partial_rotary_factor") {
        top.insert(if neox { "rotary_pct" } else { "partial_rotary_factor" }.into(), share.clone());
    }
    let mut old = main.clone();
    old.remove("rope_theta");
    old.remove("partial_rotary_factor");
    // Phi-3's class in transformers 4 refuses every scaling but its own, and longrope with further keys.
    let no_old = main["rope_type"] == "default" || top.get("model_type").is_some_and(|kind| kind == "phi3");
    top.insert("rope_scaling".into(), if no_old { Value::Null } else { Value::Object(old) });
    top.insert("rope_parameters".into(), Value::Object(parameters.clone()));
    let length_key = ["n_positions", "max_sequence_length"].into_iter().find(|key| top.contains_key(*key));
    let has_usual = top.contains_key("max_position_embeddings") || length_key.is_none();
    top.insert(
        if has_usual { "max_position_embeddings" } else { length_key.unwrap_or_default() }.into(),
        json!(context),
    );
    // At the top level it would win over the dictionary.
    if top.contains_key("original_max_position_embeddings") {
        match main.get("original_max_position_embeddings") {
            Some(original) => top.insert("original_max_position_embeddings".into(), original.clone()),
            None => top.remove("original_max_position_embeddings"),
        };
    }
    Ok(config)
}

/// Reads the new config back. If a layer does not rotate as it should, the family's config cannot express the scaling.
fn check(config: &Value, wanted: &ModelSpec, unknown: UnknownKeys) -> Result<()> {
    let (read, _) = families::spec_with(config, unknown).context("the exported config can't be read back")?;
    for (index, (read, wanted)) in read.stack.layers.iter().zip(&wanted.stack.layers).enumerate() {
        let kind = match (read.attention.position(), wanted.attention.position()) {
            (PositionConfig::Rope(read), PositionConfig::Rope(wanted)) if read.same_frequencies(wanted) => continue,
            (_, PositionConfig::Rope(wanted)) => wanted.scaling.scheme().called(),
            (PositionConfig::Rope(_), _) => "what it has",
            _ => continue,
        };
        bail!("transformers' configs of this family can't express {kind} as it is computed here (layer {index})")
    }
    Ok(())
}

/// Writes the folder; what was written, by name.
fn write(args: &ExportArgs, out: &Path, config: &Value, origin: &loader::Origin) -> Result<Vec<String>> {
    if origin.files.iter().any(|file| file.name.ends_with(".gguf")) {
        return usage(
            "--out can't change a GGUF file, which holds its scaling itself: without --out, export prints the options for \
             other programs",
        );
    }
    if out.exists() && fs::read_dir(out).map_or(true, |mut entries| entries.next().is_some()) {
        return usage(format!("--out {} exists and is not an empty folder", out.display()));
    }
    write_folder(out, |folder| fill(args, folder, config, origin))
}

/// Writes the files into a folder.
fn fill(args: &ExportArgs, out: &Path, config: &Value, origin: &loader::Origin) -> Result<Vec<String>> {
    let mut written = vec![];
    let embedded = Embedded::find(args.model.model.as_deref()).map(|model| model.files());
    for (name, contents) in embedded.into_iter().flatten() {
        write_file(&out.join(name), |file| Ok(file.write_all(contents)?))?;
        written.push(name.to_string());
    }
    for path in companions(origin) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        copy(&path, &out.join(&name), args.link && is_weights(&path))?;
        written.push(name);
    }
    // Last, so that a folder with a config is complete.
    let text = format!("{}\n", serde_json::to_string_pretty(config)?);
    write_file(&out.join("config.json"), |file| Ok(file.write_all(text.as_bytes())?))?;
    written.push("config.json".to_string());
    Ok(written)
}

fn is_weights(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors")
}

/// The checkpoint's files and the tokenizer files in the same folder, without its config.
fn companions(origin: &loader::Origin) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = origin.files.iter().filter_map(|file| Some(file.path()?.to_path_buf())).collect();
    let folder = paths.first().and_then(|path| path.parent()).map(Path::to_path_buf);
    let beside = folder.and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let wanted = ["json", "txt", "model", "jinja"];
    paths.extend(beside.map(|entry| entry.path()).filter(|path| {
        path.is_file() && path.extension().is_some_and(|extension| wanted.iter().any(|wanted| extension == *wanted))
    }));
    paths.retain(|path| path.file_name().is_some_and(|name| name != "config.json"));
    paths.sort();
    paths.dedup();
    paths
}

/// Copies a file, or points to it. A link in the hub's cache is followed: the copy is of the contents.
fn copy(from: &Path, to: &Path, link: bool) -> Result<()> {
    let failed = || format!("can't copy {} to {}", from.display(), to.display());
    #[cfg(unix)]
    if link {
        return std::os::unix::fs::symlink(fs::canonicalize(from).with_context(failed)?, to).with_context(failed);
    }
    #[cfg(not(unix))]
    if link {
        return fs::hard_link(from, to).with_context(failed);
    }
    fs::copy(from, to).with_context(failed)?;
    Ok(())
}

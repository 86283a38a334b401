//! `attn export`: a checkpoint with another position scaling in its config, and the options that come to the same where
//! models are served.

use crate::embedded::Embedded;
use crate::lab_args::ExportArgs;
use crate::model;
use crate::output::{print, print_json, usage, write_file};
use crate::serving;
use anyhow::{Context, Result, bail, ensure};
use attn_core::position::{PositionConfig, RopeConfig};
use attn_models::families;
use attn_models::spec::ModelSpec;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Runs the command.
///
/// # Errors
/// The model has no single rotary encoding, its config can't express the scaling, or the folder can't be written.
pub(crate) fn run(args: &ExportArgs) -> Result<()> {
    let (checkpoint, name) = model::checkpoint(args.model.model.as_deref(), &args.model.load)?;
    let change = args.model.rope.to_override();
    let read = || format!("can't read {name}");
    let own = families::spec(&checkpoint.config).with_context(read)?;
    let wanted = own.with_rope(&change).with_context(read)?;
    let rope = single_rope(&wanted, &name)?;
    let context = if change == attn_core::RopeOverride::default() {
        rope.max_position_embeddings
    } else {
        rope.extended_context()
    };
    let parameters = rope.to_hf()?;
    let config = new_config(&checkpoint.config, &parameters, context)?;
    check(&config, &rope)?;
    let mut files = vec![];
    if let Some(out) = &args.out {
        files = write(args, out, &config, &checkpoint.origin)?;
    }
    let served = args.out.as_ref().map_or_else(|| served_name(args), |out| out.display().to_string());
    let vllm = serving::vllm(&rope, &parameters, &served, args.context.unwrap_or(context));
    let llama_cpp = serving::llama_cpp(&rope, args.context.unwrap_or(context));
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
    print(&text[..text.len() - 1])
}

fn served_name(args: &ExportArgs) -> String {
    args.model.model.clone().unwrap_or_else(|| "MODEL".to_string())
}

/// The rotary encoding of all layers that have one; a config has room for no more.
fn single_rope(spec: &ModelSpec, name: &str) -> Result<RopeConfig> {
    let layers = spec.stack.layers.iter().map(|layer| layer.attention.position());
    let mut ropes = layers.filter_map(|config| match config {
        PositionConfig::Rope(rope) => Some(rope),
        _ => None,
    });
    let Some(first) = ropes.next() else { bail!("{name} has no rotary position encoding to export") };
    ensure!(ropes.all(|rope| rope == first), "{name} has several rotary encodings, by layer: export takes one");
    Ok(first.clone())
}

/// The config with `parameters` in transformers' new spelling and its old one.
fn new_config(config: &Value, parameters: &Map<String, Value>, context: usize) -> Result<Value> {
    let mut config = config.clone();
    let Some(top) = config.as_object_mut() else { bail!("the config is no object") };
    let nested = |value: &Value| value.as_object().is_some_and(|dict| dict.values().any(Value::is_object));
    if let Some(key) = ["rope_parameters", "rope_scaling"].into_iter().find(|key| top.get(*key).is_some_and(nested)) {
        bail!("{key} has an entry per type of layer: export takes a single one");
    }
    let theta = parameters["rope_theta"].clone();
    let neox = top.get("model_type").is_some_and(|kind| kind == "gpt_neox");
    // With a `rope_scaling` beside it, GPT-NeoX's class takes the base from here alone, in transformers 5 too.
    if neox || top.contains_key("rotary_emb_base") {
        top.insert("rotary_emb_base".into(), theta.clone());
    }
    top.insert("rope_theta".into(), theta);
    // transformers 4 keeps the share beside the dictionary.
    if let Some(share) = parameters.get("partial_rotary_factor") {
        top.insert(if neox { "rotary_pct" } else { "partial_rotary_factor" }.into(), share.clone());
    }
    let mut old = parameters.clone();
    old.remove("rope_theta");
    old.remove("partial_rotary_factor");
    // Phi-3's class in transformers 4 refuses every scaling but its own, and longrope with further keys.
    let no_old = parameters["rope_type"] == "default" || top.get("model_type").is_some_and(|kind| kind == "phi3");
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
        match parameters.get("original_max_position_embeddings") {
            Some(original) => top.insert("original_max_position_embeddings".into(), original.clone()),
            None => top.remove("original_max_position_embeddings"),
        };
    }
    Ok(config)
}

/// Reads the new config back: every layer has to turn as it should, or the config can't say it.
fn check(config: &Value, wanted: &RopeConfig) -> Result<()> {
    let spec = families::spec(config).context("the exported config can't be read back")?;
    let read = single_rope(&spec, "the exported config")?;
    let kind = wanted.scaling.name();
    ensure!(read.same_frequencies(wanted), "{}'s config can't express {kind} as it is computed here", spec.family);
    Ok(())
}

/// Writes the folder; what was written, by name.
fn write(args: &ExportArgs, out: &Path, config: &Value, origin: &loader::Origin) -> Result<Vec<String>> {
    if origin.files.iter().any(|file| file.name.ends_with(".gguf")) {
        return usage(
            "a GGUF file keeps its scaling with its weights: leave --out away for the options to serve it with",
        );
    }
    if out.exists() && fs::read_dir(out).map_or(true, |mut entries| entries.next().is_some()) {
        return usage(format!("--out {}: it is there and not an empty folder", out.display()));
    }
    fs::create_dir_all(out).with_context(|| format!("can't make the folder {}", out.display()))?;
    let mut written = vec![];
    let embedded = Embedded::find(args.model.model.as_deref()).map(Embedded::files);
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

/// The checkpoint's files and what else lies beside them of a tokenizer, without its config.
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

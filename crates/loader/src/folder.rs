//! A checkpoint in a folder laid out as Hugging Face does, which is also what the hub cache's snapshots are.

use crate::{
    chat::ChatTemplate,
    checkpoint::{Checkpoint, GenerationDefaults, Origin, OriginFile},
    deferred::Deferred,
    error::{LoadError, Result},
    options::LoadOptions,
    regular,
    safetensors::{self, SafetensorsSource},
    scaled,
    tokenizer::Tokenizer,
};
use serde_json::Value;
use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Bounds on the small files, an order of magnitude over the largest known.
const MAX_JSON: u64 = 64 << 20;
const MAX_TOKENIZER: u64 = 512 << 20;

/// The files a checkpoint may have besides its weights, which a download fetches if they exist.
pub(crate) const SMALL_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];
pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Parses JSON that has to be an object.
pub(crate) fn parse_object(file: &Path, bytes: &[u8]) -> Result<Value> {
    let json = |reason: String| LoadError::Json { file: file.to_path_buf(), reason };
    let value: Value = serde_json::from_slice(bytes).map_err(|e| json(format!("not valid JSON: {e}")))?;
    if value.is_object() { Ok(value) } else { Err(json("expected a JSON object".to_string())) }
}

fn read_object(path: &Path) -> Result<Value> {
    parse_object(path, &regular::read(path, MAX_JSON)?)
}

/// Opens the checkpoint in `folder`; `model` and `commit` are for its origin.
pub(crate) fn open(folder: &Path, model: &str, commit: Option<String>, options: &LoadOptions) -> Result<Checkpoint> {
    let config_path = folder.join("config.json");
    if !regular::exists(&config_path)? {
        return Err(missing_config(folder));
    }
    let mut config = read_object(&config_path)?;
    let (weights, mut files) = open_weights(folder, options)?;
    let (weights, quantization) = scaled::fold(&mut config, &config_path, weights)?;
    for path in SMALL_FILES.map(|name| folder.join(name)) {
        if regular::exists(&path)? {
            files.push(path);
        }
    }
    let tokenizer_config = optional_object(folder, "tokenizer_config.json")?;
    let generation_config = optional_object(folder, "generation_config.json")?;
    let generation_path = folder.join("generation_config.json");
    let mut sources: Vec<(&Value, &Path)> = generation_config.iter().map(|v| (v, generation_path.as_path())).collect();
    sources.push((&config, &config_path));
    let generation = generation_defaults(&sources)?;
    let tokenizer_path = folder.join("tokenizer.json");
    let tokenizer = if regular::exists(&tokenizer_path)? {
        let bytes = regular::read(&tokenizer_path, MAX_TOKENIZER)?;
        let beside = [tokenizer_config.clone(), optional_object(folder, "special_tokens_map.json")?];
        let (config, generation) = (config.clone(), generation.clone());
        Some(Deferred::start(tokenizer_path, move || {
            let mut tokenizer = Tokenizer::parse(&bytes)?;
            configure(&mut tokenizer, beside.each_ref().map(Option::as_ref), &config, &generation);
            Ok(tokenizer)
        }))
    } else {
        None
    };
    let chat_template = find_template(folder, tokenizer_config.as_ref())?;
    let files = files.into_iter().map(|p| OriginFile::on_disk(folder, p)).collect::<Result<_>>()?;
    let origin = Origin { model: model.to_string(), commit, files };
    Ok(Checkpoint {
        config,
        weights: Arc::from(weights),
        tokenizer,
        chat_template,
        generation,
        quantization,
        warnings: Vec::new(),
        origin,
    })
}

/// The checkpoint whose files are given as bytes.
pub(crate) fn from_bytes(config: &[u8], weights: Cow<'static, [u8]>, tokenizer: Option<&[u8]>) -> Result<Checkpoint> {
    let name = Path::new("embedded config.json");
    let config_value = parse_object(name, config)?;
    let generation = generation_defaults(&[(&config_value, name)])?;
    let weights_file = match &weights {
        Cow::Borrowed(bytes) => OriginFile::embedded(SINGLE, bytes),
        Cow::Owned(bytes) => OriginFile::digested(SINGLE, bytes),
    };
    let mut files = vec![OriginFile::digested("config.json", config), weights_file];
    let tokenizer = match tokenizer {
        Some(bytes) => {
            files.push(OriginFile::digested("tokenizer.json", bytes));
            let mut tokenizer = Tokenizer::from_json(Path::new("embedded tokenizer.json"), bytes)?;
            configure(&mut tokenizer, [None, None], &config_value, &generation);
            Some(Deferred::ready(tokenizer))
        }
        None => None,
    };
    let weights = SafetensorsSource::from_bytes("embedded model.safetensors", weights)?;
    let origin = Origin { model: "embedded".to_string(), commit: None, files };
    Ok(Checkpoint {
        config: config_value,
        weights: Arc::new(weights),
        tokenizer,
        chat_template: None,
        generation,
        quantization: None,
        warnings: Vec::new(),
        origin,
    })
}

fn optional_object(folder: &Path, name: &str) -> Result<Option<Value>> {
    let path = folder.join(name);
    if regular::exists(&path)? { read_object(&path).map(Some) } else { Ok(None) }
}

fn listing(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn missing_config(folder: &Path) -> LoadError {
    let names = listing(folder);
    let hint = match names.iter().find(|n| n.to_ascii_lowercase().ends_with(".gguf")) {
        Some(gguf) => format!("to use the GGUF file in it, give {}", folder.join(gguf).display()),
        None => "a model folder has config.json beside its safetensors files".to_string(),
    };
    LoadError::MissingFile { folder: folder.to_path_buf(), file: "config.json".to_string(), hint }
}

/// One file if there is one, else the shards of the index, as transformers looks for them.
fn open_weights(folder: &Path, options: &LoadOptions) -> Result<(SafetensorsSource, Vec<PathBuf>)> {
    let single = folder.join(SINGLE);
    let index = folder.join(INDEX);
    if regular::exists(&single)? {
        return Ok((SafetensorsSource::open(&single, options.mmap)?, vec![single]));
    }
    if regular::exists(&index)? {
        let source = SafetensorsSource::open_sharded(&index, options.mmap)?;
        let mut files = vec![index.clone()];
        files.extend(safetensors::shards(&index)?.into_iter().map(|s| folder.join(s)));
        return Ok((source, files));
    }
    Err(missing_weights(&folder.display().to_string(), folder, &listing(folder)))
}

/// Why there are no weights among `names`, as helpfully as the names allow.
pub(crate) fn missing_weights(location: &str, folder: &Path, names: &[String]) -> LoadError {
    let with = |suffixes: &[&str]| -> Vec<&str> {
        let ends = |n: &&String| suffixes.iter().any(|s| n.ends_with(s));
        names.iter().filter(ends).map(String::as_str).collect()
    };
    let pickled = with(&[".bin", ".pt", ".pth", ".ckpt"]);
    let (other, gguf) = (with(&[".safetensors"]), with(&[".gguf"]));
    let missing = |hint: String| LoadError::MissingFile {
        folder: folder.to_path_buf(),
        file: format!("{SINGLE} or {INDEX}"),
        hint,
    };
    if !other.is_empty() {
        let hint = format!("found {}; rename it if it holds the whole model", first_few(&other));
        return missing(hint);
    }
    if !gguf.is_empty() {
        let sep = if location.ends_with('/') { "" } else { "/" };
        return missing(format!("the folder holds GGUF weights: give one of its files, {location}{sep}{}", gguf[0]));
    }
    if !pickled.is_empty() {
        return LoadError::PickledWeights { location: location.to_string(), files: first_few(&pickled) };
    }
    missing("the folder holds no weights".to_string())
}

fn first_few(names: &[&str]) -> String {
    let more = if names.len() > 3 { format!(" and {} more", names.len() - 3) } else { String::new() };
    format!("{}{more}", names[..names.len().min(3)].join(", "))
}

/// An id or a list of ids under `key`.
fn ids(value: &Value, key: &str, file: &Path) -> Result<Vec<u32>> {
    let bad = || LoadError::Json {
        file: file.to_path_buf(),
        reason: format!("{key}: expected a token id or a list of them"),
    };
    let one = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok()).ok_or_else(bad);
    match value.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        // Some tokenizers without an end token write -1.
        Some(Value::Number(n)) if n.as_i64() == Some(-1) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().filter(|v| !v.is_null()).map(one).collect(),
        Some(v) => Ok(vec![one(v)?]),
    }
}

fn generation_defaults(sources: &[(&Value, &Path)]) -> Result<GenerationDefaults> {
    let first = |key: &str| -> Result<Vec<u32>> {
        for (source, file) in sources {
            let inner = source.get("text_config").unwrap_or(&Value::Null);
            for level in [*source, inner] {
                let found = ids(level, key, file)?;
                if !found.is_empty() {
                    return Ok(found);
                }
            }
        }
        Ok(Vec::new())
    };
    Ok(GenerationDefaults { bos_id: first("bos_token_id")?.first().copied(), eos_ids: first("eos_token_id")? })
}

/// Sets what tokenizer.json does not hold, from the files beside it.
fn configure(tok: &mut Tokenizer, sources: [Option<&Value>; 2], config: &Value, generation: &GenerationDefaults) {
    let special = |key: &str| {
        sources.iter().flatten().find_map(|s| {
            let v = s.get(key)?;
            let text = v.as_str().or_else(|| v.get("content")?.as_str())?;
            tok.id(text)
        })
    };
    let (bos, eos) = (special("bos_token"), special("eos_token"));
    tok.bos_id = bos.or(generation.bos_id);
    tok.eos_ids = eos.map_or_else(|| generation.eos_ids.clone(), |id| vec![id]);
    tok.add_bos = sources[0].and_then(|s| s.get("add_bos_token")?.as_bool());
    tok.add_eos = sources[0].and_then(|s| s.get("add_eos_token")?.as_bool());
    let vocab_size = config.get("vocab_size").or_else(|| config.get("text_config")?.get("vocab_size"));
    if let Some(n) = vocab_size.and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()) {
        tok.set_vocab_limit(n);
    }
}

/// The template in a file of its own, else in tokenizer_config.json (one, or several with names).
fn find_template(folder: &Path, tokenizer_config: Option<&Value>) -> Result<Option<ChatTemplate>> {
    let jinja = folder.join("chat_template.jinja");
    if regular::exists(&jinja)? {
        let bytes = regular::read(&jinja, MAX_JSON)?;
        let reason = format!("{} is not UTF-8", jinja.display());
        let text = String::from_utf8(bytes).map_err(|_| LoadError::ChatTemplate { reason })?;
        return Ok(Some(ChatTemplate::new(&text).in_file(&jinja)));
    }
    let own = optional_object(folder, "chat_template.json")?;
    let sources = [("chat_template.json", own.as_ref()), ("tokenizer_config.json", tokenizer_config)];
    let found = sources.into_iter().find_map(|(file, v)| Some((file, v?.get("chat_template")?)));
    let text = match found.map(|(_, value)| value) {
        Some(Value::String(text)) => Some(text.as_str()),
        Some(Value::Array(list)) => {
            let named = |t: &&Value| t.get("name").and_then(Value::as_str) == Some("default");
            let chosen = list.iter().find(named).or_else(|| list.first());
            chosen.and_then(|t| t.get("template")?.as_str())
        }
        _ => None,
    };
    let file = folder.join(found.map_or("", |(file, _)| file));
    Ok(text.map(|text| ChatTemplate::new(text).in_file(&file)))
}

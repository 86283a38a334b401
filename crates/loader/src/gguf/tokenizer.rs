//! The tokenizer of a GGUF file: the vocabulary is in its metadata, the rules are in llama.cpp's source.
//!
//! Byte-level BPE files name the regular expression that splits words (`tokenizer.ggml.pre`); SentencePiece ones are
//! rebuilt as the BPE that gives the same merges. An unknown name is refused, because a guess would give ids that are
//! almost right, and a model that is quietly worse.

use super::{
    meta::Meta,
    parse::{Ints, Value},
};
use crate::{
    error::{LoadError, Result},
    splits::{Split, splits},
    tokenizer::{MAX_ADDED, Tokenizer},
};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    decoders::{byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as Decoders, strip::Strip},
    models::bpe::BPE,
    normalizers::{Prepend, Replace, Sequence as Normalizers},
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence as PreTokenizers,
        split::{Split as SplitPreTokenizer, SplitPattern},
    },
};

/// Token types of `tokenizer.ggml.token_type`.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Control tokens that end an answer, which files often do not list: llama.cpp recognises them by their text too.
const ENDS: [&str; 10] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "<|return|>",
    "<end_of_utterance>",
];

/// The vocabulary as stored.
struct Vocab<'a> {
    tokens: &'a [String],
    types: Option<&'a Ints>,
    ids: ahash::AHashMap<&'a str, u32>,
}

/// Builds the tokenizer, or `None` if the file has none.
pub(super) fn build(meta: &Meta, vocab_size: usize, warnings: &mut Vec<String>) -> Result<Option<Tokenizer>> {
    let model = match meta.global_str("tokenizer.ggml.model")? {
        None | Some("none" | "no_vocab") => return Ok(None),
        Some(model) => model,
    };
    if !["gpt2", "llama"].contains(&model) {
        let reason = format!("{model:?} is not supported (gpt2 and llama are)");
        return Err(meta.global_error("tokenizer.ggml.model", reason));
    }
    let vocab = read_vocab(meta)?;
    let (inner, bos_by_default) = match model {
        "gpt2" => byte_level(meta, &vocab, warnings)?,
        _ => (sentence_piece(meta, &vocab)?, true),
    };
    let mut tok = Tokenizer::new(inner);
    let count = vocab.tokens.len() as u64;
    let id = |name: &str| -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match meta.global_u64(&key)? {
            // Absent ids are written as 2^32 - 1.
            Some(id) if id == u64::from(u32::MAX) => Ok(None),
            Some(id) if id >= count => Err(meta.global_error(&key, format!("{id}, but there are {count} tokens"))),
            id => Ok(id.map(|id| id as u32)),
        }
    };
    let default = if model == "llama" { (Some(1), Some(2)) } else { (None, None) };
    tok.bos_id = id("bos")?.or(default.0.filter(|&d| u64::from(d) < count));
    tok.eos_ids = id("eos")?.or(default.1.filter(|&d| u64::from(d) < count)).into_iter().collect();
    let named = ENDS.iter().filter_map(|text| vocab.ids.get(text).copied());
    let named = named.filter(|&id| vocab.kind(id) == Some(CONTROL));
    for id in [id("eot")?, id("eom")?].into_iter().flatten().chain(named) {
        if !tok.eos_ids.contains(&id) {
            tok.eos_ids.push(id);
        }
    }
    tok.add_bos = Some(meta.global_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(bos_by_default));
    tok.add_eos = Some(meta.global_bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false));
    tok.set_vocab_limit(vocab_size);
    Ok(Some(tok))
}

fn read_vocab<'a>(meta: &Meta<'a>) -> Result<Vocab<'a>> {
    const TOKENS: &str = "tokenizer.ggml.tokens";
    const TYPES: &str = "tokenizer.ggml.token_type";
    let tokens: &[String] = match meta.global(TOKENS) {
        Some(Value::Strs(tokens)) if !tokens.is_empty() => tokens,
        _ => return Err(meta.global_error(TOKENS, "expected a list of strings")),
    };
    let types = match meta.global(TYPES) {
        None => None,
        Some(Value::Ints(types)) if types.len() == tokens.len() => Some(types),
        Some(_) => return Err(meta.global_error(TYPES, format!("expected {} integers", tokens.len()))),
    };
    let added = |kind: &i64| [CONTROL, UNKNOWN, USER_DEFINED].contains(kind);
    let special = types.map_or(0, |types| types.iter().filter(added).count());
    if special > MAX_ADDED {
        return Err(
            meta.global_error(TYPES, format!("{special} tokens are special; at most {MAX_ADDED} are supported"))
        );
    }
    let mut ids = ahash::AHashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if ids.insert(token.as_str(), id as u32).is_some() {
            return Err(meta.global_error(TOKENS, format!("token {token:?} appears twice")));
        }
    }
    Ok(Vocab { tokens, types, ids })
}

impl Vocab<'_> {
    /// Tokens recognised in the text before anything else, in order of their ids.
    fn added(&self) -> (Vec<AddedToken>, Vec<AddedToken>) {
        let of = |wanted: &[i64], special: bool| {
            let tokens = self.tokens.iter().zip(self.types.into_iter().flat_map(Ints::iter));
            let chosen = tokens.filter(|(token, kind)| wanted.contains(kind) && !token.is_empty());
            chosen.map(|(token, _)| AddedToken::from(token.clone(), special).normalized(false)).collect()
        };
        (of(&[CONTROL, UNKNOWN], true), of(&[USER_DEFINED], false))
    }

    fn map<M: FromIterator<(String, u32)>>(&self) -> M {
        self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id as u32)).collect()
    }

    fn kind(&self, id: u32) -> Option<i64> {
        self.types?.get(id as usize)
    }

    fn is_special(&self, id: u32) -> bool {
        self.kind(id).is_some_and(|kind| [CONTROL, UNKNOWN, USER_DEFINED].contains(&kind))
    }
}

fn failed(meta: &Meta, reason: impl ToString) -> LoadError {
    LoadError::Tokenizer { file: meta.file().to_path_buf(), reason: reason.to_string() }
}

/// Adds the tokens that are matched whole.
fn finish(meta: &Meta, vocab: &Vocab, bpe: BPE) -> Result<tokenizers::Tokenizer> {
    let mut tok = tokenizers::Tokenizer::new(bpe);
    let (special, plain) = vocab.added();
    tok.add_special_tokens(special).map_err(|e| failed(meta, e))?;
    tok.add_tokens(plain).map_err(|e| failed(meta, e))?;
    Ok(tok)
}

/// Byte-level BPE; also whether a text begins with BOS unless the file says otherwise.
fn byte_level(meta: &Meta, vocab: &Vocab, warnings: &mut Vec<String>) -> Result<(tokenizers::Tokenizer, bool)> {
    const MERGES: &str = "tokenizer.ggml.merges";
    let pre = meta.global_str("tokenizer.ggml.pre")?.unwrap_or_else(|| {
        warnings.push(
            "the file does not say how its tokenizer splits words (tokenizer.ggml.pre is missing): llama.cpp's default is \
             taken, which is a guess; tokens may be wrong"
                .to_string(),
        );
        "default"
    });
    let Split { regexes, ignore_merges, add_bos } =
        splits(pre).ok_or_else(|| LoadError::PreTokenizer { file: meta.file().to_path_buf(), pre: pre.to_string() })?;
    let Some(Value::Strs(lines)) = meta.global(MERGES) else {
        return Err(meta.global_error(MERGES, "expected a list of strings"));
    };
    let mut merges = Vec::with_capacity(lines.len());
    for line in lines {
        // The first half may itself be a space in old files, hence not from the start.
        let at = line.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(i, _)| i);
        let Some(at) = at else { return Err(meta.global_error(MERGES, format!("{line:?} is not a pair"))) };
        merges.push((line[..at].to_string(), line[at + 1..].to_string()));
    }
    let bpe =
        BPE::builder().vocab_and_merges(vocab.map::<ahash::AHashMap<_, _>>(), merges).ignore_merges(ignore_merges);
    let bpe = bpe.build().map_err(|e| failed(meta, e))?;
    let mut tok = finish(meta, vocab, bpe)?;
    let mut steps = Vec::new();
    for regex in regexes {
        let pattern = SplitPattern::Regex((*regex).to_string());
        let split = SplitPreTokenizer::new(pattern, SplitDelimiterBehavior::Isolated, false);
        steps.push(PreTokenizerWrapper::from(split.map_err(|e| failed(meta, e))?));
    }
    steps.push(ByteLevel::new(false, true, false).into());
    tok.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
    tok.with_decoder(Some(ByteLevel::default()));
    Ok((tok, add_bos))
}

/// SentencePiece: merges in the order of the scores of what they make, bytes for what has no token.
fn sentence_piece(meta: &Meta, vocab: &Vocab) -> Result<tokenizers::Tokenizer> {
    const SCORES: &str = "tokenizer.ggml.scores";
    const SPACE: &str = "\u{2581}";
    let scores = match meta.global(SCORES) {
        Some(Value::Floats(scores)) if scores.len() == vocab.tokens.len() => scores,
        _ => return Err(meta.global_error(SCORES, format!("expected {} numbers", vocab.tokens.len()))),
    };
    let merges = merges_by_score(vocab, scores);
    let mut builder = BPE::builder().vocab_and_merges(vocab.map::<ahash::AHashMap<_, _>>(), merges).fuse_unk(true);
    if vocab.ids.contains_key("<0x00>") {
        builder = builder.byte_fallback(true);
    }
    let unknown = meta.global_u64("tokenizer.ggml.unknown_token_id")?.unwrap_or(0) as usize;
    if let Some(unk) = vocab.tokens.get(unknown) {
        builder = builder.unk_token(unk.clone());
    }
    let mut tok = finish(meta, vocab, builder.build().map_err(|e| failed(meta, e))?)?;
    let prefix = meta.global_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let spaces = Replace::new(" ", SPACE).map_err(|e| failed(meta, e))?;
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if prefix {
        normalizers.push(Prepend::new(SPACE.to_string()).into());
    }
    normalizers.push(spaces.into());
    tok.with_normalizer(Some(Normalizers::new(normalizers))).map_err(|e| failed(meta, e))?;
    let back = Replace::new(SPACE, " ").map_err(|e| failed(meta, e))?;
    let mut decoders: Vec<DecoderWrapper> = vec![back.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefix {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tok.with_decoder(Some(Decoders::new(decoders)));
    Ok(tok)
}

/// Every way to make a token of two others, the best token first and, within one, as SentencePiece orders them.
fn merges_by_score(vocab: &Vocab, scores: &[f32]) -> Vec<(String, String)> {
    // Tokens longer than this are never made by merging; the cap keeps the work linear in a hostile vocabulary.
    const MAX_CHARS: usize = 256;
    // Score and the halves with their lengths; the lengths only decide between equal scores.
    let mut found: Vec<(f32, [u16; 2], u32, u32)> = Vec::new();
    for (id, token) in vocab.tokens.iter().enumerate() {
        let chars = token.chars().take(MAX_CHARS + 1).count();
        if vocab.is_special(id as u32) || chars > MAX_CHARS {
            continue;
        }
        let first = found.len();
        for (n, (at, _)) in token.char_indices().enumerate().skip(1) {
            let halves = (vocab.ids.get(&token[..at]), vocab.ids.get(&token[at..]));
            if let (Some(&left), Some(&right)) = halves
                && !vocab.is_special(left)
                && !vocab.is_special(right)
            {
                found.push((scores[id], [n as u16, (chars - n) as u16], left, right));
            }
        }
        found[first..].sort_by_key(|&(_, _, left, right)| (left, right));
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    let text = |id: u32| vocab.tokens[id as usize].clone();
    found.into_iter().map(|(_, _, left, right)| (text(left), text(right))).collect()
}

//! How byte-level BPE splits text into words before merging, by the name a GGUF file gives (`tokenizer.ggml.pre`).
//!
//! The table follows llama.cpp's `llama-vocab.cpp`, with each expression as the original tokenizer.json has it where
//! llama.cpp had to work around its own engine.

/// The rules behind a name.
pub(crate) struct Split {
    /// Applied one after the other, each to the pieces the one before left.
    pub(crate) regexes: &'static [&'static str],
    /// Whether a word that is itself a token is taken whole, whatever the merges say.
    pub(crate) ignore_merges: bool,
    /// Whether a text begins with BOS unless the file says otherwise.
    pub(crate) add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const DEEPSEEK3: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/// The rules for `pre`, or `None` if it is not known.
pub(crate) fn splits(pre: &str) -> Option<Split> {
    let split = |regexes, ignore_merges, add_bos| Some(Split { regexes, ignore_merges, add_bos });
    match pre {
        "default" => split(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], false, false),
        "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "gigachat" | "jina-v2-es" | "jina-v2-de" | "jina-v1-en"
        | "jina-v2-code" | "roberta-bpe" | "a.x-4.0" | "mellum" | "modern-bert" | "mpt" | "olmo" | "jais"
        | "trillion" | "granite-docling" | "exaone4" => split(&[GPT2], false, false),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
            split(&[DIGIT, GPT2], false, false)
        }
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
        | "jina-v5-nano" => split(&[LLAMA3], true, true),
        "dbrx" | "smaug-bpe" | "chatglm-bpe" => split(&[LLAMA3], false, false),
        "jais-2" => split(&[JAIS2], false, false),
        "glm4" | "glm5" => split(&[LLAMA3], true, false),
        "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "stablelm2" | "megrez" | "hunyuan" | "solar-open"
        | "grok-2" => split(&[QWEN2], false, false),
        "qwen35" => split(&[QWEN35], false, false),
        "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => split(&[GPT4O], false, false),
        "tekken" => split(&[TEKKEN], true, true),
        "falcon" => split(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"], false, false),
        "bloom" | "poro-chat" | "gpt3-finnish" => split(&[BLOOM], false, false),
        "viking" => split(&[BLOOM, DIGIT], false, false),
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" => {
            split(&[r"\p{N}{1,3}", "[一-龥\u{3040}-ゟ゠-ヿ]+", DEEPSEEK3], false, false)
        }
        "deepseek-coder" => {
            split(&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\u{d7ff}]+", DIGIT], false, false)
        }
        _ => None,
    }
}

/// Where an expression ends words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SplitKind {
    /// Between a letter and any other character, and before every end of a line that a letter follows.
    WordsAndLines,
    /// Between a letter and any other character, so that a stop and the end of the line after it stay together.
    Words,
    /// At characters of one kind, between any neighbours.
    Characters,
}

/// What kind an expression is, if it is one of those above.
pub(crate) fn split_kind(regex: &str) -> Option<SplitKind> {
    const WORDS: [&str; 9] = [LLAMA3, JAIS2, QWEN2, QWEN35, GPT4O, TEKKEN, BLOOM, DEEPSEEK3, r"\s?\p{L}+"];
    const CHARACTERS: [&str; 10] = [
        DIGIT,
        r"\p{N}+",
        r"\p{N}{1,3}",
        "[0-9][0-9][0-9]",
        r"[\r\n]",
        r"\s?\p{P}+",
        r"[\p{P}\$\+<=>\^~\|]+",
        r"[\p{P}\$\+<=>\^~\|`]+",
        "[一-龥\u{3040}-ゟ゠-ヿ]+",
        "[一-龥ࠀ-一가-\u{d7ff}]+",
    ];
    match regex {
        GPT2 => Some(SplitKind::WordsAndLines),
        _ if WORDS.contains(&regex) => Some(SplitKind::Words),
        _ => CHARACTERS.contains(&regex).then_some(SplitKind::Characters),
    }
}

/// A name for every set of rules there is, and its expressions.
#[cfg(test)]
pub(crate) fn all_splits() -> Vec<(&'static str, &'static [&'static str])> {
    let names = [
        "default",
        "gpt-2",
        "smollm",
        "llama3",
        "jais-2",
        "qwen2",
        "qwen35",
        "gpt-4o",
        "tekken",
        "falcon",
        "bloom",
        "viking",
        "deepseek-v3",
        "deepseek-coder",
    ];
    names.into_iter().filter_map(|name| Some((name, splits(name)?.regexes))).collect()
}

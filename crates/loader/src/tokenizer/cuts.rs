//! Where a text can be cut so that its tokens do not change.
//!
//! A text can be cut at a place for one of two reasons. Either the pre-tokenizer ends a word there; the expressions for
//! which this is known are listed, and with any other a text is not cut. Or no token of a BPE vocabulary has the two
//! characters side by side, so that no merge reaches across. Which places are tried depends on the writing: between
//! words with a space between them, at the end of a line, and, in writing without spaces, before a stop or between two
//! characters of words. All of them are next to letters that no normaliser composes with their neighbours.
//!
//! `pieces_tests.rs` compares the rules with one call over the whole text, for every listed part and every place of
//! random texts.

use crate::splits::{SplitKind, split_kind};
use serde_json::Value;
use std::{
    collections::HashSet,
    ops::{BitAnd, BitOr},
};
use tokenizers::{ModelWrapper, NormalizedString, Normalizer as _, normalizers::NormalizerWrapper};

/// Kinds of places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Places(u8);

impl Places {
    const NONE: Self = Self(0);
    /// Between a letter and a space that a letter follows.
    pub(super) const SPACE: Self = Self(1);
    /// Between a letter and a line's end that a letter follows.
    pub(super) const LINE: Self = Self(2);
    /// Between the stop of a line and its end, which a letter follows.
    pub(super) const STOPPED_LINE: Self = Self(4);
    /// Between a letter and a stop that a letter follows, in writing without spaces.
    pub(super) const STOP: Self = Self(8);
    /// Between two letters of writing without spaces.
    pub(super) const LETTERS: Self = Self(16);
    /// Wherever GPT-2's expression ends a word.
    const WORDS: Self = Self(1 | 2 | 4 | 8);
    const ALL: Self = Self(31);

    /// What kind of place is between `a` and `b`, which `c` follows.
    fn of(a: char, b: char, c: char) -> Self {
        match b {
            ' ' if is_letter(a) && is_letter(c) => Self::SPACE,
            '\n' if is_letter(a) && is_letter(c) => Self::LINE,
            '\n' if is_stop(a) && is_letter(c) => Self::STOPPED_LINE,
            '\u{3002}' | '\u{3001}' | '\u{ff0c}' if is_letter(a) && is_letter(c) => Self::STOP,
            _ if is_spaceless(a) && is_spaceless(b) => Self::LETTERS,
            _ => Self::NONE,
        }
    }

    fn has(self, kind: Self) -> bool {
        self.0 & kind.0 != 0
    }
}

impl BitOr for Places {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Places {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// Letters that have no decomposition, or one into letters, in the scripts that long texts come in.
fn is_letter(c: char) -> bool {
    match c {
        'a'..='z' | 'A'..='Z' => true,
        // Greek; Cyrillic but for the short i; Hebrew; Arabic but for what has a hamza or lengthens a line.
        '\u{391}'..='\u{3a1}' | '\u{3a3}'..='\u{3a9}' | '\u{3b1}'..='\u{3c9}' => true,
        '\u{419}' | '\u{439}' => false,
        '\u{410}'..='\u{44f}' | '\u{5d0}'..='\u{5ea}' => true,
        '\u{627}'..='\u{63a}' | '\u{641}'..='\u{64a}' => true,
        // Consonants of Devanagari and Thai.
        '\u{929}' | '\u{931}' | '\u{934}' => false,
        '\u{915}'..='\u{939}' | '\u{e01}'..='\u{e2e}' => true,
        // Hangul.
        '\u{ac00}'..='\u{d7a3}' => true,
        _ => is_spaceless(c),
    }
}

/// Letters of Chinese and Japanese, but for kana with a mark of voice.
fn is_spaceless(c: char) -> bool {
    match c {
        '\u{3041}'..='\u{3093}' => !is_voiced(c as u32),
        '\u{30a1}'..='\u{30f3}' => !is_voiced(c as u32 - 0x60),
        '\u{4e00}'..='\u{9fa5}' => true,
        _ => false,
    }
}

/// Whether a character of Hiragana is another one with a mark of voice.
fn is_voiced(c: u32) -> bool {
    match c {
        0x304b..=0x3062 => c.is_multiple_of(2),
        0x3065 | 0x3067 | 0x3069 => true,
        0x306f..=0x307d => !c.is_multiple_of(3),
        _ => false,
    }
}

/// What a line may end with beside a letter.
fn is_stop(c: char) -> bool {
    matches!(
        c,
        '.' | ','
            | ';'
            | ':'
            | '!'
            | '?'
            | '"'
            | '\''
            | ')'
            | '\u{3002}'
            | '\u{ff0c}'
            | '\u{ff01}'
            | '\u{ff1f}'
            | '\u{ff1a}'
            | '\u{ff1b}'
            | '\u{201d}'
            | '\u{2019}'
            | '\u{300d}'
            | '\u{300f}'
            | '\u{ff09}'
            | '\u{2026}'
    )
}

/// The last place in `text`, but for what is before `from`, at which GPT-2's words end: between a letter and a space, a line's
/// end or a stop that a letter follows.
#[must_use]
pub fn last_word_end(text: &str, from: usize) -> Option<usize> {
    last(text, from, Places::WORDS, |_, _| true)
}

/// The last place of these kinds, but for what is before `from`, at which `allowed` lets it be cut.
fn last(text: &str, from: usize, kinds: Places, mut allowed: impl FnMut(Places, [char; 3]) -> bool) -> Option<usize> {
    let from = text.floor_char_boundary(from);
    let mut after: [Option<(usize, char)>; 2] = [None; 2];
    for (at, a) in text[from..].char_indices().rev() {
        if let [Some((place, b)), Some((_, c))] = after {
            let kind = Places::of(a, b, c) & kinds;
            if kind != Places::NONE && allowed(kind, [a, b, c]) {
                return Some(from + place);
            }
        }
        after = [Some((at, a)), after[0]];
    }
    None
}

/// Where a text can be cut for one tokenizer.
#[derive(Debug, Clone)]
pub(super) struct Cuts {
    /// Where words end.
    words: Places,
    /// Which characters are never in one token, where merges alone decide.
    pairs: Option<Pairs>,
    /// Where neither a token that is matched whole nor a normaliser reaches across.
    open: Places,
}

impl Cuts {
    /// What the parts of a tokenizer allow.
    pub(super) fn of(inner: &tokenizers::Tokenizer) -> Self {
        let part = |value: Result<Value, serde_json::Error>| value.unwrap_or(Value::from("unknown"));
        let normalizer = inner.get_normalizer().map_or(Value::Null, |n| part(serde_json::to_value(n)));
        let pre = inner.get_pre_tokenizer().map_or(Value::Null, |p| part(serde_json::to_value(p)));
        let open = normalised_apart(&normalizer) & matched_apart(inner);
        let lines_are_spaces = normalised(inner.get_normalizer(), "a\nb").is_some_and(|text| text.ends_with("a b"));
        match Splits::of(&pre, lines_are_spaces) {
            Some(splits) if open != Places::NONE => {
                let pairs = if splits.only_characters { Pairs::of(inner, splits.bytes) } else { None };
                Self { words: splits.ends, pairs, open }
            }
            _ => Self { words: Places::NONE, pairs: None, open: Places::NONE },
        }
    }

    /// Whether there is any place to cut a text.
    #[cfg(test)]
    pub(super) fn any(&self) -> bool {
        self.open != Places::NONE && (self.words != Places::NONE || self.pairs.is_some())
    }

    /// The last place to cut `text`, but for what is before `from`.
    pub(super) fn last(&self, inner: &tokenizers::Tokenizer, text: &str, from: usize) -> Option<usize> {
        let kinds = if self.pairs.is_some() { Places::ALL } else { self.words } & self.open;
        last(text, from, kinds, |kind, around| {
            self.words.has(kind) || self.pairs.as_ref().is_some_and(|pairs| pairs.parts(inner, around))
        })
    }
}

/// What a normaliser makes of a text.
fn normalised(normalizer: Option<&NormalizerWrapper>, text: &str) -> Option<String> {
    let mut string = NormalizedString::from(text);
    if let Some(normalizer) = normalizer {
        normalizer.normalize(&mut string).ok()?;
    }
    Some(string.get().to_string())
}

/// Where no token that is matched whole reaches from one side to the other.
fn matched_apart(inner: &tokenizers::Tokenizer) -> Places {
    let mut open = Places::ALL;
    let mut shut = |places: Places| open = Places(open.0 & !places.0);
    for token in inner.get_added_tokens_decoder().values() {
        let content: Vec<char> = token.content.chars().collect();
        let blank = |c: char| c.is_whitespace() || c.is_control();
        for pair in content.windows(2) {
            match (pair[0], pair[1]) {
                (a, b) if blank(b) && a.is_alphanumeric() => shut(Places::SPACE | Places::LINE | Places::STOPPED_LINE),
                (_, b) if blank(b) => shut(Places::STOPPED_LINE),
                (a, b) if a.is_alphabetic() && b.is_alphabetic() && !(a.is_ascii() && b.is_ascii()) => {
                    shut(Places::LETTERS);
                }
                // The last two are what the first become in half the width.
                (a, ',' | '\u{3002}' | '\u{3001}' | '\u{ff0c}' | '\u{ff61}' | '\u{ff64}') if a.is_alphabetic() => {
                    shut(Places::STOP);
                }
                _ => {}
            }
        }
        // One that takes the space after it.
        match content.last() {
            Some(last) if token.rstrip && last.is_alphabetic() => shut(Places::SPACE | Places::LINE),
            Some(&last) if token.rstrip && is_stop(last) => shut(Places::STOPPED_LINE),
            _ => {}
        }
        // A token that has to stand alone is not found between letters.
        if token.single_word {
            shut(Places::LETTERS);
        }
    }
    open
}

/// Where a normaliser never looks from one side to the other.
fn normalised_apart(part: &Value) -> Places {
    let Some(kind) = part.get("type").and_then(Value::as_str) else {
        return if part.is_null() { Places::ALL } else { Places::NONE };
    };
    match kind {
        "Sequence" => {
            let all = part["normalizers"].as_array().map_or(&[][..], Vec::as_slice);
            all.iter().map(normalised_apart).fold(Places::ALL, BitAnd::bitand)
        }
        // None of these makes one of a letter and what follows it here, or looks at both.
        "NFC" | "NFD" | "NFKC" | "NFKD" | "Nmt" | "Lowercase" | "StripAccents" | "BertNormalizer" | "Precompiled"
        | "Strip" | "Prepend" => Places::ALL,
        "Replace" => match (part["pattern"]["String"].as_str(), part["pattern"]["Regex"].as_str()) {
            (Some(pattern), _) if pattern.is_empty() || pattern.chars().any(char::is_alphabetic) => Places::NONE,
            // A match that reaches across has the letter before.
            (Some(pattern), _) if pattern.chars().count() == 1 || !pattern.contains('\n') => Places::ALL,
            (Some(_), _) => Places::SPACE | Places::LINE | Places::STOP,
            (None, Some(" {2,}")) => Places::ALL,
            (None, _) => Places::NONE,
        },
        _ => Places::NONE,
    }
}

/// What a pre-tokenizer does.
struct Splits {
    /// Where it ends words.
    ends: Places,
    /// Whether it looks at one character at a time, so that it does the same wherever a text is cut.
    only_characters: bool,
    /// Whether what it hands on are bytes.
    bytes: bool,
}

impl Splits {
    fn new(ends: Places, only_characters: bool) -> Option<Self> {
        Some(Self { ends, only_characters, bytes: false })
    }

    /// `None`: a pre-tokenizer that is not known. A normaliser may have made spaces of lines' ends.
    fn of(part: &Value, lines_are_spaces: bool) -> Option<Self> {
        let Some(kind) = part.get("type").and_then(Value::as_str) else {
            return if part.is_null() { Self::new(Places::NONE, true) } else { None };
        };
        let flag = |key: &str| part.get(key).and_then(Value::as_bool);
        let lines = Places::LINE | Places::STOPPED_LINE;
        match kind {
            "Sequence" => {
                let mut all = Self { ends: Places::NONE, only_characters: true, bytes: false };
                for part in part["pretokenizers"].as_array()? {
                    let part = Self::of(part, lines_are_spaces)?;
                    all.ends = all.ends | part.ends;
                    all.only_characters &= part.only_characters;
                    all.bytes |= part.bytes;
                }
                Some(all)
            }
            "ByteLevel" if flag("use_regex") == Some(false) => {
                Some(Self { ends: Places::NONE, only_characters: true, bytes: true })
            }
            "ByteLevel" | "Whitespace" | "BertPreTokenizer" => Self::new(Places::WORDS, false),
            "WhitespaceSplit" => Self::new(Places::SPACE | lines, true),
            "Metaspace" if flag("split") != Some(false) => {
                Self::new(if lines_are_spaces { Places::SPACE | lines } else { Places::SPACE }, true)
            }
            "Metaspace" | "Digits" | "Punctuation" => Self::new(Places::NONE, true),
            "Split" => Self::by_pattern(part),
            _ => None,
        }
    }

    fn by_pattern(part: &Value) -> Option<Self> {
        let invert = part.get("invert").and_then(Value::as_bool);
        let whole = match part["behavior"].as_str()? {
            "Isolated" => invert == Some(false),
            "Removed" => invert == Some(true),
            _ => false,
        };
        match (part["pattern"]["String"].as_str(), part["pattern"]["Regex"].as_str()) {
            (Some(" "), _) => Self::new(Places::NONE, true),
            (_, Some(regex)) if whole => match split_kind(regex)? {
                SplitKind::WordsAndLines => Self::new(Places::WORDS, false),
                SplitKind::Words => Self::new(Places::SPACE | Places::LINE | Places::STOP, false),
                SplitKind::Characters => Self::new(Places::NONE, false),
            },
            _ => None,
        }
    }
}

/// The characters that stand side by side in some token of a BPE vocabulary. Two that don't are never joined by merges.
#[derive(Debug, Clone)]
struct Pairs {
    seen: HashSet<(char, char)>,
    /// Whether the characters of tokens stand for bytes.
    bytes: bool,
}

impl Pairs {
    /// `None`: the model looks at more than pairs.
    fn of(inner: &tokenizers::Tokenizer, bytes: bool) -> Option<Self> {
        let ModelWrapper::BPE(bpe) = inner.get_model() else { return None };
        let plain = |affix: &Option<String>| affix.as_deref().is_none_or(str::is_empty);
        if bpe.ignore_merges || !plain(&bpe.continuing_subword_prefix) || !plain(&bpe.end_of_word_suffix) {
            return None;
        }
        let mut seen = HashSet::new();
        for token in bpe.get_vocab().keys() {
            // Of the bytes that characters without a token become.
            if bpe.byte_fallback && token.starts_with("<0x") && token.len() > 6 {
                return None;
            }
            seen.extend(token.chars().zip(token.chars().skip(1)));
        }
        Some(Self { seen, bytes })
    }

    /// Whether no token reaches from `a` to `b`, which `c` follows, and the normaliser leaves all three as they are.
    fn parts(&self, inner: &tokenizers::Tokenizer, [a, b, c]: [char; 3]) -> bool {
        let spelt = |b: char| match b {
            ' ' => vec![' ', '\u{2581}', '\u{120}'],
            '\n' => vec!['\n', '\u{10a}'],
            b => vec![b],
        };
        if self.bytes && !(a.is_ascii() && b.is_ascii()) || spelt(b).iter().any(|&b| self.seen.contains(&(a, b))) {
            return false;
        }
        normalised(inner.get_normalizer(), &String::from_iter([a, b, c])).is_some_and(|text| {
            let mut last = text.chars().rev();
            last.next() == Some(c) && last.next().is_some_and(|n| spelt(b).contains(&n)) && last.next() == Some(a)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_next_to_letters() {
        let kind = |text: &str| {
            let all: Vec<char> = text.chars().collect();
            Places::of(all[0], all[1], all[2])
        };
        for (text, want) in [
            ("e t", Places::SPACE),
            ("\u{434} \u{43c}", Places::SPACE),
            ("\u{b2e4} \u{b098}", Places::SPACE),
            ("e\nt", Places::LINE),
            (".\nT", Places::STOPPED_LINE),
            ("\u{3002}\n\u{5b57}", Places::STOPPED_LINE),
            ("\u{5b57}\u{3002}\u{5b57}", Places::STOP),
            ("\u{5b57}\u{5b57}\u{5b57}", Places::LETTERS),
            ("\u{30ab}\u{30ca}.", Places::LETTERS),
            ("e  ", Places::NONE),
            ("1 2", Places::NONE),
            ("\u{439} \u{43c}", Places::NONE),
            ("\u{304c}\u{3001}\u{5b57}", Places::NONE),
            (" \nT", Places::NONE),
        ] {
            assert_eq!(kind(text), want, "{text:?}");
        }
        assert_eq!(last_word_end("one two three", 0), Some(7));
        assert_eq!(last_word_end("one two three", 7), None);
        assert_eq!(last_word_end("", 5), None);
    }

    /// What a normaliser could make of a letter here is letters: nothing is composed with what stands beside it.
    #[test]
    fn letters_stay_letters() {
        use tokenizers::normalizers::{NFC, NFD, NFKC, NFKD};
        let forms: [NormalizerWrapper; 4] = [NFC.into(), NFD.into(), NFKC.into(), NFKD.into()];
        for c in ('\0'..=char::MAX).filter(|&c| is_letter(c)) {
            for form in &forms {
                let made = normalised(Some(form), &c.to_string()).unwrap();
                let jamo = |c: char| ('\u{1100}'..='\u{11ff}').contains(&c);
                assert!(made.chars().eq([c]) || made.chars().all(jamo), "{c:?} becomes {made:?}");
            }
        }
    }
}

//! Checks of a tokenizer.json before `tokenizers` builds it.
//!
//! A panic of `tokenizers` can be caught. An allocation that fails cannot be caught, and a text that grows a
//! thousandfold looks like a long one. So whatever needs memory far beyond the file's own size is refused here: tables
//! that claim to be longer than they are, replacements that grow, and more special tokens than any vocabulary has.

use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

/// More tokens matched whole than any vocabulary has; adding them takes time with the square of their number.
pub(crate) const MAX_ADDED: usize = 1 << 15;
/// How many times as long a text may become; published tokenizers turn a space into three bytes.
const MAX_GROWTH: f64 = 1024.0;
/// Bytes that a character may be replaced with in a table of SentencePiece; the longest known has 33.
const MAX_REPLACEMENT: usize = 256;

/// The parts of a tokenizer.json that are checked.
#[derive(Deserialize)]
pub(super) struct Outline {
    #[serde(default)]
    added_tokens: Option<Vec<IgnoredAny>>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    dropout: Option<f64>,
}

impl Outline {
    /// Reads and checks the outline of a tokenizer.json.
    ///
    /// # Errors
    /// It is no tokenizer.json, or asks for too much; what of it.
    pub(super) fn check(bytes: &[u8]) -> Result<Self, String> {
        let outline: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let added = outline.added_tokens.as_ref().map_or(0, Vec::len);
        if added > MAX_ADDED {
            return Err(format!("{added} tokens are matched whole; at most {MAX_ADDED} are supported"));
        }
        for (name, part) in [("normalizer", &outline.normalizer), ("decoder", &outline.decoder)] {
            let growth = growth(part).map_err(|reason| format!("{name}: {reason}"))?;
            if growth > MAX_GROWTH {
                return Err(format!(
                    "its {name} can make a text {growth:.0} times as long; at most {MAX_GROWTH} are supported"
                ));
            }
        }
        check_lengths(&outline.pre_tokenizer)?;
        Ok(outline)
    }

    /// The probability with which merges are left out at random, if there is one.
    pub(super) fn dropout(&self) -> Option<f64> {
        self.model.dropout.filter(|&p| p > 0.0)
    }
}

/// How many times as long a normaliser or a decoder can make a text.
fn growth(part: &Value) -> Result<f64, String> {
    let of_all = |list: &Value| -> Result<f64, String> {
        list.as_array().into_iter().flatten().try_fold(1.0, |product, part| Ok(product * growth(part)?))
    };
    let text = |key: &str| part.get(key).and_then(Value::as_str).map_or(0, str::len) as f64;
    Ok(match part.get("type").and_then(Value::as_str) {
        Some("Sequence") => of_all(&part["normalizers"])? * of_all(&part["decoders"])?,
        Some("Replace") => match part["pattern"]["String"].as_str().map(str::len) {
            Some(length) if length > 0 => (text("content") / length as f64).max(1.0),
            // An expression may match the nothing between any two characters.
            _ => text("content") + 1.0,
        },
        Some("Prepend") => text("prepend") + 1.0,
        Some("Precompiled") => {
            check_table(part["precompiled_charsmap"].as_str().unwrap_or_default())?;
            1.0
        }
        _ => 1.0,
    })
}

/// Pieces without characters would make an endless loop.
fn check_lengths(part: &Value) -> Result<(), String> {
    if part["type"] == "FixedLength" && part["length"] == 0 {
        return Err("its pre_tokenizer cuts a text into pieces of no characters".to_string());
    }
    part["pretokenizers"].as_array().into_iter().flatten().try_for_each(check_lengths)
}

/// A table of SentencePiece in base64: the length of a trie, the trie, and the replacements, each ended by a zero byte.
fn check_table(base64: &str) -> Result<(), String> {
    let bytes = decode(base64).ok_or("its precompiled_charsmap is not base64")?;
    let [a, b, c, d, rest @ ..] = bytes.as_slice() else {
        return Err("its precompiled_charsmap is cut off".to_string());
    };
    let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
    let Some(replacements) = rest.get(length..) else {
        let has = rest.len();
        return Err(format!("its precompiled_charsmap claims a trie of {length} bytes and has {has}"));
    };
    let longest = replacements.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0);
    match longest > MAX_REPLACEMENT {
        true => Err(format!("its precompiled_charsmap replaces a character with {longest} bytes")),
        false => Ok(()),
    }
}

/// The bytes that base64 stands for.
fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').bytes();
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut held, mut bits) = (0u32, 0);
    for digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (held, bits) = (held << 6 | u32::from(value), bits + 6);
        if bits >= 8 {
            bits -= 8;
            out.push((held >> bits) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(part: &str, value: Value) -> Result<(), String> {
        let mut tokenizer = json!({"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []});
        tokenizer[part] = value;
        Outline::check(tokenizer.to_string().as_bytes()).map(drop)
    }

    #[test]
    fn base64_is_the_published_one() {
        for (text, want) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob"), ("Zm9vYmFy", "foobar")]
        {
            assert_eq!(decode(text).unwrap(), want.as_bytes());
        }
        assert_eq!(decode("Z~=="), None);
    }

    #[test]
    fn what_grows_without_bound_is_refused() {
        let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        let deep = (0..12).fold(double.clone(), |inner, _| json!({"type": "Sequence", "normalizers": [inner, double]}));
        for (part, value) in [
            ("normalizer", json!({"type": "Replace", "pattern": {"String": "a"}, "content": "b".repeat(2000)})),
            ("normalizer", json!({"type": "Replace", "pattern": {"String": ""}, "content": "b".repeat(2000)})),
            ("normalizer", json!({"type": "Replace", "pattern": {"Regex": "x*"}, "content": "b".repeat(2000)})),
            ("normalizer", json!({"type": "Prepend", "prepend": "b".repeat(2000)})),
            ("normalizer", json!({"type": "Sequence", "normalizers": vec![double.clone(); 20]})),
            ("normalizer", deep),
            ("decoder", json!({"type": "Sequence", "decoders": vec![double.clone(); 20]})),
        ] {
            let error = check(part, value).unwrap_err();
            assert!(error.contains("times as long") && error.contains(part), "{error}");
        }
        // As in Llama's, Gemma's and ALBERT's.
        let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
        let prepend = json!({"type": "Prepend", "prepend": "\u{2581}"});
        let runs = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "});
        let quotes = json!({"type": "Replace", "pattern": {"String": "``"}, "content": "\""});
        check("normalizer", json!({"type": "Sequence", "normalizers": [prepend, runs, quotes, space]})).unwrap();
    }

    #[test]
    fn tables_and_lists_are_as_long_as_they_say() {
        let table = |bytes: &[u8]| {
            const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            let groups = bytes.chunks(3).flat_map(|chunk| {
                let n = chunk.iter().fold(0u32, |n, &b| n << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
                (0..=chunk.len()).map(move |i| DIGITS[(n >> (18 - 6 * i) & 63) as usize] as char)
            });
            json!({"type": "Precompiled", "precompiled_charsmap": groups.collect::<String>()})
        };
        let long = [&8u32.to_le_bytes()[..], &[0; 8], &[b'x'; 300]].concat();
        for (value, part) in [
            (table(&u32::MAX.to_le_bytes()), "claims a trie of 4294967295 bytes and has 0"),
            (table(&[&9u32.to_le_bytes()[..], &[0; 8]].concat()), "claims a trie of 9"),
            (table(&[1, 2]), "cut off"),
            (table(&long), "300 bytes"),
            (json!({"type": "Precompiled", "precompiled_charsmap": "?"}), "base64"),
        ] {
            let error = check("normalizer", json!({"type": "Sequence", "normalizers": [value]})).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
        check("normalizer", table(&[&8u32.to_le_bytes()[..], &[0; 8], b"ab\0c\0"].concat())).unwrap();
        assert!(check("added_tokens", json!(vec![0; MAX_ADDED + 1])).unwrap_err().contains("matched whole"));
        let endless = json!({"type": "Sequence", "pretokenizers": [{"type": "FixedLength", "length": 0}]});
        assert!(check("pre_tokenizer", endless).unwrap_err().contains("no characters"));
    }
}

//! A byte-level BPE tokenizer that is trained on the text itself: it can encode every byte, and nothing has to be downloaded.

use crate::error::{Error, Result};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, Model, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer, TokenizerImpl,
    Trainer,
};

/// The token that ends a text; its id is 0.
pub const END: &str = "<|endoftext|>";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Trains a tokenizer of `vocab` tokens on `texts`. A text may be given in pieces, if it is cut between words. The trainer keeps
/// every different word in memory; these words may take `memory` bytes at most.
///
/// # Errors
/// A vocabulary of fewer than 257 tokens (256 bytes and the end of text), texts that are too short to fill it, or words that
/// take more than `memory`.
pub fn train<S: AsRef<str> + Send>(
    texts: impl Iterator<Item = S> + Send,
    vocab: usize,
    memory: u64,
) -> Result<Tokenizer> {
    if vocab <= 256 {
        return Err(Error::Setting { reason: format!("a byte-level vocabulary has at least 257 tokens, not {vocab}") });
    }
    let failed = |e: Failure| Error::Tokenizer { reason: e.to_string() };
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let level = ByteLevel::default().add_prefix_space(false);
    let seen = Words { memory, seen: Mutex::default() };
    let fed = trainer.feed(texts, |text| {
        let mut pieces = PreTokenizedString::from(text);
        level.pre_tokenize(&mut pieces)?;
        let words = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let words: Vec<String> = words.into_iter().map(|(word, _, _)| word.to_string()).collect();
        seen.add(&words)?;
        Ok(words)
    });
    fed.map_err(failed)?;
    let mut model = BPE::default();
    let special = trainer.train(&mut model).map_err(failed)?;
    let mut tokenizer: TokenizerImpl<BPE, tokenizers::NormalizerWrapper, ByteLevel, ByteLevel, ByteLevelDecoder> =
        TokenizerImpl::new(model);
    tokenizer.with_pre_tokenizer(Some(level)).with_decoder(Some(level));
    tokenizer.add_special_tokens(special).map_err(failed)?;
    let found = tokenizer.get_model().get_vocab_size();
    if found != vocab {
        let reason = format!(
            "the text gives only {found} of the {vocab} tokens asked for: ask for fewer tokens, or give more text"
        );
        return Err(Error::TextTooShort { reason });
    }
    let json = tokenizer.to_string(false).map_err(failed)?;
    json.parse::<Tokenizer>().map_err(failed)
}

/// The different words so far, and the memory that they take.
struct Words {
    memory: u64,
    /// The hashes of the words, and the bytes that all words take together.
    seen: Mutex<(HashSet<u64>, u64)>,
}

impl Words {
    /// Bytes of memory per word, and per byte of a word, while the trainer counts merges.
    const WORD: u64 = 150;
    const BYTE: u64 = 64;

    fn add(&self, words: &[String]) -> Result<(), Failure> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (hashes, bytes) = &mut *seen;
        for word in words {
            if *bytes > self.memory {
                let count = hashes.len();
                return Err(format!(
                    "{count} different words take more memory than is free: train a tokenizer on a part of the text, then use \
                     it for the whole text"
                )
                .into());
            }
            let mut hasher = DefaultHasher::new();
            word.hash(&mut hasher);
            if hashes.insert(hasher.finish()) {
                *bytes += Self::WORD + Self::BYTE * word.len() as u64;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> String {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/sample.txt");
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn pieces_give_the_tokenizer_of_the_whole() {
        let text: &str = &sample();
        let (mut pieces, mut rest) = (vec![], text);
        while rest.len() > 5000 {
            let end = rest.floor_char_boundary(5000);
            let (piece, after) = rest.split_at(loader::last_word_end(&rest[..end], 0).unwrap());
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        let json = |tokenizer: Tokenizer| tokenizer.to_string(false).unwrap();
        assert_eq!(
            json(train(pieces.into_iter(), 600, u64::MAX).unwrap()),
            json(train([text].into_iter(), 600, u64::MAX).unwrap())
        );
    }

    #[test]
    fn every_text_round_trips_and_training_repeats() {
        let text: &str = &sample();
        let tokenizer = train([text].into_iter(), 400, u64::MAX).unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), 400);
        assert_eq!(tokenizer.token_to_id(END), Some(0));
        for sample in [&text[..2000], "smörgåsbord \u{1F980}\0\n\n  x"] {
            let ids = tokenizer.encode(sample, false).unwrap();
            assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), sample);
        }
        assert_eq!(
            tokenizer.to_string(false).unwrap(),
            train([text].into_iter(), 400, u64::MAX).unwrap().to_string(false).unwrap()
        );
    }

    /// The result is the tokenizer that the library's own `train` makes with the same settings. This crate feeds the library
    /// itself because `train` has no limit on memory.
    #[test]
    fn it_is_the_tokenizer_of_the_library() {
        let text: &str = &sample();
        let mut trainer = BpeTrainer::builder()
            .vocab_size(500)
            .show_progress(false)
            .special_tokens(vec![AddedToken::from(END, true)])
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let level = ByteLevel::default().add_prefix_space(false);
        let mut plain: TokenizerImpl<BPE, tokenizers::NormalizerWrapper, ByteLevel, ByteLevel, ByteLevelDecoder> =
            TokenizerImpl::new(BPE::default());
        plain.with_pre_tokenizer(Some(level)).with_decoder(Some(level));
        plain.train(&mut trainer, [text].into_iter()).unwrap();
        let plain = plain.to_string(false).unwrap().parse::<Tokenizer>().unwrap();
        let ours = train([text].into_iter(), 500, u64::MAX).unwrap();
        assert_eq!(ours.to_string(false).unwrap(), plain.to_string(false).unwrap());
    }

    #[test]
    fn words_that_take_too_much_are_refused() {
        let words: Vec<String> = (0..1000).map(|i| format!("word{} ", i * 7919).repeat(10)).collect();
        let error = train(words.iter(), 300, 100_000).unwrap_err().to_string();
        assert!(error.contains("different words take more memory"), "{error}");
        // Repeated words take no further memory.
        train(std::iter::repeat_n("one two three ", 20_000), 260, 100_000).unwrap();
    }

    #[test]
    fn impossible_vocabularies_are_refused() {
        assert!(train(["abc"].into_iter(), 200, u64::MAX).unwrap_err().to_string().contains("257"));
        assert!(train(["abc abc"].into_iter(), 1000, u64::MAX).unwrap_err().to_string().contains("only"));
    }
}

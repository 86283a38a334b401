//! A byte-level BPE tokenizer trained on the text itself: no byte is unknown, and nothing has to be fetched.

use anyhow::{Result, anyhow};
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Model, Tokenizer, TokenizerImpl};

/// Ends a text; id 0.
pub const END: &str = "<|endoftext|>";

/// Trains a tokenizer of `vocab` tokens on `texts`, or on pieces of them that begin and end words.
///
/// # Errors
/// A vocabulary that doesn't hold the 256 bytes and the end of text, or that the texts are too short to fill.
pub fn train<S: AsRef<str> + Send>(texts: impl Iterator<Item = S> + Send, vocab: usize) -> Result<Tokenizer> {
    anyhow::ensure!(vocab > 256, "a byte-level vocabulary has at least 257 tokens, not {vocab}");
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| anyhow!("can't train a tokenizer: {e}");
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let level = ByteLevel::default().add_prefix_space(false);
    let mut tokenizer: TokenizerImpl<BPE, tokenizers::NormalizerWrapper, ByteLevel, ByteLevel, ByteLevelDecoder> =
        TokenizerImpl::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(level)).with_decoder(Some(level));
    tokenizer.train(&mut trainer, texts).map_err(failed)?;
    let found = tokenizer.get_model().get_vocab_size();
    anyhow::ensure!(
        found == vocab,
        "the text gives only {found} of the {vocab} tokens asked for: use fewer or more text"
    );
    let json = tokenizer.to_string(false).map_err(failed)?;
    json.parse::<Tokenizer>().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> String {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../attn-cli/models/sample.txt");
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn pieces_give_the_tokenizer_of_the_whole() {
        let text: &str = &sample();
        let (mut pieces, mut rest) = (vec![], text);
        while rest.len() > 5000 {
            let end = rest.floor_char_boundary(5000);
            let (piece, after) = rest.split_at(loader::last_cut(&rest[..end], 0).unwrap());
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        let json = |tokenizer: Tokenizer| tokenizer.to_string(false).unwrap();
        assert_eq!(json(train(pieces.into_iter(), 600).unwrap()), json(train([text].into_iter(), 600).unwrap()));
    }

    #[test]
    fn every_text_round_trips_and_training_repeats() {
        let text: &str = &sample();
        let tokenizer = train([text].into_iter(), 400).unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), 400);
        assert_eq!(tokenizer.token_to_id(END), Some(0));
        for sample in [&text[..2000], "smörgåsbord \u{1F980}\0\n\n  x"] {
            let ids = tokenizer.encode(sample, false).unwrap();
            assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), sample);
        }
        assert_eq!(
            tokenizer.to_string(false).unwrap(),
            train([text].into_iter(), 400).unwrap().to_string(false).unwrap()
        );
    }

    #[test]
    fn impossible_vocabularies_are_refused() {
        assert!(train(["abc"].into_iter(), 200).unwrap_err().to_string().contains("257"));
        assert!(train(["abc abc"].into_iter(), 1000).unwrap_err().to_string().contains("only"));
    }
}

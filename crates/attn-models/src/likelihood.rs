//! What hidden states predict: likelihoods of given tokens, and how far two predictions are apart. The head runs in chunks, so
//! that logits of a whole text are never held.

use crate::Model;
use attn_core::ops;
use candle_core::{Device, Result, Tensor, bail};

/// Scores computed at a time by [`Model::nll`]: tokens times vocabulary, 64 MiB in f32.
const MAX_LOGITS: usize = 1 << 24;

impl Model {
    /// Tokens whose logits are held at once.
    pub fn logits_at_once(&self) -> usize {
        (MAX_LOGITS / self.vocab_size()).max(1)
    }

    /// Negative log-likelihoods of tokens 1.. of each row of ids `(b, t)` u32: `(b, t - 1)` f32 on the CPU.
    pub fn nll(&self, ids: &Tensor, length: usize) -> Result<Tensor> {
        let (_, t) = ids.dims2()?;
        if t < 2 {
            bail!("a row of {t} tokens has none to score")
        }
        self.nll_after(&self.hidden(ids, length, None)?.narrow(1, 0, t - 1)?, &ids.narrow(1, 1, t - 1)?)
    }

    /// Negative log-likelihoods of `targets` `(b, n)` u32, each as the next token after the hidden state at its place in
    /// `hidden` `(b, n, hidden_size)`, which [`hidden`](Self::hidden) returned: `(b, n)` f32 on the CPU.
    ///
    /// The head runs in chunks, so no `(b, n, vocab)` tensor is ever held.
    pub fn nll_after(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let size = targets.dims2()?;
        let (hidden, targets) = (hidden.flatten_to(1)?, targets.flatten_all()?);
        let chunks = self.chunks(targets.elem_count()).map(|(start, rows)| {
            let logits = self.head_logits(&hidden.narrow(0, start, rows)?)?;
            ops::nll(&logits, &targets.narrow(0, start, rows)?)
        });
        Tensor::cat(&chunks.collect::<Result<Vec<_>>>()?, 0)?.reshape(size)?.to_device(&Device::Cpu)
    }

    /// The Kullback-Leibler divergence of what `hidden` predicts from what `reference` does, in nats: KL(reference ||
    /// hidden) of the next token at each of `n` places. Both are `(n, hidden_size)`, from [`hidden`](Self::hidden) of this
    /// model under any positions; returns `(n,)` f32 on the CPU.
    ///
    /// The head runs in chunks, on both, so that two chunks of logits are held at most.
    pub fn divergence(&self, reference: &Tensor, hidden: &Tensor) -> Result<Tensor> {
        let n = hidden.dim(0)?;
        let chunks = self.chunks(n).map(|(start, rows)| {
            let logits = |hidden: &Tensor| self.head_logits(&hidden.narrow(0, start, rows)?);
            ops::kl_divergence(&logits(reference)?, &logits(hidden)?)
        });
        Tensor::cat(&chunks.collect::<Result<Vec<_>>>()?, 0)?.to_device(&Device::Cpu)
    }

    /// Starts and lengths of the chunks in which the head runs over `n` hidden states.
    fn chunks(&self, n: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let chunk = self.logits_at_once();
        (0..n).step_by(chunk).map(move |start| (start, chunk.min(n - start)))
    }
}

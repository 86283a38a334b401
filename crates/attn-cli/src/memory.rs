//! Checks whether a run fits into memory, before anything large is allocated.
//!
//! An allocation that fails aborts a program, and one that the system grants but can't back gets the program killed
//! without an error message. So commands compute what a context takes ([`attn_models::memory`]) and compare it with
//! what is free ([`loader::free_memory`]). The check is left out on systems that don't say and on devices other than
//! the CPU.

use anyhow::{Result, bail};
use loader::free_memory;
use std::path::Path;

/// Refuses a run over `tokens` tokens that does not fit, where one over `n` takes `needed(n)` bytes.
///
/// # Errors
/// It does not fit: what it takes, what there is, and how many tokens would fit.
pub(crate) fn check_run(tokens: usize, needed: &dyn Fn(usize) -> u64) -> Result<()> {
    free_memory().map_or(Ok(()), |free| compare(tokens, free, needed))
}

/// Refuses a divergence that takes `bytes` bytes, most of them for what the model as it is predicts, if they don't fit.
///
/// # Errors
/// They do not fit.
pub(crate) fn check_kept(bytes: u64) -> Result<()> {
    match free_memory() {
        Some(free) if bytes > free => bail!(
            "the divergence takes about {} of memory, most of it for the predictions of the model as it is, but only {} are free: \
             leave kl out of --metrics, or use fewer tokens (--max-tokens)",
            shown(bytes),
            shown(free)
        ),
        _ => Ok(()),
    }
}

/// Refuses weights of `bytes` bytes that do not fit.
///
/// # Errors
/// They do not fit.
pub(crate) fn check_weights(name: &str, bytes: u64) -> Result<()> {
    match free_memory() {
        Some(free) if bytes > free => bail!(
            "the weights of {name} take {}, but only {} of memory are free: use --dtype bf16 or --keep-quantized, or a \
             smaller model (--no-memory-check runs it anyway)",
            shown(bytes),
            shown(free)
        ),
        _ => Ok(()),
    }
}

/// Refuses a text for which `bytes` bytes of memory are needed and `free` are there.
///
/// # Errors
/// They do not fit.
pub(crate) fn check_text(path: &Path, bytes: u64, free: u64) -> Result<()> {
    if bytes <= free {
        return Ok(());
    }
    let (name, needed, free) = (path.display(), shown(bytes), shown(free));
    bail!("{name} takes about {needed} of memory, but only {free} are free: use a part of it (--max-tokens)")
}

/// What is kept of a text while it is read: refused once it takes half of what is free.
pub(crate) struct Kept<'a> {
    path: &'a Path,
    /// How many bytes there were when it was last asked what is free.
    asked: u64,
}

impl<'a> Kept<'a> {
    /// Nothing yet of the text at `path`.
    pub(crate) fn of(path: &'a Path) -> Self {
        Self { path, asked: 0 }
    }

    /// Notes that `bytes` bytes are kept by now.
    ///
    /// # Errors
    /// They take more than half of what is free.
    pub(crate) fn reach(&mut self, bytes: u64) -> Result<()> {
        const STEP: u64 = 16 << 20;
        if bytes.saturating_sub(self.asked) < STEP {
            return Ok(());
        }
        self.asked = bytes;
        check_text(self.path, bytes, free_memory().map_or(u64::MAX, |free| free / 2))
    }
}

fn compare(tokens: usize, free: u64, needed: &dyn Fn(usize) -> u64) -> Result<()> {
    let bytes = needed(tokens);
    if bytes <= free {
        return Ok(());
    }
    // The most tokens that fit: between none and one less than were asked for.
    let (mut fits, mut too_many) = (0, tokens);
    while too_many - fits > 1 {
        let middle = fits + (too_many - fits) / 2;
        if needed(middle) <= free { fits = middle } else { too_many = middle }
    }
    let advice = match fits {
        0 => "not even one token would fit".to_string(),
        n => format!("{n} tokens would fit"),
    };
    bail!(
        "{tokens} tokens take about {} of memory in addition to the weights, but only {} are free: {advice} (--no-memory-check \
         runs it anyway)",
        shown(bytes),
        shown(free)
    )
}

/// Bytes for people, and exactly.
fn shown(bytes: u64) -> String {
    match bytes {
        u64::MAX => "more than any machine has".to_string(),
        0..1_000_000_000 => format!("{:.1} MB ({bytes} bytes)", bytes as f64 / 1e6),
        _ => format!("{:.1} GB ({bytes} bytes)", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_bytes_and_what_fits() {
        let needed = |tokens: usize| 1000 + 10 * tokens as u64;
        compare(100, 2000, &needed).unwrap();
        let error = compare(1000, 2005, &needed).unwrap_err().to_string();
        assert!(
            error.contains("11000 bytes") && error.contains("2005 bytes") && error.contains("100 tokens"),
            "{error}"
        );
        let none = compare(1000, 5, &needed).unwrap_err().to_string();
        assert!(none.contains("not even one"), "{none}");
        assert!(check_weights("m", u64::MAX).is_err() || free_memory().is_none());
    }
}

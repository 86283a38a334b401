//! A progress bar on stderr that only appears when there is something to wait for, and moves while one pass takes minutes.

use attn_models::TokensRead;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Shorter work than this shows no bar.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often the bar moves on while the work reports nothing.
const TICK: Duration = Duration::from_millis(500);

/// Progress towards an amount of work, in tokens or another unit. Nothing is ever drawn unless stderr is a terminal.
pub(crate) struct Progress {
    bar: ProgressBar,
    at: Arc<Mutex<At>>,
    read: Option<TokensRead>,
}

/// Where the work stood when it last reported, and how it advances since.
#[derive(Debug, Default)]
struct At {
    done: usize,
    total: usize,
    /// How much of the work one token is, and the tokens that the model had read by then.
    per_token: f64,
    read: f64,
}

impl At {
    /// The work done now that the model has read this many tokens: no more than all of it.
    fn now(&self, read: f64) -> u64 {
        let since = (read - self.read).max(0.0) * self.per_token;
        ((self.done as f64 + since) as u64).min(self.total as u64)
    }
}

impl Progress {
    /// A bar that stays hidden for now, and moves when the work reports.
    pub(crate) fn new() -> Self {
        Self::over(None)
    }

    /// A bar that stays hidden for now, and between two reports moves with what the model reads.
    pub(crate) fn watching(model: &attn_models::Model) -> Self {
        Self::over(Some(model.tokens_read()))
    }

    fn over(read: Option<TokensRead>) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        // `wide_bar` takes what the rest leaves, so the line fits any terminal.
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {percent}% {elapsed} of about {duration}") {
            bar.set_style(style.progress_chars("##-"));
        }
        let at = Arc::new(Mutex::new(At::default()));
        // One step may take minutes, so the bar appears and moves without waiting for the work to report.
        let (waiting, last, model) = (bar.downgrade(), Arc::downgrade(&at), read.clone());
        std::thread::spawn(move || {
            std::thread::sleep(PATIENCE);
            let alive = || Some((waiting.upgrade().filter(|bar| !bar.is_finished())?, last.upgrade()?));
            if let Some((bar, _)) = alive() {
                bar.set_draw_target(ProgressDrawTarget::stderr());
            }
            while let Some((bar, at)) = alive() {
                if let Some(model) = &model {
                    bar.set_position(at.lock().unwrap_or_else(PoisonError::into_inner).now(model.tokens()));
                }
                bar.tick();
                drop((bar, at));
                std::thread::sleep(TICK);
            }
        });
        Self { bar, at, read }
    }

    /// Reports which cell of a grid is measured.
    pub(crate) fn set_cell(&mut self, at: &attn_eval::compare::Progress) {
        self.report(at.done, at.total, at.per_token, &format!("{} at {}", at.mode, at.context));
    }

    /// Reports where the work stands, which a model's tokens are the unit of where one is watched.
    pub(crate) fn set(&mut self, done: usize, total: usize, message: &str) {
        self.report(done, total, 1.0, message);
    }

    fn report(&mut self, done: usize, total: usize, per_token: f64, message: &str) {
        let read = self.read.as_ref().map_or(0.0, TokensRead::tokens);
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = At { done, total, per_token, read };
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        if self.bar.message() != message {
            self.bar.set_message(message.to_string());
        }
    }
}

impl Drop for Progress {
    /// Leaves no trace of the bar, however the work ended.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_moves_within_a_pass_and_not_past_the_work() {
        let at = At { done: 100, total: 200, per_token: 0.5, read: 40.0 };
        assert_eq!(at.now(40.0), 100);
        assert_eq!(at.now(90.0), 125);
        assert_eq!(at.now(4000.0), 200);
        // A report that came after the model was looked at.
        assert_eq!(at.now(30.0), 100);
    }
}

//! A progress bar on stderr that only appears when there is something to wait for.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// Shorter work than this shows no bar.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often the time shown moves on while the work reports nothing.
const TICK: Duration = Duration::from_millis(500);

/// Progress towards a number of tokens. Nothing is ever drawn unless stderr is a terminal.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar that stays hidden for now.
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        // `wide_bar` takes what the rest leaves, so the line fits any terminal.
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {percent}% {elapsed} of about {duration}") {
            bar.set_style(style.progress_chars("##-"));
        }
        // One step may take minutes: the bar shows itself, and lives, without waiting for the work to report.
        let waiting = bar.downgrade();
        std::thread::spawn(move || {
            std::thread::sleep(PATIENCE);
            if let Some(bar) = waiting.upgrade().filter(|bar| !bar.is_finished()) {
                bar.set_draw_target(ProgressDrawTarget::stderr());
                bar.enable_steady_tick(TICK);
            }
        });
        Self { bar }
    }

    /// Reports which cell of a grid is measured.
    pub(crate) fn set_cell(&mut self, at: &attn_eval::compare::Progress) {
        self.set(at.done, at.total, &format!("{} at {}", at.mode, at.context));
    }

    /// Reports where the work stands.
    pub(crate) fn set(&mut self, done: usize, total: usize, message: &str) {
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

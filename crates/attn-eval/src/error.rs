//! The one error type of this crate, whose kinds differ in what a caller can do about them.
//!
//! Every message is one line that says what is wrong with which setting, text, cell or file, and, where possible, what to do
//! about it. A message contains that of its cause, which `source` returns too; [`one_line`] prints both without repeating any.

use crate::Skipped;
use loader::LoadError;
use std::error::Error as StdError;
use std::path::{Path, PathBuf};

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why nothing was measured, written, saved or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that is impossible, by itself or together with the others.
    #[error("{reason}")]
    Setting {
        /// Which, and why.
        reason: String,
    },

    /// A text has too few tokens, bytes or windows for what is asked of it.
    #[error("{reason}")]
    TextTooShort {
        /// How many it has, and how many are needed.
        reason: String,
    },

    /// A prompt or a continuation that is empty, or longer than there is room for.
    #[error("{reason}")]
    Request {
        /// What is wrong with it.
        reason: String,
    },

    /// The model, or its tokenizer, is of a kind that can't do what is asked of it.
    #[error("{reason}")]
    UnsuitableModel {
        /// What it lacks.
        reason: String,
    },

    /// A context is longer than the model's table of positions.
    #[error("a context of {context} is past the model's learned positions, which end at {end}")]
    PastPositions {
        /// Tokens of the context.
        context: usize,
        /// Positions that there are.
        end: usize,
    },

    /// The model gives a likelihood that is not finite, or no likelihoods at all.
    #[error("{reason}")]
    NotFinite {
        /// Which likelihood, as far as that is known.
        reason: String,
    },

    /// None of the contexts and tasks can be measured.
    #[error("nothing can be measured: {}", .skipped.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NothingLeft {
        /// All of them, and why.
        skipped: Vec<Skipped>,
    },

    /// A context can't be measured, and the results have no field for contexts that were skipped.
    #[error("{skipped}")]
    LeftOut {
        /// The context, and why.
        skipped: Skipped,
    },

    /// A cell that is to be summed up lacks its measurement.
    #[error("{cell} has not been measured")]
    Unmeasured {
        /// The cell.
        cell: String,
    },

    /// Measurements or models that can't be compared, because they are not of the same windows or bytes.
    #[error("{reason}")]
    Incomparable {
        /// Which, and how they differ.
        reason: String,
    },

    /// Figures that no measurement can give.
    #[error("{reason}")]
    Impossible {
        /// Which, and why not.
        reason: String,
    },

    /// A saved comparison that can't be read back.
    #[error("{reason}")]
    Document {
        /// What it is instead.
        reason: String,
    },

    /// The operating system refused to open, read or write a run file.
    #[error("can't {action} {}: {source}", .path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// A file that is not a run file, or a run file of another kind or version than the one that is wanted.
    #[error("{} is {found}", .path.display())]
    NotARun {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        found: String,
    },

    /// A line of a run file that can't be what was written.
    #[error("{}, line {line}: {source}", .path.display())]
    DamagedRun {
        /// The run file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        source: Box<Error>,
    },

    /// A line that does not match its checksum.
    #[error("it is damaged: it does not match its checksum")]
    Checksum,

    /// The first line of a run file was changed by hand: its settings and its fingerprint differ.
    #[error("{}: its first line was changed: the settings don't match their fingerprint", .path.display())]
    Fingerprint {
        /// The run file.
        path: PathBuf,
    },

    /// A run file of other settings.
    #[error("{} is a run with another {setting}: {theirs}, not {ours}", .path.display())]
    OtherSettings {
        /// The run file.
        path: PathBuf,
        /// The first setting that differs, as the command line calls it.
        setting: String,
        /// What the file has.
        theirs: String,
        /// What is asked for.
        ours: String,
    },

    /// A run file of the same settings and other cells.
    #[error("{} is a run with the same settings but other cells", .path.display())]
    OtherCells {
        /// The run file.
        path: PathBuf,
    },

    /// Another process writes the run file.
    #[error("{} is being written by another process", .path.display())]
    Busy {
        /// The run file.
        path: PathBuf,
    },

    /// Two runs measured a cell differently.
    #[error(
        "{mode} at {context} was measured differently in {} than in {} or another run, which happens between different kinds of \
         machines: leave one of the runs out", .path.display(), .first.display()
    )]
    Disagreement {
        /// The cell's mode.
        mode: String,
        /// Its context.
        context: usize,
        /// The run file that differs.
        path: PathBuf,
        /// The one before it.
        first: PathBuf,
    },

    /// Another error, and where it occurred: a text, a mode, a cell.
    #[error("{place}: {source}")]
    At {
        /// Where it occurred.
        place: String,
        /// The error itself.
        source: Box<Error>,
    },

    /// A tokenizer fails.
    #[error(transparent)]
    Load(#[from] LoadError),

    /// The model fails, or refuses what is asked of it.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),

    /// JSON can't be read or written.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// The error without the places around it ([`Error::At`]) and the line of the file ([`Error::DamagedRun`]).
    pub fn innermost(&self) -> &Self {
        match self {
            Self::At { source, .. } | Self::DamagedRun { source, .. } => source.innermost(),
            other => other,
        }
    }

    /// Wraps an I/O error with the run file and what was being done to it.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_path_buf(), source }
    }
}

/// Says where an error occurred.
pub(crate) trait Within<T> {
    /// The result, its error with a place around it.
    fn within(self, place: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Error>> Within<T> for std::result::Result<T, E> {
    fn within(self, place: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::At { place: place(), source: Box::new(error.into()) })
    }
}

/// An [`Error`] of a kind that has a `reason`, which is given as for `format!`.
macro_rules! error {
    ($kind:ident, $($reason:tt)+) => {
        $crate::Error::$kind { reason: format!($($reason)+) }
    };
}

/// Returns an [`error!`].
macro_rules! bail {
    ($($error:tt)+) => {
        return Err($crate::error::error!($($error)+))
    };
}

/// Returns an [`error!`] unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($error:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            $crate::error::bail!($($error)+)
        }
    };
}

pub(crate) use {bail, ensure, error};

/// An error and its causes in one line. A cause with which the line already ends is not repeated, and the backtrace that Candle's
/// errors have if `RUST_BACKTRACE` is set is left out.
pub fn one_line(error: &(dyn StdError + 'static)) -> String {
    let mut line = String::new();
    for cause in std::iter::successors(Some(error), |&error| error.source()) {
        let text = cause.to_string();
        let text = without_backtrace(&text);
        if line.is_empty() {
            line = text.to_string();
        } else if !line.ends_with(text) {
            line = format!("{line}: {text}");
        }
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Candle's errors end in a backtrace if `RUST_BACKTRACE` is set: frames numbered from 0, one per line.
fn without_backtrace(text: &str) -> &str {
    let frames = text.match_indices('\n').find(|(at, _)| text[at + 1..].trim_start().starts_with("0: "));
    &text[..frames.map_or(text.len(), |(at, _)| at)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn missing() -> io::Error {
        io::Error::new(io::ErrorKind::NotFound, "no such file")
    }

    #[test]
    fn an_error_names_its_place_and_keeps_what_caused_it() {
        let failed: Result<()> = Err(missing()).map_err(Error::io("open", Path::new("a.run")));
        let error = failed.within(|| "novel, mode yarn".into()).within(|| "cells".into()).unwrap_err();
        assert_eq!(error.to_string(), "cells: novel, mode yarn: can't open a.run: no such file");
        // The kind is found without knowing the places.
        assert!(matches!(error.innermost(), Error::Io { action: "open", path, .. } if path == Path::new("a.run")));
        let causes = std::iter::successors(Some(&error as &(dyn StdError + 'static)), |&error| error.source());
        let cause = causes.last().and_then(|cause| cause.downcast_ref::<io::Error>()).unwrap();
        assert_eq!(cause.kind(), io::ErrorKind::NotFound);
        // However many causes contain one another, each is printed once.
        assert_eq!(one_line(&error), error.to_string());
    }

    #[test]
    fn a_cause_that_is_not_spelled_out_is_said_too_and_a_backtrace_is_not() {
        #[derive(Debug, thiserror::Error)]
        #[error("opening\nthe model")]
        struct Opening(#[source] Error);
        let refused = candle_core::Error::Msg("no such tensor\n   0: candle::bt\n   1: main".into());
        let error = Opening(Err::<(), _>(refused).within(|| "scoring".into()).unwrap_err());
        assert_eq!(one_line(&error), "opening the model: scoring: no such tensor");
    }

    #[test]
    fn errors_of_the_libraries_below_read_as_they_are() {
        let error = Error::from(LoadError::BadEndpoint { endpoint: "x".into() });
        assert_eq!(error.to_string(), LoadError::BadEndpoint { endpoint: "x".into() }.to_string());
        let error = error!(TextTooShort, "{} of {}", 1, 2);
        assert_eq!((error.to_string().as_str(), error.source().is_none()), ("1 of 2", true));
    }
}

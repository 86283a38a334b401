//! Where output goes: stdout that may close early, stderr that may be gone, and files that are whole or not there.

use anyhow::{Context, Result};
use attn_eval::report::blocks::wrap;
use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The program that read stdout has ended. This ends the work but is not a failure.
#[derive(Debug)]
pub(crate) struct StdoutClosed;

impl std::fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stdout is closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// The command was used wrongly, in a way that only shows after parsing.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Fails with a [`UsageError`].
pub(crate) fn usage<T>(message: impl Into<String>) -> Result<T> {
    Err(UsageError(message.into()).into())
}

/// Writes to stdout and flushes.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        Err(error) => Err(error).context("can't write to stdout"),
    }
}

/// Writes text for a person to stdout: names from files can't steer the terminal.
pub(crate) fn print_text(text: &str) -> Result<()> {
    if !color() {
        return print(&spelled(text));
    }
    // Only what is between this program's own colour codes can hold control characters of others.
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\x1b[") {
        let parameters = rest[at + 2..].find(|c: char| !c.is_ascii_digit() && c != ';').unwrap_or(0);
        let end = at + 2 + parameters;
        let is_color = rest[end..].starts_with('m');
        out.push_str(&spelled(&rest[..at]));
        let end = if is_color { end + 1 } else { at + 1 };
        out.push_str(if is_color { &rest[at..end] } else { "\\u{1b}" });
        rest = &rest[end..];
    }
    out.push_str(&spelled(rest));
    print(&out)
}

/// Text with what would move a terminal's cursor, change its colours, or hide or reverse other characters spelled out.
pub(crate) fn spelled(text: &str) -> Cow<'_, str> {
    let steers = |c: char| {
        c.is_control() && c != '\n' && c != '\t'
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
            || matches!(c, '\u{e0000}'..='\u{e007f}')
    };
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// Characters that a line on stderr has at most: a name from a file may be megabytes long.
const LONGEST: usize = 2000;

/// A line that is not too long.
fn cut(line: &str) -> Cow<'_, str> {
    match line.char_indices().nth(LONGEST) {
        None => Cow::Borrowed(line),
        Some((at, _)) => Cow::Owned(format!("{}... ({} bytes more)", &line[..at], line.len() - at)),
    }
}

/// Writes one JSON document to stdout.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Writes a line to stderr. An error in doing so is ignored, since there is no other place to report it.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{}", cut(&spelled(line)));
}

/// clap's message in one line: what is wrong, a similar option if there is one, and whose help to see.
pub(crate) fn usage_line(message: &str) -> String {
    let end = message.find("\nUsage:").or_else(|| message.find("\nFor more")).unwrap_or(message.len());
    // Advice on how to pass something that looks like an option as a value is for others.
    let lines = message[..end].lines().map(str::trim).filter(|line| !line.starts_with("tip: to pass"));
    let line = lines.map(|line| line.strip_prefix("tip: ").map_or(line.to_string(), |tip| format!("({tip})")));
    let line = line.collect::<Vec<_>>().join(" ");
    let usage = message.find("\nUsage: ").map_or("", |at| &message[at + "\nUsage: ".len()..]);
    let command = usage.split_whitespace().take_while(|word| word.bytes().all(|b| b.is_ascii_lowercase()));
    let command = command.collect::<Vec<_>>().join(" ");
    let command = if command.is_empty() { "attn" } else { &command };
    format!("{} (see {command} --help)", line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Appends a text, wrapped, and the end of its last line.
pub(crate) fn push_line(out: &mut String, text: &str, width: usize) {
    out.push_str(&wrap(&spelled(text), width));
    out.push('\n');
}

/// Columns to write for: `COLUMNS`, else the terminal's, else 100.
pub(crate) fn width() -> usize {
    let from_env = std::env::var("COLUMNS").ok().and_then(|text| text.trim().parse().ok()).filter(|&n| n > 0);
    let from_terminal = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    from_env.or_else(from_terminal).unwrap_or(100)
}

/// Whether stdout wants colour: a terminal that isn't told not to (<https://no-color.org>).
pub(crate) fn color() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stdout().is_terminal() && !refused && !dumb
}

/// Refuses a path that can't be written, before the work whose result is meant for it.
pub(crate) fn check_writable(path: &Path) -> Result<()> {
    if path == Path::new("-") {
        return usage("- is not a file: use --json to write to stdout");
    }
    if path.is_dir() {
        return usage(format!("{} is a folder, not a file to write", path.display()));
    }
    let folder = folder_of(path);
    if !folder.is_dir() {
        return usage(format!("can't write {}: there is no folder {}", path.display(), folder.display()));
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Writes a file so that it is never there in part: into a temporary one beside it, renamed when complete. What isn't a
/// regular file (`/dev/stdout`, a pipe) is written directly; a link keeps pointing where it points.
pub(crate) fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let failed = || format!("can't write {}", path.display());
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if fs::metadata(&target).is_ok_and(|existing| !existing.is_file()) {
        let file = File::options().write(true).open(&target).with_context(failed)?;
        return fill(file, write).with_context(failed);
    }
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder_of(&target).join(format!(".{name}.{}.tmp", std::process::id()));
    let (file, temporary) = Temporary::create(temporary).with_context(failed)?;
    fill(file, write).with_context(failed)?;
    temporary.rename(&target).with_context(failed)
}

fn fill(file: File, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut out = BufWriter::new(file);
    write(&mut out)?;
    out.flush()?;
    Ok(())
}

/// Temporary files that are being written.
static TEMPORARIES: Mutex<Vec<PathBuf>> = Mutex::new(vec![]);

fn temporaries() -> MutexGuard<'static, Vec<PathBuf>> {
    TEMPORARIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the temporary files that are being written, for when the program ends in the middle. No further one is
/// begun: the lock is kept.
pub(crate) fn remove_temporaries() {
    let files = temporaries();
    for path in files.iter() {
        remove(path);
    }
    std::mem::forget(files);
}

fn remove(path: &Path) {
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

/// Makes a folder so that it is never there in part: in a temporary one beside it, renamed when complete. `target` is not
/// there, or empty.
pub(crate) fn write_folder<T>(target: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let failed = || format!("can't write {}", target.display());
    let target = &fs::canonicalize(target).unwrap_or_else(|_| target.to_path_buf());
    let name = target.file_name().with_context(failed)?.to_string_lossy();
    fs::create_dir_all(folder_of(target)).with_context(failed)?;
    let temporary = folder_of(target).join(format!(".{name}.partial"));
    fs::create_dir_all(&temporary).with_context(failed)?;
    let lock = File::open(&temporary);
    if matches!(lock.as_ref().map(File::try_lock), Ok(Err(fs::TryLockError::WouldBlock))) {
        anyhow::bail!("{} is being written by another process", target.display());
    }
    let temporary = Temporary::folder(temporary).with_context(failed)?;
    let made = fill(&temporary.0)?;
    if target.is_dir() {
        fs::remove_dir(target).with_context(failed)?;
    }
    temporary.rename(target).with_context(failed)?;
    Ok(made)
}

/// A temporary file or folder, removed unless the work ended well.
struct Temporary(PathBuf);

impl Temporary {
    fn create(path: PathBuf) -> io::Result<(File, Self)> {
        let mut files = temporaries();
        let file = File::create(&path)?;
        files.push(path.clone());
        Ok((file, Self(path)))
    }

    /// A folder that an earlier process may have left, emptied.
    fn folder(path: PathBuf) -> io::Result<Self> {
        let mut files = temporaries();
        for entry in fs::read_dir(&path)? {
            remove(&entry?.path());
        }
        files.push(path.clone());
        Ok(Self(path))
    }

    /// Gives it its final name.
    fn rename(self, target: &Path) -> io::Result<()> {
        fs::rename(&self.0, target)
    }
}

impl Drop for Temporary {
    /// After a rename there is nothing left to remove.
    fn drop(&mut self) {
        let mut files = temporaries();
        remove(&self.0);
        files.retain(|path| *path != self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_steer_a_terminal() {
        let name = "a\u{1b}]0;title\u{7}b\u{9b}2Jc\rd\u{202e}e\u{8}f\u{200b}g";
        let plain = spelled(name);
        assert!(plain.chars().all(|c| (' '..='~').contains(&c)), "{plain}");
        assert!(plain.starts_with("a\\u{1b}]0;title") && plain.ends_with("f\\u{200b}g"), "{plain}");
        for same in ["d\u{f6}gs \u{4e00}\n\ttab", "\u{1f980}"] {
            assert_eq!(spelled(same), same);
        }
        let long = "\u{e9}".repeat(1_000_000);
        assert!(cut(&long).len() < 5000 && cut(&long).ends_with("(1996000 bytes more)"), "{}", cut(&long).len());
        assert_eq!(cut("short"), "short");
    }

    #[test]
    fn a_usage_message_is_one_line() {
        let message = "error: invalid value 'x' for '--dtype <D>'\n  [possible values: f32]\n\nUsage: attn\n\nFor more";
        let expected = "error: invalid value 'x' for '--dtype <D>' [possible values: f32] (see attn --help)";
        assert_eq!(usage_line(message), expected);
    }

    #[test]
    fn files_are_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.txt");
        write_file(&path, |out| Ok(out.write_all(b"old")?)).unwrap();
        let failed = write_file(&path, |out| {
            out.write_all(b"half")?;
            anyhow::bail!("interrupted")
        });
        let error = failed.unwrap_err();
        assert!(error.chain().any(|cause| cause.to_string() == "interrupted"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

//! Run files: every measured cell of a comparison is written to disk at once, so that an interrupted run goes on
//! where it stopped, and runs on several machines can be merged.
//!
//! A run file is JSON Lines. The first line says what is measured: [`About`], and the list of cells. Every further line
//! is one measured cell. Lines are only appended, each in one write that is flushed to the disk, so if the process ends
//! early only the last line can be incomplete; such a line is dropped and its cell measured again. Every line has a
//! checksum of itself, so that a bit that was changed on a disk or on the way to another machine is found, and its line named.
//!
//! Figures of different settings must not be in one file. The header has a fingerprint of everything that
//! decides them ([`About::identity`]); opening a file with other settings is refused, and the error names what differs.

use crate::error::{Error, Result, Within, ensure, error};
use crate::report::About;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A cell that a run file can hold the measurement of.
pub trait Measurable: Clone + PartialEq + Serialize + DeserializeOwned {
    /// The command that measures; checked when a file is opened.
    const KIND: &str;

    /// The measurement of a cell.
    type Scores: Clone + std::fmt::Debug + Serialize + DeserializeOwned;

    /// Tokens per window.
    fn context(&self) -> usize;

    /// The name of the mode.
    fn mode(&self) -> &str;

    /// Index of its text, if it has one.
    fn text(&self) -> Option<usize>;

    /// Whether it is measured itself, rather than being the same computation as another.
    fn is_measured(&self) -> bool;

    /// Whether two measurements of it are equal, except for their times.
    fn agree(a: &Self::Scores, b: &Self::Scores) -> bool;

    /// The measurement in a few words.
    fn figure(scores: &Self::Scores) -> String;

    /// Refuses a measurement that can't be of this cell.
    ///
    /// # Errors
    /// What is impossible about the measurement.
    fn check(&self, scores: &Self::Scores, about: &About) -> Result<()>;
}

/// The indices of the cells that are measured themselves.
pub fn to_measure<C: Measurable>(cells: &[C]) -> impl Iterator<Item = usize> + '_ {
    cells.iter().enumerate().filter(|(_, cell)| cell.is_measured()).map(|(index, _)| index)
}

/// The first line of a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header<C> {
    /// Version of the format. It comes first, so that a run file is recognised by its first bytes.
    attn_run: u32,
    /// SHA-256, in hexadecimal, of what decides the figures.
    pub fingerprint: String,
    /// What is measured.
    kind: String,
    /// The cells of the whole comparison.
    pub cells: Vec<C>,
    /// What is compared.
    pub about: About,
}

const FORMAT: u32 = 2;
const MAGIC: &str = "{\"attn_run\":2,";
/// The beginning of the first line in any version.
const ANY: &str = "{\"attn_run\":";

/// Hexadecimal digits of a line's checksum.
const CHECK: usize = 16;

/// A line with its checksum, which is the first digits of the SHA-256 of the line without it and is inserted at byte `at`.
fn seal(line: &str, at: usize) -> String {
    let (start, rest) = line.split_at(at);
    format!("{start}\"check\":\"{}\",{rest}", &loader::sha256(line)[..CHECK])
}

/// The line without its checksum; `None` if it has none or does not match it.
fn unseal(line: &[u8], at: usize) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?.trim_end_matches('\n');
    let (start, rest) = line.split_at_checked(at)?;
    let (check, rest) = rest.strip_prefix("\"check\":\"")?.split_at_checked(CHECK)?;
    let plain = format!("{start}{}", rest.strip_prefix("\",")?);
    (loader::sha256(&plain)[..CHECK] == *check).then_some(plain)
}

/// Wraps an error with the line of a run file, counted from 1, that can't be what was written.
fn damaged<E: Into<Error>>(path: &Path, line: usize) -> impl FnOnce(E) -> Error {
    move |error| Error::DamagedRun { path: path.to_path_buf(), line, source: Box::new(error.into()) }
}

/// The error for a file that is not a run file of the kind that is wanted.
fn not_a_run(path: &Path, found: impl Into<String>) -> Error {
    Error::NotARun { path: path.to_path_buf(), found: found.into() }
}

impl<C: Measurable> Header<C> {
    /// The header of a comparison.
    pub fn new(about: About, cells: Vec<C>) -> Self {
        let fingerprint = fingerprint(&about, &cells);
        Self { attn_run: FORMAT, fingerprint, kind: C::KIND.to_string(), cells, about }
    }

    /// Refuses a run with other settings; the error names the first that differs.
    fn check_same(&self, other: &Self, path: &Path) -> Result<()> {
        let (theirs, ours) = (self.about.identity(), other.about.identity());
        let refused = |setting: &str, theirs: String, ours: String| {
            let (path, setting) = (path.to_path_buf(), setting.to_string());
            Err(Error::OtherSettings { path, setting, theirs, ours })
        };
        for name in ours.keys().chain(theirs.keys()) {
            let said = |all: &BTreeMap<String, Value>| all.get(name).map_or("absent".to_string(), Value::to_string);
            if theirs.get(name) != ours.get(name) {
                return match (lengths(&self.about, &other.about), lengths(&other.about, &self.about)) {
                    (Some(theirs), Some(ours)) if name == "--text" => refused("--max-tokens", theirs, ours),
                    _ => refused(name, said(&theirs), said(&ours)),
                };
            }
        }
        if self.fingerprint != other.fingerprint {
            return Err(Error::OtherCells { path: path.to_path_buf() });
        }
        Ok(())
    }
}

/// The number of tokens used of each text, if `other` has the same texts, so that only these numbers can differ.
fn lengths(about: &About, other: &About) -> Option<String> {
    let names = |about: &About| about.texts.iter().map(|t| (t.name.clone(), t.sha256.clone())).collect::<Vec<_>>();
    let used: Vec<String> = about.texts.iter().map(|text| text.used.to_string()).collect();
    (names(about) == names(other)).then(|| format!("{} tokens", used.join(", ")))
}

fn fingerprint<C: Measurable>(about: &About, cells: &[C]) -> String {
    loader::sha256(serde_json::json!([about.identity(), cells]).to_string())
}

/// A measured cell, as a line.
#[derive(Serialize, Deserialize)]
struct Line<S> {
    /// Index into the header's cells.
    cell: usize,
    /// The cell's text, context and mode once more, for human readers of the file.
    text: String,
    context: usize,
    mode: String,
    scores: S,
}

/// The contents of a run file.
#[derive(Debug, Clone)]
pub struct Run<C: Measurable> {
    /// What is measured.
    pub header: Header<C>,
    /// The measurements so far, by cell.
    pub scores: Vec<Option<C::Scores>>,
    /// The number of bytes up to the end of the last complete line.
    whole: u64,
}

impl<C: Measurable> Run<C> {
    /// Reads a run file, finished or not.
    ///
    /// # Errors
    /// The file can't be read, is not a run file of this kind, or is damaged. An incomplete last line is not an error.
    pub fn read(path: &Path) -> Result<Self> {
        let mut bytes = vec![];
        let mut file = open_regular(path)?.take(MOST);
        file.read_to_end(&mut bytes).map_err(Error::io("read", path))?;
        let torn = || not_a_run(path, "a run file without its first line: nothing was measured");
        Self::parse(&bytes, path)?.ok_or_else(torn)
    }

    /// Parses a run file; `None` if it ends before its first line is complete.
    fn parse(bytes: &[u8], path: &Path) -> Result<Option<Self>> {
        let start = &bytes[..bytes.len().min(MAGIC.len())];
        if !MAGIC.as_bytes().starts_with(start) {
            let other =
                if start.starts_with(ANY.as_bytes()) { "a run file of another version" } else { "not a run file" };
            return Err(not_a_run(path, other));
        }
        let mut lines = bytes.split_inclusive(|&byte| byte == b'\n');
        let whole = |line: &&[u8]| line.ends_with(b"\n");
        let Some(first) = lines.next().filter(whole) else { return Ok(None) };
        let plain = unseal(first, MAGIC.len()).ok_or(Error::Checksum).map_err(damaged(path, 1))?;
        let kind = kind_of(plain.as_bytes()).map_err(damaged(path, 1))?;
        if kind != C::KIND {
            return Err(not_a_run(path, format!("a run file of attn {kind}, not of attn {}", C::KIND)));
        }
        let header: Header<C> = serde_json::from_str(&plain).map_err(damaged(path, 1))?;
        if header.fingerprint != fingerprint(&header.about, &header.cells) {
            return Err(Error::Fingerprint { path: path.to_path_buf() });
        }
        header.about.check_texts(header.cells.iter().filter_map(C::text)).map_err(damaged(path, 1))?;
        let mut run = Self { scores: vec![None; header.cells.len()], header, whole: first.len() as u64 };
        for (index, line) in lines.enumerate() {
            if !whole(&line) {
                // Only the last line can be incomplete.
                break;
            }
            let plain = unseal(line, 1).ok_or(Error::Checksum).map_err(damaged(path, index + 2))?;
            let measured = serde_json::from_str(&plain).map_err(damaged(path, index + 2))?;
            run.take(measured).map_err(damaged(path, index + 2))?;
            run.whole += line.len() as u64;
        }
        Ok(Some(run))
    }

    fn take(&mut self, line: Line<C::Scores>) -> Result<()> {
        let Line { cell, context, mode, scores, .. } = line;
        let spec = self.header.cells.get(cell).ok_or_else(|| error!(Impossible, "there is no cell {cell}"))?;
        let same = spec.context() == context && spec.mode() == mode;
        ensure!(same, Impossible, "cell {cell} is {} at {}", spec.mode(), spec.context());
        self.check(cell, &scores)?;
        let known = self.scores[cell].as_ref();
        let agrees = known.is_none_or(|known| C::agree(known, &scores));
        ensure!(agrees, Impossible, "cell {cell} was measured differently before");
        self.scores[cell] = Some(scores);
        Ok(())
    }

    fn check(&self, cell: usize, scores: &C::Scores) -> Result<()> {
        let checked = self.header.cells[cell].check(scores, &self.header.about);
        checked.within(|| format!("no run can measure this of cell {cell}"))
    }

    /// Merges runs of the same settings. Measurements of the same cell have to be equal.
    ///
    /// # Errors
    /// A run has other settings (the error names the first that differs), or two runs measured a cell differently.
    pub fn merge(runs: Vec<(PathBuf, Self)>) -> Result<Self> {
        let mut runs = runs.into_iter();
        let (first, mut all) = runs.next().ok_or_else(|| error!(Setting, "there is no run to merge"))?;
        for (path, run) in runs {
            run.header.check_same(&all.header, &path)?;
            for (index, scores) in run.scores.into_iter().enumerate().filter_map(|(i, s)| Some((i, s?))) {
                let slot = &mut all.scores[index];
                if slot.as_ref().is_some_and(|known| !C::agree(known, &scores)) {
                    let cell = &all.header.cells[index];
                    let (mode, context) = (cell.mode().to_string(), cell.context());
                    return Err(Error::Disagreement { mode, context, path, first });
                }
                slot.get_or_insert(scores);
            }
            for machine in run.header.about.machines {
                if !all.header.about.machines.contains(&machine) {
                    all.header.about.machines.push(machine);
                }
            }
        }
        Ok(all)
    }

    /// The cells that are still to be measured.
    pub fn missing(&self) -> Vec<usize> {
        to_measure(&self.header.cells).filter(|&index| self.scores[index].is_none()).collect()
    }
}

/// A run file that is being written.
#[derive(Debug)]
pub struct RunFile<C: Measurable> {
    file: File,
    path: PathBuf,
    /// What it holds.
    pub run: Run<C>,
}

impl<C: Measurable> RunFile<C> {
    /// Opens or creates the run file of a comparison and locks it.
    ///
    /// # Errors
    /// The file is of a run with other settings (the error names the first that differs), another process writes to it, it is not
    /// a run file, it is damaged, or it can't be read or written.
    pub fn open(path: &Path, header: Header<C>) -> Result<Self> {
        if path.exists() {
            open_regular(path)?;
        }
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = opened.map_err(Error::io("open", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { path: path.to_path_buf() }),
            // Some network file systems have no locks; there the file is written without one.
            Err(TryLockError::Error(_)) => {}
        }
        let mut bytes = vec![];
        file.read_to_end(&mut bytes).map_err(Error::io("read", path))?;
        let (run, new) = match Run::parse(&bytes, path)? {
            Some(run) => {
                run.header.check_same(&header, path)?;
                (run, false)
            }
            None => (Run { scores: vec![None; header.cells.len()], header, whole: 0 }, true),
        };
        let mut open = Self { file, path: path.to_path_buf(), run };
        open.cut()?;
        if new {
            open.write_line(&serde_json::to_string(&open.run.header)?, MAGIC.len())?;
        }
        Ok(open)
    }

    /// Drops an incomplete last line.
    fn cut(&mut self) -> Result<()> {
        let cut = self.file.set_len(self.run.whole).and_then(|()| self.file.seek(SeekFrom::End(0)));
        cut.map(drop).map_err(Error::io("write", &self.path))
    }

    /// Appends a measured cell.
    ///
    /// # Errors
    /// The file can't be written, or the measurement can't be of that cell.
    pub fn append(&mut self, cell: usize, scores: C::Scores) -> Result<()> {
        self.run.check(cell, &scores)?;
        let spec = &self.run.header.cells[cell];
        let text = spec.text().and_then(|text| self.run.header.about.texts.get(text));
        let text = text.map_or(String::new(), |text| text.name.clone());
        let line = Line { cell, text, context: spec.context(), mode: spec.mode().to_string(), scores };
        self.write_line(&serde_json::to_string(&line)?, 1)?;
        self.run.scores[cell] = Some(line.scores);
        Ok(())
    }

    /// Appends a line with its checksum, which stands at byte `at` of it.
    fn write_line(&mut self, line: &str, at: usize) -> Result<()> {
        let text = format!("{}\n", seal(line, at));
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(Error::io("write", &self.path))
    }
}

/// The lines of a run file with correct checksums, whatever checksums they have.
#[cfg(any(test, fuzzing))]
pub fn resealed(bytes: &[u8]) -> Vec<u8> {
    let lines = bytes.split_inclusive(|&byte| byte == b'\n').enumerate().map(|(index, line)| {
        let at = if index == 0 { MAGIC.len() } else { 1 };
        let Ok(text) = std::str::from_utf8(line) else { return line.to_vec() };
        let Some((start, rest)) = text.split_at_checked(at) else { return line.to_vec() };
        let sealed = rest.strip_prefix("\"check\":\"").and_then(|rest| rest.split_at_checked(CHECK));
        let rest = sealed.and_then(|(_, rest)| rest.strip_prefix("\",")).unwrap_or(rest);
        let end = if rest.ends_with('\n') { "\n" } else { "" };
        format!("{}{end}", seal(&format!("{start}{}", rest.trim_end_matches('\n')), at)).into_bytes()
    });
    lines.collect::<Vec<_>>().concat()
}

/// The command whose run file this is, as its first line says ([`Measurable::KIND`]), such as `compare` or `retrieval`.
///
/// # Errors
/// The file can't be read or is no run file.
pub fn kind(path: &Path) -> Result<String> {
    let mut first = vec![];
    let file = open_regular(path)?.take(MOST);
    BufReader::new(file).read_until(b'\n', &mut first).map_err(Error::io("read", path))?;
    kind_of(&first).map_err(|error| not_a_run(path, format!("not a run file: {error}")))
}

/// The largest number of bytes that are read of a run file.
const MOST: u64 = 1 << 30;

/// Opens a run file. It has to be a regular file, since reading of pipes and devices may wait or never end.
fn open_regular(path: &Path) -> Result<File> {
    let metadata = std::fs::metadata(path).map_err(Error::io("open", path))?;
    if !metadata.is_file() {
        return Err(not_a_run(path, "not a regular file"));
    }
    File::open(path).map_err(Error::io("open", path))
}

fn kind_of(first: &[u8]) -> serde_json::Result<String> {
    #[derive(Deserialize)]
    struct Kind {
        kind: String,
    }
    let Kind { kind } = serde_json::from_slice(first)?;
    Ok(kind)
}

/// Part `i` of `n`, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    of: usize,
}

impl Shard {
    /// The indices of the cells of this part: every `n`-th of those to be measured, so that parts take about the same time.
    pub fn cells<C: Measurable>(self, specs: &[C]) -> Vec<usize> {
        to_measure(specs).skip(self.index - 1).step_by(self.of).collect()
    }
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((index, of)) if 1 <= index && index <= of => Ok(Self { index, of }),
            _ => Err("it has the form i/n, such as 1/4 for the first of four parts".into()),
        }
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;

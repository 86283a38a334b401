//! Bytes of a weights file: memory-mapped, read with plain reads, or embedded in the program.
//!
//! All three are read through one function in bounded pieces, and pages of a map are handed back to the system as soon as
//! they have been converted, so that the peak is the model's size rather than twice that.
//!
//! If another process truncates a mapped file, the next access raises SIGBUS, which a program can't reliably turn into an
//! error. `LoadOptions::mmap = false` reads the file instead, where the same event is an ordinary I/O error. Files that
//! only grow, or are replaced by a rename, are safe either way.

use crate::{
    error::{LoadError, Result},
    regular,
};
use std::{
    borrow::Cow,
    fs::File,
    io::{Read, Seek, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
    sync::Mutex,
};

/// The largest piece handed out at once.
pub(crate) const CHUNK: usize = 16 << 20;

/// A readable file of fixed length.
pub(crate) struct Blob {
    path: PathBuf,
    len: u64,
    kind: Kind,
}

enum Kind {
    Mapped(memmap2::Mmap),
    File(Mutex<File>),
    Memory(Cow<'static, [u8]>),
}

impl Blob {
    /// Opens `path`, mapping it if `mmap`.
    pub(crate) fn open(path: &Path, mmap: bool) -> Result<Self> {
        let file = regular::open(path)?;
        let len = file.metadata().map_err(LoadError::io(path, "read the size of"))?.len();
        // Mapping nothing is an error on some systems.
        let kind = if mmap && len > 0 {
            // SAFETY: the map is read-only and private to this struct. That nobody truncates the file meanwhile can't
            // be guaranteed by any program; the module's documentation says what happens and how to opt out.
            let map = unsafe { memmap2::Mmap::map(&file) }.map_err(LoadError::io(path, "map"))?;
            Kind::Mapped(map)
        } else {
            Kind::File(Mutex::new(file))
        };
        Ok(Self { path: path.to_path_buf(), len, kind })
    }

    /// Bytes that are already in memory, under a `name` for error messages.
    pub(crate) fn memory(name: &str, bytes: Cow<'static, [u8]>) -> Self {
        Self { path: PathBuf::from(name), len: bytes.len() as u64, kind: Kind::Memory(bytes) }
    }

    /// The file's name, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buf` from `offset`.
    pub(crate) fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.len);
        let Some(end) = end else { return Err(self.short(offset)) };
        match &self.kind {
            Kind::Mapped(map) => buf.copy_from_slice(&map[offset as usize..end as usize]),
            Kind::Memory(bytes) => buf.copy_from_slice(&bytes[offset as usize..end as usize]),
            Kind::File(file) => {
                let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                file.seek(SeekFrom::Start(offset)).map_err(LoadError::io(&self.path, "seek in"))?;
                file.read_exact(buf).map_err(LoadError::io(&self.path, "read"))?;
            }
        }
        Ok(())
    }

    /// Calls `f` with consecutive pieces of `range`, each a multiple of `unit` bytes long, and then lets go of them.
    ///
    /// `range` has to be a multiple of `unit` long.
    pub(crate) fn for_each_chunk(&self, range: Range<u64>, unit: usize, mut f: impl FnMut(&[u8])) -> Result<()> {
        if range.start > range.end || range.end > self.len {
            return Err(self.short(range.start));
        }
        let step = (CHUNK / unit.max(1)).max(1) * unit.max(1);
        let mut scratch = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let n = (range.end - at).min(step as u64) as usize;
            match &self.kind {
                Kind::Mapped(map) => f(&map[at as usize..at as usize + n]),
                Kind::Memory(bytes) => f(&bytes[at as usize..at as usize + n]),
                Kind::File(_) => {
                    scratch.resize(n, 0);
                    self.read_at(at, &mut scratch)?;
                    f(&scratch);
                }
            }
            self.release(at, n);
            at += n as u64;
        }
        Ok(())
    }

    /// Tells the system that the pages of a mapped range are not needed in memory any more.
    fn release(&self, offset: u64, len: usize) {
        #[cfg(unix)]
        if let Kind::Mapped(map) = &self.kind {
            // SAFETY: the map is read-only and backed by a file, so dropped pages come back with the same contents.
            // A failure costs memory, not correctness.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset as usize, len) };
        }
        #[cfg(not(unix))]
        let _ = (offset, len);
    }

    fn short(&self, offset: u64) -> LoadError {
        let source = std::io::Error::new(
            std::io::ErrorKind::UnexpectedEof,
            format!("the file ends at byte {}, but data is expected from byte {offset}", self.len),
        );
        LoadError::Io { path: self.path.clone(), action: "read", source }
    }
}

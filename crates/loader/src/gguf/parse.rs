//! The GGUF container: metadata and the table of tensors, read with every length checked before it is used.
//!
//! Candle has a reader, but it keeps the last of two tensors of the same name, does not see data that overlaps, spends
//! 32 bytes on every element of an array and does not name what is wrong. Files come from strangers, so here each
//! claim is bounded by the file's own length, by a cap, or both, and an error names the key or the tensor.

use super::blocks::{format_of_tag, unknown_name};
use crate::{
    blob::Blob,
    error::{LoadError, Result},
};
use attn_models::BlockFormat;
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

/// Caps, each far above what any published file has.
const MAX_KEYS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 17;
const MAX_STRING: u64 = 16 << 20;
const MAX_ELEMENTS: u64 = 1 << 24;
const MAX_DIMS: u32 = 4;
const MAX_HEADER: u64 = 512 << 20;

/// A metadata value; arrays are kept compact.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Int(i64),
    /// Only values above `i64::MAX`.
    Big(u64),
    Float(f64),
    Bool(bool),
    Str(String),
    /// Bytes, of either sign: large ones are opaque data.
    Bytes(Vec<u8>),
    Ints(Ints),
    Floats(Vec<f32>),
    Bools(Vec<bool>),
    Strs(Vec<String>),
}

/// The integers of an array, each as wide as in the file: arrays of small ones are long.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ints {
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    I64(Vec<i64>),
}

impl Ints {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::U16(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::I64(v) => v.len(),
        }
    }

    /// The one at `index`.
    pub(crate) fn get(&self, index: usize) -> Option<i64> {
        match self {
            Self::U16(v) => v.get(index).copied().map(i64::from),
            Self::I16(v) => v.get(index).copied().map(i64::from),
            Self::U32(v) => v.get(index).copied().map(i64::from),
            Self::I32(v) => v.get(index).copied().map(i64::from),
            Self::I64(v) => v.get(index).copied(),
        }
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = i64> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

/// One entry of the table of tensors, or some rows of one.
#[derive(Debug, Clone)]
pub(crate) struct Info {
    pub(crate) format: BlockFormat,
    /// Which of a checkpoint's files holds it.
    pub(crate) file: usize,
    /// Slowest dimension first, as Candle and PyTorch have it (the file has it the other way round).
    pub(crate) dims: Vec<usize>,
    /// Where its data lies in the file.
    pub(crate) bytes: Range<u64>,
}

impl Info {
    /// The rows of this range, each of `unit` numbers, with the dimensions still to be set.
    ///
    /// # Errors
    /// They do not begin and end with blocks.
    pub(crate) fn rows_of(&self, rows: Range<usize>, unit: usize) -> Result<Self, String> {
        let (block, size) = (self.format.block_size(), self.format.type_size());
        let at = |row: usize| match row * unit {
            n if n.is_multiple_of(block) => Ok(self.bytes.start + (n / block * size) as u64),
            n => Err(format!("number {n} is not at the start of a {} block of {block}", self.format.name())),
        };
        let bytes = at(rows.start)?..at(rows.end)?;
        debug_assert!(bytes.end <= self.bytes.end);
        Ok(Self { bytes, ..self.clone() })
    }
}

/// A parsed header.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: HashMap<String, Value>,
    pub(crate) tensors: BTreeMap<String, Info>,
}

impl Header {
    /// The tensor of this name in the first layer that has it.
    pub(crate) fn in_any_layer(&self, name: &str) -> Option<&Info> {
        let found =
            |key: &str| key.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map(|(_, rest)| rest == name);
        self.tensors.iter().find(|(key, _)| found(key) == Some(true)).map(|(_, info)| info)
    }

    /// Whether the file has a tensor, be it in a layer.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.in_any_layer(name).is_some()
    }
}

/// Reads little-endian values in order, with a window over the file.
struct Cursor<'a> {
    blob: &'a Blob,
    /// The position after the window.
    next: u64,
    window: Vec<u8>,
    at: usize,
}

impl<'a> Cursor<'a> {
    const WINDOW: u64 = 1 << 18;

    fn new(blob: &'a Blob) -> Self {
        Self { blob, next: 0, window: Vec::new(), at: 0 }
    }

    fn bad(&self, reason: impl Into<String>) -> LoadError {
        LoadError::Gguf { file: self.blob.path().to_path_buf(), reason: reason.into() }
    }

    fn position(&self) -> u64 {
        self.next - (self.window.len() - self.at) as u64
    }

    fn remaining(&self) -> u64 {
        self.blob.len() - self.position()
    }

    fn bytes(&mut self, n: u64) -> Result<&[u8]> {
        if n > self.remaining() {
            return Err(self.bad(format!("it ends within its header, at byte {}: truncated?", self.blob.len())));
        }
        if self.position() + n > MAX_HEADER {
            return Err(self.bad(format!("its header is longer than {MAX_HEADER} bytes")));
        }
        let n = n as usize;
        if self.window.len() - self.at < n {
            let start = self.position();
            let len = (n as u64).max(Self::WINDOW).min(self.blob.len() - start);
            self.window.resize(len as usize, 0);
            self.blob.read_at(start, &mut self.window)?;
            (self.next, self.at) = (start + len, 0);
        }
        self.at += n;
        Ok(&self.window[self.at - n..self.at])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N as u64)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let len = self.u64()?;
        if len > MAX_STRING {
            return Err(self.bad(format!("{what} is {len} bytes long; at most {MAX_STRING} are read")));
        }
        let bytes = self.bytes(len)?.to_vec();
        String::from_utf8(bytes).map_err(|_| self.bad(format!("{what} is not UTF-8")))
    }
}

/// Reads the header of `blob`.
pub(crate) fn read_header(blob: &Blob) -> Result<Header> {
    let mut c = Cursor::new(blob);
    if blob.len() < 24 || c.array()? != *b"GGUF" {
        return Err(c.bad("it does not begin with a GGUF header"));
    }
    match c.u32()? {
        2 | 3 => {}
        v if v.swap_bytes() <= 3 => return Err(c.bad("it is big-endian; convert it to little-endian")),
        v => return Err(c.bad(format!("its version is {v}; 2 and 3 are supported, so convert the model again"))),
    }
    let (tensors, keys) = (c.u64()?, c.u64()?);
    // The least an entry takes: a key's length, type and value; a tensor's name, dimensions, type and offset.
    for (n, cap, least, what) in [(tensors, MAX_TENSORS, 24, "tensors"), (keys, MAX_KEYS, 13, "metadata keys")] {
        if n > cap || n * least > c.remaining() {
            return Err(c.bad(format!("it declares {n} {what}, more than it can hold: truncated?")));
        }
    }
    let mut metadata = HashMap::new();
    for _ in 0..keys {
        let key = c.string("a metadata key")?;
        let tag = c.u32()?;
        let value = read_value(&mut c, tag, &key)?;
        if metadata.contains_key(&key) {
            return Err(key_error(blob, &key, "appears twice"));
        }
        metadata.insert(key, value);
    }
    let raw = read_table(&mut c, tensors)?;
    let align = alignment(blob, &metadata)?;
    let start = c.position().next_multiple_of(align);
    let tensors = place(blob, raw, start, align)?;
    Ok(Header { metadata, tensors })
}

pub(crate) fn key_error(blob: &Blob, key: &str, reason: impl Into<String>) -> LoadError {
    LoadError::GgufKey { file: blob.path().to_path_buf(), key: key.to_string(), reason: reason.into() }
}

fn alignment(blob: &Blob, metadata: &HashMap<String, Value>) -> Result<u64> {
    const KEY: &str = "general.alignment";
    match metadata.get(KEY) {
        None => Ok(32),
        Some(&Value::Int(n)) if n > 0 && n <= 1 << 20 && (n as u64).is_power_of_two() => Ok(n as u64),
        Some(_) => Err(key_error(blob, KEY, "expected a power of two up to 2^20")),
    }
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

fn read_value(c: &mut Cursor, tag: u32, key: &str) -> Result<Value> {
    Ok(match tag {
        STRING => Value::Str(c.string(key)?),
        ARRAY => read_array(c, key)?,
        6 => Value::Float(shortest(f32::from_le_bytes(c.array()?))),
        12 => Value::Float(f64::from_le_bytes(c.array()?)),
        7 => Value::Bool(read_bool(c, key)?),
        10 => {
            let v = c.u64()?;
            i64::try_from(v).map_or(Value::Big(v), Value::Int)
        }
        _ => Value::Int(read_int(c, tag, key)?),
    })
}

/// An f32 as the decimal it was most likely written as: 1e-5 rather than 9.999999747378752e-6.
fn shortest(v: f32) -> f64 {
    v.to_string().parse().unwrap_or(f64::from(v))
}

fn read_bool(c: &mut Cursor, key: &str) -> Result<bool> {
    match c.array::<1>()?[0] {
        0 => Ok(false),
        1 => Ok(true),
        v => Err(key_error(c.blob, key, format!("{v} is not a boolean"))),
    }
}

fn read_int(c: &mut Cursor, tag: u32, key: &str) -> Result<i64> {
    Ok(match tag {
        0 => i64::from(c.array::<1>()?[0]),
        1 => i64::from(i8::from_le_bytes(c.array()?)),
        2 => i64::from(u16::from_le_bytes(c.array()?)),
        3 => i64::from(i16::from_le_bytes(c.array()?)),
        4 => i64::from(c.u32()?),
        5 => i64::from(i32::from_le_bytes(c.array()?)),
        10 => i64::try_from(c.u64()?).map_err(|_| key_error(c.blob, key, "has an element above 2^63"))?,
        11 => i64::from_le_bytes(c.array()?),
        _ => return Err(key_error(c.blob, key, format!("has a value of unknown type {tag}"))),
    })
}

fn read_array(c: &mut Cursor, key: &str) -> Result<Value> {
    let tag = c.u32()?;
    let len = c.u64()?;
    let least = match tag {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        STRING | 10..=12 => 8,
        ARRAY => return Err(key_error(c.blob, key, "is an array of arrays, which is not supported")),
        _ => return Err(key_error(c.blob, key, format!("is an array of unknown type {tag}"))),
    };
    if len > MAX_ELEMENTS || len * least > c.remaining() {
        return Err(key_error(
            c.blob,
            key,
            format!("declares {len} elements, more than the file can hold: truncated?"),
        ));
    }
    let n = len as usize;
    Ok(match tag {
        STRING => Value::Strs(many(n, || c.string(key))?),
        6 => Value::Floats(many(n, || Ok(f32::from_le_bytes(c.array()?)))?),
        12 => Value::Floats(many(n, || Ok(f64::from_le_bytes(c.array()?) as f32))?),
        0 | 1 => Value::Bytes(c.bytes(len)?.to_vec()),
        7 => Value::Bools(many(n, || read_bool(c, key))?),
        2 => Value::Ints(Ints::U16(many(n, || Ok(u16::from_le_bytes(c.array()?)))?)),
        3 => Value::Ints(Ints::I16(many(n, || Ok(i16::from_le_bytes(c.array()?)))?)),
        4 => Value::Ints(Ints::U32(many(n, || c.u32())?)),
        5 => Value::Ints(Ints::I32(many(n, || Ok(i32::from_le_bytes(c.array()?)))?)),
        _ => Value::Ints(Ints::I64(many(n, || read_int(c, tag, key))?)),
    })
}

/// `n` values, which the file has been found to be long enough for.
fn many<T>(n: usize, mut read: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
    let mut all = Vec::with_capacity(n);
    for _ in 0..n {
        all.push(read()?);
    }
    Ok(all)
}

/// An entry as written: name, dimensions slowest first, dtype and offset into the data.
struct RawInfo {
    name: String,
    dims: Vec<u64>,
    dtype: u32,
    offset: u64,
}

fn read_table(c: &mut Cursor, n: u64) -> Result<Vec<RawInfo>> {
    let mut out = Vec::new();
    for _ in 0..n {
        let name = c.string("a tensor's name")?;
        let n_dims = c.u32()?;
        if n_dims == 0 || n_dims > MAX_DIMS {
            return Err(LoadError::tensor(c.blob.path(), &name, format!("has {n_dims} dimensions")));
        }
        let mut dims = (0..n_dims).map(|_| c.u64()).collect::<Result<Vec<_>>>()?;
        dims.reverse();
        out.push(RawInfo { name, dims, dtype: c.u32()?, offset: c.u64()? });
    }
    Ok(out)
}

/// Turns the table's claims into byte ranges, each checked against the file and against the others.
fn place(blob: &Blob, raw: Vec<RawInfo>, start: u64, align: u64) -> Result<BTreeMap<String, Info>> {
    let mut out = BTreeMap::new();
    let mut extents = Vec::with_capacity(raw.len());
    for RawInfo { name, dims, dtype, offset } in raw {
        let err = |reason: String| LoadError::tensor(blob.path(), &name, reason);
        let format = format_of_tag(dtype).ok_or_else(|| LoadError::UnsupportedDtype {
            file: blob.path().to_path_buf(),
            tensor: name.clone(),
            dtype: unknown_name(dtype),
            instead: "F16, BF16, Q8_0, Q6_K, Q5_K, Q4_K or Q4_0",
        })?;
        let count = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|&n| n <= i64::MAX as u64 / 8);
        let count = count.ok_or_else(|| err(format!("shape {dims:?} overflows")))?;
        // A tensor without numbers may claim any number of rows, and nothing in the file contradicts it.
        if count == 0 {
            return Err(err(format!("shape {dims:?} holds no numbers")));
        }
        let row = dims.last().copied().unwrap_or(1);
        let block = format.block_size() as u64;
        if !row.is_multiple_of(block) {
            return Err(err(format!("rows of {row} elements do not divide into {} blocks of {block}", format.name())));
        }
        if !offset.is_multiple_of(align) {
            return Err(err(format!("its offset {offset} is not a multiple of the alignment {align}")));
        }
        let size = count / block * format.type_size() as u64;
        let range = start.checked_add(offset).and_then(|a| Some(a..a.checked_add(size)?));
        let range = range.filter(|r| r.end <= blob.len()).ok_or_else(|| {
            err(format!("{size} bytes at offset {offset} do not fit in the file of {} bytes: truncated?", blob.len()))
        })?;
        extents.push((range.clone(), name.clone()));
        let dims = dims.into_iter().map(|d| d as usize).collect();
        if out.insert(name.clone(), Info { format, file: 0, dims, bytes: range }).is_some() {
            return Err(LoadError::tensor(blob.path(), &name, "appears twice in the table of tensors"));
        }
    }
    extents.sort_by_key(|(r, _)| (r.start, r.end));
    match extents.windows(2).find(|w| w[1].0.start < w[0].0.end) {
        Some(w) => Err(LoadError::tensor(blob.path(), &w[1].1, format!("its data overlaps that of {}", w[0].1))),
        None => Ok(out),
    }
}

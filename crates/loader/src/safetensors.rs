//! Safetensors: one file, or shards with an index, as a source of tensors.
//!
//! The `safetensors` crate defines the format's types and is used for them. Its reader, though, stops at the first
//! inconsistency without saying which tensor it is about and needs the whole file as one slice; here every check names
//! the file and the tensor, and the header is bounded before anything is allocated for it.

use crate::{
    blob::Blob,
    convert,
    error::{LoadError, Result},
    regular,
};
use attn_models::TensorSource;
use candle_core::{DType, Device, Shape, Tensor};
use safetensors::Dtype;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use std::{
    collections::{BTreeMap, HashSet, btree_map::Entry},
    fmt,
    ops::Range,
    path::{Component, Path, PathBuf},
};

/// The format's own bound on the header.
const MAX_HEADER: u64 = 100_000_000;
/// More dimensions than any model has; keeps products and messages short.
const MAX_DIMS: usize = 16;

/// A checkpoint in one or more safetensors files.
pub struct SafetensorsSource {
    files: Vec<Blob>,
    tensors: BTreeMap<String, Place>,
}

/// Where a tensor lies.
#[derive(Clone)]
struct Place {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<u64>,
}

impl SafetensorsSource {
    /// One file.
    ///
    /// # Errors
    /// The file can't be read, or its header or any tensor's extent is invalid.
    pub fn open(path: &Path, mmap: bool) -> Result<Self> {
        Self::from_blob(Blob::open(path, mmap)?)
    }

    /// A file that is already in memory, under a `name` for messages.
    ///
    /// # Errors
    /// The header or any tensor's extent is invalid.
    pub fn from_bytes(name: &str, bytes: std::borrow::Cow<'static, [u8]>) -> Result<Self> {
        Self::from_blob(Blob::memory(name, bytes))
    }

    fn from_blob(blob: Blob) -> Result<Self> {
        let tensors = read_header(&blob, 0)?;
        Ok(Self { files: vec![blob], tensors: tensors.into_iter().collect() })
    }

    /// The shards that the index file at `index` names, which lie beside it.
    ///
    /// # Errors
    /// The index is malformed, a shard is missing or invalid, or a shard lacks a tensor that the index promises.
    pub fn open_sharded(index: &Path, mmap: bool) -> Result<Self> {
        let map = read_index(index)?;
        let folder = index.parent().unwrap_or(Path::new("."));
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, shard) in &map {
            shards.entry(shard).or_default().push(name);
        }
        let mut files = Vec::with_capacity(shards.len());
        let mut tensors = BTreeMap::new();
        // A tensor that the index does not list still belongs to the checkpoint; leaving it out could change the
        // result.
        let mut unlisted: BTreeMap<String, Place> = BTreeMap::new();
        for (shard, names) in shards {
            let path = folder.join(shard);
            if !regular::exists(&path)? {
                let hint = format!("{} needs it, for {} among others", file_name(index), names[0]);
                return Err(LoadError::MissingFile { folder: folder.to_path_buf(), file: shard.to_string(), hint });
            }
            let blob = Blob::open(&path, mmap)?;
            let mut held: BTreeMap<_, _> = read_header(&blob, files.len())?.into_iter().collect();
            for name in names {
                let entry = held.remove(name).ok_or_else(|| {
                    LoadError::tensor(&path, name, format!("missing, though {} says it is here", file_name(index)))
                })?;
                tensors.insert(name.to_string(), entry);
            }
            for (name, entry) in held.into_iter().filter(|(name, _)| !map.contains_key(name)) {
                if unlisted.contains_key(&name) {
                    let reason = format!("in two shards, and {} does not say which one to use", file_name(index));
                    return Err(LoadError::tensor(&path, &name, reason));
                }
                unlisted.insert(name, entry);
            }
            files.push(blob);
        }
        tensors.extend(unlisted);
        Ok(Self { files, tensors })
    }

    /// The file that holds a tensor, for messages.
    pub(crate) fn file_of(&self, name: &str) -> &Path {
        self.get(name).map_or(Path::new("checkpoint"), |(_, blob)| blob.path())
    }

    /// Whether a tensor is stored in eight-bit floats, which mean nothing without a scale.
    pub(crate) fn is_fp8(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|entry| entry.dtype == Dtype::F8_E4M3)
    }

    /// The bytes of a tensor as they are.
    pub(crate) fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let (entry, blob) = self.get(name)?;
        let mut bytes = vec![0; (entry.bytes.end - entry.bytes.start) as usize];
        blob.read_at(entry.bytes.start, &mut bytes)?;
        Ok(bytes)
    }

    fn get(&self, name: &str) -> Result<(&Place, &Blob)> {
        let entry = self.tensors.get(name).ok_or_else(|| {
            let file = self.files.first().map_or(Path::new("checkpoint"), Blob::path);
            let place = if self.files.len() > 1 { file.parent().unwrap_or(file) } else { file };
            LoadError::tensor(place, name, "missing: the checkpoint has no tensor of this name")
        })?;
        Ok((entry, &self.files[entry.file]))
    }
}

impl TensorSource for SafetensorsSource {
    fn shape(&self, name: &str) -> Option<Shape> {
        self.tensors.get(name).map(|e| Shape::from(e.shape.as_slice()))
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        self.tensors.get(name).and_then(|e| candle_dtype(e.dtype))
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let (entry, blob) = self.get(name)?;
        let piece = [(blob, entry.bytes.clone())];
        let tensor = convert::read_tensor(&piece, stored(name, entry, blob)?, &entry.shape, dtype, device)?;
        tensor.map_err(|err| LoadError::tensor(blob.path(), name, err.to_string()).into())
    }

    fn load_rows(&self, names: &[&str], dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let found = names.iter().map(|name| self.get(name)).collect::<Result<Vec<_>>>()?;
        let Some(&(first, blob)) = found.first() else { candle_core::bail!("no tensors to stack") };
        let row = first.shape.get(1..).unwrap_or_default();
        if found.iter().any(|(e, _)| e.dtype != first.dtype || e.shape.is_empty() || e.shape[1..] != *row) {
            return attn_models::load_then_stack(self, names, dtype, device);
        }
        let rows = found.iter().map(|(e, _)| e.shape[0]).sum();
        let pieces: Vec<_> = found.iter().map(|(e, blob)| (*blob, e.bytes.clone())).collect();
        let shape = [&[rows], row].concat();
        let tensor = convert::read_tensor(&pieces, stored(names[0], first, blob)?, &shape, dtype, device)?;
        tensor.map_err(|err| LoadError::tensor(blob.path(), names[0], err.to_string()).into())
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }
}

/// The dtype that the tensor `name` is stored in, as Candle's.
fn stored(name: &str, entry: &Place, blob: &Blob) -> Result<DType> {
    candle_dtype(entry.dtype).ok_or_else(|| LoadError::UnsupportedDtype {
        file: blob.path().to_path_buf(),
        tensor: name.to_string(),
        dtype: format!("{:?}", entry.dtype),
        instead: "F32, BF16 or F16",
    })
}

/// The dtypes Candle can hold. F8 weights come with scales beside them, so reading them as numbers would be wrong.
fn candle_dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::U32 => DType::U32,
        Dtype::U8 | Dtype::BOOL => DType::U8,
        _ => return None,
    })
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}

/// The `weight_map` of an index: tensor name to shard name, every shard inside the folder.
pub(crate) fn read_index(index: &Path) -> Result<BTreeMap<String, String>> {
    parse_index(index, &regular::read(index, MAX_HEADER)?)
}

/// [`read_index`] of `bytes`; `index` is for messages.
pub(crate) fn parse_index(index: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: Map<String>,
    }
    let json = |reason: String| LoadError::Json { file: index.to_path_buf(), reason };
    let parsed: Index = serde_json::from_slice(bytes).map_err(|e| json(format!("not a valid index: {e}")))?;
    if parsed.weight_map.0.is_empty() {
        return Err(json("weight_map is empty".to_string()));
    }
    let mut map = BTreeMap::new();
    for (name, shard) in parsed.weight_map.0 {
        check_relative(index, &shard)?;
        match map.entry(name) {
            Entry::Occupied(e) => return Err(json(format!("weight_map names {} twice", e.key()))),
            Entry::Vacant(e) => _ = e.insert(shard),
        }
    }
    Ok(map)
}

/// Refuses names that are absolute or climb out of the folder, whatever the system's separators.
pub(crate) fn check_relative(file: &Path, name: &str) -> Result<()> {
    let normal = Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    let windows = name.contains('\\') || name.contains(':') || name.contains('\0');
    if name.is_empty() || !normal || windows {
        return Err(LoadError::UnsafePath { file: file.to_path_buf(), name: name.to_string() });
    }
    Ok(())
}

/// Reads and checks a file's header.
fn read_header(blob: &Blob, file: usize) -> Result<Vec<(String, Place)>> {
    let bad = |reason: String| LoadError::Safetensors { file: blob.path().to_path_buf(), reason };
    let mut size = [0; 8];
    if blob.len() < 8 {
        return Err(bad(format!("it is {} bytes long, shorter than any header", blob.len())));
    }
    blob.read_at(0, &mut size)?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER {
        return Err(bad(format!("it declares a header of {size} bytes; the format allows {MAX_HEADER}")));
    }
    if size > blob.len() - 8 {
        return Err(bad(format!("it declares a header of {size} bytes, but is {} bytes long: truncated?", blob.len())));
    }
    let mut header = vec![0; size as usize];
    blob.read_at(8, &mut header)?;
    let header: Header = serde_json::from_slice(&header).map_err(|e| bad(format!("its header is malformed: {e}")))?;
    place_tensors(blob.path(), header, 8 + size, blob.len(), file)
}

/// Turns the header's claims into byte ranges, each checked against the file and against the others.
fn place_tensors(path: &Path, header: Header, start: u64, end: u64, file: usize) -> Result<Vec<(String, Place)>> {
    let mut out = Vec::with_capacity(header.0.len());
    let mut seen = HashSet::with_capacity(header.0.len());
    for (name, raw) in header.0 {
        let err = |reason: String| LoadError::tensor(path, &name, reason);
        if !seen.insert(name.clone()) {
            return Err(err("named twice in the header".to_string()));
        }
        let dtype: Dtype = serde_json::from_value(serde_json::Value::String(raw.dtype.clone()))
            .map_err(|_| err(format!("unknown dtype {:?}", raw.dtype)))?;
        if raw.shape.len() > MAX_DIMS {
            return Err(err(format!("has {} dimensions", raw.shape.len())));
        }
        let bits = raw.shape.iter().try_fold(dtype.bitsize() as u64, |n, &d| n.checked_mul(d as u64));
        let bytes = bits.filter(|b| b % 8 == 0).map(|b| b / 8);
        let bytes = bytes.ok_or_else(|| err(format!("shape {:?} overflows", raw.shape)))?;
        let [a, b] = raw.data_offsets;
        if a > b || b - a != bytes {
            let held = b.saturating_sub(a);
            return Err(err(format!(
                "shape {:?} of {} takes {bytes} bytes, offsets hold {held}",
                raw.shape, raw.dtype
            )));
        }
        let stop = start.checked_add(b).filter(|&b| b <= end);
        let stop = stop.ok_or_else(|| {
            err(format!("ends at byte {b} of the data, but the file holds {}: truncated?", end - start))
        })?;
        out.push((name, Place { file, dtype, shape: raw.shape, bytes: start + a..stop }));
    }
    check_extents(path, &mut out, start, end)?;
    Ok(out)
}

/// The format wants the data covered without holes or overlaps.
fn check_extents(path: &Path, tensors: &mut [(String, Place)], start: u64, end: u64) -> Result<()> {
    tensors.sort_by_key(|(_, e)| (e.bytes.start, e.bytes.end));
    let mut at = start;
    for (name, e) in tensors.iter() {
        if e.bytes.start != at {
            let what = if e.bytes.start < at { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(LoadError::tensor(path, name, format!("its data {what}")));
        }
        at = e.bytes.end;
    }
    if at != end {
        let reason = format!("{} bytes follow the last tensor", end - at);
        return Err(LoadError::Safetensors { file: path.to_path_buf(), reason });
    }
    Ok(())
}

/// The header as written, in order and with repeated names, which a map would hide.
struct Header(Vec<(String, RawTensor)>);

#[derive(serde::Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

impl<'de> serde::Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut out = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        out.push((name, map.next_value()?));
                    }
                }
                Ok(Header(out))
            }
        }
        d.deserialize_map(V)
    }
}

/// A JSON object as written, with repeated keys.
struct Map<T>(Vec<(String, T)>);

impl<'de, T: serde::Deserialize<'de>> serde::Deserialize<'de> for Map<T> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V<T>(std::marker::PhantomData<T>);
        impl<'de, T: serde::Deserialize<'de>> Visitor<'de> for V<T> {
            type Value = Map<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Map<T>, A::Error> {
                let mut out = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    out.push(entry);
                }
                Ok(Map(out))
            }
        }
        d.deserialize_map(V(std::marker::PhantomData))
    }
}

/// All the shards an index names, sorted.
pub(crate) fn shards(index: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = read_index(index)?.into_values().collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// The files behind a source, for messages.
impl fmt::Debug for SafetensorsSource {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let files: Vec<PathBuf> = self.files.iter().map(|b| b.path().to_path_buf()).collect();
        f.debug_struct("SafetensorsSource").field("files", &files).field("tensors", &self.tensors.len()).finish()
    }
}

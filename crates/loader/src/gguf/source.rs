//! The tensors of a GGUF file under Hugging Face names, dequantised or as they are.

use super::{
    held::{Held, Join, Undo},
    parse::Info,
};
use crate::{
    blob::Blob,
    convert,
    error::{LoadError, Result},
};
use attn_models::{BlockFormat, Blocks, TensorSource};
use candle_core::{DType, Device, Shape, Tensor};
use std::collections::BTreeMap;

/// The tensors of one checkpoint, in one file or several.
pub(crate) struct GgufSource {
    blobs: Vec<Blob>,
    tensors: BTreeMap<String, Held>,
    keep_quantized: bool,
}

impl GgufSource {
    pub(crate) fn new(blobs: Vec<Blob>, tensors: BTreeMap<String, Held>, keep_quantized: bool) -> Self {
        Self { blobs, tensors, keep_quantized }
    }

    fn get(&self, name: &str) -> Result<&Held> {
        let missing = || {
            let file = self.blobs.first().map_or(std::path::Path::new("checkpoint"), Blob::path);
            LoadError::tensor(file, name, "missing: the file has no tensor that maps to it")
        };
        self.tensors.get(name).ok_or_else(missing)
    }

    /// The blocks' format of a tensor that is handed out in them: those that undo more than an order of rows can't be.
    fn kept(&self, held: &Held) -> Option<BlockFormat> {
        match held {
            Held::Rows(_, Undo::PlusOne | Undo::Transposed) => None,
            Held::Rows(info, _) if self.keep_quantized && info.dims.len() == 2 && info.format.plain().is_none() => {
                Some(info.format)
            }
            _ => None,
        }
    }

    /// The raw bytes of a tensor, its rows back in their original order.
    fn raw(&self, info: &Info, undo: Undo) -> Result<Aligned> {
        let (blob, range) = (&self.blobs[info.file], info.bytes.clone());
        let mut raw = Aligned::new((range.end - range.start) as usize);
        let buf = raw.bytes_mut();
        let rows = info.dims.first().copied().unwrap_or(1);
        // Checked when the names were translated.
        let Ok(Some(order)) = undo.rows(rows) else {
            let mut done = 0;
            blob.for_each_chunk(range, 1, |bytes| {
                buf[done..done + bytes.len()].copy_from_slice(bytes);
                done += bytes.len();
            })?;
            return Ok(raw);
        };
        let row = buf.len() / rows.max(1);
        let mut target = vec![0; rows];
        for (hf, &file) in order.iter().enumerate() {
            target[file] = hf;
        }
        let mut at = 0;
        blob.for_each_chunk(range, row.max(1), |bytes| {
            for bytes in bytes.chunks_exact(row) {
                buf[target[at] * row..][..row].copy_from_slice(bytes);
                at += 1;
            }
        })?;
        Ok(raw)
    }

    /// A tensor in f32 on the CPU, its rows in order.
    fn wide(&self, info: &Info, undo: Undo) -> candle_core::Result<Tensor> {
        let raw = self.raw(info, undo)?;
        let values = info.format.widen(raw.bytes(), info.dims.iter().product())?;
        let wide = Tensor::from_vec(values, info.dims.as_slice(), &Device::Cpu)?;
        match undo {
            Undo::PlusOne => wide - 1.0,
            Undo::Transposed => wide.t()?.contiguous(),
            _ => Ok(wide),
        }
    }

    fn read(&self, held: &Held, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let wide = match held {
            Held::Rows(info, Undo::None) if info.format.plain().is_some() => {
                let stored = info.format.plain().unwrap_or(DType::F32);
                let piece = [(&self.blobs[info.file], info.bytes.clone())];
                return convert::read_tensor(&piece, stored, &info.dims, dtype, device)?;
            }
            Held::Rows(info, undo) => self.wide(info, *undo)?,
            Held::Joined { pieces, join, shape } => {
                let pieces =
                    pieces.iter().map(|info| self.wide(info, Undo::None)).collect::<candle_core::Result<Vec<_>>>();
                join.apply(&pieces?)?.reshape(shape.as_slice())?
            }
            Held::Numbers(values, shape) => Tensor::from_vec(values.clone(), shape.as_slice(), &Device::Cpu)?,
        };
        wide.to_dtype(dtype)?.to_device(device)
    }
}

impl Join {
    /// The tensor that the pieces were, up to its shape.
    fn apply(self, pieces: &[Tensor]) -> candle_core::Result<Tensor> {
        let pair = || match pieces {
            [a, b] => Ok((a, b)),
            _ => candle_core::bail!("two tensors are joined, not {}", pieces.len()),
        };
        match self {
            Self::Rows => Tensor::cat(pieces, 1),
            Self::Columns => Tensor::cat(pieces, 1)?.transpose(1, 2)?.contiguous(),
            Self::ColumnsInTurn => {
                let (a, b) = pair()?;
                let (e, rows, columns) = a.dims3()?;
                Tensor::stack(&[a, b], 2)?.reshape((e, 2 * rows, columns))?.transpose(1, 2)?.contiguous()
            }
            Self::BiasesInTurn => {
                let (a, b) = pair()?;
                Tensor::stack(&[a, b], 2)?.contiguous()
            }
            Self::Turned => pieces[0].transpose(1, 2)?.contiguous(),
            Self::LatentKv => {
                let (k, v) = pair()?;
                Tensor::cat(&[&k.transpose(1, 2)?, v], 1)?.contiguous()
            }
            Self::AsRow => Ok(pieces[0].clone()),
        }
    }
}

impl TensorSource for GgufSource {
    fn shape(&self, name: &str) -> Option<Shape> {
        self.tensors.get(name).map(|held| Shape::from(held.dims()))
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        match self.tensors.get(name)? {
            Held::Rows(info, _) => info.format.plain(),
            Held::Joined { pieces, .. } => pieces.first()?.format.plain(),
            Held::Numbers(..) => Some(DType::F32),
        }
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let held = self.get(name)?;
        self.read(held, dtype, device).map_err(|e| {
            let file = match held {
                Held::Rows(info, _) => info.file,
                Held::Joined { pieces, .. } => pieces.first().map_or(0, |info| info.file),
                Held::Numbers(..) => 0,
            };
            LoadError::tensor(self.blobs[file].path(), name, e.to_string()).into()
        })
    }

    fn quantized(&self, name: &str, device: &Device) -> candle_core::Result<Option<Blocks>> {
        let held = self.get(name)?;
        let (Some(format), Held::Rows(info, undo)) = (self.kept(held), held) else { return Ok(None) };
        let &[rows, columns] = info.dims.as_slice() else { return Ok(None) };
        if !format.stays_on(device) {
            return Ok(None);
        }
        match Blocks::new(format, self.raw(info, *undo)?.bytes(), (rows, columns), device) {
            Ok(blocks) => Ok(Some(blocks)),
            Err(e) => Err(LoadError::tensor(self.blobs[info.file].path(), name, e.to_string()).into()),
        }
    }

    fn block_format(&self, name: &str) -> Option<BlockFormat> {
        self.kept(self.tensors.get(name)?)
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }
}

/// Bytes aligned for any block type, which Candle requires of the data it is given.
struct Aligned {
    words: Vec<u64>,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(8)], len }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the words own at least `len` initialised bytes, and bytes have no alignment.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; every bit pattern is a valid word, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.len) }
    }
}

//! The tensors of a GGUF file under Hugging Face names, dequantised or as they are.

use super::{
    arch::Arch,
    names::{self, Undo},
    parse::{Header, Info},
};
use crate::{
    blob::Blob,
    convert,
    error::{LoadError, Result},
};
use attn_models::TensorSource;
use candle_core::{
    CpuStorage, DType, Device, Shape, Tensor,
    quantized::{GgmlDType, QStorage, QTensor},
};
use rayon::prelude::*;
use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

/// The tensors of one GGUF file.
pub(crate) struct GgufSource {
    blob: Blob,
    tensors: BTreeMap<String, Held>,
    keep_quantized: bool,
}

struct Held {
    info: Info,
    undo: Undo,
}

impl GgufSource {
    /// Translates the names in `header`; tensors without a Hugging Face counterpart are left out.
    pub(crate) fn new(
        blob: Blob,
        header: Header,
        arch: Arch,
        (heads, kv_heads): (usize, usize),
        keep_quantized: bool,
    ) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, info) in header.tensors {
            if let Some((hf, undo)) = names::translate(arch, &name, heads, kv_heads) {
                let rows = if info.dims.len() > 2 { 0 } else { info.dims[0] };
                if undo != Undo::None && rows == 0 {
                    return Err(LoadError::tensor(blob.path(), &name, format!("has shape {:?}", info.dims)));
                }
                undo.rows(rows).map_err(|reason| LoadError::tensor(blob.path(), &name, reason))?;
                tensors.insert(hf, Held { info, undo });
            }
        }
        Ok(Self { blob, tensors, keep_quantized })
    }

    fn get(&self, name: &str) -> Result<&Held> {
        let missing = || LoadError::tensor(self.blob.path(), name, "missing: the file has no tensor that maps to it");
        self.tensors.get(name).ok_or_else(missing)
    }

    /// Whether a tensor is handed out in its blocks: those that undo more than an order of rows can't be.
    fn keeps(&self, held: &Held) -> bool {
        let movable = !matches!(held.undo, Undo::PlusOne | Undo::Transposed);
        self.keep_quantized && plain_dtype(held.info.dtype).is_none() && movable
    }

    /// The raw bytes of a tensor, its rows back in their original order.
    fn raw(&self, held: &Held) -> Result<Aligned> {
        let range = held.info.bytes.clone();
        let mut raw = Aligned::new((range.end - range.start) as usize);
        let buf = raw.bytes_mut();
        let rows = held.info.dims[0];
        // Checked when the source was made.
        let Ok(Some(order)) = held.undo.rows(rows) else {
            let mut done = 0;
            self.blob.for_each_chunk(range, 1, |bytes| {
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
        self.blob.for_each_chunk(range, row.max(1), |bytes| {
            for bytes in bytes.chunks_exact(row) {
                buf[target[at] * row..][..row].copy_from_slice(bytes);
                at += 1;
            }
        })?;
        Ok(raw)
    }

    fn dequantize(&self, name: &str, held: &Held, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let info = &held.info;
        let plain = plain_dtype(info.dtype);
        let cpu = match plain {
            Some(stored) if held.undo == Undo::None => {
                convert::read_tensor(&[(&self.blob, info.bytes.clone())], stored, &info.dims, dtype, device)?
            }
            _ => {
                let raw = self.raw(held)?;
                let wide = Tensor::from_vec(widen(info, raw.bytes())?, info.dims.as_slice(), &Device::Cpu);
                wide.and_then(|t| match held.undo {
                    Undo::PlusOne => t - 1.0,
                    Undo::Transposed => t.t()?.contiguous(),
                    _ => Ok(t),
                })
                .and_then(|t| t.to_dtype(dtype)?.to_device(device))
            }
        };
        cpu.map_err(|e| LoadError::tensor(self.blob.path(), name, e.to_string()).into())
    }
}

/// The dtype of blocks that are plain numbers.
fn plain_dtype(dtype: GgmlDType) -> Option<DType> {
    match dtype {
        GgmlDType::F32 => Some(DType::F32),
        GgmlDType::F16 => Some(DType::F16),
        GgmlDType::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// Dequantises in parallel, a group of blocks at a time.
fn widen(info: &Info, raw: &[u8]) -> candle_core::Result<Vec<f32>> {
    // A multiple of every block's size and of eight bytes, so that every group stays aligned for Candle.
    const GROUP: usize = 1 << 15;
    let bytes = GROUP / info.dtype.block_size() * info.dtype.type_size();
    let mut out = vec![0f32; info.dims.iter().product()];
    out.par_chunks_mut(GROUP).zip(raw.par_chunks(bytes)).try_for_each(|(out, raw)| {
        match info.dtype.from_data(Cow::Borrowed(raw)).dequantize(out.len())? {
            CpuStorage::F32(values) => out.copy_from_slice(&values),
            other => candle_core::bail!("dequantised to {:?}", candle_core::backend::BackendStorage::dtype(&other)),
        }
        Ok(())
    })?;
    Ok(out)
}

impl TensorSource for GgufSource {
    fn shape(&self, name: &str) -> Option<Shape> {
        let held = self.tensors.get(name)?;
        let mut dims = held.info.dims.clone();
        if held.undo == Undo::Transposed {
            dims.reverse();
        }
        Some(Shape::from(dims))
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        plain_dtype(self.tensors.get(name)?.info.dtype)
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.dequantize(name, self.get(name)?, dtype, device)
    }

    fn quantized(&self, name: &str, device: &Device) -> candle_core::Result<Option<Arc<QTensor>>> {
        let held = self.get(name)?;
        if !self.keeps(held) {
            return Ok(None);
        }
        let raw = self.raw(held)?;
        let tensor = QStorage::from_data(Cow::Borrowed(raw.bytes()), device, held.info.dtype)
            .and_then(|storage| QTensor::new(storage, held.info.dims.as_slice()));
        match tensor {
            Ok(tensor) => Ok(Some(Arc::new(tensor))),
            Err(e) => Err(LoadError::tensor(self.blob.path(), name, e.to_string()).into()),
        }
    }

    fn quantized_dtype(&self, name: &str) -> Option<GgmlDType> {
        self.tensors.get(name).filter(|held| self.keeps(held)).map(|held| held.info.dtype)
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

//! Weights in the quantised blocks of GGUF files: the formats, and matrices that stay in them.
//!
//! Candle knows most formats. Those that it does not know are defined here, after ggml's `ggml-quants.c`: MXFP4 (OCP's
//! microscaling format, gpt-oss), IQ4_NL and IQ4_XS, four-bit indices into tables.

use candle_core::{
    CpuStorage, DType, Device, Result, Tensor, bail,
    quantized::{GgmlDType, QStorage, QTensor},
};
use half::f16;
use rayon::prelude::*;
use std::{borrow::Cow, fmt, sync::Arc};

/// What MXFP4's codes stand for, times two.
pub(crate) const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
/// What the codes of IQ4_NL and IQ4_XS stand for.
pub(crate) const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// How blocks of weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlockFormat {
    /// One that Candle knows.
    Candle(GgmlDType),
    /// 32 four-bit floats under one power of two.
    Mxfp4,
    /// 32 four-bit indices into a table under one f16.
    Iq4Nl,
    /// 256 of them, every 32 with a six-bit scale of its own.
    Iq4Xs,
}

impl From<GgmlDType> for BlockFormat {
    fn from(dtype: GgmlDType) -> Self {
        Self::Candle(dtype)
    }
}

impl BlockFormat {
    /// Its name as llama.cpp writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Candle(dtype) => match dtype {
                GgmlDType::F32 => "F32",
                GgmlDType::F16 => "F16",
                GgmlDType::BF16 => "BF16",
                GgmlDType::Q4_0 => "Q4_0",
                GgmlDType::Q4_1 => "Q4_1",
                GgmlDType::Q5_0 => "Q5_0",
                GgmlDType::Q5_1 => "Q5_1",
                GgmlDType::Q8_0 => "Q8_0",
                GgmlDType::Q8_1 => "Q8_1",
                GgmlDType::Q2K => "Q2_K",
                GgmlDType::Q3K => "Q3_K",
                GgmlDType::Q4K => "Q4_K",
                GgmlDType::Q5K => "Q5_K",
                GgmlDType::Q6K => "Q6_K",
                GgmlDType::Q8K => "Q8_K",
            },
            Self::Mxfp4 => "MXFP4",
            Self::Iq4Nl => "IQ4_NL",
            Self::Iq4Xs => "IQ4_XS",
        }
    }

    /// The dtype of blocks that are plain numbers.
    pub fn plain(self) -> Option<DType> {
        match self {
            Self::Candle(GgmlDType::F32) => Some(DType::F32),
            Self::Candle(GgmlDType::F16) => Some(DType::F16),
            Self::Candle(GgmlDType::BF16) => Some(DType::BF16),
            _ => None,
        }
    }

    /// Whether [`Blocks`] of it can be on a device: those of Candle's formats on any, IQ4_NL as well (as Q8_0, where it is not
    /// the CPU), the others on the CPU.
    pub fn stays_on(self, device: &Device) -> bool {
        device.is_cpu() || matches!(self, Self::Candle(_) | Self::Iq4Nl)
    }

    /// Numbers in a block.
    pub fn block_size(self) -> usize {
        match self {
            Self::Candle(dtype) => dtype.block_size(),
            Self::Mxfp4 | Self::Iq4Nl => 32,
            Self::Iq4Xs => 256,
        }
    }

    /// Bytes of a block.
    pub fn type_size(self) -> usize {
        match self {
            Self::Candle(dtype) => dtype.type_size(),
            Self::Mxfp4 => 17,
            Self::Iq4Nl => 18,
            Self::Iq4Xs => 136,
        }
    }

    /// The numbers of the blocks in `raw`, as many as `out` takes; `raw` is aligned to eight bytes or starts at a block of
    /// bytes that are.
    ///
    /// # Errors
    /// A format of Candle's that does not become f32.
    pub fn widen_into(self, raw: &[u8], out: &mut [f32]) -> Result<()> {
        let blocks = out.chunks_mut(self.block_size()).zip(raw.chunks_exact(self.type_size()));
        match self {
            Self::Candle(dtype) => match dtype.from_data(Cow::Borrowed(raw)).dequantize(out.len())? {
                CpuStorage::F32(values) => out.copy_from_slice(&values),
                _ => bail!("{dtype:?} does not widen to f32"),
            },
            Self::Mxfp4 => blocks.for_each(|(out, raw)| nibbles(mxfp4_scale(raw[0]), &FP4, &raw[1..], out)),
            Self::Iq4Nl => blocks.for_each(|(out, raw)| nibbles(half_at(raw), &IQ4, &raw[2..], out)),
            Self::Iq4Xs => blocks.for_each(|(out, raw)| iq4_xs(raw, out)),
        }
        Ok(())
    }

    /// The same on all cores, for `count` numbers.
    ///
    /// # Errors
    /// Those of [`widen_into`](Self::widen_into).
    pub fn widen(self, raw: &[u8], count: usize) -> Result<Vec<f32>> {
        // A multiple of every block's size and of eight bytes, so that every group stays aligned for Candle.
        const GROUP: usize = 1 << 15;
        let bytes = GROUP / self.block_size() * self.type_size();
        let mut out = vec![0f32; count];
        let parts = out.par_chunks_mut(GROUP).zip(raw.par_chunks(bytes));
        parts.try_for_each(|(out, raw)| self.widen_into(raw, out))?;
        Ok(out)
    }
}

/// Blocks of IQ4_NL as blocks of Q8_0 with the same numbers: what the table has are bytes, under the same scale.
fn as_bytes(raw: &[u8]) -> Vec<u8> {
    let mut all = vec![0; raw.len() / 18 * 34];
    for (raw, to) in raw.chunks_exact(18).zip(all.chunks_exact_mut(34)) {
        let ((scale, codes), (to_scale, numbers)) = (raw.split_at(2), to.split_at_mut(2));
        to_scale.copy_from_slice(scale);
        let (low, high) = numbers.split_at_mut(16);
        for ((low, high), code) in low.iter_mut().zip(high).zip(codes) {
            *low = IQ4[usize::from(code & 15)] as u8;
            *high = IQ4[usize::from(code >> 4)] as u8;
        }
    }
    all
}

fn half_at(raw: &[u8]) -> f32 {
    f16::from_le_bytes([raw[0], raw[1]]).to_f32()
}

/// 2^(exponent - 128): the exponent's bias is 127, and one more since the table is doubled. The two least are denormal.
#[inline(always)]
pub(crate) fn mxfp4_scale(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 | 1 => 1 << (21 + exponent),
        _ => u32::from(exponent - 1) << 23,
    })
}

/// The scales of the eight groups of a block of IQ4_XS, minus 32: their upper two bits, and their lower four.
#[inline(always)]
pub(crate) fn iq4_xs_scales(high: [u8; 2], low: [u8; 4]) -> [i8; 8] {
    let (high, low) = (u16::from_le_bytes(high), u32::from_le_bytes(low));
    std::array::from_fn(|i| ((low >> (4 * i) & 15) as i8 | ((high >> (2 * i) & 3) as i8 * 16)) - 32)
}

/// Low nibbles are the first half of a block, high ones the second.
fn nibbles(scale: f32, table: &[i8; 16], codes: &[u8], out: &mut [f32]) {
    let (low, high) = out.split_at_mut(codes.len());
    for ((low, high), code) in low.iter_mut().zip(high).zip(codes) {
        *low = scale * f32::from(table[usize::from(code & 15)]);
        *high = scale * f32::from(table[usize::from(code >> 4)]);
    }
}

/// An f16, the scales' high two bits, their low four bits, then the codes.
fn iq4_xs(raw: &[u8], out: &mut [f32]) {
    let (d, codes) = (half_at(raw), &raw[8..]);
    let scales = iq4_xs_scales([raw[2], raw[3]], [raw[4], raw[5], raw[6], raw[7]]);
    for ((out, codes), scale) in out.chunks_mut(32).zip(codes.chunks(16)).zip(scales) {
        nibbles(d * f32::from(scale), &IQ4, codes, out);
    }
}

/// A matrix `(rows, columns)` in quantised blocks, each within a row. Clones share the data.
#[derive(Debug, Clone)]
pub struct Blocks(Held);

#[derive(Debug, Clone)]
enum Held {
    Candle(Arc<QTensor>),
    /// Of a format that Candle does not know, on the CPU.
    Own(Arc<Own>),
}

struct Own {
    format: BlockFormat,
    data: Vec<u8>,
    dims: (usize, usize),
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.format, self.dims)
    }
}

impl From<Arc<QTensor>> for Blocks {
    fn from(blocks: Arc<QTensor>) -> Self {
        Self(Held::Candle(blocks))
    }
}

impl Blocks {
    /// `data` as a matrix of `dims`, on a device that [the format can be on](BlockFormat::stays_on). For formats of
    /// Candle's, `data` is aligned to eight bytes.
    ///
    /// # Errors
    /// Rows that are not whole blocks, bytes that are not as many as the shape takes, another device than the CPU for a
    /// format that has none.
    pub fn new<'a>(
        format: BlockFormat,
        data: impl Into<Cow<'a, [u8]>>,
        dims: (usize, usize),
        device: &Device,
    ) -> Result<Self> {
        let data = data.into();
        let (rows, columns) = dims;
        let blocks = columns / format.block_size();
        let bytes = rows.checked_mul(blocks).and_then(|n| n.checked_mul(format.type_size()));
        if !columns.is_multiple_of(format.block_size()) || bytes != Some(data.len()) {
            bail!("{format:?}: {} bytes are no matrix of {rows} rows of {columns} numbers", data.len())
        }
        Ok(Self(match format {
            BlockFormat::Candle(dtype) => {
                let storage = QStorage::from_data(data, device, dtype)?;
                Held::Candle(Arc::new(QTensor::new(storage, dims)?))
            }
            BlockFormat::Iq4Nl if !device.is_cpu() => {
                return Self::new(GgmlDType::Q8_0.into(), as_bytes(&data), dims, device);
            }
            _ if !format.stays_on(device) => bail!("{format:?}: blocks that stay as they are on the CPU alone"),
            _ => Held::Own(Arc::new(Own { format, data: data.into_owned(), dims })),
        }))
    }

    /// Matrices of one format and as many columns under each other, on the device of the first.
    ///
    /// # Errors
    /// Formats or columns that differ; none at all.
    pub fn stack(parts: &[Self]) -> Result<Self> {
        let Some(first) = parts.first() else { bail!("no blocks to stack") };
        let (format, (_, columns)) = (first.format(), first.dims2()?);
        let (mut rows, mut data) = (0, vec![]);
        for part in parts {
            let (more, width) = part.dims2()?;
            if part.format() != format || width != columns {
                bail!("{format:?} of {columns} columns can't be stacked with {:?} of {width}", part.format())
            }
            rows += more;
            data.extend_from_slice(&part.data()?);
        }
        Self::new(format, data, (rows, columns), &first.device())
    }

    /// How they are stored.
    pub fn format(&self) -> BlockFormat {
        match &self.0 {
            Held::Candle(blocks) => blocks.dtype().into(),
            Held::Own(own) => own.format,
        }
    }

    /// `(rows, columns)`
    ///
    /// # Errors
    /// A tensor of Candle's that is no matrix.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        match &self.0 {
            Held::Candle(blocks) => blocks.shape().dims2(),
            Held::Own(own) => Ok(own.dims),
        }
    }

    /// Where they are.
    pub fn device(&self) -> Device {
        match &self.0 {
            Held::Candle(blocks) => blocks.device(),
            Held::Own(_) => Device::Cpu,
        }
    }

    /// The bytes of all blocks.
    ///
    /// # Errors
    /// A device that does not hand them out.
    pub fn data(&self) -> Result<Cow<'_, [u8]>> {
        match &self.0 {
            Held::Candle(blocks) => blocks.data(),
            Held::Own(own) => Ok(Cow::Borrowed(&own.data)),
        }
    }

    /// The tensor of Candle's, if it is one.
    pub fn as_candle(&self) -> Option<&Arc<QTensor>> {
        match &self.0 {
            Held::Candle(blocks) => Some(blocks),
            Held::Own(_) => None,
        }
    }

    /// The numbers, `(rows, columns)` in f32, on the device of the blocks.
    ///
    /// # Errors
    /// A format that does not become f32.
    pub fn dequantize(&self) -> Result<Tensor> {
        match &self.0 {
            Held::Candle(blocks) => blocks.dequantize(&blocks.device()),
            Held::Own(own) => {
                let (rows, columns) = own.dims;
                Tensor::from_vec(own.format.widen(&own.data, rows * columns)?, own.dims, &Device::Cpu)
            }
        }
    }

    /// Rows by number, `ids` of any shape, as `(.., columns)` in f32.
    ///
    /// # Errors
    /// Numbers past the last row.
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        let own = match &self.0 {
            Held::Candle(blocks) => return blocks.embedding(ids),
            Held::Own(own) => own,
        };
        let (rows, columns) = own.dims;
        let bytes = columns / own.format.block_size() * own.format.type_size();
        let wanted = ids.flatten_all()?.to_dtype(DType::U32)?.to_vec1::<u32>()?;
        let mut out = vec![0f32; wanted.len() * columns];
        for (id, out) in wanted.iter().zip(out.chunks_mut(columns.max(1))) {
            let id = *id as usize;
            if id >= rows {
                bail!("row {id} of a table that has {rows}")
            }
            own.format.widen_into(&own.data[id * bytes..][..bytes], out)?;
        }
        let dims = [ids.dims(), &[columns]].concat();
        Tensor::from_vec(out, dims, &Device::Cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mxfp4_is_a_sign_two_exponent_bits_and_one_of_mantissa_under_a_power_of_two() {
        let mut raw = vec![128];
        raw.extend((0..16u8).map(|i| i | ((15 - i) << 4)));
        let mut want: Vec<f32> = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0].map(|x| 2.0 * x).to_vec();
        want.extend(want.clone().iter().map(|x| -x));
        let got = BlockFormat::Mxfp4.widen(&raw, 32).unwrap();
        assert_eq!(got[..16], want);
        assert!(got[16..].iter().zip(want.iter().rev()).all(|(a, b)| a == b));
        for exponent in 0..=255u8 {
            assert_eq!(f64::from(mxfp4_scale(exponent)), 2f64.powi(i32::from(exponent) - 128), "{exponent}");
        }
    }

    #[test]
    fn iq4_scales_are_six_bits_around_32() {
        let d = f16::from_f32(0.5).to_le_bytes();
        let flat = [&d[..], &[0x10; 16]].concat();
        let got = BlockFormat::Iq4Nl.widen(&flat, 32).unwrap();
        assert_eq!((got[0], got[31]), (-63.5, -52.0));
        let codes: Vec<u8> = (0..16).map(|i| i << 4 | (15 - i)).collect();
        let flat = [&d[..], &codes, &d[..], &[0x3c; 16]].concat();
        let wide = BlockFormat::from(GgmlDType::Q8_0).widen(&as_bytes(&flat), 64).unwrap();
        assert_eq!(wide, BlockFormat::Iq4Nl.widen(&flat, 64).unwrap());
        // Scale 5 of the second sub-block is 0b01_0011 = 19: low bits 3 in the high nibble, high bits 1.
        let mut raw = [&d[..], &[0b0100, 0, 0x30, 0, 0, 0], &[0x88; 128]].concat();
        let got = BlockFormat::Iq4Xs.widen(&raw, 256).unwrap();
        assert_eq!((got[0], got[32]), (0.5 * -32.0, 0.5 * (19.0 - 32.0)));
        raw[8 + 16] = 0x0f;
        assert_eq!(BlockFormat::Iq4Xs.widen(&raw, 256).unwrap()[32], 0.5 * -13.0 * 113.0);
    }

    #[test]
    fn rows_are_looked_up_and_stacked_as_they_were() -> Result<()> {
        for format in [BlockFormat::Mxfp4, BlockFormat::Iq4Nl, BlockFormat::Iq4Xs, GgmlDType::Q8_0.into()] {
            let (rows, columns) = (5, 256);
            let bytes = columns / format.block_size() * format.type_size();
            let data: Vec<u8> = (0..rows * bytes).map(|i| (i * 7 % 60) as u8).collect();
            let part = |from: usize, to: usize| {
                Blocks::new(format, &data[from * bytes..to * bytes], (to - from, columns), &Device::Cpu)
            };
            let all = Blocks::stack(&[part(0, 2)?, part(2, 5)?])?;
            assert_eq!((all.format(), all.dims2()?, &*all.data()?), (format, (rows, columns), &data[..]));
            let ids = Tensor::new(&[[4u32, 0], [2, 2]], &Device::Cpu)?;
            let want = all.dequantize()?.index_select(&ids.flatten_all()?, 0)?.reshape((2, 2, columns))?;
            let got = all.embedding(&ids)?;
            assert_eq!(got.dims(), want.dims());
            assert_eq!(got.flatten_all()?.to_vec1::<f32>()?, want.flatten_all()?.to_vec1::<f32>()?);
            assert!(all.embedding(&Tensor::new(&[[5u32]], &Device::Cpu)?).is_err());
            assert!(Blocks::new(format, &data[1..], (rows, columns), &Device::Cpu).is_err());
            assert!(Blocks::new(format, &data, (2 * rows, columns / 2 + 8), &Device::Cpu).is_err());
        }
        let (a, b) = (vec![0; 2 * 18], vec![0; 2 * 17]);
        let a = Blocks::new(BlockFormat::Iq4Nl, &a, (2, 32), &Device::Cpu)?;
        let b = Blocks::new(BlockFormat::Mxfp4, &b, (2, 32), &Device::Cpu)?;
        assert!(Blocks::stack(&[a, b]).is_err() && Blocks::stack(&[]).is_err());
        Ok(())
    }
}

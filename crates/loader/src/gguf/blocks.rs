//! The formats that weights are stored in, and what a block of each holds.
//!
//! Candle knows most of them and computes with their blocks as they are. Those it does not know are widened here, after
//! the definitions in ggml's `ggml-quants.c`: MXFP4 (OCP's microscaling format, gpt-oss), IQ4_NL and IQ4_XS.

use candle_core::{CpuStorage, DType, quantized::GgmlDType};
use half::f16;
use rayon::prelude::*;
use std::borrow::Cow;

/// How a tensor's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One that Candle knows.
    Candle(GgmlDType),
    /// 32 four-bit floats under one power of two.
    Mxfp4,
    /// 32 four-bit indices into a table under one f16.
    Iq4Nl,
    /// 256 of them, every 32 with a six-bit scale of its own.
    Iq4Xs,
}

/// What MXFP4's codes stand for, times two.
const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
/// IQ4's table.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl Format {
    /// The format with this number in a GGUF file.
    pub(crate) fn of_tag(tag: u32) -> Option<Self> {
        Some(Self::Candle(match tag {
            0 => GgmlDType::F32,
            1 => GgmlDType::F16,
            2 => GgmlDType::Q4_0,
            3 => GgmlDType::Q4_1,
            6 => GgmlDType::Q5_0,
            7 => GgmlDType::Q5_1,
            8 => GgmlDType::Q8_0,
            9 => GgmlDType::Q8_1,
            10 => GgmlDType::Q2K,
            11 => GgmlDType::Q3K,
            12 => GgmlDType::Q4K,
            13 => GgmlDType::Q5K,
            14 => GgmlDType::Q6K,
            15 => GgmlDType::Q8K,
            30 => GgmlDType::BF16,
            20 => return Some(Self::Iq4Nl),
            23 => return Some(Self::Iq4Xs),
            39 => return Some(Self::Mxfp4),
            _ => return None,
        }))
    }

    /// Its name as llama.cpp writes it.
    pub(crate) fn name(self) -> &'static str {
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

    /// Numbers in a block.
    pub(crate) fn block_size(self) -> usize {
        match self {
            Self::Candle(dtype) => dtype.block_size(),
            Self::Mxfp4 | Self::Iq4Nl => 32,
            Self::Iq4Xs => 256,
        }
    }

    /// Bytes of a block.
    pub(crate) fn type_size(self) -> usize {
        match self {
            Self::Candle(dtype) => dtype.type_size(),
            Self::Mxfp4 => 17,
            Self::Iq4Nl => 18,
            Self::Iq4Xs => 136,
        }
    }

    /// The dtype of blocks that are plain numbers.
    pub(crate) fn plain(self) -> Option<DType> {
        match self {
            Self::Candle(GgmlDType::F32) => Some(DType::F32),
            Self::Candle(GgmlDType::F16) => Some(DType::F16),
            Self::Candle(GgmlDType::BF16) => Some(DType::BF16),
            _ => None,
        }
    }

    /// The format of blocks that hold the same numbers exactly and can be computed with: their own, or that of
    /// [`as_bytes`].
    pub(crate) fn blocks(self) -> Option<GgmlDType> {
        match self {
            Self::Candle(dtype) if self.plain().is_none() => Some(dtype),
            Self::Iq4Nl => Some(GgmlDType::Q8_0),
            _ => None,
        }
    }

    /// The `count` numbers in `raw`, widened in parallel; `raw` is aligned to eight bytes.
    pub(crate) fn widen(self, raw: &[u8], count: usize) -> candle_core::Result<Vec<f32>> {
        // A multiple of every block's size and of eight bytes, so that every group stays aligned for Candle.
        const GROUP: usize = 1 << 15;
        let bytes = GROUP / self.block_size() * self.type_size();
        let mut out = vec![0f32; count];
        out.par_chunks_mut(GROUP).zip(raw.par_chunks(bytes)).try_for_each(|(out, raw)| {
            let blocks = out.chunks_mut(self.block_size()).zip(raw.chunks(self.type_size()));
            match self {
                Self::Candle(dtype) => match dtype.from_data(Cow::Borrowed(raw)).dequantize(out.len())? {
                    CpuStorage::F32(values) => out.copy_from_slice(&values),
                    _ => candle_core::bail!("{} does not widen to f32", self.name()),
                },
                Self::Mxfp4 => blocks.for_each(|(out, raw)| mxfp4(raw, out)),
                Self::Iq4Nl => blocks.for_each(|(out, raw)| nibbles(half_at(raw), &IQ4, &raw[2..], out)),
                Self::Iq4Xs => blocks.for_each(|(out, raw)| iq4_xs(raw, out)),
            }
            Ok(())
        })?;
        Ok(out)
    }
}

/// Blocks of IQ4_NL as blocks of Q8_0 with the same numbers: what the table has are bytes, under the same scale.
pub(crate) fn as_bytes(raw: &[u8], to: &mut [u8]) {
    for (raw, to) in raw.chunks_exact(18).zip(to.chunks_exact_mut(34)) {
        let ((scale, codes), (to_scale, numbers)) = (raw.split_at(2), to.split_at_mut(2));
        to_scale.copy_from_slice(scale);
        let (low, high) = numbers.split_at_mut(16);
        for ((low, high), code) in low.iter_mut().zip(high).zip(codes) {
            *low = IQ4[usize::from(code & 15)] as u8;
            *high = IQ4[usize::from(code >> 4)] as u8;
        }
    }
}

fn half_at(raw: &[u8]) -> f32 {
    f16::from_le_bytes([raw[0], raw[1]]).to_f32()
}

/// Low nibbles are the first half of a block, high ones the second.
fn nibbles(scale: f32, table: &[i8; 16], codes: &[u8], out: &mut [f32]) {
    let (low, high) = out.split_at_mut(codes.len());
    for ((low, high), code) in low.iter_mut().zip(high).zip(codes) {
        *low = scale * f32::from(table[usize::from(code & 15)]);
        *high = scale * f32::from(table[usize::from(code >> 4)]);
    }
}

/// A power of two (the exponent's bias is 127, and one less since the table is doubled), then the codes.
fn mxfp4(raw: &[u8], out: &mut [f32]) {
    nibbles(2f64.powi(i32::from(raw[0]) - 128) as f32, &FP4, &raw[1..], out);
}

/// An f16, the scales' high two bits, their low four bits, then the codes.
fn iq4_xs(raw: &[u8], out: &mut [f32]) {
    let (d, high, low, codes) = (half_at(raw), u16::from_le_bytes([raw[2], raw[3]]), &raw[4..8], &raw[8..]);
    for (i, (out, codes)) in out.chunks_mut(32).zip(codes.chunks(16)).enumerate() {
        let scale = ((low[i / 2] >> (4 * (i % 2))) & 15) | (((high >> (2 * i)) & 3) << 4) as u8;
        nibbles(d * (f32::from(scale) - 32.0), &IQ4, codes, out);
    }
}

/// The formats that neither Candle nor this file knows, by name.
pub(crate) fn unknown_name(tag: u32) -> String {
    let name = match tag {
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        40 => "NVFP4",
        _ => return format!("type {tag}"),
    };
    name.to_string()
}

/// What llama.cpp calls a file whose `general.file_type` is `n`.
pub(crate) fn file_type(n: u64) -> Option<&'static str> {
    Some(match n {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4",
        39 => "NVFP4",
        _ => return None,
    })
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
        let got = Format::Mxfp4.widen(&raw, 32).unwrap();
        assert_eq!(got[..16], want);
        assert!(got[16..].iter().zip(want.iter().rev()).all(|(a, b)| a == b));
        raw[0] = 0;
        assert_eq!(Format::Mxfp4.widen(&raw, 32).unwrap()[1], f32::from_bits(1 << 21));
    }

    #[test]
    fn iq4_scales_are_six_bits_around_32() {
        let d = f16::from_f32(0.5).to_le_bytes();
        let flat = [&d[..], &[0x10; 16]].concat();
        let got = Format::Iq4Nl.widen(&flat, 32).unwrap();
        assert_eq!((got[0], got[31]), (-63.5, -52.0));
        let codes: Vec<u8> = (0..16).map(|i| i << 4 | (15 - i)).collect();
        let flat = [&d[..], &codes, &d[..], &[0x3c; 16]].concat();
        let mut bytes = vec![0; 68];
        as_bytes(&flat, &mut bytes);
        let wide = Format::Candle(GgmlDType::Q8_0).widen(&bytes, 64).unwrap();
        assert_eq!(wide, Format::Iq4Nl.widen(&flat, 64).unwrap());
        // Scale 5 of the second sub-block is 0b01_0011 = 19: low bits 3 in the high nibble, high bits 1.
        let mut raw = [&d[..], &[0b0100, 0, 0x30, 0, 0, 0], &[0x88; 128]].concat();
        let got = Format::Iq4Xs.widen(&raw, 256).unwrap();
        assert_eq!((got[0], got[32]), (0.5 * -32.0, 0.5 * (19.0 - 32.0)));
        raw[8 + 16] = 0x0f;
        assert_eq!(Format::Iq4Xs.widen(&raw, 256).unwrap()[32], 0.5 * -13.0 * 113.0);
    }
}

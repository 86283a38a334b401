//! Numbers to blocks and back. They are [turned](super::turn) first, and the blocks of what comes of that are ggml's, bit for bit
//! as `quantize_row_q8_0_ref` and `quantize_row_q4_0_ref` of its `ggml-quants.c` make them.
//!
//! What is written here is plain Rust in an order that no instruction set changes, compiled for each of them: blocks have the
//! same bits on every machine.

use super::{
    BLOCK, CacheType,
    turn::{LARGEST, turn},
};
use crate::simd::{Job, KernelPath, Simd, dispatch};
use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};
use half::f16;
use rayon::prelude::*;

/// Numbers below which a second thread isn't worth waking.
const FEW: usize = 1 << 16;
/// Blocks that a thread takes at a time.
const AT_ONCE: usize = 256;

type Numbers = [f32; BLOCK];

/// The blocks of every token of `xs`, `(b, h, t, d)`, `size` numbers turned at once, as `(b, h, t, bytes)` in u8.
///
/// # Errors
/// A tensor with a gradient, or one that is not on the CPU.
pub(super) fn blocks(xs: &Tensor, kind: CacheType, size: usize) -> Result<Tensor> {
    let (b, h, t, d) = xs.dims4()?;
    if xs.track_op() {
        bail!("cache type {kind}: no gradient flows into blocks: detach the weights")
    }
    if !xs.device().is_cpu() {
        bail!("cache type {kind}: quantised blocks work only on the CPU: store f32, f16 or bf16 on other devices")
    }
    let flat = xs.to_dtype(DType::F32)?.contiguous()?;
    let (storage, layout) = flat.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(all)) = &*storage else { bail!("cache type {kind}: no f32 numbers on the CPU") };
    let (from, path) = (&all[layout.start_offset()..][..b * h * t * d], KernelPath::choose(None)?);
    let mut to = vec![0u8; kind.row_bytes(from.len())];
    quantize(path, kind, size, from, &mut to);
    Tensor::from_vec(to, (b, h, t, kind.row_bytes(d)), &Device::Cpu)
}

fn quantize(path: KernelPath, kind: CacheType, size: usize, from: &[f32], to: &mut [u8]) {
    if from.len() < FEW {
        return dispatch(path, Quantize { kind, size, from, to });
    }
    let parts = to.par_chunks_mut(AT_ONCE * kind.row_bytes(BLOCK)).zip(from.par_chunks(AT_ONCE * BLOCK));
    parts.for_each(|(to, from)| dispatch(path, Quantize { kind, size, from, to }));
}

/// The numbers in `data`, `(b, h, t, bytes)` in u8, turned back `size` at once, as f32.
///
/// # Errors
/// Bytes that can't be read.
pub(super) fn numbers(data: &Tensor, kind: CacheType, size: usize) -> Result<Tensor> {
    let (b, h, t, row) = data.dims4()?;
    let bytes = kind.row_bytes(BLOCK);
    let raw = data.flatten_all()?.to_vec1::<u8>()?;
    let mut all = vec![0f32; raw.len() / bytes * BLOCK];
    let blocks = raw.par_chunks(AT_ONCE * bytes).zip(all.par_chunks_mut(AT_ONCE * BLOCK));
    blocks.for_each(|(raw, to)| {
        for (raw, to) in raw.chunks_exact(bytes).zip(to.as_chunks_mut().0) {
            take_apart(kind, raw, to);
        }
        to.chunks_exact_mut(size).for_each(turn);
    });
    Tensor::from_vec(all, (b, h, t, row / bytes * BLOCK), &Device::Cpu)
}

/// The numbers of one block, turned as they are.
fn take_apart(kind: CacheType, raw: &[u8], to: &mut Numbers) {
    let (scale, codes) = (f16::from_le_bytes([raw[0], raw[1]]).to_f32(), &raw[2..]);
    if kind == CacheType::Q4_0 {
        let (low, high) = to.split_at_mut(BLOCK / 2);
        for ((low, high), code) in low.iter_mut().zip(high).zip(codes) {
            *low = f32::from((code & 15) as i8 - 8) * scale;
            *high = f32::from((code >> 4) as i8 - 8) * scale;
        }
    } else {
        for (to, code) in to.iter_mut().zip(codes) {
            *to = f32::from(*code as i8) * scale;
        }
    }
}

/// Blocks to be made of numbers, `size` of them turned at once.
struct Quantize<'a> {
    kind: CacheType,
    size: usize,
    from: &'a [f32],
    to: &'a mut [u8],
}

impl Job for Quantize<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut buffer = [0f32; LARGEST];
        let xs = &mut buffer[..self.size];
        let parts = self.to.chunks_exact_mut(self.kind.row_bytes(self.size));
        for (from, to) in self.from.chunks_exact(self.size).zip(parts) {
            xs.copy_from_slice(from);
            turn(xs);
            let blocks = xs.as_chunks().0;
            if self.kind == CacheType::Q4_0 {
                blocks.iter().zip(to.as_chunks_mut().0).for_each(|(xs, to)| q4_0(xs, to));
            } else {
                blocks.iter().zip(to.as_chunks_mut().0).for_each(|(xs, to)| q8_0(xs, to));
            }
        }
    }
}

/// The largest of the magnitudes; NaN if there is one, so that it comes out again. As whole numbers, whose maximum is the
/// same in any order.
#[inline(always)]
fn largest(xs: &Numbers) -> f32 {
    let mut bits = 0;
    for x in xs {
        bits = bits.max(x.to_bits() & 0x7fff_ffff);
    }
    f32::from_bits(bits)
}

#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// An f16, then 32 signed bytes: each number over the scale, rounded half away from zero.
#[inline(always)]
fn q8_0(xs: &Numbers, to: &mut [u8; 2 + BLOCK]) {
    // The largest f32 below a half: with a half itself, what is just below one would be rounded up.
    const HALF: f32 = 0.499_999_97;
    let scale = largest(xs) / 127.0;
    let inverse = inverse(scale);
    let (head, codes) = to.split_at_mut(2);
    head.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (code, x) in codes.iter_mut().zip(xs) {
        let x = x * inverse;
        *code = (x + HALF.copysign(x)) as i32 as u8;
    }
}

/// An f16, then 16 bytes: the first half of the numbers in their lower bits, the second in the upper ones. The number of
/// the largest magnitude is -8 times the scale, whatever its sign.
#[inline(always)]
fn q4_0(xs: &Numbers, to: &mut [u8; 2 + BLOCK / 2]) {
    let magnitude = largest(xs);
    let extreme = xs.iter().find(|x| x.abs() == magnitude).copied().unwrap_or(magnitude);
    let scale = extreme / -8.0;
    let inverse = inverse(scale);
    let (head, codes) = to.split_at_mut(2);
    head.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    let (low, high) = xs.split_at(BLOCK / 2);
    let code = |x: f32| ((x * inverse + 8.5) as i32).min(15) as u8;
    for ((to, low), high) in codes.iter_mut().zip(low).zip(high) {
        *to = code(*low) | code(*high) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{stored::turned, testing::randn};
    use candle_core::quantized::{GgmlDType, QTensor};

    const BOTH: [(CacheType, GgmlDType); 2] = [(CacheType::Q8_0, GgmlDType::Q8_0), (CacheType::Q4_0, GgmlDType::Q4_0)];

    fn made(path: KernelPath, kind: CacheType, from: &[f32]) -> Vec<u8> {
        let mut to = vec![0; kind.row_bytes(from.len())];
        quantize(path, kind, 64, from, &mut to);
        to
    }

    /// Blocks of ordinary numbers, and of those where rounding is decided by the last bit.
    fn inputs() -> Vec<f32> {
        let mut all = randn(0.0, 3.0, 64 * BLOCK).unwrap().to_vec1::<f32>().unwrap();
        all.extend([0.0; BLOCK]);
        for (i, largest) in [127.0f32, -127.0, 1.0, 8.0, -8.0, 1e-20, 1e30].into_iter().enumerate() {
            // Multiples of half a step and their neighbours.
            let step = largest.abs() / 254.0;
            let number =
                |j: usize| f32::from_bits((step * (7 * j + i) as f32).to_bits() + j as u32 % 3).min(largest.abs());
            all.extend(
                (0..BLOCK).map(|j| if j == i { largest } else { number(j) * if j % 2 == 0 { 1.0 } else { -1.0 } }),
            );
        }
        all
    }

    #[test]
    fn blocks_are_those_of_ggml_on_every_path_and_any_number_of_threads() {
        let all = inputs();
        for (kind, dtype) in BOTH {
            let turned = turned(&Tensor::from_slice(&all, (all.len() / 64, 64), &Device::Cpu).unwrap(), 64).unwrap();
            let theirs = QTensor::quantize(&turned, dtype).unwrap().data().unwrap().into_owned();
            for path in KernelPath::available() {
                assert_eq!(made(path, kind, &all), theirs, "{kind} on {path}");
            }
            let many: Vec<f32> = all.iter().copied().cycle().take(FEW / all.len() * all.len() + all.len()).collect();
            let once = made(KernelPath::choose(None).unwrap(), kind, &all);
            let often = made(KernelPath::choose(None).unwrap(), kind, &many);
            assert!(often.chunks(once.len()).all(|part| part == once));
        }
    }

    #[test]
    fn rounding_is_half_away_from_zero() {
        // Under a scale of 1, since the largest is 127.
        let mut xs = [127.0f32; BLOCK];
        let ties = [0.5, -0.5, 1.5, 2.5, -2.5, 126.5, 0.499_999_97, -0.499_999_97, 2.499_999_8, 0.0, -0.0];
        xs[..ties.len()].copy_from_slice(&ties);
        let mut made = [0; 2 + BLOCK];
        q8_0(&xs, &mut made);
        let codes: Vec<i8> = made[2..2 + ties.len()].iter().map(|code| *code as i8).collect();
        assert_eq!(codes, ties.map(|x: f32| x.round() as i8));
        assert_eq!(codes[..6], [1, -1, 2, 3, -3, 127]);
    }

    #[test]
    fn what_comes_back_is_what_candle_makes_of_the_blocks() -> Result<()> {
        let all = inputs();
        let tensor = Tensor::from_slice(&all, (1, 1, all.len() / 64, 64), &Device::Cpu)?;
        for (kind, dtype) in BOTH {
            let data = blocks(&tensor, kind, 64)?;
            let theirs = QTensor::quantize(&turned(&tensor.flatten_to(2)?, 64)?, dtype)?.dequantize(&Device::Cpu)?;
            let bits = |x: &Tensor| -> Result<Vec<u32>> {
                Ok(x.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
            };
            assert_eq!(bits(&numbers(&data, kind, 64)?)?, bits(&turned(&theirs, 64)?)?, "{kind}");
        }
        Ok(())
    }

    /// A number that is none is not hidden by a block: it comes out as one that is none.
    #[test]
    fn what_is_no_number_stays_none() -> Result<()> {
        for (wrong, kind) in [f32::NAN, f32::INFINITY, 1e9].into_iter().flat_map(|x| BOTH.map(|(kind, _)| (x, kind))) {
            let mut xs = vec![1f32; BLOCK];
            xs[7] = wrong;
            let data = blocks(&Tensor::from_vec(xs, (1, 1, 1, BLOCK), &Device::Cpu)?, kind, BLOCK)?;
            let back = numbers(&data, kind, BLOCK)?.flatten_all()?.to_vec1::<f32>()?;
            assert!(!back[7].is_finite(), "{kind}: {wrong} came back as {}", back[7]);
        }
        Ok(())
    }

    #[test]
    fn what_has_no_blocks_is_refused_by_name() -> Result<()> {
        let refused = |xs: &Tensor| super::super::Stored::new(xs, CacheType::Q8_0).expect_err("refused").to_string();
        let odd = refused(&Tensor::zeros((1, 1, 2, 80), DType::F32, &Device::Cpu)?);
        assert!(odd.contains("q8_0") && odd.contains("80"), "{odd}");
        let tracked = candle_core::Var::zeros((1, 1, 2, 64), DType::F32, &Device::Cpu)?;
        assert!(refused(&tracked).contains("gradient"));
        Ok(())
    }
}

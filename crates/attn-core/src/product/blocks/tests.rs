//! Every format against its own weights, widened by Candle, on every instruction set that the machine has.

use super::*;

use candle_core::quantized::QTensor;
use std::sync::Arc;

/// Those that Candle can quantise to.
const CANDLE: [GgmlDType; 10] = [
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

/// Every format with a kernel.
fn formats() -> impl Iterator<Item = BlockFormat> {
    CANDLE.into_iter().map(BlockFormat::from).chain([BlockFormat::Iq4Nl, BlockFormat::Iq4Xs, BlockFormat::Mxfp4])
}

/// A matrix `(out, depth)`: of waves, as Candle quantises them, or of random bytes in a format that it does not know.
fn weights(format: BlockFormat, out: usize, depth: usize) -> Result<Blocks> {
    match format {
        BlockFormat::Candle(dtype) => {
            let wide = (numbers(out * depth, 0.37)? + 0.1)?.reshape((out, depth))?;
            Ok(Arc::new(QTensor::quantize(&wide, dtype)?).into())
        }
        _ => random(format, out, depth),
    }
}

/// A matrix `(out, depth)` of random bytes, whose scales are small numbers.
fn random(format: BlockFormat, out: usize, depth: usize) -> Result<Blocks> {
    let mut state = 12345u32;
    let mut data: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(out * depth / format.block_size() * format.type_size())
    .collect();
    tame_scales(format, &mut data);
    Blocks::new(format, &data, (out, depth), &Device::Cpu)
}

fn numbers(n: usize, step: f32) -> Result<Tensor> {
    Tensor::from_iter((0..n).map(|i| (i as f32 * step).sin()), &Device::Cpu)
}

/// `(rows, out)` in f64, and the sums of magnitudes.
fn exact(xs: &Tensor, w: &Blocks) -> Result<(Tensor, Tensor)> {
    let (wide, xs) = (w.dequantize()?.to_dtype(DType::F64)?.t()?, xs.to_dtype(DType::F64)?);
    Ok((xs.matmul(&wide)?, xs.abs()?.matmul(&wide.abs()?)?))
}

fn largest(t: &Tensor) -> Result<f64> {
    t.abs()?.max_all()?.to_scalar()
}

/// Shapes with a whole number of blocks of any format, and some with odd numbers of small ones.
fn shapes(format: Format) -> Vec<(usize, usize, usize)> {
    let mut shapes = vec![(1, 256, 1), (1, 512, 7), (2, 256, 6), (3, 256, 5), (5, 256, 9), (7, 512, 3), (8, 768, 4)];
    if format.block() == 32 {
        shapes.extend([(1, 32, 3), (4, 96, 10), (1, 224, 5), (1, 576, 9), (6, 288, 2)]);
    }
    shapes
}

#[test]
fn few_rows_agree_with_widened_weights_on_every_path() -> Result<()> {
    for stored in formats() {
        let format = Format::of(stored).expect("a format with a kernel");
        for (rows, depth, out) in shapes(format) {
            let w = weights(stored, out, depth)?;
            let xs = (numbers(rows * depth, 1.7)? * 3.0)?.reshape((rows, depth))?;
            let (want, magnitudes) = exact(&xs, &w)?;
            let flat = xs.flatten_all()?.to_vec1::<f32>()?;
            for path in KernelPath::available() {
                for kind in [ActivationKind::Exact, ActivationKind::Rounded] {
                    let ys = few(path, kind, &flat, format, &w.data()?, (rows, depth, out));
                    let ys = Tensor::from_vec(ys, (rows, out), &Device::Cpu)?.to_dtype(DType::F64)?;
                    let off = largest(&(ys - &want)?)?;
                    let most = match kind {
                        ActivationKind::Exact => 2e-6 * largest(&magnitudes)?,
                        // An activation is off by at most half of its scale, here at most 3 / 127.
                        ActivationKind::Rounded => {
                            let ones = Tensor::ones((rows, depth), DType::F32, &Device::Cpu)?;
                            largest(&exact(&ones, &w)?.1)? * (0.5 * 3.0 / 127.0 + 1e-5)
                        }
                    };
                    assert!(off <= most, "{format:?} {rows} x {depth} x {out}, {path}, {kind:?}: {off} of {most}");
                }
            }
        }
    }
    Ok(())
}

/// Any bytes are blocks: codes, scales and signs that no quantiser writes come out as they are defined, by Candle or here.
#[test]
fn random_blocks_are_what_they_are_widened_to() -> Result<()> {
    let (out, depth) = (40, 512);
    for stored in formats() {
        let format = Format::of(stored).expect("a format with a kernel");
        let w = random(stored, out, depth)?;
        let xs = numbers(depth, 0.9)?.reshape((1, depth))?;
        let (want, magnitudes) = exact(&xs, &w)?;
        for path in KernelPath::available() {
            let ys =
                few(path, ActivationKind::Exact, &xs.flatten_all()?.to_vec1()?, format, &w.data()?, (1, depth, out));
            let ys = Tensor::from_vec(ys, (1, out), &Device::Cpu)?.to_dtype(DType::F64)?;
            let off = ((ys - &want)?.abs()? / &magnitudes)?;
            assert!(largest(&off)? < 1e-5, "{format:?}, {path}: {off}");
        }
    }
    Ok(())
}

/// Makes the f16 scales and offsets of random blocks small numbers, of which some are negative, and powers of two, too.
fn tame_scales(format: BlockFormat, data: &mut [u8]) {
    let halves: &[usize] = match format {
        BlockFormat::Candle(GgmlDType::Q4_1 | GgmlDType::Q5_1 | GgmlDType::Q4K | GgmlDType::Q5K) => &[0, 2],
        BlockFormat::Candle(GgmlDType::Q2K) => &[80, 82],
        BlockFormat::Candle(GgmlDType::Q3K) => &[108],
        BlockFormat::Candle(GgmlDType::Q6K) => &[208],
        BlockFormat::Mxfp4 => &[],
        _ => &[0],
    };
    for (i, block) in data.chunks_exact_mut(format.type_size()).enumerate() {
        for at in halves {
            let scale = half::f16::from_f32(0.01 * ((i * 7 + at) % 13) as f32 - 0.05);
            block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
        if format == BlockFormat::Mxfp4 {
            block[0] = 120 + (i * 5 % 11) as u8;
        }
    }
}

/// What is not a number must not become one.
#[test]
fn activations_that_are_not_finite_spread() -> Result<()> {
    let w = weights(GgmlDType::Q4K.into(), 4, 256)?;
    for bad in [f32::NAN, f32::INFINITY] {
        let mut xs = numbers(256, 1.7)?.to_vec1::<f32>()?;
        xs[77] = bad;
        for path in KernelPath::available() {
            for kind in [ActivationKind::Exact, ActivationKind::Rounded] {
                let ys = few(path, kind, &xs, Format::Q4K, &w.data()?, (1, 256, 4));
                assert!(ys.iter().all(|y| !y.is_finite()), "{path}, {kind:?}: {ys:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn many_rows_agree_with_widened_weights() -> Result<()> {
    for format in formats() {
        let w = weights(format, 70, 256)?;
        let xs = numbers(40 * 256, 1.7)?.reshape((40, 256))?;
        let ys = matmul_t(&xs, &w)?.expect("a product of our own").to_dtype(DType::F64)?;
        let (want, magnitudes) = exact(&xs, &w)?;
        // Half a bf16 unit of either operand.
        assert!(largest(&(ys - want)?)? <= 2f64.powi(-8) * largest(&magnitudes)?, "{format:?}");
    }
    Ok(())
}

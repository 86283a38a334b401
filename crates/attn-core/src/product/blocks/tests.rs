//! Every format against its own weights, widened by Candle, on every instruction set that the machine has.

use super::*;

const ALL: [GgmlDType; 10] = [
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

fn numbers(n: usize, step: f32) -> Result<Tensor> {
    Tensor::from_iter((0..n).map(|i| (i as f32 * step).sin()), &Device::Cpu)
}

/// `(rows, out)` in f64, and the sums of magnitudes.
fn exact(xs: &Tensor, w: &QTensor) -> Result<(Tensor, Tensor)> {
    let (wide, xs) = (w.dequantize(&Device::Cpu)?.to_dtype(DType::F64)?.t()?, xs.to_dtype(DType::F64)?);
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
    for dtype in ALL {
        let format = Format::of(dtype).expect("a format with a kernel");
        for (rows, depth, out) in shapes(format) {
            let w = QTensor::quantize(&(numbers(out * depth, 0.37)? + 0.1)?.reshape((out, depth))?, dtype)?;
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
                    assert!(off <= most, "{dtype:?} {rows} x {depth} x {out}, {path}, {kind:?}: {off} of {most}");
                }
            }
        }
    }
    Ok(())
}

/// Any bytes are blocks: codes, scales and signs that no quantiser writes come out as Candle widens them.
#[test]
fn random_blocks_are_what_candle_takes_them_for() -> Result<()> {
    for dtype in ALL {
        let format = Format::of(dtype).expect("a format with a kernel");
        let (out, depth) = (40, 512);
        let mut state = 12345u32;
        let mut data: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(format.bytes(out * depth))
        .collect();
        tame_scales(dtype, &mut data);
        let storage = candle_core::quantized::QStorage::from_data(data.as_slice().into(), &Device::Cpu, dtype)?;
        let w = QTensor::new(storage, (out, depth))?;
        let xs = numbers(depth, 0.9)?.reshape((1, depth))?;
        let (want, magnitudes) = exact(&xs, &w)?;
        for path in KernelPath::available() {
            let ys = few(path, ActivationKind::Exact, &xs.flatten_all()?.to_vec1()?, format, &data, (1, depth, out));
            let ys = Tensor::from_vec(ys, (1, out), &Device::Cpu)?.to_dtype(DType::F64)?;
            let off = ((ys - &want)?.abs()? / &magnitudes)?;
            assert!(largest(&off)? < 1e-5, "{dtype:?}, {path}: {off}");
        }
    }
    Ok(())
}

/// Makes the f16 scales and offsets of random blocks small numbers, of which some are negative.
fn tame_scales(dtype: GgmlDType, data: &mut [u8]) {
    let halves: &[usize] = match dtype {
        GgmlDType::Q4_1 | GgmlDType::Q5_1 | GgmlDType::Q4K | GgmlDType::Q5K => &[0, 2],
        GgmlDType::Q2K => &[80, 82],
        GgmlDType::Q3K => &[108],
        GgmlDType::Q6K => &[208],
        _ => &[0],
    };
    for (i, block) in data.chunks_exact_mut(dtype.type_size()).enumerate() {
        for at in halves {
            let scale = half::f16::from_f32(0.01 * ((i * 7 + at) % 13) as f32 - 0.05);
            block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
}

/// What is not a number must not become one.
#[test]
fn activations_that_are_not_finite_spread() -> Result<()> {
    let w = QTensor::quantize(&numbers(4 * 256, 0.37)?.reshape((4, 256))?, GgmlDType::Q4K)?;
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
    for dtype in ALL {
        let w = QTensor::quantize(&numbers(70 * 256, 0.37)?.reshape((70, 256))?, dtype)?;
        let xs = numbers(40 * 256, 1.7)?.reshape((40, 256))?;
        let ys = matmul_t(&xs, &w)?.expect("a product of our own").to_dtype(DType::F64)?;
        let (want, magnitudes) = exact(&xs, &w)?;
        // Half a bf16 unit of either operand.
        assert!(largest(&(ys - want)?)? <= 2f64.powi(-8) * largest(&magnitudes)?, "{dtype:?}");
    }
    Ok(())
}

//! Products of one row, which generation is made of, by format of the weights: `cargo bench -p attn-core --bench products`.
//!
//! `CANDLE_NUM_THREADS=1` times one core, `ATTN_ACTIVATIONS=int8` the product with activations in 8 bits. The weights are several
//! matrices in turn, as in a model, so that they don't stay in the caches next to the core. Every case is compared with
//! the product of the widened weights before it is timed.

use attn_core::Linear;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Module, Result, Tensor};
use divan::{Bencher, counter::BytesCount};
use std::sync::Arc;

fn main() {
    divan::main();
}

/// The formats, plain numbers first.
const FORMATS: [GgmlDType; 13] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q8_0,
    GgmlDType::Q6K,
    GgmlDType::Q5K,
    GgmlDType::Q4K,
    GgmlDType::Q3K,
    GgmlDType::Q2K,
    GgmlDType::Q5_1,
    GgmlDType::Q5_0,
    GgmlDType::Q4_1,
    GgmlDType::Q4_0,
];
const OUT: usize = 576;
const DEPTH: usize = 1536;
/// How many matrices are used in turn: 57 MB of weights of one byte.
const MATRICES: usize = 64;

/// A copy of the weights as a layer of its own.
fn layer(weights: &Tensor, format: GgmlDType) -> Result<Linear> {
    Linear::new(weights.to_dtype(dtype(format).unwrap_or(DType::F32))?.copy()?, None)
}

/// The dtype of a format of plain numbers.
fn dtype(format: GgmlDType) -> Option<DType> {
    match format {
        GgmlDType::F32 => Some(DType::F32),
        GgmlDType::F16 => Some(DType::F16),
        GgmlDType::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// A copy of blocks as a layer of its own.
fn quantized(blocks: &QTensor) -> Result<Linear> {
    let storage = QStorage::from_data(blocks.data()?, &Device::Cpu, blocks.dtype())?;
    Linear::quantized(Arc::new(QTensor::new(storage, blocks.shape())?), None)
}

/// An input, and layers whose outputs have been checked.
fn checked(format: GgmlDType) -> Result<(Tensor, Vec<Linear>)> {
    let xs = Tensor::randn(0f32, 1., (1, DEPTH), &Device::Cpu)?;
    let wide = Tensor::randn(0f32, 1., (OUT, DEPTH), &Device::Cpu)?;
    let (xs, wide, layers) = match dtype(format) {
        Some(dtype) => {
            let layers = (0..MATRICES).map(|_| layer(&wide, format)).collect::<Result<Vec<_>>>()?;
            (xs.to_dtype(dtype)?, wide.to_dtype(dtype)?.to_dtype(DType::F32)?, layers)
        }
        None => {
            let blocks = QTensor::quantize(&wide, format)?;
            let layers = (0..MATRICES).map(|_| quantized(&blocks)).collect::<Result<Vec<_>>>()?;
            (xs, blocks.dequantize(&Device::Cpu)?, layers)
        }
    };
    let want = xs.to_dtype(DType::F32)?.matmul(&wide.t()?)?;
    let off = (layers[0].forward(&xs)?.to_dtype(DType::F32)? - &want)?;
    let largest = |t: &Tensor| t.abs()?.max_all()?.to_scalar::<f32>();
    assert!(largest(&off)? < 0.02 * largest(&want)?, "{format:?}: {off}");
    Ok((xs, layers))
}

#[divan::bench(args = FORMATS)]
fn one_row(bencher: Bencher, format: GgmlDType) {
    let (xs, layers) = checked(format).expect("a product");
    let bytes = OUT * DEPTH / format.block_size() * format.type_size();
    bencher.counter(BytesCount::new(MATRICES * bytes)).bench(|| {
        for layer in &layers {
            divan::black_box(layer.forward(&xs).expect("a product"));
        }
    });
}

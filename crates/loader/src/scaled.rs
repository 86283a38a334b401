//! Safetensors whose weights are small numbers under scales of their own, widened as they are read.
//!
//! Two formats, as transformers defines them: FP8 (DeepSeek V3: `float8_e4m3fn` with a `weight_scale_inv` per block of
//! `weight_block_size`, or one for all) and MXFP4 (gpt-oss: `*_blocks` of 32 four-bit floats with an exponent each in
//! `*_scales`). A model sees the tensors that the scales belong to, under their own names, and does not see the scales.

use crate::{
    error::{LoadError, Result},
    safetensors::SafetensorsSource,
};
use attn_models::TensorSource;
use candle_core::{DType, Device, Shape, Tensor};
use rayon::prelude::*;
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// A source with scales folded in.
pub(crate) struct ScaledSource {
    inner: SafetensorsSource,
    scaled: BTreeMap<String, Scaled>,
    hidden: BTreeSet<String>,
}

/// A tensor made of two.
enum Scaled {
    /// `(rows, columns)`, or several of these, with a scale per block of rows and columns.
    Fp8 { scale: String, block: Option<[usize; 2]> },
    /// `(e, rows, groups, 16)` and `(e, rows, groups)`, as `(e, 32 groups, rows)`.
    Mxfp4 { blocks: String, scales: String, shape: [usize; 3] },
}

/// The method that a `quantization_config` describes, and its name.
enum Method {
    Fp8(Option<[usize; 2]>),
    Mxfp4,
}

/// Takes the `quantization_config` of these two formats out of a config, and folds the scales into the weights.
///
/// # Errors
/// A scale that is missing or of the wrong shape.
pub(crate) fn fold(
    config: &mut Value,
    file: &Path,
    inner: SafetensorsSource,
) -> Result<(Box<dyn TensorSource>, Option<String>)> {
    let Some(method) = take(config, file)? else { return Ok((Box::new(inner), None)) };
    let mut source = ScaledSource { inner, scaled: BTreeMap::new(), hidden: BTreeSet::new() };
    for name in source.inner.names() {
        match &method {
            Method::Fp8(block) => source.add_fp8(&name, *block)?,
            Method::Mxfp4 => source.add_mxfp4(&name)?,
        }
    }
    let what = match method {
        Method::Fp8(Some([rows, columns])) => format!("FP8 (E4M3, a scale per {rows} x {columns})"),
        Method::Fp8(None) => "FP8 (E4M3, a scale per tensor)".to_string(),
        Method::Mxfp4 => "MXFP4 (experts)".to_string(),
    };
    Ok((Box::new(source), Some(what)))
}

fn take(config: &mut Value, file: &Path) -> Result<Option<Method>> {
    const KEY: &str = "quantization_config";
    let Some(top) = config.as_object_mut() else { return Ok(None) };
    let found = top.get(KEY).or_else(|| top.get("text_config")?.get(KEY)).and_then(Value::as_object);
    let Some(method) = found.map(|q| method(q, file)).transpose()?.flatten() else { return Ok(None) };
    top.remove(KEY);
    if let Some(text) = top.get_mut("text_config").and_then(Value::as_object_mut) {
        text.remove(KEY);
    }
    Ok(Some(method))
}

fn method(config: &Map<String, Value>, file: &Path) -> Result<Option<Method>> {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let wrong = |key: &str| LoadError::Json {
        file: file.to_path_buf(),
        reason: format!("quantization_config.{key} = {} is not supported", config.get(key).unwrap_or(&Value::Null)),
    };
    match text("quant_method") {
        Some("mxfp4") => Ok(Some(Method::Mxfp4)),
        Some("fp8") => {
            if text("fmt").is_some_and(|fmt| fmt != "e4m3") {
                return Err(wrong("fmt"));
            }
            let sizes = match config.get("weight_block_size") {
                None => Some([128, 128]),
                Some(Value::Null) => None,
                Some(Value::Array(sizes)) => {
                    match sizes.iter().map(Value::as_u64).collect::<Option<Vec<_>>>().as_deref() {
                        Some(&[rows, columns]) if rows > 0 && columns > 0 => Some([rows as usize, columns as usize]),
                        _ => return Err(wrong("weight_block_size")),
                    }
                }
                Some(_) => return Err(wrong("weight_block_size")),
            };
            Ok(Some(Method::Fp8(sizes)))
        }
        _ => Ok(None),
    }
}

impl ScaledSource {
    fn dims(&self, name: &str) -> Option<Vec<usize>> {
        self.inner.shape(name).map(|shape| shape.dims().to_vec())
    }

    fn wrong(&self, name: &str, reason: String) -> LoadError {
        LoadError::tensor(self.inner.file_of(name), name, reason)
    }

    fn add_fp8(&mut self, name: &str, block: Option<[usize; 2]>) -> Result<()> {
        // Scales of activations are for computing in 8 bits.
        if name.ends_with("_scale_inv") || name.ends_with(".activation_scale") || name.ends_with(".input_scale") {
            self.hidden.insert(name.to_string());
            return Ok(());
        }
        if !self.inner.is_fp8(name) {
            return Ok(());
        }
        let scale = format!("{name}_scale_inv");
        let Some(found) = self.dims(&scale) else {
            return Err(self.wrong(name, format!("is stored in 8 bits, and {scale} is missing")));
        };
        let dims = self.dims(name).unwrap_or_default();
        let want: Vec<usize> = match (block, dims.as_slice()) {
            (Some([r, c]), [outer @ .., rows, columns]) => [outer, &[rows.div_ceil(r), columns.div_ceil(c)]].concat(),
            _ => found.clone(),
        };
        let one = block.is_none() && found.iter().product::<usize>() == 1;
        if found != want || (block.is_none() && !one) {
            return Err(self.wrong(&scale, format!("has shape {found:?}, {name} of {dims:?} asks for {want:?}")));
        }
        self.scaled.insert(name.to_string(), Scaled::Fp8 { scale, block });
        Ok(())
    }

    fn add_mxfp4(&mut self, name: &str) -> Result<()> {
        if let Some(stem) = name.strip_suffix("_scales")
            && self.dims(&format!("{stem}_blocks")).is_some()
        {
            self.hidden.insert(name.to_string());
        }
        let Some(stem) = name.strip_suffix("_blocks") else { return Ok(()) };
        let scales = format!("{stem}_scales");
        let shape = match (self.dims(name).as_deref(), self.dims(&scales).as_deref()) {
            (Some(&[e, rows, groups, 16]), Some(&[e2, r2, g2])) if (e, rows, groups) == (e2, r2, g2) => {
                [e, 32 * groups, rows]
            }
            (found, beside) => {
                return Err(
                    self.wrong(name, format!("blocks of {found:?} and scales of {beside:?} do not fit together"))
                );
            }
        };
        self.hidden.insert(name.to_string());
        self.scaled.insert(stem.to_string(), Scaled::Mxfp4 { blocks: name.to_string(), scales, shape });
        Ok(())
    }

    fn widen(&self, name: &str, scaled: &Scaled) -> candle_core::Result<Tensor> {
        match scaled {
            Scaled::Fp8 { scale, block } => {
                let shape = self.dims(name).unwrap_or_default();
                let codes = self.inner.bytes(name)?;
                let scales = self.inner.load(scale, DType::F32, &Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
                let columns = shape.last().copied().unwrap_or(1).max(1);
                let rows = shape.len().checked_sub(2).map_or(1, |axis| shape[axis]).max(1);
                let [high, wide] = block.unwrap_or([usize::MAX, usize::MAX]);
                let (down, across) = (rows.div_ceil(high), columns.div_ceil(wide));
                let mut out = vec![0f32; codes.len()];
                out.par_chunks_mut(columns).zip(codes.par_chunks(columns)).enumerate().for_each(|(i, (out, codes))| {
                    let first = if block.is_some() { (i / rows * down + i % rows / high) * across } else { 0 };
                    for (j, (out, &code)) in out.iter_mut().zip(codes).enumerate() {
                        *out = e4m3(code) * scales[first + j / wide];
                    }
                });
                Tensor::from_vec(out, shape, &Device::Cpu)
            }
            Scaled::Mxfp4 { blocks, scales, shape: [e, wide, rows] } => {
                let (codes, scales) = (self.inner.bytes(blocks)?, self.inner.bytes(scales)?);
                let mut out = vec![0f32; 2 * codes.len()];
                out.par_chunks_mut(32).zip(codes.par_chunks(16)).zip(scales).for_each(|((out, codes), exponent)| {
                    let scale = 2f64.powi(i32::from(exponent) - 127) as f32;
                    for (pair, code) in out.chunks_mut(2).zip(codes) {
                        pair[0] = FP4[usize::from(code & 15)] * scale;
                        pair[1] = FP4[usize::from(code >> 4)] * scale;
                    }
                });
                Tensor::from_vec(out, (*e, *rows, *wide), &Device::Cpu)?.transpose(1, 2)?.contiguous()
            }
        }
    }
}

const FP4: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// An eight-bit float of four exponent bits and three of mantissa, without infinities (`float8_e4m3fn`).
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from((code >> 3) & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 128 == 0 { size } else { -size }
}

impl TensorSource for ScaledSource {
    fn shape(&self, name: &str) -> Option<Shape> {
        match self.scaled.get(name) {
            Some(Scaled::Mxfp4 { shape, .. }) => Some(Shape::from(shape.as_slice())),
            Some(Scaled::Fp8 { .. }) => self.inner.shape(name),
            None if self.hidden.contains(name) => None,
            None => self.inner.shape(name),
        }
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        if self.scaled.contains_key(name) { None } else { self.inner.dtype(name) }
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        match self.scaled.get(name) {
            Some(scaled) => self.widen(name, scaled)?.to_dtype(dtype)?.to_device(device),
            None => self.inner.load(name, dtype, device),
        }
    }

    fn load_rows(&self, names: &[&str], dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        match names.iter().any(|name| self.scaled.contains_key(*name)) {
            true => attn_models::load_then_stack(self, names, dtype, device),
            false => self.inner.load_rows(names, dtype, device),
        }
    }

    fn names(&self) -> Vec<String> {
        let mut names = self.inner.names();
        names.retain(|name| !self.hidden.contains(name));
        names.extend(self.scaled.keys().filter(|name| self.inner.shape(name).is_none()).cloned());
        names.sort();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_has_448_for_its_largest_and_no_infinity() {
        let values =
            [(0x00, 0.0), (0x01, 2f32.powi(-9)), (0x08, 2f32.powi(-6)), (0x38, 1.0), (0x7e, 448.0), (0xc4, -3.0)];
        for (code, want) in values {
            assert_eq!(e4m3(code), want, "{code:#x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }
}

//! Matrix products for models on the CPU, where Candle's leave most of the machine idle: products of a few rows run on one
//! thread there, and bf16 operands are widened whole before every product.
//!
//! | rows of `xs` | weights | kernel |
//! |---|---|---|
//! | up to [`FEW_ROWS`] | f32, bf16, f16 | `few_rows`: every core reads its share of the weights once, widening in registers |
//! | more | bf16 | `bf16`: tiles of bf16 dot products, with AMX or AVX-512, f32 accumulation |
//! | up to [`FEW_ROWS`] | GGUF's blocks | `blocks`: taken apart in the caches and multiplied with f32, or with bytes |
//! | more | GGUF's blocks | `blocks`: widened a few outputs at a time for the bf16 kernel |
//! | more | f32, with AVX-512 | `many_rows`: the micro-kernel of attention's scores |
//! | more | others | Candle's product, which is near the machine's limit there |
//!
//! Gradients are products of the same kind, computed without transposing what came in.

#[cfg(target_arch = "x86_64")]
mod bf16;
pub(crate) mod blocks;
mod dense;
mod few_rows;
mod many_rows;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, D, DType, Device, Layout, Result, Shape, Storage, Tensor};

/// Rows up to which a product is bound by reading the weights.
pub const FEW_ROWS: usize = 8;

/// Whether Candle's product of f16 numbers may add them up in f16; it does on Arm processors that can.
const SUMS_IN_F16: bool = cfg!(target_arch = "aarch64");

/// `xs W^T` for `xs` of shape `(.., in)` and `w` of shape `(out, in)` in the same dtype, on any device. Gradients flow
/// into both.
///
/// Sums are accumulated in f32 whatever the dtype (in f64 for f64).
///
/// # Errors
/// Shapes, dtypes or devices that don't fit each other.
pub fn matmul_t(xs: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (width, (out, depth)) = (xs.dim(D::Minus1)?, w.dims2()?);
    let plain = xs.device().is_cpu() && w.device().is_cpu() && xs.dtype() == w.dtype() && width == depth;
    if !plain || !w.is_contiguous() || xs.elem_count() == 0 || out == 0 {
        // One product for all leading dimensions: Candle's batched product would copy the weights per row.
        let rows = xs.elem_count() / width.max(1);
        return matmul(&xs.reshape((rows, width))?, &w.t()?)?.reshape(with_last(xs.dims(), out));
    }
    if xs.track_op() || w.track_op() {
        return xs.contiguous()?.apply_op2(w, Product);
    }
    untracked(xs, w)
}

/// The shape with another last dimension.
pub(crate) fn with_last(dims: &[usize], last: usize) -> Shape {
    let mut dims = dims.to_vec();
    if let Some(x) = dims.last_mut() {
        *x = last;
    }
    dims.into()
}

/// Candle's product, which keeps the sums of f16 numbers in f32 here on every processor.
///
/// # Errors
/// The errors of Candle's `matmul`.
pub(crate) fn matmul(xs: &Tensor, w: &Tensor) -> Result<Tensor> {
    if SUMS_IN_F16 && xs.device().is_cpu() && (xs.dtype(), w.dtype()) == (DType::F16, DType::F16) {
        return xs.to_dtype(DType::F32)?.matmul(&w.to_dtype(DType::F32)?)?.to_dtype(DType::F16);
    }
    xs.matmul(w)
}

fn untracked(xs: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (out, depth) = w.dims2()?;
    let rows = xs.elem_count() / depth;
    if rows > FEW_ROWS {
        return xs.contiguous()?.apply_op2_no_bwd(w, &Product);
    }
    let xs32 = xs.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let size = (rows, depth, out);
    let ys = match w.dtype() {
        DType::F32 => with_slices(w, w, |w: &[f32], _| few_rows::product(&xs32, w, size))?,
        DType::BF16 => with_slices(w, w, |w: &[half::bf16], _| few_rows::product(&xs32, w, size))?,
        DType::F16 => with_slices(w, w, |w: &[half::f16], _| few_rows::product(&xs32, w, size))?,
        _ => return xs.contiguous()?.apply_op2_no_bwd(w, &Product),
    };
    Tensor::from_vec(ys, with_last(xs.dims(), out), &Device::Cpu)?.to_dtype(xs.dtype())
}

/// The product with gradients: `grad W` for the input, `grad^T xs` for the weights. The input is contiguous.
struct Product;

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "matmul_t"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (out, depth) = wl.shape().dims2()?;
        let rows = xl.shape().elem_count() / depth;
        let shape = with_last(xl.dims(), out);
        #[cfg(target_arch = "x86_64")]
        if let (CpuStorage::BF16(xs), CpuStorage::BF16(w)) = (xs, w)
            && let Some(kernel) = bf16::Kernel::fastest()
            && let (Some((x, _)), Some((y, _))) = (xl.contiguous_offsets(), wl.contiguous_offsets())
        {
            let (xs, w) = (&xs[x..][..rows * depth], &w[y..][..out * depth]);
            return Ok((
                CpuStorage::BF16(bf16::product(kernel, xs, &bf16::Dense { w, depth }, (rows, depth, out))?),
                shape,
            ));
        }
        if let (CpuStorage::F32(xs), CpuStorage::F32(w)) = (xs, w)
            && let Some(path) = many_rows::path()
            && let (Some((x, _)), Some((y, _))) = (xl.contiguous_offsets(), wl.contiguous_offsets())
        {
            let (xs, w) = (&xs[x..][..rows * depth], &w[y..][..out * depth]);
            return Ok((CpuStorage::F32(many_rows::product(path, xs, w, (rows, depth, out))), shape));
        }
        if SUMS_IN_F16 && let (CpuStorage::F16(_), CpuStorage::F16(_)) = (xs, w) {
            let (xs, w) = (xs.to_dtype(xl, DType::F32)?, w.to_dtype(wl, DType::F32)?);
            let [xl, wl, yl] = [(rows, depth), (out, depth), (rows, out)].map(Layout::contiguous);
            let ys = xs.matmul(&w, (1, rows, out, depth), &xl, &wl.transpose(0, 1)?)?;
            return Ok((ys.to_dtype(&yl, DType::F16)?, shape));
        }
        let flat = Layout::contiguous_with_offset((rows, depth), xl.start_offset());
        Ok((xs.matmul(w, (1, rows, out, depth), &flat, &wl.transpose(0, 1)?)?, shape))
    }

    fn bwd(&self, xs: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((out, depth), w) = (w.dims2()?, w.detach());
        let rows = xs.elem_count() / depth;
        let (flat, grad) = (xs.detach().reshape((rows, depth))?, grad.contiguous()?.reshape((rows, out))?);
        let (to_xs, to_w) = match w.dtype() {
            DType::F32 => {
                use dense::{Matrix, product};
                let to_xs = |g: &[f32], w: &[f32]| product(Matrix::new(g, (rows, out)), Matrix::new(w, (out, depth)));
                let to_w =
                    |g: &[f32], x: &[f32]| product(Matrix::new(g, (rows, out)).t(), Matrix::new(x, (rows, depth)));
                let (to_xs, to_w) = (with_slices(&grad, &w, to_xs)?, with_slices(&grad, &flat, to_w)?);
                (
                    Tensor::from_vec(to_xs, (rows, depth), &Device::Cpu)?,
                    Tensor::from_vec(to_w, (out, depth), &Device::Cpu)?,
                )
            }
            DType::BF16 => {
                // The bf16 kernels read both operands along the sum.
                let (wt, xt, gt) = (w.t()?.contiguous()?, flat.t()?.contiguous()?, grad.t()?.contiguous()?);
                (matmul_t(&grad, &wt)?, matmul_t(&gt, &xt)?)
            }
            _ => (matmul(&grad, &w)?, matmul(&grad.t()?, &flat)?),
        };
        Ok((Some(to_xs.reshape(xs.shape())?), Some(to_w)))
    }
}

/// Runs `f` on the elements of two contiguous CPU tensors.
fn with_slices<T: candle_core::WithDType, R>(a: &Tensor, b: &Tensor, f: impl FnOnce(&[T], &[T]) -> R) -> Result<R> {
    let ((a_storage, a_layout), (b_storage, b_layout)) = (a.storage_and_layout(), b.storage_and_layout());
    match (&*a_storage, &*b_storage) {
        (Storage::Cpu(a), Storage::Cpu(b)) => {
            let (a, b) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
            let a = &a[a_layout.start_offset()..][..a_layout.shape().elem_count()];
            let b = &b[b_layout.start_offset()..][..b_layout.shape().elem_count()];
            Ok(f(a, b))
        }
        _ => candle_core::bail!("product: not on the CPU"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::randn;
    use candle_core::Var;

    /// Every kernel against a product in f64 of the same rounded numbers.
    #[test]
    fn products_agree_with_f64() -> Result<()> {
        for (rows, depth, out) in [
            (1, 1, 1),
            (1, 576, 100),
            (2, 33, 7),
            (3, 40, 65),
            (5, 64, 4),
            (8, 100, 33),
            (9, 1, 1),
            (13, 17, 33),
            (24, 64, 32),
            (400, 100, 50),
            (900, 20, 35),
        ] {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let xs = randn(0.0, 1.0, (rows, depth))?.to_dtype(dtype)?;
                let w = randn(0.0, 1.0, (out, depth))?.to_dtype(dtype)?;
                compare(&xs, &w, &matmul_t(&xs, &w)?)?;
            }
        }
        Ok(())
    }

    /// Leading dimensions are rows, of views too, and come back; gradients have the shapes of what they are of.
    #[test]
    fn leading_dimensions_are_rows() -> Result<()> {
        let all = randn(0.0, 1.0, (3, 5, 20))?;
        let w = Var::from_tensor(&randn(0.0, 1.0, (7, 10))?)?;
        for dtype in [DType::F32, DType::F64] {
            let (all, w) = (all.to_dtype(dtype)?, Var::from_tensor(&w.to_dtype(dtype)?)?);
            for view in
                [all.narrow(2, 3, 10)?, all.narrow(0, 1, 1)?.narrow(2, 0, 10)?, all.narrow(1, 0, 0)?.narrow(2, 0, 10)?]
            {
                let xs = Var::from_tensor(&view)?;
                let ys = matmul_t(&xs, &w)?;
                let (b, t, _) = view.dims3()?;
                assert_eq!(ys.dims(), [b, t, 7]);
                if view.elem_count() > 0 {
                    let flat = view.contiguous()?.reshape((b * t, 10))?;
                    compare(&flat, &w, &ys.reshape((b * t, 7))?)?;
                    compare(&flat, &w, &matmul_t(&view, &w.as_detached_tensor())?.reshape((b * t, 7))?)?;
                    let grads = ys.sum_all()?.backward()?;
                    assert_eq!(grads.get(&xs).expect("a gradient").dims(), xs.dims());
                    assert_eq!(grads.get(&w).expect("a gradient").dims(), w.dims());
                }
            }
        }
        Ok(())
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn bf16_products_agree_with_f64_on_every_kernel() -> Result<()> {
        use bf16::Kernel;
        for (rows, depth, out) in
            [(9, 3, 5), (33, 64, 32), (40, 100, 70), (100, 576, 48), (64, 31, 1), (2113, 288, 100)]
        {
            let xs = randn(0.0, 1.0, (rows, depth))?.to_dtype(DType::BF16)?;
            let w = randn(0.0, 1.0, (out, depth))?.to_dtype(DType::BF16)?;
            for kernel in [Kernel::Amx, Kernel::Avx512].into_iter().filter(|k| k.is_available()) {
                let ys = with_slices(&xs, &w, |xs, w| {
                    bf16::product::<half::bf16>(kernel, xs, &bf16::Dense { w, depth }, (rows, depth, out))
                })??;
                compare(&xs, &w, &Tensor::from_vec(ys, (rows, out), &Device::Cpu)?)?;
            }
        }
        Ok(())
    }

    /// Long sums: kept in f16, they would be off by ten times what rounding the result costs.
    #[test]
    fn sums_of_f16_are_not_rounded_on_the_way() -> Result<()> {
        let random = |a, b| Tensor::rand(-0.7f32, 1.3, (a, b), &Device::Cpu)?.to_dtype(DType::F16);
        for rows in [1, 24] {
            let (xs, w) = (random(rows, 512)?, random(32, 512)?);
            compare(&xs, &w, &matmul_t(&xs, &w)?)?;
            compare(&xs, &w, &matmul(&xs, &w.t()?)?)?;
        }
        Ok(())
    }

    #[test]
    fn gradients_are_those_of_f64() -> Result<()> {
        for (rows, depth, out) in [(1, 3, 2), (40, 33, 65), (100, 64, 32)] {
            let random = |a, b| randn(0.0, 1.0, (a, b))?.to_dtype(DType::F64);
            let (xs, w, pick) = (random(rows, depth)?, random(out, depth)?, random(rows, out)?);
            for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 3e-2), (DType::F16, 4e-3)] {
                let run = |to: DType| -> Result<[Tensor; 2]> {
                    let var = |t: &Tensor| Var::from_tensor(&t.to_dtype(dtype)?.to_dtype(to)?);
                    let (xs, w) = (var(&xs)?, var(&w)?);
                    let grads = (matmul_t(&xs, &w)? * pick.to_dtype(to)?)?.sum_all()?.backward()?;
                    let of = |v: &Var| grads.get(v).expect("a gradient").to_dtype(DType::F64);
                    Ok([of(&xs)?, of(&w)?])
                };
                for (ours, exact) in run(dtype)?.iter().zip(run(DType::F64)?) {
                    let largest = exact.abs()?.max_all()?.to_scalar::<f64>()?;
                    let worst = (ours - exact)?.abs()?.max_all()?.to_scalar::<f64>()?;
                    assert!(worst <= tolerance * largest, "{rows} x {depth} x {out} {dtype:?}: {worst} of {largest}");
                }
            }
        }
        Ok(())
    }

    fn compare(xs: &Tensor, w: &Tensor, ys: &Tensor) -> Result<()> {
        let (xs, w) = (xs.to_dtype(DType::F64)?, w.to_dtype(DType::F64)?);
        let exact = xs.matmul(&w.t()?)?;
        // The result is rounded once to its dtype: half a unit in the last place of the largest number.
        let largest = exact.abs()?.max_all()?.to_scalar::<f64>()?;
        let tolerance = match ys.dtype() {
            DType::F32 => 1e-6,
            DType::F16 => 2f64.powi(-11) + 1e-6,
            DType::F64 => 1e-12,
            _ => 2f64.powi(-8) + 1e-6,
        } * largest;
        let worst = (ys.to_dtype(DType::F64)? - exact)?.abs()?.max_all()?.to_scalar::<f64>()?;
        assert!(worst <= tolerance.max(1e-6), "{:?} x {:?} {:?}: {worst}", xs.dims(), w.dims(), ys.dtype());
        Ok(())
    }
}

//! How far one row of logits is from another, without a tensor of probabilities.

use super::nll::largest;
use super::rows::{Kernel, compute, exp, is_plain, sum, sum_of_pairs, tensor, with_matrices, with_rows};
use candle_core::{D, DType, Result, Tensor, bail};

/// The Kullback-Leibler divergence KL(p || q) in nats per row of logits `(n, vocab)`, p and q the softmax of a row of
/// each: `(n,)` f32 (f64 for f64). Tokens to which p gives no probability do not count; equal rows give exactly 0.
///
/// # Errors
/// Shapes that differ.
pub fn kl_divergence(p: &Tensor, q: &Tensor) -> Result<Tensor> {
    let (n, vocab) = p.dims2()?;
    if q.dims() != [n, vocab] {
        bail!("kl_divergence: logits of shape {:?} and {:?}", p.dims(), q.dims())
    }
    let tracked = p.track_op() || q.track_op();
    if is_plain(p) && is_plain(q) && !tracked {
        let (p, q) = (with_rows(p)?, with_rows(q)?);
        let [out] = with_matrices([&p, &q], |rows| compute(DType::F32, (n, 1), rows, &Divergence))?;
        return tensor(out, n);
    }
    let log = |logits: &Tensor| logits.broadcast_sub(&logits.log_sum_exp(D::Minus1)?.unsqueeze(D::Minus1)?);
    let (p, q) = (log(p)?, log(q)?);
    let probabilities = p.exp()?;
    let terms = (&probabilities * (p - q)?)?;
    // What has no probability may have a log of minus infinity.
    probabilities.eq(0f64)?.where_cond(&terms.zeros_like()?, &terms)?.sum(D::Minus1)
}

struct Divergence;

impl Kernel<2, 1> for Divergence {
    #[inline(always)]
    fn row(&self, _i: usize, [p, q]: [&[f32]; 2], [out]: [&mut [f32]; 1]) {
        let (top_p, top_q) = (largest(p), largest(q));
        let (sum_p, sum_q) = (sum(p, |x| exp(x - top_p)), sum(q, |x| exp(x - top_q)));
        // Of the logs of p and q what is the same for the whole row.
        let shift = (top_q - top_p) + (sum_q.ln() - sum_p.ln());
        let term = |x: f32, y: f32| {
            let weight = exp(x - top_p);
            if weight == 0.0 { 0.0 } else { weight * ((x - y) + shift) }
        };
        out[0] = sum_of_pairs(p, q, term) / sum_p;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn rows(n: usize, vocab: usize, phase: f32) -> Result<Tensor> {
        let numbers = (0..n * vocab).map(|i| 12.0 * (i as f32 * 0.7 + phase).sin());
        Tensor::from_iter(numbers, &Device::Cpu)?.reshape((n, vocab))
    }

    #[test]
    fn the_kernel_is_the_definition() -> Result<()> {
        for (n, vocab) in [(1, 1), (3, 7), (5, 100), (40, 1024)] {
            let (p, q) = (rows(n, vocab, 0.0)?, rows(n, vocab, 0.1)?);
            let fused = kl_divergence(&p, &q)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
            let exact = kl_divergence(&p.to_dtype(DType::F64)?, &q.to_dtype(DType::F64)?)?.to_vec1::<f64>()?;
            // By hand, in f64.
            let probabilities = |row: &[f64]| -> Vec<f64> {
                let total: f64 = row.iter().map(|x| x.exp()).sum();
                row.iter().map(|x| x.exp() / total).collect()
            };
            let (ps, qs) = (p.to_dtype(DType::F64)?.to_vec2::<f64>()?, q.to_dtype(DType::F64)?.to_vec2::<f64>()?);
            for i in 0..n {
                let (p, q) = (probabilities(&ps[i]), probabilities(&qs[i]));
                let wanted: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
                assert!((exact[i] - wanted).abs() < 1e-9, "{n} x {vocab}, row {i}: {} not {wanted}", exact[i]);
                assert!((fused[i] - wanted).abs() < 1e-5, "{n} x {vocab}, row {i}: {} not {wanted}", fused[i]);
            }
        }
        Ok(())
    }

    #[test]
    fn equal_rows_come_to_nothing_and_what_is_impossible_does_not_count() -> Result<()> {
        let p = rows(3, 50, 0.3)?;
        assert_eq!(kl_divergence(&p, &p)?.to_vec1::<f32>()?, [0.0; 3]);
        let inf = f32::INFINITY;
        let (p, q) = ([[0f32, 0.0, -inf], [0.0, f32::NAN, 0.0]], [[0f32, 0.0, -inf], [0.0, 0.0, 0.0]]);
        for dtype in [DType::F32, DType::F64] {
            let given = |rows: &[[f32; 3]; 2]| Tensor::new(rows, &Device::Cpu)?.to_dtype(dtype);
            let found = kl_divergence(&given(&p)?, &given(&q)?)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            assert_eq!(found[0], 0.0, "{dtype:?}");
            assert!(found[1].is_nan(), "{dtype:?}: {found:?}");
        }
        assert!(kl_divergence(&rows(2, 5, 0.0)?, &rows(2, 6, 0.0)?).is_err());
        Ok(())
    }
}

//! The softmax of sixteen queries at once: a score is a lane of the vector that its key has.

use super::LANES;
use crate::{
    attention::backends::cpu::{bias::LOG2E, tile::tanh},
    simd::{Avx512, Simd},
};
use std::{arch::x86_64::*, ops::Range};

/// 2^f for f in 0..1, relative error 2.6e-6: a thousandth of what rounding a weight to bf16 loses.
const EXP2: [f32; 5] = [1.000_002_6, 0.693_003_83, 0.241_442_76, 0.052_011_46, 0.013_534_17];

/// When a step's weights add up to more than this, the row's reference point moves. Far from f32's limit, and from
/// weights that vanish beside each other's.
const LIMIT: f32 = (1u64 << 40) as f32;

/// What is added to the scores of sixteen queries.
#[allow(clippy::large_enum_variant)] // two at a time, on the stack: a box would be an allocation per tile
pub(super) enum LaneBias<'a> {
    /// `slope * (key - origin)`, keys counted from the block's first.
    Ramp { slopes: [f32; LANES], origins: [f32; LANES] },
    /// `values[key + 15 - lane]`: rows of a table of distances, each one place further than the last. Keys counted from
    /// the block's first.
    Diagonal { values: &'a [f32] },
    /// A row of numbers for each query.
    Rows(Values<'a>),
}

/// `factor * rows[lane][key - first]`, or `factor * (origins[lane] - rows[lane][key])`, keys counted from the call's first;
/// the same for every key if a row has one value.
pub(super) struct Values<'a> {
    pub(super) rows: [&'a [f32]; LANES],
    pub(super) first: usize,
    pub(super) factor: f32,
    pub(super) origins: Option<[f32; LANES]>,
}

/// Turns products into scores as exponents of two: scale, softcap, then bias. They are those of the keys from `col` of
/// the block that starts at `k0`.
///
/// # Safety
/// The machine has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
pub(super) unsafe fn finish(
    scores: &mut [[f32; LANES]],
    (k0, col): (usize, usize),
    factor: f32,
    softcap: Option<f32>,
    bias: Option<&LaneBias>,
) {
    let factor = _mm512_set1_ps(factor);
    for score in &mut *scores {
        let mut x = _mm512_mul_ps(load(score), factor);
        if let Some(cap) = softcap {
            // SAFETY: arithmetic only.
            x = _mm512_mul_ps(unsafe { tanh::<Avx512>(x) }, _mm512_set1_ps(cap * LOG2E));
        }
        store(score, x);
    }
    match bias {
        None => {}
        Some(LaneBias::Ramp { slopes, origins }) => {
            let (slopes, origins) = (load(slopes), load(origins));
            for (i, score) in scores.iter_mut().enumerate() {
                // Distances are integers and exact, so far keys lose nothing to cancellation.
                let distance = _mm512_sub_ps(_mm512_set1_ps((col + i) as f32), origins);
                let x = _mm512_fmadd_ps(slopes, distance, load(score));
                store(score, x);
            }
        }
        Some(LaneBias::Diagonal { values }) => {
            let reversed = _mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
            // Keys past the end have no values, and are hidden.
            for (score, values) in scores.iter_mut().zip(values[col.min(values.len())..].array_windows()) {
                let values = _mm512_permutexvar_ps(reversed, load(values));
                let x = _mm512_add_ps(load(score), values);
                store(score, x);
            }
        }
        Some(LaneBias::Rows(Values { rows, first, factor, origins })) => {
            let (factor, first) = (_mm512_set1_ps(*factor), k0 + col - first);
            for (i, scores) in scores.chunks_exact_mut(LANES).enumerate() {
                for (score, values) in scores.iter_mut().zip(&transposed(rows, first + i * LANES)) {
                    let mut value = load(values);
                    if let Some(origins) = origins {
                        value = _mm512_sub_ps(load(origins), value);
                    }
                    let x = _mm512_fmadd_ps(value, factor, load(score));
                    store(score, x);
                }
            }
        }
    }
}

/// The values of sixteen keys from `k` on, a row per key; past the end zero.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
fn transposed(rows: &[&[f32]; LANES], k: usize) -> [[f32; LANES]; LANES] {
    let (mut values, mut staged) = ([[0f32; LANES]; LANES], [[0f32; LANES]; LANES]);
    for (row, staged) in rows.iter().zip(&mut staged) {
        match row {
            [value] => staged.fill(*value),
            _ => {
                let row = &row[k.min(row.len())..];
                let n = row.len().min(LANES);
                staged[..n].copy_from_slice(&row[..n]);
            }
        }
    }
    // SAFETY: both are 16 by 16.
    unsafe { Avx512::transpose(staged.as_ptr().cast(), LANES, values.as_mut_ptr().cast(), LANES) };
    values
}

/// Hides the scores, of keys from `k` on, that are not of `keys` or that a lane doesn't see: it sees `starts..ends`.
#[target_feature(enable = "avx512f")]
pub(super) fn hide(
    scores: &mut [[f32; LANES]],
    k: usize,
    keys: &Range<usize>,
    starts: &[i32; LANES],
    ends: &[i32; LANES],
) {
    let starts = _mm512_max_epi32(load_ints(starts), _mm512_set1_epi32(keys.start as i32));
    let ends = _mm512_min_epi32(load_ints(ends), _mm512_set1_epi32(keys.end as i32));
    for (i, score) in scores.iter_mut().enumerate() {
        let k = _mm512_set1_epi32((k + i) as i32);
        let seen = _mm512_cmple_epi32_mask(starts, k) & _mm512_cmpgt_epi32_mask(ends, k);
        let x = _mm512_mask_blend_ps(seen, _mm512_set1_ps(f32::NEG_INFINITY), load(score));
        store(score, x);
    }
}

/// The largest score of each lane.
#[target_feature(enable = "avx512f")]
pub(super) fn largest(scores: &[[f32; LANES]]) -> [f32; LANES] {
    let mut max = [_mm512_set1_ps(f32::NEG_INFINITY); 4];
    for scores in scores.chunks_exact(4) {
        for (max, score) in max.iter_mut().zip(scores) {
            *max = _mm512_max_ps(load(score), *max);
        }
    }
    let mut lanes = [0f32; LANES];
    store(&mut lanes, _mm512_max_ps(_mm512_max_ps(max[0], max[1]), _mm512_max_ps(max[2], max[3])));
    lanes
}

/// Turns scores into weights `2^(factor * score - reference)`, rounded to bf16, those of two keys side by side, and adds
/// them, before rounding, to each lane's sum. Where they are too large, adds nothing and returns false.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
#[inline]
pub(super) fn weigh(
    scores: &[[f32; LANES]],
    factor: f32,
    reference: &[f32; LANES],
    sum: &mut [f32; LANES],
    weights: &mut [[u32; LANES]],
) -> bool {
    assert!(scores.len() == 2 * weights.len());
    let factor = _mm512_set1_ps(factor);
    // A row that has seen nothing yet has a reference of minus infinity, and scores of minus infinity.
    let reference = load(reference);
    let blind = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(reference, _mm512_set1_ps(f32::NEG_INFINITY));
    let reference = _mm512_mask_mov_ps(reference, blind, _mm512_setzero_ps());
    let side_by_side = {
        let order: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 16) as u16);
        // SAFETY: 64 bytes are readable.
        unsafe { _mm512_loadu_si512(order.as_ptr().cast()) }
    };
    let mut sums = [_mm512_setzero_ps(); 2];
    for (scores, weights) in scores.chunks_exact(2).zip(weights) {
        let first = exp2(_mm512_fmsub_ps(load(&scores[0]), factor, reference));
        let second = exp2(_mm512_fmsub_ps(load(&scores[1]), factor, reference));
        sums[0] = _mm512_add_ps(sums[0], first);
        sums[1] = _mm512_add_ps(sums[1], second);
        // SAFETY: both are 64 plain bytes.
        let both = unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) };
        let both = _mm512_permutexvar_epi16(side_by_side, both);
        // SAFETY: `weights` is 64 bytes.
        unsafe { _mm512_storeu_si512(weights.as_mut_ptr().cast(), both) };
    }
    let more = _mm512_add_ps(sums[0], sums[1]);
    if _mm512_cmp_ps_mask::<_CMP_GT_OQ>(more, _mm512_set1_ps(LIMIT)) != 0 {
        return false;
    }
    let all = _mm512_add_ps(load(sum), more);
    store(sum, all);
    true
}

/// 2^x, 0 for minus infinity.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn exp2(x: __m512) -> __m512 {
    // x - floor(x); `scalef` takes the floor itself.
    let f = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(x);
    let mut y = _mm512_set1_ps(EXP2[4]);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(EXP2[3]));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(EXP2[2]));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(EXP2[1]));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(EXP2[0]));
    _mm512_scalef_ps(y, x)
}

/// Multiplies every row of sixteen lanes.
#[target_feature(enable = "avx512f")]
pub(super) fn rescale(rows: &mut [[f32; LANES]], factors: &[f32; LANES]) {
    let factors = load(factors);
    for row in rows {
        let x = _mm512_mul_ps(load(row), factors);
        store(row, x);
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(x: &[f32; LANES]) -> __m512 {
    // SAFETY: sixteen numbers are readable.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_ints(x: &[i32; LANES]) -> __m512i {
    // SAFETY: sixteen numbers are readable.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(to: &mut [f32; LANES], x: __m512) {
    // SAFETY: sixteen numbers are writable.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
}

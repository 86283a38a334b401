//! One unit of the forward pass on products of pairs: a block of queries goes over its keys, with a running softmax.

use super::{
    GROUPS, KEYS, LANES, Product, STEP,
    lanes::{LaneBias, Values, finish, hide, largest, rescale, weigh},
    pack,
};
use crate::{
    attention::{
        backends::cpu::{
            bias::{Bias, LOG2E, RowBias},
            output::part_len,
            problem::Problem,
            skip::{RowBound, visit, without_negligible},
            task::Task,
            tile::{Row, widen},
            unit::Unit,
        },
        tokens::{Tokens, with_format},
        view::Inputs,
    },
    simd::{Avx512, Scratch, Simd},
    stored::CacheType,
};
use half::bf16;
use std::{arch::x86_64::*, ops::Range};

/// Rows per product.
const ROWS: usize = GROUPS * LANES;
/// One number per query of a group.
type Lanes = [f32; LANES];

/// The softmax of a group of sixteen rows.
struct Group {
    /// What scores are taken relative to; minus infinity before the row has seen a key.
    reference: Lanes,
    /// The sum of the weights.
    sum: Lanes,
    /// The keys that each row sees. Those of missing rows are all, so that they hide nothing.
    starts: [i32; LANES],
    ends: [i32; LANES],
    /// The keys that all of them see.
    all: Range<usize>,
    /// Whether some have seen no key yet.
    blind: bool,
}

/// A unit in progress.
struct Work<'a, 's, P> {
    product: P,
    task: &'a Task<'a, bf16>,
    p: &'a Problem<'a>,
    inputs: &'a Inputs<'a, bf16>,
    unit: &'a Unit,
    rows: Vec<Row>,
    groups: Vec<Group>,
    bounds: Vec<RowBound>,
    /// d and dv rounded up to whole steps.
    deep: usize,
    wide: usize,
    /// Queries as right operands, per group.
    q: &'s mut [u32],
    /// The current block's keys, `(KEYS, deep)`, and values, `(wide, KEYS)`, and which steps of it are there.
    k: &'s mut [bf16],
    v: &'s mut [bf16],
    packed: u32,
    /// Per group a step of scores.
    scores: &'s mut [Lanes],
    /// Per group `KEYS / 2` pairs of weights.
    weights: &'s mut [[u32; LANES]],
    /// Whether scores are the products times a positive factor, and what else they have to be multiplied by.
    plain: bool,
    factor: f32,
    /// Per group `wide` sums.
    acc: &'s mut [Lanes],
    /// `(ROWS, KEYS)`: a bias that has to be computed, or nothing.
    computed: &'s mut [f32],
    /// Room for a token in f32 and for a step of tokens in bf16, where keys or values are stored otherwise.
    widened: &'s mut [f32],
    narrowed: &'s mut [bf16],
}

/// Computes a unit and writes its result.
///
/// # Safety
/// The machine has AVX-512 with bf16 dot products and what `P` needs, and no other thread writes the unit's rows or part.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,avx2,f16c,bmi2")]
pub(super) unsafe fn run<P: Product>(task: &Task<bf16>, unit: &Unit) {
    let (p, inputs) = (task.p, &task.inputs);
    let rows = unit.rows(p);
    let padded = rows.len().next_multiple_of(ROWS);
    let (deep, wide) = (p.sizes.d.next_multiple_of(STEP), p.sizes.dv.next_multiple_of(STEP));
    let in_place = [inputs.k.kind, inputs.v.kind] == [CacheType::BF16; 2];
    let mut scratch = Scratch::take();
    let needs = [
        padded * deep / 2,
        KEYS * deep / 2,
        KEYS * wide / 2,
        ROWS * STEP,
        ROWS * KEYS / 2,
        padded * wide,
        LANES * wide,
        if matches!(p.bias, Bias::Bank(_) | Bias::Curve(_)) { ROWS * KEYS } else { 0 },
        if in_place { 0 } else { deep.max(wide) },
        if in_place { 0 } else { STEP * deep.max(wide) / 2 },
    ];
    let [q, k, v, scores, weights, acc, staged, computed, widened, narrowed] = scratch.split(needs);
    let (q, k, v) = (as_pairs(q), as_bf16(k), as_bf16(v));
    for (group, to) in q.chunks_exact_mut(LANES * deep / 2).enumerate() {
        let rows = rows[(group * LANES).min(rows.len())..].iter().take(LANES);
        // SAFETY: the caller guarantees the instruction set.
        unsafe { pack::queries(rows.map(|row| inputs.q.row(unit.b, row.head, row.q)), deep, to) };
    }
    acc.fill(0.0);
    let bounds = task.skip.iter().flat_map(|skip| rows.iter().map(|row| skip.row(p, inputs, unit.b, row))).collect();
    let plain = matches!(p.bias, Bias::None) && p.softcap.is_none() && p.q_factor() > 0.0;
    let mut work = Work {
        product: P::begin(),
        task,
        p,
        inputs,
        unit,
        groups: (0..padded / LANES).map(|i| Group::new(&rows[(i * LANES).min(rows.len())..])).collect(),
        rows,
        bounds,
        deep,
        wide,
        q,
        k,
        v,
        packed: 0,
        scores: scores.as_chunks_mut().0,
        weights: as_pairs(weights).as_chunks_mut().0,
        plain,
        factor: if plain { p.q_factor() } else { 1.0 },
        acc: acc.as_chunks_mut().0,
        computed,
        widened,
        narrowed: as_bf16(narrowed),
    };
    // SAFETY: guaranteed by the caller.
    unsafe {
        work.all_keys();
        work.write(staged);
    }
}

impl Group {
    /// Up to sixteen rows that have seen nothing.
    fn new(rows: &[Row]) -> Self {
        let seen = |i: usize| rows.get(i).map_or(0..i32::MAX, |row| row.seen.start as i32..row.seen.end as i32);
        Self {
            reference: [f32::NEG_INFINITY; LANES],
            sum: [0.0; LANES],
            starts: std::array::from_fn(|i| seen(i).start),
            ends: std::array::from_fn(|i| seen(i).end),
            all: rows
                .iter()
                .take(LANES)
                .fold(0..usize::MAX, |all, row| all.start.max(row.seen.start)..all.end.min(row.seen.end)),
            blind: true,
        }
    }
}

impl<'a, P: Product> Work<'a, '_, P> {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,avx2,f16c,bmi2")]
    unsafe fn all_keys(&mut self) {
        let mut blocks = self.unit.blocks_of_rows(&self.rows, ROWS);
        for k0 in self.unit.blocks_of_keys(self.p, KEYS) {
            self.packed = 0;
            let mut any = false;
            for rows in &mut blocks {
                let mut keys = rows.keys.start.max(k0)..rows.keys.end.min(k0 + KEYS);
                any |= !rows.keys.is_empty();
                if let (false, Some(skip)) = (keys.is_empty(), &self.task.skip) {
                    let norms = skip.norms(self.unit.b, self.unit.kv_head, self.p.sizes.h_kv);
                    let max = |i: usize| self.groups[i / LANES].reference[i % LANES];
                    keys = without_negligible(norms, &self.bounds, max, rows, keys);
                }
                if !keys.is_empty() {
                    // SAFETY: the caller guarantees the instruction set.
                    unsafe { self.tile(rows.range.clone(), k0, keys) };
                }
            }
            if !any {
                break;
            }
        }
    }

    /// One tile: rows `range` of the unit and `keys` of the block that starts at `k0`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,avx2,f16c,bmi2")]
    unsafe fn tile(&mut self, range: Range<usize>, k0: usize, keys: Range<usize>) {
        visit();
        let (mut from, to) = ((keys.start - k0) / STEP * STEP, (keys.end - k0).next_multiple_of(STEP));
        let (first, groups) = (range.start / LANES, range.len().div_ceil(LANES));
        // SAFETY: the operands of both groups are in the buffers by their sizes, and steps from..to are packed.
        unsafe {
            self.pack(k0, from, to);
            let q = [first, first + 1].map(|g| self.q.as_ptr().add(g * LANES * self.deep / 2));
            let computed = std::mem::take(&mut self.computed);
            let (one, other) = computed.split_at_mut(computed.len() / GROUPS);
            let at = |group: usize| ((first + group) * LANES, k0..k0 + KEYS.min(self.p.sizes.tk - k0));
            let biases = [self.lane_bias(at(0), one), self.lane_bias(at(1), other)];
            for col in (from..to).step_by(STEP) {
                let k = (self.k.as_ptr().add(col * self.deep), self.deep);
                let scores = self.scores.as_mut_ptr();
                self.product.multiply::<false>(k, q, [scores.cast(), scores.add(STEP).cast()], self.deep / STEP);
                for (at, bias) in biases[..groups].iter().enumerate() {
                    if !self.softmax((first + at, at), (k0, col), &keys, bias.as_ref()) {
                        self.add_values(first, from, col);
                        from = col;
                        self.move_reference((first + at, at), col);
                    }
                }
            }
            self.add_values(first, from, to);
            self.computed = computed;
        }
    }

    /// Adds the weighted values of columns `from..to` of the block to the sums of two groups.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,avx2,f16c,bmi2")]
    unsafe fn add_values(&mut self, first: usize, from: usize, to: usize) {
        if from == to {
            return;
        }
        // SAFETY: values and weights of these columns are there, and sums of both groups.
        unsafe {
            let weights = [from, KEYS + from].map(|at| self.weights.as_ptr().add(at / 2).cast());
            let acc = self.acc.as_mut_ptr();
            for c in (0..self.wide).step_by(STEP) {
                let v = (self.v.as_ptr().add(c * KEYS + from), KEYS);
                let acc = [first, first + 1].map(|g| acc.add(g * self.wide + c).cast());
                self.product.multiply::<true>(v, weights, acc, (to - from) / STEP);
            }
        }
    }

    /// Turns a step of scores of a group, the tile's `at`, into weights: those of the keys from column `col` of the block
    /// on, of which `keys` count. False if the weights are too large for the row's reference.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,avx2,f16c,bmi2")]
    unsafe fn softmax(
        &mut self,
        (group, at): (usize, usize),
        (k0, col): (usize, usize),
        keys: &Range<usize>,
        bias: Option<&LaneBias>,
    ) -> bool {
        let scores = &mut self.scores[at * STEP..(at + 1) * STEP];
        if !self.plain {
            // SAFETY: the caller guarantees the instruction set.
            unsafe { finish(scores, (k0, col), self.p.q_factor(), self.p.softcap, bias) };
        }
        let state = &mut self.groups[group];
        let k = k0 + col;
        if k < state.all.start.max(keys.start) || k + STEP > state.all.end.min(keys.end) {
            hide(scores, k, keys, &state.starts, &state.ends);
        }
        if state.blind {
            for (reference, max) in state.reference.iter_mut().zip(largest(scores)) {
                if *reference == f32::NEG_INFINITY {
                    *reference = max * self.factor;
                }
            }
            state.blind = state.reference.contains(&f32::NEG_INFINITY);
        }
        let weights = &mut self.weights[(at * KEYS + col) / 2..(at * KEYS + col + STEP) / 2];
        weigh(scores, self.factor, &state.reference, &mut state.sum, weights)
    }

    /// Takes the scores of the current step as the reference of those rows whose weights have become too large, and
    /// turns them into weights.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,avx2,f16c,bmi2")]
    unsafe fn move_reference(&mut self, (group, at): (usize, usize), col: usize) {
        let scores = &self.scores[at * STEP..(at + 1) * STEP];
        let (state, mut factors) = (&mut self.groups[group], [1.0; LANES]);
        for (i, max) in largest(scores).into_iter().enumerate() {
            let max = max * self.factor;
            if max > state.reference[i] {
                factors[i] = (state.reference[i] - max).exp2();
                state.reference[i] = max;
                state.sum[i] *= factors[i];
            }
        }
        rescale(&mut self.acc[group * self.wide..(group + 1) * self.wide], &factors);
        let weights = &mut self.weights[(at * KEYS + col) / 2..(at * KEYS + col + STEP) / 2];
        // No weight is above 1 now, so these are not too large.
        weigh(scores, self.factor, &state.reference, &mut state.sum, weights);
    }

    /// The bias of up to sixteen rows from `row` on, on the keys of a block; `computed` has room for it where it has to be
    /// computed.
    fn lane_bias<'l>(&self, (row, keys): (usize, Range<usize>), computed: &'l mut [f32]) -> Option<LaneBias<'l>>
    where
        'a: 'l,
    {
        let (p, k0) = (self.p, keys.start);
        let rows = &self.rows[row.min(self.rows.len())..self.rows.len().min(row + LANES)];
        match &p.bias {
            Bias::None => None,
            Bias::Linear { slopes } => {
                let first = (p.k_start + k0) as i64;
                let lane = |i: usize| rows.get(i).map_or((0.0, 0), |row| (slopes[row.head], row.q as i64));
                let origin = |q: i64| (p.q_start as i64 + q - first) as f32;
                Some(LaneBias::Ramp {
                    slopes: std::array::from_fn(|i| lane(i).0),
                    origins: std::array::from_fn(|i| origin(lane(i).1)),
                })
            }
            Bias::Relative { .. } if rows.len() == LANES && rows[0].head == rows[LANES - 1].head => {
                let last = &rows[LANES - 1];
                Some(LaneBias::Diagonal { values: &p.distances(last.head, last.q)[k0..] })
            }
            _ => {
                let mut all = Values { rows: [&[][..]; LANES], first: 0, factor: 1.0, origins: None };
                let mut lines = computed.chunks_mut(KEYS);
                for (i, row) in rows.iter().enumerate() {
                    let line = lines.next().unwrap_or_default();
                    match p.row_bias(self.unit.b, row.head, row.q).written(keys.clone(), line) {
                        RowBias::Values { values, first, factor } => {
                            (all.rows[i], all.first, all.factor) = (values, first, factor);
                        }
                        RowBias::Difference { values, origin } => {
                            (all.rows[i], all.factor) = (values, LOG2E);
                            all.origins.get_or_insert([0.0; LANES])[i] = origin;
                        }
                        RowBias::None | RowBias::Ramp { .. } | RowBias::Line { .. } | RowBias::Computed(_) => {}
                    }
                }
                Some(LaneBias::Rows(all))
            }
        }
    }

    /// Packs the steps between two columns of the block that are not there yet.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,avx2,f16c,bmi2")]
    unsafe fn pack(&mut self, k0: usize, from: usize, to: usize) {
        let (b, head, tk, inputs) = (self.unit.b, self.unit.kv_head, self.p.sizes.tk, self.inputs);
        for col in (from..to).step_by(STEP) {
            if self.packed & (1 << (col / STEP)) != 0 {
                continue;
            }
            self.packed |= 1 << (col / STEP);
            let (t, n) = (k0 + col, STEP.min(tk - k0 - col));
            // SAFETY: n tokens are there; `k` has room for a step of rows of `deep`, `v` has `wide` rows of KEYS
            // numbers; the caller guarantees the instruction set.
            unsafe {
                let k = self.in_bf16(&inputs.k, (b, head, t), n);
                pack::keys(k, (n, self.p.sizes.d), &mut self.k[col * self.deep..(col + STEP) * self.deep]);
                let v = self.in_bf16(&inputs.v, (b, head, t), n);
                pack::values(v, (n, self.p.sizes.dv), self.wide, (self.v.as_mut_ptr().add(col), KEYS));
            }
        }
    }

    /// `n` tokens from one on, and the distance from each to the next: where they lie, or rounded to bf16, until the next call.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,avx2,f16c,bmi2")]
    unsafe fn in_bf16(
        &mut self,
        tokens: &Tokens,
        (b, head, t): (usize, usize, usize),
        n: usize,
    ) -> (*const bf16, usize) {
        let (mut row, stride) = tokens.at(b, head, t);
        if tokens.kind == CacheType::BF16 {
            return (row.cast(), stride / size_of::<bf16>());
        }
        let width = tokens.dims[3];
        for to in self.narrowed.chunks_exact_mut(width).take(n) {
            // SAFETY: the token is there, and room for its numbers; the caller guarantees the instruction set.
            unsafe { with_format!(tokens.kind, F => widen::<Avx512, F>(row, 0..width, self.widened.as_mut_ptr())) };
            narrow(self.widened, to);
            row = row.wrapping_add(stride);
        }
        (self.narrowed.as_ptr(), width)
    }

    /// Writes the rows, or the part that they make up.
    ///
    /// # Safety
    /// No other thread writes them.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,avx2,f16c,bmi2")]
    unsafe fn write(&mut self, staged: &mut [f32]) {
        let (output, parts) = (&self.task.output, &self.task.parts);
        let (dv, wide) = (self.p.sizes.dv, self.wide);
        let part_len = part_len(self.p, self.unit.queries.len());
        for (g, rows) in self.rows.chunks(LANES).enumerate() {
            let (acc, state) = (&mut self.acc[g * wide..(g + 1) * wide], &self.groups[g]);
            if self.unit.part.is_none() {
                let mut factors = [0f32; LANES];
                for (i, (row, factor)) in rows.iter().zip(&mut factors).enumerate() {
                    let place = (self.unit.b, row.head, row.q);
                    // SAFETY: guaranteed by the caller.
                    *factor = unsafe { output.finish(self.p, place, state.reference[i], state.sum[i]) };
                }
                rescale(acc, &factors);
            }
            for c in (0..wide).step_by(LANES) {
                // SAFETY: 16 rows of 16 lanes become 16 numbers of 16 rows.
                unsafe { Avx512::transpose(acc[c..].as_ptr().cast(), LANES, staged.as_mut_ptr().add(c), wide) };
            }
            for (i, (row, values)) in rows.iter().zip(staged.chunks_exact(wide)).enumerate() {
                let (max, sum) = (state.reference[i], state.sum[i]);
                // SAFETY: guaranteed by the caller.
                unsafe {
                    match self.unit.part {
                        None => narrow(values, output.row(self.p, (self.unit.b, row.head, row.q))),
                        Some(part) => {
                            let line = parts.part(part * part_len + (g * LANES + i) * (dv + 2), dv + 2);
                            line[..dv].copy_from_slice(&values[..dv]);
                            line[dv..].copy_from_slice(&[max, sum]);
                        }
                    }
                }
            }
        }
    }
}

/// Rounds as many numbers as there is room for.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn narrow(from: &[f32], to: &mut [bf16]) {
    for (from, to) in from.chunks_exact(LANES).zip(to.chunks_mut(LANES)) {
        let mask = ((1u32 << to.len()) - 1) as u16;
        // SAFETY: 16 numbers are readable, and as many as the mask has bits are writable; both registers are 32 bytes.
        unsafe {
            let narrow = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(from.as_ptr())));
            _mm256_mask_storeu_epi16(to.as_mut_ptr().cast(), mask, narrow);
        }
    }
}

fn as_pairs(x: &mut [f32]) -> &mut [u32] {
    // SAFETY: as large and aligned, and any bits are a number.
    unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast(), x.len()) }
}

fn as_bf16(x: &mut [f32]) -> &mut [bf16] {
    // SAFETY: twice as many numbers of half the size, and any bits are a number.
    unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast(), 2 * x.len()) }
}

//! [`Curve`] as the kernels compute it: per head, a chain of straight lines in one variable.

use crate::attention::{
    bias::Curve,
    view::{Sizes, numbers},
};
use candle_core::{Result, bail};

/// The lines of every head, and what they are lines of.
pub(super) struct Lines {
    /// Values by distance, farthest first, then the nearest once more for every key: the order of a row's keys.
    reversed: Vec<f32>,
    /// Distances there are.
    distances: usize,
    /// `(b or 1, tq)`
    rows: Vec<f32>,
    rows_differ: bool,
    queries: usize,
    /// Where one line ends and the next begins, ascending.
    bends: Vec<f32>,
    /// `(h, lines)`: slope and start of each.
    lines: Vec<(f32, f32)>,
    network: Network,
}

/// The network that the lines come from.
struct Network {
    hidden_weight: Vec<f32>,
    hidden_bias: Vec<f32>,
    /// `(h, m)`
    out_weight: Vec<f32>,
}

/// True if the lines of `curve` can be followed along a row: distances never fall and nothing is negative.
pub(super) fn follows(curve: &Curve) -> Result<bool> {
    Ok(are_lines_of(&numbers(&curve.distances)?, &numbers(&curve.rows)?))
}

/// Looks at all numbers even if the answer is known early, so that the compiler vectorises the loops.
fn are_lines_of(distances: &[f32], rows: &[f32]) -> bool {
    let sound = |xs: &[f32]| xs.iter().fold(true, |all, x| all & (*x >= 0.0) & x.is_finite());
    let falls = distances.iter().zip(distances.iter().skip(1)).fold(false, |any, (a, b)| any | (a > b));
    sound(distances) && sound(rows) && !falls
}

impl Lines {
    pub(super) fn new(curve: &Curve, s: &Sizes) -> Result<Self> {
        let (mut reversed, rows) = (numbers(&curve.distances)?, numbers(&curve.rows)?);
        if !are_lines_of(&reversed, &rows) {
            bail!("attend: the distances of a curve must never fall, and be positive or zero as its rows")
        }
        let distances = reversed.len();
        reversed.reverse();
        reversed.resize(distances + s.tk, reversed[distances - 1]);
        let network = Network {
            hidden_weight: numbers(&curve.hidden_weight)?,
            hidden_bias: numbers(&curve.hidden_bias)?,
            out_weight: numbers(&curve.out_weight)?,
        };
        let bends = network.bends();
        let mut lines = Vec::with_capacity(s.h * (bends.len() + 1));
        for (head, start) in numbers(&curve.out_bias)?.into_iter().enumerate() {
            for line in 0..=bends.len() {
                lines.push(network.line(head, start, middle(&bends, line)));
            }
        }
        let rows_differ = curve.rows.dim(0)? > 1;
        Ok(Self { reversed, distances, rows, rows_differ, queries: s.tq, bends, lines, network })
    }

    /// The factor of query `q` of batch row `b`.
    pub(super) fn row(&self, b: usize, q: usize) -> f32 {
        self.rows[if self.rows_differ { b } else { 0 } * self.queries + q]
    }

    /// The distances of keys from `key` on of the row at `origin`, in the keys' order.
    fn of_keys(&self, origin: i64, key: usize) -> &[f32] {
        // Not negative for a key that a row sees: the call was checked to have all distances.
        let at = (self.distances as i64 - 1 - (origin - key as i64)).max(0) as usize;
        // All keys after the query have the nearest distance, so for a row before the first key any of them is right.
        &self.reversed[at.min(self.distances)..]
    }

    /// Slope by distance, start and the distances of `keys`, if the row's bias is one straight line on them, as it is on most
    /// tiles.
    #[inline(always)]
    pub(super) fn straight(
        &self,
        head: usize,
        factor: f32,
        origin: i64,
        keys: std::ops::Range<usize>,
    ) -> Option<(f32, f32, &[f32])> {
        let distances = self.of_keys(origin, keys.start).get(..keys.len())?;
        let line = self.only_line(factor, distances)?;
        let (slope, start) = self.lines[head * (self.bends.len() + 1) + line];
        Some((slope * factor, start, distances))
    }

    /// The line that all of these distances, which fall, are on, if it is one.
    #[inline(always)]
    fn only_line(&self, factor: f32, distances: &[f32]) -> Option<usize> {
        let (first, last) = (distances.first()? * factor, distances.last()? * factor);
        let line = self.bends.partition_point(|bend| *bend < first);
        (line == 0 || last > self.bends[line - 1]).then_some(line)
    }

    /// Calls `each` with every line that the keys are on, in the keys' order, and which of the keys those are.
    #[inline(always)]
    fn along(&self, factor: f32, distances: &[f32], mut each: impl FnMut(usize, std::ops::Range<usize>)) {
        // x falls from key to key, so lines are met from the last to the first.
        let Some(first) = distances.first() else { return };
        let (mut line, mut from) = (self.bends.partition_point(|bend| *bend < first * factor), 0);
        loop {
            let to = match line.checked_sub(1) {
                Some(below) => from + distances[from..].partition_point(|x| x * factor > self.bends[below]),
                None => distances.len(),
            };
            if from < to {
                each(line, from..to);
            }
            if to == distances.len() || line == 0 {
                return;
            }
            (from, line) = (to, line - 1);
        }
    }

    /// The bias of the row with `factor` at `origin` on the keys from `key` on.
    #[inline(always)]
    pub(super) fn fill(&self, head: usize, factor: f32, origin: i64, key: usize, values: &mut [f32]) {
        let distances = self.of_keys(origin, key);
        let n = values.len().min(distances.len());
        let of_head = &self.lines[head * (self.bends.len() + 1)..];
        self.along(factor, &distances[..n], |line, keys| {
            let (slope, start) = (of_head[line].0 * factor, of_head[line].1);
            for (value, x) in values[keys.clone()].iter_mut().zip(&distances[keys]) {
                *value = slope * x + start;
            }
        });
    }

    /// Numbers in the sums of one head: by distance, by query, and per line the gradients and the gradients times x.
    pub(super) fn sums(&self) -> usize {
        self.distances + self.queries + 2 * (self.bends.len() + 1)
    }

    /// Adds the gradients `g` of a row's scores on the keys from `key` on to the sums of its head.
    pub(super) fn add(&self, sums: &mut [f32], head: usize, (b, q): (usize, usize), at: (i64, usize), g: &[f32]) {
        let (factor, (origin, key)) = (self.row(b, q), at);
        let distances = self.of_keys(origin, key);
        let n = g.len().min(distances.len());
        let of_head = &self.lines[head * (self.bends.len() + 1)..];
        let (by_distance, rest) = sums.split_at_mut(self.distances);
        let (by_query, by_line) = rest.split_at_mut(self.queries);
        self.along(factor, &distances[..n], |line, keys| {
            let (mut all, mut times_x) = (0.0, 0.0);
            for i in keys {
                let distance = (origin - (key + i) as i64).max(0) as usize;
                all += g[i];
                times_x += g[i] * distances[i];
                by_distance[distance] += g[i] * of_head[line].0 * factor;
            }
            by_query[q] += times_x * of_head[line].0;
            by_line[2 * line] += all;
            by_line[2 * line + 1] += times_x * factor;
        });
    }

    /// The gradients of the curve's tensors, in their order and one after another, from the sums of all heads,
    /// `(b, h, sums)`.
    pub(super) fn gradients(&self, sums: &[f32], b: usize, h: usize) -> Vec<f32> {
        let m = self.network.hidden_weight.len();
        let lines = self.bends.len() + 1;
        let mut distances = vec![0f32; self.distances];
        let mut rows = vec![0f32; self.rows.len()];
        let [mut hidden_weight, mut hidden_bias] = [vec![0f32; m], vec![0f32; m]];
        let [mut out_weight, mut out_bias] = [vec![0f32; h * m], vec![0f32; h]];
        for (i, sums) in sums.chunks_exact(self.sums()).enumerate().take(b * h) {
            let (row, head) = (i / h, i % h);
            let (by_distance, rest) = sums.split_at(self.distances);
            let (by_query, by_line) = rest.split_at(self.queries);
            add(&mut distances, by_distance);
            let row = if self.rows_differ { row } else { 0 };
            add(&mut rows[row * self.queries..(row + 1) * self.queries], by_query);
            for line in 0..lines {
                let (all, times_x) = (by_line[2 * line], by_line[2 * line + 1]);
                let x = middle(&self.bends, line);
                out_bias[head] += all;
                for unit in (0..m).filter(|unit| self.network.is_active(*unit, x)) {
                    let (weight, bias) = (self.network.hidden_weight[unit], self.network.hidden_bias[unit]);
                    let out = self.network.out_weight[head * m + unit];
                    out_weight[head * m + unit] += weight * times_x + bias * all;
                    hidden_weight[unit] += out * times_x;
                    hidden_bias[unit] += out * all;
                }
            }
        }
        [distances, rows, hidden_weight, hidden_bias, out_weight, out_bias].concat()
    }
}

impl Network {
    fn is_active(&self, unit: usize, x: f64) -> bool {
        f64::from(self.hidden_weight[unit]) * x + f64::from(self.hidden_bias[unit]) > 0.0
    }

    /// Where some unit begins or ceases to be active, above 0.
    fn bends(&self) -> Vec<f32> {
        let units = self.hidden_weight.iter().zip(&self.hidden_bias);
        let mut bends: Vec<f32> = units.map(|(w, b)| -b / w).filter(|x| *x > 0.0 && x.is_finite()).collect();
        bends.sort_by(f32::total_cmp);
        bends.dedup();
        bends
    }

    /// Slope and start of a head's line at `x`.
    fn line(&self, head: usize, start: f32, x: f64) -> (f32, f32) {
        let m = self.hidden_weight.len();
        let (mut slope, mut at_zero) = (0.0, f64::from(start));
        for unit in (0..m).filter(|unit| self.is_active(*unit, x)) {
            let out = f64::from(self.out_weight[head * m + unit]);
            slope += out * f64::from(self.hidden_weight[unit]);
            at_zero += out * f64::from(self.hidden_bias[unit]);
        }
        (slope as f32, at_zero as f32)
    }
}

/// A place within line `line`.
fn middle(bends: &[f32], line: usize) -> f64 {
    let below = line.checked_sub(1).map_or(0.0, |i| f64::from(bends[i]));
    bends.get(line).map_or(below + 1.0, |above| (below + f64::from(*above)) / 2.0)
}

fn add(to: &mut [f32], from: &[f32]) {
    for (to, x) in to.iter_mut().zip(from) {
        *to += x;
    }
}

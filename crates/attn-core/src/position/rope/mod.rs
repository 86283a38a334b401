//! Rotary position embeddings (Su et al. 2021): pairs of lanes turned by an angle proportional to the position.
//!
//! The angle is formed in f64 from an integer position and only its cosine and sine are rounded, because an f32 angle
//! at position 131072 is off by up to 1/128 rad and a bf16 position is off from 257 on. The rotation runs in f32 (f64
//! for f64 inputs) and is cast back to the dtype of the input. Tables grow as positions come and are shared by all
//! layers that hold the same [`Rope`].
//!
//! What a config says is in [`config`], how its frequencies are stretched in [`scaling`].

mod apply;
pub mod config;
#[cfg(feature = "cuda")]
mod cuda;
mod export;
mod learned_frequencies;
pub mod overrides;
mod rotary_table;
pub mod scaling;
mod table;

pub use config::{Layout, RopeConfig, RopeDefaults, RopeReading};
pub use learned_frequencies::LearnedFrequencies;
pub use overrides::RopeOverride;
pub use rotary_table::{RotaryTable, RotaryTableConfig};
pub use scaling::{Ramp, RopeScaling, SchemeInfo, yarn_mscale};

use super::{Context, PositionEncoding, Positions, Resolution};
use apply::{FastRope, rotate_plain};
use candle_core::{DType, DeviceLocation, Result, Tensor, bail};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};
use table::{Angles, Table, Tabled};

/// Positions that a table from 0 on may cover; past it only the positions of the call are tabled.
const MAX_TABLE: usize = 1 << 18;
/// Tables kept, the latest used first: a few resolutions, or one per length while dynamic NTK grows, and lists of positions
/// that are no whole numbers, which all layers of a pass share.
const TABLES: usize = 8;

/// A rotary encoding. Cheap to share: keep it in an `Arc` and give it to every layer.
#[derive(Debug)]
pub struct Rope {
    config: RopeConfig,
    tables: Mutex<VecDeque<(Key, Tabled, Arc<Table>)>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Key {
    resolution: Resolution,
    device: DeviceLocation,
    dtype: DType,
}

impl Rope {
    /// A rotary encoding.
    ///
    /// # Errors
    /// Whatever [`RopeConfig::validate`] refuses.
    pub fn new(config: RopeConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { config, tables: Mutex::default() })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &RopeConfig {
        &self.config
    }

    /// Radians per position of each pair, for a sequence of `len` tokens.
    pub fn inv_freq(&self, len: usize) -> Vec<f64> {
        self.config.frequencies(len).inv_freq
    }

    /// What cos and sin are multiplied by, for a sequence of `len` tokens.
    pub fn attention_factor(&self, len: usize) -> f64 {
        self.config.frequencies(len).attention_factor
    }

    /// Positions per full turn of each pair, for a sequence of `len` tokens.
    pub fn wavelengths(&self, len: usize) -> Vec<f64> {
        self.config.frequencies(len).wavelengths()
    }

    /// Rotates the first `rotary_dim` lanes of each token to its position. `xs` is `(b, h, t, head_dim)` of any strides; the
    /// result has its dtype. Gradients flow.
    ///
    /// # Errors
    /// Another shape than the positions and the configuration ask for.
    pub fn rotate(&self, xs: &Tensor, positions: &Positions) -> Result<Tensor> {
        self.apply(xs, &self.angles(xs, positions)?)
    }

    /// [`rotate`](Self::rotate) to any positions, whole or not: `at` has one per token, for one row that stands for all or
    /// for each row of the batch, one row after the other. Frequencies are those of a sequence of `length` tokens.
    ///
    /// # Errors
    /// As [`rotate`](Self::rotate); a position that is not a number.
    pub fn rotate_at(&self, xs: &Tensor, at: &[f64], length: usize) -> Result<Tensor> {
        self.apply(xs, &self.angles_at(xs, at, length)?)
    }

    /// [`rotate`](Self::rotate) in plain Candle ops: any device, keeps the autograd graph.
    pub fn rotate_plain(&self, xs: &Tensor, positions: &Positions) -> Result<Tensor> {
        let (cos, sin) = self.angles(xs, positions)?.tensors()?;
        rotate_plain(xs, &cos, &sin, &self.config)
    }

    /// [`rotate`](Self::rotate) in one pass over the data, for f32, f16 and bf16 on the CPU. Takes any strides with
    /// contiguous lanes, returns a contiguous tensor; gradients are rotated back in one pass too.
    pub fn rotate_fast(&self, xs: &Tensor, positions: &Positions) -> Result<Tensor> {
        self.apply_fast(xs, &self.angles(xs, positions)?)
    }

    fn apply(&self, xs: &Tensor, angles: &Angles) -> Result<Tensor> {
        let _scope = crate::profile::scope(crate::profile::Op::Rotary);
        if angles.index.is_empty() {
            return Ok(xs.clone());
        }
        #[cfg(feature = "cuda")]
        if crate::cuda::takes(xs) {
            let (cos, sin) = angles.tensors()?;
            return cuda::rotate(xs, &cos, &sin, &self.config);
        }
        if xs.device().is_cpu() && matches!(xs.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            return self.apply_fast(xs, angles);
        }
        let (cos, sin) = angles.tensors()?;
        rotate_plain(xs, &cos, &sin, &self.config)
    }

    fn apply_fast(&self, xs: &Tensor, angles: &Angles) -> Result<Tensor> {
        let lanes_contiguous = xs.stride().last() == Some(&1) || xs.dim(3)? == 1;
        let xs = if lanes_contiguous { xs.clone() } else { xs.contiguous()? };
        let (rotary_dim, layout) = (self.config.rotary_dim, self.config.layout);
        xs.apply_op1(FastRope { angles: angles.clone(), rotary_dim, layout, backwards: false })
    }

    fn check(&self, xs: &Tensor, rows: usize, tokens: usize) -> Result<()> {
        let (b, _, t, d) = xs.dims4()?;
        if d != self.config.head_dim || t != tokens {
            bail!(
                "rope: expected (b, h, {tokens}, {}) for {tokens} positions of head_dim {}, got {:?}",
                self.config.head_dim,
                self.config.head_dim,
                xs.dims()
            )
        }
        if rows != 1 && rows != b {
            bail!("rope: positions are given for {rows} rows, but the batch has {b}")
        }
        Ok(())
    }

    fn angles(&self, xs: &Tensor, positions: &Positions) -> Result<Angles> {
        self.check(xs, positions.rows(), positions.len())?;
        let whole: Vec<usize> = positions.all().collect();
        self.angles_of_whole(xs, &whole, positions.rows(), positions.length())
    }

    fn angles_at(&self, xs: &Tensor, at: &[f64], length: usize) -> Result<Angles> {
        let tokens = xs.dim(2)?;
        let rows = at.len().checked_div(tokens).unwrap_or(1);
        if rows * tokens != at.len() {
            bail!("rope: {} positions do not fit {tokens} tokens", at.len())
        }
        self.check(xs, rows, tokens)?;
        if let Some(position) = at.iter().find(|p| !p.is_finite()) {
            bail!("rope: a position must be finite, got {position}")
        }
        let is_whole = |p: &f64| *p >= 0.0 && p.fract() == 0.0 && *p < MAX_TABLE as f64;
        if at.iter().all(is_whole) {
            let whole: Vec<usize> = at.iter().map(|p| *p as usize).collect();
            return self.angles_of_whole(xs, &whole, rows, length);
        }
        let table = self.table(xs, Tabled::List(at.into()), length)?.1;
        Ok(Angles { table, rows, index: (0..at.len() as u32).collect() })
    }

    fn angles_of_whole(&self, xs: &Tensor, at: &[usize], rows: usize, length: usize) -> Result<Angles> {
        let (least, most) = at.iter().fold((usize::MAX, 0), |(a, b), p| (a.min(*p), b.max(*p)));
        let wanted = least.min(most)..most + 1;
        if wanted.end > MAX_TABLE && wanted.len() > at.len() {
            // Few positions far apart.
            let table = self.table(xs, Tabled::List(at.iter().map(|p| *p as f64).collect()), length)?.1;
            return Ok(Angles { table, rows, index: (0..at.len() as u32).collect() });
        }
        let (start, table) = self.table(xs, Tabled::Range(wanted), length)?;
        Ok(Angles { table, rows, index: at.iter().map(|p| (p - start) as u32).collect() })
    }

    /// A table that has the positions `wanted`, and which is its first if they are whole.
    fn table(&self, xs: &Tensor, wanted: Tabled, length: usize) -> Result<(usize, Arc<Table>)> {
        let (resolution, device) = (self.resolve(length), xs.device());
        let dtype = if xs.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let key = Key { resolution, device: device.location(), dtype };
        let first = |tabled: &Tabled| match tabled {
            Tabled::Range(range) => range.start,
            Tabled::List(_) => 0,
        };
        // A poisoned lock is harmless: entries are only ever complete.
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = tables.iter().position(|(k, tabled, _)| *k == key && wanted.within(tabled)) {
            if let Some(entry) = tables.remove(i) {
                tables.push_front(entry);
            }
            return Ok((first(&tables[0].1), tables[0].2.clone()));
        }
        let tabled = match (wanted, resolution) {
            (Tabled::Range(range), _) if range.end > MAX_TABLE => Tabled::Range(range),
            (Tabled::Range(range), Resolution::Length(n)) => Tabled::Range(0..n.clamp(range.end, MAX_TABLE)),
            // Room to grow, so that decoding rebuilds the table a handful of times.
            (Tabled::Range(range), _) => Tabled::Range(0..range.end.max(256).next_power_of_two()),
            (list, _) => list,
        };
        let table = Arc::new(Table::new(&self.config.frequencies(length), &tabled, dtype, device)?);
        tables.retain(|(k, old, _)| *k != key || !old.within(&tabled));
        let start = first(&tabled);
        tables.push_front((key, tabled, table.clone()));
        tables.truncate(TABLES);
        Ok((start, table))
    }
}

impl PositionEncoding for Rope {
    fn queries(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        self.rotate(q, at.positions)
    }

    fn keys(&self, k: &Tensor, at: &Context) -> Result<Tensor> {
        self.rotate(k, at.positions)
    }

    fn resolve(&self, len: usize) -> Resolution {
        self.config.scaling.resolve(len)
    }
}

#[cfg(test)]
mod tests;

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
pub mod overrides;
pub mod scaling;
mod table;

pub use config::{Layout, RopeConfig, RopeDefaults, RopeReading};
pub use overrides::RopeOverride;
pub use scaling::{Ramp, RopeScaling, SchemeInfo, yarn_mscale};

use super::{PositionEncoding, Positions, Resolution};
use apply::{FastRope, rotate_plain};
use candle_core::{DType, Device, DeviceLocation, Result, Tensor, bail};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};
use table::Table;

/// Positions that a table from 0 on may cover; past it only the positions of the call are tabled.
const MAX_TABLE: usize = 1 << 18;
/// Tables kept, the latest used first: a few resolutions, or one per length while dynamic NTK grows.
const TABLES: usize = 4;

/// A rotary encoding. Cheap to share: keep it in an `Arc` and give it to every layer.
#[derive(Debug)]
pub struct Rope {
    config: RopeConfig,
    tables: Mutex<VecDeque<(Key, Arc<Table>)>>,
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

    /// [`rotate`](PositionEncoding::rotate) in plain Candle ops: any device, keeps the autograd graph.
    pub fn rotate_plain(&self, xs: &Tensor, positions: &Positions) -> Result<Tensor> {
        self.check(xs, positions)?;
        if positions.is_empty() {
            return Ok(xs.clone());
        }
        let dtype = if xs.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let (cos, sin) = self.table(positions, dtype, xs.device())?.select(positions)?;
        rotate_plain(xs, &cos, &sin, &self.config)
    }

    /// [`rotate`](PositionEncoding::rotate) in one pass over the data, for f32, f16 and bf16 on the CPU. Takes any
    /// strides with contiguous lanes, returns a contiguous tensor; gradients are rotated back in one pass too.
    pub fn rotate_fast(&self, xs: &Tensor, positions: &Positions) -> Result<Tensor> {
        self.check(xs, positions)?;
        if positions.is_empty() {
            return Ok(xs.clone());
        }
        let table = self.table(positions, DType::F32, xs.device())?;
        let lanes_contiguous = xs.stride().last() == Some(&1) || xs.dim(3)? == 1;
        let xs = if lanes_contiguous { xs.clone() } else { xs.contiguous()? };
        let (rotary_dim, layout) = (self.config.rotary_dim, self.config.layout);
        xs.apply_op1(FastRope { table, positions: positions.clone(), rotary_dim, layout, backwards: false })
    }

    /// [`rotate`](PositionEncoding::rotate) in one launch; no gradients.
    #[cfg(feature = "cuda")]
    fn rotate_cuda(&self, xs: &Tensor, positions: &Positions) -> Result<Tensor> {
        self.check(xs, positions)?;
        let (cos, sin) = self.table(positions, DType::F32, xs.device())?.select(positions)?;
        cuda::rotate(xs, &cos, &sin, &self.config)
    }

    fn check(&self, xs: &Tensor, positions: &Positions) -> Result<()> {
        let (b, _, t, d) = xs.dims4()?;
        if d != self.config.head_dim || t != positions.len() {
            bail!(
                "rope: expected (b, h, {}, {}) for {} positions of head_dim {}, got {:?}",
                positions.len(),
                self.config.head_dim,
                positions.len(),
                self.config.head_dim,
                xs.dims()
            )
        }
        if positions.pads().is_some_and(|pads| pads.len() != b) {
            bail!("rope: padding is given for {} rows, the batch has {b}", positions.rows().len())
        }
        Ok(())
    }

    fn table(&self, positions: &Positions, dtype: DType, device: &Device) -> Result<Arc<Table>> {
        let resolution = self.resolve(positions.length());
        let key = Key { resolution, device: device.location(), dtype };
        let most = positions.rows().iter().copied().max().unwrap_or(0);
        let slots = positions.slots();
        let wanted = slots.start.saturating_sub(most)..slots.end;
        // A poisoned lock is harmless: entries are only ever complete.
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = tables.iter().position(|(k, table)| *k == key && table.covers(&wanted)) {
            if let Some(entry) = tables.remove(i) {
                tables.push_front(entry);
            }
            return Ok(tables[0].1.clone());
        }
        let range = if wanted.end > MAX_TABLE {
            wanted
        } else if let Resolution::Length(n) = resolution {
            0..n.clamp(wanted.end, MAX_TABLE)
        } else {
            // Room to grow, so that decoding rebuilds the table a handful of times.
            0..wanted.end.max(256).next_power_of_two()
        };
        let frequencies = self.config.frequencies(positions.length());
        let table = Arc::new(Table::new(&frequencies, range, dtype, device)?);
        tables.retain(|(k, old)| *k != key || !table.covers(old.positions()));
        tables.push_front((key, table.clone()));
        tables.truncate(TABLES);
        Ok(table)
    }
}

impl PositionEncoding for Rope {
    /// Rotates the first `rotary_dim` lanes. `xs` is `(b, h, t, head_dim)` of any strides; the result has its dtype.
    fn rotate(&self, xs: &Tensor, positions: &Positions) -> Result<Tensor> {
        let _scope = crate::profile::scope(crate::profile::Op::Rotary);
        let fast = xs.device().is_cpu() && matches!(xs.dtype(), DType::F32 | DType::F16 | DType::BF16);
        #[cfg(feature = "cuda")]
        if crate::cuda::takes(xs) {
            return self.rotate_cuda(xs, positions);
        }
        if fast { self.rotate_fast(xs, positions) } else { self.rotate_plain(xs, positions) }
    }

    fn resolve(&self, len: usize) -> Resolution {
        self.config.scaling.resolve(len)
    }
}

#[cfg(test)]
mod tests;

//! Keys and values as a cache stores them: plain numbers of any precision, or blocks of 32 numbers under a scale.
//!
//! A cache of a long context is read whole for every token, so what it takes in memory is time. The kernel of the CPU reads
//! every [`CacheType`] as it is stored, a tile at a time; what can't read one has it [widened](Stored::to_dtype) first.
//!
//! What becomes blocks is turned first (`turn`), so that a few large numbers of a head don't take the digits of the others.

mod quantize;
mod turn;

pub(crate) use turn::turned;

use candle_core::{DType, Device, Result, Tensor, bail};
use std::{fmt, ops::Range, str::FromStr};

/// Numbers in a block of the quantised types.
pub(crate) const BLOCK: usize = 32;

/// How a cache stores its numbers, by llama.cpp's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(non_camel_case_types)] // ggml's names
pub enum CacheType {
    /// Plain numbers of 32 bits.
    F32,
    /// Plain numbers of 16 bits, 11 of them for the digits: up to 65504.
    F16,
    /// Plain numbers of 16 bits, 8 of them for the digits.
    BF16,
    /// Blocks of 32 signed bytes under one f16, as ggml's Q8_0, of numbers that a Hadamard matrix has turned: 8.5
    /// bits a number.
    Q8_0,
    /// Blocks of 32 numbers of four bits, less 8, under one f16, as ggml's Q4_0, turned likewise: 4.5 bits a number.
    Q4_0,
}

impl CacheType {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q4_0];

    /// The type of plain numbers of a dtype; `None` for dtypes that no cache is asked for by name.
    pub fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::BF16),
            _ => None,
        }
    }

    /// The dtype of plain numbers; `None` for blocks.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            Self::Q8_0 | Self::Q4_0 => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// Bytes of a token's `width` numbers, which are whole blocks.
    pub fn row_bytes(self, width: usize) -> usize {
        match self {
            Self::F32 => 4 * width,
            Self::F16 | Self::BF16 => 2 * width,
            Self::Q8_0 => width / BLOCK * (2 + BLOCK),
            Self::Q4_0 => width / BLOCK * (2 + BLOCK / 2),
        }
    }

    /// An error unless tokens of `width` numbers can be stored so; `what` says what has that width.
    ///
    /// # Errors
    /// Blocks that such a token is no whole number of.
    pub fn check(self, what: &str, width: usize) -> Result<()> {
        if self.dtype().is_none() && !width.is_multiple_of(BLOCK) {
            bail!("cache type {self}: {what} of {width} is not a multiple of {BLOCK}, the numbers of a block")
        }
        Ok(())
    }
}

impl fmt::Display for CacheType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CacheType {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == name);
        known.ok_or_else(|| format!("unknown cache type: one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// What the keys and the values of a cache are stored as. `None`: as they come, in the dtype that the layer computes in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheTypes {
    /// The keys, as they are after their rotation.
    pub k: Option<CacheType>,
    /// The values.
    pub v: Option<CacheType>,
}

impl CacheTypes {
    /// One type for both.
    pub fn both(kind: CacheType) -> Self {
        Self { k: Some(kind), v: Some(kind) }
    }

    /// True if what is read from such a cache may be other numbers than what a layer that computes in `dtype` puts in.
    pub fn differ_from(self, dtype: DType) -> bool {
        [self.k, self.v].into_iter().flatten().any(|kind| kind.dtype() != Some(dtype))
    }
}

/// Keys or values, `(b, h, t, d)`, as they are stored. Cloning shares the numbers.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The tensor of plain numbers, or the bytes of each token's blocks, `(b, h, t, bytes)` in u8.
    data: Tensor,
    /// `None`: plain numbers of a dtype that is no cache type.
    kind: Option<CacheType>,
    /// How many numbers were turned at once, before they became blocks.
    turn: usize,
}

impl From<&Tensor> for Stored {
    fn from(xs: &Tensor) -> Self {
        Self { data: xs.clone(), kind: CacheType::of(xs.dtype()), turn: 1 }
    }
}

impl Stored {
    /// `xs` stored as `kind`. A gradient flows into plain numbers, and not into blocks.
    ///
    /// # Errors
    /// A tensor that has not four dimensions. For blocks: a width that they don't divide, a tensor with a gradient or one
    /// that is not on the CPU.
    pub fn new(xs: &Tensor, kind: CacheType) -> Result<Self> {
        let (_, _, _, width) = xs.dims4()?;
        kind.check("a head", width)?;
        let data = match kind.dtype() {
            Some(dtype) => xs.to_dtype(dtype)?,
            None => quantize::blocks(xs, kind, turn::size(width))?,
        };
        Ok(Self { data, kind: Some(kind), turn: turn::size(width) })
    }

    /// Whole tokens of a cache whose tensors are of this kind.
    pub(crate) fn from_data(data: Tensor, kind: Option<CacheType>) -> Result<Self> {
        let whole = Self { data, kind, turn: 1 };
        let turn = turn::size(whole.dims4()?.3);
        Ok(Self { turn, ..whole })
    }

    /// How the numbers are stored; `None` for plain numbers of another dtype.
    pub fn kind(&self) -> Option<CacheType> {
        self.kind
    }

    /// What they are called in messages.
    pub(crate) fn kind_name(&self) -> &'static str {
        self.kind.map_or(self.data.dtype().as_str(), CacheType::name)
    }

    /// The tensor that holds them: of plain numbers, or of bytes.
    pub(crate) fn data(&self) -> &Tensor {
        &self.data
    }

    /// The blocks' type, if they are no plain numbers.
    fn blocks(&self) -> Option<CacheType> {
        self.kind.filter(|kind| kind.dtype().is_none())
    }

    /// How many numbers of a token were [`turned`] at once, if they are in blocks: a kernel that reads them as they are has to
    /// turn its queries likewise, and what it sums of values back.
    pub(crate) fn turn(&self) -> Option<usize> {
        self.blocks().map(|_| self.turn)
    }

    /// True for plain numbers of `dtype`.
    pub fn is_plain(&self, dtype: DType) -> bool {
        self.blocks().is_none() && self.data.dtype() == dtype
    }

    /// `(b, h, t, d)`
    ///
    /// # Errors
    /// A tensor that has not four dimensions.
    pub fn dims4(&self) -> Result<(usize, usize, usize, usize)> {
        let (b, h, t, row) = self.data.dims4()?;
        let width = self.blocks().map_or(row, |kind| row / kind.row_bytes(BLOCK) * BLOCK);
        Ok((b, h, t, width))
    }

    /// Where they are.
    pub fn device(&self) -> &Device {
        self.data.device()
    }

    /// Some of the tokens.
    pub(crate) fn tokens(&self, range: Range<usize>) -> Result<Self> {
        Ok(Self { data: self.data.narrow(2, range.start, range.len())?, ..*self })
    }

    /// These tokens, then those of `next`.
    pub(crate) fn followed_by(&self, next: &Self) -> Result<Self> {
        Ok(Self { data: Tensor::cat(&[&self.data, &next.data], 2)?, ..*self })
    }

    /// The first `width` numbers of every token: as they are stored, unless that would cut what was turned at once.
    pub(crate) fn first_numbers(&self, width: usize) -> Result<Self> {
        let row = match self.blocks() {
            Some(_) if !width.is_multiple_of(self.turn) => {
                return Ok(Self::from(&self.to_dtype(DType::F32)?.narrow(3, 0, width)?));
            }
            Some(kind) => kind.row_bytes(width),
            None => width,
        };
        Ok(Self { data: self.data.narrow(3, 0, row)?, ..*self })
    }

    /// The numbers as a tensor: all of them at once.
    ///
    /// # Errors
    /// A dtype that there is no conversion to.
    pub fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        match self.blocks() {
            Some(kind) => quantize::numbers(&self.data, kind, self.turn)?.to_dtype(dtype),
            None => self.data.to_dtype(dtype),
        }
    }
}

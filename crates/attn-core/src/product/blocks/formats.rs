//! What the blocks of GGUF files hold, after the definitions in ggml's `ggml-quants.c`.
//!
//! A block is unpacked into its numbers, one byte each in order, and the scales and offsets of its groups: weight `i`
//! is `scale * number + offset` of its group. All kernels multiply the unpacked numbers, so a format defines nothing
//! else.

use crate::quantized::{FP4, IQ4, iq4_xs_scales, mxfp4_scale};
use crate::simd::Simd;

/// Weights that are unpacked at a time.
pub(super) const CHUNK: usize = 256;
/// The numbers are stored and multiplied in lines of so many.
pub(super) const LINE: usize = 32;

/// The numbers of up to [`CHUNK`] weights of one output: signed bytes or, where all are at least 0, bytes that are the same
/// either way.
#[repr(align(64))]
pub(super) struct Numbers(pub(super) [[u8; LINE]; CHUNK / LINE]);

impl Numbers {
    pub(super) fn new() -> Self {
        Self([[0; LINE]; CHUNK / LINE])
    }
}

/// What goes with the numbers.
#[repr(align(64))]
pub(super) struct Groups {
    /// Of each group of weights.
    pub(super) scales: [f32; CHUNK / 16],
    /// Of each group, where the format has offsets.
    pub(super) offsets: [f32; CHUNK / 16],
}

impl Groups {
    pub(super) fn new() -> Self {
        Self { scales: [0.0; CHUNK / 16], offsets: [0.0; CHUNK / 16] }
    }
}

/// A block of weights as it is stored.
///
/// # Safety
/// The type consists of bytes, so that any bytes are one, wherever they are.
pub(super) unsafe trait Block: Sized + 'static {
    /// Weights of a block: 32 or 256.
    const WEIGHTS: usize;
    /// Weights that share a scale: 16 or 32.
    const GROUP: usize = LINE;
    /// Whether numbers below 0 occur.
    const SIGNED: bool;
    /// Whether groups have offsets.
    const OFFSETS: bool = false;

    /// Whether a block begins with its scale as f16, followed by its offset if it has one. [`widen_groups`] then unpacks these,
    /// for all blocks of a chunk together, and `unpack` only the numbers.
    const SCALE_FIRST: bool = false;

    /// Unpacks the block; its weights are those from `line` on.
    ///
    /// # Safety
    /// The machine has the instruction set of `S`.
    unsafe fn unpack<S: Simd>(&self, to: &mut Numbers, groups: &mut Groups, line: usize);
}

/// The blocks that fill `data`.
pub(super) fn blocks_of<B: Block>(data: &[u8]) -> &[B] {
    // SAFETY: any bytes are blocks by the trait's contract, bytes have no alignment, and as many as are whole are inside.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), data.len() / size_of::<B>()) }
}

/// Unpacks the blocks of one chunk, and prefetches those `ahead` bytes further on. Groups that are missing to a whole
/// chunk get the scale and the offset 0.
///
/// # Safety
/// As [`Block::unpack`].
#[inline(always)]
pub(super) unsafe fn unpack<S: Simd, B: Block>(blocks: &[B], ahead: usize, to: &mut Numbers, groups: &mut Groups) {
    if blocks.len() * B::WEIGHTS < CHUNK {
        *groups = Groups::new();
    }
    if B::SCALE_FIRST {
        // SAFETY: guaranteed by the caller.
        unsafe { widen_groups::<S, B>(blocks, groups) };
    }
    for (i, block) in blocks.iter().enumerate() {
        for line in (0..size_of::<B>()).step_by(64) {
            // SAFETY: any address may be prefetched; the caller guarantees the instruction set.
            unsafe { S::prefetch_early(std::ptr::from_ref(block).cast::<u8>().wrapping_add(ahead + line)) };
        }
        // SAFETY: guaranteed by the caller.
        unsafe { block.unpack::<S>(to, groups, i * B::WEIGHTS / LINE) };
    }
}

/// An f16 as stored.
type Half = [u8; 2];

/// # Safety
/// As [`Block::unpack`].
#[inline(always)]
unsafe fn wide<S: Simd>(x: &Half) -> f32 {
    // SAFETY: two bytes are there; the caller guarantees the instruction set.
    unsafe { S::widen_f16(x.as_ptr()) }
}

/// Blocks of 32 weights in a chunk.
const SMALL: usize = CHUNK / 32;

/// Widens the scale that each block of a chunk begins with and, if it has one, the offset that follows it.
///
/// # Safety
/// As [`Block::unpack`].
#[inline(always)]
unsafe fn widen_groups<S: Simd, B: Block>(blocks: &[B], to: &mut Groups) {
    let (from, size) = (blocks.as_ptr().cast::<u8>(), size_of::<B>());
    let (scales, offsets) =
        (&mut to.scales.as_chunks_mut::<SMALL>().0[0], &mut to.offsets.as_chunks_mut::<SMALL>().0[0]);
    // SAFETY: a block begins with one f16, or with two; the caller guarantees the instruction set.
    unsafe {
        match (blocks.len() == SMALL, B::OFFSETS) {
            (true, false) => S::widen_f16_each(from, size, scales),
            (true, true) => S::widen_f16_pairs(from, size, scales, offsets),
            (false, _) => {
                for i in 0..blocks.len() {
                    scales[i] = S::widen_f16(from.add(i * size));
                    if B::OFFSETS {
                        offsets[i] = S::widen_f16(from.add(i * size + 2));
                    }
                }
            }
        }
    }
}

/// Defines a block of 32 weights of four or five bits: its fields, the fifth bits, and what is subtracted. Those
/// of which nothing is subtracted have an offset after the scale.
macro_rules! block_of_32 {
    ($(#[$doc:meta])* $name:ident, [$($field:ident: $type:ty),*], |$b:ident| $fifth:expr, $bias:expr) => {
        $(#[$doc])*
        #[repr(C)]
        pub(super) struct $name {
            scale: Half,
            $($field: $type,)*
            codes: [u8; 16],
        }

        // SAFETY: bytes and arrays of them.
        unsafe impl Block for $name {
            const WEIGHTS: usize = 32;
            const SIGNED: bool = $bias > 0;
            const OFFSETS: bool = $bias == 0;
            const SCALE_FIRST: bool = true;

            #[inline(always)]
            unsafe fn unpack<S: Simd>(&self, to: &mut Numbers, _: &mut Groups, line: usize) {
                let ($b, codes) = (self, self.codes.as_ptr());
                // SAFETY: 16 bytes of codes are there, a line has 32; the caller guarantees the instruction set.
                unsafe { S::nibbles(codes, $fifth, $bias, to.0[line].as_mut_ptr()) };
            }
        }
    };
}

block_of_32!(
    /// Numbers of four bits, minus 8.
    Q4_0, [], |_b| 0, 8
);
block_of_32!(
    /// Numbers of four bits, and an offset.
    Q4_1, [offset: Half], |_b| 0, 0
);
block_of_32!(
    /// Numbers of five bits, the fifth apart, minus 16.
    Q5_0, [high: [u8; 4]], |b| u32::from_le_bytes(b.high), 16
);
block_of_32!(
    /// Numbers of five bits, the fifth apart, and an offset.
    Q5_1, [offset: Half, high: [u8; 4]], |b| u32::from_le_bytes(b.high), 0
);

/// Writes a line: what the table has for the lower four bits of each of 16 bytes, then for the upper ones.
///
/// # Safety
/// As [`Block::unpack`].
#[inline(always)]
unsafe fn from_table<S: Simd>(codes: &[u8; 16], table: &[i8; 16], line: &mut [u8; LINE]) {
    // SAFETY: 16 bytes are read, 32 written; the caller guarantees the instruction set.
    unsafe {
        S::nibbles(codes.as_ptr(), 0, 0, line.as_mut_ptr());
        S::store_bytes(line.as_mut_ptr(), S::look_up(table, S::load_bytes(line.as_ptr())));
    }
}

/// Four bits that stand for the numbers of a table.
#[repr(C)]
pub(super) struct Iq4Nl {
    scale: Half,
    codes: [u8; 16],
}

// SAFETY: bytes and arrays of them.
unsafe impl Block for Iq4Nl {
    const WEIGHTS: usize = 32;
    const SIGNED: bool = true;
    const SCALE_FIRST: bool = true;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(&self, to: &mut Numbers, _: &mut Groups, line: usize) {
        // SAFETY: the block is there; the caller guarantees the instruction set.
        unsafe { from_table::<S>(&self.codes, &IQ4, &mut to.0[line]) };
    }
}

/// The same; every 32 with a scale of six bits, minus 32.
#[repr(C)]
pub(super) struct Iq4Xs {
    scale: Half,
    high: [u8; 2],
    low: [u8; 4],
    codes: [[u8; 16]; 8],
}

// SAFETY: bytes and arrays of them.
unsafe impl Block for Iq4Xs {
    const WEIGHTS: usize = 256;
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(&self, to: &mut Numbers, groups: &mut Groups, _: usize) {
        // SAFETY: the block is there; the caller guarantees the instruction set.
        unsafe {
            for (line, codes) in to.0.iter_mut().zip(&self.codes) {
                from_table::<S>(codes, &IQ4, line);
            }
            let scale = wide::<S>(&self.scale);
            for (to, x) in groups.scales.iter_mut().zip(iq4_xs_scales(self.high, self.low)) {
                *to = scale * f32::from(x);
            }
        }
    }
}

/// Floats of four bits, twice as large, under half a power of two.
#[repr(C)]
pub(super) struct Mxfp4 {
    exponent: u8,
    codes: [u8; 16],
}

// SAFETY: bytes and arrays of them.
unsafe impl Block for Mxfp4 {
    const WEIGHTS: usize = 32;
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(&self, to: &mut Numbers, groups: &mut Groups, line: usize) {
        // SAFETY: the block is there; the caller guarantees the instruction set.
        unsafe { from_table::<S>(&self.codes, &FP4, &mut to.0[line]) };
        groups.scales[line] = mxfp4_scale(self.exponent);
    }
}

/// Signed bytes.
#[repr(C)]
pub(super) struct Q8_0 {
    scale: Half,
    numbers: [u8; 32],
}

// SAFETY: bytes and arrays of them.
unsafe impl Block for Q8_0 {
    const WEIGHTS: usize = 32;
    const SIGNED: bool = true;
    const SCALE_FIRST: bool = true;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(&self, to: &mut Numbers, _: &mut Groups, line: usize) {
        // SAFETY: 32 bytes are read and written; the caller guarantees the instruction set.
        unsafe { S::store_bytes(to.0[line].as_mut_ptr(), S::load_bytes(self.numbers.as_ptr())) };
    }
}

/// Numbers of two bits; every 16 with a scale and an offset of four bits each.
#[repr(C)]
pub(super) struct Q2K {
    groups: [u8; 16],
    codes: [[u8; 32]; 2],
    scale: Half,
    offset: Half,
}

// SAFETY: bytes and arrays of them.
unsafe impl Block for Q2K {
    const WEIGHTS: usize = 256;
    const GROUP: usize = 16;
    const SIGNED: bool = false;
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(&self, to: &mut Numbers, groups: &mut Groups, _: usize) {
        // SAFETY: 32 bytes of codes are there for four lines; the caller guarantees the instruction set.
        unsafe {
            for (lines, codes) in to.0.as_chunks_mut::<4>().0.iter_mut().zip(&self.codes) {
                let codes = S::load_bytes(codes.as_ptr());
                for (i, line) in lines.iter_mut().enumerate() {
                    S::store_bytes(line.as_mut_ptr(), S::shift_bytes(codes, -2 * i as i32, 3));
                }
            }
            let (scale, offset) = (wide::<S>(&self.scale), wide::<S>(&self.offset));
            for (to, group) in groups.scales.iter_mut().zip(&self.groups) {
                *to = scale * f32::from(group & 15);
            }
            for (to, group) in groups.offsets.iter_mut().zip(&self.groups) {
                *to = -offset * f32::from(group >> 4);
            }
        }
    }
}

/// Numbers of three bits, the third apart, minus 4; every 16 with a scale of six bits, minus 32.
#[repr(C)]
pub(super) struct Q3K {
    high: [u8; 32],
    codes: [[u8; 32]; 2],
    groups: [u8; 12],
    scale: Half,
}

impl Q3K {
    /// The scales' numbers: four bits of each, then the upper two of each.
    #[inline(always)]
    fn group_scales(&self) -> [u8; 16] {
        let [a, b, c] = words(&self.groups);
        let upper = |by: u32| (c >> by & 0x0303_0303) << 4;
        let scales = [
            a & 0x0f0f_0f0f | upper(0),
            b & 0x0f0f_0f0f | upper(2),
            a >> 4 & 0x0f0f_0f0f | upper(4),
            b >> 4 & 0x0f0f_0f0f | upper(6),
        ];
        let mut bytes = [0; 16];
        for (to, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(scales) {
            *to = word.to_le_bytes();
        }
        bytes
    }
}

// SAFETY: bytes and arrays of them.
unsafe impl Block for Q3K {
    const WEIGHTS: usize = 256;
    const GROUP: usize = 16;
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(&self, to: &mut Numbers, groups: &mut Groups, _: usize) {
        // SAFETY: 32 bytes of codes and of third bits are there; the caller guarantees the instruction set.
        unsafe {
            let high = S::load_bytes(self.high.as_ptr());
            for (i, line) in to.0.iter_mut().enumerate() {
                let low = S::shift_bytes(S::load_bytes(self.codes[i / 4].as_ptr()), -2 * (i as i32 % 4), 3);
                let numbers = S::or_bytes(low, S::shift_bytes(high, 2 - i as i32, 4));
                S::store_bytes(line.as_mut_ptr(), S::lower_bytes(numbers, 4));
            }
            let scale = wide::<S>(&self.scale);
            for (to, x) in groups.scales.iter_mut().zip(self.group_scales()) {
                *to = scale * (f32::from(x) - 32.0);
            }
        }
    }
}

/// Three words of four bytes.
#[inline(always)]
fn words(bytes: &[u8; 12]) -> [u32; 3] {
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|i| u32::from_le_bytes(words[i]))
}

/// The scales and offsets, six bits each, of the eight groups of `Q4_K` and `Q5_K`: of the first four in the lower bits
/// of eight bytes, of the others' lower four bits in four more and the upper two above the first.
#[inline(always)]
fn six_bits(groups: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let [a, b, c] = words(groups);
    let join = |low: u32, high: u32| (u64::from(high) << 32 | u64::from(low)).to_le_bytes();
    (
        join(a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | a >> 2 & 0x3030_3030),
        join(b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | b >> 2 & 0x3030_3030),
    )
}

/// Writes the scales and offsets of the eight groups of `Q4_K` and `Q5_K`.
///
/// # Safety
/// As [`Block::unpack`].
#[inline(always)]
unsafe fn groups_of_32<S: Simd>((scale, offset): (&Half, &Half), packed: &[u8; 12], to: &mut Groups) {
    // SAFETY: guaranteed by the caller.
    let (scale, offset) = unsafe { (wide::<S>(scale), wide::<S>(offset)) };
    let (scales, offsets) = six_bits(packed);
    for (to, x) in to.scales.iter_mut().zip(scales) {
        *to = scale * f32::from(x);
    }
    for (to, x) in to.offsets.iter_mut().zip(offsets) {
        *to = -offset * f32::from(x);
    }
}

/// Numbers of four bits; every 32 with a scale and an offset of six bits each.
#[repr(C)]
pub(super) struct Q4K {
    scale: Half,
    offset: Half,
    groups: [u8; 12],
    codes: [[u8; 32]; 4],
}

// SAFETY: bytes and arrays of them.
unsafe impl Block for Q4K {
    const WEIGHTS: usize = 256;
    const SIGNED: bool = false;
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(&self, to: &mut Numbers, groups: &mut Groups, _: usize) {
        // SAFETY: 32 bytes of codes are there for two lines; the caller guarantees the instruction set.
        unsafe {
            for (lines, codes) in to.0.as_chunks_mut::<2>().0.iter_mut().zip(&self.codes) {
                let codes = S::load_bytes(codes.as_ptr());
                S::store_bytes(lines[0].as_mut_ptr(), S::shift_bytes(codes, 0, 15));
                S::store_bytes(lines[1].as_mut_ptr(), S::shift_bytes(codes, -4, 15));
            }
            groups_of_32::<S>((&self.scale, &self.offset), &self.groups, groups);
        }
    }
}

/// As `Q4_K`, with a fifth bit apart.
#[repr(C)]
pub(super) struct Q5K {
    scale: Half,
    offset: Half,
    groups: [u8; 12],
    high: [u8; 32],
    codes: [[u8; 32]; 4],
}

// SAFETY: bytes and arrays of them.
unsafe impl Block for Q5K {
    const WEIGHTS: usize = 256;
    const SIGNED: bool = false;
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(&self, to: &mut Numbers, groups: &mut Groups, _: usize) {
        // SAFETY: 32 bytes of codes and of fifth bits are there; the caller guarantees the instruction set.
        unsafe {
            let high = S::load_bytes(self.high.as_ptr());
            for (i, line) in to.0.iter_mut().enumerate() {
                let low = S::shift_bytes(S::load_bytes(self.codes[i / 2].as_ptr()), -4 * (i as i32 % 2), 15);
                S::store_bytes(line.as_mut_ptr(), S::or_bytes(low, S::shift_bytes(high, 4 - i as i32, 16)));
            }
            groups_of_32::<S>((&self.scale, &self.offset), &self.groups, groups);
        }
    }
}

/// Numbers of six bits, the upper two apart, minus 32; every 16 with a scale of a signed byte.
#[repr(C)]
pub(super) struct Q6K {
    codes: [[[u8; 32]; 2]; 2],
    high: [[u8; 32]; 2],
    groups: [u8; 16],
    scale: Half,
}

// SAFETY: bytes and arrays of them.
unsafe impl Block for Q6K {
    const WEIGHTS: usize = 256;
    const GROUP: usize = 16;
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(&self, to: &mut Numbers, groups: &mut Groups, _: usize) {
        // SAFETY: 32 bytes of codes and of upper bits are there; the caller guarantees the instruction set.
        unsafe {
            for (lines, (codes, high)) in to.0.as_chunks_mut::<4>().0.iter_mut().zip(self.codes.iter().zip(&self.high))
            {
                let high = S::load_bytes(high.as_ptr());
                for (i, line) in lines.iter_mut().enumerate() {
                    let low = S::shift_bytes(S::load_bytes(codes[i % 2].as_ptr()), -4 * (i as i32 / 2), 15);
                    let numbers = S::or_bytes(low, S::shift_bytes(high, 4 - 2 * i as i32, 48));
                    S::store_bytes(line.as_mut_ptr(), S::lower_bytes(numbers, 32));
                }
            }
            let scale = wide::<S>(&self.scale);
            for (to, x) in groups.scales.iter_mut().zip(self.groups) {
                *to = scale * f32::from(x as i8);
            }
        }
    }
}

//! Every path's vector operations against plain arithmetic, lane by lane.

use super::KernelPath;
use super::{Job, Simd, TILE_STRIDE, dispatch};
use half::{bf16, f16};

/// Runs a check on every path that this machine has.
fn on_every_path<J: Job>(check: impl Fn(KernelPath) -> J) {
    for path in KernelPath::available() {
        dispatch(path, check(path));
    }
}

/// The lanes of a vector.
unsafe fn lanes<S: Simd>(v: S::V) -> Vec<f32> {
    let mut lanes = vec![0f32; S::LANES];
    // SAFETY: there is room for LANES numbers; the caller guarantees the instruction set.
    unsafe { S::store(lanes.as_mut_ptr(), v) };
    lanes
}

/// Equal, or both NaN.
fn same(a: f32, b: f32) -> bool {
    a == b || a.is_nan() && b.is_nan()
}

/// What a path's operation gives for two numbers in every lane.
unsafe fn both<S: Simd>(f: unsafe fn(S::V, S::V) -> S::V, a: f32, b: f32) -> f32 {
    // SAFETY: the caller guarantees the instruction set.
    let all = unsafe { lanes::<S>(f(S::splat(a), S::splat(b))) };
    assert!(all.iter().all(|x| x.to_bits() == all[0].to_bits()), "{a} and {b}: {all:?}");
    all[0]
}

struct Arithmetic(KernelPath);

impl Job for Arithmetic {
    unsafe fn run<S: Simd>(self) {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let numbers = [0.0, 1.0, -1.5, 3.25, 1e-30, -7e20, 127.0, -126.5, inf, -inf, nan];
        for (a, b) in numbers.iter().flat_map(|a| numbers.map(|b| (*a, b))) {
            // SAFETY: the machine has the instruction set by this function's contract.
            let results = unsafe {
                [
                    (both::<S>(S::add, a, b), a + b),
                    (both::<S>(S::sub, a, b), a - b),
                    (both::<S>(S::mul, a, b), a * b),
                    (both::<S>(S::div, a, b), a / b),
                    (both::<S>(S::max, a, b), if a > b { a } else { b }),
                    (both::<S>(S::min, a, b), if a < b { a } else { b }),
                ]
            };
            for (i, (ours, theirs)) in results.into_iter().enumerate() {
                assert!(same(ours, theirs), "{}: operation {i} of {a} and {b} is {ours}, not {theirs}", self.0);
            }
        }
        let numbers: [f32; 16] = std::array::from_fn(|i| ((i * 7) % 16) as f32 - 9.0);
        let used = &numbers[..S::LANES];
        // SAFETY: as above, and there are 16 >= LANES numbers.
        unsafe {
            let v = S::load(numbers.as_ptr());
            assert_eq!(lanes::<S>(v), used, "{}", self.0);
            assert_eq!(lanes::<S>(S::from_fn(|i| numbers[i])), used, "{}", self.0);
            assert_eq!(S::sum(v), used.iter().sum::<f32>(), "{}", self.0);
            let four = [v, S::mul(v, S::splat(2.0)), S::splat(3.0), S::sub(v, S::splat(1.0))];
            assert_eq!(S::sums(four), four.map(|v| S::sum(v)), "{}", self.0);
            assert_eq!(S::largest(v), used.iter().copied().fold(f32::NEG_INFINITY, f32::max), "{}", self.0);
            for x in [-10.0, 0.0, 6.0, inf, -inf, nan] {
                assert_eq!(S::any_above(v, S::splat(x)), used.iter().any(|y| *y > x), "{}: above {x}", self.0);
                assert_eq!(S::any_above(S::splat(x), v), used.iter().any(|y| x > *y), "{}: {x} above", self.0);
            }
            let fused = lanes::<S>(S::fma(v, S::splat(3.0), S::splat(0.5)));
            assert!(fused.iter().zip(used).all(|(y, x)| *y == x * 3.0 + 0.5), "{}", self.0);
            for n in 0..S::LANES {
                let first: Vec<_> = (0..S::LANES).map(|i| if i < n { numbers[i] } else { 0.0 }).collect();
                assert_eq!(lanes::<S>(S::load_first(numbers.as_ptr(), n)), first, "{}", self.0);
            }
        }
    }
}

#[test]
fn arithmetic_is_that_of_f32() {
    on_every_path(Arithmetic);
}

struct Widening(KernelPath);

impl Job for Widening {
    unsafe fn run<S: Simd>(self) {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        for chunk in bits.chunks_exact(S::LANES) {
            // SAFETY: each load is of the LANES numbers of the chunk; the instruction set is there by this function's
            // contract.
            let (half, brain) = unsafe {
                (lanes::<S>(S::load_f16(chunk.as_ptr().cast())), lanes::<S>(S::load_bf16(chunk.as_ptr().cast())))
            };
            for ((bits, half), brain) in chunk.iter().zip(half).zip(brain) {
                assert!(same(half, f16::from_bits(*bits).to_f32()), "{}: f16 {bits:x} is not {half}", self.0);
                assert!(same(brain, bf16::from_bits(*bits).to_f32()), "{}: bf16 {bits:x} is not {brain}", self.0);
            }
        }
        let bytes: Vec<u8> = (0..=u8::MAX).collect();
        for at in 0..bytes.len() - S::LANES {
            let (from, chunk) = (bytes[at..].as_ptr(), &bytes[at..at + S::LANES]);
            let expect = |f: fn(u8) -> f32| chunk.iter().map(|x| f(*x)).collect::<Vec<_>>();
            // SAFETY: LANES >= 2 bytes are readable; the instruction set as above.
            unsafe {
                assert_eq!(lanes::<S>(S::load_i8(from)), expect(|x| f32::from(x as i8)), "{}", self.0);
                assert_eq!(lanes::<S>(S::load_low_nibbles(from)), expect(|x| f32::from(x & 15)), "{}", self.0);
                assert_eq!(lanes::<S>(S::load_high_nibbles(from)), expect(|x| f32::from(x >> 4)), "{}", self.0);
                let scale = f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
                assert!(same(S::widen_f16(from), scale), "{}", self.0);
                if bytes.len() - at >= 8 {
                    assert!(same(S::widen_first_f16(from), scale), "{}", self.0);
                }
            }
        }
        for size in [4, 18, 20, 34] {
            let bytes: Vec<u8> = (0..8 * size).map(|i| (i * 37 + 11) as u8).collect();
            let half = |item: usize, at: usize| {
                let at = item * size + at;
                f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
            };
            let (mut each, mut first, mut second) = ([0.0; 8], [0.0; 8], [0.0; 8]);
            // SAFETY: there are eight items of `size` bytes; the instruction set as above.
            unsafe {
                S::widen_f16_each(bytes.as_ptr(), size, &mut each);
                S::widen_f16_pairs(bytes.as_ptr(), size, &mut first, &mut second);
            }
            for i in 0..8 {
                assert!(same(each[i], half(i, 0)) && same(first[i], half(i, 0)), "{}: item {i} of {size}", self.0);
                assert!(same(second[i], half(i, 2)), "{}: item {i} of {size}", self.0);
            }
        }
    }
}

#[test]
fn narrow_numbers_are_widened_exactly() {
    on_every_path(Widening);
}

struct Packed(KernelPath);

impl Job for Packed {
    unsafe fn run<S: Simd>(self) {
        let numbers: Vec<bf16> = (0..2 * S::LANES).map(|i| bf16::from_f32(i as f32 - 3.5)).collect();
        // SAFETY: 2 LANES numbers are there; the instruction set is by this function's contract.
        let (even, odd) = unsafe { S::load_bf16_in_turn(numbers.as_ptr()) };
        // SAFETY: as above.
        let both = unsafe { [lanes::<S>(even), lanes::<S>(odd)] };
        for (i, x) in numbers.iter().enumerate() {
            assert_eq!(both[i % 2][i / 2], x.to_f32(), "{}: number {i}", self.0);
        }
        let all: [u8; 32] = std::array::from_fn(|i| (i * 41 + 3) as u8);
        for (left, mask) in [(0, 255), (0, 15), (-4, 15), (-3, 1), (2, 16), (4, 48), (-7, 1)] {
            let mut got = [0u8; 32];
            // SAFETY: 32 bytes are read and written.
            unsafe {
                let moved = S::shift_bytes(S::load_bytes(all.as_ptr()), left, mask);
                let low = S::shift_bytes(S::load_bytes(all.as_ptr()), 0, 64);
                S::store_bytes(got.as_mut_ptr(), S::lower_bytes(S::or_bytes(moved, low), 32));
            }
            for (got, x) in got.into_iter().zip(all) {
                let moved = if left < 0 { x >> -left } else { x << left };
                assert_eq!(got, (moved & mask | x & 64).wrapping_sub(32), "{}: {x} by {left}, {mask}", self.0);
            }
        }
        let (table, mut got): ([i8; 16], _) = (std::array::from_fn(|i| (i as i8 - 8) * 15 - 3), [0u8; 32]);
        // SAFETY: 32 bytes are read and written.
        unsafe {
            let indices = S::shift_bytes(S::load_bytes(all.as_ptr()), 0, 15);
            S::store_bytes(got.as_mut_ptr(), S::look_up(&table, indices));
        }
        for (got, x) in got.into_iter().zip(all) {
            assert_eq!(got as i8, table[usize::from(x & 15)], "{}: number {x} of a table", self.0);
        }
        let bytes: [u8; 16] = std::array::from_fn(|i| (i * 37 + 11) as u8);
        for (fifth, bias) in [(0, 0), (0, 8), (0x8123_4567, 0), (0x8123_4567, 16), (u32::MAX, 16)] {
            let mut got = [0u8; 32];
            // SAFETY: 16 bytes are read and 32 written.
            unsafe { S::nibbles(bytes.as_ptr(), fifth, bias, got.as_mut_ptr()) };
            for (i, got) in got.into_iter().enumerate() {
                let nibble = bytes[i % 16] >> (i / 16 * 4) & 15;
                let want = (nibble + 16 * (fifth >> i & 1) as u8).wrapping_sub(bias);
                assert_eq!(got, want, "{}: number {i} with {fifth:x} less {bias}", self.0);
            }
        }
    }
}

#[test]
fn packed_numbers_come_apart_in_order() {
    on_every_path(Packed);
}

struct Exponential(KernelPath);

impl Job for Exponential {
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the machine has the instruction set by this function's contract.
        let exp2 = |x: f32| unsafe { lanes::<S>(S::exp2(S::splat(x)))[0] };
        for i in -126 * 64..=126 * 64 {
            let x = i as f32 / 64.0 + 1e-3;
            let (ours, theirs) = (f64::from(exp2(x)), f64::from(x).exp2());
            assert!((ours / theirs - 1.0).abs() < 4e-7, "{}: 2^{x} is {theirs:e}, not {ours:e}", self.0);
        }
        // Smaller than the smallest normal number: that, or nothing.
        for x in [-126.6f32, -127.0, -140.0] {
            assert!((0.0..=1.001 * x.exp2()).contains(&exp2(x)), "{}: 2^{x}", self.0);
        }
        for x in [-1000.0, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp2(x), 0.0, "{}: 2^{x}", self.0);
        }
        assert!(exp2(f32::NAN).is_nan(), "{}", self.0);
        // SAFETY: as above.
        let cut = |x: f32| unsafe { lanes::<S>(S::exp2_cut(S::splat(x)))[0] };
        for x in [-100.0, -100.5, -126.5, -140.0, -1e9, f32::NEG_INFINITY] {
            assert_eq!(cut(x), 0.0, "{}: 2^{x}", self.0);
        }
        for x in [-80.25f32, -60.0, -1.5, 0.0, 0.3, 8.0] {
            assert!((cut(x) / exp2(x) - 1.0).abs() < 1e-3, "{}: 2^{x}", self.0);
        }
        assert!(cut(f32::NAN).is_nan(), "{}", self.0);
    }
}

#[test]
fn powers_of_two_are_close() {
    on_every_path(Exponential);
}

struct Products(KernelPath);

/// Small whole numbers, whose products and sums are exact in any order.
fn whole_numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 + seed * 11) % 13) as f32 - 6.0).collect()
}

impl Job for Products {
    unsafe fn run<S: Simd>(self) {
        let (path, lanes) = (self.0, S::LANES);
        let (src, mut dst) = (whole_numbers(lanes * 19, 1), vec![0f32; lanes * 21]);
        // SAFETY: LANES rows of 19 and of 21 numbers, which is more than LANES.
        unsafe { S::transpose(src.as_ptr(), 19, dst.as_mut_ptr(), 21) };
        for (i, j) in (0..lanes).flat_map(|i| (0..21).map(move |j| (i, j))) {
            let x = if j < lanes { src[j * 19 + i] } else { 0.0 };
            assert_eq!(dst[i * 21 + j], x, "{path}: transposed at {i}, {j}");
        }
        for (depth, cols) in
            [0, 1, 5, 32].into_iter().flat_map(|depth| [(depth, S::NR), (depth, S::NR / 2), (depth, 1)])
        {
            let (a, b) = (whole_numbers(depth * S::MR, 2), whole_numbers(depth * S::NR, 3));
            let mut c = vec![1f32; S::MR * TILE_STRIDE];
            // SAFETY: the sizes are those that `scores` asks for.
            unsafe { S::scores(cols, depth, a.as_ptr(), b.as_ptr(), c.as_mut_ptr()) };
            for (i, j) in (0..S::MR).flat_map(|i| (0..TILE_STRIDE).map(move |j| (i, j))) {
                let sum: f32 = (0..depth).map(|k| a[k * S::MR + i] * b[k * S::NR + j.min(S::NR - 1)]).sum();
                let score = c[i * TILE_STRIDE + j];
                let right = if j < cols { score == sum } else { score == 1.0 || j < S::NR && score == sum };
                assert!(right, "{path}: score {i}, {j} of {cols} is {score}, not {sum}");
            }
        }
        for (vectors, depth) in (1..12).flat_map(|vectors| [(vectors, 1), (vectors, 7), (vectors, 128)]) {
            let cols = vectors * lanes;
            let (b, before) = (whole_numbers(depth * cols, 5), whole_numbers(S::MR.max(4) * cols, 6));
            let a = whole_numbers(S::MR.max(4).max(depth) * TILE_STRIDE, 4);
            let check = |rows: usize, c: &[f32], a: &dyn Fn(usize, usize) -> f32| {
                for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
                    let sum: f32 = (0..depth).map(|k| a(i, k) * b[k * cols + j]).sum();
                    assert_eq!(c[i * cols + j], before[i * cols + j] + sum, "{path}: {rows} x {cols}, at {i}, {j}");
                }
            };
            for rows in [1, 2, 3, 4, S::MR] {
                let mut c = before.clone();
                // SAFETY: MR or 4 rows of `cols`, a multiple of LANES; `a` has as many rows of TILE_STRIDE >= depth.
                unsafe {
                    S::accumulate((rows, cols), depth, a.as_ptr(), (b.as_ptr(), cols), (c.as_mut_ptr(), cols));
                }
                check(rows, &c, &|i, k| a[i * TILE_STRIDE + k]);
            }
            let mut c = before.clone();
            // SAFETY: `a` has `depth` rows of TILE_STRIDE >= MR numbers; the rest as above.
            unsafe {
                S::accumulate_transposed(cols, depth, a.as_ptr(), (b.as_ptr(), cols), (c.as_mut_ptr(), cols));
            }
            check(S::MR, &c, &|i, k| a[k * TILE_STRIDE + i]);
        }
    }
}

#[test]
fn products_of_whole_numbers_are_exact() {
    on_every_path(Products);
}

//! f32 products of matrices in any order of rows and columns, by the `gemm` crate that Candle's own products use.
//!
//! Called directly it writes the result once, into memory that was not zeroed before, and takes the number of threads from
//! the pool it runs in. Candle's call reads the number from the environment, or from /proc/cpuinfo, every time.

use gemm::Parallelism;

/// A matrix over a slice: element `(i, j)` is at `i * strides.0 + j * strides.1`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    data: &'a [f32],
    size: (usize, usize),
    strides: (usize, usize),
}

impl<'a> Matrix<'a> {
    /// A matrix stored by rows, without gaps.
    pub(super) fn new(data: &'a [f32], (rows, columns): (usize, usize)) -> Self {
        assert_eq!(Some(data.len()), rows.checked_mul(columns));
        Self { data, size: (rows, columns), strides: (columns, 1) }
    }

    /// The same numbers with rows and columns exchanged.
    pub(super) fn t(self) -> Self {
        let ((m, n), (r, c)) = (self.size, self.strides);
        Self { size: (n, m), strides: (c, r), ..self }
    }
}

/// `a b`, stored by rows.
pub(super) fn product(a: Matrix, b: Matrix) -> Vec<f32> {
    let ((m, k), (depth, n)) = (a.size, b.size);
    assert_eq!(k, depth);
    let len = m.checked_mul(n).expect("a result that memory can hold");
    let parallelism = match rayon::current_num_threads() {
        1 => Parallelism::None,
        threads => Parallelism::Rayon(threads),
    };
    let mut out = Vec::with_capacity(len);
    let stride = |s: usize| s as isize;
    // SAFETY: `Matrix` says that every element of `a` and `b` lies in its slice, and `out` has room for `m * n` numbers,
    // all of which are written and none read (`read_dst` is false).
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride(n),
            false,
            a.data.as_ptr(),
            stride(a.strides.1),
            stride(a.strides.0),
            b.data.as_ptr(),
            stride(b.strides.1),
            stride(b.strides.0),
            0f32,
            1f32,
            false,
            false,
            false,
            parallelism,
        );
        out.set_len(len);
    }
    out
}

//! Working memory that a thread keeps between calls, so that a call doesn't start with page faults.

use std::cell::RefCell;

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Line(#[allow(dead_code)] [f32; 16]);

thread_local! {
    static LINES: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// A thread's working memory, taken out for one unit of work and put back when dropped: other work that runs on the
/// thread meanwhile finds an empty buffer of its own.
pub(crate) struct Scratch(Vec<Line>);

impl Scratch {
    pub(crate) fn take() -> Self {
        Self(LINES.take())
    }

    /// One buffer of each size, aligned to cache lines. What they hold is unspecified.
    pub(crate) fn split<const N: usize>(&mut self, sizes: [usize; N]) -> [&mut [f32]; N] {
        let lines: usize = sizes.iter().map(|n| n.div_ceil(16)).sum();
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; 16]));
        }
        let flat = self.0.as_mut_ptr().cast::<f32>();
        let mut start = 0;
        sizes.map(|n| {
            let at = start;
            start += n.next_multiple_of(16);
            // SAFETY: at + n is within the `lines` lines of 16 numbers, buffers don't overlap, and all of them borrow
            // `self` mutably.
            unsafe { std::slice::from_raw_parts_mut(flat.add(at), n) }
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        LINES.set(std::mem::take(&mut self.0));
    }
}

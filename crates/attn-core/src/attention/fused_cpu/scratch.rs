//! Working memory that a thread keeps between calls, so that a call doesn't start with page faults.

use std::cell::RefCell;

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Line(#[allow(dead_code)] [f32; 16]);

thread_local! {
    static LINES: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with one buffer of each size, aligned to cache lines. What they hold is unspecified.
pub(super) fn with_scratch<const N: usize, R>(sizes: [usize; N], f: impl FnOnce([&mut [f32]; N]) -> R) -> R {
    let lines: usize = sizes.iter().map(|n| n.div_ceil(16)).sum();
    // Taken out for the call: if `f` runs other work on this thread, that finds an empty buffer of its own.
    let mut memory = LINES.take();
    if memory.len() < lines {
        memory.resize(lines, Line([0.0; 16]));
    }
    let flat = memory.as_mut_ptr().cast::<f32>();
    let mut start = 0;
    let buffers = sizes.map(|n| {
        let at = start;
        start += n.next_multiple_of(16);
        // SAFETY: at + n is within the `lines` lines of 16 numbers, buffers don't overlap, and `memory` outlives them.
        unsafe { std::slice::from_raw_parts_mut(flat.add(at), n) }
    });
    let result = f(buffers);
    LINES.set(memory);
    result
}

//! Results that several threads write in disjoint parts, which don't have to be whole chunks of memory.

use std::marker::PhantomData;

/// The numbers of a slice, handed out in parts.
pub(super) struct Target<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: `slice` is only called for disjoint parts.
unsafe impl<T: Send> Sync for Target<'_, T> {}

impl<'a, T> Target<'a, T> {
    /// The numbers of `ys`.
    pub(super) fn of(ys: &'a mut [T]) -> Self {
        Self { start: ys.as_mut_ptr(), len: ys.len(), slice: PhantomData }
    }

    /// `len` numbers from `start` on.
    ///
    /// # Safety
    /// Nobody else uses this part.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: inside the slice, as asserted; nobody else uses it by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

//! Results that several threads write in disjoint parts, which don't have to be whole chunks of memory.
//!
//! A result is written once. Filling it with zeros before would be one thread's work while the others wait, and as many
//! bytes as the product then writes.

/// Numbers that are handed out in parts.
pub(super) struct Target<T> {
    data: Vec<T>,
    start: *mut T,
    len: usize,
}

// SAFETY: the methods that threads share are only called for disjoint parts.
unsafe impl<T: Send> Sync for Target<T> {}

impl<T: Copy> Target<T> {
    /// Room for `len` numbers, of which none is there yet.
    pub(super) fn unwritten(len: usize) -> Self {
        let mut data = Vec::with_capacity(len);
        Self { start: data.as_mut_ptr(), data, len }
    }

    /// `len` zeros.
    pub(super) fn zeroed(len: usize) -> Self
    where
        T: Default,
    {
        let mut data = vec![T::default(); len];
        Self { start: data.as_mut_ptr(), data, len }
    }

    /// Writes the numbers from `start` on; how many is best known when this is compiled.
    ///
    /// # Safety
    /// Nobody else uses this part.
    #[inline(always)]
    pub(super) unsafe fn write(&self, start: usize, values: &[T]) {
        assert!(start <= self.len && values.len() <= self.len - start);
        // SAFETY: inside the memory, as asserted; nobody else uses it by the caller's word.
        unsafe { self.start.add(start).copy_from_nonoverlapping(values.as_ptr(), values.len()) }
    }

    /// `len` numbers from `start` on.
    ///
    /// # Safety
    /// They are there, and nobody else uses this part.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: inside the memory, as asserted; the rest by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// All numbers.
    ///
    /// # Safety
    /// They are all there.
    pub(super) unsafe fn finish(mut self) -> Vec<T> {
        // SAFETY: the room was made for `len`; that they are there is the caller's word.
        unsafe { self.data.set_len(self.len) };
        self.data
    }
}

//! The one way to write disjoint pieces of a result from several threads.
//!
//! `vec![0; n]` is written by one thread while the others wait, and has left the caches when they write to it.
//! [`filled`] hands out whole parts, each zeroed right before it is written, by the thread that writes it. [`Disjoint`]
//! is for pieces that aren't whole chunks of memory; its users guarantee that they are disjoint.

pub(crate) mod waiting;

use rayon::prelude::*;
use std::{marker::PhantomData, mem::MaybeUninit};

/// Numbers that threads write at the same time, each to places of its own.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    /// Owned numbers; empty where somebody else's are written.
    data: Vec<T>,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: what threads do with a shared one goes through the unsafe methods, whose callers guarantee that parts in use
// at the same time are disjoint.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Somebody else's numbers.
    pub(crate) fn of(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), data: Vec::new(), borrowed: PhantomData }
    }

    fn owning(mut data: Vec<T>, len: usize) -> Self {
        Self { start: data.as_mut_ptr(), len, data, borrowed: PhantomData }
    }

    /// Room for `len` numbers, of which none is there yet.
    pub(crate) fn unwritten(len: usize) -> Self {
        Self::owning(Vec::with_capacity(len), len)
    }

    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self
    where
        T: Copy + Default,
    {
        Self::owning(vec![T::default(); len], len)
    }

    /// Writes the numbers from `start` on; how many is best known when this is compiled.
    ///
    /// # Safety
    /// Nobody else uses this part.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, start: usize, values: &[T])
    where
        T: Copy,
    {
        assert!(start <= self.len && values.len() <= self.len - start);
        // SAFETY: inside the memory, as asserted; the caller promises that nothing else uses it.
        unsafe { self.start.add(start).copy_from_nonoverlapping(values.as_ptr(), values.len()) }
    }

    /// `len` numbers from `start` on.
    ///
    /// # Safety
    /// They have been written, or were zeroed or borrowed, and nothing else uses this part until the last use of the result.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "{start} + {len} numbers of {}", self.len);
        // SAFETY: inside the memory, as asserted; the caller guarantees the rest.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// The numbers that this owns.
    ///
    /// # Safety
    /// They have all been written or were zeroed.
    pub(crate) unsafe fn finish(mut self) -> Vec<T> {
        // SAFETY: an owner has room for `len`, and a borrower has none; the caller guarantees that they are written.
        unsafe { self.data.set_len(self.len.min(self.data.capacity())) };
        self.data
    }
}

/// `M` vectors of `len` numbers that `fill` writes in parts of `part`, given the number of the part; on one thread if
/// `serial`.
pub(crate) fn filled<T: Copy + Default + Send, const M: usize>(
    len: usize,
    part: usize,
    serial: bool,
    fill: impl Fn(usize, [&mut [T]; M]) + Sync,
) -> [Vec<T>; M] {
    let mut all: [Vec<T>; M] = std::array::from_fn(|_| Vec::with_capacity(len));
    let mut rests = all.each_mut().map(|room| room.spare_capacity_mut()[..len].chunks_mut(part.max(1)));
    let next = |_| rests.each_mut().map(|parts| parts.next().unwrap_or_default());
    let parts: Vec<[&mut [MaybeUninit<T>]; M]> = (0..len.div_ceil(part.max(1))).map(next).collect();
    let work = |(i, parts): (usize, [&mut [MaybeUninit<T>]; M])| fill(i, parts.map(zeroed));
    match serial || parts.len() == 1 {
        true => parts.into_iter().enumerate().for_each(work),
        false => parts.into_par_iter().enumerate().for_each(work),
    }
    for room in &mut all {
        // SAFETY: the parts cover the first `len` numbers, and each was zeroed.
        unsafe { room.set_len(len) };
    }
    all
}

fn zeroed<T: Copy + Default>(part: &mut [MaybeUninit<T>]) -> &mut [T] {
    for slot in part.iter_mut() {
        slot.write(T::default());
    }
    // SAFETY: every number was just written.
    unsafe { &mut *(std::ptr::from_mut(part) as *mut [T]) }
}

#[cfg(test)]
mod tests {
    use super::filled;

    #[test]
    fn every_part_is_zeros_and_then_what_is_written() {
        for (len, part) in [(0, 3), (1, 3), (7, 3), (9, 3), (5, 100), (4, 0)] {
            for serial in [false, true] {
                let [a, b] = filled(len, part, serial, |i, [a, b]: [&mut [u32]; 2]| {
                    assert!(a.iter().chain(b.iter()).all(|x| *x == 0));
                    for (j, x) in a.iter_mut().enumerate() {
                        *x = (i * part.max(1) + j) as u32;
                    }
                    b.copy_from_slice(a);
                });
                assert_eq!(a, (0..len as u32).collect::<Vec<_>>());
                assert_eq!(a, b);
            }
        }
    }
}

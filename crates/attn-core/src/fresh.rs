//! Memory for results, zeroed by the threads that fill it.
//!
//! `vec![0; n]` is one thread's work while the others wait, over memory that then has left the caches when they come to
//! write it. Here every part is zeroed right before it is written, by whoever writes it.

use rayon::prelude::*;
use std::mem::MaybeUninit;

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

//! The limits of this machine, with which the speed of kernels is compared.
//!
//! GFLOP/s depend on the machine, its clock and what else runs on it. A share of a limit that was measured in the same
//! run can be compared.

use crate::simd::KernelPath;
use crate::simd::{Job, Simd, dispatch};
use candle_core::{Device, Result, bail};
use rayon::prelude::*;
use std::{hint::black_box, time::Instant};

/// Independent chains of operations: enough to hide a latency of six cycles on two units, few enough for 16 registers.
const CHAINS: usize = 12;
/// Multiply-adds per chain and round: less than a millisecond, so that some rounds run undisturbed on a busy machine.
const STEPS: usize = 1 << 17;
/// Rounds of multiply-adds; each thread's best counts.
const FMA_ROUNDS: usize = 100;
/// Rounds of reads; the best counts.
const READ_ROUNDS: usize = 8;
/// Bytes read per round of [`read_bandwidth`]: larger than the last-level cache of common machines.
const BYTES: usize = 512 << 20;

/// f32 multiply-adds per second with `path`'s vectors on every thread of rayon's current pool, counted as two operations
/// each, in GFLOP/s. Runs for less than a second.
///
/// # Errors
/// A path that this machine doesn't have.
pub fn fma_peak(path: KernelPath) -> Result<f64> {
    if !path.is_available() {
        bail!("this machine has no {path} kernel")
    }
    let round = || {
        let mut operations = 0;
        let start = Instant::now();
        dispatch(path, MultiplyAdd { operations: &mut operations });
        operations as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    let threads = rayon::broadcast(|_| (0..FMA_ROUNDS).map(|_| round()).fold(0.0, f64::max));
    Ok(threads.iter().sum())
}

/// Bytes per second that all threads of rayon's current pool together read from memory, in GB/s. Takes 512 MiB for less
/// than a second.
///
/// # Errors
/// A processor whose kernels can't be chosen, see [`KernelPath::choose`].
pub fn read_bandwidth() -> Result<f64> {
    let path = KernelPath::choose(None)?;
    let numbers = vec![1f32; BYTES / size_of::<f32>()];
    let share = numbers.len().div_ceil(rayon::current_num_threads());
    let round = || {
        let start = Instant::now();
        numbers.par_chunks(share).for_each(|numbers| {
            let mut sum = 0.0;
            dispatch(path, Sum { numbers, sum: &mut sum });
            black_box(sum);
        });
        BYTES as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    Ok((0..READ_ROUNDS).map(|_| round()).fold(0.0, f64::max))
}

/// Multiply-adds from register to register.
struct MultiplyAdd<'a> {
    operations: &'a mut usize,
}

impl Job for MultiplyAdd<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the machine has the instruction set by this function's contract; nothing is read from memory.
        let sum = unsafe {
            let (a, b) = (S::splat(black_box(0.999)), S::splat(black_box(0.001)));
            let mut chains = [S::splat(1.0); CHAINS];
            for _ in 0..STEPS {
                for chain in &mut chains {
                    *chain = S::fma(*chain, a, b);
                }
            }
            chains.into_iter().fold(0.0, |sum, chain| sum + S::sum(chain))
        };
        black_box(sum);
        *self.operations = 2 * STEPS * CHAINS * S::LANES;
    }
}

/// The sum of all numbers, which takes no longer than reading them.
struct Sum<'a> {
    numbers: &'a [f32],
    sum: &'a mut f32,
}

impl Job for Sum<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let whole = self.numbers.len() / (8 * S::LANES) * (8 * S::LANES);
        // SAFETY: the machine has the instruction set by this function's contract; every load ends at `whole` at most.
        *self.sum = unsafe {
            let mut sums = [S::splat(0.0); 8];
            for start in (0..whole).step_by(8 * S::LANES) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = S::add(*sum, S::load(self.numbers.as_ptr().add(start + i * S::LANES)));
                }
            }
            sums.into_iter().fold(0.0, |all, sum| all + S::sum(sum))
        } + self.numbers[whole..].iter().sum::<f32>();
    }
}

/// Lets the process keep what tensors on `device` free for the tensors to come.
///
/// By default CUDA gives everything back whenever the device is waited for, and glibc on Linux whatever is larger than
/// some MiB as soon as it is free: each op's result is then fresh memory, which the system clears page by page. Forward
/// and backward of attention took up to twice as long for that reason. This changes the whole process, so the program
/// has to decide about it and not this library. Does nothing with other allocators and on other devices.
///
/// # Errors
/// CUDA refuses.
pub fn keep_freed_memory(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => crate::cuda::keep_freed_memory(device),
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        Device::Cpu => {
            // SAFETY: two settings of the allocator, which takes its own locks for them.
            unsafe {
                libc::mallopt(libc::M_MMAP_MAX, 0);
                libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_counts_its_operations_and_sums_all_numbers() {
        let numbers: Vec<f32> = (0..1003).map(|i| (i % 7) as f32).collect();
        for path in KernelPath::available() {
            let (mut operations, mut sum) = (0, 0.0);
            dispatch(path, MultiplyAdd { operations: &mut operations });
            dispatch(path, Sum { numbers: &numbers, sum: &mut sum });
            assert!(operations.is_multiple_of(2 * STEPS * CHAINS) && operations > 0, "{path}");
            assert_eq!(sum, numbers.iter().sum::<f32>(), "{path}");
        }
    }

    #[test]
    fn a_path_that_is_not_there_is_refused() {
        let missing = KernelPath::ALL.into_iter().find(|path| !path.is_available());
        assert!(missing.is_none_or(|path| fma_peak(path).is_err()));
    }
}

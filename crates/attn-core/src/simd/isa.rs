//! Which instruction set the kernels of the CPU use.
//!
//! The fastest one that the processor has is found at run time, so one binary runs everywhere. Forcing another is for
//! tests and measurements: for one attention call through its options, or through the environment variable `ATTN_KERNEL`
//! for a whole process.

#[cfg(target_arch = "x86_64")]
use super::amx;
use candle_core::{Result, bail};
use std::{fmt, str::FromStr, sync::OnceLock};

/// An instruction set that the kernels of the CPU are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KernelPath {
    /// As `Avx512`, and bf16 on AMX tiles (Intel Xeon from Sapphire Rapids).
    Amx,
    /// 512-bit vectors, x86-64.
    Avx512,
    /// As `Avx512`, and bf16 by dot products of pairs (AMD from Zen 4, Intel from Cooper Lake). Chosen by default only
    /// on AMD, where it takes half the time of widening bf16 to f32; on Intel it takes longer.
    Avx512Bf16,
    /// 256-bit vectors with fused multiply-add, x86-64.
    Avx2,
    /// 128-bit vectors, aarch64.
    Neon,
    /// Plain Rust; the compiler vectorises it for the target it was built for.
    Portable,
}

impl KernelPath {
    /// All of them, fastest first on Intel.
    pub const ALL: [Self; 6] = [Self::Amx, Self::Avx512, Self::Avx512Bf16, Self::Avx2, Self::Neon, Self::Portable];

    /// True if this machine can run it.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512Bf16.is_available() && amx::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("fma")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            Self::Portable => true,
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// Those that this machine can run.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|path| path.is_available())
    }

    /// The fastest that this machine can run. It is chosen by the kind of processor and not by a measurement, so that
    /// results are the same in every run.
    fn fastest() -> Self {
        let in_pairs = Some(Self::Avx512Bf16).filter(|path| is_amd() && path.is_available());
        in_pairs.or_else(|| Self::available().next()).unwrap_or(Self::Portable)
    }

    /// The path for a call: the one asked for, else `ATTN_KERNEL`, else the fastest.
    ///
    /// # Errors
    /// A path that this machine doesn't have, or an `ATTN_KERNEL` that isn't one.
    pub fn choose(asked: Option<Self>) -> Result<Self> {
        static DEFAULT: OnceLock<std::result::Result<KernelPath, String>> = OnceLock::new();
        let path = match asked {
            Some(path) => path,
            None => {
                let default = DEFAULT.get_or_init(|| match std::env::var("ATTN_KERNEL") {
                    Ok(name) if !name.is_empty() => name.parse(),
                    _ => Ok(Self::fastest()),
                });
                match default {
                    Ok(path) => *path,
                    Err(message) => bail!("ATTN_KERNEL: {message}"),
                }
            }
        };
        if !path.is_available() {
            bail!("this machine has no {path} kernel")
        }
        Ok(path)
    }
}

/// Whether the processor says it is AMD's: what is fastest there differs from Intel's with the same instructions.
pub(crate) fn is_amd() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        static AMD: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *AMD.get_or_init(|| {
            let vendor = std::arch::x86_64::__cpuid(0);
            [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

impl fmt::Display for KernelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Amx => "amx",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Portable => "portable",
        })
    }
}

impl FromStr for KernelPath {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        Self::ALL.into_iter().find(|path| path.to_string() == name).ok_or_else(|| {
            format!("unknown kernel path '{name}': one of amx, avx512, avx512bf16, avx2, neon, portable")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_refused() {
        for path in KernelPath::ALL {
            assert_eq!(path.to_string().parse(), Ok(path));
        }
        assert!("sse".parse::<KernelPath>().is_err());
        assert!(KernelPath::available().any(|path| path == KernelPath::Portable));
    }

    #[test]
    fn the_fastest_is_there_and_bf16_goes_in_pairs_on_amd() {
        let fastest = KernelPath::fastest();
        assert!(fastest.is_available());
        if is_amd() && KernelPath::Avx512Bf16.is_available() {
            assert_eq!(fastest, KernelPath::Avx512Bf16);
        } else {
            assert_eq!(Some(fastest), KernelPath::available().next());
        }
    }

    /// Every 64-bit Arm processor has NEON, so anything else would be a mistake in finding it.
    #[cfg(target_arch = "aarch64")]
    #[test]
    fn neon_comes_first_on_aarch64() {
        assert_eq!(KernelPath::available().collect::<Vec<_>>(), [KernelPath::Neon, KernelPath::Portable]);
    }
}

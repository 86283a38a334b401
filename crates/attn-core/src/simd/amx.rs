//! AMX tiles: what both of their users, products of weights and attention, need besides the instructions.
//!
//! Written in assembly: the intrinsics are not stable, the instructions are. Linux hands out the tile registers on request,
//! once per process; every use configures them and releases them after.

use std::arch::asm;
use std::sync::OnceLock;

/// True if the processor has AMX with bf16 and the operating system lets this process use it.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && may_use_tiles())
}

fn has_instructions() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    if std::arch::x86_64::__cpuid(0).eax < 7 {
        return false;
    }
    let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
    features & AMX_BF16 != 0 && features & AMX_TILE != 0
}

#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and returns 0 or an error; it does not access this process's memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}

/// Palette 1, eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: TileConfig = {
    let (mut bytes_per_row, mut rows, mut i) = ([0; 16], [0; 16], 0);
    while i < 8 {
        bytes_per_row[i] = 64;
        rows[i] = 16;
        i += 1;
    }
    TileConfig { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row, rows }
};

/// While it lives, this thread's eight tile registers are configured as 16 rows of 64 bytes each.
pub(crate) struct Tiles {
    /// The registers are the thread's.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Tiles {
    /// Takes the registers.
    pub(crate) fn configure() -> Self {
        assert!(is_available(), "this machine has no AMX tiles");
        // SAFETY: the instruction and the tile state are there; CONFIG is a valid palette.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
        Self { _not_send: std::marker::PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: gives the tile registers back; they hold nothing that is needed.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

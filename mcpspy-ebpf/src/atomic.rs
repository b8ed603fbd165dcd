//! Read-modify-write instructions on shared memory.
//!
//! `core` has none for this target (`max-atomic-width` 64, but no compare-and-swap), so they are
//! written as instructions of the BPF v3 set, which the kernel has since 5.12.

use core::arch::asm;
use core::cell::UnsafeCell;

/// Adds `n` and returns the value before.
#[inline(always)]
pub fn fetch_add(at: *mut u64, n: u64) -> u64 {
    let mut value = n;
    // The verifier checks that `at` points into a map value.
    unsafe {
        asm!(
            "{value} = atomic_fetch_add((u64 *)({at} + 0), {value})",
            at = in(reg) at,
            value = inout(reg) value,
        );
    }
    value
}

/// Puts `new` in place and returns the value before. A full barrier.
#[inline(always)]
pub fn swap(at: *mut u64, new: u64) -> u64 {
    let mut value = new;
    unsafe {
        asm!(
            "{value} = xchg_64({at} + 0, {value})",
            at = in(reg) at,
            value = inout(reg) value,
        );
    }
    value
}

/// A global that any CPU may write; an aligned 64-bit access is whole on every machine that the
/// kernel's compiler targets.
pub struct Word(UnsafeCell<u64>);

// Only whole values go in and out.
unsafe impl Sync for Word {}

impl Word {
    pub const fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    #[inline(always)]
    pub fn get(&self) -> u64 {
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    pub fn set(&self, value: u64) {
        unsafe { self.0.get().write_volatile(value) }
    }
}

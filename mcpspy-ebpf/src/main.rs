//! mcpspy's kernel programs. They copy and count; they do not parse.
//!
//! A system call comes in through [`syscalls`], [`admit`] decides whether its bytes are worth
//! copying, [`emit`] writes them to the ring. [`kernel`] alone knows the kernel's structures.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod admit;
mod atomic;
mod emit;
mod kernel;
mod maps;
mod proc;
mod relay;
mod sniff;
mod syscalls;
mod task;

/// Helpers that read kernel memory are open to programs of a GPL-compatible licence only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that can get here.
    loop {}
}

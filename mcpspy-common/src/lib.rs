//! The ABI between mcpspy's kernel programs and its user space.
//!
//! Rules:
//! - Plain `repr(C)` data of integers and byte arrays, no padding, no logic, no features: the same
//!   source is compiled for the BPF target and for the host.
//! - Only [`decode`] reads record layouts in user space, only the kernel's `emit.rs` writes them.
//! - Multi-byte values are in the machine's byte order: both sides run on the same machine.
//! - Names of maps, programs and globals stand once, in [`names`].
#![no_std]

pub mod config;
pub mod decode;
pub mod names;
pub mod record;
pub mod relay;

//! The table of system calls per architecture: which numbers move bytes, and how they name them.

use mcpspy_common::config::class::{
    COMPAT, FLAT, FLAT_FLAGS, MESSAGE, MESSAGES, TABLE, UNSEEN, VECTOR, WRITE,
};

use super::btf::{Btf, BtfError};

/// What differs between architectures.
#[derive(Debug)]
pub(super) struct Arch {
    /// As `uname -m` says.
    pub(super) name: &'static str,
    /// Number and class of each call that moves bytes.
    calls: &'static [(usize, u8)],
    /// Numbers of such calls in the 32-bit table.
    compat: &'static [usize],
    /// Members of `struct pt_regs`: number, then the first four arguments. Whatever the width of
    /// the number's member, its low half comes first (both are little-endian).
    registers: [(&'static str, u32); 5],
    /// Word of `struct task_struct` that tells a 32-bit call, and its bits.
    compat_word: &'static str,
    compat_mask: u32,
}

/// `x86_64`: `arch/x86/entry/syscalls/syscall_64.tbl`, 32-bit: `syscall_32.tbl`.
static X86_64: Arch = Arch {
    name: "x86_64",
    calls: &[
        (0, FLAT),               // read
        (1, FLAT | WRITE),       // write
        (19, VECTOR),            // readv
        (20, VECTOR | WRITE),    // writev
        (40, UNSEEN),            // sendfile
        (44, FLAT | WRITE),      // sendto
        (45, FLAT_FLAGS),        // recvfrom
        (46, MESSAGE | WRITE),   // sendmsg
        (47, MESSAGE),           // recvmsg
        (275, UNSEEN),           // splice
        (276, UNSEEN),           // tee
        (278, UNSEEN),           // vmsplice
        (295, VECTOR),           // preadv
        (296, VECTOR | WRITE),   // pwritev
        (299, MESSAGES),         // recvmmsg
        (307, MESSAGES | WRITE), // sendmmsg
        (327, VECTOR),           // preadv2
        (328, VECTOR | WRITE),   // pwritev2
        (426, UNSEEN),           // io_uring_enter
    ],
    compat: &[3, 4, 102, 145, 146, 337, 345, 369, 370, 371, 372, 378, 379],
    registers: [("orig_ax", 0), ("di", 0), ("si", 0), ("dx", 0), ("r10", 0)],
    compat_word: "thread_info.status",
    // TS_COMPAT (arch/x86/include/asm/thread_info.h).
    compat_mask: 0x2,
};

/// arm64: `include/uapi/asm-generic/unistd.h`, 32-bit: `arch/arm/tools/syscall.tbl`. The first argument
/// is kept apart, because its register holds the return value.
static AARCH64: Arch = Arch {
    name: "aarch64",
    calls: &[
        (63, FLAT),
        (64, FLAT | WRITE),
        (65, VECTOR),
        (66, VECTOR | WRITE),
        (69, VECTOR),
        (70, VECTOR | WRITE),
        (71, UNSEEN),
        (75, UNSEEN),
        (76, UNSEEN),
        (77, UNSEEN),
        (206, FLAT | WRITE),
        (207, FLAT_FLAGS),
        (211, MESSAGE | WRITE),
        (212, MESSAGE),
        (243, MESSAGES),
        (269, MESSAGES | WRITE),
        (286, VECTOR),
        (287, VECTOR | WRITE),
        (426, UNSEEN),
    ],
    compat: &[3, 4, 145, 146, 289, 290, 291, 292, 296, 297, 365, 374, 392, 393],
    registers: [("syscallno", 0), ("orig_x0", 0), ("regs", 8), ("regs", 16), ("regs", 24)],
    compat_word: "thread_info.flags",
    // _TIF_32BIT (arch/arm64/include/asm/thread_info.h).
    compat_mask: 1 << 22,
};

impl Arch {
    /// The architecture this program is built for; it runs on no other.
    pub(super) fn current() -> Option<&'static Self> {
        [&X86_64, &AARCH64].into_iter().find(|a| a.name == std::env::consts::ARCH)
    }

    /// The class of each number.
    pub(super) fn table(&self) -> [u8; TABLE] {
        let mut table = [0; TABLE];
        for &(number, class) in self.calls {
            table[number] |= class;
        }
        for &number in self.compat {
            table[number] |= COMPAT;
        }
        table
    }

    /// Positions in `struct pt_regs`.
    pub(super) fn registers(&self, btf: &Btf) -> Result<[u32; 5], BtfError> {
        let mut offsets = [0; 5];
        for (offset, (member, within)) in offsets.iter_mut().zip(self.registers) {
            *offset = btf.offset("pt_regs", member)? + within;
        }
        Ok(offsets)
    }

    /// Position in `struct task_struct` of the word that tells a 32-bit call, and its bits.
    pub(super) fn compat(&self, btf: &Btf) -> Result<(u32, u32), BtfError> {
        Ok((btf.offset("task_struct", self.compat_word)?, self.compat_mask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_architectures_know_the_same_calls() {
        let classes = |arch: &Arch| {
            let mut all: Vec<u8> = arch.calls.iter().map(|c| c.1).collect();
            all.sort_unstable();
            all
        };
        assert_eq!(classes(&X86_64), classes(&AARCH64));
    }

    #[test]
    fn table_keeps_both_meanings_of_a_number() {
        let table = X86_64.table();
        assert_eq!(table[0], FLAT);
        assert_eq!(table[3], COMPAT);
        assert_eq!(table[102], COMPAT);
        assert_eq!(table[2], 0);
    }
}

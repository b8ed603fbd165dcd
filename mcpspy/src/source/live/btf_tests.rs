use super::*;

fn kernel() -> Option<Btf> {
    let data = std::fs::read("/sys/kernel/btf/vmlinux").ok()?;
    Some(Btf::parse(data).unwrap())
}

/// Builds type information by hand.
#[derive(Default)]
struct Builder {
    types: Vec<u32>,
    strings: Vec<u8>,
}

impl Builder {
    fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0] }
    }
    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }
    fn push(&mut self, name: &str, kind: u32, vlen: u32, flag: bool, value: u32, tail: &[u32]) {
        let name = self.name(name);
        self.types.extend([name, u32::from(flag) << 31 | kind << 24 | vlen, value]);
        self.types.extend(tail);
    }
    fn build(self) -> Vec<u8> {
        let size = self.types.len() as u32 * 4;
        let mut out = 0x0001_eb9f_u32.to_ne_bytes().to_vec();
        for word in [24, 0, size, size, self.strings.len() as u32].into_iter().chain(self.types) {
            out.extend(word.to_ne_bytes());
        }
        out.extend(self.strings);
        out
    }
}

/// `struct outer { int a; struct { union { int b; } ; bits:3 }; enum64 }`
fn sample() -> Vec<u8> {
    let mut b = Builder::new();
    b.push("int", KIND_INT, 0, false, 4, &[32]); // 1
    let name = b.name("b");
    b.push("", KIND_UNION, 1, false, 4, &[name, 1, 0]); // 2
    let bits = b.name("bits");
    b.push("", KIND_STRUCT, 2, true, 8, &[0, 2, 0, bits, 1, 3 << 24 | 32]); // 3
    let (a, inner, last) = (b.name("a"), 0, b.name("last"));
    b.push("outer", KIND_STRUCT, 3, false, 16, &[a, 1, 0, inner, 3, 32, last, 5, 96]); // 4
    b.push("alias", KIND_TYPEDEF, 0, false, 4, &[]); // 5: outer
    let big = b.name("BIG");
    b.push("wide", KIND_ENUM64, 1, false, 8, &[big, 5, 1]); // 6
    b.push("", KIND_FUNC_PROTO, 2, false, 0, &[0, 1, 0, 1]); // 7
    b.push("work", 12, 0, false, 7, &[]); // 8: function
    b.build()
}

#[test]
fn finds_members_constants_and_arguments() {
    let btf = Btf::parse(sample()).unwrap();
    assert_eq!(btf.offset("outer", "a"), Ok(0));
    assert_eq!(btf.offset("outer", "b"), Ok(4));
    assert_eq!(btf.offset("outer", "last.b"), Ok(16));
    assert_eq!(btf.offset("outer", "bits"), Err(BtfError::BitField("bits".into())));
    assert_eq!(btf.offset("outer", "none"), Err(BtfError::NoMember("outer".into(), "none".into())));
    assert_eq!(btf.offset("none", "a"), Err(BtfError::NoType("struct none".into())));
    assert_eq!(btf.constant("wide", "BIG"), Some(1 << 32 | 5));
    assert_eq!(btf.constant("wide", "SMALL"), None);
}

#[test]
fn no_cut_or_changed_input_panics() {
    let good = sample();
    for len in 0..good.len() {
        drop(Btf::parse(good[..len].to_vec()).map(|b| b.offset("outer", "b")));
    }
    for at in 0..good.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bad = good.clone();
            bad[at] = value;
            if let Ok(btf) = Btf::parse(bad) {
                drop(btf.offset("outer", "b"));
                drop(btf.offset("outer", "last.b"));
                assert!(btf.constant("wide", "BIG") != Some(0) || at > 0);
            }
        }
    }
}

#[test]
fn a_type_that_contains_itself_ends() {
    let mut b = Builder::new();
    b.push("loop", KIND_STRUCT, 1, false, 8, &[0, 1, 0]);
    b.push("round", KIND_TYPEDEF, 0, false, 2, &[]);
    let btf = Btf::parse(b.build()).unwrap();
    assert!(btf.offset("loop", "x").is_err());
    assert!(btf.strip(2).is_err());
}

#[test]
fn reads_the_running_kernel() {
    let Some(btf) = kernel() else {
        // Not every kernel shows it.
        return;
    };
    assert_eq!(btf.offset("inode", "i_mode"), Ok(0));
    assert!(btf.offset("sock", "__sk_common.skc_family").is_ok());
    assert!(btf.offset("task_struct", "thread_info").is_ok());
    assert!(btf.constant("bpf_func_id", "BPF_FUNC_ringbuf_output").is_some());
}

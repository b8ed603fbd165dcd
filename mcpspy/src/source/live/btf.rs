//! Reads the kernel's type information (BTF): where a member is, what a constant is. So one binary serves every kernel without compile-time relocations.
//!
//! Format: `Documentation/bpf/btf.rst`. The input is the kernel's, but nothing here trusts it: bad
//! bytes are an error, never a panic.

use std::collections::HashMap;

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Deepest nesting of anonymous members and chain of qualifiers that is followed; the kernel's own
/// limit is 32.
const MAX_DEPTH: u32 = 32;

/// Why the type information could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// Not BTF, or of another byte order.
    #[error("not type information of this machine")]
    Magic,
    /// Ends early, or points outside itself.
    #[error("type information is damaged at byte {0}")]
    Damaged(usize),
    /// A kind that this reader does not know the size of.
    #[error("type information has an unknown kind {0}")]
    Kind(u32),
    /// No such structure.
    #[error("this kernel has no `{0}`")]
    NoType(String),
    /// No such member.
    #[error("this kernel's `{0}` has no member `{1}`")]
    NoMember(String, String),
    /// The member does not begin at a byte.
    #[error("`{0}` is a bit field")]
    BitField(String),
}

/// A member of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Position within the outermost structure, bytes.
    pub(super) offset: u32,
    /// Its type.
    pub(super) type_id: u32,
}

/// Parsed type information.
#[derive(Debug)]
pub(super) struct Btf {
    data: Vec<u8>,
    strings: std::ops::Range<usize>,
    /// Position of each type; number 0 is `void` and has none.
    types: Vec<usize>,
    /// First type of a kind and name.
    names: HashMap<(u32, Vec<u8>), u32>,
}

struct Type {
    at: usize,
    kind: u32,
    vlen: usize,
    /// Members carry a bit size.
    kind_flag: bool,
    /// Size, or the type referred to.
    value: u32,
}

impl Btf {
    /// Parses the content of `/sys/kernel/btf/vmlinux`.
    pub(super) fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        if data.get(..2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes) != Some(MAGIC) {
            return Err(BtfError::Magic);
        }
        let word = |at: usize| read_u32(&data, at);
        let header = word(4)? as usize;
        if header < HEADER {
            return Err(BtfError::Damaged(4));
        }
        let section = |offset: usize, size: usize| -> Result<std::ops::Range<usize>, BtfError> {
            let start = header.checked_add(word(offset)? as usize);
            let end = start.and_then(|s| s.checked_add(word(size).ok()? as usize));
            match (start, end) {
                (Some(start), Some(end)) if end <= data.len() => Ok(start..end),
                _ => Err(BtfError::Damaged(offset)),
            }
        };
        let types = section(8, 12)?;
        let strings = section(16, 20)?;
        let mut btf = Self { data, strings, types: vec![0], names: HashMap::new() };
        btf.index(types)?;
        Ok(btf)
    }

    fn index(&mut self, section: std::ops::Range<usize>) -> Result<(), BtfError> {
        let mut at = section.start;
        while at < section.end {
            let ty = self.type_at(at)?;
            let tail = match ty.kind {
                KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => ty.vlen * 12,
                KIND_ENUM | KIND_FUNC_PROTO => ty.vlen * 8,
                // Pointer, forward, typedef, qualifiers, function, float, type tag.
                2 | 7..=12 | 16 | KIND_TYPE_TAG => 0,
                other => return Err(BtfError::Kind(other)),
            };
            let id = self.types.len() as u32;
            self.types.push(at);
            if matches!(ty.kind, KIND_STRUCT | KIND_ENUM | KIND_ENUM64) {
                let name = self.name(at)?;
                if !name.is_empty() {
                    let name = name.to_vec();
                    self.names.entry((ty.kind, name)).or_insert(id);
                }
            }
            at += 12 + tail;
        }
        if at == section.end { Ok(()) } else { Err(BtfError::Damaged(at)) }
    }

    fn type_at(&self, at: usize) -> Result<Type, BtfError> {
        let info = read_u32(&self.data, at + 4)?;
        Ok(Type {
            at,
            kind: info >> 24 & 0x1f,
            vlen: (info & 0xffff) as usize,
            kind_flag: info >> 31 == 1,
            value: read_u32(&self.data, at + 8)?,
        })
    }

    fn type_of(&self, id: u32) -> Result<Type, BtfError> {
        match self.types.get(id as usize) {
            Some(&at) if id != 0 => self.type_at(at),
            _ => Err(BtfError::Damaged(0)),
        }
    }

    /// The string whose offset stands at `at`.
    fn name(&self, at: usize) -> Result<&[u8], BtfError> {
        let offset = read_u32(&self.data, at)? as usize;
        let strings = self.data.get(self.strings.clone()).ok_or(BtfError::Damaged(at))?;
        let rest = strings.get(offset..).ok_or(BtfError::Damaged(at))?;
        let end = memchr::memchr(0, rest).ok_or(BtfError::Damaged(at))?;
        Ok(&rest[..end])
    }

    fn find(&self, kind: u32, name: &str) -> Option<u32> {
        self.names.get(&(kind, name.as_bytes().to_vec())).copied()
    }

    /// Number of a structure.
    pub(super) fn structure(&self, name: &str) -> Option<u32> {
        self.find(KIND_STRUCT, name)
    }

    /// Number of a function. There are too many of them for the index, and few are asked for.
    pub(super) fn function(&self, name: &str) -> Option<u32> {
        let wanted = |&at: &usize| {
            let kind = read_u32(&self.data, at + 4).map(|info| info >> 24 & 0x1f);
            kind == Ok(KIND_FUNC) && self.name(at) == Ok(name.as_bytes())
        };
        let id = self.types.iter().skip(1).position(wanted)? + 1;
        u32::try_from(id).ok()
    }

    /// Follows typedefs and qualifiers.
    fn strip(&self, mut id: u32) -> Result<u32, BtfError> {
        for _ in 0..MAX_DEPTH {
            let ty = self.type_of(id)?;
            match ty.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = ty.value;
                }
                _ => return Ok(id),
            }
        }
        Err(BtfError::Damaged(0))
    }

    /// Looks a member up, also within unnamed structures and unions.
    fn member_of(&self, id: u32, name: &str, depth: u32) -> Result<Option<Member>, BtfError> {
        let ty = self.type_of(id)?;
        if !matches!(ty.kind, KIND_STRUCT | KIND_UNION) || depth > MAX_DEPTH {
            return Ok(None);
        }
        for i in 0..ty.vlen {
            let at = ty.at + 12 + i * 12;
            let found = self.name(at)?;
            let type_id = read_u32(&self.data, at + 4)?;
            let raw = read_u32(&self.data, at + 8)?;
            let (bits, width) = if ty.kind_flag { (raw & 0xff_ffff, raw >> 24) } else { (raw, 0) };
            if found == name.as_bytes() {
                if width != 0 || bits % 8 != 0 {
                    return Err(BtfError::BitField(name.to_owned()));
                }
                return Ok(Some(Member { offset: bits / 8, type_id }));
            }
            if found.is_empty() {
                let inner = self.strip(type_id)?;
                if let Some(member) = self.member_of(inner, name, depth + 1)? {
                    return Ok(Some(Member { offset: bits / 8 + member.offset, ..member }));
                }
            }
        }
        Ok(None)
    }

    /// Position of a member, bytes. `path` may go through embedded structures (`a.b.c`); pointers
    /// are not followed.
    pub(super) fn offset(&self, structure: &str, path: &str) -> Result<u32, BtfError> {
        let mut id = self
            .find(KIND_STRUCT, structure)
            .ok_or_else(|| BtfError::NoType(format!("struct {structure}")))?;
        let mut offset = 0u32;
        for name in path.split('.') {
            let member = self
                .member_of(self.strip(id)?, name, 0)?
                .ok_or_else(|| BtfError::NoMember(structure.to_owned(), path.to_owned()))?;
            offset = offset.checked_add(member.offset).ok_or(BtfError::Damaged(0))?;
            id = member.type_id;
        }
        Ok(offset)
    }

    /// Value of a constant of an enumeration.
    pub(super) fn constant(&self, enumeration: &str, name: &str) -> Option<u64> {
        let (id, entry) = self
            .find(KIND_ENUM, enumeration)
            .map(|id| (id, 8))
            .or_else(|| self.find(KIND_ENUM64, enumeration).map(|id| (id, 12)))?;
        let ty = self.type_of(id).ok()?;
        (0..ty.vlen).map(|i| ty.at + 12 + i * entry).find_map(|at| {
            if self.name(at).ok()? != name.as_bytes() {
                return None;
            }
            let low = u64::from(read_u32(&self.data, at + 4).ok()?);
            let high = if entry == 12 { u64::from(read_u32(&self.data, at + 8).ok()?) } else { 0 };
            Some(high << 32 | low)
        })
    }
}

fn read_u32(data: &[u8], at: usize) -> Result<u32, BtfError> {
    at.checked_add(4)
        .and_then(|end| data.get(at..end))
        .and_then(|b| b.try_into().ok())
        .map(u32::from_ne_bytes)
        .ok_or(BtfError::Damaged(at))
}

#[cfg(test)]
#[path = "btf_tests.rs"]
mod tests;

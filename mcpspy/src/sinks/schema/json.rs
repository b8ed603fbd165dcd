//! JSON text, written straight into a byte buffer.
//!
//! Invisible characters (see [`is_invisible`]) are always written as `\uXXXX`: the value stays the
//! same, and a line is safe to show on a terminal.

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

use crate::sinks::visible::is_invisible;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Bytes of ASCII that cannot stand in a JSON string as they are, and every byte of a longer
/// character.
const SPECIAL: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = byte < 0x20 || byte > 0x7e || byte == b'"' as usize || byte == b'\\' as usize;
        byte += 1;
    }
    table
};

/// Appends a number.
pub(super) fn push_u64(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a number.
pub(super) fn push_i64(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    push_u64(out, value.unsigned_abs());
}

/// Appends nanoseconds as milliseconds, exactly: `101.034567`.
pub(super) fn push_ms(out: &mut Vec<u8>, ns: u64) {
    push_u64(out, ns / 1_000_000);
    out.push(b'.');
    let fraction = ns % 1_000_000;
    let mut unit = 100_000;
    while unit > 0 {
        out.push(b'0' + (fraction / unit % 10) as u8);
        unit /= 10;
    }
}

/// Appends a string.
pub(super) fn push_str(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    push_escaped(out, text);
    out.push(b'"');
}

/// Appends a string of at most `limit` bytes between its quotes; whether it was cut.
pub(super) fn push_str_cut(out: &mut Vec<u8>, text: &str, limit: usize) -> bool {
    // An escape is at most 12 bytes (a surrogate pair for a character of 4).
    if text.len() <= limit / 6 {
        push_str(out, text);
        return false;
    }
    let start = out.len();
    if text.len() <= limit {
        push_str(out, text);
        if out.len() - start - 2 <= limit {
            return false;
        }
        out.truncate(start);
    }
    out.push(b'"');
    let mut buffer = [0; 4];
    for c in text.chars() {
        let before = out.len();
        push_escaped(out, c.encode_utf8(&mut buffer));
        if out.len() - start - 1 > limit {
            out.truncate(before);
            break;
        }
    }
    out.push(b'"');
    true
}

fn push_escaped(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    // JSON in a string has a quote every few bytes.
    out.reserve(bytes.len() + bytes.len() / 4 + 16);
    let mut plain = 0;
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if !SPECIAL[usize::from(byte)] {
            at += 1;
            continue;
        }
        let next = match byte {
            b'"' | b'\\' => {
                out.extend_from_slice(&bytes[plain..at]);
                out.push(b'\\');
                // The byte itself begins the next run.
                plain = at;
                at += 1;
                continue;
            }
            _ => match invisible_at(text, at) {
                (Some(c), next) => {
                    out.extend_from_slice(&bytes[plain..at]);
                    push_escape(out, c);
                    next
                }
                (None, next) => {
                    at = next;
                    continue;
                }
            },
        };
        plain = next;
        at = next;
    }
    out.extend_from_slice(&bytes[plain..]);
}

/// The character at `at`, if it is to be escaped, and where the next one begins.
fn invisible_at(text: &str, at: usize) -> (Option<char>, usize) {
    let Some(c) = text[at..].chars().next() else { return (None, at + 1) };
    (is_invisible(c).then_some(c), at + c.len_utf8())
}

fn push_escape(out: &mut Vec<u8>, c: char) {
    match c {
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        '\t' => out.extend_from_slice(b"\\t"),
        c => {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                let nibble = |shift: u16| HEX[usize::from(*unit >> shift & 15)];
                out.extend_from_slice(&[b'\\', b'u', nibble(12), nibble(8), nibble(4), nibble(0)]);
            }
        }
    }
}

/// Appends JSON text as it stands: digits, duplicate keys and order of keys are kept. Line ends
/// between its tokens become blanks, so that the line stays one.
pub(super) fn push_text(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    out.reserve(bytes.len() + 8);
    let mut plain = 0;
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if (0x20..0x7f).contains(&byte) {
            at += 1;
            continue;
        }
        let (invisible, next) = invisible_at(text, at);
        if let Some(c) = invisible {
            out.extend_from_slice(&bytes[plain..at]);
            if c < ' ' {
                out.push(b' ');
            } else {
                push_escape(out, c);
            }
            plain = next;
        }
        at = next;
    }
    out.extend_from_slice(&bytes[plain..]);
}

/// What a JSON text is at top level.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Object,
    Array,
    String,
    Number,
    Other,
}

/// What `text` is, by its first character.
pub(super) fn shape(text: &str) -> Shape {
    match text.trim_start_matches([' ', '\t', '\n', '\r']).as_bytes().first() {
        Some(b'{') => Shape::Object,
        Some(b'[') => Shape::Array,
        Some(b'"') => Shape::String,
        Some(b'-' | b'0'..=b'9') => Shape::Number,
        _ => Shape::Other,
    }
}

/// Whether `text` is one whole JSON value.
pub(super) fn is_json(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}

/// The elements of an array.
pub(super) fn elements(text: &str) -> Option<Vec<&RawValue>> {
    struct Elements;
    impl<'de> Visitor<'de> for Elements {
        type Value = Vec<&'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut out = Vec::new();
            while let Some(element) = seq.next_element()? {
                out.push(element);
            }
            Ok(out)
        }
    }
    serde::Deserializer::deserialize_seq(&mut serde_json::Deserializer::from_str(text), Elements)
        .ok()
}

/// The members of an object, in order, duplicates included.
pub(super) fn members(text: &str) -> Option<Vec<(Cow<'_, str>, &RawValue)>> {
    #[derive(serde::Deserialize)]
    struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut out = Vec::new();
            while let Some((Key(key), value)) = map.next_entry()? {
                out.push((key, value));
            }
            Ok(out)
        }
    }
    serde::Deserializer::deserialize_map(&mut serde_json::Deserializer::from_str(text), Members)
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> String {
        let mut out = Vec::new();
        push_str(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    fn embedded(text: &str) -> String {
        let mut out = Vec::new();
        push_text(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn strings_decode_to_the_exact_text_and_show_nothing_dangerous() {
        let all: String = (0..=0x0010_ffff).filter_map(char::from_u32).collect();
        for text in ["", "plain", r#"{"a":"b\\"}"#, "\u{1b}[31m\u{9b}\x7f\0\u{202e}\u{e0041}", &all]
        {
            let written = string(text);
            assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
            assert!(!written.chars().any(is_invisible));
        }
        assert_eq!(string("\x1b\x7f\u{9b}\n"), r#""\u001b\u007f\u009b\n""#);
        assert_eq!(string("\u{e0041}"), r#""\udb40\udc41""#);
        assert_eq!(string("größe 🌦"), "\"größe 🌦\"");
    }

    #[test]
    fn a_cut_string_is_whole_json_of_at_most_that_size() {
        for text in
            ["abcdefgh", "天天天天", "\x7f\x7f\x7f", "\"\"\"\"\"\"", "\u{e0041}\u{e0041}", ""]
        {
            for limit in 0..30 {
                let mut out = Vec::new();
                let cut = push_str_cut(&mut out, text, limit);
                assert!(out.len() - 2 <= limit);
                let back: String = serde_json::from_slice(&out).unwrap();
                assert!(text.starts_with(&back));
                assert_eq!(cut, back != text, "{text:?} {limit}");
                assert_eq!(cut, string(text).len() - 2 > limit);
            }
        }
    }

    #[test]
    fn embedded_values_keep_digits_and_duplicate_keys_on_one_line() {
        let text = r#"{"a":9007199254740993,"a":1e400,"b":1.0}"#;
        assert_eq!(embedded(text), text);
        assert_eq!(embedded("{\r\n\t\"a\" : [1,\n2]\n}"), r#"{   "a" : [1, 2] }"#);
        assert_eq!(embedded("\"x\x7f\u{9b}\u{202e}ü\""), r#""x\u007f\u009b\u202eü""#);
    }

    #[test]
    fn numbers() {
        let show = |push: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            push(&mut out);
            String::from_utf8(out).unwrap()
        };
        for n in [0, 9, 10, 12_345, u64::MAX] {
            assert_eq!(show(&|out| push_u64(out, n)), n.to_string());
        }
        for n in [0, -1, i64::MIN, i64::MAX] {
            assert_eq!(show(&|out| push_i64(out, n)), n.to_string());
        }
        assert_eq!(show(&|out| push_ms(out, 101_034_567)), "101.034567");
        assert_eq!(show(&|out| push_ms(out, 1)), "0.000001");
        assert_eq!(show(&|out| push_ms(out, u64::MAX)), "18446744073709.551615");
    }

    #[test]
    fn members_and_elements_keep_order_and_duplicates() {
        let found = members(r#" {"a":1,"b":{"c":[]},"a":"x","\n":0} "#).unwrap();
        let found: Vec<_> = found.iter().map(|(k, v)| (&**k, v.get())).collect();
        assert_eq!(found, [("a", "1"), ("b", r#"{"c":[]}"#), ("a", r#""x""#), ("\n", "0")]);
        let found = elements(r#"[1, "a" ,[2]]"#).unwrap();
        assert_eq!(found.iter().map(|v| v.get()).collect::<Vec<_>>(), ["1", "\"a\"", "[2]"]);
        assert!(members("[]").is_none() && elements("{}").is_none() && members("{").is_none());
    }
}

//! JSON text, checked and walked without recursion.
//!
//! Not `serde_json`, for three reasons that all come from untrusted traffic: a lone surrogate
//! (`"\ud800"`) must not make a message unreadable, 100,000 open brackets must neither overflow the
//! stack nor hide a message, and the head of a text that was cut must still give its keys. Nothing
//! is built here: values are positions in the text, and the grammar (RFC 8259) is checked in full.

use std::borrow::Cow;
use std::ops::Range;

/// Why a value was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The text ends between two tokens of the value.
    More,
    /// The text ends within a token.
    Cut,
    /// This is not JSON.
    Invalid,
}

/// The containers that are open: a bit each, so that depth costs memory only beyond 64.
#[derive(Clone, Debug, Default)]
struct Levels {
    depth: usize,
    /// The innermost levels, the lowest bit is the last one; set means object.
    last: u64,
    /// Further out, 64 levels each.
    outer: Vec<u64>,
}

impl Levels {
    fn open(&mut self, object: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.last);
        }
        self.last = self.last << 1 | u64::from(object);
        self.depth += 1;
    }

    fn close(&mut self) {
        self.last >>= 1;
        self.depth -= 1;
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.last = self.outer.pop().unwrap_or_default();
        }
    }

    fn in_object(&self) -> bool {
        self.last & 1 == 1
    }

    /// What follows a comma.
    fn next(&self) -> Expect {
        if self.in_object() { Expect::Key } else { Expect::Value }
    }
}

/// What may come next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expect {
    #[default]
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
}

/// Finds the end of one value; can be fed line by line, since no token spans lines.
#[derive(Clone, Debug, Default)]
pub(super) struct Scanner {
    levels: Levels,
    expect: Expect,
}

impl Scanner {
    /// Goes on with the value at `at`; returns the position after it.
    pub(super) fn feed(&mut self, text: &[u8], mut at: usize) -> Result<usize, Stop> {
        loop {
            at = skip_space(text, at);
            let Some(&byte) = text.get(at) else { return Err(Stop::More) };
            let value = matches!(self.expect, Expect::Value | Expect::ValueOrEnd);
            match byte {
                b'"' if value => at = skip_string(text, at)?,
                b'"' if matches!(self.expect, Expect::Key | Expect::KeyOrEnd) => {
                    at = skip_string(text, at)?;
                    self.expect = Expect::Colon;
                    if text.get(at) == Some(&b':') {
                        at += 1;
                        self.expect = Expect::Value;
                    }
                    continue;
                }
                b':' if self.expect == Expect::Colon => {
                    at += 1;
                    self.expect = Expect::Value;
                    continue;
                }
                b',' if self.expect == Expect::CommaOrEnd => {
                    at += 1;
                    self.expect = self.levels.next();
                    continue;
                }
                b'{' if value => {
                    self.levels.open(true);
                    self.expect = Expect::KeyOrEnd;
                    at += 1;
                    continue;
                }
                b'[' if value => {
                    self.levels.open(false);
                    self.expect = Expect::ValueOrEnd;
                    at += 1;
                    continue;
                }
                b'}' | b']' => {
                    let empty = if byte == b'}' { Expect::KeyOrEnd } else { Expect::ValueOrEnd };
                    let full = self.expect == Expect::CommaOrEnd
                        && self.levels.in_object() == (byte == b'}');
                    if !full && self.expect != empty {
                        return Err(Stop::Invalid);
                    }
                    at += 1;
                    self.levels.close();
                }
                _ if value => at = skip_scalar(text, at)?,
                _ => return Err(Stop::Invalid),
            }
            // A value ended here.
            if self.levels.depth == 0 {
                self.expect = Expect::Value;
                return Ok(at);
            }
            self.expect = Expect::CommaOrEnd;
            if text.get(at) == Some(&b',') {
                at += 1;
                self.expect = self.levels.next();
            }
        }
    }
}

/// Position of the first byte at or after `at` that is no JSON white space.
#[inline]
pub(super) fn skip_space(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = text.get(at) {
        at += 1;
    }
    at
}

/// Position after the value that starts at `at`, white space before it allowed.
pub(super) fn skip_value(text: &[u8], at: usize) -> Result<usize, Stop> {
    Scanner::default().feed(text, at)
}

/// Number of bytes before the first quote, backslash or control character: eight at a time, since
/// most of a large message is the inside of strings.
#[inline]
fn plain_run(text: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    let mut at = 0;
    while let Some(eight) = text.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*eight);
        let quote = word ^ (ONES * 0x22);
        let slash = word ^ (ONES * 0x5c);
        let found = (word.wrapping_sub(ONES * 0x20) & !word)
            | (quote.wrapping_sub(ONES) & !quote)
            | (slash.wrapping_sub(ONES) & !slash);
        // A borrow can set bits only above a true hit: the lowest one is right.
        let found = found & HIGH;
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|&&byte| byte >= 0x20 && byte != b'"' && byte != b'\\').count()
}

/// Position after the string whose opening quote is at `at`.
#[inline]
fn skip_string(text: &[u8], at: usize) -> Result<usize, Stop> {
    let mut at = at + 1;
    loop {
        at += plain_run(text.get(at..).unwrap_or_default());
        match text.get(at) {
            None => return Err(Stop::Cut),
            Some(b'"') => return Ok(at + 1),
            Some(b'\\') => match text.get(at + 1) {
                None => return Err(Stop::Cut),
                Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => at += 2,
                Some(b'u') => {
                    let digits = text.get(at + 2..).unwrap_or_default();
                    let digits = digits.get(..4).unwrap_or(digits);
                    if !digits.iter().all(u8::is_ascii_hexdigit) {
                        return Err(Stop::Invalid);
                    }
                    if digits.len() < 4 {
                        return Err(Stop::Cut);
                    }
                    at += 6;
                }
                Some(_) => return Err(Stop::Invalid),
            },
            Some(_) => return Err(Stop::Invalid),
        }
    }
}

/// Position after the number or literal at `at`.
fn skip_scalar(text: &[u8], at: usize) -> Result<usize, Stop> {
    let literal: &[u8] = match text.get(at) {
        Some(b't') => b"true",
        Some(b'f') => b"false",
        Some(b'n') => b"null",
        Some(b'-' | b'0'..=b'9') => return skip_number(text, at),
        _ => return Err(Stop::Invalid),
    };
    let rest = text.get(at..).unwrap_or_default();
    if rest.starts_with(literal) {
        Ok(at + literal.len())
    } else if literal.starts_with(rest) {
        Err(Stop::Cut)
    } else {
        Err(Stop::Invalid)
    }
}

fn skip_number(text: &[u8], at: usize) -> Result<usize, Stop> {
    let digits = |at: usize| -> Result<usize, Stop> {
        let rest = text.get(at..).unwrap_or_default();
        match rest.iter().take_while(|byte| byte.is_ascii_digit()).count() {
            0 if rest.is_empty() => Err(Stop::Cut),
            0 => Err(Stop::Invalid),
            count => Ok(at + count),
        }
    };
    let mut at = at + usize::from(text.get(at) == Some(&b'-'));
    at = if text.get(at) == Some(&b'0') { at + 1 } else { digits(at)? };
    if text.get(at) == Some(&b'.') {
        at = digits(at + 1)?;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        at += 1;
        if let Some(b'+' | b'-') = text.get(at) {
            at += 1;
        }
        at = digits(at)?;
    }
    Ok(at)
}

/// Calls `each` with key and place of the value, for every member of the object whose first member
/// (or closing brace) is at or after `at`; returns the position after the closing brace.
///
/// A member whose value is cut is given up to the end of the text before the error is returned.
pub(super) fn members<'a>(
    text: &'a str,
    mut at: usize,
    mut each: impl FnMut(&str, &'a str, Range<usize>),
) -> Result<usize, Stop> {
    let bytes = text.as_bytes();
    at = skip_space(bytes, at);
    if bytes.get(at) == Some(&b'}') {
        return Ok(at + 1);
    }
    loop {
        at = skip_space(bytes, at);
        let key = at;
        match bytes.get(at) {
            None => return Err(Stop::More),
            Some(b'"') => at = skip_string(bytes, at)?,
            Some(_) => return Err(Stop::Invalid),
        }
        let key = string(text.get(key..at).unwrap_or_default(), usize::MAX).unwrap_or_default();
        at = skip_space(bytes, at);
        match bytes.get(at) {
            None => return Err(Stop::More),
            Some(b':') => at = skip_space(bytes, at + 1),
            Some(_) => return Err(Stop::Invalid),
        }
        let value = at;
        at = match skip_value(bytes, at) {
            Ok(end) => end,
            Err(stop) => {
                if stop != Stop::Invalid && value < text.len() {
                    each(&key, text.get(value..).unwrap_or_default(), value..text.len());
                }
                return Err(stop);
            }
        };
        each(&key, text.get(value..at).unwrap_or_default(), value..at);
        at = skip_space(bytes, at);
        match bytes.get(at) {
            None => return Err(Stop::More),
            Some(b',') => at += 1,
            Some(b'}') => return Ok(at + 1),
            Some(_) => return Err(Stop::Invalid),
        }
    }
}

/// Calls `each` with start and end of every element of the array at `start`; the end of an element
/// that is cut is `None`. Returns the position after the array.
pub(super) fn elements(
    bytes: &[u8],
    start: usize,
    mut each: impl FnMut(usize, Option<usize>),
) -> Result<usize, Stop> {
    let mut at = skip_space(bytes, start + 1);
    if bytes.get(at) == Some(&b']') {
        return Ok(at + 1);
    }
    loop {
        at = skip_space(bytes, at);
        let element = at;
        at = match skip_value(bytes, at) {
            Ok(end) => end,
            Err(stop) => {
                if stop != Stop::Invalid && element < bytes.len() {
                    each(element, None);
                }
                return Err(stop);
            }
        };
        each(element, Some(at));
        at = skip_space(bytes, at);
        match bytes.get(at) {
            None => return Err(Stop::More),
            Some(b',') => at += 1,
            Some(b']') => return Ok(at + 1),
            Some(_) => return Err(Stop::Invalid),
        }
    }
}

/// [`members`] of a text that is one object. A text that is something else has none.
pub(super) fn members_of<'a>(text: &'a str, mut each: impl FnMut(&str, &'a str)) {
    let at = skip_space(text.as_bytes(), 0);
    if text.as_bytes().get(at) == Some(&b'{') {
        // How it ended does not matter: the text was checked before, or is the head of a cut one.
        let _end = members(text, at + 1, |key, value, _| each(key, value));
    }
}

/// What a string token says, at most `limit` bytes of it; `None` where the token is no whole string.
/// A lone surrogate is U+FFFD, as everywhere in the world of UTF-8.
pub(super) fn string(token: &str, limit: usize) -> Option<Cow<'_, str>> {
    let inner = token.strip_prefix('"')?.strip_suffix('"')?;
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Some(Cow::Borrowed(clip(inner, limit)));
    }
    let mut text = String::with_capacity(inner.len().min(limit));
    let mut rest = inner;
    while !rest.is_empty() {
        let plain = memchr::memchr(b'\\', rest.as_bytes()).unwrap_or(rest.len());
        let (before, escaped) = rest.split_at(plain);
        text.push_str(before);
        rest = escaped;
        if let Some((character, length)) = escape(rest.as_bytes()) {
            text.push(character);
            rest = rest.get(length..).unwrap_or_default();
        }
        if text.len() >= limit {
            text.truncate(clip(&text, limit).len());
            break;
        }
    }
    Some(Cow::Owned(text))
}

/// The character that the escape at the start of `text` stands for, and the escape's length.
fn escape(text: &[u8]) -> Option<(char, usize)> {
    let unit = |at: usize| -> Option<u32> {
        let digits = std::str::from_utf8(text.get(at..at + 4)?).ok()?;
        u32::from_str_radix(digits, 16).ok()
    };
    Some(match text.get(1)? {
        b'b' => ('\u{8}', 2),
        b'f' => ('\u{c}', 2),
        b'n' => ('\n', 2),
        b'r' => ('\r', 2),
        b't' => ('\t', 2),
        b'u' => {
            let first = unit(2)?;
            let second = match text.get(6..8) {
                Some(b"\\u") if (0xd800..0xdc00).contains(&first) => {
                    unit(8).filter(|second| (0xdc00..0xe000).contains(second))
                }
                _ => None,
            };
            match second {
                Some(second) => {
                    let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                    (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 12)
                }
                None => (char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), 6),
            }
        }
        &plain => (char::from(plain), 2),
    })
}

/// The first `limit` bytes of `text`, less where that would cut a character.
fn clip(text: &str, limit: usize) -> &str {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_values_end_where_they_end() {
        for text in [
            "{}",
            "[]",
            "null",
            "true",
            "false",
            "0",
            "-0",
            "-1.5e+10",
            "1E5",
            "12345678901234567890123",
            r#""""#,
            r#""a\"b\\\/\b\f\n\r\t\u00e9\ud800""#,
            r#"{"a":[1,{"b":null}],"c":"d"}"#,
            "[ 1 , 2 ,\r\n\t[ ] , { } ]",
            "{ \"a\" : 1 , \"b\" : [ ] }",
            "\"0123456789abcdef\u{e9}\u{1f600}\"",
        ] {
            assert_eq!(skip_value(text.as_bytes(), 0), Ok(text.len()), "{text}");
            let trailing = format!("{text} x");
            assert_eq!(skip_value(trailing.as_bytes(), 0), Ok(text.len()), "{trailing}");
        }
    }

    #[test]
    fn what_serde_refuses_is_refused() {
        for text in [
            "{]",
            "[}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "[1,]",
            "[,1]",
            "{,}",
            "nul!",
            "tru e",
            "+1",
            ".5",
            "-x",
            "1.x",
            "1ex",
            "[01]",
            "\"\t\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "'a'",
            "{a:1}",
            "{\"a\":1 \"b\":2}",
            "[1 2]",
            "{1:2}",
            "undefined",
            "NaN",
        ] {
            let whole = skip_value(text.as_bytes(), 0);
            assert_ne!(whole, Ok(text.len()), "{text}");
            assert!(serde_json::from_str::<serde_json::Value>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_proper_prefix_is_cut_not_invalid() {
        let text = r#"{"a":[1.5e-3,true,null,{"b":"\u00e9\n"}],"c":-7,"d":"é"}"#;
        for end in 0..text.len() {
            let stop = skip_value(&text.as_bytes()[..end], 0);
            assert!(matches!(stop, Err(Stop::Cut | Stop::More)), "{end}: {stop:?}");
        }
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = 1_000_000;
        let mut text = vec![b'['; deep];
        assert_eq!(skip_value(&text, 0), Err(Stop::More));
        text.extend(vec![b']'; deep]);
        assert_eq!(skip_value(&text, 0), Ok(2 * deep));
        let mixed = format!("{}1{}", r#"[{"a":"#.repeat(1000), "}]".repeat(1000));
        assert_eq!(skip_value(mixed.as_bytes(), 0), Ok(mixed.len()));
        let crossed = mixed.replacen("}]", "]}", 1);
        assert_eq!(skip_value(crossed.as_bytes(), 0), Err(Stop::Invalid));
    }

    #[test]
    fn strings_are_unescaped_and_clipped() {
        for (token, expected) in [
            (r#""plain""#, Some("plain")),
            (r#""a\"\\\/\n\u0041""#, Some("a\"\\/\nA")),
            (r#""\ud83d\ude00""#, Some("😀")),
            (r#""\ud83dx\udc00\ud83d\u0041""#, Some("\u{fffd}x\u{fffd}\u{fffd}A")),
            (r#""open"#, None),
            ("12", None),
        ] {
            assert_eq!(string(token, 100).as_deref(), expected, "{token}");
        }
        assert_eq!(string("\"aé\"", 2).as_deref(), Some("a"));
        assert_eq!(string("\"\\n\u{e9}\u{e9}\"", 4).as_deref(), Some("\n\u{e9}"));
    }

    #[test]
    fn members_are_found_and_a_cut_one_is_given() {
        let mut seen = Vec::new();
        let end = members(r#"{ "a" : 1 , "\u0062":[2] } "#, 1, |key, value, _| {
            seen.push((key.to_owned(), value));
        });
        assert_eq!(end, Ok(26));
        assert_eq!(seen, [("a".to_owned(), "1"), ("b".to_owned(), "[2]")]);
        seen.clear();
        let end = members(r#"{"a":1,"b":[2"#, 1, |key, value, _| {
            seen.push((key.to_owned(), value));
        });
        assert_eq!(end, Err(Stop::More));
        assert_eq!(seen, [("a".to_owned(), "1"), ("b".to_owned(), "[2")]);
    }
}

//! Makes text of unknown origin safe to show: nothing of it may move the cursor, colour the screen,
//! change the order of letters, hide, or look like a column of ours.

use std::fmt::Write as _;

/// Whether a character does something else than to show a glyph or a blank in its place.
///
/// Control characters (C0, DEL, C1), and of Unicode: format characters (bidi controls, zero-width
/// characters, tags), line and paragraph separators, fillers without a glyph, and variation
/// selectors, which can carry hidden text.
pub const fn is_invisible(c: char) -> bool {
    if (c as u32) < 0xa0 {
        return (c as u32) < 0x20 || (c as u32) > 0x7e;
    }
    matches!(
        c as u32,
        0xad
            | 0x34f
            | 0x600..=0x605
            | 0x61c
            | 0x6dd
            | 0x70f
            | 0x890..=0x891
            | 0x8e2
            | 0x115f..=0x1160
            | 0x17b4..=0x17b5
            | 0x180b..=0x180f
            | 0x200b..=0x200f
            | 0x2028..=0x202e
            | 0x2060..=0x206f
            | 0x2800
            | 0x3164
            | 0xfe00..=0xfe0f
            | 0xfeff
            | 0xffa0
            | 0xfff0..=0xfffb
            | 0x110bd
            | 0x110cd
            | 0x13430..=0x1343f
            | 0x1bca0..=0x1bca3
            | 0x1d173..=0x1d17a
            | 0xe0000..=0xe0fff
    )
}

/// Appends `text` with every invisible character written out: `\n`, `\x1b`, `\u{202e}`.
pub fn push_visible(out: &mut String, text: &str) {
    // Most text is plain; it is copied in runs.
    let mut plain = 0;
    for (at, c) in text.char_indices() {
        if is_invisible(c) {
            out.push_str(&text[plain..at]);
            push_escape(out, c);
            plain = at + c.len_utf8();
        }
    }
    out.push_str(&text[plain..]);
}

fn push_escape(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c => {
            let code = u32::from(c);
            // Writing to a `String` cannot fail.
            let _infallible = if code < 0x100 {
                write!(out, "\\x{code:02x}")
            } else {
                write!(out, "\\u{{{code:x}}}")
            };
        }
    }
}

/// Appends `text` as one column: visible, at most `max` bytes of it, and in quotes where it could be
/// taken for something else (blanks, quotes, backslashes, nothing at all, or cut).
pub fn push_word(out: &mut String, text: &str, max: usize) {
    let (head, cut) = head(text, max);
    let plain = !cut
        && !head.is_empty()
        && !head.chars().any(|c| c.is_whitespace() || is_invisible(c) || matches!(c, '"' | '\\'));
    if plain {
        out.push_str(head);
    } else {
        push_quoted(out, text, max);
    }
}

/// Appends `text` in quotes: visible, `"` and `\` escaped, at most `max` bytes of it as shown, with
/// `…` and its size where it was cut.
pub fn push_quoted(out: &mut String, text: &str, max: usize) {
    out.push('"');
    let start = out.len();
    let mut cut = false;
    for c in text.chars() {
        let before = out.len();
        if matches!(c, '"' | '\\') {
            out.push('\\');
            out.push(c);
        } else if is_invisible(c) {
            push_escape(out, c);
        } else {
            out.push(c);
        }
        if out.len() - start > max {
            out.truncate(before);
            cut = true;
            break;
        }
    }
    out.push_str(if cut { "…\"" } else { "\"" });
    if cut {
        let _infallible = write!(out, "({} bytes)", text.len());
    }
}

/// The first `max` bytes of `text` at most, cut between characters, and whether it was cut.
pub fn head(text: &str, max: usize) -> (&str, bool) {
    if text.len() <= max {
        return (text, false);
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    (&text[..end], true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str) -> String {
        let mut out = String::new();
        push_word(&mut out, text, 40);
        out
    }

    #[test]
    fn hostile_text_becomes_visible() {
        let table = [
            ("get_weather", "get_weather"),
            ("", r#""""#),
            ("größe-天気-🌦", "größe-天気-🌦"),
            // Colours, cursor movement, window title, hyperlinks, the C1 form of the same.
            ("\x1b[2J\x1b[1;31mroot", r#""\x1b[2J\x1b[1;31mroot""#),
            ("\x1b]0;title\x07", r#""\x1b]0;title\x07""#),
            ("\u{9b}31m", r#""\x9b31m""#),
            ("\x7f\x08\x08", r#""\x7f\x08\x08""#),
            // A second line of output that never happened.
            ("ok\r\n12:00:00 stdio a[1]", r#""ok\r\n12:00:00 stdio a[1]""#),
            ("x\u{2028}y\u{85}z", r#""x\u{2028}y\x85z""#),
            // Columns that never happened.
            ("x id=7 101ms", r#""x id=7 101ms""#),
            ("x\u{a0}id=7", "\"x\u{a0}id=7\""),
            (r#"a" b"#, r#""a\" b""#),
            (r"\x1b", r#""\\x1b""#),
            // Order of letters, nothing at all, hidden text.
            ("user\u{202e}txt.exe", r#""user\u{202e}txt.exe""#),
            ("\u{2066}a\u{2069}", r#""\u{2066}a\u{2069}""#),
            ("pass\u{200b}word", r#""pass\u{200b}word""#),
            ("\u{feff}bom", r#""\u{feff}bom""#),
            ("soft\u{ad}hyphen", r#""soft\xadhyphen""#),
            ("a\u{e0041}\u{fe0f}", r#""a\u{e0041}\u{fe0f}""#),
            ("\u{3164}", r#""\u{3164}""#),
            ("\0", r#""\x00""#),
        ];
        for (text, shown) in table {
            assert_eq!(word(text), shown, "{text:?}");
            assert!(!word(text).chars().any(is_invisible), "{text:?}");
        }
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(word(&"\0".repeat(100)), format!("\"{}…\"(100 bytes)", "\\x00".repeat(10)));
        assert_eq!(word(&"a".repeat(40)), "a".repeat(40));
        assert_eq!(word(&"a".repeat(10_000)), format!("\"{}…\"(10000 bytes)", "a".repeat(40)));
        assert_eq!(word(&"天".repeat(100)), format!("\"{}…\"(300 bytes)", "天".repeat(13)));
    }
}

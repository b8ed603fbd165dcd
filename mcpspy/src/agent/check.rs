//! `mcpspy check`: what this machine allows, line by line.

use std::io::Write;

use crate::source::live::preflight::{self, CheckLine, Outcome};

/// Prints what this machine allows; the exit code is 1 where monitoring is impossible.
pub fn check() -> anyhow::Result<u8> {
    let lines = preflight::check();
    // Whoever closed the pipe has what they wanted.
    drop(std::io::stdout().write_all(text(&lines).as_bytes()));
    Ok(u8::from(lines.iter().any(|line| line.ok == Outcome::Fail)))
}

fn text(lines: &[CheckLine]) -> String {
    let width = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for line in lines {
        let mark = match line.ok {
            Outcome::Ok => "ok  ",
            Outcome::Warn => "warn",
            Outcome::Fail => "FAIL",
        };
        let mut part = |mark: &str, name: &str, what: &str| {
            let row = format!("{mark}  {name:width$}  {}", what.replace('\n', "\n        "));
            text.push_str(row.trim_end());
            text.push('\n');
        };
        part(mark, line.name, &line.found);
        for (word, what) in [("lost: ", &line.lost), ("fix: ", &line.fix)] {
            if !what.is_empty() {
                part("    ", "", &format!("{word}{what}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_lost_and_how_to_fix_it() {
        let line = |name, ok, found: &str, lost: &str, fix: &str| CheckLine {
            name,
            ok,
            found: found.to_owned(),
            lost: lost.to_owned(),
            fix: fix.to_owned(),
        };
        let lines = [
            line("kernel", Outcome::Ok, "6.1.0", "", ""),
            line("type information", Outcome::Fail, "no file", "everything", "another kernel"),
        ];
        let expected = "\
ok    kernel            6.1.0
FAIL  type information  no file
                        lost: everything
                        fix: another kernel
";
        assert_eq!(text(&lines), expected);
    }
}

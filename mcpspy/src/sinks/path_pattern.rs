//! Paths with the names of containers in them: `/data/{project}/{service}.jsonl`.

use std::path::{Path, PathBuf};

use super::visible::{head, is_invisible};
use crate::model::ContainerInfo;

/// Stands for everything where neither end is in a container.
const HOST: &str = "host";

/// Stands for the project of a container that has none.
const NO_PROJECT: &str = "no-project";

/// Most bytes of one value: two of them and an extension still are a file name of Linux (255).
const LONGEST: usize = 100;

/// A path with at least one placeholder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    text: String,
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Project,
    Service,
    Container,
    Id,
}

/// A placeholder that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no `{{{0}}}`: a path can have {{project}}, {{service}}, {{container}} and {{id}}"
)]
pub struct PatternError(String);

impl PathPattern {
    /// Reads a path; `None` where it has no placeholder. Braces around anything but a word are
    /// part of the path.
    pub fn parse(path: &Path) -> Result<Option<Self>, PatternError> {
        let Some(text) = path.to_str() else { return Ok(None) };
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(start) = rest.find('{') {
            literal.push_str(&rest[..start]);
            rest = &rest[start..];
            let word = rest[1..].split_once('}').map(|(word, _)| word).filter(|word| {
                !word.is_empty()
                    && word.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_')
            });
            let Some(word) = word else {
                literal.push('{');
                rest = &rest[1..];
                continue;
            };
            let piece = match word {
                "project" => Piece::Project,
                "service" => Piece::Service,
                "container" => Piece::Container,
                "id" => Piece::Id,
                _ => return Err(PatternError(word.to_owned())),
            };
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(piece);
            rest = &rest[word.len() + 2..];
        }
        if pieces.is_empty() {
            return Ok(None);
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Some(Self { text: text.to_owned(), pieces }))
    }

    /// The path as the user wrote it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The directory that stands before the first placeholder.
    pub fn root(&self) -> PathBuf {
        let Some(Piece::Literal(literal)) = self.pieces.first() else { return PathBuf::from(".") };
        match literal.rfind('/') {
            Some(0) => PathBuf::from("/"),
            Some(slash) => PathBuf::from(&literal[..slash]),
            None => PathBuf::from("."),
        }
    }

    /// The path for this container; `None`: for the host.
    pub fn render(&self, container: Option<&ContainerInfo>) -> PathBuf {
        let mut path = String::new();
        for piece in &self.pieces {
            let value = match (piece, container) {
                (Piece::Literal(text), _) => {
                    path.push_str(text);
                    continue;
                }
                (_, None) => HOST,
                (Piece::Project, Some(container)) => {
                    container.project.as_deref().unwrap_or(NO_PROJECT)
                }
                (Piece::Service, Some(container)) => {
                    container.service.as_deref().unwrap_or(name(container))
                }
                (Piece::Container, Some(container)) => name(container),
                (Piece::Id, Some(container)) => container.id.short(),
            };
            push_safe(&mut path, value);
        }
        PathBuf::from(path)
    }
}

fn name(container: &ContainerInfo) -> &str {
    container.name.as_deref().unwrap_or(container.id.short())
}

/// Appends a value that is part of one file name, whatever an engine or a label says.
fn push_safe(path: &mut String, value: &str) {
    let (value, _) = head(value, LONGEST);
    if value.is_empty() {
        path.push('_');
    }
    for (at, c) in value.chars().enumerate() {
        let unsafe_here = c == '/' || is_invisible(c) || (at == 0 && c == '.');
        path.push(if unsafe_here { '_' } else { c });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::samples;

    fn pattern(text: &str) -> PathPattern {
        PathPattern::parse(Path::new(text)).unwrap().unwrap()
    }

    #[test]
    fn placeholders_become_names() {
        let compose = samples::container();
        let bare = samples::nested();
        for (text, of_compose, of_bare, of_host) in [
            (
                "/data/{project}/{service}.jsonl",
                "/data/shop/inventory.jsonl",
                "/data/no-project/abcdef012345.jsonl",
                "/data/host/host.jsonl",
            ),
            ("{container}", "shop-inventory-1", "abcdef012345", "host"),
            ("x-{id}{a,b}{", "x-4f1c2a9be07d{a,b}{", "x-abcdef012345{a,b}{", "x-host{a,b}{"),
        ] {
            let pattern = pattern(text);
            assert_eq!(pattern.text(), text);
            assert_eq!(pattern.render(Some(&compose)), Path::new(of_compose));
            assert_eq!(pattern.render(Some(&bare)), Path::new(of_bare));
            assert_eq!(pattern.render(None), Path::new(of_host));
        }
    }

    #[test]
    fn no_name_leads_out_of_its_place() {
        let of = |name: &str| {
            let mut container = (*samples::container()).clone();
            container.service = Some(name.into());
            pattern("/d/{service}/x").render(Some(&container))
        };
        for (name, file) in [
            ("..", "_."),
            (".", "_"),
            ("", "_"),
            ("../../etc/passwd", "_._.._etc_passwd"),
            ("/etc", "_etc"),
            ("a\0b\n\u{1b}\u{202e}c", "a_b___c"),
            ("größe", "größe"),
        ] {
            assert_eq!(of(name), Path::new("/d").join(file).join("x"), "{name:?}");
        }
        assert_eq!(of(&"天".repeat(100)), Path::new("/d").join("天".repeat(33)).join("x"));
    }

    #[test]
    fn only_known_words_in_braces_are_placeholders() {
        for plain in ["/data/x.jsonl", "/data/{}", "/data/{a,b}", "/data/{a", "/data/a}"] {
            assert_eq!(PathPattern::parse(Path::new(plain)), Ok(None), "{plain}");
        }
        for (wrong, word) in [("{name}", "name"), ("{id}/{Project}", "Project")] {
            let error = PathPattern::parse(Path::new(wrong)).unwrap_err();
            assert_eq!(error, PatternError(word.to_owned()));
            assert!(error.to_string().contains("{project}, {service}"), "{error}");
        }
    }

    #[test]
    fn the_root_is_what_stands_before_the_first_placeholder() {
        for (text, root) in [
            ("/data/{project}/x", "/data"),
            ("/data/a/b-{id}", "/data/a"),
            ("/{id}", "/"),
            ("{id}", "."),
            ("x-{id}", "."),
            ("logs/{id}", "logs"),
        ] {
            assert_eq!(pattern(text).root(), Path::new(root), "{text}");
        }
    }
}

//! Heads of requests to an engine, and of its answers.

use std::sync::Arc;

/// Whose input and output a connection becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Of the exec instance with this id.
    Exec(Arc<str>),
    /// Of the first process of this container: id, part of an id or name, as the client wrote it.
    Attach(Arc<str>),
}

/// What the beginning of a client's request asks for, where that is a container's input and output.
pub fn request(bytes: &[u8]) -> Option<Request> {
    hijack(&Target::of(bytes)?)
}

/// The container in which a client wants to start something (`POST /containers/NAME/exec`), as the
/// client wrote it: the request that comes before that for an exec instance.
pub fn prepares(bytes: &[u8]) -> Option<Arc<str>> {
    let target = Target::of(bytes).filter(|target| target.post)?;
    let path = target.path.strip_prefix("libpod/").unwrap_or(target.path);
    let name = path.strip_prefix("containers/")?.strip_suffix("/exec")?;
    is_name(name).then(|| name.into())
}

/// What engines take for a name or an id.
fn is_name(text: &str) -> bool {
    let letter = |c: u8| c.is_ascii_alphanumeric() || b"_.-".contains(&c);
    (1..=255).contains(&text.len()) && text.bytes().all(letter)
}

/// The request line of a `POST`, or of any other method.
pub(super) struct Target<'a> {
    post: bool,
    /// Without the version.
    path: &'a str,
    query: &'a str,
    versioned: bool,
}

impl<'a> Target<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Option<Self> {
        let end = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
        let line = std::str::from_utf8(bytes.get(..end)?).ok()?;
        let (method, rest) = line.split_once(" /")?;
        let (target, protocol) = rest.split_once(' ')?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let unversioned = path.split_once('/').filter(|(version, _)| is_version(version));
        protocol.starts_with("HTTP/1.").then(|| Self {
            post: method == "POST",
            path: unversioned.map_or(path, |(_, path)| path),
            query,
            versioned: unversioned.is_some(),
        })
    }

    /// Whether an engine is asked. Other servers on Unix sockets speak HTTP too.
    pub(super) fn is_engines(&self) -> bool {
        let first = self.path.split('/').next().unwrap_or_default();
        let known =
            ["_ping", "version", "info", "events", "containers", "exec", "images", "libpod"];
        self.versioned || known.contains(&first)
    }

    /// What a query says of a switch, as engines read it.
    fn switch(&self, name: &str) -> Option<bool> {
        let mut pairs =
            self.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let value = pairs.find(|(key, _)| *key == name)?.1;
        Some(!["", "0", "no", "false", "none"].iter().any(|no| value.eq_ignore_ascii_case(no)))
    }
}

/// `v1.41`, `v4.0.0`.
fn is_version(text: &str) -> bool {
    text.strip_prefix('v').is_some_and(|numbers| {
        let number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
        numbers.contains('.') && numbers.split('.').all(number)
    })
}

pub(super) fn hijack(target: &Target<'_>) -> Option<Request> {
    let (path, podman) = match target.path.strip_prefix("libpod/") {
        Some(path) => (path, true),
        None => (target.path, false),
    };
    let mut parts = path.split('/');
    let (kind, name, verb) = (parts.next()?, parts.next()?, parts.next()?);
    if !target.post || parts.next().is_some() {
        return None;
    }
    match (kind, verb) {
        ("exec", "start") => {
            let hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
            (name.len() == 64 && name.bytes().all(hex)).then(|| Request::Exec(name.into()))
        }
        ("containers", "attach") => {
            // podman streams unless told not to.
            let streams = target.switch("stream").unwrap_or(podman);
            let attaches = streams || target.switch("stdin") == Some(true);
            (is_name(name) && attaches).then(|| Request::Attach(name.into()))
        }
        _ => None,
    }
}

/// What matters of a head's fields.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each stands for a field of its own")]
pub(super) struct Fields {
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
    /// `Upgrade: tcp`
    pub(super) upgrade_tcp: bool,
    /// The content is a process's output.
    pub(super) raw_stream: bool,
    /// Only a container engine says such a thing.
    pub(super) engine: bool,
}

impl Fields {
    pub(super) fn of(head: &[u8]) -> Self {
        let mut fields = Self::default();
        for line in head.split(|byte| *byte == b'\n').skip(1) {
            let Some(colon) = memchr::memchr(b':', line) else { continue };
            let (name, value) = line.split_at(colon);
            let value = value.get(1..).unwrap_or_default().trim_ascii();
            let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
            if is("content-length") {
                fields.length = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            } else if is("transfer-encoding") {
                fields.chunked = value.eq_ignore_ascii_case(b"chunked");
            } else if is("upgrade") {
                fields.upgrade_tcp = value.eq_ignore_ascii_case(b"tcp");
            } else if is("content-type") {
                fields.raw_stream = value.starts_with(b"application/vnd.docker.raw-stream")
                    || value.starts_with(b"application/vnd.docker.multiplexed-stream");
            } else if is("server") {
                fields.engine |= value.starts_with(b"Docker/") || value.starts_with(b"Libpod/");
            } else {
                fields.engine |= is("api-version") || is("libpod-api-version");
            }
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn the_request_line_says_whose_output_it_is() {
        let exec = || Some(Request::Exec(ID.into()));
        let attach = |name: &str| Some(Request::Attach(name.into()));
        for (line, expected) in [
            (format!("POST /v1.41/exec/{ID}/start HTTP/1.1\r\nHost: x"), exec()),
            (format!("POST /exec/{ID}/start HTTP/1.1\r\n"), exec()),
            (format!("POST /v4.0.0/libpod/exec/{ID}/start HTTP/1.1\r\n"), exec()),
            (format!("POST /libpod/exec/{ID}/start HTTP/1.1"), exec()),
            (
                format!(
                    "POST /v1.41/containers/{ID}/attach?stderr=1&stdin=1&stdout=1&stream=1 HTTP/1.1\r\n"
                ),
                attach(ID),
            ),
            (
                "POST /containers/my_srv.1/attach?stream=1 HTTP/1.1\r\n".to_owned(),
                attach("my_srv.1"),
            ),
            ("POST /containers/srv/attach?stdin=True HTTP/1.1\r\n".to_owned(), attach("srv")),
            (
                "POST /v4.0.0/libpod/containers/srv/attach?stdin=true HTTP/1.1\r\n".to_owned(),
                attach("srv"),
            ),
            ("POST /v4.0.0/libpod/containers/srv/attach HTTP/1.1\r\n".to_owned(), attach("srv")),
            ("POST /containers/srv/attach?logs=1 HTTP/1.1\r\n".to_owned(), None),
            ("POST /containers/srv/attach?stdin=0&stream=0 HTTP/1.1\r\n".to_owned(), None),
            ("POST /libpod/containers/srv/attach?stream=false HTTP/1.1\r\n".to_owned(), None),
            ("POST /containers/srv/attach HTTP/1.1\r\n".to_owned(), None),
            ("POST /containers/srv/attach/ws?stdin=1 HTTP/1.1\r\n".to_owned(), None),
            ("POST /containers/a%2fb/attach?stdin=1 HTTP/1.1\r\n".to_owned(), None),
            ("POST /containers//attach?stdin=1 HTTP/1.1\r\n".to_owned(), None),
            (format!("GET /v1.41/exec/{ID}/start HTTP/1.1\r\n"), None),
            (format!("POST /v1.41/exec/{ID}/resize HTTP/1.1\r\n"), None),
            (format!("POST /v1.41/exec/{}/start HTTP/1.1\r\n", &ID[1..]), None),
            (format!("POST /v1.41/exec/{ID}/start"), None),
            ("POST /mcp HTTP/1.1\r\n".to_owned(), None),
            ("{}\n".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(request(line.as_bytes()), expected, "{line}");
        }
        assert_eq!(request(b"POST /exec/\xff/start HTTP/1.1\r\n"), None);
    }
}

//! Ground truth: what the peers logged of every byte they moved.
//!
//! `client-PID-N.sent`, `.received` and `.child` (the pid that the client spawned), and
//! `server-PID-0.sent`, `.received`. See `peers/python/tee.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::value::RawValue;

/// What one end logged.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// Its process.
    pub pid: u32,
    /// Bytes handed to its stream.
    pub sent: Vec<u8>,
    /// Bytes taken from its stream.
    pub received: Vec<u8>,
    /// Of a client: the process that it started.
    pub child: Option<u32>,
}

/// One session: a client, and the server that it spoke to.
#[derive(Clone, Debug)]
pub struct Session {
    /// The client's log.
    pub client: Log,
    /// The server's log. Of a server that does not log: what the client sent and got.
    pub server: Log,
}

/// All sessions of a test.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// The sessions, by the client's file names.
    pub sessions: Vec<Session>,
}

/// How much each log held at some moment.
#[derive(Clone, Debug, Default)]
pub struct Mark(BTreeMap<PathBuf, usize>);

impl Mark {
    /// Now.
    pub fn take(dir: &Path) -> Result<Self> {
        let mut mark = Self::default();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            mark.0.insert(path.clone(), usize::try_from(fs::metadata(&path)?.len())?);
        }
        Ok(mark)
    }

    /// Cuts off what a log held at that moment.
    fn cut(&self, end: &Path, log: &mut Log) {
        for (kind, bytes) in [("sent", &mut log.sent), ("received", &mut log.received)] {
            let held = self.0.get(&end.with_extension(kind)).copied().unwrap_or(0);
            bytes.drain(..held.min(bytes.len()));
        }
    }
}

/// Every log in a directory by its name, `client-PID-N` or `server-PID-0`.
pub fn logs(dir: &Path) -> Result<BTreeMap<String, Log>> {
    let mut logs: BTreeMap<String, Log> = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).context("name of a log")?;
        let log = logs.entry(name.to_owned()).or_default();
        log.pid = name.split('-').nth(1).context("pid of a log")?.parse()?;
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("sent") => log.sent = fs::read(&path)?,
            Some("received") => log.received = fs::read(&path)?,
            Some("child") => log.child = Some(fs::read_to_string(&path)?.parse()?),
            other => bail!("unknown log {other:?} in {}", dir.display()),
        }
    }
    Ok(logs)
}

impl Truth {
    /// Everything that was logged in a directory.
    pub fn read(dir: &Path) -> Result<Self> {
        Self::read_since(dir, &Mark::default())
    }

    /// What was logged after the mark.
    pub fn read_since(dir: &Path, mark: &Mark) -> Result<Self> {
        let (clients, mut servers): (BTreeMap<_, _>, BTreeMap<_, _>) =
            logs(dir)?.into_iter().partition(|(name, _)| name.starts_with("client-"));
        // A wrapper that logs like a server (npx is a Node program too) moves nothing.
        servers.retain(|_, log| !log.sent.is_empty() || !log.received.is_empty());
        let mut sessions = Vec::new();
        for (name, mut client) in clients {
            // By pid, or behind a wrapper by what was said: the tests say different things in
            // each session.
            let server = servers
                .iter()
                .find(|(_, log)| Some(log.pid) == client.child)
                .or_else(|| {
                    servers.iter().find(|(_, log)| {
                        !log.received.is_empty() && client.sent.starts_with(&log.received)
                    })
                })
                .map(|(name, _)| name.clone());
            let server = server.and_then(|name| servers.remove_entry(&name));
            mark.cut(&dir.join(name), &mut client);
            let server = if let Some((name, mut log)) = server {
                mark.cut(&dir.join(name), &mut log);
                log
            } else {
                let (pid, sent) = (client.child.unwrap_or(0), client.received.clone());
                Log { pid, sent, received: client.sent.clone(), child: None }
            };
            sessions.push(Session { client, server });
        }
        ensure!(servers.is_empty(), "servers without a client: {:?}", servers.keys());
        ensure!(!sessions.is_empty(), "no peer logged anything in {}", dir.display());
        Ok(Self { sessions })
    }

    /// The sessions of several.
    pub fn of<'a>(truths: impl IntoIterator<Item = &'a Self>) -> Self {
        let sessions = truths.into_iter().flat_map(|truth| truth.sessions.clone()).collect();
        Self { sessions }
    }

    /// The only session whose client said this.
    pub fn with(&self, said: &str) -> Result<Self> {
        let says = |log: &Log| String::from_utf8_lossy(&log.sent).contains(said);
        let found = self.sessions.iter().filter(|session| says(&session.client));
        let found = Self { sessions: found.cloned().collect() };
        ensure!(found.sessions.len() == 1, "{} sessions say {said}", found.sessions.len());
        Ok(found)
    }

    /// The processes of all ends.
    pub fn pids(&self) -> BTreeSet<u32> {
        self.sessions.iter().flat_map(|session| [session.client.pid, session.server.pid]).collect()
    }

    /// All messages in both directions.
    pub fn message_count(&self) -> usize {
        let count = |log: &Log| messages(&log.sent).len();
        self.sessions.iter().map(|session| count(&session.client) + count(&session.server)).sum()
    }
}

/// The messages in a stream, exact: lines that are JSON-RPC, elements of batches apart. Text
/// between them, blank lines, byte order marks and line ends are left out, and so is a last line
/// without its end.
pub fn messages(stream: &[u8]) -> Vec<&str> {
    let whole = stream.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines = stream[..whole].split(|byte| *byte == b'\n');
    let mut found = Vec::new();
    for line in lines {
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        let Ok(text) = std::str::from_utf8(line.trim_ascii()) else { continue };
        if text.starts_with('[') {
            let batch: Vec<&RawValue> = serde_json::from_str(text).unwrap_or_default();
            found.extend(batch.into_iter().map(RawValue::get).filter(|text| is_rpc(text)));
        } else if is_rpc(text) {
            found.push(text);
        }
    }
    found
}

fn is_rpc(text: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Rpc<'a> {
        #[serde(borrow)]
        jsonrpc: std::borrow::Cow<'a, str>,
    }
    text.starts_with('{')
        && serde_json::from_str::<Rpc<'_>>(text).is_ok_and(|rpc| rpc.jsonrpc == "2.0")
}

#[cfg(test)]
mod tests {
    use super::messages;

    #[test]
    fn messages_are_found_between_noise() {
        let stream = b"starting {\n{\"jsonrpc\":\"2.0\",\"id\":1}\r\n\n{\"level\":1}\n\
            [{\"jsonrpc\":\"2.0\",\"id\":2}, {\"jsonrpc\":\"2.0\",\"id\":3}]\n{\"jsonrpc\":\"2.0\"";
        let found = messages(stream);
        assert_eq!(
            found,
            [
                r#"{"jsonrpc":"2.0","id":1}"#,
                r#"{"jsonrpc":"2.0","id":2}"#,
                r#"{"jsonrpc":"2.0","id":3}"#
            ]
        );
    }
}

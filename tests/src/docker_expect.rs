//! What must be true of messages that came through a container engine.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use crate::{Event, Run, Session, Truth, compare, messages};

/// Where an end of a session runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// Not in a container.
    Host,
    /// In the container of this name.
    Container(&'a str),
    /// In a container that is known by its id alone.
    Unnamed(&'a str),
    /// In the container of a Compose service: project and service.
    Service(&'a str, &'a str),
    /// Not this test's question.
    Anywhere,
}

impl Place<'_> {
    fn is(self, container: &Value) -> bool {
        let text = |name: &str| container[name].as_str().unwrap_or_default();
        match self {
            Self::Host => container.is_null(),
            Self::Container(name) => text("name") == name && text("id").len() == 64,
            Self::Unnamed(id) => text("id") == id && text("name").is_empty(),
            Self::Service(project, service) => {
                text("project") == project && text("service") == service
            }
            Self::Anywhere => true,
        }
    }
}

impl Run {
    /// The monitor reported these sessions exactly, between the true ends and nobody else, with
    /// the client and the server where they run, and lost nothing.
    pub fn expect_between(
        &self,
        truth: &Truth,
        client: Place<'_>,
        server: Place<'_>,
    ) -> Result<()> {
        self.expect_exactly(truth)?;
        self.expect_once(truth)?;
        self.expect_places(truth, client, server)
    }

    /// As [`Self::expect_between`], where filters left holes in the sequence.
    pub fn expect_kept(&self, truth: &Truth) -> Result<()> {
        let problems = compare::compare(self, truth);
        ensure!(problems.is_empty(), "{}\nmonitor said:\n{}", problems.join("\n"), self.stderr);
        if let Some(event) = self.events.iter().find(|event| event.kind() == "lost") {
            bail!("something was lost: {}", event.value());
        }
        self.expect_once(truth)
    }

    /// No message of these sessions was reported between others too: relays, log drivers, readers
    /// of logs.
    pub fn expect_once(&self, truth: &Truth) -> Result<()> {
        let pids = truth.pids();
        let said: BTreeSet<&str> = truth
            .sessions
            .iter()
            .flat_map(|session| [&session.client.sent, &session.server.sent])
            .flat_map(|sent| messages(sent))
            .collect();
        let strange: Vec<_> = self
            .messages()
            .filter(|event| said.contains(event.raw()))
            .filter(|event| !pids.contains(&event.pids().0))
            .collect();
        let Some(first) = strange.first() else { return Ok(()) };
        bail!("{} messages were reported of others too, first: {}", strange.len(), show(first))
    }

    /// Every message of these sessions has its ends where they run.
    pub fn expect_places(&self, truth: &Truth, client: Place<'_>, server: Place<'_>) -> Result<()> {
        for session in &truth.sessions {
            let (c, s) = (session.client.pid, session.server.pid);
            for event in self.messages() {
                let (from, to) = match event.pids() {
                    pids if pids == (c, s) => (client, server),
                    pids if pids == (s, c) => (server, client),
                    _ => continue,
                };
                for (place, end) in [(from, "/from"), (to, "/to")] {
                    let container = &event.at(end)["container"];
                    ensure!(
                        place.is(container),
                        "{end} should be {place:?}, is {container}: {}",
                        show(event)
                    );
                    let quality = event.at(end)["quality"].as_str().unwrap_or_default();
                    ensure!(
                        matches!(quality, "exact" | "path"),
                        "{end} is {quality}: {}",
                        show(event)
                    );
                }
            }
        }
        Ok(())
    }

    /// Each of these sessions was opened once and closed once, and no other had its processes.
    pub fn expect_sessions(&self, truth: &Truth) -> Result<()> {
        for Session { client, server } in &truth.sessions {
            for change in ["opened", "closed"] {
                let events = self.session_events(change, server.pid);
                ensure!(
                    events.len() == 1,
                    "{} → {}: {change} {} times",
                    client.pid,
                    server.pid,
                    events.len()
                );
            }
        }
        Ok(())
    }

    /// The findings of a rule.
    pub fn findings(&self, rule: &str) -> Vec<&Event> {
        let is = |event: &&Event| event.kind() == "finding" && event.text("/rule") == rule;
        self.events.iter().filter(is).collect()
    }
}

/// An event without its payload.
fn show(event: &Event) -> String {
    let mut value = event.value().clone();
    if let Value::Object(fields) = &mut value {
        fields.retain(|name, _| {
            ["seq", "kind", "type", "id", "method", "from", "to", "session"].contains(&&**name)
        });
    }
    value.to_string()
}

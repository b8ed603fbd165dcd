//! Compares what the monitor reported with what the peers logged.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use crate::{Event, Run, Truth, messages};

/// Everything that is wrong, in words.
pub(crate) fn compare(run: &Run, truth: &Truth) -> Vec<String> {
    let mut problems = Vec::new();
    let mut explained = BTreeSet::new();
    let mut pids = BTreeSet::new();
    for session in &truth.sessions {
        let ends = (session.client.pid, session.server.pid);
        pids.extend([ends.0, ends.1]);
        let there = Way::new(run, ends, &session.client.sent, &session.server.received);
        let back = Way::new(run, (ends.1, ends.0), &session.server.sent, &session.client.received);
        check_late_reader(&there, &back, &mut problems);
        check_late_reader(&back, &there, &mut problems);
        for way in [&there, &back] {
            way.check(&mut problems);
            explained.extend(way.captured.iter().map(|event| event.seq()));
        }
        check_pairs(&there, &back, &mut problems);
        check_pairs(&back, &there, &mut problems);
    }
    for event in run.messages_of(&pids) {
        if !explained.contains(&event.seq()) {
            problems.push(format!(
                "reported between the wrong processes, or never sent: {}",
                show(event)
            ));
        }
    }
    problems
}

/// One direction of a session.
struct Way<'a> {
    ends: (u32, u32),
    /// What the sender handed to its stream.
    sent: Vec<&'a str>,
    /// How many of these the receiver is known to have taken.
    received: usize,
    captured: Vec<&'a Event>,
}

impl<'a> Way<'a> {
    fn new(run: &'a Run, ends: (u32, u32), sent: &'a [u8], received: &'a [u8]) -> Self {
        Self {
            ends,
            sent: messages(sent),
            received: messages(received).len(),
            captured: captured(run, ends),
        }
    }

    /// Same messages, same bytes, same order. A peer may have been killed between handing bytes to
    /// its stream and the stream taking them: what the receiver did not get need not be reported.
    fn check(&self, problems: &mut Vec<String>) {
        let (from, to) = self.ends;
        let differs = self.sent.iter().zip(&self.captured).position(|(sent, event)| {
            let head = event.at("/truncated") == true
                && event.number("/size_bytes") == sent.len() as u64
                && sent.starts_with(event.raw());
            event.raw() != *sent && !head
        });
        let problem = if let Some(index) = differs {
            let around = index.saturating_sub(1)..(index + 2);
            let lines = around.filter_map(|n| {
                let (sent, event) = (self.sent.get(n)?, self.captured.get(n)?);
                Some(format!("    {n} sent     {}\n    {n} reported {}", cut(sent), show(event)))
            });
            format!("message {index} differs\n{}", lines.collect::<Vec<_>>().join("\n"))
        } else if self.captured.len() > self.sent.len() {
            format!("reported too much, first: {}", show(self.captured[self.sent.len()]))
        } else if self.captured.len() < self.received {
            format!("not reported, first: {}", cut(self.sent[self.captured.len()]))
        } else {
            self.check_fields(problems);
            return;
        };
        problems.push(format!(
            "{from} → {to}: {} sent, {} received, {} reported{}; {problem}",
            self.sent.len(),
            self.received,
            self.captured.len(),
            self.multiset(),
        ));
    }

    /// How many were reported twice, and how many never, whatever their order.
    fn multiset(&self) -> String {
        let mut balance: HashMap<&str, i64> = HashMap::new();
        for sent in &self.sent {
            *balance.entry(sent).or_default() -= 1;
        }
        for event in &self.captured {
            *balance.entry(event.raw()).or_default() += 1;
        }
        let extra: i64 = balance.values().filter(|n| **n > 0).sum();
        let missing: i64 = -balance.values().filter(|n| **n < 0).sum::<i64>();
        format!(" ({missing} missing, {extra} extra or changed)")
    }

    /// The fields say what the bytes say.
    fn check_fields(&self, problems: &mut Vec<String>) {
        for (sent, event) in self.sent.iter().zip(&self.captured) {
            let Ok(message) = serde_json::from_str::<Value>(sent) else { continue };
            let expected_type = match (message.get("method").is_some(), message.get("id").is_some())
            {
                (true, true) => "request",
                (true, false) => "notification",
                (false, _) => "response",
            };
            let mut wrong = Vec::new();
            if event.text("/type") != expected_type {
                wrong.push(format!("type should be {expected_type}"));
            }
            if event.at("/id") != message.get("id").unwrap_or(&Value::Null) {
                wrong.push("id".to_owned());
            }
            if let Some(method) = message.get("method")
                && event.at("/method") != method
            {
                wrong.push("method".to_owned());
            }
            if event.at("/truncated") != true && event.number("/size_bytes") != sent.len() as u64 {
                wrong.push(format!("size_bytes should be {}", sent.len()));
            }
            if !wrong.is_empty() {
                problems.push(format!("wrong fields ({}): {}", wrong.join(", "), show(event)));
            }
        }
    }
}

/// The messages from one process to another: also those whose reader was not known in time, where
/// they belong to a session of the two.
fn captured(run: &Run, (from, to): (u32, u32)) -> Vec<&Event> {
    let between = |event: &&Event| event.pids() == (from, to) || event.pids() == (to, from);
    let sessions: BTreeSet<_> =
        run.messages().filter(between).map(|event| event.text("/session/id")).collect();
    run.messages()
        .filter(|event| {
            let late = event.pids() == (from, 0) && event.text("/to/quality") == "unknown";
            event.pids() == (from, to) || (late && sessions.contains(event.text("/session/id")))
        })
        .collect()
}

/// A receiver may be unknown only where it did not answer in time: a message does not
/// wait for its reader longer than it may, to be shown within two seconds.
fn check_late_reader(there: &Way<'_>, back: &Way<'_>, problems: &mut Vec<String>) {
    const WAIT: f64 = 1.7;
    for event in there.captured.iter().filter(|event| event.pids().1 == 0) {
        let answered = back.captured.iter().find(|answer| answer.seq() > event.seq());
        let after = answered.map(|answer| answer.seconds() - event.seconds());
        if after.is_some_and(|seconds| (0.0..WAIT).contains(&seconds)) {
            problems
                .push(format!("receiver unknown, though it was there in time: {}", show(event)));
        }
    }
}

/// Each response embeds the request that it answers: the last one with its id that came before it
/// in the other direction.
fn check_pairs(requests: &Way<'_>, responses: &Way<'_>, problems: &mut Vec<String>) {
    let mut open: HashMap<String, Vec<&Event>> = HashMap::new();
    for event in requests.captured.iter().filter(|event| event.text("/type") == "request") {
        open.entry(event.at("/id").to_string()).or_default().push(event);
    }
    for response in responses.captured.iter().filter(|event| event.text("/type") == "response") {
        let asked = open.get(&response.at("/id").to_string()).map_or(&[][..], Vec::as_slice);
        let Some(request) = asked.iter().rev().find(|event| event.seq() < response.seq()) else {
            if asked.is_empty() {
                continue; // Its request was not captured: an id of an error, or before the start.
            }
            problems.push(format!("response before its request: {}", show(response)));
            continue;
        };
        let embedded = response.at("/request");
        if embedded.get("method") != Some(request.at("/method"))
            || embedded.get("id") != Some(request.at("/id"))
            || embedded.get("seq") != Some(request.at("/seq"))
        {
            problems.push(format!(
                "response embeds the wrong request {embedded}, should be seq {}: {}",
                request.seq(),
                show(response)
            ));
        }
        if !response.at("/duration_ms").is_number() {
            problems.push(format!("paired response without duration: {}", show(response)));
        }
        if response.at("/session/id") != request.at("/session/id") {
            problems.push(format!("response in another session: {}", show(response)));
        }
    }
}

fn show(event: &Event) -> String {
    let (from, to) = event.pids();
    format!("seq {} {from} → {to} {}", event.seq(), cut(event.raw()))
}

fn cut(text: &str) -> String {
    const SHOWN: usize = 160;
    let head: String = text.chars().take(SHOWN).collect();
    if head.len() == text.len() { head } else { format!("{head}… ({} bytes)", text.len()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use serde_json::json;

    use super::compare;
    use crate::{Event, Log, Run, Session, Truth};

    const ASK: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    const ASK_AGAIN: &str = r#"{"jsonrpc":"2.0","id":2,"method":"tools/list"}"#;
    const ANSWER: &str = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
    const ANSWER_AGAIN: &str = r#"{"jsonrpc":"2.0","id":2,"result":{}}"#;

    fn truth() -> Truth {
        let sent = format!("{ASK}\n{ASK_AGAIN}\n").into_bytes();
        let back = format!("{ANSWER}\n{ANSWER_AGAIN}\n").into_bytes();
        let client = Log { pid: 10, sent: sent.clone(), received: back.clone(), child: Some(20) };
        let server = Log { pid: 20, sent: back, received: sent, child: None };
        Truth { sessions: vec![Session { client, server }] }
    }

    fn event(seq: u64, from: u32, to: u32, raw: &str) -> serde_json::Value {
        let message: serde_json::Value = serde_json::from_str(raw).unwrap();
        let kind = if message.get("method").is_some() { "request" } else { "response" };
        json!({
            "kind": "message", "seq": seq, "type": kind, "id": message["id"],
            "method": message.get("method"), "raw": raw, "size_bytes": raw.len(),
            "from": {"pid": from}, "to": {"pid": to}, "session": {"id": "s1"},
        })
    }

    fn perfect() -> Vec<serde_json::Value> {
        let mut events = vec![
            event(1, 10, 20, ASK),
            event(2, 10, 20, ASK_AGAIN),
            event(3, 20, 10, ANSWER),
            event(4, 20, 10, ANSWER_AGAIN),
        ];
        for (index, method) in [(2, "ping"), (3, "tools/list")] {
            let (id, seq) = (events[index]["id"].clone(), index - 1);
            events[index]["request"] = json!({"id": id, "method": method, "seq": seq});
            events[index]["duration_ms"] = json!(1.5);
        }
        events
    }

    fn problems(events: &[serde_json::Value]) -> Vec<String> {
        let events = events.iter().map(|event| Event::parse(&event.to_string()).unwrap());
        let run = Run {
            status: ExitStatus::from_raw(0),
            events: events.collect(),
            stdout: String::new(),
            stderr: String::new(),
        };
        compare(&run, &truth())
    }

    #[test]
    fn a_perfect_run_has_no_problems() {
        assert_eq!(problems(&perfect()), [""; 0]);
    }

    #[test]
    fn every_kind_of_error_is_seen() {
        type Spoil = fn(&mut Vec<serde_json::Value>);
        let spoils: &[(&str, Spoil)] = &[
            ("missing", |events| drop(events.remove(1))),
            ("missing at the end", |events| drop(events.pop())),
            ("twice", |events| events.push(events[3].clone())),
            ("order", |events| events.swap(0, 1)),
            ("bytes", |events| events[0]["raw"] = json!(ASK.replace("ping", "pong"))),
            ("sender", |events| events[0]["from"]["pid"] = json!(11)),
            ("receiver", |events| events[0]["to"]["pid"] = json!(0)),
            ("id", |events| events[0]["id"] = json!("1")),
            ("size", |events| events[0]["size_bytes"] = json!(1)),
            ("type", |events| events[0]["type"] = json!("notification")),
            ("pair", |events| events[3]["request"] = events[2]["request"].clone()),
            ("unpaired", |events| events[3]["request"] = json!(null)),
            ("causal order", |events| events[0]["seq"] = json!(9)),
            ("session", |events| events[3]["session"]["id"] = json!("s2")),
            ("stranger", |events| events.push(event(5, 10, 30, ASK))),
        ];
        for (name, spoil) in spoils {
            let mut events = perfect();
            spoil(&mut events);
            assert!(!problems(&events).is_empty(), "{name} went unnoticed");
        }
    }
}

//! `kind: message`.

use super::json::{self, Shape};
use super::{Line, Omit, first_key, key};
use crate::model::{Anomaly, Endpoint, MessageEvent, MessageKind, Outcome, RequestRef};

impl Line<'_> {
    pub(super) fn message(&mut self, event: &MessageEvent) {
        let message = &event.message;
        self.transport(event.transport);
        self.stdio_transport(&event.from, &event.to);
        key!(self, "type");
        self.word(match message.kind {
            MessageKind::Request => "request",
            MessageKind::Response => "response",
            MessageKind::Notification => "notification",
        });
        if let Some(id) = &message.id {
            key!(self, "id");
            self.id(id);
        }
        if let Some(method) = &message.method {
            key!(self, "method");
            self.name(method);
        }
        let part = |part: &Option<_>| part.as_ref().map(|part| message.text(part));
        let omit = self.limits.omit;
        if let Some(params) = part(&message.params) {
            if omit >= Omit::Parts {
                key!(self, "params");
                self.out.extend_from_slice(b"null");
            } else {
                self.params(params, message.truncated);
            }
        }
        if let Some(result) = part(&message.result) {
            if omit >= Omit::Parts {
                key!(self, "result");
                self.out.extend_from_slice(b"null");
            } else if self.fits(result, message.truncated) {
                key!(self, "result");
                json::push_text(self.out, result);
            }
        }
        key!(self, "error");
        self.error(part(&message.error), message.truncated);
        if let Some(request) = &event.request {
            self.request(request);
            key!(self, "request_method");
            self.name(&request.method);
        }
        if let Some(target) = &event.target {
            self.target(target);
        }
        if let Some(outcome) = &event.outcome {
            self.outcome(outcome);
        }
        if let Some(duration) = event.duration {
            key!(self, "duration_ms");
            json::push_ms(self.out, duration);
        }
        key!(self, "size_bytes");
        json::push_u64(self.out, message.size);
        key!(self, "truncated");
        let truncated = message.truncated || omit > Omit::Nothing;
        self.out.extend_from_slice(if truncated { b"true" } else { b"false" });
        if omit > Omit::Nothing {
            self.omitted(event);
        }
        if let Some((index, size)) = message.batch {
            key!(self, "batch");
            first_key!(self, "index");
            json::push_u64(self.out, u64::from(index));
            key!(self, "size");
            json::push_u64(self.out, u64::from(size));
            self.out.push(b'}');
        }
        self.anomalies(&message.anomalies);
        self.session(&event.session);
        self.ends(&event.from, &event.to);
        key!(self, "raw");
        if omit > Omit::Nothing {
            self.out.extend_from_slice(b"null");
        } else {
            self.cut |= json::push_str_cut(self.out, &message.raw, self.limits.raw);
        }
    }

    /// What `max_line` left out: so that it is not taken for a message of which the capture has no
    /// more.
    fn omitted(&mut self, event: &MessageEvent) {
        self.cut = true;
        key!(self, "payload_omitted");
        self.out.extend_from_slice(b"[\"raw\"");
        if self.limits.omit >= Omit::Parts {
            let message = &event.message;
            let params = event.request.as_ref().and_then(|request| request.params.as_ref());
            let data = message.error.as_ref().is_some_and(|error| {
                let members = json::members(message.text(error));
                members.is_none_or(|members| members.iter().any(|(key, _)| key == "data"))
            });
            for (name, part) in [
                (",\"params\"", message.params.is_some()),
                (",\"result\"", message.result.is_some()),
                (",\"error.data\"", data),
                (",\"request.params\"", params.is_some()),
            ] {
                if part {
                    self.out.extend_from_slice(name.as_bytes());
                }
            }
        }
        self.out.push(b']');
    }

    fn stdio_transport(&mut self, from: &Endpoint, to: &Endpoint) {
        let pid = |end: &Endpoint| end.process.as_ref().map_or(0, |process| process.id.pid);
        let comm = |line: &mut Self, end: &Endpoint| {
            line.name(end.process.as_ref().map_or("", |process| &process.comm));
        };
        key!(self, "stdio_transport");
        first_key!(self, "from_pid");
        json::push_u64(self.out, u64::from(pid(from)));
        key!(self, "from_comm");
        comm(self, from);
        key!(self, "to_pid");
        json::push_u64(self.out, u64::from(pid(to)));
        key!(self, "to_comm");
        comm(self, to);
        self.out.push(b'}');
    }

    /// Whether a part of the message may go out: small enough, and whole. Of a truncated message the
    /// last part may be a fragment, which would spoil the line.
    fn fits(&mut self, text: &str, may_be_fragment: bool) -> bool {
        if text.is_empty() || (may_be_fragment && !json::is_json(text)) {
            return false;
        }
        let mut fits = text.len() <= self.limits.part;
        // Escapes make it longer; only near the limit is it worth to count them.
        if fits && text.len() > self.limits.part / 6 {
            let mut written = Vec::new();
            json::push_text(&mut written, text);
            fits = written.len() <= self.limits.part;
        }
        self.cut |= !fits;
        fits
    }

    /// `params` is an object: an array becomes one whose keys are the positions.
    fn params(&mut self, text: &str, may_be_fragment: bool) {
        let shape = json::shape(text);
        if !matches!(shape, Shape::Object | Shape::Array) || !self.fits(text, may_be_fragment) {
            return;
        }
        if shape == Shape::Object {
            key!(self, "params");
            json::push_text(self.out, text);
        } else if let Some(elements) = json::elements(text) {
            key!(self, "params");
            self.out.push(b'{');
            for (at, element) in elements.iter().enumerate() {
                self.out.extend_from_slice(if at > 0 { b",\"" } else { b"\"" });
                json::push_u64(self.out, at as u64);
                self.out.extend_from_slice(b"\":");
                json::push_text(self.out, element.get());
            }
            self.out.push(b'}');
        }
    }

    /// `{}` where there is none; else `code`, `message` and `data` as far as they have the right
    /// type. What a peer sent instead of an object goes to `data`.
    fn error(&mut self, text: Option<&str>, may_be_fragment: bool) {
        let Some(text) = text.filter(|text| !may_be_fragment || json::is_json(text)) else {
            self.out.extend_from_slice(b"{}");
            return;
        };
        let Some(members) = json::members(text) else {
            if !text.is_empty() && json::shape(text) != Shape::Object && self.fits(text, true) {
                first_key!(self, "data");
                json::push_text(self.out, text);
                self.out.push(b'}');
            } else {
                self.out.extend_from_slice(b"{}");
            }
            return;
        };
        let find = |name: &str| {
            members.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.get())
        };
        let mut open = b"{\"".as_slice();
        if let Some(code) = find("code").filter(|code| json::shape(code) == Shape::Number) {
            self.out.extend_from_slice(open);
            open = b",\"";
            self.out.extend_from_slice(b"code\":");
            json::push_text(self.out, code);
        }
        if let Some(message) = find("message").filter(|text| json::shape(text) == Shape::String)
            && let Ok(message) = serde_json::from_str::<std::borrow::Cow<'_, str>>(message)
        {
            self.out.extend_from_slice(open);
            open = b",\"";
            self.out.extend_from_slice(b"message\":");
            self.cut |= json::push_str_cut(self.out, &message, self.limits.error);
        }
        if let Some(data) = find("data")
            && self.fits(data, false)
        {
            self.out.extend_from_slice(open);
            open = b",\"";
            self.out.extend_from_slice(b"data\":");
            json::push_text(self.out, data);
        }
        self.out.extend_from_slice(if open == b",\"" { b"}" } else { b"{}" });
    }

    fn request(&mut self, request: &RequestRef) {
        key!(self, "request");
        first_key!(self, "type");
        self.word("request");
        key!(self, "id");
        self.id(&request.id);
        key!(self, "method");
        self.name(&request.method);
        if let Some(params) = &request.params {
            self.params(params, false);
        }
        self.out.extend_from_slice(b",\"error\":{}");
        key!(self, "seq");
        json::push_u64(self.out, request.seq);
        self.out.push(b'}');
    }

    fn outcome(&mut self, outcome: &Outcome) {
        key!(self, "outcome");
        match outcome {
            Outcome::Ok => self.word("ok"),
            Outcome::Pending => self.word("pending"),
            Outcome::ToolError => {
                self.word("tool_error");
                key!(self, "error_type");
                self.word("tool_error");
            }
            Outcome::Error(code) => {
                self.word("error");
                key!(self, "error_type");
                match code {
                    Some(code) => {
                        self.out.push(b'"');
                        json::push_i64(self.out, *code);
                        self.out.push(b'"');
                    }
                    None => self.word("_OTHER"),
                }
            }
        }
    }

    fn anomalies(&mut self, anomalies: &[Anomaly]) {
        for (at, anomaly) in anomalies.iter().enumerate() {
            if at == 0 {
                key!(self, "anomalies");
            }
            self.out.push(if at == 0 { b'[' } else { b',' });
            self.word(super::super::text::anomaly_name(*anomaly));
        }
        if !anomalies.is_empty() {
            self.out.push(b']');
        }
    }
}

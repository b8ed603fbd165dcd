//! What a JSON-RPC message means in MCP: whether it is MCP at all, who sent it, what it is about,
//! and what its sender says of itself.
//!
//! [`Facts::of`] reads a message once and gives everything that later stages ask for. It holds for
//! both eras: revisions up to 2025-11-25 say who they are in `initialize`, 2026-07-28 says it in
//! `_meta` of each message. Nothing is remembered between messages: a fact of a message alone.

use std::sync::Arc;

use super::json::{members_of, string};
use super::jsonrpc::request_id;
pub use super::methods::{Method, REVISIONS, Role, find};
use crate::model::{Message, MessageKind, Outcome, Peer, RequestId, Target};

/// Most bytes of a name, uri or other text that is taken out of a message.
const TEXT: usize = 1024;

/// Where 2026-07-28 keeps what a message says of its sender.
const META: &str = "io.modelcontextprotocol/";

/// What one message says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its method, where MCP has it.
    pub method: Option<&'static Method>,
    /// Who sent it, where its method says so. A response says it only through its request.
    pub sender: Option<Role>,
    /// It proves by itself that its stream carries MCP.
    pub proof: bool,
    /// What a request or notification is about.
    pub target: Option<Target>,
    /// Revision that it names: asked for in a request, agreed on in the result of `initialize`, in
    /// force in `_meta`.
    pub revision: Option<Arc<str>>,
    /// What the client calls itself.
    pub client: Option<Peer>,
    /// What the server calls itself.
    pub server: Option<Peer>,
    /// Progress token: one to use (a request's `_meta`), or the one that a progress is about.
    pub progress_token: Option<RequestId>,
    /// The id of the `subscriptions/listen` that a notification belongs to.
    pub subscription: Option<RequestId>,
    /// The id of the request that `notifications/cancelled` cancels.
    pub cancels: Option<RequestId>,
    /// Of a response: how the request went. `None` where a truncated result did not come to say.
    pub outcome: Option<Outcome>,
    /// `error.message` of a response.
    pub error_message: Option<Arc<str>>,
    /// `resultType` of a result (`complete`, `input_required`, `task`, ...).
    pub result_type: Option<Arc<str>>,
    /// A result asks the client for input (`inputRequests`), or a request brings it
    /// (`inputResponses`).
    pub input: bool,
    /// The task that the message is about or that a result opened.
    pub task: Option<Arc<str>>,
}

impl Facts {
    /// Reads a message.
    pub fn of(message: &Message) -> Self {
        let mut facts = Self::default();
        if let Some(name) = &message.method {
            facts.method = find(name);
            facts.sender = facts.method.and_then(|method| method.sender);
            let params = message.params.as_ref().map_or("", |part| message.text(part));
            facts.request(name, params);
        }
        if message.kind == MessageKind::Response {
            if let Some(result) = &message.result {
                facts.result(message.text(result), message.truncated);
            }
            if let Some(error) = &message.error {
                facts.error(message.text(error));
            }
        }
        facts
    }

    /// Whether the message belongs to MCP, given whether its stream already does.
    pub const fn is_mcp(&self, in_session: bool) -> bool {
        in_session || self.proof
    }

    fn request(&mut self, name: &str, params: &str) {
        let mut own = Params::default();
        members_of(params, |key, value| match key {
            "_meta" => self.meta(value),
            "name" => own.name = Some(value),
            "uri" => own.uri = Some(value),
            "taskId" => own.task = Some(value),
            "ref" => own.reference = Some(value),
            "level" => own.level = Some(value),
            "requestId" => own.request = Some(value),
            "progressToken" => own.token = Some(value),
            "elicitationId" => own.elicitation = Some(value),
            "protocolVersion" => own.revision = Some(value),
            "clientInfo" => own.client = Some(value),
            "inputResponses" => self.input = true,
            "processId" | "rootUri" | "rootPath" | "workspaceFolders" => own.editor = true,
            _ => {}
        });
        self.task = own.task.and_then(text);
        self.target = match name {
            "tools/call" => own.name.and_then(text).map(Target::Tool),
            "prompts/get" => own.name.and_then(text).map(Target::Prompt),
            "resources/read"
            | "resources/subscribe"
            | "resources/unsubscribe"
            | "notifications/resources/updated" => own.uri.and_then(text).map(Target::Resource),
            "completion/complete" => own.reference.and_then(reference).map(Target::Other),
            "logging/setLevel" | "notifications/message" => {
                own.level.and_then(text).map(Target::Other)
            }
            "notifications/cancelled" => own.request.and_then(id_text).map(Target::Other),
            "notifications/progress" => own.token.and_then(id_text).map(Target::Other),
            "notifications/elicitation/complete" => {
                own.elicitation.and_then(text).map(Target::Other)
            }
            _ => self.task.clone().map(Target::Other),
        };
        match name {
            "notifications/cancelled" => self.cancels = own.request.and_then(request_id),
            "notifications/progress" => self.progress_token = own.token.and_then(request_id),
            _ => {}
        }
        let shape = match name {
            "initialize" => {
                // LSP has no `protocolVersion`, ACP has a number there.
                let revision = own.revision.and_then(text);
                let is_mcp = revision.is_some() && !own.editor;
                if is_mcp {
                    self.revision = revision;
                    self.client = own.client.and_then(peer);
                }
                is_mcp
            }
            _ if name.starts_with("tasks/") => self.method.is_some() && self.task.is_some(),
            _ => false,
        };
        // Whoever names the revision in MCP's own key speaks MCP, whatever the method.
        let named = name != "initialize" && self.revision.is_some();
        self.proof = shape || named || self.method.is_some_and(|method| !method.shared);
    }

    fn result(&mut self, result: &str, truncated: bool) {
        let (mut revision, mut server, mut tool_error) = (None, None, None);
        members_of(result, |key, value| match key {
            "_meta" => self.meta(value),
            "isError" => tool_error = Some(value == "true"),
            "resultType" => self.result_type = text(value),
            "inputRequests" => self.input = true,
            "taskId" => self.task = text(value),
            "task" => members_of(value, |key, value| {
                if key == "taskId" {
                    self.task = text(value);
                }
            }),
            "protocolVersion" => revision = Some(value),
            "serverInfo" => server = Some(value),
            _ => {}
        });
        self.outcome = match tool_error {
            Some(true) => Some(Outcome::ToolError),
            None if truncated => None,
            _ => Some(Outcome::Ok),
        };
        // The result of `initialize`. LSP's has a `serverInfo` too, but no revision.
        if let Some(revision) = revision.and_then(text) {
            self.revision = Some(revision);
            if let Some(peer) = server.and_then(peer) {
                self.server = Some(peer);
            }
        }
        self.proof = self.server.is_some();
    }

    fn error(&mut self, error: &str) {
        let mut code = None;
        members_of(error, |key, value| match key {
            "code" => code = value.parse().ok(),
            "message" => self.error_message = text(value),
            _ => {}
        });
        self.outcome = Some(Outcome::Error(code));
    }

    fn meta(&mut self, meta: &str) {
        members_of(meta, |key, value| match key.strip_prefix(META) {
            Some("protocolVersion") => self.revision = text(value),
            Some("clientInfo") => self.client = peer(value),
            Some("serverInfo") => self.server = peer(value),
            Some("subscriptionId") => self.subscription = request_id(value),
            Some("related-task") => members_of(value, |key, value| {
                if key == "taskId" {
                    self.task = text(value);
                }
            }),
            None if key == "progressToken" => self.progress_token = request_id(value),
            _ => {}
        });
    }
}

/// Members of `params` that mean something for some method.
#[derive(Default)]
struct Params<'a> {
    name: Option<&'a str>,
    uri: Option<&'a str>,
    task: Option<&'a str>,
    reference: Option<&'a str>,
    level: Option<&'a str>,
    request: Option<&'a str>,
    token: Option<&'a str>,
    elicitation: Option<&'a str>,
    revision: Option<&'a str>,
    client: Option<&'a str>,
    editor: bool,
}

/// A string value, unescaped, at most [`TEXT`] bytes.
fn text(value: &str) -> Option<Arc<str>> {
    string(value, TEXT).map(Arc::from)
}

/// An id as people write it.
fn id_text(value: &str) -> Option<Arc<str>> {
    text(value).or_else(|| {
        matches!(value.as_bytes().first(), Some(b'-' | b'0'..=b'9'))
            .then(|| value.get(..TEXT).unwrap_or(value).into())
    })
}

/// What is to be completed: the name of a prompt or the uri of a resource.
fn reference(value: &str) -> Option<Arc<str>> {
    let mut found = None;
    members_of(value, |key, value| {
        if matches!(key, "name" | "uri") {
            found = text(value);
        }
    });
    found
}

/// A `clientInfo` or `serverInfo` that has a name.
fn peer(value: &str) -> Option<Peer> {
    let (mut name, mut version) = (None, None);
    members_of(value, |key, value| match key {
        "name" => name = text(value),
        "version" => version = text(value),
        _ => {}
    });
    Some(Peer { name: name?, version: version.unwrap_or_default() })
}

/// Whether MCP has a method of this name.
pub fn is_known(method: &str) -> bool {
    find(method).is_some()
}

/// Who sends this method, where only one end may.
pub fn sender(method: &str) -> Option<Role> {
    find(method)?.sender
}

/// Whether a message belongs to MCP, given whether its stream already does. The same as
/// [`Facts::is_mcp`] for those who need nothing else of the message.
pub fn is_mcp(message: &Message, in_session: bool) -> bool {
    in_session || Facts::of(message).proof
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{jsonrpc, ndjson::Decoder};

    fn facts(text: &str) -> Facts {
        let (mut lines, mut messages) = (Vec::new(), Vec::new());
        let mut decoder = Decoder::new(1 << 20);
        decoder.push(text.as_bytes(), &mut lines);
        decoder.finish(&mut lines);
        assert_eq!(jsonrpc::parse(&lines[0], &mut messages), jsonrpc::Parsed::Messages, "{text}");
        Facts::of(&messages[0])
    }

    fn call(method: &str, params: &str) -> Facts {
        facts(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#))
    }

    fn answer(member: &str) -> Facts {
        facts(&format!(r#"{{"jsonrpc":"2.0","id":1,{member}}}"#))
    }

    fn named(name: &str, version: &str) -> Peer {
        Peer { name: name.into(), version: version.into() }
    }

    #[test]
    fn what_a_message_is_about() {
        let other = |text: &str| Some(Target::Other(text.into()));
        for (method, params, target) in [
            (
                "tools/call",
                r#"{"name":"get_weather","arguments":{"name":"x"}}"#,
                Some(Target::Tool("get_weather".into())),
            ),
            ("tools/call", r#"{"arguments":{"name":"x"}}"#, None),
            ("tools/call", r#"{"name":7}"#, None),
            ("tools/call", "[]", None),
            ("prompts/get", r#"{"name":"a\u00e9"}"#, Some(Target::Prompt("aé".into()))),
            (
                "resources/read",
                r#"{"uri":"file:\/\/x"}"#,
                Some(Target::Resource("file://x".into())),
            ),
            (
                "notifications/resources/updated",
                r#"{"uri":"a"}"#,
                Some(Target::Resource("a".into())),
            ),
            (
                "completion/complete",
                r#"{"ref":{"type":"ref/prompt","name":"p"},"argument":{"name":"n"}}"#,
                other("p"),
            ),
            ("completion/complete", r#"{"ref":{"type":"ref/resource","uri":"u"}}"#, other("u")),
            ("logging/setLevel", r#"{"level":"debug"}"#, other("debug")),
            ("notifications/message", r#"{"level":"info","data":{}}"#, other("info")),
            ("notifications/cancelled", r#"{"requestId":12,"reason":"r"}"#, other("12")),
            ("notifications/progress", r#"{"progressToken":"t","progress":1}"#, other("t")),
            ("tasks/get", r#"{"taskId":"7"}"#, other("7")),
            ("tools/list", r#"{"cursor":"c"}"#, None),
            ("vendor/thing", "{}", None),
        ] {
            assert_eq!(call(method, params).target, target, "{method} {params}");
        }
        let long = call("tools/call", &format!(r#"{{"name":"{}"}}"#, "é".repeat(5000)));
        assert_eq!(long.target, Some(Target::Tool("é".repeat(512).into())));
    }

    #[test]
    fn what_proves_mcp() {
        let mcp = r#"{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"c"}}"#;
        let lsp = r#"{"processId":1,"rootUri":null,"capabilities":{"textDocument":{}},"clientInfo":{"name":"code"}}"#;
        let stateless = r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}"#;
        for (method, params, proof) in [
            ("initialize", mcp, true),
            ("initialize", lsp, false),
            // ACP; and an editor that names some version.
            ("initialize", r#"{"protocolVersion":1,"clientCapabilities":{}}"#, false),
            ("initialize", r#"{"processId":1,"protocolVersion":"3.17"}"#, false),
            ("initialize", "{}", false),
            ("initialized", "{}", false),
            ("notifications/initialized", "{}", true),
            ("ping", "{}", false),
            ("ping", stateless, true),
            ("tools/call", r#"{"name":"x"}"#, true),
            ("tasks/get", r#"{"id":"a2a"}"#, false),
            ("tasks/get", r#"{"taskId":"mcp"}"#, true),
            ("tasks/pushNotificationConfig/set", r#"{"taskId":"a2a"}"#, false),
            ("textDocument/hover", "{}", false),
            ("eth_call", "[]", false),
            ("vendor/thing", "{}", false),
            ("vendor/thing", stateless, true),
        ] {
            let facts = call(method, params);
            assert_eq!(facts.proof, proof, "{method} {params}");
            assert_eq!(facts.is_mcp(false), proof);
            assert!(facts.is_mcp(true));
        }
        assert!(
            answer(r#""result":{"protocolVersion":"2025-06-18","serverInfo":{"name":"s"}}"#).proof
        );
        assert!(
            !answer(r#""result":{"capabilities":{},"serverInfo":{"name":"rust-analyzer"}}"#).proof
        );
        assert!(!answer(r#""result":{}"#).proof);
    }

    #[test]
    fn peers_and_revisions_of_both_eras() {
        let asked = call(
            "initialize",
            r#"{"protocolVersion":"2025-11-25","clientInfo":{"name":"c","title":"T","version":"1"}}"#,
        );
        assert_eq!(asked.revision.as_deref(), Some("2025-11-25"));
        assert_eq!((asked.client, asked.sender), (Some(named("c", "1")), Some(Role::Client)));
        let agreed = answer(
            r#""result":{"protocolVersion":"2024-11-05","serverInfo":{"version":"2","name":"s"}}"#,
        );
        assert_eq!(agreed.revision.as_deref(), Some("2024-11-05"));
        assert_eq!(agreed.server, Some(named("s", "2")));

        let modern = call(
            "tools/call",
            r#"{"name":"x","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",
            "io.modelcontextprotocol/clientInfo":{"name":"c"},"progressToken":3}}"#,
        );
        assert_eq!(modern.revision.as_deref(), Some("2026-07-28"));
        assert_eq!(modern.client, Some(named("c", "")));
        assert_eq!(modern.progress_token, Some(RequestId::Integer(3)));
        let modern = answer(
            r#""result":{"resultType":"input_required","inputRequests":{"k":{}},
            "_meta":{"io.modelcontextprotocol/serverInfo":{"name":"s","version":"3"}}}"#,
        );
        assert_eq!(modern.server, Some(named("s", "3")));
        assert_eq!(modern.result_type.as_deref(), Some("input_required"));
        assert!(modern.input && modern.proof);
        let told = facts(
            r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed",
            "params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"l"}}}"#,
        );
        assert_eq!(told.subscription, Some(RequestId::String("l".into())));
        assert_eq!(told.sender, Some(Role::Server));
    }

    #[test]
    fn how_requests_went() {
        for (member, outcome, message) in [
            (r#""result":{"content":[]}"#, Outcome::Ok, None),
            (r#""result":{"content":[{"isError":true}],"isError":false}"#, Outcome::Ok, None),
            (r#""result":{"content":[],"isError":true}"#, Outcome::ToolError, None),
            (r#""result":null"#, Outcome::Ok, None),
            (
                r#""error":{"code":-32601,"message":"no\n"}"#,
                Outcome::Error(Some(-32601)),
                Some("no\n"),
            ),
            (r#""error":{"code":"E","message":""}"#, Outcome::Error(None), Some("")),
            (r#""error":"text""#, Outcome::Error(None), None),
            (r#""result":{},"error":{"code":1}"#, Outcome::Error(Some(1)), None),
        ] {
            let facts = answer(member);
            assert_eq!(facts.outcome, Some(outcome), "{member}");
            assert_eq!(facts.error_message.as_deref(), message, "{member}");
        }
        assert_eq!(call("tools/list", "{}").outcome, None);
        let cancelled = call("notifications/cancelled", r#"{"requestId":"7"}"#);
        assert_eq!(cancelled.cancels, Some(RequestId::String("7".into())));
        let task = answer(r#""result":{"resultType":"task","task":{"taskId":"t"}}"#);
        assert_eq!(task.task.as_deref(), Some("t"));
    }

    #[test]
    fn a_cut_result_says_nothing_of_its_outcome() {
        let text = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"c":"{}"}}}}"#, "x".repeat(9000));
        let (mut lines, mut messages) = (Vec::new(), Vec::new());
        let mut decoder = Decoder::new(1000);
        decoder.push(text.as_bytes(), &mut lines);
        decoder.finish(&mut lines);
        jsonrpc::parse(&lines[0], &mut messages);
        assert_eq!(Facts::of(&messages[0]).outcome, None);
    }
}

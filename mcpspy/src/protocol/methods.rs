//! The methods of every published revision of MCP, who sends them, and where their name alone does
//! not prove that a message is MCP.

/// The published revisions, oldest first. They are dates: text order is time order.
pub const REVISIONS: [&str; 5] =
    ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"];

/// An end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Asks for tools, resources and prompts.
    Client,
    /// Offers them.
    Server,
}

impl Role {
    /// The other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// A method of MCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Its name on the wire.
    pub name: &'static str,
    /// Who sends it; `None` where both may.
    pub sender: Option<Role>,
    /// The first revision that has it.
    pub since: &'static str,
    /// The last revision that has it; `None` where the newest one does.
    pub until: Option<&'static str>,
    /// Other protocols on JSON-RPC use the name, so it proves nothing by itself.
    pub shared: bool,
}

const C: Option<Role> = Some(Role::Client);
const S: Option<Role> = Some(Role::Server);
const BOTH: Option<Role> = None;

const FIRST: &str = REVISIONS[0];
const ELICITATION: &str = REVISIONS[2];
const TASKS: &str = REVISIONS[3];
const STATELESS: &str = REVISIONS[4];
/// Last revision before the stateless one.
const LEGACY: Option<&str> = Some(REVISIONS[3]);

const fn method(
    name: &'static str,
    sender: Option<Role>,
    since: &'static str,
    until: Option<&'static str>,
) -> Method {
    Method { name, sender, since, until, shared: false }
}

/// A method whose name other protocols use too.
const fn shared(
    name: &'static str,
    sender: Option<Role>,
    since: &'static str,
    until: Option<&'static str>,
) -> Method {
    Method { name, sender, since, until, shared: true }
}

/// All of them, by name.
///
/// Shared with others: `initialize` with LSP, ACP and Codex, `ping` with everybody, and `tasks/*`
/// with A2A (which calls the task `id`, MCP `taskId`). LSP's `initialized`, `shutdown` and
/// `window/...` are not MCP: its own notification is `notifications/initialized`.
///
/// In 2026-07-28 a server's `roots/list`, `sampling/createMessage` and `elicitation/create` stand
/// only within `inputRequests` of a result; as messages they belong to the revisions before.
pub const METHODS: [Method; 36] = [
    method("completion/complete", C, FIRST, None),
    method("elicitation/create", S, ELICITATION, None),
    shared("initialize", C, FIRST, LEGACY),
    method("logging/setLevel", C, FIRST, LEGACY),
    method("notifications/cancelled", BOTH, FIRST, None),
    method("notifications/elicitation/complete", S, TASKS, LEGACY),
    method("notifications/initialized", C, FIRST, LEGACY),
    method("notifications/message", S, FIRST, None),
    method("notifications/progress", BOTH, FIRST, None),
    method("notifications/prompts/list_changed", S, FIRST, None),
    method("notifications/resources/list_changed", S, FIRST, None),
    method("notifications/resources/updated", S, FIRST, None),
    method("notifications/roots/list_changed", C, FIRST, LEGACY),
    method("notifications/subscriptions/acknowledged", S, STATELESS, None),
    method("notifications/tasks", S, STATELESS, None),
    method("notifications/tasks/status", BOTH, TASKS, LEGACY),
    method("notifications/tools/list_changed", S, FIRST, None),
    shared("ping", BOTH, FIRST, LEGACY),
    method("prompts/get", C, FIRST, None),
    method("prompts/list", C, FIRST, None),
    method("resources/list", C, FIRST, None),
    method("resources/read", C, FIRST, None),
    method("resources/subscribe", C, FIRST, LEGACY),
    method("resources/templates/list", C, FIRST, None),
    method("resources/unsubscribe", C, FIRST, LEGACY),
    method("roots/list", S, FIRST, None),
    method("sampling/createMessage", S, FIRST, None),
    method("server/discover", C, STATELESS, None),
    method("subscriptions/listen", C, STATELESS, None),
    shared("tasks/cancel", BOTH, TASKS, None),
    shared("tasks/get", BOTH, TASKS, None),
    shared("tasks/list", BOTH, TASKS, LEGACY),
    shared("tasks/result", BOTH, TASKS, LEGACY),
    shared("tasks/update", C, STATELESS, None),
    method("tools/call", C, FIRST, None),
    method("tools/list", C, FIRST, None),
];

/// The method with this name, if MCP has it.
pub fn find(name: &str) -> Option<&'static Method> {
    let place = METHODS.binary_search_by(|method| method.name.cmp(name)).ok()?;
    METHODS.get(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_complete() {
        assert!(METHODS.is_sorted_by(|a, b| a.name < b.name));
        for method in METHODS {
            assert_eq!(find(method.name).map(|found| found.name), Some(method.name));
            assert!(REVISIONS.contains(&method.since), "{}", method.name);
            assert!(method.until.is_none_or(|until| method.since <= until), "{}", method.name);
        }
        for unknown in ["", "tools", "tools/call ", "initialized", "ui/open", "textDocument/hover"]
        {
            assert_eq!(find(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn senders() {
        for (name, sender) in [
            ("tools/call", Some(Role::Client)),
            ("sampling/createMessage", Some(Role::Server)),
            ("notifications/progress", None),
            ("ping", None),
        ] {
            assert_eq!(find(name).map(|method| method.sender), Some(sender), "{name}");
        }
        assert_eq!(Role::Client.other(), Role::Server);
        assert_eq!(Role::Server.other(), Role::Client);
    }
}

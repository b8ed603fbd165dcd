//! Servers in containers: what passes a container engine's relays is said once, with its real ends.

mod script;

use mcpspy::filter::{ContainerFilter, ContainerRules};
use mcpspy::model::{Command, ContainerId, EventBody, Quality};
use mcpspy::telemetry::Counter;
use script::{MS, Script, Wire, fd, request, response};

const SHIM: u32 = 50;

/// `docker exec -i`: client, CLI with a connection to the engine, shim, server.
struct Path {
    client: u32,
    cli: u32,
    server: u32,
    /// Client to CLI, and back.
    outer: (Wire, Wire),
    /// Shim to server, and back.
    inner: (Wire, Wire),
}

impl Path {
    fn new(script: &mut Script, client: u32, cli: u32, server: u32) -> Self {
        script.relay(cli, "docker");
        script.relay(SHIM, "containerd-shim");
        let outer = (script.pipe(), script.pipe());
        let inner = (script.pipe(), script.pipe());
        script.facts(client, 1, &[fd(outer.0, false), fd(outer.1, true)]);
        script.facts(cli, client, &[fd(outer.0, true), fd(outer.1, false)]);
        script.facts(SHIM, 1, &[fd(inner.0, false), fd(inner.1, true)]);
        script.facts(server, 1, &[fd(inner.0, true), fd(inner.1, false)]);
        Self { client, cli, server, outer, inner }
    }

    fn client_writes(&self, script: &mut Script, text: &str) {
        script.write(self.client, self.outer.0, text);
        script.read(self.cli, self.outer.0);
    }

    fn server_reads(&self, script: &mut Script, text: &str) {
        script.relays_to(SHIM, self.inner.0);
        script.read_copy(self.server, self.inner.0, text);
    }

    fn ask(&self, script: &mut Script, text: &str) {
        self.client_writes(script, text);
        self.server_reads(script, text);
    }

    fn answer(&self, script: &mut Script, text: &str) {
        self.server_writes(script, text);
        self.client_reads(script, text);
    }

    fn server_writes(&self, script: &mut Script, text: &str) {
        script.write(self.server, self.inner.1, text);
        script.read(SHIM, self.inner.1);
    }

    fn client_reads(&self, script: &mut Script, text: &str) {
        script.relays_to(self.cli, self.outer.1);
        script.read_copy(self.client, self.outer.1, text);
    }

    /// The CLI asks the engine for the n-th exec instance.
    fn asks_for(&self, script: &mut Script, n: u64) {
        let (up, _) = script.socketpair();
        let line = format!("POST /v1.41/exec/{n:064x}/start HTTP/1.1\r\nHost: docker\r\n\r\n");
        script.write(self.cli, up, &line);
    }
}

fn shop(script: &mut Script, server: u32) -> ContainerId {
    let shop = script.container(7, 40);
    script.inside(7, server);
    script.told(&shop, "shop", 40);
    shop
}

fn names(script: &Script) -> Vec<Option<String>> {
    let name = |end: &mcpspy::model::Endpoint| {
        end.container.as_ref().and_then(|container| container.name.as_deref().map(str::to_owned))
    };
    script.messages().map(|message| name(&message.from).or(name(&message.to))).collect()
}

#[test]
fn a_path_is_known_by_what_its_relay_asked_for() {
    let mut script = Script::default();
    script.engine_is_there();
    let shop = shop(&mut script, 20);
    let path = Path::new(&mut script, 10, 11, 20);
    path.asks_for(&mut script, 3);
    script.exec(3, &shop, 20);
    path.ask(&mut script, &request(1, "tools/list"));
    path.answer(&mut script, &response(1));
    script.wait(10 * MS);
    assert_eq!(script.lines(), ["10>20 tools/list#1", "20>10 =tools/list#1"]);
    assert_eq!(names(&script), [Some("shop".to_owned()), Some("shop".to_owned())]);
    let first = script.messages().next().expect("one");
    assert_eq!((first.from.quality, first.to.quality), (Quality::Path, Quality::Exact));
    script.wait(5000 * MS);
    script.finish();
    assert_eq!(script.lines().len(), 2, "once");
    assert_eq!(script.counter(Counter::WithheldDuplicate), 2);
}

#[test]
fn without_an_engine_the_lines_tell() {
    let mut script = Script::default();
    let path = Path::new(&mut script, 10, 11, 20);
    path.ask(&mut script, &request(1, "tools/list"));
    path.answer(&mut script, &response(1));
    path.ask(&mut script, &request(2, "ping"));
    path.answer(&mut script, &response(2));
    script.wait(5000 * MS);
    script.finish();
    assert_eq!(
        script.lines(),
        ["10>20 tools/list#1", "20>10 =tools/list#1", "10>20 ping#2", "20>10 =ping#2"]
    );
}

#[test]
fn twenty_clients_that_say_the_same_are_told_apart_by_their_exec_instances() {
    let mut script = Script::default();
    script.engine_is_there();
    let shop = shop(&mut script, 200);
    let mut paths = Vec::new();
    for n in 0..20 {
        script.inside(7, 200 + n);
        let path = Path::new(&mut script, 100 + n, 150 + n, 200 + n);
        path.asks_for(&mut script, u64::from(n));
        paths.push(path);
    }
    for path in &paths {
        path.client_writes(&mut script, &request(0, "tools/list"));
    }
    // Facts and servers come in another order.
    for (n, path) in paths.iter().enumerate().rev() {
        script.exec(n as u64, &shop, path.server);
        path.server_reads(&mut script, &request(0, "tools/list"));
    }
    for path in &paths {
        path.answer(&mut script, &response(0));
    }
    script.wait(5000 * MS);
    script.finish();
    let lines = script.lines();
    assert_eq!(lines.len(), 40);
    for path in &paths {
        let (client, server) = (path.client, path.server);
        assert!(lines.contains(&format!("{client}>{server} tools/list#0")));
        assert!(lines.contains(&format!("{server}>{client} =tools/list#0")));
    }
}

#[test]
fn two_that_cannot_be_told_apart_are_said_once_and_nothing_is_guessed() {
    let mut script = Script::default();
    let one = Path::new(&mut script, 10, 11, 20);
    let two = Path::new(&mut script, 12, 13, 22);
    for path in [&one, &two] {
        path.client_writes(&mut script, &request(0, "tools/list"));
    }
    for path in [&one, &two] {
        path.server_reads(&mut script, &request(0, "tools/list"));
    }
    for path in [&one, &two] {
        path.server_writes(&mut script, &response(0));
    }
    for path in [&one, &two] {
        path.client_reads(&mut script, &response(0));
    }
    script.wait(3000 * MS);
    assert_eq!(
        script.lines(),
        ["?>20 tools/list#0", "20>? =tools/list#0", "?>22 tools/list#0", "22>? =tools/list#0"]
    );
    // What only one of them says tells them apart.
    one.ask(&mut script, &request(1, "tools/list"));
    one.answer(&mut script, &response(1));
    script.wait(3000 * MS);
    script.finish();
    assert_eq!(script.lines()[4..], ["10>20 tools/list#1", "20>10 =tools/list#1"]);
}

#[test]
fn a_client_on_another_host_is_said_to_be_outside() {
    let mut script = Script::default();
    script.engine_is_there();
    shop(&mut script, 20);
    let path = Path::new(&mut script, 10, 11, 20);
    path.server_reads(&mut script, &request(1, "tools/list"));
    script.write(20, path.inner.1, &response(1));
    script.read(SHIM, path.inner.1);
    script.wait(1000 * MS);
    script.finish();
    assert_eq!(script.lines(), ["?>20 tools/list#1", "20>? =tools/list#1"]);
    let first = script.messages().next().expect("one");
    assert_eq!(first.from.quality, Quality::Outside);
    assert_eq!(script.counter(Counter::UnknownEnds), 0);
}

#[test]
fn a_server_that_starts_slowly_is_shown_in_time_and_once() {
    let mut script = Script::default();
    script.engine_is_there();
    let shop = shop(&mut script, 20);
    let path = Path::new(&mut script, 10, 11, 20);
    path.asks_for(&mut script, 3);
    script.exec(3, &shop, 20);
    path.client_writes(&mut script, &request(1, "tools/list"));
    script.wait(2000 * MS);
    assert_eq!(script.lines(), ["10>20 tools/list#1"], "within two seconds");
    assert_eq!(names(&script), [Some("shop".to_owned())]);
    path.server_reads(&mut script, &request(1, "tools/list"));
    path.answer(&mut script, &response(1));
    path.ask(&mut script, &request(2, "ping"));
    path.answer(&mut script, &response(2));
    script.wait(3000 * MS);
    script.finish();
    assert_eq!(
        script.lines(),
        ["10>20 tools/list#1", "20>10 =tools/list#1", "10>20 ping#2", "20>10 =ping#2"]
    );
}

#[test]
fn a_relay_that_leads_nowhere_is_an_end_and_a_finding() {
    let mut script = Script::default();
    script.relay(11, "docker");
    let (up, down) = (script.pipe(), script.pipe());
    script.facts(10, 1, &[fd(up, false), fd(down, true)]);
    script.facts(11, 10, &[fd(up, true), fd(down, false)]);
    script.write(10, up, &request(1, "tools/list"));
    script.read(11, up);
    script.relays_to(11, down);
    script.read_copy(10, down, &response(1));
    script.wait(2000 * MS);
    script.finish();
    assert_eq!(script.lines(), ["10>11 tools/list#1", "11>10 =tools/list#1"]);
    let findings: Vec<_> = script
        .events
        .iter()
        .filter_map(|event| match &event.body {
            EventBody::Finding(finding) => Some(finding.rule),
            _ => None,
        })
        .collect();
    assert_eq!(findings, ["relay-name"]);
}

#[test]
fn a_gateway_is_an_end_of_two_hops() {
    let mut script = Script::default();
    script.engine_is_there();
    let shop = shop(&mut script, 20);
    // A gateway is no relay: it speaks to the engine itself, and says its own lines.
    let path = Path::new(&mut script, 60, 11, 20);
    path.asks_for(&mut script, 3);
    script.exec(3, &shop, 20);
    let (up, down) = (script.pipe(), script.pipe());
    script.facts(10, 1, &[fd(up, false), fd(down, true)]);
    script.facts(
        60,
        10,
        &[fd(up, true), fd(down, false), fd(path.outer.0, false), fd(path.outer.1, true)],
    );
    script.write(10, up, &request(7, "tools/list"));
    script.read(60, up);
    path.ask(&mut script, &request(1, "tools/list"));
    path.answer(&mut script, &response(1));
    script.write(60, down, &response(7));
    script.read(10, down);
    script.wait(3000 * MS);
    script.finish();
    let mut lines = script.lines();
    lines.sort_unstable();
    assert_eq!(
        lines,
        ["10>60 tools/list#7", "20>60 =tools/list#1", "60>10 =tools/list#7", "60>20 tools/list#1"]
    );
}

#[test]
fn a_stream_that_only_logs_is_no_session() {
    // docker logs -f SERVER | jq .
    let mut script = Script::default();
    script.relay(11, "docker");
    let pipe = script.pipe();
    script.facts(11, 1, &[fd(pipe, false)]);
    script.facts(12, 1, &[fd(pipe, true)]);
    script.relays_to(11, pipe);
    script.read_copy(12, pipe, &request(1, "tools/list"));
    script.read_copy(12, pipe, &response(1));
    script.wait(3000 * MS);
    script.finish();
    assert_eq!(script.lines(), [""; 0]);
}

const DOCKERD: u32 = 51;

/// A connection to the engine that becomes a server's standard input and output, without a relay's
/// name at the client's side.
struct Hijacked {
    client: u32,
    up: Wire,
    down: Wire,
}

impl Hijacked {
    fn new(script: &mut Script, client: u32, exec: u64) -> Self {
        script.relay(DOCKERD, "dockerd");
        let (up, down) = script.socketpair();
        let this = Self { client, up, down };
        let head = format!(
            "POST /v1.41/exec/{exec:064x}/start HTTP/1.1\r\nHost: docker\r\nContent-Length: 2\r\n\
             Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n{{}}"
        );
        script.write(client, up, &head);
        script.read(DOCKERD, up);
        script.relays_to(DOCKERD, down);
        script.read_copy(
            client,
            down,
            "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n\
             Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
        );
        this
    }

    fn writes(&self, script: &mut Script, text: &str) {
        script.write(self.client, self.up, text);
    }

    fn reads(&self, script: &mut Script, text: &str) {
        let frame = format!("\u{1}\0\0\0\0\0\0{}{text}", char::from(text.len() as u8));
        script.read_copy(self.client, self.down, &frame);
    }
}

#[test]
fn a_client_that_speaks_to_the_engine_itself_is_the_client() {
    let mut script = Script::default();
    script.engine_is_there();
    let shop = shop(&mut script, 20);
    let path = Path::new(&mut script, 9, 11, 20);
    let client = Hijacked::new(&mut script, 10, 5);
    script.exec(5, &shop, 20);
    client.writes(&mut script, &request(1, "tools/list"));
    path.server_reads(&mut script, &request(1, "tools/list"));
    path.server_writes(&mut script, &response(1));
    client.reads(&mut script, &response(1));
    script.wait(3000 * MS);
    script.finish();
    assert_eq!(script.lines(), ["10>20 tools/list#1", "20>10 =tools/list#1"]);
}

#[test]
fn a_relay_of_another_name_is_a_relay_all_the_same() {
    let mut script = Script::default();
    script.engine_is_there();
    let shop = shop(&mut script, 20);
    let path = Path::new(&mut script, 9, 11, 20);
    // Client 10 starts 12, a copy of the CLI under another name.
    let (up, down) = (script.pipe(), script.pipe());
    script.facts(10, 1, &[fd(up, false), fd(down, true)]);
    script.facts(12, 10, &[fd(up, true), fd(down, false)]);
    for (id, method) in [(1, "tools/list"), (2, "ping")] {
        script.write(10, up, &request(id, method));
        let cli = (id == 1).then(|| Hijacked::new(&mut script, 12, 5));
        if id == 1 {
            script.exec(5, &shop, 20);
        }
        script.read(12, up);
        let Some(cli) = cli else { break };
        cli.writes(&mut script, &request(id, method));
        path.server_reads(&mut script, &request(id, method));
        path.server_writes(&mut script, &response(id));
        cli.reads(&mut script, &response(id));
        script.write(12, down, &response(id));
        script.read(10, down);
    }
    script.wait(3000 * MS);
    script.finish();
    assert_eq!(script.lines(), ["10>20 tools/list#1", "20>10 =tools/list#1"]);
}

#[test]
fn a_container_that_the_filter_leaves_out_is_not_copied_once_it_has_a_name() {
    let filter = ContainerFilter {
        include: ContainerRules {
            container: vec!["shop".parse().expect("a pattern")],
            ..ContainerRules::default()
        },
        ..ContainerFilter::default()
    };
    let mut script = Script::filtered(filter);
    let other = script.container(8, 41);
    assert_eq!(script.commands, [], "it may turn out to be the one");
    script.told(&other, "till", 41);
    assert_eq!(script.commands, [Command::Cgroup { id: 1008, copy: false }]);
    script.told(&other, "shop", 41);
    assert_eq!(script.commands[1..], [Command::Cgroup { id: 1008, copy: true }]);
    let shop = script.container(7, 40);
    script.told(&shop, "shop", 40);
    assert_eq!(script.commands.len(), 2);
}

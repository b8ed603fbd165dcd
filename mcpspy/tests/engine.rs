//! What the engine makes of scripted worlds: each message once, with the right ends, in causal
//! order, whatever the order in which the kernel told of it.

mod script;

use mcpspy::engine::EngineConfig;
use mcpspy::model::{
    CloseCause, Command, EventBody, Exit, LostStage, RecordBody, SessionChange, Verdict,
};
use mcpspy::telemetry::Counter;
use script::{MS, Script, client_and_server, fd, notification, process, request, response};

#[test]
fn a_session_from_hello_to_the_end() {
    let mut script = Script::default();
    let (up, down) = client_and_server(&mut script);
    script.write(
        10,
        up,
        "{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"initialize\",\"params\":{\"protocolVersion\":\
         \"2025-06-18\",\"capabilities\":{},\"clientInfo\":{\"name\":\"c\",\"version\":\"1\"}}}\n",
    );
    script.read(20, up);
    script.write(
        20,
        down,
        "{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{\"protocolVersion\":\"2025-03-26\",\
         \"capabilities\":{},\"serverInfo\":{\"name\":\"s\",\"version\":\"2\"}}}\n",
    );
    script.read(10, down);
    script.write(10, up, &notification("notifications/initialized"));
    script.write(10, up, &request(1, "tools/list"));
    script.write(20, down, &response(1));
    script.end(20, up);
    script.exit(20, Exit::Code(0));
    script.wait(1000 * MS);
    assert_eq!(
        script.lines(),
        [
            "10>20 initialize#0",
            "20>10 =initialize#0",
            "10>20 notifications/initialized",
            "10>20 tools/list#1",
            "20>10 =tools/list#1",
        ]
    );
    let changes: Vec<_> = script.sessions().map(|event| event.change).collect();
    assert_eq!(
        changes,
        [
            SessionChange::Opened,
            SessionChange::Updated,
            SessionChange::Closed(CloseCause::ClientClosed)
        ]
    );
    let last = script.sessions().last().expect("closed");
    assert_eq!(last.messages, 5);
    assert_eq!(last.session.revision.as_deref(), Some("2025-03-26"));
    assert_eq!(last.session.client.as_ref().map(|peer| &*peer.name), Some("c"));
    assert_eq!(last.session.server.as_ref().map(|peer| &*peer.name), Some("s"));
    let server = last.session.server_end.process.as_ref().map(|process| process.id);
    assert_eq!(server, Some(process(20)));
    script.finish();
}

#[test]
fn an_answer_that_the_kernel_tells_first_waits_for_its_question() {
    let mut script = Script::default();
    let (up, down) = client_and_server(&mut script);
    script.write(10, up, &request(1, "tools/list"));
    script.read(20, up);
    script.write(20, down, &response(1));
    script.read(10, down);
    // The write of the second question returns after the write of its answer.
    let question = script.written_data(up, request(2, "tools/call").as_bytes());
    script.write(20, down, &response(2));
    script.write(20, down, &notification("notifications/message"));
    script.record(10, RecordBody::Data(question));
    script.finish();
    assert_eq!(
        script.lines(),
        [
            "10>20 tools/list#1",
            "20>10 =tools/list#1",
            "10>20 tools/call#2",
            "20>10 =tools/call#2",
            "20>10 notifications/message",
        ]
    );
}

#[test]
fn an_answer_first_of_all_waits_too() {
    let mut script = Script::default();
    let (up, down) = client_and_server(&mut script);
    let question = script.written_data(up, request(1, "tools/list").as_bytes());
    script.read(20, up);
    script.write(20, down, &response(1));
    script.read(10, down);
    script.record(10, RecordBody::Data(question));
    script.finish();
    assert_eq!(script.lines(), ["10>20 tools/list#1", "20>10 =tools/list#1"]);
}

#[test]
fn a_reader_seen_before_its_writer_is_no_second_message() {
    let mut script = Script::default();
    let (up, down) = client_and_server(&mut script);
    let text = request(1, "tools/list");
    script.read_copy(20, up, &text);
    script.write(10, up, &text);
    script.write(20, down, &response(1));
    script.read(10, down);
    script.finish();
    assert_eq!(script.lines(), ["10>20 tools/list#1", "20>10 =tools/list#1"]);
    assert_eq!(script.counter(Counter::DuplicateBytes), text.len() as u64);
}

#[test]
fn a_pipe_older_than_the_monitor_waits_for_its_writer() {
    let mut script = Script::default();
    let (up, down) = (script.pipe(), script.pipe());
    script.facts_of(10, 1, &[fd(up, false), fd(down, true)], true);
    script.facts_of(20, 10, &[fd(up, true), fd(down, false)], true);
    let text = request(5, "tools/list");
    // Bytes from before the start were still in the pipe: the two ends' counts do not agree.
    script.read_copy(20, up, "old bytes\n");
    script.read_copy(20, up, &text);
    script.write(10, up, &text);
    script.write(20, down, &response(5));
    script.read(10, down);
    script.finish();
    assert_eq!(script.lines(), ["10>20 tools/list#5", "20>10 =tools/list#5"]);
}

#[test]
fn a_writer_that_is_never_seen_leaves_the_readers_copy() {
    let mut script = Script::default();
    let (up, down) = client_and_server(&mut script);
    script.read_copy(20, up, &request(1, "tools/list"));
    script.write(20, down, &response(1));
    script.read(10, down);
    script.wait(3000 * MS);
    script.finish();
    assert_eq!(script.lines(), ["?>20 tools/list#1", "20>10 =tools/list#1"]);
}

#[test]
fn a_client_outside_the_watched_tree_is_one_session_with_an_unknown_end() {
    // `mcpspy -- server`, started by a client: only the server's calls are seen.
    let mut script = Script::default();
    let (up, down) = (script.pipe(), script.pipe());
    script.facts(20, 1, &[fd(up, true), fd(down, false)]);
    for id in 0..3 {
        script.read_copy(20, up, &request(id, "tools/call"));
        script.write(20, down, &response(id));
        script.wait(1000 * MS);
    }
    script.finish();
    assert_eq!(
        script.lines(),
        [
            "?>20 tools/call#0",
            "20>? =tools/call#0",
            "?>20 tools/call#1",
            "20>? =tools/call#1",
            "?>20 tools/call#2",
            "20>? =tools/call#2",
        ]
    );
    let sessions: std::collections::HashSet<_> =
        script.messages().map(|message| message.session.id).collect();
    assert_eq!(sessions.len(), 1);
}

#[test]
fn an_answer_whose_reader_was_never_seen_goes_with_its_question_at_the_end() {
    let mut script = Script::default();
    let (up, down) = client_and_server(&mut script);
    script.write(10, up, &request(0, "tools/list"));
    script.read(20, up);
    script.write(20, down, &response(0));
    script.exit(20, Exit::Code(0));
    script.wait(220 * MS);
    script.finish();
    assert_eq!(script.lines(), ["10>20 tools/list#0", "20>? =tools/list#0"]);
    assert_eq!(script.sessions().filter(|event| event.change == SessionChange::Opened).count(), 1);
}

#[test]
fn a_server_that_never_answers_is_shown() {
    let mut script = Script::default();
    let (up, _down) = client_and_server(&mut script);
    script.write(10, up, &request(1, "tools/list"));
    script.wait(2000 * MS);
    assert_eq!(script.lines(), ["10>? tools/list#1"]);
    script.finish();
}

#[test]
fn a_server_that_never_answers_is_shown_within_two_seconds_without_any_facts() {
    let mut script = Script::default();
    let (up, _) = script.socketpair();
    script.write(10, up, &request(1, "tools/list"));
    script.read(20, up);
    script.wait(2001 * MS);
    assert_eq!(script.lines(), ["10>20 tools/list#1"]);
    script.finish();
}

#[test]
fn stored_traffic_that_is_piped_somewhere_is_no_session() {
    let run = |oneway| {
        let mut script = Script::new(EngineConfig { oneway, ..EngineConfig::default() });
        let wire = script.pipe();
        let out = script.pipe();
        script.facts(10, 1, &[fd(wire, false)]);
        script.facts(20, 1, &[fd(wire, true), fd(out, false)]);
        let trace = request(1, "tools/list") + &response(1);
        script.write(10, wire, &trace);
        script.read(20, wire);
        script.exit(10, Exit::Code(0));
        script.wait(5000 * MS);
        script.finish();
        (script.lines().len(), script.counter(Counter::WithheldOneway))
    };
    assert_eq!(run(false), (0, 2));
    assert_eq!(run(true), (2, 0));
}

#[test]
fn a_short_lived_cat_is_no_session_either() {
    let mut script = Script::default();
    let wire = script.pipe();
    script.write(10, wire, &(request(1, "tools/list") + &response(1)));
    script.read(20, wire);
    script.exit(10, Exit::Code(0));
    script.wait(300 * MS);
    script.facts(20, 1, &[fd(wire, true)]);
    script.wait(5000 * MS);
    script.finish();
    assert_eq!(script.lines(), [""; 0]);
}

#[test]
fn socket_pairs_are_two_streams_of_one_session() {
    let mut script = Script::default();
    let (up, _) = script.socketpair();
    let (down, _) = script.socketpair();
    script.write(10, up, &request(0, "tools/list"));
    script.read(20, up);
    script.write(20, down, &response(0));
    script.read(10, down);
    script.facts(10, 1, &[]);
    script.facts(20, 10, &[]);
    script.wait(300 * MS);
    script.finish();
    assert_eq!(script.lines(), ["10>20 tools/list#0", "20>10 =tools/list#0"]);
}

#[test]
fn fifty_connections_between_two_processes_do_not_mix() {
    let mut script = Script::default();
    script.facts(10, 1, &[]);
    script.facts(20, 1, &[]);
    let pairs: Vec<_> = (0..50).map(|_| script.socketpair()).collect();
    for (up, _) in &pairs {
        script.write(10, *up, &request(0, "tools/list"));
        script.read(20, *up);
    }
    for (_, down) in pairs.iter().rev() {
        script.write(20, *down, &response(0));
        script.read(10, *down);
    }
    script.wait(300 * MS);
    script.finish();
    let mut sessions = std::collections::HashMap::<u64, Vec<String>>::new();
    for event in script.messages() {
        sessions.entry(event.session.id).or_default().push(script::line(event));
    }
    assert_eq!(sessions.len(), 50);
    for lines in sessions.values() {
        assert_eq!(lines, &["10>20 tools/list#0", "20>10 =tools/list#0"]);
    }
}

#[test]
fn fifty_servers_of_one_client_do_not_mix() {
    let mut script = Script::default();
    let wires: Vec<_> = (0..50).map(|_| (script.pipe(), script.pipe())).collect();
    script.facts(
        10,
        1,
        &wires.iter().flat_map(|(up, down)| [fd(*up, false), fd(*down, true)]).collect::<Vec<_>>(),
    );
    for (index, (up, down)) in wires.iter().enumerate() {
        let server = 100 + index as u32;
        script.facts(server, 10, &[fd(*up, true), fd(*down, false)]);
        script.write(10, *up, &request(0, "tools/list"));
    }
    for (index, (up, down)) in wires.iter().enumerate().rev() {
        let server = 100 + index as u32;
        script.read(server, *up);
        script.write(server, *down, &response(0));
        script.read(10, *down);
    }
    script.wait(300 * MS);
    script.finish();
    for index in 0..50 {
        let server = 100 + index;
        let lines: Vec<_> =
            script.lines().into_iter().filter(|line| line.contains(&server.to_string())).collect();
        assert_eq!(
            lines,
            [format!("10>{server} tools/list#0"), format!("{server}>10 =tools/list#0")]
        );
    }
}

#[test]
fn both_directions_count_from_zero() {
    let mut script = Script::default();
    let (up, down) = client_and_server(&mut script);
    script.write(10, up, &request(0, "tools/call"));
    script.read(20, up);
    script.write(20, down, &request(0, "sampling/createMessage"));
    script.read(10, down);
    script.write(10, up, &response(0));
    script.write(20, down, &response(0));
    script.finish();
    assert_eq!(
        script.lines(),
        [
            "10>20 tools/call#0",
            "20>10 sampling/createMessage#0",
            "10>20 =sampling/createMessage#0",
            "20>10 =tools/call#0",
        ]
    );
}

#[test]
fn a_slow_answer_is_paired() {
    let mut script = Script::default();
    let (up, down) = client_and_server(&mut script);
    script.write(10, up, &request(1, "tools/call"));
    script.read(20, up);
    script.wait(3_600_000 * MS);
    script.write(20, down, &response(1));
    script.read(10, down);
    script.finish();
    assert_eq!(script.lines(), ["10>20 tools/call#1", "20>10 =tools/call#1"]);
    let duration = script.messages().last().and_then(|message| message.duration);
    assert!(duration.is_some_and(|ns| ns >= 3_600_000 * MS));
}

#[test]
fn a_session_older_than_the_monitor_begins_with_its_next_message() {
    let mut script = Script::default();
    let (up, down) = (script.pipe(), script.pipe());
    script.facts_of(10, 1, &[fd(up, false), fd(down, true)], true);
    script.facts_of(20, 10, &[fd(up, true), fd(down, false)], true);
    // The answer to a question that was not seen proves nothing until the next question.
    script.write(20, down, &response(7));
    script.read(10, down);
    script.wait(10_000 * MS);
    script.write(10, up, &request(8, "tools/list"));
    script.read(20, up);
    script.write(20, down, &response(8));
    script.wait(1000 * MS);
    script.finish();
    let mut lines = script.lines();
    lines.sort();
    assert_eq!(lines, ["10>20 tools/list#8", "20>10 =?#7", "20>10 =tools/list#8"]);
}

#[test]
fn a_server_that_dies_closes_its_session_with_the_code() {
    for exit in [Exit::Code(3), Exit::Signal(9)] {
        let mut script = Script::default();
        let (up, down) = client_and_server(&mut script);
        script.write(10, up, &request(1, "tools/call"));
        script.read(20, up);
        script.exit(20, exit);
        script.end(10, down);
        script.wait(1000 * MS);
        let last = script.sessions().last().expect("closed");
        assert_eq!(last.change, SessionChange::Closed(CloseCause::ServerExited(exit)));
        assert_eq!(last.pending, 1);
        script.finish();
    }
}

#[test]
fn what_is_open_at_the_end_says_so() {
    let mut script = Script::default();
    let (up, _) = client_and_server(&mut script);
    script.write(10, up, &request(1, "tools/call"));
    script.finish();
    assert_eq!(script.lines(), ["10>? tools/call#1"]);
    let last = script.sessions().last().expect("closed");
    assert_eq!(last.change, SessionChange::Closed(CloseCause::OpenAtExit));
}

#[test]
fn a_hole_in_a_session_is_said_with_its_size() {
    let mut script = Script::default();
    let (up, down) = client_and_server(&mut script);
    script.write(10, up, &request(1, "tools/list"));
    script.read(20, up);
    script.write(20, down, &response(1));
    script.read(10, down);
    let missing = script.written_data(up, request(2, "tools/call").as_bytes());
    script.write(10, up, &request(3, "tools/list"));
    script.wait(1000 * MS);
    script.finish();
    assert_eq!(script.lines(), ["10>20 tools/list#1", "20>10 =tools/list#1", "10>20 tools/list#3"]);
    let lost: Vec<_> = script
        .events
        .iter()
        .filter_map(|event| match &event.body {
            EventBody::Lost(lost) => Some((lost.stage, lost.bytes)),
            _ => None,
        })
        .collect();
    assert_eq!(lost, [(LostStage::Stream, Some(missing.bytes.len() as u64))]);
}

#[test]
fn a_reused_inode_is_another_stream() {
    let mut script = Script::default();
    let (up, down) = client_and_server(&mut script);
    script.write(10, up, &request(1, "tools/list"));
    script.read(20, up);
    script.write(20, down, &response(1));
    script.read(10, down);
    script.write(10, up, "{\"jsonrpc\":\"2.0\",\"id\":2,\"meth");
    let again = script.pipe();
    let mut data = script.written_data(again, request(1, "ping").as_bytes());
    data.stream.ino = script::reference(up, mcpspy::model::Direction::Write).ino;
    script.facts(30, 1, &[]);
    script.record(30, RecordBody::Data(data));
    let last = script.sessions().last().expect("closed");
    assert_eq!(last.change, SessionChange::Closed(CloseCause::Forgotten));
    assert_eq!(script.counter(Counter::GapsUnknown), 1);
    script.finish();
    assert_eq!(script.lines(), ["10>20 tools/list#1", "20>10 =tools/list#1"]);
    assert_eq!(script.counter(Counter::WithheldNotMcp), 1, "a ping alone is not MCP");
}

#[test]
fn text_that_is_not_mcp_is_ruled_out_and_costs_nothing_more() {
    let mut script = Script::default();
    let wire = script.pipe();
    for _ in 0..100 {
        script.write(10, wire, &("x".repeat(1000) + "\n"));
    }
    let ignored = |command: &Command| matches!(command, Command::Verdict(_, Verdict::Ignore));
    assert_eq!(script.commands.iter().filter(|command| ignored(command)).count(), 2);
    script.finish();
    assert_eq!(script.events, []);
}

#[test]
fn other_json_rpc_is_not_reported() {
    let mut script = Script::default();
    let (up, down) = client_and_server(&mut script);
    script.write(10, up, &request(1, "eth_blockNumber"));
    script.read(20, up);
    script.write(20, down, &response(1));
    script.read(10, down);
    script.wait(5000 * MS);
    script.finish();
    assert_eq!(script.events, []);
    assert_eq!(script.counter(Counter::WithheldNotMcp), 2);
}

#[test]
fn noise_before_and_between_messages_is_a_finding_and_nothing_more() {
    let mut script = Script::default();
    let (up, down) = client_and_server(&mut script);
    for line in 0..1000 {
        script.write(20, down, &format!("starting up, step {line}\n"));
    }
    script.write(10, up, &request(1, "tools/list"));
    script.read(20, up);
    script.write(20, down, &response(1));
    script.read(10, down);
    script.write(
        20,
        down,
        &("debug: \u{1b}[31mhello\n".to_owned() + &notification("notifications/message")),
    );
    script.finish();
    assert_eq!(
        script.lines(),
        ["10>20 tools/list#1", "20>10 =tools/list#1", "20>10 notifications/message"]
    );
    let findings: Vec<_> = script
        .events
        .iter()
        .filter_map(|event| match &event.body {
            EventBody::Finding(finding) => Some(finding.rule),
            _ => None,
        })
        .collect();
    assert_eq!(findings, ["stdio-noise"]);
    assert_eq!(script.counter(Counter::NoiseLines), 1001);
}

#[test]
fn one_session_may_change_its_processes() {
    // A client that forks: one process writes, the one below it reads.
    let mut script = Script::default();
    let (up, down) = (script.pipe(), script.pipe());
    script.facts(10, 1, &[fd(up, false), fd(down, true)]);
    script.facts(11, 10, &[fd(down, true)]);
    script.facts(20, 10, &[fd(up, true), fd(down, false)]);
    script.write(10, up, &request(1, "tools/list"));
    script.read(20, up);
    script.write(20, down, &response(1));
    script.read(11, down);
    script.finish();
    assert_eq!(script.lines(), ["10>20 tools/list#1", "20>11 =tools/list#1"]);
}

#[test]
fn the_same_inputs_give_the_same_events() {
    let mut script = Script::default();
    let (up, down) = client_and_server(&mut script);
    for id in 0..100 {
        script.write(10, up, &request(id, "tools/call"));
        script.read(20, up);
        script.write(20, down, &response(id));
        script.read(10, down);
    }
    script.wait(1000 * MS);
    let (inputs, events) = (script.inputs.clone(), script.events.clone());
    let mut again = Script::default();
    for input in inputs {
        again.give(input);
    }
    assert_eq!(again.events, events);
}

#[test]
fn a_lost_chunk_anywhere_invents_nothing() {
    let mut whole = Script::default();
    let (up, down) = client_and_server(&mut whole);
    for id in 0..20 {
        for half in split(&request(id, "tools/call")) {
            whole.write(10, up, half);
        }
        whole.read(20, up);
        for half in split(&response(id)) {
            whole.write(20, down, half);
        }
        whole.read(10, down);
    }
    whole.wait(1000 * MS);
    let inputs = whole.inputs.clone();
    let all: Vec<_> = whole.messages().map(|event| event.message.raw.clone()).collect();
    assert_eq!(all.len(), 40);
    for missing in 0..inputs.len() {
        let mut script = Script::default();
        for (index, input) in inputs.iter().enumerate() {
            if index != missing {
                script.give(input.clone());
            }
        }
        script.wait(5000 * MS);
        script.finish();
        for message in script.messages() {
            assert!(all.contains(&message.message.raw), "invented {}", message.message.raw);
        }
        assert!(script.messages().count() >= 39, "one chunk is one message, not more");
    }
}

fn split(text: &str) -> [&str; 2] {
    let (a, b) = text.split_at(text.len() / 2);
    [a, b]
}

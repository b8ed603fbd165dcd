//! Every size, in every cut, through every call.

use anyhow::{Result, ensure};
use mcpspy_e2e::raw::{Channel, Client, How, call, call_of_size};
use mcpspy_e2e::{Stage, live};

const MIB: usize = 1 << 20;

/// A session on each kind of channel; the server answers each message that the test sends.
fn on_each_channel(
    stage: &Stage,
    serve: &[&str],
    play: impl Fn(&mut Client) -> Result<()>,
) -> Result<()> {
    let monitor = stage.monitor(&[])?;
    for channel in [Channel::Pipes, Channel::SocketPairs, Channel::OneSocketPair] {
        let mut client = Client::connect(stage, &channel, serve)?;
        client.initialize()?;
        play(&mut client)?;
        client.close()?;
    }
    monitor.stop()?.expect_exactly(&stage.truth()?)
}

#[test]
fn every_size_around_the_borders_up_to_16_mib_in_one_write() {
    live(&[], |stage| {
        on_each_channel(stage, &[], |client| {
            let sizes = [120, 4095, 4096, 4097, 32767, 32768, 65535, 65536, 65537, MIB, 16 * MIB];
            for (id, size) in sizes.into_iter().enumerate() {
                client.send_line(&call_of_size(&id.to_string(), size))?;
                client.line()?;
                let size = size - 110; // Envelope of the answer.
                client.call(&format!("\"t{id}\""), "text", &format!(r#"{{"size":{size}}}"#))?;
            }
            Ok(())
        })
    });
}

#[test]
fn messages_of_16_mib_twice_in_a_row_in_both_directions() {
    live(&[], |stage| {
        on_each_channel(stage, &[], |client| {
            for id in ["1", "2"] {
                client.send_line(&call_of_size(id, 16 * MIB))?;
            }
            client.line()?;
            client.line()?;
            let size = 16 * MIB - 200;
            for id in ["3", "4"] {
                client.send_line(&call(id, "text", &format!(r#"{{"size":{size}}}"#)))?;
            }
            ensure!(client.line()?.len() > size && client.line()?.len() > size);
            Ok(())
        })
    });
}

#[test]
fn message_of_16_mib_as_the_first_of_a_session() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        for channel in [Channel::Pipes, Channel::SocketPairs] {
            let mut client = Client::connect(stage, &channel, &[])?;
            client.send_line(&call_of_size("1", 16 * MIB))?;
            client.line()?;
            client.close()?;
        }
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn message_in_4096_byte_writes() {
    live(&[], |stage| {
        on_each_channel(stage, &["--write", "chunks:4096"], |client| {
            let line = call_of_size("1", 3 * MIB) + "\n";
            client.send(How::Chunks(4096), line.as_bytes())?;
            client.line()?;
            client.call("2", "text", r#"{"size":3000000}"#)?;
            Ok(())
        })
    });
}

#[test]
fn message_in_1_byte_writes() {
    live(&[], |stage| {
        on_each_channel(stage, &["--write", "chunks:1"], |client| {
            let line = call("1", "echo", r#"{"text":"äöü €uro 👋 end"}"#) + "\n";
            client.send(How::Chunks(1), line.as_bytes())?;
            client.line()?;
            client.call("2", "text", r#"{"size":6000}"#)?;
            Ok(())
        })
    });
}

#[test]
fn first_message_of_a_session_in_1_byte_writes() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        for channel in [Channel::Pipes, Channel::SocketPairs] {
            let mut client = Client::connect(stage, &channel, &["--write", "chunks:1"])?;
            let line = format!("{}\n", mcpspy_e2e::raw::INITIALIZE);
            client.send(How::Chunks(1), line.as_bytes())?;
            client.line()?;
            client.close()?;
        }
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn multi_byte_characters_cut_anywhere() {
    live(&[], |stage| {
        on_each_channel(stage, &["--write", "chunks:7"], |client| {
            for (id, size) in [2, 3, 5, 7, 11].into_iter().enumerate() {
                let text = r#"{"text":"é€👋天气\u2028é€👋天气é€👋天气é€👋天气"}"#;
                let line = call(&id.to_string(), "echo", text) + "\n";
                client.send(How::Chunks(size), line.as_bytes())?;
                client.line()?;
            }
            Ok(())
        })
    });
}

#[test]
fn many_messages_in_one_write() {
    live(&[], |stage| {
        on_each_channel(stage, &[], |client| {
            let lines: String = (0..300)
                .map(|id| call(&id.to_string(), "echo", &format!(r#"{{"text":"n{id}"}}"#)) + "\n")
                .collect();
            client.send(How::Whole, lines.as_bytes())?;
            for _ in 0..300 {
                client.line()?;
            }
            Ok(())
        })
    });
}

#[test]
fn messages_and_halves_of_messages_in_one_write() {
    live(&[], |stage| {
        on_each_channel(stage, &[], |client| {
            let lines: String = (0..200)
                .map(|id| call(&id.to_string(), "echo", r#"{"text":"é"}"#) + "\n")
                .collect();
            client.send(How::Chunks(1000), lines.as_bytes())?;
            for _ in 0..200 {
                client.line()?;
            }
            Ok(())
        })
    });
}

#[test]
fn writev_with_1024_parts() {
    live(&[], |stage| {
        on_each_channel(stage, &["--write", "vectored:1024"], |client| {
            for (id, size) in [5000, 100_000, 2 * MIB].into_iter().enumerate() {
                let line = call_of_size(&id.to_string(), size) + "\n";
                client.send(How::Vectored(1024), line.as_bytes())?;
                client.line()?;
                client.call(&format!("\"t{id}\""), "text", &format!(r#"{{"size":{size}}}"#))?;
            }
            Ok(())
        })
    });
}

#[test]
fn socket_with_send_recv_and_sendmsg() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        for (ours, theirs) in [(How::Send, "send"), (How::SendMsg, "sendmsg")] {
            let arguments = ["--recv", "--write", theirs];
            let mut client = Client::connect(stage, &Channel::SocketPairs, &arguments)?;
            client.with_recv = true;
            client.initialize()?;
            for (id, size) in [200, 70_000, MIB].into_iter().enumerate() {
                let line = call_of_size(&id.to_string(), size) + "\n";
                client.send(ours, line.as_bytes())?;
                client.line()?;
                client.call(&format!("\"t{id}\""), "text", &format!(r#"{{"size":{size}}}"#))?;
            }
            client.close()?;
        }
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn message_larger_than_the_limit_is_marked_and_the_next_is_whole() {
    live(&[], |stage| {
        const LIMIT: usize = 65536;
        let monitor = stage.monitor(&["--max-message", "64KiB"])?;
        let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
        client.initialize()?;
        let sizes = [LIMIT, LIMIT + 1, 200, 10 * LIMIT, 300, LIMIT - 1];
        for (id, size) in sizes.into_iter().enumerate() {
            client.send_line(&call_of_size(&id.to_string(), size))?;
            client.line()?;
        }
        client.call("\"big\"", "text", r#"{"size":1000000}"#)?;
        client.call("\"small\"", "text", r#"{"size":1000}"#)?;
        client.close()?;
        let run = monitor.stop()?;
        let truth = stage.truth()?;
        run.expect_messages(&truth)?;
        run.expect_nothing_lost()?;
        for event in run.messages_of(&truth.pids()) {
            let size = usize::try_from(event.number("/size_bytes"))?;
            ensure!(
                (event.at("/truncated") == true) == (size > LIMIT),
                "{size} bytes: truncated is {}",
                event.at("/truncated")
            );
            ensure!(size <= LIMIT || event.raw().len() <= LIMIT, "more kept than the limit");
        }
        Ok(())
    });
}

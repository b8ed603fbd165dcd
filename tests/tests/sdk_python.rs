//! Real clients and servers with the Python SDK, both lines, over pipes.

use mcpspy_e2e::{Need, live, peers};

#[test]
fn python_v1_session_is_captured_whole() {
    live(&[Need::PythonV1], |stage| {
        let monitor = stage.monitor(&[])?;
        stage.play(&mut peers::python(1, "basic"))?;
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn python_v2_session_is_captured_whole() {
    live(&[Need::PythonV2], |stage| {
        let monitor = stage.monitor(&[])?;
        stage.play(&mut peers::python(2, "basic"))?;
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn stateless_revision_2026_07_28_is_captured_whole() {
    live(&[Need::PythonV2], |stage| {
        let monitor = stage.monitor(&[])?;
        stage.play(peers::python(2, "basic").env("MCPSPY_ERA", "modern"))?;
        let run = monitor.stop()?;
        let truth = stage.truth()?;
        let client = truth.sessions[0].client.pid;
        anyhow::ensure!(
            run.messages().any(|event| event.concerns(client)
                && event.text("/method") == "server/discover"
                && event.text("/session/revision") == "2026-07-28"),
            "no server/discover of the revision 2026-07-28"
        );
        run.expect_exactly(&truth)
    });
}

#[test]
fn python_v1_messages_from_1_byte_to_16_mib_twice_in_a_row() {
    live(&[Need::PythonV1], |stage| {
        let monitor = stage.monitor(&[])?;
        stage.play(&mut peers::python(1, "big"))?;
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn python_v2_image_of_5_mb_and_the_next_message() {
    live(&[Need::PythonV2], |stage| {
        let monitor = stage.monitor(&[])?;
        stage.play(&mut peers::python(2, "image"))?;
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn python_v2_2000_calls_as_fast_as_the_sdk_goes() {
    live(&[Need::PythonV2], |stage| {
        let monitor = stage.monitor(&[])?;
        stage.play(&mut peers::python(2, "burst"))?;
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn python_v2_client_with_50_sessions_at_once() {
    live(&[Need::PythonV2, Need::Rmcp], |stage| {
        let monitor = stage.monitor(&[])?;
        stage.play(peers::python(2, "many").arg(peers::rmcp_binary()).arg("server"))?;
        let truth = stage.truth()?;
        anyhow::ensure!(truth.sessions.len() == 50, "{} sessions", truth.sessions.len());
        monitor.stop()?.expect_exactly(&truth)
    });
}

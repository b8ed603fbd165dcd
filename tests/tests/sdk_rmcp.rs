//! Real client and server with rmcp: pipes, `writev`.

use mcpspy_e2e::{Need, live, peers};

#[test]
fn rmcp_session_is_captured_whole() {
    live(&[Need::Rmcp], |stage| {
        let monitor = stage.monitor(&[])?;
        stage.play(&mut peers::rmcp("basic"))?;
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn rmcp_2000_calls_as_fast_as_the_sdk_goes() {
    live(&[Need::Rmcp], |stage| {
        let monitor = stage.monitor(&[])?;
        stage.play(&mut peers::rmcp("burst"))?;
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

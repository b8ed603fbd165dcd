use serde_json::Value;

use super::*;
use crate::model::{MessageEvent, Outcome};
use crate::sinks::samples;
use crate::sinks::visible::is_invisible;

fn line(event: &Event, payload: Payload) -> String {
    let run = RunInfo {
        run_id: "r1".into(),
        host: "h1".into(),
        version: "0.1.0",
        wall_offset_ns: samples::BOOT,
    };
    let mut out = b"before\n".to_vec();
    Encoder::new(&run, payload).encode(event, &mut out);
    let text = String::from_utf8(out).unwrap();
    let line = text.strip_prefix("before\n").unwrap().to_owned();
    assert_eq!(line.matches('\n').count(), 1, "one line, with its end: {line:?}");
    assert!(!line.trim_end().chars().any(is_invisible), "{line}");
    line
}

fn json(event: MessageEvent, payload: Payload) -> Value {
    serde_json::from_str(&line(&samples::wrap(9, 0, event), payload)).unwrap()
}

#[test]
fn numbers_and_keys_survive_exactly() {
    let params = r#"{"a":9007199254740993,"a":1.10,"b":123456789012345678901234567890,"c":1e400}"#;
    let text = line(&samples::wrap(1, 0, samples::call_with(params)), Payload::Full);
    assert!(text.contains(&format!(r#""params":{params},"#)), "{text}");
    assert!(json::is_json(&text) && text.contains("\"raw\":\"{\\\"jsonrpc"), "{text}");
}

#[test]
fn params_are_always_an_object() {
    let params = |text| json(samples::call_with(text), Payload::Full)["params"].clone();
    assert_eq!(params(r#"[7,"a",{"b":[]}]"#).to_string(), r#"{"0":7,"1":"a","2":{"b":[]}}"#);
    assert_eq!(params("[]").to_string(), "{}");
    assert_eq!(params("\"text\""), Value::Null, "left out; raw has it");
}

#[test]
fn error_is_always_an_object_of_the_known_fields() {
    let error = |text| {
        json(samples::answer("error", text, Outcome::Error(None)), Payload::Full)["error"]
            .to_string()
    };
    assert_eq!(json(samples::result(), Payload::Full)["error"].to_string(), "{}");
    assert_eq!(error(r#"{"message":"m","code":-1,"x":2}"#), r#"{"code":-1,"message":"m"}"#);
    assert_eq!(error(r#"{"code":"E1","message":["m"],"data":null}"#), r#"{"data":null}"#);
    assert_eq!(error("\"boom\""), r#"{"data":"boom"}"#);
    assert_eq!(error("{}"), "{}");
}

#[test]
fn a_response_has_the_method_of_its_request_but_none_of_its_own() {
    let value = json(samples::result(), Payload::Full);
    assert_eq!(value.get("method"), None);
    assert_eq!(value["request_method"], "tools/call");
    assert_eq!(
        value["request"].to_string(),
        r#"{"type":"request","id":7,"method":"tools/call","params":{"name":"get_weather","arguments":{"city":"Berlin"}},"error":{},"seq":3}"#
            .parse::<Value>()
            .unwrap()
            .to_string()
    );
    assert_eq!(value["duration_ms"].to_string(), "101.034567");
    assert_eq!(value["tool"], "get_weather");
}

#[test]
fn an_unknown_end_is_pid_0_and_says_so() {
    let mut event = samples::call();
    event.to = samples::unknown();
    let value = json(event, Payload::Full);
    assert_eq!(value["stdio_transport"]["to_pid"], 0);
    assert_eq!(value["stdio_transport"]["to_comm"], "");
    assert_eq!(value["stdio_transport"]["from_pid"], 12_345);
    assert_eq!(value["to"]["quality"], "unknown");
}

#[test]
fn a_truncated_message_spoils_no_line() {
    // Its last part is a fragment.
    let mut event = samples::call_with(r#"{"name":"get_weather","arguments":{"city":"Ber"#);
    event.message.truncated = true;
    event.message.size = 20_000_000;
    let value = json(event, Payload::Full);
    assert_eq!(value.get("params"), None);
    assert_eq!(value["truncated"], true);
    assert_eq!(value["size_bytes"], 20_000_000);
    assert!(value["raw"].as_str().unwrap().ends_with("Ber}"));
}

#[test]
fn payload_none_leaves_the_texts_out_and_the_names_in() {
    for event in [samples::call(), samples::result(), samples::error()] {
        let value = json(event, Payload::None);
        assert_eq!(value["raw"], "");
        assert_eq!(value["payload_cut"], true);
        assert_eq!(value["tool"], "get_weather");
        for gone in ["params", "result"] {
            assert_eq!(value.get(gone), None);
        }
        assert_eq!(value["error"].get("data"), None);
        assert_eq!(value.get("request").and_then(|request| request.get("params")), None);
    }
    assert_eq!(json(samples::error(), Payload::None)["error"]["message"], "Unknown city");
}

#[test]
fn a_payload_limit_cuts_raw_and_leaves_large_parts_out() {
    let small = json(samples::call(), Payload::Limit(4096));
    assert_eq!(small, json(samples::call(), Payload::Full));
    let params = format!(r#"{{"name":"x","arguments":{{"a":"{}"}}}}"#, "天".repeat(2000));
    let value = json(samples::call_with(&params), Payload::Limit(4096));
    let raw = value["raw"].as_str().unwrap();
    assert!(raw.starts_with(r#"{"jsonrpc":"2.0","id":7"#) && raw.ends_with('天'));
    assert!(raw.len() < 4096 && raw.len() > 4000);
    assert_eq!(value.get("params"), None);
    assert_eq!(value["payload_cut"], true);
    assert_eq!(value["size_bytes"], 6000 + 89);
    assert_eq!(value["truncated"], false, "truncated is about the capture, not about this line");
}

#[test]
fn with_the_limit_of_stdout_no_sender_makes_a_line_that_docker_splits() {
    for size in [1, 100, 600, 1000, 2000, 4000, 5000, 100_000] {
        let text = line(&samples::hostile(size), Payload::STDOUT);
        assert!(text.len() < 16 * 1024, "{} bytes for texts of {size}", text.len());
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(!value["raw"].as_str().unwrap().is_empty(), "raw is the last thing to go");
    }
    for limit in [0, 1, 100, 10_000] {
        let limit = Payload::Limit(limit);
        assert!(line(&samples::hostile(50_000), limit).len() <= limit.line_limit().unwrap());
    }
    // A peer that only writes ordinary JSON of the full size keeps all of it.
    let params = format!(r#"{{"name":"x","list":[{}1]}}"#, "\"a\",".repeat(950));
    let event = samples::wrap(1, 0, samples::call_with(&params));
    assert!(line(&event, Payload::STDOUT).len() < 16 * 1024);
}

#[test]
fn what_is_remembered_of_processes_and_sessions_changes_no_line() {
    let run = RunInfo {
        run_id: "r1".into(),
        host: "h1".into(),
        version: "0.1.0",
        wall_offset_ns: samples::BOOT,
    };
    // More of them than are remembered, some with texts that are cut, some not.
    let ends: Vec<_> = (1..=40)
        .map(|pid| samples::process(pid, "x", "/x", &"y".repeat(90 * pid as usize)))
        .collect();
    let mut encoder = Encoder::new(&run, Payload::Limit(20));
    for n in 0..400 {
        let mut event = samples::call();
        event.from = ends[n * 7 % 40].clone();
        event.to = ends[n % 3].clone();
        let event = samples::wrap(1, 0, event);
        let mut out = Vec::new();
        encoder.encode(&event, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), line(&event, Payload::Limit(20)));
    }
}

#[test]
fn every_sample_is_one_json_object_under_every_limit() {
    let documented = samples::documented().into_iter().map(|(_, event)| event);
    for event in documented.chain(samples::unusual()) {
        for payload in [Payload::Full, Payload::None, Payload::STDOUT, Payload::Limit(20)] {
            let value: Value = serde_json::from_str(&line(&event, payload)).unwrap();
            assert!(value.is_object());
            assert_eq!(value.get("jsonrpc"), None, "no line of ours is itself JSON-RPC");
        }
    }
}

use serde_json::Value;

use super::*;
use crate::model::{MessageEvent, Outcome};
use crate::sinks::samples;
use crate::sinks::visible::is_invisible;

fn line(event: &Event, payload: Payload) -> String {
    let run = RunInfo {
        run_id: "r1".into(),
        host: "h1".into(),
        host_given: false,
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
fn the_host_is_what_the_engine_calls_it_unless_the_user_does() {
    let contained = |host: Option<&str>| {
        let mut end = samples::contained_server();
        let host = host.map(Into::into);
        end.container = Some(Arc::new(ContainerInfo { host, ..(*samples::container()).clone() }));
        end
    };
    let of = |host_given: bool, event: &Event| {
        let run = RunInfo {
            run_id: "r1".into(),
            host: "h1".into(),
            host_given,
            version: "0.1.0",
            wall_offset_ns: samples::BOOT,
        };
        let mut out = Vec::new();
        Encoder::new(&run, Payload::Full).encode(event, &mut out);
        let line: Value = serde_json::from_slice(&out).unwrap();
        line["host"].as_str().unwrap().to_owned()
    };
    let (client, server) = (contained(Some("east")), contained(Some("west")));
    let call = |client: &Endpoint, server: &Endpoint| {
        samples::wrap(1, 0, samples::call_between(client.clone(), server.clone()))
    };
    assert_eq!(of(false, &call(&client, &server)), "west");
    assert_eq!(of(false, &call(&client, &samples::server())), "east");
    assert_eq!(of(false, &call(&client, &contained(None))), "east");
    assert_eq!(of(false, &call(&samples::client(), &samples::server())), "h1");
    assert_eq!(of(true, &call(&client, &server)), "h1");
    // An answer goes the other way.
    let session = samples::session_of(&client, &server);
    let answer = MessageEvent { session, from: server, to: client, ..samples::call() };
    assert_eq!(of(false, &samples::wrap(1, 0, answer)), "west");
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

/// The line with this limit, and its value.
fn limited(event: &Event, max: usize) -> (usize, Value) {
    let run = RunInfo {
        run_id: "r1".into(),
        host: "h1".into(),
        host_given: false,
        version: "0.1.0",
        wall_offset_ns: samples::BOOT,
    };
    let labels = samples::LABELS.map(str::to_owned);
    let mut out = b"before\n".to_vec();
    let mut encoder = Encoder::new(&run, Payload::Full).show_labels(&labels).max_line(Some(max));
    encoder.encode(event, &mut out);
    let line = out.strip_prefix(b"before\n").unwrap();
    let text = str::from_utf8(line).unwrap();
    assert_eq!(text.lines().count(), 1);
    (line.len(), serde_json::from_str(text).unwrap())
}

const DOCKER: usize = 16 * 1024;

#[test]
fn a_line_that_is_too_long_loses_raw_first_then_the_parts() {
    let call = |size: usize| {
        samples::wrap(1, 0, samples::call_with(&format!(r#"{{"a":"{}"}}"#, "x".repeat(size))))
    };
    let (_, whole) = limited(&call(7000), DOCKER);
    assert!(whole["raw"].is_string() && whole["truncated"] == false);
    assert_eq!((whole.get("payload_omitted"), whole.get("payload_cut")), (None, None));

    let (_, without_raw) = limited(&call(12_000), DOCKER);
    assert_eq!(without_raw["raw"], Value::Null);
    assert_eq!(without_raw["params"]["a"].as_str().unwrap().len(), 12_000);
    assert_eq!(without_raw["truncated"], true);
    assert_eq!(without_raw["payload_omitted"], serde_json::json!(["raw"]));

    for size in [16_300, 20_000, 5_000_000] {
        let (length, bare) = limited(&call(size), DOCKER);
        assert!(length < DOCKER);
        assert_eq!((&bare["raw"], &bare["params"]), (&Value::Null, &Value::Null));
        assert_eq!(bare["payload_omitted"], serde_json::json!(["raw", "params"]));
        assert_eq!(bare["tool"], "get_weather");
        assert!(bare["size_bytes"].as_u64().unwrap() > size as u64);
    }
}

#[test]
fn answers_of_megabytes_stay_one_short_line_too() {
    let text = "天\u{7f}".repeat(1_250_000);
    let result = format!(r#"{{"content":[{{"type":"text","text":"{text}"}}]}}"#);
    let (length, value) =
        limited(&samples::wrap(1, 0, samples::answer("result", &result, Outcome::Ok)), DOCKER);
    assert!(length < DOCKER);
    assert_eq!(value["result"], Value::Null);
    let omitted = serde_json::json!(["raw", "result", "request.params"]);
    assert_eq!(value["payload_omitted"], omitted);

    let error = format!(r#"{{"code":1,"message":"{text}","data":"{text}"}}"#);
    let event = samples::answer("error", &error, Outcome::Error(Some(1)));
    let (length, value) = limited(&samples::wrap(1, 0, event), DOCKER);
    assert!(length < DOCKER);
    assert_eq!(value["error"]["code"], 1);
    assert!(value["error"]["message"].as_str().unwrap().starts_with('天'));
}

#[test]
fn no_event_makes_a_line_that_docker_splits() {
    let documented = samples::documented().into_iter().map(|(_, event)| event);
    let hostile = [1, 200, 400, 1000, 3000, 100_000].map(samples::hostile);
    for event in documented.chain(samples::unusual()).chain(hostile) {
        let (length, _) = limited(&event, DOCKER);
        assert!(length < DOCKER, "{length}");
        let (length, _) = limited(&event, 4096);
        assert!(length < 4096, "{length}");
    }
}

#[test]
fn what_was_cut_by_the_capture_is_told_apart_from_what_the_line_has_no_room_for() {
    let mut event = samples::call_with(r#"{"name":"get_weather","arguments":{"city":"Ber"#);
    event.message.truncated = true;
    event.message.size = 20_000_000;
    let (_, value) = limited(&samples::wrap(1, 0, event), DOCKER);
    assert_eq!((&value["truncated"], value.get("payload_omitted")), (&true.into(), None));
}

#[test]
fn labels_are_shown_where_asked_for() {
    let event =
        samples::wrap(1, 0, samples::call_between(samples::client(), samples::contained_server()));
    let (_, value) = limited(&event, DOCKER);
    let container = &value["to"]["container"];
    assert_eq!(container["labels"], serde_json::json!({"com.example.team": "stock"}));
    assert_eq!(
        (&container["service"], &container["match"]),
        (&"inventory".into(), &"engine".into())
    );
    assert_eq!(value["from"].get("container"), None);
    let value: Value = serde_json::from_str(&line(&event, Payload::Full)).unwrap();
    assert_eq!(value["to"]["container"].get("labels"), None);
    let mut event = samples::call();
    event.to.container = Some(samples::nested());
    let value = json(event, Payload::Full);
    assert_eq!(value["to"]["container"]["match"], "cgroup");
    assert!(value["to"]["container"]["outer"].as_str().unwrap().starts_with("98765432"));
}

#[test]
fn what_is_remembered_of_processes_and_sessions_changes_no_line() {
    let run = RunInfo {
        run_id: "r1".into(),
        host: "h1".into(),
        host_given: false,
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

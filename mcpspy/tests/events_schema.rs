//! What the program writes, what `docs/events.schema.json` allows and what `docs/events.md` says are
//! the same. `UPDATE_EXPECT=1` writes the examples of the page anew.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use jsonschema::Validator;
use mcpspy::model;
use mcpspy::model::Event;
use mcpspy::sinks::schema::Encoder;
use mcpspy::sinks::{Payload, RunInfo};
use serde_json::{Map, Value, json};

#[allow(dead_code, reason = "shared with the unit tests of the sinks, which use more of it")]
#[path = "../src/sinks/samples.rs"]
mod samples;

fn docs(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)
}

fn schema() -> Value {
    serde_json::from_str(&fs::read_to_string(docs("events.schema.json")).unwrap()).unwrap()
}

fn line(event: &Event, payload: Payload, max_line: Option<usize>) -> String {
    let run = RunInfo {
        run_id: "01jnq3v8k2".into(),
        host: "workstation".into(),
        host_given: false,
        version: "0.1.0",
        wall_offset_ns: samples::BOOT,
    };
    let mut out = Vec::new();
    let labels = samples::LABELS.map(str::to_owned);
    Encoder::new(&run, payload).show_labels(&labels).max_line(max_line).encode(event, &mut out);
    String::from_utf8(out).unwrap()
}

fn events() -> Vec<Event> {
    let mut events: Vec<_> = samples::documented().into_iter().map(|(_, event)| event).collect();
    events.extend(samples::unusual());
    events.push(samples::hostile(3000));
    events
}

fn values() -> Vec<Value> {
    let forms = [
        (Payload::Full, None),
        (Payload::STDOUT, None),
        (Payload::Limit(20), None),
        (Payload::None, None),
        (Payload::Full, Some(16 * 1024)),
        (Payload::Full, Some(900)),
    ];
    let lines = forms.iter().flat_map(|(payload, max_line)| {
        events()
            .into_iter()
            .map(move |event| serde_json::from_str(&line(&event, *payload, *max_line)).unwrap())
    });
    lines.collect()
}

/// The schema with every object closed that lists its properties: so a field that it does not know
/// is an error here, although consumers are to ignore it.
fn closed(mut schema: Value) -> Value {
    let defs = schema["$defs"].as_object_mut().unwrap();
    for def in defs.values_mut() {
        if def.get("properties").is_some() && def.get("additionalProperties").is_none() {
            def["additionalProperties"] = json!(false);
        }
    }
    schema
}

fn check(validator: &Validator, value: &Value) {
    let errors: Vec<_> = validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{errors:#?}\nin {value:#}");
}

#[test]
fn every_line_is_valid_and_has_no_field_that_the_schema_does_not_know() {
    let open = jsonschema::draft202012::new(&schema()).unwrap();
    let closed = jsonschema::draft202012::new(&closed(schema())).unwrap();
    for value in values() {
        check(&open, &value);
        check(&closed, &value);
    }
}

#[test]
fn the_schema_catches_wrong_types_and_missing_fields() {
    let validator = jsonschema::draft202012::new(&schema()).unwrap();
    let mut changes = 0;
    for value in values().into_iter().take(samples::documented().len()) {
        for (key, old) in value.as_object().unwrap() {
            // `result` holds whatever a peer sends.
            if key == "result" {
                continue;
            }
            let mut wrong = value.clone();
            wrong[key] = if old.is_array() { json!(true) } else { json!([old]) };
            assert!(!validator.is_valid(&wrong), "{key} = {}", wrong[key]);
            changes += 1;
        }
        for key in ["schema_version", "kind", "host", "run_id", "seq", "timestamp"] {
            let mut wrong = value.clone();
            wrong.as_object_mut().unwrap().remove(key);
            assert!(!validator.is_valid(&wrong), "without {key}");
        }
    }
    assert!(changes > 100);

    let message = &values()[2];
    assert_eq!(message["type"], "request");
    let wrong = |path: &str, value: Value| {
        let mut wrong = message.clone();
        *wrong.pointer_mut(path).unwrap() = value;
        assert!(!validator.is_valid(&wrong), "{path}");
    };
    wrong("/session/id", json!(12));
    wrong("/from/pid", json!("12345"));
    wrong("/from/quality", json!("maybe"));
    wrong("/raw", json!(null));
    wrong("/params", json!(null));
    wrong("/stdio_transport/to_pid", json!(-1));
    wrong("/error", json!({"code": "E1"}));
    wrong("/timestamp", json!("2026-03-01T12:34:56Z"));
    wrong("/params", json!([1]));
    wrong("/type", json!("response"));
}

/// Names of all fields in the schema, as the page writes them: `session.id`.
fn fields(schema: &Value) -> BTreeSet<String> {
    fn walk(schema: &Value, at: &Value, prefix: &str, out: &mut BTreeSet<String>) {
        let empty = Map::new();
        for (name, sub) in at["properties"].as_object().unwrap_or(&empty) {
            let path = format!("{prefix}{name}");
            let target =
                sub["$ref"].as_str().map(|r| &schema["$defs"][r.rsplit('/').next().unwrap()]);
            walk(schema, target.unwrap_or(sub), &format!("{path}."), out);
            out.insert(path);
        }
    }
    let mut out = BTreeSet::new();
    for kind in ["message", "session_event", "finding", "lost", "status"] {
        walk(schema, &schema["$defs"][kind], "", &mut out);
    }
    out
}

#[test]
fn the_page_names_every_field_and_no_other() {
    let page = fs::read_to_string(docs("events.md")).unwrap();
    let mut named = BTreeSet::new();
    for row in page.lines().filter(|line| line.starts_with("| `")) {
        let cell = row.split('|').nth(1).unwrap();
        named.extend(cell.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    // One table describes both ends.
    let wanted: BTreeSet<_> =
        fields(&schema()).into_iter().filter(|field| !field.starts_with("to.")).collect();
    assert_eq!(named, wanted);
    let kinds = schema()["properties"]["kind"]["enum"].clone();
    for kind in kinds.as_array().unwrap() {
        assert!(page.contains(&format!("`{}`", kind.as_str().unwrap())));
    }
}

#[test]
fn the_examples_of_the_page_are_real_output() {
    let path = docs("events.md");
    let mut page = fs::read_to_string(&path).unwrap();
    let before = page.clone();
    for (name, event) in samples::documented() {
        let opening = format!("<!-- example: {name} -->\n```json\n");
        let start = page.find(&opening).unwrap_or_else(|| panic!("no {opening}")) + opening.len();
        let end = start + page[start..].find("```").unwrap();
        page.replace_range(start..end, &line(&event, Payload::Full, None));
    }
    assert_eq!(page.matches("<!-- example:").count(), samples::documented().len());
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, page).unwrap();
    } else {
        assert_eq!(page, before, "UPDATE_EXPECT=1 writes the examples anew");
    }
}

#[test]
fn the_fields_of_the_go_tool_have_their_types() {
    // What a script for the Go tool may rely on, as its struct tags say.
    for value in values().into_iter().filter(|value| value["kind"] == "message") {
        assert_eq!(value["transport_type"], "stdio");
        let ends = value["stdio_transport"].as_object().unwrap();
        let keys: Vec<_> = ends.keys().map(String::as_str).collect();
        assert_eq!(keys, ["from_comm", "from_pid", "to_comm", "to_pid"]);
        assert!(value["error"].is_object());
        if value.get("payload_omitted").is_none() {
            assert!(value["raw"].is_string());
            assert!(value.get("params").is_none_or(Value::is_object));
        }
        assert!(value.get("id").is_none_or(|id| id.is_string() || id.is_number()));
        if let Some(request) = value.get("request") {
            assert_eq!(value["type"], "response");
            assert_eq!(request["type"], "request");
            assert!(request["method"].is_string() && request["error"] == json!({}));
        }
    }
}

//! Text on standard output.

use std::io::Write;

use super::lines::Lines;
use super::text::TextFormat;
use super::visible::{head, push_visible};
use super::{Payload, RunInfo, Sink, SinkError};
use crate::model::{Event, EventBody};

/// Stands before raw JSON. With it no line of ours is itself JSON-RPC, so that a program which reads
/// our output is not taken for an MCP peer.
const RAW_PREFIX: &str = "  │ ";

/// What the console shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsoleOptions {
    /// Colours.
    pub color: bool,
    /// The raw JSON below each message.
    pub buffers: bool,
    /// How much of it.
    pub payload: Payload,
    /// Longest line, its end included; `None`: no limit.
    pub max_line: Option<usize>,
    /// Times in UTC, because the machine's zone is not known.
    pub utc: bool,
}

/// Writes one line per event, for people.
pub struct Console {
    lines: Lines,
    format: TextFormat,
    options: ConsoleOptions,
    text: String,
}

impl Console {
    /// Writes to `writer`; for standard output that is [`super::stdout`].
    // By value, as the caller has no other use for it.
    #[expect(clippy::needless_pass_by_value, reason = "the signature agreed with the agent")]
    pub fn new(writer: Box<dyn Write + Send>, run: RunInfo, options: ConsoleOptions) -> Self {
        Self {
            lines: Lines::new("standard output".to_owned(), writer, true),
            format: TextFormat::new(&run, options.color, options.utc),
            options,
            text: String::new(),
        }
    }
}

impl Sink for Console {
    fn write(&mut self, event: &Event) -> Result<(), SinkError> {
        self.text.clear();
        self.format.push(&mut self.text, event);
        if let EventBody::Message(message) = &event.body
            && self.options.buffers
            && self.options.payload != Payload::None
        {
            push_raw(&mut self.text, &message.message.raw, self.options);
        }
        self.lines.push(|out| out.extend_from_slice(self.text.as_bytes()));
        self.text.shrink_to(256 * 1024);
        if self.lines.is_due() { self.lines.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        self.lines.flush()
    }
}

fn push_raw(out: &mut String, raw: &str, options: ConsoleOptions) {
    // A line of text without its raw JSON is short by itself: each of its columns has a limit.
    let most = options.max_line.unwrap_or(usize::MAX);
    let start = out.len();
    let mut limit = options.payload.text_limit().min(most);
    loop {
        let (shown, cut) = head(raw, limit);
        out.push_str(RAW_PREFIX);
        push_visible(out, shown);
        if cut {
            out.push_str("… ");
            out.push_str(&(raw.len() - shown.len()).to_string());
            out.push_str(" bytes more");
        }
        out.push('\n');
        let excess = (out.len() - start).saturating_sub(most.saturating_sub(1));
        if excess == 0 || shown.is_empty() {
            return;
        }
        // What is invisible gets longer by being shown: by how much is seen afterwards.
        out.truncate(start);
        let fits = shown.len().saturating_sub(excess).max(shown.len() * 3 / 4);
        limit = fits.min(shown.len() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::model::{
        CloseCause, Exit, Lost, LostStage, Outcome, ProcessInfo, RequestId, SessionChange, Target,
    };
    use crate::sinks::samples;
    use crate::sinks::visible::is_invisible;

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const PLAIN: ConsoleOptions = ConsoleOptions {
        color: false,
        buffers: false,
        payload: Payload::STDOUT,
        max_line: None,
        utc: true,
    };

    fn show(options: ConsoleOptions, event: &Event) -> String {
        let run = RunInfo {
            run_id: "r".into(),
            host: "h".into(),
            host_given: false,
            version: "0.1.0",
            wall_offset_ns: samples::BOOT,
        };
        let screen = Screen::default();
        let mut console = Console::new(Box::new(screen.clone()), run, options);
        console.write(event).unwrap();
        assert!(screen.0.lock().unwrap().is_empty(), "nothing goes out before a flush");
        console.flush().unwrap();
        let bytes = screen.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[track_caller]
    fn check(event: &Event, line: &str) {
        assert_eq!(show(PLAIN, event), format!("{line}\n"));
    }

    #[test]
    fn a_line_of_each_kind() {
        let lines = [
            "12:34:56.789Z mcpspy STAT started version=0.1.0 backend=tp_btf",
            "12:34:56.789Z stdio python[12345] → python[12346] SESS opened s12 revision=2025-06-18 client=mcp/0.1.0 server=weather/1.26.0",
            "12:34:56.789Z stdio python[12345] → python[12346] REQ  tools/call get_weather id=7",
            "12:34:56.789Z stdio python[12345] → shop/inventory (node[31830]) REQ  tools/call get_weather id=7",
            "12:34:56.890Z stdio python[12346] → python[12345] RESP tools/call get_weather id=7 101ms 101B",
            "12:34:56.899Z stdio python[12346] → python[12345] ERR  tools/call get_weather id=7 101ms 98B code=-32602 \"Unknown city\"",
            "12:34:56.909Z stdio python[12346] → python[12345] TERR tools/call get_weather id=7 101ms 107B \"the service is down\"",
            "12:34:56.939Z stdio python[12346] → python[12345] NOTF notifications/message",
            "12:34:56.949Z stdio python[12346] → python[12345] FIND stdio-noise \"line on stdout that is not JSON: \\x1b[32mready\\x1b[0m\"",
            "12:34:56.959Z stdio python[12346] → python[12345] LOST kernel ring_full messages=? bytes=4096 session=s12",
            "12:34:57.209Z mcpspy LOST sink queue_full messages=31701",
            "12:34:57.289Z stdio python[12345] → python[12346] SESS closed s12 cause=server-exited code=1 messages=42 pending=1",
            "12:34:57.389Z mcpspy STAT stopped records=61 ring_full=0 messages_decoded=42",
        ];
        let samples = samples::documented();
        assert_eq!(samples.len(), lines.len());
        for ((_, event), line) in samples.iter().zip(lines) {
            check(event, line);
        }
    }

    #[test]
    fn ids_sizes_batches_and_unknown_ends() {
        let head = "12:34:56.789Z stdio";
        let mut event = samples::call();
        event.message.id = Some(RequestId::String("7".into()));
        event.message.size = 1234;
        event.to = samples::unknown();
        check(
            &samples::wrap(1, 0, event),
            &format!("{head} python[12345] → ? REQ  tools/call get_weather id=\"7\" 1.2kB"),
        );
        let mut event = samples::result();
        (event.request, event.duration, event.target) = (None, None, None);
        event.message.size = 16_800_000;
        event.message.truncated = true;
        check(
            &samples::wrap(1, 0, event),
            &format!("{head} python[12346] → python[12345] RESP ? id=7 16.8MB truncated"),
        );
        let mut event = samples::notification();
        event.message.batch = Some((0, 3));
        event.message.anomalies = vec![crate::model::Anomaly::DuplicateKey];
        check(
            &samples::wrap(1, 0, event),
            &format!(
                "{head} python[12346] → python[12345] NOTF notifications/message batch=1/3 !duplicate_key"
            ),
        );
        let mut event = samples::error();
        event.message.error = None;
        event.outcome = Some(Outcome::Error(None));
        event.duration = Some(125_900_000_000);
        check(
            &samples::wrap(1, 0, event),
            &format!(
                "{head} python[12346] → python[12345] ERR  tools/call get_weather id=7 2m05s 98B"
            ),
        );
        let exit = SessionChange::Closed(CloseCause::ClientExited(Exit::Signal(9)));
        check(
            &samples::at(1, 0, samples::session_event(exit, 0, 0)),
            &format!(
                "{head} python[12345] → python[12346] SESS closed s12 cause=client-exited signal=9 messages=0 pending=0"
            ),
        );
    }

    #[test]
    fn containers_and_losses_say_where() {
        let shown: Vec<_> = samples::unusual()
            .iter()
            .map(|event| show(PLAIN, event))
            .filter(|line| line.contains(" REQ  ") && !line.contains("python[12345] → python["))
            .map(|line| line.split_once(" REQ ").unwrap().0.replace("12:34:56.789Z stdio ", ""))
            .collect();
        assert_eq!(
            shown,
            [
                "docker client outside this host → shop/inventory (node[31830])",
                "shop-inventory-1 (python[12345]) → shop/inventory#2 (python[12346])",
                "9876543210fe/abcdef012345 → abcdef012345 (python[12346])",
            ]
        );
        let session = samples::session_of(&samples::outside(), &samples::contained_server());
        let lost = |session, from| {
            let (stage, reason) = (LostStage::Stream, "hole");
            let (bytes, messages, since) = (Some(7), None, None);
            let lost = Lost { stage, reason, bytes, messages, since, session, from };
            samples::at(1, 0, EventBody::Lost(lost))
        };
        let (server, what) = (samples::contained_server(), "LOST stream hole messages=? bytes=7");
        let ends = "shop/inventory (node[31830]) → docker client outside this host";
        check(
            &lost(Some(Arc::clone(&session)), Some(server.clone())),
            &format!("12:34:56.789Z stdio {ends} {what} session=s12"),
        );
        check(
            &lost(None, Some(server)),
            &format!("12:34:56.789Z - shop/inventory (node[31830]) → ? {what}"),
        );
        check(&lost(None, None), &format!("12:34:56.789Z mcpspy {what}"));
    }

    #[test]
    fn nothing_in_traffic_reaches_the_terminal_as_a_command() {
        let evil = "\x1b]0;pwned\x07\x1b[2J\u{9b}31m\u{202e}\r\nx";
        let mut event = samples::error();
        let mut process = ProcessInfo::clone(event.from.process.as_ref().unwrap());
        process.comm = evil.into();
        event.from.process = Some(Arc::new(process));
        event.target = Some(Target::Tool(format!("{evil}{}", "a".repeat(10_000)).into()));
        event.message.id = Some(RequestId::String(evil.into()));
        event.message.raw = format!("{{\"a\":\"{evil}\"}}").into();
        for event in [samples::wrap(1, 0, event), samples::hostile(20_000)] {
            let text = show(ConsoleOptions { buffers: true, ..PLAIN }, &event);
            assert_eq!(text.lines().count(), 2, "{text}");
            assert!(!text.replace('\n', "").chars().any(is_invisible), "{text}");
            assert!(text.lines().next().unwrap().len() < 1200, "{text}");
        }
    }

    #[test]
    fn raw_json_stands_below_its_line_and_is_no_json_rpc_line() {
        let event = samples::wrap(1, 0, samples::call());
        let text = show(ConsoleOptions { buffers: true, ..PLAIN }, &event);
        let raw = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"get_weather","arguments":{"city":"Berlin"}}}"#;
        assert_eq!(text.lines().nth(1).unwrap(), format!("  │ {raw}"));
        for line in text.lines() {
            assert!(!line.trim_start().starts_with(['{', '[']));
        }
        let options = ConsoleOptions { buffers: true, payload: Payload::Limit(10), ..PLAIN };
        assert_eq!(show(options, &event).lines().nth(1), Some("  │ {\"jsonrpc\"… 98 bytes more"));
        let options = ConsoleOptions { buffers: true, payload: Payload::None, ..PLAIN };
        assert_eq!(show(options, &event).lines().count(), 1);
    }

    #[test]
    fn no_line_is_longer_than_it_may_be() {
        let call = |text: &str| {
            let params = format!("{{\"a\":\"{}\"}}", text.repeat(5_000_000 / text.len()));
            samples::wrap(1, 0, samples::call_with(&params))
        };
        let full = ConsoleOptions { buffers: true, payload: Payload::Full, ..PLAIN };
        let docker = ConsoleOptions { max_line: Some(16 * 1024), ..full };
        for event in [call("x"), call("\u{7f}"), call("天"), samples::hostile(3000)] {
            let text = show(docker, &event);
            let longest = text.split_inclusive('\n').map(str::len).max().unwrap();
            assert!(longest < 16 * 1024, "{longest}");
            assert!(longest > 11 * 1024, "{longest}");
            assert!(text.ends_with(" bytes more\n"));
        }
        assert!(show(full, &samples::hostile(3000)).len() > 16 * 1024);
    }

    #[test]
    fn colour_only_adds_sequences_of_ours() {
        for (_, event) in samples::documented() {
            let coloured = show(ConsoleOptions { color: true, ..PLAIN }, &event);
            assert!(coloured.contains("\x1b["));
            let mut plain = String::new();
            for (at, part) in coloured.split("\x1b[").enumerate() {
                plain.push_str(if at == 0 { part } else { part.split_once('m').unwrap().1 });
            }
            assert_eq!(plain, show(PLAIN, &event));
        }
    }
}

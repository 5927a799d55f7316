//! Lines as they are written, through the same layer and filter as in the daemon.

use std::sync::Mutex;

use tracing::{debug, error, info, info_span, trace, warn};

use super::heard::heard_by;
use super::*;

/// A writer that the test can read.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .expect("no test panics with it")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is written while `run` runs, each line without its timestamp.
fn written(filter: &str, style: Style, run: impl FnOnce(&LogHandle)) -> Vec<String> {
    let sink = Sink::default();
    let (layer, handle) =
        build::<Registry>(filter, style, Box::new(sink.clone())).expect("the filter parses");
    let subscriber = tracing_subscriber::registry().with(layer);
    heard_by(subscriber, || run(&handle));
    let text = String::from_utf8(sink.0.lock().expect("no test panics with it").clone())
        .expect("lines are UTF-8");
    let timestamp = |line: &str| match style {
        Style::Json => line.replacen(&line[13..39], "\"…\"", 1),
        Style::Pretty { .. } => line
            .split_once(' ')
            .map(|(_, rest)| rest.to_owned())
            .unwrap_or_default(),
    };
    text.lines().map(timestamp).collect()
}

#[test]
fn json_line_is_flat_typed_and_ordered() {
    let lines = written("info", Style::Json, |_| {
        info!(
            event = "delivery.acknowledged",
            installation_id = "icfg_7Hd",
            entry = 58213_u64,
            fields = %JsonList::new(["secrets", "a\"b"]),
            secret_names = %JsonList::new(Vec::<String>::new()),
            retried = false,
            ratio = 0.5,
            broken = f64::NAN,
            lag_ms = 35_288_u128,
            offset = -3_i64,
            reason = ?Some("x"),
            "Delivered {} for icfg_7Hd",
            "secrets"
        );
    });
    insta::assert_snapshot!(lines.join("\n"), @r#"{"timestamp":"…","level":"INFO","event":"delivery.acknowledged","installation_id":"icfg_7Hd","entry":58213,"fields":["secrets","a\"b"],"secret_names":[],"retried":false,"ratio":0.5,"broken":"NaN","lag_ms":35288,"offset":-3,"reason":"Some(\"x\")","message":"Delivered secrets for icfg_7Hd"}"#);
    let parsed: serde_json::Value = serde_json::from_str(&lines[0]).expect("a line is JSON");
    assert_eq!(parsed["fields"][1], "a\"b");
}

#[test]
fn timestamp_is_rfc_3339_in_utc_with_milliseconds() {
    let fields = field::Fields::default();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(1_777_903_331_123);
    let line = |fields| line::Line {
        time,
        level: Level::INFO,
        target: "x",
        fields,
    };
    let json = line(fields.clone()).render(Style::Json);
    assert!(
        json.starts_with(r#"{"timestamp":"2026-05-04T14:02:11.123Z","level":"INFO","#),
        "{json}"
    );
    let pretty = line(fields).render(Style::Pretty { colour: false });
    assert_eq!(pretty, "14:02:11.123 INFO  x\n");
}

#[test]
fn span_fields_join_the_line_and_the_nearest_wins() {
    let lines = written("info", Style::Json, |_| {
        let outer = info_span!(
            "pass",
            pass = 1,
            resource_id = "outer",
            rows = tracing::field::Empty
        );
        let _outer = outer.enter();
        outer.record("rows", 7);
        let _inner = info_span!("row", resource_id = "inner").entered();
        info!(event = "row.read", "Read");
    });
    insta::assert_snapshot!(lines.join("\n"), @r#"{"timestamp":"…","level":"INFO","event":"row.read","resource_id":"inner","pass":1,"rows":7,"message":"Read"}"#);
}

#[test]
fn line_of_another_library_names_its_target_and_forges_nothing() {
    let lines = written("info", Style::Json, |_| {
        warn!(target: "other::part", level = "x", timestamp = 1, "text");
    });
    insta::assert_snapshot!(lines.join("\n"), @r#"{"timestamp":"…","level":"WARN","event":"log","target":"other::part","level_":"x","timestamp_":1,"message":"text"}"#);
}

#[test]
fn pretty_line_is_one_line_whatever_its_values_hold() {
    let lines = written("info", Style::Pretty { colour: false }, |_| {
        warn!(
            event = "delivery.retrying",
            entry = 7,
            detail = "a \"b\"\nc\u{1b}[31m",
            plain = "x",
            none = "",
            fields = %JsonList::new(["secrets", "status"]),
            "Will retry\nin {}\u{202e}",
            "30s"
        );
    });
    insta::assert_snapshot!(lines.join("\n"), @r#"WARN  delivery.retrying  Will retry\nin 30s\u{202e}  entry=7 detail="a \"b\"\nc\u{1b}[31m" plain=x none="" fields=[secrets,status]"#);
}

#[test]
fn pretty_line_is_coloured_only_where_it_suits() {
    let coloured = written("info", Style::Pretty { colour: true }, |_| {
        error!(event = "x", "y")
    });
    assert!(coloured[0].contains("\u{1b}[31mERROR"), "{coloured:?}");
    assert!(colour_suits(true, true, false));
    for refused in [
        (false, true, false),
        (true, false, false),
        (true, true, true),
    ] {
        assert!(
            !colour_suits(refused.0, refused.1, refused.2),
            "{refused:?}"
        );
    }
}

#[test]
fn text_that_looks_like_a_list_stays_text() {
    let lines = written("info", Style::Json, |_| {
        info!(event = "x", a = "[\"b\"]", c = "\u{1d}[\"d\"]", "m")
    });
    insta::assert_snapshot!(lines.join("\n"), @r#"{"timestamp":"…","level":"INFO","event":"x","a":"[\"b\"]","c":"\u001d[\"d\"]","message":"m"}"#);
}

#[test]
fn error_field_tells_its_causes() {
    let lines = written("info", Style::Json, |_| {
        let error = TelemetryError::Filter {
            directives: "x".to_owned(),
        };
        let chain = crate::hardening::HardeningError::CoreLimit(io::Error::other("refused"));
        warn!(
            event = "x",
            error = &error as &dyn std::error::Error,
            chain = &chain as &dyn std::error::Error,
            "m"
        );
    });
    insta::assert_snapshot!(lines.join("\n"), @r#"{"timestamp":"…","level":"WARN","event":"x","error":"\"x\" is no log filter","chain":"core dumps could not be switched off: refused","message":"m"}"#);
}

#[test]
fn libraries_that_could_show_secrets_never_go_below_warn() {
    for filter in [
        "trace",
        "trace,sqlx=trace,hyper=trace",
        "off,reqwest=debug,sqlx::query=trace,rustls=warn,h2=warn",
    ] {
        let lines = written(filter, Style::Json, |_| {
            trace!(target: "sqlx::query", "hunter2");
            debug!(target: "sqlx_core::pool", "hunter2");
            warn!(target: "sqlx::query", "slow statement: hunter2");
            debug!(target: "reqwest::connect", "hunter2");
            trace!(target: "hyper_util::client", "hunter2");
            info!(target: "h2::codec", "hunter2");
            debug!(target: "rustls::client", "hunter2");
            debug!(target: "tower::buffer", "hunter2");
            let _span =
                tracing::trace_span!(target: "h2::proto", "hunter2", value = "hunter2").entered();
            warn!(target: "rustls::client", "degraded");
        });
        assert_eq!(lines.len(), 1, "{filter}: {lines:?}");
        assert!(
            lines[0].contains("degraded") && !lines[0].contains("hunter2"),
            "{filter}: {lines:?}"
        );
    }
}

#[test]
fn filter_can_be_replaced_while_running() {
    let lines = written("warn", Style::Pretty { colour: false }, |handle| {
        info!(event = "before", "");
        handle.set_filter("debug").expect("the filter parses");
        debug!(event = "after", "");
        assert!(handle.set_filter("a=b=c").is_err());
        debug!(event = "still", "");
    });
    assert_eq!(lines, ["DEBUG after", "DEBUG still"]);
}

#[test]
fn closed_output_loses_lines_and_nothing_else() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("the system has /dev/full");
    for writer in [Box::new(Closed) as Box<dyn Write + Send>, Box::new(full)] {
        let (layer, handle) =
            build::<Registry>("info", Style::Json, writer).expect("the filter parses");
        let subscriber = tracing_subscriber::registry().with(layer);
        heard_by(subscriber, || {
            info!(event = "one", "");
            info!(event = "two", "");
        });
        assert_eq!(handle.lost_lines(), 2);
    }
}

#[test]
fn panic_is_one_line_without_values() {
    let _previous = std::panic::take_hook();
    let lines = written("info", Style::Json, |_| {
        panic::install_hook();
        let secret = || panic!("token {}", std::hint::black_box("hunter2"));
        assert!(std::panic::catch_unwind(secret).is_err());
        let _restored = std::panic::take_hook();
    });
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains(r#""event":"panic","location":"src/telemetry/tests.rs:"#),
        "{lines:?}"
    );
    assert!(
        lines[0].contains("text withheld") && !lines[0].contains("hunter2"),
        "{lines:?}"
    );
}

#[test]
fn warnings_and_errors_are_counted_by_name_whatever_the_filter_hides() {
    let mut counted = Vec::new();
    let lines = written("off", Style::Json, |handle| {
        warn!(event = "drift.found", "one");
        warn!(event = "drift.found", "two");
        error!(event = "guard.held", "three");
        info!(event = "summary", "not counted");
        error!(event = "none.of.ours", "not in the table");
        error!(target: "sqlx", event = "guard.held", "somebody else's");
        counted = handle.events();
    });
    assert_eq!(lines, Vec::<String>::new());
    counted.retain(|(_, count)| *count > 0);
    assert_eq!(counted, [("guard.held", 1), ("drift.found", 2)]);
}

#[test]
fn what_only_looks_like_a_list_stays_text_on_one_line() {
    let lines = written("info", Style::Json, |_| {
        info!(event = "x", list = %JsonList::new(["a\u{7f}b", "c\nd"]), "One");
        let broken = "\u{1d}[\"a\",\n\"b\"]";
        let of_numbers = "\u{1d}[1]";
        info!(event = "x", %broken, %of_numbers, "Two");
    });
    let list: serde_json::Value = serde_json::from_str(&lines[0]).expect("a line is JSON");
    assert_eq!(list["list"], serde_json::json!(["a\u{7f}b", "c\nd"]));
    insta::assert_snapshot!(lines[1], @r#"{"timestamp":"…","level":"INFO","event":"x","broken":"\u001d[\"a\",\n\"b\"]","of_numbers":"\u001d[1]","message":"Two"}"#);
}

#[test]
fn numbers_of_any_size_are_numbers() {
    let lines = written("info", Style::Json, |_| {
        info!(
            event = "x",
            most = u64::MAX,
            least = i128::MIN,
            negative = -1_i64,
            "Numbers"
        );
    });
    let values = r#""most":18446744073709551615,"least":-170141183460469231731687303715884105728,"negative":-1"#;
    assert!(lines[0].contains(values), "{lines:?}");
}

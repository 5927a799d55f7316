//! A real process that panics with secrets in its hands: a child of the test, with the daemon's own logging and panic hook.

use std::collections::BTreeMap;

use reconciled::config::{LogConfig, LogFormat};
use reconciled::model::secret::Overrides;
use reconciled::model::{AccessToken, RawText, Secret, SecretName, SecretSet};
use reconciled::telemetry::{self, Output};
use tokio::process::Command;

use super::{assert_hidden, marked, token};

/// Set for the child alone.
const CHILD: &str = "RECONCILED_TEST_PANICS";

#[tokio::test]
async fn a_panic_shows_where_and_nothing_of_what_was_in_play() {
    if std::env::var_os(CHILD).is_some() {
        return panic_in_every_way().await;
    }
    let program = std::env::current_exe().expect("the test knows itself");
    let name = "secrets::panics::a_panic_shows_where_and_nothing_of_what_was_in_play";
    let mut child = Command::new(program);
    child
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .env("RUST_BACKTRACE", "full");
    let said = child.output().await.expect("it runs");
    assert!(said.status.success(), "every panic was caught");
    let text = String::from_utf8_lossy(&said.stdout);
    let panics = text.matches("\"event\":\"panic\"").count();
    assert_eq!(panics, 5, "{text}");
    assert!(text.contains("panics.rs"), "each says where: {text}");
    assert_hidden("stdout", &said.stdout);
    assert_hidden("stderr", &said.stderr);
}

/// Panics as code with secrets in its hands may: in a task, a thread and a blocking one, with them in the text, in what is
/// printed of a value, and in an error.
async fn panic_in_every_way() {
    let log = LogConfig {
        format: LogFormat::Json,
        filter: "trace".to_owned(),
        summary_interval: None,
    };
    telemetry::init(&log, Output::Stdout).expect("nobody else logs here");
    let value = marked(1);
    let in_task = tokio::spawn(async move { panic!("the value is {value}") });
    assert!(in_task.await.is_err());
    let access = AccessToken::new(&token(2));
    let in_thread = std::thread::spawn(move || panic!("{access:?} is {}", access.expose()));
    assert!(in_thread.join().is_err());
    let text = RawText::text(marked(3));
    let blocking = tokio::task::spawn_blocking(move || panic!("a row with {text:?}"));
    assert!(blocking.await.is_err());
    let parsed = marked(4).parse::<u32>().map_err(|_| marked(4));
    let unwrapped = tokio::spawn(async move { parsed.unwrap() });
    assert!(unwrapped.await.is_err());
    let name = SecretName::new("KEY").expect("a name");
    let secret = Secret {
        value: marked(5).into(),
        prefix: None,
        overrides: Overrides::default(),
    };
    let set = SecretSet(BTreeMap::from([(name, secret)]));
    let compared =
        tokio::spawn(async move { assert!(set.0.is_empty(), "{set:?} of {}", marked(6)) });
    assert!(compared.await.is_err());
}

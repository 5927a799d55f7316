//! Secrets and tokens, marked, through every path of the real daemon and its commands: they are in no line, no output, no
//! file and nothing that the system shows of the process.

mod oauth;
mod panics;

use std::{
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use reconciled::simulator::{Fault, Field, Matcher, Options, RetryAfter, Simulator};
use rustix::process::Signal;
use secrecy::SecretString;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
    time::timeout,
};

use crate::crash::Requests;
use crate::support::{
    HUNG,
    database::TestDatabase,
    directory::Directory,
    process::{Installation, Process},
    sqlite,
};

/// Stands in every value and every token that is marked; no escape of JSON or of a URL changes it.
const CORE: &str = "Zq7HiddenCore";
/// Installations and resources of each; `RECONCILED_INTERLEAVED=1000` tries a thousand installations with a hundred each.
const INTERLEAVED: usize = 40;
const RESOURCES_EACH: usize = 10;

/// A secret value that every escape changes somewhere.
fn marked(n: usize) -> String {
    format!("{n:02}\"'\\/+ %&=é{CORE}é=&% +/\\'\"{n:02}")
}

fn token(n: usize) -> String {
    format!("tok-{n}-{CORE}-{n}")
}

/// What the core looks like plain, in hexadecimal, and in base64 wherever it begins.
fn needles() -> Vec<String> {
    let hex: String = CORE.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut needles = vec![CORE.to_owned(), hex.to_uppercase(), hex];
    for shift in 0..3 {
        let encoded = base64(&[&b"\0\0"[..shift], CORE.as_bytes()].concat());
        // Characters at the ends are shared with the neighbours.
        needles.push(encoded[4..encoded.len() - 4].to_owned());
    }
    needles
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let [a, b, c] = [0, 1, 2].map(|n| u32::from(chunk.get(n).copied().unwrap_or_default()));
        let group = a << 16 | b << 8 | c;
        for n in 0..=chunk.len() {
            let digit = (group >> (18 - 6 * n)) & 63;
            text.push(char::from(ALPHABET[digit as usize]));
        }
    }
    text
}

/// What of a text is marked, in any form.
fn found(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let found = needles()
        .into_iter()
        .find(|needle| text.contains(needle.as_str()))?;
    let at = text.find(&found).unwrap_or_default();
    let around: String = text[..at].chars().rev().take(200).collect();
    Some(format!(
        "{found} after {}",
        around.chars().rev().collect::<String>()
    ))
}

fn assert_hidden(what: &str, text: &[u8]) {
    assert_eq!(found(text), None, "{what} shows it");
}

fn assert_no_file_shows_it(directory: &Path) {
    for entry in std::fs::read_dir(directory).expect("the directory is readable") {
        let path = entry.expect("the directory is readable").path();
        if path.is_dir() {
            assert_no_file_shows_it(&path);
        } else if let Ok(bytes) = std::fs::read(&path) {
            assert_hidden(&path.display().to_string(), &bytes);
        }
    }
}

#[test]
fn what_looks_for_marks_finds_them_in_every_form() {
    let value = marked(3);
    let hex: String = value.bytes().map(|byte| format!("{byte:02X}")).collect();
    let percent: String =
        percent_encoding::utf8_percent_encode(&value, percent_encoding::NON_ALPHANUMERIC).collect();
    for text in [
        value.clone(),
        json!(value).to_string(),
        hex,
        percent,
        base64(value.as_bytes()),
        base64(format!("x{value}").as_bytes()),
        base64(format!("xy{value}").as_bytes()),
    ] {
        assert!(found(text.as_bytes()).is_some(), "{text}");
    }
    assert_eq!(found(b"nothing"), None);
}

/// Each resource meets one of these once.
fn faults() -> Vec<Fault> {
    let echo: Vec<String> = (0..24).map(marked).collect();
    let echo = echo.join(" ");
    let encoded = base64(echo.as_bytes());
    let hex: String = echo.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut faults: Vec<Fault> = [400, 401, 403, 404, 405, 410, 418, 422, 500, 502, 503, 504]
        .into_iter()
        .enumerate()
        .map(|(n, code)| {
            // An answer may repeat what was sent, in any way.
            let message = [&echo, &encoded, &hex][n % 3];
            Fault::Status {
                code,
                body: Some(json!({"error": {"code": token(n), "message": message}})),
                headers: vec![("X-Vercel-Id".to_owned(), token(n))],
            }
        })
        .collect();
    faults.extend([
        Fault::Conflict,
        Fault::RateLimited {
            retry_after: RetryAfter::Seconds(1),
        },
        Fault::DropBefore,
        Fault::DropAfter,
        Fault::NotHttp,
        Fault::HugeBody { bytes: 10_000_000 },
        Fault::Truncated,
        Fault::Redirect {
            code: 307,
            location: format!("/_simulator/trap?{}", token(0)),
        },
        Fault::RejectField(Field::Secrets),
        Fault::Hang,
        Fault::Delay(Duration::from_millis(10)),
        Fault::SlowBody(Duration::from_millis(1)),
    ]);
    faults
}

async fn provider(installations: usize, each: usize) -> TestDatabase {
    let provider = sqlite::database();
    provider
        .execute(
            "CREATE TABLE resource (installation_id TEXT, id TEXT, version INTEGER, status TEXT, secrets TEXT);
             CREATE TABLE installation (id TEXT, token TEXT)",
        )
        .await;
    let mut session = provider.session().await;
    for n in 0..installations {
        let token = token(n);
        session
            .execute(&format!(
                "INSERT INTO installation VALUES ('icfg_{n}', '{token}')"
            ))
            .await;
    }
    session
        .execute(&format!(
            "INSERT INTO resource
             WITH RECURSIVE number(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n + 1 < {installations} * {each})
             SELECT 'icfg_' || (n % {installations}), 'res_' || n, n, 'ready', NULL FROM number"
        ))
        .await;
    provider
}

fn configure(
    installation: &Installation,
    provider: &TestDatabase,
    simulator: &Simulator,
    more: &str,
) {
    installation.configure(&format!(
        "[source]\nurl = \"{}\"\noverlap = 0\n\
         query = \"SELECT installation_id, id AS resource_id, version AS cursor, status, secrets FROM resource\"\n\
         installations_query = \"SELECT id AS installation_id, token AS access_token FROM installation\"\n\
         [state]\nurl = \"sqlite://{}\"\n[vercel]\nbase_url = \"{}\"\nrequest_timeout = \"2s\"\n\
         [retry]\ninitial_interval = \"20ms\"\nmax_interval = \"200ms\"\nlate_apply = \"200ms\"\n\
         [schedule]\npoll = \"* * * * * *\"\n{more}",
        provider.url,
        installation.path("state.db").display(),
        simulator.base_url(),
    ));
}

async fn world(installations: usize, each: usize) -> (TestDatabase, Simulator, Installation) {
    let provider = provider(installations, each).await;
    let simulator = Simulator::start(Options::creating())
        .await
        .expect("a free port");
    for n in 0..installations {
        simulator
            .remote()
            .install(&format!("icfg_{n}"), &SecretString::from(token(n)));
    }
    (provider, simulator, Installation::new(""))
}

/// What the daemon's listener answers, head and all.
async fn get(address: &str, path: &str) -> Vec<u8> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream
            .write_all(request.as_bytes())
            .await
            .expect("it reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("it answers");
        answer
    };
    timeout(HUNG, exchange).await.expect("it answers in time")
}

#[tokio::test]
async fn secrets_and_tokens_are_nowhere_but_in_memory_and_on_the_wire() {
    let faults = faults();
    let count = faults.len();
    assert!(count >= 20, "each fault has a secret of its own");
    let (provider, simulator, mut installation) = world(count, 1).await;
    let mut session = provider.session().await;
    for n in 0..count {
        let secrets = json!([
            {"name": "KEY", "value": marked(n), "environmentOverrides": {"preview": marked(n + 30)}},
        ]);
        let secrets = secrets.to_string().replace('\'', "''");
        session
            .execute(&format!(
                "UPDATE resource SET secrets = '{secrets}' WHERE id = 'res_{n}'"
            ))
            .await;
    }
    let remote = simulator.remote();
    for (n, fault) in faults.into_iter().enumerate() {
        remote.fault(
            fault,
            Matcher {
                method: Some("PATCH".to_owned()),
                ..Matcher::resource(&format!("icfg_{n}"), &format!("res_{n}"))
            },
        );
    }
    configure(
        &installation,
        &provider,
        &simulator,
        "[log]\nfilter = \"trace\"\nsummary_interval = \"1s\"\n[http]\nlisten = \"127.0.0.1:0\"\n",
    );
    let temporary = installation.path("temporary");
    std::fs::create_dir(&temporary).expect("the directory is writable");
    installation.set_environment("TMPDIR", temporary.to_str().expect("a UTF-8 path"));
    let mut daemon = installation.run();
    daemon
        .wait_for_event_where("summary", |event| {
            event["resources"] == count && event["waiting"] == 0 && event["in_flight"] == 0
        })
        .await;

    assert!(
        remote.requests().len() > count,
        "faults were met and tried again"
    );
    let held = remote
        .resource("icfg_15", "res_15")
        .expect("it was delivered");
    assert_eq!(
        held.secret("KEY"),
        Some(marked(15).as_str()),
        "the marks reached Vercel"
    );
    let listening = daemon.events("http.listening");
    let address = listening[0]["address"].as_str().expect("an address");
    for path in ["/metrics", "/healthz", "/readyz"] {
        let answer = get(address, path).await;
        assert!(answer.starts_with(b"HTTP/1.1 "), "{path} answers");
        assert_hidden(path, &answer);
    }
    let process = format!("/proc/{}", daemon.pid().as_raw_nonzero());
    for part in ["cmdline", "environ", "status", "comm"] {
        // Only root may look at the environment of a process that hides it.
        if let Ok(bytes) = std::fs::read(format!("{process}/{part}")) {
            assert_hidden(part, &bytes);
        }
    }
    let limits = std::fs::read_to_string(format!("{process}/limits")).expect("it runs");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .expect("a limit");
    assert_eq!(
        core.split_whitespace().collect::<Vec<_>>()[4..6],
        ["0", "0"]
    );
    assert_no_file_shows_it(&installation.path(""));

    let commands: [&[&str]; 18] = [
        &["check"],
        &["check", "--json"],
        &["plan"],
        &["plan", "--json"],
        &["status"],
        &["status", "--json"],
        &["explain", "icfg_0", "res_0"],
        &["explain", "icfg_8", "res_8", "--json"],
        &["outbox", "list"],
        &["outbox", "list", "--json"],
        &["outbox", "show", "1"],
        &["outbox", "show", "1", "--json"],
        &["outbox", "retry", "--state", "dead", "--dry-run"],
        &["installation", "list"],
        &["installation", "list", "--json"],
        &["drift"],
        &["baseline", "compare"],
        &["once"],
    ];
    for command in commands {
        let said = installation.output(command).await;
        assert!(
            !said.stdout.is_empty() || !said.stderr.is_empty(),
            "{command:?}"
        );
        assert_hidden(&format!("{command:?}"), &said.stdout);
        assert_hidden(&format!("{command:?}"), &said.stderr);
    }
    assert!(daemon.end_with(Signal::TERM).await.success());
    let said: Vec<String> = daemon.said().into_iter().map(|line| line.text).collect();
    let said = said.join("\n");
    assert!(said.contains("\"level\":\"DEBUG\""), "the log was open");
    assert_hidden("the log", said.as_bytes());
    assert_no_file_shows_it(&installation.path(""));
    assert_eq!(remote.violations(), []);
}

#[tokio::test]
async fn a_configuration_that_is_refused_or_cannot_connect_shows_none_of_its_secrets() {
    let query = "query = \"SELECT 1 AS installation_id, 2 AS resource_id\"\n";
    let source = format!(
        "[source]\nurl = \"postgres://role:{CORE}@127.0.0.1:1/db?password={CORE}\"\n{query}"
    );
    let oauth = format!(
        "[vercel.oauth]\ntoken_url = \"http://127.0.0.1:1/token\"\nclient_id = \"oac\"\nclient_secret = \"{CORE}\"\n"
    );
    for text in [
        format!("{source}pol = 1\n[scheduel]\n{oauth}"),
        format!("[source]\nurl = \"nothing://role:{CORE}@127.0.0.1/db\"\n{query}{oauth}"),
        format!("[source]\nurl = \"{CORE}\"\n{query}{oauth}"),
        format!("{source}{oauth}url = [\"{CORE}\"]\n"),
        format!("{source}{oauth}[state]\nurl = \"sqlite://STATE\"\n"),
        format!("{source}{oauth}[vercel]\nca_file = \"/none\"\nclient_secret = \"{CORE}\"\n"),
        format!("[source]\nurl = \"postgres://role:{CORE}@127.0.0.1:1/db\nbroken"),
    ] {
        let installation = Installation::new("");
        let state = installation.path("state.db").display().to_string();
        installation.configure(&text.replace("STATE", &state));
        for command in [
            &["check"][..],
            &["check", "--json"],
            &["plan"],
            &["once"],
            &["status"],
            &["drift"],
        ] {
            let said = installation.output(command).await;
            let is_silent = said.stdout.is_empty() && said.stderr.is_empty();
            assert!(!is_silent, "{command:?} of {text}");
            assert_hidden(&format!("{command:?} of {text}"), &said.stdout);
            assert_hidden(&format!("{command:?} of {text}"), &said.stderr);
        }
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the figures are what a long run is for"
)]
#[tokio::test]
async fn no_installation_is_ever_called_with_the_token_of_another() {
    let long = std::env::var("RECONCILED_INTERLEAVED").ok();
    let long: Option<usize> = long.map(|count| count.parse().expect("a whole number"));
    let (installations, each) = long.map_or((INTERLEAVED, RESOURCES_EACH), |count| (count, 100));
    let (provider, simulator, installation) = world(installations, each).await;
    configure(
        &installation,
        &provider,
        &simulator,
        "[log]\nfilter = \"warn\"\n",
    );
    let remote = simulator.remote();
    let mut seen = Requests::of(remote);
    let started = Instant::now();
    let mut daemon = installation.run();
    // Tokens are replaced in the midst of it.
    seen.more(installations).await;
    let mut session = provider.session().await;
    for n in (0..installations).step_by(7) {
        let next = format!("{}-next", token(n));
        session
            .execute(&format!(
                "UPDATE installation SET token = '{next}' WHERE id = 'icfg_{n}'"
            ))
            .await;
        remote.rotate_token(&format!("icfg_{n}"), &SecretString::from(next));
    }
    for _ in 1..each {
        seen.more(installations).await;
    }
    session.execute("UPDATE resource SET status = 'suspended', version = version + 1000000 WHERE id = 'res_0'").await;
    remote
        .wait_until(|remote| {
            let last = remote.resource("icfg_0", "res_0");
            last.is_some_and(|last| last.field(Field::Status) == Some(&json!("suspended")))
        })
        .await
        .expect("both sides agree in the end");
    assert!(daemon.end_with(Signal::TERM).await.success());
    assert_eq!(remote.violations(), []);
    let requests = remote.ended();
    println!(
        "{requests} requests for {installations} installations in {:.0?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn other_processes_of_its_user_may_not_look_into_it() {
    let directory = Directory::new(None);
    let program = directory.path().join("reconciled");
    std::fs::copy(env!("CARGO_BIN_EXE_reconciled"), &program)
        .expect("there is room for the program");
    std::fs::set_permissions(
        directory.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .expect("it is ours");
    // Root's own files look the same either way, so it runs as somebody else.
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program);
        command
    } else {
        Command::new(&program)
    };
    command
        .args(["simulate", "--listen", "127.0.0.1:0"])
        .current_dir("/");
    let mut process = Process::start(command);
    process
        .wait_for_line("that it listens", |line| {
            line.text.contains("http://127.0.0.1:")
        })
        .await;
    let of = format!("/proc/{}", process.pid().as_raw_nonzero());
    let status = std::fs::read_to_string(format!("{of}/status")).expect("it runs");
    let user = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next())
        .expect("a user");
    assert_ne!(user, "0");
    // proc(5): the files of a process that is not dumpable belong to root.
    let owner = std::fs::metadata(format!("{of}/environ"))
        .expect("it runs")
        .uid();
    assert_eq!(owner, 0);
    process.end_with(Signal::TERM).await;
}

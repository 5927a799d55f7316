//! Secrets and tokens, marked, through every path of the real daemon and its commands: they are in no line, no output, no
//! file and nothing that the system shows of the process.

mod oauth;
mod panics;

use std::{
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::Output,
    time::{Duration, Instant},
};

use reconciled::simulator::{Fault, Field, Matcher, Operation, Options, RetryAfter, Simulator};
use rustix::process::Signal;
use secrecy::SecretString;
use serde_json::{Value, json};
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
    postgres::Postgres,
    process::{Installation, Process},
    sqlite,
};

/// Stands in every value that is marked; no escape of JSON or of a URL changes it.
const CORE: &str = "Zq7HiddenCore";
/// Stands in every token; it shares nothing with the values' mark, so that what is cleaned of a token may still show a value.
const TOKEN_CORE: &str = "w4KBuriedPart";
/// Installations and resources of each; `RECONCILED_INTERLEAVED=1000` tries a thousand installations with a hundred each.
const INTERLEAVED: usize = 40;
const RESOURCES_EACH: usize = 10;

/// A secret value that every escape changes somewhere.
fn marked(n: usize) -> String {
    format!("{n:02}\"'\\/+ %&=é{CORE}é=&% +/\\'\"{n:02}")
}

fn token(n: usize) -> String {
    format!("tok-{n}-{TOKEN_CORE}-{n}")
}

/// What the marks look like plain, in hexadecimal, and in base64 wherever they begin.
fn needles() -> Vec<String> {
    [CORE, TOKEN_CORE].into_iter().flat_map(forms).collect()
}

fn forms(core: &str) -> Vec<String> {
    let hex: String = core.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut forms = vec![core.to_owned(), hex.to_uppercase(), hex];
    for shift in 0..3 {
        let encoded = base64(&[&b"\0\0"[..shift], core.as_bytes()].concat());
        // Characters at the ends are shared with the neighbours.
        forms.push(encoded[4..encoded.len() - 4].to_owned());
    }
    forms
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

/// Has all that the system shows of a process looked at.
fn look_at_process(process: &Process, look: impl Fn(&str, &[u8])) {
    let directory = format!("/proc/{}", process.pid().as_raw_nonzero());
    for part in ["cmdline", "environ", "status", "comm"] {
        // It runs in sight of the tests: what may not be looked at is not judged.
        let bytes = std::fs::read(format!("{directory}/{part}"))
            .unwrap_or_else(|error| panic!("{part} of the daemon: {error}"));
        assert!(!bytes.is_empty(), "{part} of the daemon is empty");
        look(part, &bytes);
    }
}

/// What a command says, which must show nothing.
async fn assert_output_shows_none(installation: &Installation, command: &[&str]) -> Output {
    let said = installation.output(command).await;
    assert!(
        !said.stdout.is_empty() || !said.stderr.is_empty(),
        "{command:?}"
    );
    assert_hidden(&format!("{command:?}"), &said.stdout);
    assert_hidden(&format!("{command:?}"), &said.stderr);
    said
}

/// The same, of a command that must end with `code`.
async fn assert_command_is_quiet(
    installation: &Installation,
    command: &[&str],
    code: i32,
) -> Output {
    let said = assert_output_shows_none(installation, command).await;
    assert_eq!(said.status.code(), Some(code), "{command:?}: {said:?}");
    said
}

/// The numbers of the open entries in a state, the oldest first.
async fn entries(installation: &Installation, state: &str) -> Vec<String> {
    let list = ["outbox", "list", "--state", state, "--json"];
    let said = assert_command_is_quiet(installation, &list, 0).await;
    let list: Value = serde_json::from_slice(&said.stdout).expect("it is JSON");
    let entries = list["entries"].as_array().expect("a list");
    let mut ids: Vec<u64> = entries
        .iter()
        .map(|entry| entry["entry"].as_u64().expect("a number"))
        .collect();
    ids.sort_unstable();
    ids.iter().map(u64::to_string).collect()
}

#[test]
fn what_looks_for_marks_finds_them_in_every_form() {
    for value in [marked(3), token(3)] {
        let hex: String = value.bytes().map(|byte| format!("{byte:02X}")).collect();
        let percent: String =
            percent_encoding::utf8_percent_encode(&value, percent_encoding::NON_ALPHANUMERIC)
                .collect();
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

/// A provider in this database, its rows without secrets yet.
async fn provide(provider: &TestDatabase, installations: usize, each: usize) {
    let mut session = provider.session().await;
    for statement in [
        "CREATE TABLE resource (installation_id TEXT, id TEXT, version INTEGER, status TEXT, secrets TEXT)",
        "CREATE TABLE installation (id TEXT, token TEXT)",
    ] {
        session.execute(statement).await;
    }
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
}

async fn provider(installations: usize, each: usize) -> TestDatabase {
    let provider = sqlite::database();
    provide(&provider, installations, each).await;
    provider
}

/// Gives each of the first resources two marked values, as the `round`th change of them.
async fn rotate(provider: &TestDatabase, count: usize, round: usize) {
    let mut session = provider.session().await;
    for n in 0..count {
        let secrets = json!([
            {"name": "KEY", "value": marked(n), "environmentOverrides": {"preview": marked(n + 30)}},
            {"name": "ROUND", "value": format!("{CORE}{round}")},
        ]);
        let secrets = secrets.to_string().replace('\'', "''");
        let version = 1_000 * round + n;
        session
            .execute(&format!(
                "UPDATE resource SET secrets = '{secrets}', version = {version} WHERE id = 'res_{n}'"
            ))
            .await;
    }
}

fn configure(
    installation: &Installation,
    provider: &TestDatabase,
    simulator: &Simulator,
    more: &str,
) {
    let state = installation.path("state.db");
    let state = format!("sqlite://{}", state.display());
    configure_over(installation, provider, &state, simulator, "", more);
}

/// The same over any state, with further settings of `[vercel]`.
fn configure_over(
    installation: &Installation,
    provider: &TestDatabase,
    state: &str,
    simulator: &Simulator,
    vercel: &str,
    more: &str,
) {
    installation.configure(&format!(
        "[source]\nurl = \"{}\"\noverlap = 0\n\
         query = \"SELECT installation_id, id AS resource_id, version AS cursor, status, secrets FROM resource\"\n\
         installations_query = \"SELECT id AS installation_id, token AS access_token FROM installation\"\n\
         [state]\nurl = \"{state}\"\n[vercel]\nbase_url = \"{}\"\nrequest_timeout = \"2s\"\n{vercel}\
         [retry]\ninitial_interval = \"20ms\"\nmax_interval = \"200ms\"\nlate_apply = \"200ms\"\n\
         [schedule]\npoll = \"* * * * * *\"\n{more}",
        provider.url,
        simulator.base_url(),
    ));
}

async fn world(installations: usize, each: usize) -> (TestDatabase, Simulator, Installation) {
    let provider = provider(installations, each).await;
    (provider, vercel(installations).await, Installation::new(""))
}

/// A Vercel that knows the installations by their tokens.
async fn vercel(installations: usize) -> Simulator {
    let simulator = Simulator::start(Options::creating())
        .await
        .expect("a free port");
    for n in 0..installations {
        simulator
            .remote()
            .install(&format!("icfg_{n}"), &SecretString::from(token(n)));
    }
    simulator
}

/// Waits until nothing is left to send of so many resources.
async fn is_settled(daemon: &mut Process, count: usize) {
    daemon
        .wait_for_event_where("summary", |event| {
            event["resources"] == count && event["waiting"] == 0 && event["in_flight"] == 0
        })
        .await;
}

/// All that the daemon has logged, which must show nothing.
fn assert_log_shows_none(daemon: &Process) {
    let said: Vec<String> = daemon.said().into_iter().map(|line| line.text).collect();
    let said = said.join("\n");
    assert!(said.contains("\"level\":\"DEBUG\""), "the log was open");
    assert_hidden("the log", said.as_bytes());
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
    rotate(&provider, count, 1).await;
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
        "[log]\nfilter = \"trace\"\nsummary_interval = \"1s\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [guard]\ndestructive_max = 2\n",
    );
    let temporary = installation.path("temporary");
    std::fs::create_dir(&temporary).expect("the directory is writable");
    installation.set_environment("TMPDIR", temporary.to_str().expect("a UTF-8 path"));
    let mut daemon = installation.run_in_sight();
    is_settled(&mut daemon, count).await;

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
    look_at_process(&daemon, assert_hidden);
    let process = format!("/proc/{}", daemon.pid().as_raw_nonzero());
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

    let listens = format!("http.listen={address}");
    for command in [
        &["check"][..],
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
        &["installation", "pause", "icfg_1", "--reason", "a test"],
        &["installation", "resume", "icfg_1"],
        &["drift"],
        &["drift", "--json"],
        &["drift", "--fix"],
        &["--set", &listens, "health"],
        &["--set", &listens, "health", "--ready"],
    ] {
        assert_command_is_quiet(&installation, command, 0).await;
    }
    // What would work on the state itself is refused beside a daemon.
    for command in [&["once"][..], &["baseline", "compare"]] {
        assert_command_is_quiet(&installation, command, 1).await;
    }
    // What a person does to dead letters: they are of other kinds of answers each.
    let dead = entries(&installation, "dead").await;
    let [first, second, ..] = &dead[..] else {
        panic!("{} dead letters", dead.len());
    };
    for command in [
        &["outbox", "show", first][..],
        &["outbox", "retry", first],
        &["outbox", "discard", second, "--reason", "a test", "--json"],
        &["outbox", "retry", "--state", "dead", "--yes", "--json"],
    ] {
        assert_command_is_quiet(&installation, command, 0).await;
    }
    is_settled(&mut daemon, count).await;
    // A pass beyond the blast radius: it takes secrets away, and is let go.
    let taken = "UPDATE resource SET secrets = '[]', version = version + 5000 WHERE id IN ('res_13', 'res_14', 'res_15')";
    provider.execute(taken).await;
    daemon.wait_for_event("guard.held").await;
    let held = entries(&installation, "held").await;
    assert_eq!(held.len(), 3);
    for command in [
        &["outbox", "show", &held[0]][..],
        &["status"],
        &["outbox", "release", &held[0], "--json"],
        &["outbox", "release", "--state", "held", "--yes"],
    ] {
        assert_command_is_quiet(&installation, command, 0).await;
    }
    remote
        .wait_until(|remote| {
            let resource = remote.resource("icfg_15", "res_15");
            resource.is_some_and(|resource| resource.secret("KEY").is_none())
        })
        .await
        .expect("what was released is sent");
    assert!(daemon.end_with(Signal::TERM).await.success());
    assert_log_shows_none(&daemon);
    // What works on a state by itself.
    rotate(&provider, count, 2).await;
    for (command, code) in [
        (&["plan", "--exit-code"][..], 2),
        (&["once", "--sweep"], 0),
        (&["baseline", "compare"], 0),
        (&["baseline", "compare", "--all", "--json"], 0),
        (&["baseline", "adopt", "--all"], 0),
        (&["once", "--json"], 0),
    ] {
        assert_command_is_quiet(&installation, command, code).await;
    }
    assert_no_file_shows_it(&installation.path(""));
    assert_eq!(remote.violations(), []);
}

#[tokio::test]
async fn the_simulator_that_is_sent_secrets_shows_none_of_them() {
    const COUNT: usize = 6;
    let (provider, simulator, installation) = world(COUNT, 1).await;
    rotate(&provider, COUNT, 1).await;
    configure(
        &installation,
        &provider,
        &simulator,
        "[log]\nfilter = \"warn\"\n",
    );
    let mut stand_in = installation.start(&["simulate", "--listen", "127.0.0.1:0"]);
    let listens = stand_in
        .wait_for_line("that it listens", |line| {
            line.text.contains("http://127.0.0.1:")
        })
        .await;
    let (_, address) = listens.text.split_once("http://").expect("an address");
    let port = |c: char| !(c.is_ascii_digit() || ".:".contains(c));
    let address = address.split(port).next().expect("an address");
    let to_it = format!("vercel.base_url=http://{address}");
    assert_command_is_quiet(&installation, &["--set", &to_it, "once"], 0).await;
    stand_in.end_with(Signal::TERM).await;
    let said: Vec<String> = stand_in.said().into_iter().map(|line| line.text).collect();
    let said = said.join("\n");
    assert!(said.contains("res_5"), "it was sent them: {said}");
    assert_hidden("the simulator", said.as_bytes());
}

/// What a question to Vercel may be answered instead, with this in it wherever an answer has room.
fn echoes(echo: &str) -> Vec<Fault> {
    let encoded = base64(echo.as_bytes());
    let hex: String = echo.bytes().map(|byte| format!("{byte:02x}")).collect();
    let said = [echo.to_owned(), encoded, hex].into_iter().cycle();
    let mut faults: Vec<Fault> = [400, 403, 404, 409, 418, 422, 500, 502, 503]
        .into_iter()
        .zip(said)
        .map(|(code, message)| Fault::Status {
            code,
            body: Some(json!({"error": {"code": message, "message": message}})),
            headers: vec![("X-Vercel-Id".to_owned(), message)],
        })
        .collect();
    // An answer in order, with more in it than was asked for.
    faults.push(Fault::Status {
        code: 200,
        body: Some(json!({
            "id": echo, "internalId": echo, "productId": echo, "name": echo, "status": "ready", "secrets": [{"name": "KEY", "value": echo}],
            "resources": [{"partnerId": "res_0", "internalId": echo, "name": echo, "secrets": echo}],
        })),
        headers: vec![("X-Vercel-Id".to_owned(), echo.to_owned())],
    });
    faults.extend([
        Fault::DropBefore,
        Fault::NotHttp,
        Fault::Truncated,
        Fault::HugeBody { bytes: 1_000_000 },
        Fault::Redirect {
            code: 307,
            location: format!("/_simulator/trap?{}", token(0)),
        },
    ]);
    faults
}

#[tokio::test]
async fn over_postgres_answers_to_questions_and_to_secrets_of_their_own_show_none_of_them() {
    let provider = Postgres::shared().database().await;
    let state = Postgres::shared().database().await;
    let faults = faults();
    // All that Vercel was ever sent; a command that asks for itself has sent its token alone.
    let echo = [marked(1), token(1), format!("{CORE}1")].join(" ");
    let (echoes, of_token) = (echoes(&echo), echoes(&token(1)));
    let count = faults.len();
    provide(&provider, count, 1).await;
    rotate(&provider, count, 1).await;
    let simulator = vercel(count).await;
    let remote = simulator.remote();
    let installation = Installation::new("");
    configure_over(
        &installation,
        &provider,
        &state.url,
        &simulator,
        "secrets_endpoint = \"put\"\n",
        "[log]\nfilter = \"trace\"\nsummary_interval = \"1s\"\n",
    );
    // Secrets by themselves meet a fault each; then a 409 whose GET is answered with what was sent, or a 404 whose list is.
    for (n, fault) in faults.into_iter().enumerate() {
        let (icfg, res) = (format!("icfg_{n}"), format!("res_{n}"));
        // Secrets alone create nothing.
        let provisioned = remote.seed(&icfg, &res, &json!({"status": "pending"}));
        provisioned.expect("within the schema");
        let of = |method: &str| Matcher {
            method: Some(method.to_owned()),
            ..Matcher::resource(&icfg, &res)
        };
        remote.fault(fault, of("PUT"));
        let echo = echoes[n % echoes.len()].clone();
        if n % 3 < 2 {
            remote.fault(Fault::Conflict, of("PUT"));
            remote.fault(echo, of("GET"));
        } else {
            let list = Matcher {
                operation: Some(Operation::List),
                ..Matcher::installation(&icfg)
            };
            remote.fault(Fault::status(404), of("PUT"));
            remote.fault(echo, list);
        }
    }
    let mut daemon = installation.run_in_sight();
    is_settled(&mut daemon, count).await;
    rotate(&provider, count, 2).await;
    remote
        .wait_until(|remote| {
            let resource = remote.resource("icfg_22", "res_22");
            resource.is_some_and(|resource| {
                let round = resource.secret("ROUND").map(str::to_owned);
                round == Some(format!("{CORE}2"))
            })
        })
        .await
        .expect("secrets go on to be sent");
    is_settled(&mut daemon, count).await;
    let asked = remote.requests();
    for operation in [Operation::PutSecrets, Operation::Get, Operation::List] {
        let struck = asked
            .iter()
            .filter(|entry| entry.operation == Some(operation) && entry.fault.is_some());
        assert!(struck.count() > 4, "{operation} was answered otherwise");
    }
    look_at_process(&daemon, assert_hidden);

    // The commands that ask Vercel, answered by what it was sent.
    let drifts = [
        &["drift"][..],
        &["drift", "--json"],
        &["drift", "--fix", "--installation", "icfg_0"],
    ];
    let answers = echoes.into_iter().zip(&of_token).enumerate();
    for (n, (echo, of_token)) in answers {
        for (answer, command) in [
            (echo, drifts[n % drifts.len()]),
            (of_token.clone(), &["check"][..]),
        ] {
            remote.clear_faults();
            remote.fault_always(answer, Matcher::method("GET"));
            assert_output_shows_none(&installation, command).await;
        }
    }
    for command in [&["explain", "icfg_0", "res_0"][..], &["status"]] {
        assert_command_is_quiet(&installation, command, 0).await;
    }
    assert!(daemon.end_with(Signal::TERM).await.success());
    assert_log_shows_none(&daemon);
    // This one waits until no daemon reads the source.
    for answer in of_token {
        remote.clear_faults();
        remote.fault_always(answer, Matcher::method("GET"));
        let compare = ["baseline", "compare", "--installation", "icfg_0", "--all"];
        assert_output_shows_none(&installation, &compare).await;
    }
    assert_no_file_shows_it(&installation.path(""));
    assert_eq!(remote.violations(), []);

    let kept = dump(&state, "reconciled").await;
    assert!(kept.contains("res_5"), "the state knows its resources");
    assert_hidden("the state", kept.as_bytes());
    // What would be found there is found in the provider's own tables.
    let provided = dump(&provider, "public").await;
    assert!(provided.contains(CORE) && provided.contains(TOKEN_CORE));
}

/// All rows of all tables of a schema, as PostgreSQL writes them: bytes in hexadecimal.
async fn dump(database: &TestDatabase, schema: &str) -> String {
    let mut connection = database.postgres().await;
    let tables =
        "SELECT table_name::text FROM information_schema.tables WHERE table_schema = $1 ORDER BY 1";
    let tables: Vec<String> = sqlx::query_scalar(tables)
        .bind(schema)
        .fetch_all(&mut connection)
        .await
        .expect("there is such a schema");
    let mut text = String::new();
    for table in tables {
        let rows = format!("SELECT row::text FROM {schema}.\"{table}\" AS row");
        let rows: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(rows))
            .fetch_all(&mut connection)
            .await
            .expect("it can be read");
        for row in rows {
            text.push_str(&format!("{table}: {row}\n"));
        }
    }
    text
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
    // By another process: a child that another test starts meanwhile would hold the file open, and nobody runs what may be written.
    let copied = std::process::Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_reconciled"))
        .arg(&program)
        .status();
    assert!(copied.expect("coreutils are there").success());
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

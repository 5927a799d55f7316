//! The client secret and the tokens of an authorization server, through a real exchange: given, refused, repeated in errors, lost.

use reconciled::simulator::{
    Fault, Matcher, OauthClient, Operation, Options, RetryAfter, Simulator,
};
use rustix::process::Signal;
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::support::process::Installation;

use super::{
    CORE, assert_hidden, assert_no_file_shows_it, base64, look_at_process, marked, provider, token,
};

/// What every token that the simulated server grants begins with.
const GRANTED: &str = "sim_";
const INSTALLATIONS: usize = 16;

fn client_secret() -> String {
    format!("cl+ient/{CORE}&=%20")
}

/// What a request for a token meets, each once.
fn faults() -> Vec<Fault> {
    let secret = client_secret();
    let status = |code, body: Value| Fault::Status {
        code,
        body: Some(body),
        headers: vec![("X-Vercel-Id".to_owned(), token(1))],
    };
    let repeats = [secret.clone(), base64(secret.as_bytes()), marked(7)].join(" ");
    vec![
        status(
            400,
            json!({"error": "invalid_grant", "error_description": repeats}),
        ),
        status(401, json!({"error": secret, "error_description": repeats})),
        status(
            403,
            // What the exchange itself has sent is known, and cut out of a code too.
            json!({"error": {"code": format!("code-{CORE}-2"), "message": repeats}}),
        ),
        status(500, json!(repeats)),
        status(503, json!({"access_token": token(3)})),
        // Granted, and yet of no use.
        status(
            200,
            json!({"access_token": token(40), "token_type": "Bearer", "expires_in": 3600}),
        ),
        status(
            200,
            json!({"access_token": format!("{}\r\nX-Other: 1", token(5)), "token_type": "Bearer"}),
        ),
        status(200, json!({"access_token": "", "secret": secret})),
        status(200, json!({"token": token(6)})),
        Fault::RateLimited {
            retry_after: RetryAfter::Seconds(1),
        },
        Fault::DropBefore,
        Fault::DropAfter,
        Fault::NotHttp,
        Fault::Truncated,
        Fault::HugeBody { bytes: 1_000_000 },
        Fault::Redirect {
            code: 307,
            location: format!("/_simulator/trap?{}", token(0)),
        },
    ]
}

fn assert_no_token(what: &str, text: &[u8]) {
    assert_hidden(what, text);
    let text = String::from_utf8_lossy(text);
    let shown = text
        .find(GRANTED)
        .map(|at| &text[at.saturating_sub(100)..at]);
    assert_eq!(shown, None, "{what} shows a token");
}

#[tokio::test]
async fn client_secret_and_granted_tokens_are_nowhere_but_in_memory_and_on_the_wire() {
    let provider = provider(INSTALLATIONS, 1).await;
    let options = Options {
        oauth: Some(OauthClient {
            client_id: "oac_1".to_owned(),
            client_secret: SecretString::from(client_secret()),
        }),
        ..Options::creating()
    };
    let simulator = Simulator::start(options).await.expect("a free port");
    let remote = simulator.remote();
    for n in 0..INSTALLATIONS {
        // Each exists; the token that opens it is granted.
        remote.install(&format!("icfg_{n}"), &SecretString::from(token(n)));
    }
    let of_token = Matcher {
        operation: Some(Operation::Token),
        ..Matcher::any()
    };
    let faults = faults();
    let count = faults.len();
    for fault in faults {
        remote.fault(fault, of_token.clone());
    }
    let installation = Installation::new("");
    let secret = installation.path("client-secret");
    std::fs::write(&secret, client_secret()).expect("the directory is writable");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&secret, mode).expect("it is ours");
    super::configure(
        &installation,
        &provider,
        &simulator,
        &format!(
            "[log]\nfilter = \"trace\"\nsummary_interval = \"1s\"\n\
             [vercel.oauth]\ntoken_url = \"{}\"\nclient_id = \"oac_1\"\nclient_secret_file = \"{}\"\n\
             form = {{ installation_id = \"{{installation_id}}\" }}\n",
            simulator.token_url(),
            secret.display(),
        ),
    );
    let mut daemon = installation.run_in_sight();
    daemon
        .wait_for_event_where("summary", |event| {
            event["resources"] == INSTALLATIONS && event["waiting"] == 0 && event["in_flight"] == 0
        })
        .await;
    let asked = remote.requests();
    let asked = asked
        .iter()
        .filter(|entry| entry.operation == Some(Operation::Token));
    assert!(asked.count() > count, "every fault was met");
    for command in [
        &["status"][..],
        &["check"],
        &["plan"],
        &["installation", "list", "--json"],
        &["explain", "icfg_0", "res_0"],
        &["drift"],
        &["once"],
    ] {
        let said = installation.output(command).await;
        assert_no_token(&format!("{command:?}"), &said.stdout);
        assert_no_token(&format!("{command:?}"), &said.stderr);
    }
    look_at_process(&daemon, assert_no_token);
    assert!(daemon.end_with(Signal::TERM).await.success());
    let said: Vec<String> = daemon.said().into_iter().map(|line| line.text).collect();
    assert_no_token("the log", said.join("\n").as_bytes());
    std::fs::remove_file(&secret).expect("it was written above");
    assert_no_file_shows_it(&installation.path(""));
    assert_eq!(remote.violations(), []);
}

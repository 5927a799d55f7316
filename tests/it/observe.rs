//! Seen and steered from outside: health, metrics, the service manager, reloads. The real process, and what it really says.

mod acts;
mod http;
mod metrics;
mod reload;
mod shared;
mod stuck;
mod systemd;

use reconciled::simulator::{Options, Simulator};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::HUNG;
use crate::support::database::TestDatabase;
use crate::support::process::{Installation, Process};
use crate::support::sqlite;

const PROVIDER: [&str; 3] = [
    "CREATE TABLE resource (installation_id VARCHAR(40), id VARCHAR(40), version BIGINT, status VARCHAR(20), secrets TEXT)",
    "CREATE TABLE installation (id VARCHAR(40), token VARCHAR(40))",
    "INSERT INTO installation VALUES ('icfg_1', 'hunter2-one'), ('icfg_2', 'hunter2-two'), ('icfg_3', 'hunter2-three')",
];

/// A provider, its configuration, and the simulated Vercel.
struct World {
    installation: Installation,
    provider: TestDatabase,
    simulator: Simulator,
}

impl World {
    /// A world over SQLite.
    async fn new() -> Self {
        Self::over(sqlite::database()).await
    }

    async fn over(provider: TestDatabase) -> Self {
        for statement in PROVIDER {
            provider.execute(statement).await;
        }
        let simulator = Simulator::start(Options::creating())
            .await
            .expect("loopback has a free port");
        Self {
            installation: Installation::new(""),
            provider,
            simulator,
        }
    }

    /// The configuration file with further sections and keys, whose `[vercel]` begins with `vercel`.
    fn configuration(&self, vercel: &str, rest: &str) -> String {
        format!(
            "[source]\nurl = \"{}\"\noverlap = 0\n\
             query = \"SELECT installation_id, id AS resource_id, version AS cursor, status, secrets FROM resource\"\n\
             installations_query = \"SELECT id AS installation_id, token AS access_token FROM installation\"\n\
             [state]\nurl = \"sqlite://{}\"\n[vercel]\nbase_url = \"{}\"\n{vercel}\n\
             [retry]\ninitial_interval = \"20ms\"\nmax_interval = \"200ms\"\nlate_apply = \"200ms\"\n\
             [http]\nlisten = \"127.0.0.1:0\"\n{rest}",
            self.provider.url,
            self.installation.path("state.db").display(),
            self.simulator.base_url(),
        )
    }

    fn configure(&self, vercel: &str, rest: &str) {
        self.installation
            .configure(&self.configuration(vercel, rest));
    }

    /// What `status` says.
    async fn status(&self) -> String {
        let output = self.installation.output(&["status"]).await;
        String::from_utf8(output.stdout).expect("answers are UTF-8")
    }

    async fn insert(&self, installation: u32, id: &str, version: u32, status: &str) {
        let secrets = "{\"KEY\":\"hunter2-value\"}";
        let insert = format!(
            "INSERT INTO resource VALUES ('icfg_{installation}', '{id}', {version}, '{status}', '{secrets}')"
        );
        self.provider.execute(&insert).await;
    }
}

/// Where the daemon listens, as it says.
async fn listening(daemon: &Process) -> String {
    let event = daemon.has_said("http.listening").await;
    event["address"].as_str().expect("an address").to_owned()
}

/// An answer of the listener.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

async fn get(address: &str, path: &str) -> Answer {
    ask(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"),
    )
    .await
}

/// Sends a request and reads to the end of the connection.
async fn ask(address: &str, request: &str) -> Answer {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        // A server that has heard enough may close before it has read everything.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        String::from_utf8(bytes).expect("answers are UTF-8")
    };
    let text = timeout(HUNG, exchange).await.expect("it answers");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Answer {
        status: status.unwrap_or_default(),
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    }
}

/// The items of a field that is a JSON array.
fn list(event: &Value, field: &str) -> Vec<String> {
    let items = event[field].as_array().expect("the field is a list");
    items
        .iter()
        .map(|item| item.as_str().expect("of texts").to_owned())
        .collect()
}

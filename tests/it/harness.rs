//! Proves what the other tests stand on: private servers, the faulty network, the captured process.

use std::net::{Ipv4Addr, SocketAddr};

use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    task::JoinHandle,
};

use crate::support::{
    database::{Engine, TestDatabase},
    mariadb::MariaDb,
    pgbouncer::PgBouncer,
    port,
    postgres::Postgres,
    process::{Installation, Process, Stream, holds},
    proxy::{Mode, Proxy},
    sqlite,
};

#[tokio::test]
async fn each_engine_gives_an_isolated_database() {
    for engine in [Engine::Postgres, Engine::MariaDb, Engine::Sqlite] {
        let (one, other) = (database(engine).await, database(engine).await);
        one.execute("CREATE TABLE resources (id INTEGER); INSERT INTO resources VALUES (1)")
            .await;
        other.execute("CREATE TABLE resources (id INTEGER)").await;
        assert_eq!(
            one.integer("SELECT COUNT(*) FROM resources").await,
            1,
            "{engine:?}"
        );
        assert_eq!(
            other.integer("SELECT COUNT(*) FROM resources").await,
            0,
            "{engine:?}"
        );
    }
}

#[tokio::test]
async fn a_reader_reads_and_cannot_write() {
    for engine in [Engine::Postgres, Engine::MariaDb, Engine::Sqlite] {
        let owner = database(engine).await;
        let url = owner.reader().await;
        owner
            .execute("CREATE TABLE resources (id INTEGER); INSERT INTO resources VALUES (1)")
            .await;
        assert_eq!(
            integer(engine, &url, "SELECT COUNT(*) FROM resources")
                .await
                .expect("it may read"),
            1,
            "{engine:?}"
        );
        let written = integer(engine, &url, "INSERT INTO resources VALUES (2) RETURNING 1").await;
        written.expect_err("a reader's write is refused");
        assert_eq!(
            owner.integer("SELECT COUNT(*) FROM resources").await,
            1,
            "{engine:?}"
        );
    }
}

#[tokio::test]
async fn postgres_keeps_what_was_committed_over_kill_and_stop() {
    let mut server = Postgres::dedicated();
    let database = server.database().await;
    database
        .execute("CREATE TABLE resources (id INTEGER); INSERT INTO resources VALUES (1)")
        .await;
    let mut open = database.postgres().await;
    server.kill();
    sqlx::query("SELECT 1")
        .execute(&mut open)
        .await
        .expect_err("its server was killed");
    server.start();
    assert_eq!(database.integer("SELECT COUNT(*) FROM resources").await, 1);
    server.stop();
    server.start();
    assert_eq!(database.integer("SELECT COUNT(*) FROM resources").await, 1);
}

#[tokio::test]
async fn mariadb_keeps_what_was_committed_over_kill_and_stop() {
    let mut server = MariaDb::dedicated();
    let database = server.database().await;
    database
        .execute("CREATE TABLE resources (id INTEGER); INSERT INTO resources VALUES (1)")
        .await;
    let mut open = database.mariadb().await;
    server.kill();
    sqlx::query("SELECT 1")
        .execute(&mut open)
        .await
        .expect_err("its server was killed");
    server.start();
    assert_eq!(database.integer("SELECT COUNT(*) FROM resources").await, 1);
    server.stop();
    server.start();
    assert_eq!(database.integer("SELECT COUNT(*) FROM resources").await, 1);
}

#[tokio::test]
async fn pgbouncer_passes_statements_on() {
    let postgres = Postgres::shared();
    let direct = postgres.database().await;
    direct
        .execute("CREATE TABLE resources (id INTEGER); INSERT INTO resources VALUES (1)")
        .await;
    let pooler = PgBouncer::in_front_of(postgres, &["postgres"]);
    let url = format!(
        "{}?statement-cache-capacity=0",
        pooler.url("postgres", &direct.name)
    );
    let count = integer(Engine::Postgres, &url, "SELECT COUNT(*) FROM resources").await;
    assert_eq!(count.expect("the pooler passes it on"), 1);
}

#[tokio::test]
async fn proxy_forwards_a_databases_traffic_and_cuts_it() {
    let database = Postgres::shared().database().await;
    let proxy = Proxy::in_front_of_url(&database.url).await;
    let through = TestDatabase {
        url: proxy.url(&database.url),
        ..database
    };
    let mut open = through.postgres().await;
    sqlx::query("SELECT 1")
        .execute(&mut open)
        .await
        .expect("the proxy forwards");
    proxy.cut().await;
    sqlx::query("SELECT 1")
        .execute(&mut open)
        .await
        .expect_err("the connection was cut");
    assert_eq!(
        through
            .integer("SELECT COUNT(*) FROM pg_class WHERE relname = 'none'")
            .await,
        0
    );
}

#[tokio::test]
async fn proxy_swallows_what_is_sent_and_answers_nothing() {
    let (upstream, _echo) = echo().await;
    let proxy = Proxy::in_front_of(upstream).await;
    let mut before = TcpStream::connect(proxy.address())
        .await
        .expect("it listens");
    assert_eq!(
        exchange(&mut before, b"heard").await.expect("it forwards"),
        b"heard"
    );
    proxy.set(Mode::Swallow);
    before.write_all(b"lost").await.expect("the proxy takes it");
    let mut during = TcpStream::connect(proxy.address())
        .await
        .expect("it still accepts");
    during.write_all(b"lost").await.expect("the proxy takes it");
    proxy.await_withheld(2).await;
    proxy.set(Mode::Forward);
    let mut after = TcpStream::connect(proxy.address())
        .await
        .expect("it listens");
    assert_eq!(
        exchange(&mut after, b"heard").await.expect("it forwards"),
        b"heard"
    );
    // What was swallowed did not come back: both connections end without a byte.
    proxy.cut().await;
    before.read_u8().await.expect_err("nothing was answered");
    during.read_u8().await.expect_err("nothing was answered");
}

#[tokio::test]
async fn proxy_holds_bytes_back_until_told() {
    let (upstream, _echo) = echo().await;
    let proxy = Proxy::in_front_of(upstream).await;
    let mut client = TcpStream::connect(proxy.address())
        .await
        .expect("it listens");
    proxy.set(Mode::Hold);
    client.write_all(b"late").await.expect("the proxy takes it");
    proxy.await_withheld(1).await;
    let mut nothing = [0; 4];
    let refused = client
        .try_read(&mut nothing)
        .expect_err("nothing has come back");
    assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock);
    proxy.set(Mode::Delay(std::time::Duration::from_millis(1)));
    let mut answer = [0; 4];
    client
        .read_exact(&mut answer)
        .await
        .expect("what was held is passed on");
    assert_eq!(&answer, b"late");
}

#[tokio::test]
async fn proxy_refuses_and_accepts_again_on_the_same_port() {
    let (upstream, _echo) = echo().await;
    let mut proxy = Proxy::in_front_of(upstream).await;
    let mut open = TcpStream::connect(proxy.address())
        .await
        .expect("it listens");
    proxy.await_accepted(1).await;
    proxy.refuse().await;
    open.read_u8()
        .await
        .expect_err("open connections are reset");
    let refused = TcpStream::connect(proxy.address())
        .await
        .expect_err("nobody listens");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(proxy.accepted(), 1);
    proxy.accept().await;
    let mut again = TcpStream::connect(proxy.address())
        .await
        .expect("it listens again");
    assert_eq!(
        exchange(&mut again, b"heard").await.expect("it forwards"),
        b"heard"
    );
}

#[test]
fn free_port_can_be_taken_while_other_threads_start_processes() {
    let starting = std::thread::spawn(|| {
        for _ in 0..200 {
            let status = std::process::Command::new("true").status();
            assert!(status.expect("every Debian machine has it").success());
        }
    });
    while !starting.is_finished() {
        let port = port::free();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        assert!(listener.is_ok(), "{port}: {listener:?}");
    }
    starting.join().expect("no panic");
}

#[tokio::test]
async fn process_is_heard_signalled_and_waited_for() {
    let mut process = shell(
        r#"echo plain; echo '{"event":"began","n":1}'; echo '{"event":"began","n":2}' >&2
           sleep 600 >/dev/null 2>&1 &
           trap 'kill $!; echo "{\"event\":\"ended\"}"; exit 7' TERM
           echo '{"event":"ready"}'
           wait"#,
    );
    let is_first = |event: &serde_json::Value| event["n"] == 1;
    process.wait_for_event_where("began", is_first).await;
    process
        .wait_for_line("ready", |line| line.text.contains("ready"))
        .await;
    process.signal(Signal::STOP);
    process.signal(Signal::CONT);
    assert_eq!(process.end_with(Signal::TERM).await.code(), Some(7));
    assert_eq!(process.events("ended").len(), 1);
    let errors = process
        .said()
        .into_iter()
        .filter(|line| line.stream == Stream::Stderr);
    assert_eq!(errors.count(), 1);
}

#[tokio::test]
#[should_panic(expected = "without the event never. It said:\n  Stdout: something else")]
async fn process_that_ends_early_fails_the_wait_with_what_it_said() {
    shell("echo 'something else'").wait_for_event("never").await;
}

#[tokio::test]
async fn installation_holds_its_configuration_and_runs_the_binary() {
    let mut installation = Installation::new("# first");
    installation.configure("# second");
    installation.set_environment("RECONCILED__LOG__FILTER", "error");
    let directory = installation.path("");
    assert!(holds(&directory, b"# second"));
    assert!(!holds(&directory, b"# first"));
    let output = installation.output(&["--help"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    // Whatever the daemon makes of an empty configuration, it can be ended.
    installation.configure("");
    installation.run().end_with(Signal::KILL).await;
}

async fn database(engine: Engine) -> TestDatabase {
    match engine {
        Engine::Postgres => Postgres::shared().database().await,
        Engine::MariaDb => MariaDb::shared().database().await,
        Engine::Sqlite => sqlite::database(),
    }
}

async fn integer(engine: Engine, url: &str, sql: &'static str) -> Result<i64, sqlx::Error> {
    use sqlx::Connection as _;
    match engine {
        Engine::Postgres => {
            sqlx::query_scalar(sql)
                .fetch_one(&mut sqlx::PgConnection::connect(url).await?)
                .await
        }
        Engine::MariaDb => {
            sqlx::query_scalar(sql)
                .fetch_one(&mut sqlx::MySqlConnection::connect(url).await?)
                .await
        }
        Engine::Sqlite => {
            sqlx::query_scalar(sql)
                .fetch_one(&mut sqlx::SqliteConnection::connect(url).await?)
                .await
        }
    }
}

fn shell(script: &str) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    Process::start(command)
}

/// A server that answers what it hears; it ends with the returned task.
async fn echo() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("loopback has free ports");
    let address = listener
        .local_addr()
        .expect("a bound socket has an address");
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a listening socket accepts");
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                // A connection that a test cuts is no failure of the echo.
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    (address, task)
}

async fn exchange(stream: &mut TcpStream, words: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(words).await?;
    let mut answer = vec![0; words.len()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
